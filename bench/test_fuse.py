"""``ditf.fuse`` inside a FLUX-shaped transformer: the whole forward, and one AdaLN as a block writes it.

Real widths on CUDA with a share of FLUX's 19 + 38 blocks, a small model on a CPU. Rivals: the transformer as it is, and
``torch.compile`` of it, which fuses norm and modulation too.

Floor of a forward: its matrix products and attention, counted by torch. Floor of one AdaLN: x read and y written once.
Norms are a few per cent of a forward, so that is what fusing can give there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import COMPILE, CPU_SHAPES, DEVICE, DTYPE, GPU, SHAPES, Shape, measure, random
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ditf
import ditf_kernels

HEADS, HEAD, DOUBLE, SINGLE = (24, 128, 2, 4) if GPU else (6, 64, 2, 4)
GRID, TEXT = ((64, 64), 512) if GPU else ((16, 16), 64)
CONFIG = {
    "in_channels": 64, "num_layers": DOUBLE, "num_single_layers": SINGLE, "num_attention_heads": HEADS,
    "attention_head_dim": HEAD, "joint_attention_dim": 256, "pooled_projection_dim": 64, "guidance_embeds": True,
    "axes_dims_rope": (HEAD // 8, 7 * HEAD // 16, 7 * HEAD // 16),
}  # fmt: skip
FORWARD = f"forward of {DOUBLE} + {SINGLE} FLUX blocks, D = {HEADS * HEAD}, {GRID[0] * GRID[1]} + {TEXT} tokens"


# --- the whole forward -----------------------------------------------------------------------------------------------


def transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model: Any = FluxTransformer2DModel(**CONFIG)
    return model.to(DTYPE).eval()


def make_inputs() -> tuple[Tensor, ...]:
    ids = torch.zeros(*GRID, 3, device=DEVICE)
    ids[..., 1], ids[..., 2] = torch.arange(GRID[0])[:, None], torch.arange(GRID[1])[None]
    return (
        random(1, GRID[0] * GRID[1], CONFIG["in_channels"]),
        random(1, TEXT, CONFIG["joint_attention_dim"]),
        random(1, CONFIG["pooled_projection_dim"]),
        torch.full((1,), 0.26, device=DEVICE, dtype=DTYPE),
        ids.reshape(-1, 3),
        torch.zeros(TEXT, 3, device=DEVICE),
        torch.full((1,), 3.5, device=DEVICE),
    )


def forward_of(model: Any) -> Callable[..., Tensor]:
    def forward(*inputs: Tensor) -> Tensor:
        return model(*inputs, return_dict=False)[0]

    return forward


@functools.cache
def flops() -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward_of(transformer())(*make_inputs())
    return counter.get_total_flops()


@pytest.mark.parametrize("provider", ["ours", "eager", COMPILE])
def test_forward(benchmark, provider: str) -> None:
    model = transformer()
    if provider == "ours":
        report = ditf.fuse(model)
        assert len(report.swapped) == 4 * DOUBLE + SINGLE
    function = torch.compile(model) if provider == "torch.compile" else model
    measure(benchmark, forward_of(function), make_inputs, provider=provider, group=FORWARD, flops=flops())


# --- one AdaLN -------------------------------------------------------------------------------------------------------


class Site(nn.Module):
    """How FLUX writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(1, 1)  # the largest list of modules with weights is taken for the blocks

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class Sites(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Site(channels)])


def site_of(provider: str, channels: int) -> Callable[..., Tensor]:
    model = Sites(channels).to(DEVICE)
    site: Any = model.blocks[0]
    if provider == "ours":
        ditf.fuse(model)
    return torch.compile(site) if provider == "torch.compile" else site


def kernel_alone(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return ditf_kernels.adaln(x, shift, scale)


@pytest.mark.parametrize("provider", ["ours", "the kernel alone", "eager", COMPILE])
@pytest.mark.parametrize("shape", SHAPES if GPU else CPU_SHAPES, ids=str)
def test_one_adaln(benchmark, shape: Shape, provider: str) -> None:
    def tokens() -> tuple[Tensor, Tensor, Tensor]:
        x = random(shape.batch, shape.tokens, shape.channels)
        return x, random(shape.batch, shape.channels), random(shape.batch, shape.channels)

    function = kernel_alone if provider == "the kernel alone" else site_of(provider, shape.channels)
    size = 2 * shape.batch * shape.tokens * shape.channels * DTYPE.itemsize
    measure(benchmark, function, tokens, provider=provider, group=f"AdaLN in a block, {shape}", bytes=size)
