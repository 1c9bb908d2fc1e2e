"""A run that leaves at block 28 beside a full forward of the same FLUX-shaped transformer (19 + 38 blocks).

On CUDA at FLUX's own size, 1600 image and 512 text tokens, with random weights; on a CPU at an eighth of its width.
Rival: the transformer's own forward on the same inputs.

Floor: the FLOPs of the matrix products and attentions that ran, as torch counts them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness import DEVICE, DTYPE, GPU, measure
from torch.utils.flop_counter import FlopCounterMode

import ditf
from ditf.backbones.weights import drop_after

pytest.importorskip("diffusers", reason="the models are diffusers'")

BLOCK = 28
GRID, TEXT, HEADS, AXES, JOINT = ((40, 40), 512, 24, (16, 56, 56), 4096) if GPU else ((8, 12), 16, 12, (8, 12, 12), 128)
TOKENS, CHANNELS = GRID[0] * GRID[1], HEADS * sum(AXES)
CONFIG = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": sum(AXES),
    "num_attention_heads": HEADS, "joint_attention_dim": JOINT, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": AXES,
}  # fmt: skip
GROUP = f"block {BLOCK} of 57, {TOKENS} image + {TEXT} text tokens, width {CHANNELS}"


@pytest.fixture(scope="module")
def transformer() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel(**CONFIG)
    model.to(DTYPE).to_empty(device=DEVICE).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    return model


def make_inputs() -> dict[str, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    inputs = {
        "hidden_states": torch.randn(1, TOKENS, 64),
        "encoder_hidden_states": torch.randn(1, TEXT, JOINT),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.tensor([0.26]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return {name: t.to(DEVICE, DTYPE) for name, t in inputs.items()}


@pytest.mark.parametrize("provider", ["ours", "full forward"])
def test_leaving_at_the_block(benchmark, transformer, provider: str) -> None:
    def leave(inputs: dict[str, torch.Tensor]) -> Any:
        return ditf.tap(transformer, BLOCK, inputs, grid=GRID).features

    def forward(inputs: dict[str, torch.Tensor]) -> Any:
        return transformer(**inputs, return_dict=False)[0]

    call = leave if provider == "ours" else forward
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(make_inputs())
    result = measure(
        benchmark,
        call,
        lambda: (make_inputs(),),
        provider=provider,
        group=GROUP,
        flops=counter.get_total_flops(),
        graph=False,
        rounds=5 if GPU else 3,
    )
    assert result.shape == (1, TOKENS, CHANNELS if provider == "ours" else 64)


def test_weights_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of parameters after leaving out what a truncated model does not load."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(**CONFIG)
    truncated = copy.deepcopy(model)
    drop_after(BLOCK)(truncated)
    whole, kept = (sum(p.numel() for p in m.parameters()) * DTYPE.itemsize / 2**20 for m in (model, truncated))
    with capsys.disabled():
        print(f"\nweights in memory: {kept:.1f} of {whole:.1f} MB ({kept / whole:.0%})")
    assert kept < 0.7 * whole
