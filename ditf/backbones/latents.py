"""Image to latent, and latent to noisy latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

__all__ = ["Posterior", "diffusion_noise", "encode", "flow_noise"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the VAE says about one image, in the transformer's latent space.

    Attributes:
        location: (1, C, h, w) float32 mean, shifted and scaled.
        deviation: its standard deviation, scaled; None where the latent is exact.
    """

    location: Tensor
    deviation: Tensor | None = None

    def mean(self) -> Tensor:
        """(1, C, h, w) float32."""
        return self.location

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(1, C, h, w) float32; drawn in float32 on the generator's device, as diffusers does."""
        if self.deviation is None:
            return self.location
        where = self.location.device if generator is None else generator.device
        noise = torch.randn(self.location.shape, generator=generator, device=where, dtype=torch.float32)
        return self.location + self.deviation * noise.to(self.location.device)


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Posterior:
    """Encode an image with an ``AutoencoderKL``: latent ``(z - shift_factor) * scaling_factor``.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
        device: where the VAE runs.

    Raises:
        ModelError: the VAE's numbers overflow, or it is of another kind.
    """
    dtype = next(vae.encoder.parameters()).dtype
    with torch.no_grad():
        answer = vae.encode(pixels.to(device, dtype))
    posterior = getattr(answer, "latent_dist", None)
    if posterior is None:
        raise ModelError(f"{type(vae).__name__} gives no posterior; ditf encodes images with AutoencoderKL")
    location = (posterior.mean.float() - _shift(vae.config)) * _scale(vae.config)
    if not bool(torch.isfinite(location).all()):
        raise ModelError(f"the VAE's latents overflow in {dtype}; give it in float32 or bfloat16")
    return Posterior(location, posterior.std.float() * _scale(vae.config))


def flow_noise(latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
    """Rectified flow without resolution shift: ``sigma * noise + (1 - sigma) * latent``, sigma = timestep / 1000.

    diffusers: ``FlowMatchEulerDiscreteScheduler.scale_noise``.
    """
    sigma = timestep / 1000
    return sigma * noise + (1 - sigma) * latent


def diffusion_noise(latent: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """Variance preserving: ``sqrt(alpha) * latent + sqrt(1 - alpha) * noise``.

    diffusers: ``DDPMScheduler.add_noise``.
    """
    return alpha**0.5 * latent + (1 - alpha) ** 0.5 * noise


def _shift(config: Mapping[str, Any]) -> float:
    return config.get("shift_factor") or 0.0


def _scale(config: Mapping[str, Any]) -> float:
    return config.get("scaling_factor") or 1.0
