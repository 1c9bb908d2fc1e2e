"""FLUX.1 (dev, schnell, Kontext, Krea): packed 2 x 2 latent patches, three-axis rotary ids, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Family, Text, joined, per_row

__all__ = ["Flux", "pack", "position_ids"]


class Flux(Family):
    """As diffusers' ``FluxImg2ImgPipeline`` prepares its inputs; the ids in float32 (bfloat16 counts to 256 only)."""

    name = "flux"
    embeddings: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "pooled_prompt_embeds": "pooled_projections",
    }
    text_width = "joint_attention_dim"

    @property
    def patch(self) -> int:
        return 2

    @property
    def latent_channels(self) -> int:
        return int(self.config["in_channels"]) // self.patch**2

    @property
    def default_guidance(self) -> float | None:
        return 3.5 if self.config["guidance_embeds"] else None

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, pooled, _ = pipeline.encode_prompt(prompt=prompt, prompt_2=None, device=device)
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        text = joined(rows, latents)
        grid, guidance = self.grid(latents), self.default_guidance if guidance is None else guidance
        embeds = self.config["guidance_embeds"]
        return {
            "hidden_states": pack(latents, self.patch),
            **text,
            "timestep": per_row(timestep / 1000, latents),
            "guidance": per_row(guidance, latents) if embeds and guidance is not None else None,
            "img_ids": position_ids(grid, latents.device),
            "txt_ids": torch.zeros(text["encoder_hidden_states"].shape[1], 3, device=latents.device),
        }


def pack(latents: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> (B, N, C*patch*patch): tokens in raster order, channel-major inside (``_pack_latents``)."""
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def position_ids(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, 3) float32: 0, row, column (``_prepare_latent_image_ids``)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float().to(device)
