"""Stable Diffusion 3 and 3.5: latents patchified by the transformer, cropped position table, rectified flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .base import Family, Text, per_row

__all__ = ["SD3"]


class SD3(Family):
    """As diffusers' ``StableDiffusion3Img2ImgPipeline`` prepares its inputs, without classifier-free guidance."""

    name = "sd3"

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

    def inputs(self, latents: Tensor, timestep: float, text: Text, guidance: float | None) -> dict[str, Any]:
        self.grid(latents)
        return {"hidden_states": latents, **text, "timestep": per_row(timestep, latents)}
