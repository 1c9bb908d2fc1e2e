"""What every family answers: how latents are noised, laid out on a grid and handed to the transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError, ModelError
from ..latents import diffusion_noise, flow_noise

__all__ = ["DiffusionFamily", "Family", "Text", "joined", "per_row", "placed", "unfit_channels"]

Text = dict[str, Any]
"""One encoded prompt: tensors of one row (or nests of them), by the name of what the transformer's forward makes of
them."""


@dataclass(frozen=True)
class Family(ABC):
    """One checkpoint of a family, described by its configs.

    Attributes:
        config: of the transformer, complete with defaults.
        pixels_per_latent: how many pixels a latent cell spans.
        scheduler: the checkpoint's diffusers scheduler, where the noise rule needs it.
        index: the pipeline's own config (``model_index.json``).
    """

    config: Mapping[str, Any]
    pixels_per_latent: int
    scheduler: Any = field(default=None, repr=False)
    index: Mapping[str, Any] = field(default_factory=dict, repr=False)

    name: ClassVar[str]
    needs_scheduler: ClassVar[bool] = False
    embeddings: ClassVar[Mapping[str, str]] = {}
    """Embeddings a caller may give in place of a prompt: name in the pipeline's call -> name in the transformer's."""
    text_width: ClassVar[str | None] = None
    """The config entry that says how many channels ``prompt_embeds`` has."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Latent cells per token, along a side."""

    @property
    def reads_text(self) -> bool:
        """Whether encoding a prompt needs text encoders."""
        return True

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

    @property
    def learned(self) -> Any:
        """What encoding one prompt has shown and every prompt needs, as plain data; None before any was encoded."""
        return ()

    def relearn(self, learned: Any) -> None:
        """Take what another run has learned, with the prompts that it encoded."""
        return

    def given_text(self, prompt: str, embeddings: Mapping[str, Any]) -> Text:
        """Embeddings that a caller encoded, named as the pipeline's call names them, in place of a prompt's.

        Raises:
            InputError: a name too many or too few, or a tensor of another shape.
        """
        if set(embeddings) != set(self.embeddings):
            expected = ", ".join(self.embeddings) or "none: this model reads no text"
            raise InputError.of("embeddings", ", ".join(sorted(embeddings)), expected)
        for name, value in embeddings.items():
            if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != 1:
                raise InputError.of(name, tuple(getattr(value, "shape", ())), "a tensor of one row, (1, ...)")
        width = self.config.get(self.text_width) if self.text_width else None
        tokens = embeddings.get("prompt_embeds")
        if isinstance(tokens, Tensor) and width is not None and (tokens.ndim != 3 or tokens.shape[-1] != width):
            raise InputError.of("prompt_embeds", tuple(tokens.shape), f"shape (1, tokens, {width})")
        return {self.embeddings[name]: value.detach().cpu() for name, value in embeddings.items()}

    @abstractmethod
    def inputs(self, latents: Tensor, timestep: float, rows: Sequence[Text], guidance: float | None) -> dict[str, Any]:
        """Arguments of the transformer's forward.

        Args:
            latents: (B, C, h, w) in the transformer's dtype, on its device.
            timestep: their noise level in 0..1000.
            rows: B encoded prompts, on the CPU.
            guidance: distilled guidance; None takes the default of models that embed one.
        """

    def check_latents(self, vae_channels: int | None) -> None:
        """Refuse variants whose transformer takes more than the image's latent.

        Raises:
            ModelError: naming the channels.
        """
        if vae_channels is not None and self.latent_channels != vae_channels:
            raise unfit_channels(self.latent_channels, vae_channels)


class DiffusionFamily(Family):
    """A family trained on DDPM noise: ``alphas_cumprod[round(timestep)]`` of the checkpoint's scheduler."""

    needs_scheduler = True

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        alphas = getattr(self.scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise ModelError(
                f"{type(self.scheduler).__name__} has no alphas_cumprod; {self.name} needs a DDPM-like scheduler: "
                "load the checkpoint with the one it was published with"
            )
        return diffusion_noise(latent, noise, float(alphas[self.step(timestep)]))

    def step(self, timestep: float) -> int:
        """The scheduler's index of a noise level."""
        last = len(self.scheduler.alphas_cumprod) - 1 if hasattr(self.scheduler, "alphas_cumprod") else 999
        return min(round(timestep), last)

    def steps(self, timestep: float, latents: Tensor) -> Tensor:
        """(B,) int64: that index, once per row."""
        return torch.full((latents.shape[0],), self.step(timestep), dtype=torch.int64, device=latents.device)


def unfit_channels(taken: int, given: int) -> ModelError:
    return ModelError(
        f"the transformer takes {taken} latent channels and the VAE gives {given}: an inpainting or control variant; "
        "use the base text-to-image checkpoint"
    )


def per_row(value: float, latents: Tensor) -> Tensor:
    """(B,) float32."""
    return torch.full((latents.shape[0],), value, dtype=torch.float32, device=latents.device)


def joined(rows: Sequence[Text], latents: Tensor) -> Text:
    """Encoded prompts of equal shapes as one batch, on the latents' device; floating-point values in their dtype."""
    return {name: placed(torch.cat([row[name] for row in rows]), latents) for name in rows[0]}


def placed(value: Tensor, latents: Tensor) -> Tensor:
    """On the latents' device; floating-point values in their dtype."""
    return value.to(latents.device, latents.dtype if value.is_floating_point() else value.dtype)
