"""FLUX.2 (dev, klein): normalised 2 x 2 latent patches as tokens, four-axis rotary ids, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Family, Text, joined, per_row

__all__ = ["Flux2"]


class Flux2(Family):
    """As diffusers' ``Flux2Pipeline`` and ``Flux2KleinPipeline`` prepare their inputs, without reference images.

    The VAE's latents are patchified and normalised by its batch norm, so one latent cell is one token.
    """

    name = "flux2"
    embeddings: ClassVar[Mapping[str, str]] = {"prompt_embeds": "encoder_hidden_states"}
    text_width = "joint_attention_dim"

    @property
    def patch(self) -> int:
        return 1

    @property
    def default_guidance(self) -> float | None:
        return 4.0 if self.config["guidance_embeds"] else None

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, _ = pipeline.encode_prompt(prompt=prompt, device=device)
        return {"encoder_hidden_states": tokens}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        text, guidance = joined(rows, latents), self.default_guidance if guidance is None else guidance
        height, width = self.grid(latents)
        embeds = self.config["guidance_embeds"]
        return {
            "hidden_states": latents.flatten(2).transpose(1, 2),  # (B, N, C)
            **text,
            "timestep": per_row(timestep / 1000, latents),
            "guidance": per_row(guidance, latents) if embeds and guidance is not None else None,
            "img_ids": _ids((1, height, width, 1), latents),
            "txt_ids": _ids((1, 1, 1, text["encoder_hidden_states"].shape[1]), latents),
        }


def _ids(sides: tuple[int, int, int, int], latents: Tensor) -> Tensor:
    """(B, tokens, 4) int64: frame, row, column and place in the text of every token, in raster order."""
    axes = torch.meshgrid(*(torch.arange(side, device=latents.device) for side in sides), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(1, -1, 4).expand(latents.shape[0], -1, -1)
