"""The ops under torch.library's own checks and under torch.compile, dynamic and in one graph."""

import pytest
import torch

from ditf_kernels import (
    adaln,
    adaln_with_inverse_norm,
    upsampled_argmax,
    upsampled_nearest,
    upsampled_planes,
    use_backend,
)

OPS = torch.ops.ditf_kernels


def adaln_arguments(asked):
    x, modulation = torch.randn(4, 3, 16).mT.contiguous().mT, torch.randn(2, 1, 16)
    discard = torch.tensor([3], dtype=torch.int32)
    return (
        x,
        modulation,
        modulation,
        None,
        None,
        discard,
        True,
        "layer",
        1e-6,
        False,
        1,
        2,
        True,
        torch.float16,
        asked,
    )


@pytest.mark.parametrize("asked", ["torch", pytest.param("triton", marks=pytest.mark.verify)])
def test_registration_passes_the_checks_of_torch_library(asked):
    query, key = torch.randn(3, 16), torch.randn(6, 16)
    mask = torch.ones(99, dtype=torch.bool)
    planes = OPS.upsampled_planes.default(key, [2, 3], "torch")
    for op, arguments in (
        (OPS.adaln.default, adaln_arguments(asked)),
        (OPS.adaln_with_inverse_norm.default, adaln_arguments(asked)),
        (OPS.upsampled_planes.default, (key, [2, 3], asked)),
        (OPS.upsampled_argmax.default, (query, key, planes, mask, [0, 3], [2, 3], [9, 11], asked)),
        (OPS.upsampled_argmax.default, (query, key, None, None, [0, 3], [2, 3], [9, 11], asked)),
        (
            OPS.upsampled_nearest.default,
            (query, key, None, planes, mask[:2], mask[:20], [1, 3], [1, 2], [2, 3], [4, 5], asked),
        ),
    ):
        torch.library.opcheck(op, arguments)


def match(x, key, scale, planes_too):
    tokens = adaln(x, scale, scale, discard=[1, 5], topk_per_token=1)[0] * 2
    rows, inverse_norm = adaln_with_inverse_norm(x, None, scale, ensemble=x.shape[0])
    planes = upsampled_planes(key, (2, 3)) if planes_too else None
    xy, score = upsampled_argmax(tokens, key, (2, 3), (9, 11), planes=planes)
    return xy + 1, score * inverse_norm[0], rows


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("asked", ["torch", pytest.param("triton", marks=pytest.mark.verify)])
def test_compiled_as_one_graph_with_dynamic_shapes(compiler, asked):
    torch._dynamo.reset()
    compiled = torch.compile(match, fullgraph=True, dynamic=True, backend=compiler)
    key, scale = torch.randn(6, 16), torch.randn(16)
    for rows, tokens in ((1, 4), (2, 3), (3, 5)):
        x = torch.randn(rows, tokens, 16)
        with use_backend(asked):
            expected = match(x, key, scale, True)
            for a, b in zip(compiled(x, key, scale, True), expected, strict=True):
                torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_the_backend_is_chosen_when_the_graph_runs():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: adaln(x, None, None), fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 16)
    with use_backend("torch"):
        compiled(x)
    from ditf_kernels import backend

    before = backend.verification_counts().get("adaln", 0)
    with use_backend("verify"):
        compiled(x)
    assert backend.verification_counts()["adaln"] == before + 1


def test_a_gradient_flows_through_a_compiled_call():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: adaln(x, None, None, discard=[2]).square().mean(), backend="aot_eager")
    x = torch.randn(1, 3, 16, requires_grad=True)
    (ours,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(adaln(x, None, None, discard=[2]).square().mean(), x)
    torch.testing.assert_close(ours, expected)


def test_dense_matching_compiles_as_one_graph():
    torch._dynamo.reset()

    def dense(query, key):
        xy, score = upsampled_nearest(query * 2, (2, 2), (5, 4), key, (2, 3), (6, 7), backend="torch")
        return xy + 1, score * 2

    compiled = torch.compile(dense, fullgraph=True, dynamic=True, backend="aot_eager")
    for channels in (8, 12):
        query, key = torch.randn(4, channels), torch.randn(6, channels)
        for a, b in zip(compiled(query, key), dense(query, key), strict=True):
            assert torch.equal(a, b)
