"""Image to latent, and latent to noisy latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError

__all__ = ["LatentSpace", "Posterior", "diffusion_noise", "encode", "flow_noise", "space_of"]


@dataclass(frozen=True)
class LatentSpace:
    """What a VAE makes of an image.

    Attributes:
        pixels: how many pixels a latent cell spans, along a side.
        channels: of the latent; None where no VAE says so.
    """

    pixels: int = 8
    channels: int | None = None


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


def space_of(config: Mapping[str, Any]) -> LatentSpace:
    """The latent space of any diffusers autoencoder, from its config (complete with defaults) alone."""
    if not config:
        return LatentSpace()
    channels = config.get("z_dim") or config.get("latent_channels")
    channels = None if channels is None else int(channels)
    if _is_normalised(config):  # FLUX.2: 2 x 2 latent cells become one
        return LatentSpace(2 * _pixels_per_cell(config), None if channels is None else 4 * channels)
    return LatentSpace(_pixels_per_cell(config), channels)


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Posterior:
    """Encode an image with any autoencoder of diffusers; a video's encodes it as one frame.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
        device: where the VAE runs.

    Raises:
        ModelError: the VAE's numbers overflow, or it gives neither posterior nor latent.
    """
    dtype = next(vae.encoder.parameters()).dtype
    image = pixels.to(device, dtype)
    with torch.no_grad():
        answer = vae.encode(image.unsqueeze(2) if _encodes_video(vae) else image)
    if (posterior := getattr(answer, "latent_dist", None)) is not None:
        mean, deviation = _cells(posterior.mean, vae), _cells(posterior.std, vae)
    elif (latent := getattr(answer, "latent", None)) is not None:
        mean, deviation = _cells(latent, vae), None
    else:
        raise ModelError(
            f"{type(vae).__name__} gives neither posterior nor latent; give a pipeline with the autoencoder it was "
            "published with"
        )
    shift, scale = (statistic.to(device) for statistic in _statistics(vae))
    location = (mean - shift) * scale
    if not bool(torch.isfinite(location).all()):
        raise ModelError(f"the VAE's latents overflow in {dtype}; give it in float32 or bfloat16")
    return Posterior(location, None if deviation is None else deviation * scale)


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


def _cells(raw: Tensor, vae: Any) -> Tensor:
    """(1, C, h, w) float32 of what the VAE gives: one frame, and for FLUX.2 2 x 2 cells in the channels of one."""
    raw = raw.float()
    raw = raw.squeeze(2) if raw.ndim == 5 else raw
    return nn.functional.pixel_unshuffle(raw, 2) if _is_normalised(vae.config) else raw


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale), each () or (C, 1, 1) float32: the transformer's latent is ``(raw - shift) * scale``."""
    config = vae.config
    if _is_normalised(config):  # Flux2Pipeline._encode_vae_image
        mean, scale = vae.bn.running_mean, (vae.bn.running_var.float() + config["batch_norm_eps"]).rsqrt()
    elif config.get("latents_mean") is not None and config.get("latents_std") is not None:
        # Qwen-Image, Wan, GLM-Image, ...; a scaling_factor beside them is 1 or not used by the model's pipeline
        mean, scale = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"]).reciprocal()
    elif "latents_mean" in vae._buffers:  # LTX
        mean, scale = vae.latents_mean, _scale(config) / vae.latents_std.float()
    else:
        return torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(_scale(config))
    return mean.float().view(-1, 1, 1), scale.float().view(-1, 1, 1)


def _pixels_per_cell(config: Mapping[str, Any]) -> int:
    for said in ("spatial_compression_ratio", "scale_factor_spatial"):
        if config.get(said):
            return int(config[said])
    if "temperal_downsample" in config:  # Qwen-Image
        return 2 ** len(config["temperal_downsample"])
    if "spatio_temporal_scaling" in config:  # LTX
        return int(config["patch_size"]) * 2 ** sum(config["spatio_temporal_scaling"])
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or (0,) * 4
    return 2 ** (len(levels) - 1)


def _is_normalised(config: Mapping[str, Any]) -> bool:
    """AutoencoderKLFlux2: latents are patchified, then normalised by a batch norm's statistics."""
    return "batch_norm_eps" in config


def _encodes_video(vae: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv3d) for module in vae.modules())


def _scale(config: Mapping[str, Any]) -> float:
    return float(config.get("scaling_factor") or 1.0)
