"""Compiled kernels on a CUDA device against their twins, at real sizes: TRITON_INTERPRET=0 pytest -m gpu."""

import os

import pytest
import torch

from ditf_kernels import (
    adaln_with_inverse_norm,
    cosine_argmax,
    cosine_topk,
    massive_channels,
    mutual_nearest,
    propagate_topk,
    upsampled_argmax,
    upsampled_argmax_batch,
    upsampled_nearest,
    upsampled_planes,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "0", reason="kernels are interpreted; set TRITON_INTERPRET=0"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1152, 1536, 2432, 3072])
@pytest.mark.parametrize(
    "flags", [{}, {"discard": [7, 154]}, {"norm": "rms", "topk_per_token": 3, "l2_normalize": True}]
)
def test_adaln(width, dtype, flags):
    x = random(8, 600, width, dtype=dtype)
    x[..., 154] *= 300
    adaln_with_inverse_norm(
        x, random(2, width, dtype=dtype), random(2, width, dtype=dtype), ensemble=4, backend="verify", **flags
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1152, 2432, 3072])
def test_massive_channels(width, dtype):
    x = random(4, 4608, width, dtype=dtype)
    x[..., [154, 1000]] *= 1e4
    for view in (x, x[:, 512:], x.transpose(0, 1), x[0].T.contiguous().T):
        index, _, _ = massive_channels(view, 10, backend="verify")
        assert index[:2].sort().values.tolist() == [154, 1000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "topk", "global_frames"), [(768, 5, 0), (1152, 15, 1), (3072, 32, 0)])
def test_label_propagation(width, topk, global_frames, dtype):
    cells = 41 * 53
    query, keys = random(cells, width, dtype=dtype), random(3, cells, width, dtype=dtype)
    keys[1, 100:110] = torch.nan
    arguments = {"radius": 12, "topk": topk, "temperature": 0.1, "global_frames": global_frames}
    out = propagate_topk(query, keys, random(3, 19, cells), (41, 53), **arguments, backend="verify")
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [100, 1152, 3072])
@pytest.mark.parametrize(("batch", "n", "m"), [(1, 4096, 4096), (1, 1600, 1500), (3, 129, 700)])  # every tile size
def test_nearest_neighbours(batch, n, m, width, dtype):
    a, b = random(batch, n, width, dtype=dtype), random(batch, m, width, dtype=dtype)
    b[:, 100:110], b[:, 110:120] = torch.nan, a[:, 50:60]
    mask = torch.rand(batch, m, device="cuda") < 0.9
    for query in (a, a.float()):
        cosine_argmax(query, b, key_mask=mask, backend="verify")
    cosine_argmax(a.mT.contiguous().mT, b, backend="verify")
    both = mutual_nearest(a, b, b_mask=mask, backend="verify")
    again = mutual_nearest(a, b, b_mask=mask, backend="triton")
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(both, again, strict=True))
    for k in (1, 5, 16):
        cosine_topk(a, b, k, key_mask=mask, backend="verify")


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_neighbours_choose_the_lowest_of_equals(dtype):
    a, b = (torch.randint(0, 2, (n, 256), device="cuda").to(dtype) * 2 - 1 for n in (700, 4000))
    b[2000:] = b[:2000]  # every key twice; lengths are 16, cosines exact
    scores = a.double() @ b.double().T / 256
    value, index = scores.sort(dim=1, descending=True, stable=True)
    found = cosine_topk(a, b, 16, backend="triton")
    assert torch.equal(found[0], index[:, :16])
    assert torch.equal(found[1].double(), value[:, :16])
    both = mutual_nearest(a, b, backend="triton")
    assert torch.equal(both.index_ab, index[:, 0])
    assert torch.equal(both.index_ba, scores.T.sort(dim=1, descending=True, stable=True).indices[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 1536, 3072])
def test_matching(width, dtype):
    key = random(31 * 23, width, dtype=dtype)
    upsampled_planes(key, (31, 23), backend="verify")
    for query in (random(10, width), random(10, width, dtype=dtype)):
        upsampled_argmax(query, key, (31, 23), (500, 375), backend="verify")


def test_matching_many_pairs():
    grids = [(30 + i % 5, 40 - i % 7) for i in range(64)]
    sizes = [(375 + i, 500 - i) for i in range(64)]
    key = random(sum(h * w for h, w in grids), 768, dtype=torch.float16)
    offsets = [10 * i for i in range(65)]
    upsampled_argmax_batch(random(640, 768), key, offsets, grids, sizes, backend="verify")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 3072])
def test_dense_matching(width, dtype):
    query, key = random(20 * 24, width, dtype=dtype), random(31 * 23, width, dtype=dtype)
    key[100:110], key[110:300] = torch.nan, query[50:240]
    mask = torch.rand(250, 190, device="cuda") < 0.9
    for own in (query, query.float()):
        upsampled_nearest(own, (20, 24), (160, 200), key, (31, 23), (250, 190), mask=mask, backend="verify")
    upsampled_nearest(query, (20, 24), (15, 200), query, (20, 24), (160, 11), backend="verify")
