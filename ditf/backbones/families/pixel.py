"""FLUX without VAE and text: pixels in patches, as the bundled ``ditf-tiny`` was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ModelError
from .base import Text
from .flux import Flux

__all__ = ["Pixel"]


class Pixel(Flux):
    """A FLUX transformer on patches of pixels in [-1, 1]; prompts have no effect."""

    name = "pixel"
    embeddings: ClassVar[Mapping[str, str]] = {}

    @property
    def reads_text(self) -> bool:
        return False

    @property
    def patch(self) -> int:
        return self.config["pixel_patch"]

    def encode_prompt(self, pipeline: Any, prompt: str, device: torch.device) -> Text:
        return {
            "encoder_hidden_states": torch.zeros(1, 1, self.config["joint_attention_dim"]),
            "pooled_projections": torch.zeros(1, self.config["pooled_projection_dim"]),
        }

    @staticmethod
    def described(config: Mapping[str, Any], about: Mapping[str, Any]) -> Pixel:
        """From the transformer's config and the folder's ``ditf.json``: ``{"kind": "pixel", "patch": 4}``.

        Raises:
            ModelError: another kind, or a patch that does not fit the transformer.
        """
        patch = about.get("patch")
        if about.get("kind") != "pixel" or not isinstance(patch, int) or config["in_channels"] != 3 * patch * patch:
            raise ModelError(
                f'ditf.json: got {dict(about)}, expected {{"kind": "pixel", "patch": p}} with 3 * p * p = '
                f"{config['in_channels']}, the transformer's in_channels"
            )
        return Pixel({**config, "pixel_patch": patch}, pixels_per_latent=1)

    @property
    def latent_channels(self) -> int:
        return 3

    @staticmethod
    def as_latent(pixels: Tensor) -> Tensor:
        """The latent of an image is the image."""
        return pixels.float()
