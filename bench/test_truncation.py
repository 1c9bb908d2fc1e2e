"""A run that leaves at block k against a full forward of the same FLUX-shaped transformer (19 + 38 blocks)."""

from __future__ import annotations

import copy

import pytest
import torch

import ditf
from ditf.backbones.weights import drop_after

BLOCK, GRID, TEXT = 28, (16, 24), 64
CONFIG = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 32, "num_attention_heads": 12,
    "joint_attention_dim": 128, "pooled_projection_dim": 64, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip


@pytest.fixture(scope="module")
def transformer() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(**CONFIG).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return {
        "hidden_states": torch.randn(1, GRID[0] * GRID[1], 64),
        "encoder_hidden_states": torch.randn(1, TEXT, 128),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.26]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }


@pytest.mark.benchmark(group=f"block {BLOCK} of 57, 384 image + 64 text tokens, width 384")
def test_leaving_at_the_block(benchmark, transformer, inputs) -> None:
    tapped = benchmark.pedantic(
        ditf.tap, (transformer, BLOCK, inputs), {"grid": GRID}, rounds=3, warmup_rounds=1
    )  # fmt: skip
    assert tapped.features.shape == (1, GRID[0] * GRID[1], 384)


@pytest.mark.benchmark(group=f"block {BLOCK} of 57, 384 image + 64 text tokens, width 384")
@torch.inference_mode()
def test_full_forward(benchmark, transformer, inputs) -> None:
    benchmark.pedantic(transformer, kwargs=inputs, rounds=3, warmup_rounds=1)


def test_weights_in_memory(transformer, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of parameters after leaving out what a truncated model does not load."""
    truncated = copy.deepcopy(transformer)
    drop_after(BLOCK)(truncated)
    whole, kept = (sum(p.numel() * p.element_size() for p in m.parameters()) / 2**20 for m in (transformer, truncated))
    with capsys.disabled():
        print(f"\nweights in memory: {kept:.1f} of {whole:.1f} MB ({kept / whole:.0%})")
    assert kept < 0.7 * whole
