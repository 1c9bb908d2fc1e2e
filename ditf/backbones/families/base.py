"""What every family answers: how latents are noised, laid out on a grid and handed to the transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError, ModelError
from ..latents import flow_noise

__all__ = ["Family", "Text"]

Text = dict[str, Tensor]
"""Encoded prompts, one row each, by the name of what the transformer's forward makes of them."""


@dataclass(frozen=True)
class Family(ABC):
    """One checkpoint of a family, described by its configs.

    Attributes:
        config: of the transformer, complete with defaults.
        pixels_per_latent: how many pixels a latent cell spans.
        scheduler: the checkpoint's diffusers scheduler, where the noise rule needs it.
    """

    config: Mapping[str, Any]
    pixels_per_latent: int
    scheduler: Any = field(default=None, repr=False)

    name: ClassVar[str]
    reads_text: ClassVar[bool] = True
    needs_scheduler: ClassVar[bool] = False

    @property
    @abstractmethod
    def patch(self) -> int:
        """Latent cells per token, along a side."""

    @property
    def pixels_per_token(self) -> int:
        return self.pixels_per_latent * self.patch

    @property
    def latent_channels(self) -> int:
        return int(self.config["in_channels"])

    @property
    def default_guidance(self) -> float | None:
        return None

    def grid(self, latents: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens of latents (B, C, h', w').

        Raises:
            InputError: sides that the patch does not divide.
        """
        height, width = latents.shape[-2:]
        if height % self.patch or width % self.patch or not height or not width:
            raise InputError.of("latents", tuple(latents.shape), f"height and width divisible by {self.patch}")
        return height // self.patch, width // self.patch

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """The latent at noise level ``timestep`` in 0..1000; rectified flow unless the family says otherwise."""
        return flow_noise(latent, noise, timestep)

    @abstractmethod
    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        """One prompt through the pipeline's own ``encode_prompt``."""

    @abstractmethod
    def inputs(self, latents: Tensor, timestep: float, text: Text, guidance: float | None) -> dict[str, Any]:
        """Arguments of the transformer's forward; latents and text in the transformer's dtype and on its device."""

    def check_latents(self, vae_channels: int | None) -> None:
        """Refuse variants whose transformer takes more than the image's latent.

        Raises:
            ModelError: naming the channels.
        """
        if vae_channels is not None and self.latent_channels != vae_channels:
            raise ModelError(
                f"the transformer takes {self.latent_channels} latent channels and the VAE gives {vae_channels}: an "
                "inpainting or control variant; use the base text-to-image checkpoint"
            )


def per_row(value: float, latents: Tensor) -> Tensor:
    """(B,) float32."""
    return torch.full((latents.shape[0],), value, dtype=torch.float32, device=latents.device)
