"""upsampled_*: the Triton kernels (interpreted without a GPU) against their twins and against upsampled features."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditf_kernels import BackendError, reference, upsampled, upsampled_argmax, upsampled_argmax_batch, upsampled_planes

from .oracles import GEOMETRIES, assert_found_the_best, brute_force

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# The interpreter computes with numpy, which warns of the NaN these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

both_backends = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.verify)])


@st.composite
def calls(draw):
    """A query, a key with awkward rows, a geometry and a mask."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    size = draw(st.tuples(st.integers(1, 17), st.integers(1, 23)))
    channels, count = draw(st.sampled_from([1, 3, 40])), draw(st.integers(1, 3))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    key = torch.randn(grid[0] * grid[1], channels, generator=noise)
    awkward = draw(st.lists(st.sampled_from(["zero", "nan", "inf", "opposite", "copy", "tiny"]), max_size=3))
    for kind in awkward:
        row, other = (draw(st.integers(0, len(key) - 1)) for _ in range(2))
        key[row] = {
            "zero": torch.zeros(channels), "nan": torch.full((channels,), torch.nan), "inf": key[row] / 0,
            "opposite": -key[other], "copy": key[other], "tiny": key[row] * 1e-6,
        }[kind]  # fmt: skip
    query = torch.randn(count, channels, generator=noise)
    mask = torch.rand(size, generator=noise) < draw(st.sampled_from([0.0, 0.1, 0.8])) if draw(st.booleans()) else None
    return query.to(draw(st.sampled_from(DTYPES))), key.to(draw(st.sampled_from(DTYPES))), grid, size, mask


def expected_scores(query, key, grid, size, mask):
    """(K, H*W) float64, -inf where a pixel cannot be chosen."""
    broken = ~key.isfinite().all(1)
    scores = brute_force(query, key.masked_fill(broken[:, None], 0), grid, size)
    touched = F.interpolate(broken.double().reshape(1, 1, *grid), size, mode="bilinear").flatten() > 1e-9
    if mask is not None:
        touched = touched | ~mask.flatten()
    return scores.masked_fill(touched, -torch.inf)


@pytest.mark.verify
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls())
def test_kernel_equals_twin_equals_upsampling(call):
    query, key, grid, size, mask = call
    xy, score = upsampled_argmax(query, key, grid, size, mask=mask, backend="verify")
    scores = expected_scores(*call)
    if bool(scores.isinf().all()):
        assert (xy == -1).all()
        assert score.isnan().all()
    elif key.shape[1] > 1:
        # Near cancellation, |F(p)|^2 just above 2^-10 of its bound, float32 leaves the fifth digit of a score.
        assert_found_the_best(xy, score, scores, size[1], tolerance=1e-5)


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_all_geometries(grid, size, dtype):
    torch.manual_seed(sum(grid))
    query, key = torch.randn(2, 40).to(dtype), torch.randn(grid[0] * grid[1], 40).to(dtype)
    xy, score = upsampled_argmax(query, key, grid, size, backend="verify")
    assert_found_the_best(xy, score, brute_force(query, key, grid, size), size[1])


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_width_of_flux(dtype):
    query, key = torch.randn(2, 3072), torch.randn(6, 3072).to(dtype)
    xy, score = upsampled_argmax(query, key, (2, 3), (15, 21), backend="verify")
    assert_found_the_best(xy, score, brute_force(query, key, (2, 3), (15, 21)), 21)


@pytest.mark.verify
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (1, 4), (4, 1)])
def test_planes(grid, dtype):
    key = torch.randn(grid[0] * grid[1], 300).to(dtype)
    planes = upsampled_planes(key, grid, backend="verify")
    torch.testing.assert_close(planes[0].flatten().double(), key.double().square().sum(1), atol=1e-4, rtol=1e-5)
    assert planes.shape == (5, *grid)


# --- ties ------------------------------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("size", [(16, 16), (37, 23), (101, 150)])
def test_border_bands_tie_to_their_first_pixel(backend, size):
    key = torch.randn(4, 32)
    xy, score = upsampled_argmax(key, key, (2, 2), size, backend=backend)
    x = next(x for x in range(size[1]) if (x + 0.5) * 2 / size[1] - 0.5 >= 1)
    y = next(y for y in range(size[0]) if (y + 0.5) * 2 / size[0] - 0.5 >= 1)
    assert xy.tolist() == [[0, 0], [x, 0], [0, y], [x, y]]
    torch.testing.assert_close(score, torch.ones(4))


@both_backends
def test_equal_cells_tie_to_the_first_in_raster_order(backend):
    key = torch.randint(-3, 4, (300, 16)).float()  # integers and a unit query: every product is exact
    key[[37, 150, 299]] = 0
    key[[37, 150, 299], 5] = 2.0
    query = torch.zeros(1, 16)
    query[0, 5] = 4.0
    xy, score = upsampled_argmax(query, key, (3, 100), (3, 100), backend=backend)
    assert xy.tolist() == [[37, 0]]
    assert score.item() == 1.0


@both_backends
def test_identical_cells_tie_to_the_first_pixel(backend):
    key = torch.randn(1, 24).expand(12, -1)
    xy, score = upsampled_argmax(torch.zeros(1, 24), key, (3, 4), (30, 41), backend=backend)
    assert xy.tolist() == [[0, 0]]
    assert score.tolist() == [0.0]


# --- vectors that are zero, cancel or are not finite -----------------------------------------------------------------


@both_backends
def test_a_zero_query_and_zero_cells_have_similarity_zero(backend):
    key = torch.zeros(4, 8)
    key[1] = -1.0
    xy, score = upsampled_argmax(torch.ones(1, 8), key, (2, 2), (8, 8), backend=backend)
    assert xy.tolist() == [[0, 0]]  # a zero cell beats the opposite of the query
    assert score.tolist() == [0.0]


@both_backends
def test_a_pixel_where_neighbours_cancel_is_never_a_spurious_best(backend):
    f = F.normalize(torch.randn(96), dim=0)
    query = torch.randn(4, 96)
    query -= (query @ f)[:, None] * f  # at right angles to all that is there: only rounding can score
    xy, score = upsampled_argmax(query, torch.stack([f, -f]), (1, 2), (1, 64), backend=backend)
    assert score.abs().max() < 1e-4
    assert (xy >= 0).all()


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_gets_no_pixel(backend, value):
    query, key = torch.randn(3, 16), torch.randn(6, 16)
    expected = upsampled_argmax(query, key, (2, 3), (9, 9), backend=backend)
    query[1, 7] = value
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 9), backend=backend)
    assert xy[1].tolist() == [-1, -1]
    assert score.isnan().tolist() == [False, True, False]
    assert torch.equal(xy[[0, 2]], expected[0][[0, 2]])


@both_backends
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_cell_that_is_not_finite_loses_every_pixel_on_which_it_has_weight(backend, value):
    key = torch.randn(9, 16)
    query = key[4:5].clone()
    key[4, 3] = value  # the centre of 3 x 3: all that is left are the border bands
    xy, score = upsampled_argmax(query, key, (3, 3), (12, 12), backend=backend)
    assert_found_the_best(xy, score, expected_scores(query, key, (3, 3), (12, 12), None), 12)
    x, y = xy[0].tolist()
    assert x in (0, 1, 10, 11) or y in (0, 1, 10, 11)


@both_backends
def test_no_finite_cell_gives_no_pixel(backend):
    xy, score = upsampled_argmax(torch.ones(2, 4), torch.full((6, 4), torch.nan), (2, 3), (5, 5), backend=backend)
    assert (xy == -1).all()
    assert score.isnan().all()


@both_backends
def test_scores_stay_within_one(backend):
    key = torch.randn(12, 3).half()
    _, score = upsampled_argmax(key * 100, key, (3, 4), (3, 4), backend=backend)
    assert score.max() <= 1
    assert score.min() > 0.9999


# --- masks, planes, strides, dtypes, sizes ---------------------------------------------------------------------------


@both_backends
def test_only_allowed_pixels_are_chosen(backend):
    query, key = torch.randn(2, 16), torch.randn(6, 16)
    mask = torch.zeros(9, 11, dtype=torch.bool)
    mask[4, 7] = True
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 11), mask=mask, backend=backend)
    assert xy.tolist() == [[7, 4], [7, 4]]
    exact = reference.score_at(query, key, (2, 3), (9, 11), xy)
    torch.testing.assert_close(score.double(), exact, atol=1e-6, rtol=0)
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 11), mask=mask & False, backend=backend)
    assert (xy == -1).all()
    assert score.isnan().all()


@both_backends
def test_given_planes_are_used(backend):
    query, key = torch.randn(2, 16), torch.randn(6, 16)
    planes = upsampled_planes(key, (2, 3), backend=backend)
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 11), planes=planes, backend=backend)
    plain = upsampled_argmax(query, key, (2, 3), (9, 11), backend=backend)
    assert torch.equal(xy, plain[0])
    assert torch.equal(score, plain[1])
    _, halved = upsampled_argmax(query, key, (2, 3), (9, 11), planes=4 * planes, backend=backend)
    torch.testing.assert_close(halved, score / 2)


@both_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(backend, dtype):
    query = torch.randn(32, 3).to(dtype).T
    key = torch.randn(7, 64).to(dtype)[1:, ::2]
    planes = torch.randn(2, 3, 5)  # the strides only: their content is overwritten
    planes = planes.permute(2, 0, 1).copy_(upsampled_planes(key, (2, 3), backend=backend))
    mask = (torch.rand(11, 9) < 0.5).T
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 11), planes=planes, mask=mask, backend=backend)
    dense = upsampled_argmax(
        query.contiguous(), key.contiguous(), (2, 3), (9, 11), mask=mask.contiguous(), backend=backend
    )
    assert torch.equal(xy, dense[0])
    torch.testing.assert_close(score, dense[1], atol=1e-6, rtol=0)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_query_meets_a_half_precision_key_unrounded(backend, dtype):
    query, key = torch.randn(3, 64), torch.randn(6, 64).to(dtype)
    _, score = upsampled_argmax(query, key, (2, 3), (9, 11), backend=backend)
    _, widened = upsampled_argmax(query, key.float(), (2, 3), (9, 11), backend=backend)
    torch.testing.assert_close(score, widened, atol=5e-7, rtol=0)


@both_backends
def test_no_queries_give_empty_results(backend):
    xy, score = upsampled_argmax(torch.zeros(0, 4), torch.zeros(6, 4), (2, 3), (9, 9), backend=backend)
    assert xy.shape == (0, 2)
    assert xy.dtype == torch.int64
    assert score.shape == (0,)


def test_many_queries_are_worked_in_parts_that_agree():
    query, key = torch.randn(50, 16), torch.randn(35, 16)
    xy, score = upsampled_argmax(query, key, (5, 7), (300, 400), backend="torch")
    for k in (0, 17, 49):
        alone = upsampled_argmax(query[k : k + 1], key, (5, 7), (300, 400), backend="torch")
        torch.testing.assert_close(score[k : k + 1], alone[1], atol=1e-6, rtol=0)
    assert_found_the_best(xy, score, brute_force(query, key, (5, 7), (300, 400)), 400)


@pytest.mark.verify
def test_offsets_beyond_32_bits(tmp_path):
    far = 2**31 + 8  # rows so far apart, in a file that is empty in between
    flat = torch.from_file(str(tmp_path / "sparse"), shared=True, size=5 * far // 4 + 64, dtype=torch.float16)
    key = flat.as_strided((6, 16), (far // 4, 1))
    key.copy_(torch.randn(6, 16))
    xy, score = upsampled_argmax(key[5:], key, (2, 3), (8, 9), backend="verify")
    assert xy.tolist() == [[7, 6]]
    assert score.item() == pytest.approx(1)


# --- many pairs ------------------------------------------------------------------------------------------------------


def three_pairs():
    grids, sizes, offsets = [(2, 3), (1, 1), (4, 2)], [(9, 11), (3, 3), (20, 7)], [0, 2, 2, 5]
    query, key = torch.randn(5, 24), torch.randn(6 + 1 + 8, 24)
    masks = [None, torch.zeros(3, 3, dtype=torch.bool), torch.rand(20, 7) < 0.5]
    return query, key, offsets, grids, sizes, masks


def one_by_one(query, key, offsets, grids, sizes, masks, backend):
    keys = key.split([h * w for h, w in grids])
    queries = query.split([b - a for a, b in itertools.pairwise(offsets)])
    singles = [
        upsampled_argmax(q, k, g, s, mask=m, backend=backend)
        for q, k, g, s, m in zip(queries, keys, grids, sizes, masks, strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*singles, strict=True))


@both_backends
def test_a_batch_equals_its_pairs_one_by_one(backend):
    *packed, masks = three_pairs()
    xy, score = upsampled_argmax_batch(*packed, masks=masks, backend=backend)
    expected = one_by_one(*packed, masks, backend)
    assert torch.equal(xy, expected[0])
    torch.testing.assert_close(score, expected[1], atol=1e-6, rtol=0)


@pytest.mark.verify
def test_a_batch_verifies_and_takes_planes_and_tensors():
    query, key, offsets, grids, sizes, _ = three_pairs()
    planes = [upsampled_planes(k, g).flatten(1) for k, g in zip(key.split([6, 1, 8]), grids, strict=True)]
    xy, score = upsampled_argmax_batch(
        query, key, torch.tensor(offsets), torch.tensor(grids), torch.tensor(sizes),
        planes=torch.cat(planes, 1), backend="verify",
    )  # fmt: skip
    plain = upsampled_argmax_batch(query, key, offsets, grids, sizes)
    assert torch.equal(xy, plain[0])
    torch.testing.assert_close(score, plain[1], atol=1e-6, rtol=0)


@pytest.mark.verify
def test_a_batch_split_over_several_launches_gives_the_same(monkeypatch):
    from ditf_kernels._triton import upsampled as kernels

    query, key, offsets, grids, sizes, masks = three_pairs()
    whole = upsampled_argmax_batch(query, key, offsets, grids, sizes, masks=masks, backend="triton")
    monkeypatch.setattr(kernels, "QUERIES", 2)
    monkeypatch.setattr(kernels, "COARSE_SCORES", 20)
    assert len(list(kernels._launches(kernels._segments(offsets, [2, 3, 1, 1, 4, 2], [9, 11, 3, 3, 20, 7])))) == 3
    parts = upsampled_argmax_batch(query, key, offsets, grids, sizes, masks=masks, backend="triton")
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


@both_backends
def test_an_empty_batch(backend):
    xy, score = upsampled_argmax_batch(torch.zeros(0, 8), torch.zeros(0, 8), [0], [], [], backend=backend)
    assert xy.shape == (0, 2)
    assert score.shape == (0,)


# --- gradients -------------------------------------------------------------------------------------------------------


def test_scores_are_differentiable_where_an_input_requires_grad():
    query, key = torch.randn(3, 12, requires_grad=True), torch.randn(6, 12, requires_grad=True)
    xy, score = upsampled_argmax(query, key, (2, 3), (9, 11))
    ours = torch.autograd.grad(score.sum(), (query, key))
    exact = reference.score_at(query, key, (2, 3), (9, 11), xy)
    expected = torch.autograd.grad(exact.sum(), (query, key))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with pytest.raises(BackendError, match="requires grad"):
        upsampled_argmax(query, key, (2, 3), (9, 11), backend="triton")
    assert upsampled_planes(key, (2, 3)).requires_grad


# --- bad arguments and limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(4)}, r"query: got shape \(4,\), expected \(rows, D\)"),
        ({"query": torch.zeros(2, 5)}, r"query: got 5 channels, expected 4, as key has"),
        ({"query": torch.zeros(2, 4, dtype=torch.float64)}, r"query: got torch.float64"),
        ({"query": torch.zeros(2, 4, device="meta")}, r"query: got a tensor on meta, expected one on cpu"),
        ({"key": torch.zeros(5, 4)}, r"key: got 5 rows, expected 6"),
        ({"key": torch.zeros(6, 0), "query": torch.zeros(2, 0)}, r"shape \(2, 0\)"),
        ({"grid": (0, 6)}, r"grid: got \(0, 6\), expected two integers of at least 1"),
        ({"grid": 6}, r"grid: got 6, expected two integers"),
        ({"size": (9.5, 3)}, r"size: got \(9\.5, 3\), expected two integers"),
        ({"mask": torch.ones(9, 9, dtype=torch.bool)}, r"mask: got shape \(9, 9\), expected \(9, 11\)"),
        ({"mask": torch.ones(9, 11)}, r"mask: got torch.float32, expected bool"),
        ({"planes": torch.ones(5, 6)}, r"planes: got shape \(5, 6\), expected \(5, 2, 3\)"),
        ({"planes": torch.ones(5, 2, 3).half()}, r"planes: got \(5, 6\) torch.float16, expected \(5, 6\) float32"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(arguments, message):
    call = {"query": torch.zeros(2, 4), "key": torch.zeros(6, 4), "grid": (2, 3), "size": (9, 11), **arguments}
    with pytest.raises(ValueError, match=message):
        upsampled_argmax(**call)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_offsets": [0, 1]}, r"query_offsets: got \[0, 1\], expected 3 integers that do not fall, from 0 to 2"),
        ({"query_offsets": [0, 3, 2]}, r"query_offsets: got \[0, 3, 2\]"),
        ({"query_offsets": [0, 1, 3]}, r"query_offsets: got \[0, 1, 3\]"),
        ({"sizes": [(4, 4)]}, r"sizes: got 1, expected 2, one per grid"),
        ({"grids": [(1, 2), (1, 1)]}, r"key: got 4 rows, expected 3"),
        ({"masks": [None, None, torch.ones(4, 4, dtype=torch.bool)]}, r"masks: got 3, expected 2"),
        ({"masks": [None, torch.ones(5, 5, dtype=torch.bool)]}, r"masks: got \(5, 5\) torch.bool, expected \(4, 4\)"),
    ],
)
def test_bad_batches_are_named_with_what_was_expected(arguments, message):
    call = {
        "query": torch.zeros(2, 4), "key": torch.zeros(4, 4), "query_offsets": [0, 1, 2], "grids": [(1, 2), (2, 1)],
        "sizes": [(4, 4), (4, 4)], **arguments,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        upsampled_argmax_batch(**call)


def test_planes_need_a_grid_that_fits():
    with pytest.raises(ValueError, match=r"grid: got \(2, 2\), expected h \* w = 6"):
        upsampled_planes(torch.zeros(6, 4), (2, 2))


def test_an_image_beyond_32_bit_pixels_takes_the_twin_or_says_why_not(monkeypatch):
    assert upsampled._limit(None, None, None, None, [0, 1], [2, 3], [70_000, 70_000]) is not None
    monkeypatch.setattr(upsampled, "PIXELS", 98)
    monkeypatch.setenv("DITF_KERNELS_BACKEND", "auto")
    query, key = torch.randn(1, 4), torch.randn(6, 4)
    assert torch.equal(
        upsampled_argmax(query, key, (2, 3), (9, 11))[0],
        upsampled_argmax(query, key, (2, 3), (9, 11), backend="torch")[0],
    )
    for backend in ("triton", "verify"):
        with pytest.raises(BackendError, match="an image of 9 x 11 pixels has more than 98"):
            upsampled_argmax(query, key, (2, 3), (9, 11), backend=backend)
