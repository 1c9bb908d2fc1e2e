"""How an image becomes a feature map: every setting, its domain and its meaning."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from .checks import pair

__all__ = ["ExtractConfig", "Fused", "backend_of"]

Fused = Literal[True, False, "verify"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "latent": ("mean", "sample"),
    "discard_at": ("input", "output"),
    "normalization": ("adaln", "layernorm", "none"),
    "condition": ("t&c", "t", "c", "none"),
    "activation": ("block", "q", "k", "v", "attention", "mlp"),
    "site": ("attention", "mlp"),
    "resize": ("longest", "shortest", "stretch", "pad"),
    "rounding": ("nearest", "half-even", "floor"),
    "resample": ("nearest", "bilinear", "bicubic", "lanczos"),
}


@dataclass(frozen=True)
class ExtractConfig:
    """How an image becomes a feature map (DiTF, arXiv 2505.18584).

    Attributes:
        block: global index over all blocks in execution order; the feature is the input of this block's first norm.
        timestep: noise level in [0, 1000], larger is noisier. Flow matching: sigma = timestep / 1000, without
            resolution shift; DDPM: ``alphas_cumprod[round(timestep)]``.
        ensemble: how many noises are averaged (before the discard and the norm, as the reference does).
        latent: the mean of the VAE posterior, or a fresh sample per ensemble member (the reference).
        shared_noise: give every image the same noise. Off by default: shared noise is matched on.
        discard: massive channels to zero: "preset", "none", their indices, or "auto": those found once for this model,
            block and timestep on ditf's own pictures (see :func:`ditf.find_massive_channels` for the definition).
        discard_at: before the norm (the reference code) or after the modulation (the paper's wording).
        topk_per_token: zero each token's k largest ``|x|`` too, on the ensemble mean.
        normalization: the block's own norm and modulation, its norm alone, or the raw tokens.
        condition: what the tapped block's AdaLN makes shift and scale of: timestep and pooled text, one of them, or
            neither (the paper's condition ablation).
        activation: what is tapped: the block's tokens, or what its attention and MLP compute of them; those are
            averaged over the ensemble and neither discarded nor normalised.
        site: the AdaLN before attention or before the MLP.
        resize: how the image meets ``size``; "pad" centres it on a square first.
        size: pixels of the named side, or (H, W) with "stretch".
        multiple: sides become multiples of this many pixels; None takes the model's pixels per token.
        rounding, resample: of the sides, of the pixels. Half a multiple goes up under "nearest", and to the even one
            under "half-even", as in the released code of DiTF (Python's ``round``).
        prompt: text given to the model; may hold ``{category}``.
        guidance: distilled guidance embedding (FLUX.1-dev: 3.5); None where the model has none.
        seed: of the noise, with the image's own pixels.
    """

    block: int
    timestep: float
    ensemble: int = 1
    latent: Literal["mean", "sample"] = "mean"
    shared_noise: bool = False
    discard: str | tuple[int, ...] = "preset"
    discard_at: Literal["input", "output"] = "input"
    topk_per_token: int = 0
    normalization: Literal["adaln", "layernorm", "none"] = "adaln"
    condition: Literal["t&c", "t", "c", "none"] = "t&c"
    activation: Literal["block", "q", "k", "v", "attention", "mlp"] = "block"
    site: Literal["attention", "mlp"] = "attention"
    resize: Literal["longest", "shortest", "stretch", "pad"] = "longest"
    size: int | tuple[int, int] = 640
    multiple: int | None = None
    rounding: Literal["nearest", "half-even", "floor"] = "nearest"
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    prompt: str = ""
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError.of(name, getattr(self, name), f"one of {', '.join(choices)}")
        _check_int("block", self.block, 0)
        _check_int("ensemble", self.ensemble, 1)
        _check_int("topk_per_token", self.topk_per_token, 0)
        _check_int("seed", self.seed, 0)
        if not isinstance(self.timestep, int | float) or not 0 <= self.timestep <= 1000:
            raise InputError.of("timestep", self.timestep, "a noise level in 0..1000 (0 is the clean image)")
        if self.multiple is not None:
            _check_int("multiple", self.multiple, 1)
        if self.guidance is not None and not (isinstance(self.guidance, int | float) and math.isfinite(self.guidance)):
            raise InputError.of("guidance", self.guidance, "a finite number or None")
        object.__setattr__(self, "discard", _checked_discard(self.discard))
        object.__setattr__(self, "size", _checked_size(self.size, self.resize))

    def replace(self, **overrides: Any) -> ExtractConfig:
        """A copy with other values; ``longest_side=640`` is shorthand for ``resize="longest", size=640``.

        Raises:
            InputError: an unknown field or a value outside its domain.
        """
        if "longest_side" in overrides:
            overrides = {"resize": "longest", "size": overrides.pop("longest_side"), **overrides}
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(overrides) - known):
            raise InputError.of("overrides", unknown[0], f"a field of ExtractConfig: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **overrides)


def backend_of(fused: Any) -> str | None:
    """The kernels' backend that ``fused`` asks for: None leaves the choice to them.

    Raises:
        InputError: neither True, False nor "verify".
    """
    if fused is not True and fused is not False and fused != "verify":
        raise InputError.of("fused", fused, 'True, False or "verify"')
    return "verify" if fused == "verify" else None if fused else "torch"


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError.of(name, value, f"an integer of at least {least}")


def _checked_discard(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if value not in ("preset", "auto", "none"):
            raise InputError.of("discard", value, '"preset", "auto", "none" or channel indices')
        return value
    try:
        channels = tuple(int(c) for c in value)
    except (TypeError, ValueError):
        raise InputError.of("discard", value, '"preset", "auto", "none" or channel indices') from None
    if any(c < 0 for c in channels) or len(set(channels)) != len(channels):
        raise InputError.of("discard", channels, "distinct channel indices of at least 0")
    return channels


def _checked_size(value: Any, resize: str) -> int | tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        _check_int("size", value, 1)
        return value
    if resize != "stretch":
        raise InputError.of("size", value, f'an integer number of pixels with resize="{resize}"')
    return pair("size", value)
