"""How each family of models is fed: one file per family, found by the class of the transformer."""

from __future__ import annotations

from .base import Family
from .flux import Flux
from .pixart import PixArt
from .pixel import Pixel
from .sd3 import SD3

__all__ = ["FAMILIES", "SD3", "Family", "Flux", "PixArt", "Pixel"]

FAMILIES: dict[str, type[Family]] = {
    "FluxTransformer2DModel": Flux,
    "SD3Transformer2DModel": SD3,
    "PixArtTransformer2DModel": PixArt,
}
