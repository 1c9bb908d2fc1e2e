"""massive_channels beside mean |x|, top-k and median in PyTorch, eager and compiled, at the shapes of the models.

Rivals: ``x.abs().mean(..., dtype=float32)``, ``topk`` and ``median`` ("eager"), which writes |x| once and reads it
again; ``torch.compile`` of the same; ``vector_norm(x, 1)`` over the tokens instead of the mean, which makes no |x|
("norm"). Every result is compared with float64 first.

Floor: B * N * D elements read once; the rest is D numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import harness
import pytest
import torch
from harness import CPU_SHAPES, DTYPE, GPU, SHAPES, Shape, measure, random
from torch import Tensor

from ditf_kernels import massive_channels

TOP = 10
Found = tuple[Tensor, Tensor, Tensor]  # index, magnitude, median


def eager(x: Tensor) -> Found:
    return ranked(x.abs().mean((0, 1), dtype=torch.float32))


def norm(x: Tensor) -> Found:
    return ranked(torch.linalg.vector_norm(x, 1, (0, 1), dtype=torch.float32) / (x.shape[0] * x.shape[1]))


def ranked(magnitude: Tensor) -> Found:
    largest, index = magnitude.topk(TOP)
    return index, largest, magnitude.median()


def ours(x: Tensor) -> Found:
    return massive_channels(x, TOP)


def provide(provider: str) -> Callable[[Tensor], Found]:
    if provider == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(eager, dynamic=False)
    return {"eager": eager, "norm": norm, "ours": ours}[provider]


PROVIDERS = ["eager", "norm", harness.COMPILE, "ours"]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", SHAPES if GPU else CPU_SHAPES, ids=str)
def test_all_tokens(benchmark, shape: Shape, provider: str) -> None:
    run(benchmark, shape, shape.tokens, provider)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_image_tokens_behind_text(benchmark, provider: str) -> None:
    """A view (B, N, D) of joint tokens: no copy, two axes that do not merge."""
    shape = Shape("FLUX", 8, 4096, 3072) if GPU else Shape("FLUX", 2, 256, 3072)
    run(benchmark, shape, shape.tokens + 512, provider)


def run(benchmark, shape: Shape, stored: int, provider: str) -> None:
    """One row over the last ``shape.tokens`` of so many stored."""

    def make_inputs() -> tuple[Tensor]:
        x = random(shape.batch, stored, shape.channels)
        x[..., 154] *= 300
        return (x[:, stored - shape.tokens :],)

    call = provide(provider)
    check(call, *make_inputs())
    view = "" if stored == shape.tokens else f" of {stored} tokens"
    measure(
        benchmark,
        call,
        make_inputs,
        provider=provider,
        group=f"massive_channels, {shape}{view}, {str(DTYPE).removeprefix('torch.')}, k = {TOP}",
        bytes=shape.batch * shape.tokens * shape.channels * DTYPE.itemsize,
    )


@torch.no_grad()
def check(call: Callable[[Tensor], Found], x: Tensor) -> None:
    index, magnitude, median = call(x)
    total = torch.stack([rows.double().abs().sum(0) for rows in x]).sum(0)
    exact = total / (x.shape[0] * x.shape[1])  # (D,) float64
    assert index[0] == 154
    torch.testing.assert_close(magnitude.double(), exact.topk(TOP).values, rtol=1e-4, atol=0)
    torch.testing.assert_close(median.double(), exact.median(), rtol=1e-4, atol=0)
