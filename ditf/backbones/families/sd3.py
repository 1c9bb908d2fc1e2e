"""Stable Diffusion 3 and 3.5: latents patchified by the transformer, cropped position table, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from .base import Family, Text, joined, per_row

__all__ = ["SD3"]


class SD3(Family):
    """As diffusers' ``StableDiffusion3Img2ImgPipeline`` prepares its inputs, without classifier-free guidance."""

    name = "sd3"
    embeddings: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "pooled_prompt_embeds": "pooled_projections",
    }
    text_width = "joint_attention_dim"

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"])

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens; the position table bounds both.

        Raises:
            InputError: sides that the patch does not divide, or beyond the table.
        """
        grid, most = super().grid(latents), int(self.config["pos_embed_max_size"])
        if max(grid) > most:
            height, width = (side * self.pixels_per_token for side in grid)
            raise InputError.of("size", (height, width), f"sides of at most {most * self.pixels_per_token} pixels")
        return grid

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompt=prompt, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        self.grid(latents)
        return {"hidden_states": latents, **joined(rows, latents), "timestep": per_row(timestep, latents)}
