"""PixArt-alpha and PixArt-Sigma: cross-attention to T5, DDPM noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError
from ..latents import diffusion_noise
from .base import Family, Text

__all__ = ["PixArt"]


class PixArt(Family):
    """As diffusers' ``PixArtAlphaPipeline`` and ``PixArtSigmaPipeline`` prepare their inputs, without guidance."""

    name = "pixart"
    needs_scheduler = True

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"])

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """``alphas_cumprod[round(timestep)]`` of the checkpoint's scheduler."""
        alphas = getattr(self.scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise ModelError(
                f"{type(self.scheduler).__name__} has no alphas_cumprod; PixArt needs a DDPM-like scheduler: "
                "load the checkpoint with the one it was published with"
            )
        return diffusion_noise(latent, noise, float(alphas[self._step(timestep)]))

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        tokens, mask, _, _ = pipeline.encode_prompt(prompt=prompt, do_classifier_free_guidance=False, device=device)
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def inputs(self, latents: Tensor, timestep: float, text: Text, guidance: float | None) -> dict[str, Any]:
        step = torch.full((latents.shape[0],), self._step(timestep), dtype=torch.int64, device=latents.device)
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self._told_its_size:
            grid = self.grid(latents)
            height, width = (side * self.pixels_per_token for side in grid)
            size = {
                "resolution": latents.new_tensor([[height, width]]).repeat(latents.shape[0], 1),
                "aspect_ratio": latents.new_tensor([[height / width]]).repeat(latents.shape[0], 1),
            }
        return {"hidden_states": latents, **text, "timestep": step, "added_cond_kwargs": size}

    @property
    def _told_its_size(self) -> bool:
        """PixArt-alpha at 1024 pixels is; the transformer's own rule where the config is silent."""
        told = self.config["use_additional_conditions"]
        return self.config["sample_size"] == 128 if told is None else bool(told)

    def _step(self, timestep: float) -> int:
        last = len(self.scheduler.alphas_cumprod) - 1 if hasattr(self.scheduler, "alphas_cumprod") else 999
        return min(round(timestep), last)
