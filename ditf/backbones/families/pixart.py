"""PixArt-alpha and PixArt-Sigma: cross-attention to T5, DDPM noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import DiffusionFamily, Text, joined

__all__ = ["PixArt"]


class PixArt(DiffusionFamily):
    """As diffusers' ``PixArtAlphaPipeline`` and ``PixArtSigmaPipeline`` prepare their inputs, without guidance."""

    name = "pixart"
    embeddings: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "prompt_attention_mask": "encoder_attention_mask",
    }
    text_width = "caption_channels"

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"])

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, mask, _, _ = pipeline.encode_prompt(prompt=prompt, do_classifier_free_guidance=False, device=device)
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self._told_its_size:
            grid = self.grid(latents)
            height, width = (side * self.pixels_per_token for side in grid)
            size = {
                "resolution": latents.new_tensor([[height, width]]).repeat(latents.shape[0], 1),
                "aspect_ratio": latents.new_tensor([[height / width]]).repeat(latents.shape[0], 1),
            }
        return {
            "hidden_states": latents,
            **joined(rows, latents),
            "timestep": self.steps(timestep, latents),
            "added_cond_kwargs": size,
        }

    @property
    def _told_its_size(self) -> bool:
        """PixArt-alpha at 1024 pixels is; the transformer's own rule where the config is silent."""
        told = self.config["use_additional_conditions"]
        return self.config["sample_size"] == 128 if told is None else bool(told)
