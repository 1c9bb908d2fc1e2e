"""Z-Image: latents and texts in lists, time that runs from noise (0) to image (1), rectified flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from .base import Family, Text, per_row, placed

__all__ = ["ZImage"]


class ZImage(Family):
    """As diffusers' ``ZImagePipeline`` prepares its inputs, without guidance."""

    name = "z-image"
    embeddings: ClassVar[Mapping[str, str]] = {"prompt_embeds": "cap_feats"}
    text_width = "cap_feat_dim"

    @property
    def patch(self) -> int:
        return int(self.config["all_patch_size"][0])

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens; the rotary tables bound both.

        Raises:
            InputError: sides that the patch does not divide, or beyond the tables.
        """
        grid, most = super().grid(latents), tuple(int(length) for length in self.config["axes_lens"][1:])
        if grid[0] > most[0] or grid[1] > most[1]:
            side = self.pixels_per_token
            height, width = (cells * side for cells in grid)
            raise InputError.of("size", (height, width), f"at most {most[0] * side} x {most[1] * side} pixels")
        return grid

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        texts, _ = pipeline.encode_prompt(prompt=prompt, device=device, do_classifier_free_guidance=False)
        return {"cap_feats": texts[0][None]}

    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        self.grid(latents)
        return {
            "x": list(latents.unsqueeze(2).unbind(0)),  # (C, 1, h, w) each
            "t": per_row(1 - timestep / 1000, latents),
            "cap_feats": [placed(row["cap_feats"][0], latents) for row in rows],
        }
