"""adaln beside the same formula in PyTorch, eager and compiled, at the shapes of FLUX, SD3.5 and PixArt.

Rivals: ``F.layer_norm``, times (1 + scale), plus shift, with ``mean`` over the ensemble, ``index_fill`` of the
discarded channels and ``F.normalize`` where the row has them ("eager"); ``torch.compile`` of exactly that; and for one
image, where it can be written so, ``F.layer_norm`` with 1 + scale and shift as its own weight and bias ("affine"). All
work in the input's dtype as models do, so they round more than once; every result is compared with float32 first.

Floor: bytes = (E + 1) * B * N * D elements, each input and output once; FLOPs = (E + 9) * B * N * D, no matrix product
among them, so the limit is the copy. In the eager chain every step is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from harness import CPU_SHAPES, DTYPE, GPU, SHAPES, Shape, measure, random
from torch import Tensor

from ditf_kernels import adaln

DISCARD = (154, 1446)  # FLUX's massive channels; any two do for time
ENSEMBLE = 8
ENSEMBLE_SHAPE = Shape("FLUX", 1, 1600, 3072) if GPU else Shape("FLUX", 1, 256, 3072)
VARIANTS: dict[str, dict[str, Any]] = {
    "discard": {"discard": True},
    "l2": {"l2": True},
    "ensemble": {"ensemble": ENSEMBLE},
    "ensemble, discard and l2": {"ensemble": ENSEMBLE, "discard": True, "l2": True},
}


def eager(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor,
    *,
    ensemble: int = 1,
    discard: bool = False,
    l2: bool = False,
) -> Tensor:
    """x (B*E, N, D); shift, scale (B, D); index (n,) the channels to discard."""
    x = prepared(x, index, ensemble, discard)
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    return F.normalize(y, dim=-1) if l2 else y


def affine(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor, *, ensemble=1, discard=False, l2=False) -> Tensor:
    """The same for one image, B = 1."""
    y = F.layer_norm(prepared(x, index, ensemble, discard), x.shape[-1:], 1 + scale[0], shift[0], 1e-6)
    return F.normalize(y, dim=-1) if l2 else y


def prepared(x: Tensor, index: Tensor, ensemble: int, discard: bool) -> Tensor:
    if ensemble > 1:
        x = x.unflatten(0, (-1, ensemble)).mean(1)
    return x.index_fill(-1, index, 0.0) if discard else x


def ours(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor, *, ensemble=1, discard=False, l2=False) -> Tensor:
    return adaln(x, shift, scale, ensemble=ensemble, discard=index if discard else None, l2_normalize=l2)


def provide(provider: str) -> Callable[..., Tensor]:
    if provider == "torch.compile":
        torch._dynamo.reset()  # after a handful of shapes it would stop compiling and run eagerly, with a warning only
        return torch.compile(eager, dynamic=False)
    return {"eager": eager, "affine": affine, "ours": ours}[provider]


PROVIDERS = ["eager", "affine", harness.COMPILE, "ours"]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", SHAPES if GPU else CPU_SHAPES, ids=str)
def test_norm_and_modulation(benchmark, shape: Shape, provider: str) -> None:
    run(benchmark, "adaln", shape, DTYPE, provider)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_the_rest_of_the_feature(benchmark, variant: str, provider: str) -> None:
    run(benchmark, f"adaln with {variant}", ENSEMBLE_SHAPE, DTYPE, provider, **VARIANTS[variant])


@pytest.mark.skipif(not GPU, reason="half precision is not a CPU's own")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_half_precision(benchmark, provider: str) -> None:
    run(benchmark, "adaln", Shape("FLUX", 8, 4608, 3072), torch.float16, provider)


def run(benchmark, name: str, shape: Shape, dtype: torch.dtype, provider: str, **options: Any) -> None:
    """One row; what it computes is compared with float32 before it counts."""
    if provider == "affine" and shape.batch > 1:
        pytest.skip("each image has its own shift and scale")
    members = options.get("ensemble", 1)
    index = torch.tensor([c for c in DISCARD if c < shape.channels], device=harness.DEVICE)

    def make_inputs() -> tuple[Tensor, ...]:
        x = random(shape.batch * members, shape.tokens, shape.channels, dtype=dtype)
        return x, *(random(shape.batch, shape.channels, dtype=dtype) for _ in ("shift", "scale")), index

    call = provide(provider)
    check(call, make_inputs(), options)
    size = shape.batch * shape.tokens * shape.channels
    measure(
        benchmark,
        lambda *args: call(*args, **options),
        make_inputs,
        provider=provider,
        group=f"{name}, {shape}, {str(dtype).removeprefix('torch.')}, E = {members}",
        bytes=(members + 1) * size * dtype.itemsize,
    )


@torch.no_grad()
def check(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
    x, shift, scale = (t.float() for t in inputs[:3])
    expected = eager(x, shift, scale, inputs[3], **options)
    error = (call(*inputs, **options).float() - expected).norm() / expected.norm()
    assert float(error) < 0.02
