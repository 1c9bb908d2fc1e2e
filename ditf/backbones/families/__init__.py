"""How each family of models is fed: one file per family, found by the class of the transformer.

A class that is not listed is fed by its own pipeline (:class:`Recorded`).
"""

from __future__ import annotations

from .base import Family
from .dit import DiT
from .flux import Flux
from .flux2 import Flux2
from .pixart import PixArt
from .pixel import Pixel
from .qwen_image import QwenImage
from .recorded import Recorded
from .sana import Sana
from .sd3 import SD3
from .z_image import ZImage

__all__ = [
    "FAMILIES",
    "SD3",
    "DiT",
    "Family",
    "Flux",
    "Flux2",
    "PixArt",
    "Pixel",
    "QwenImage",
    "Recorded",
    "Sana",
    "ZImage",
]

FAMILIES: dict[str, type[Family]] = {
    "FluxTransformer2DModel": Flux,
    "Flux2Transformer2DModel": Flux2,
    "SD3Transformer2DModel": SD3,
    "PixArtTransformer2DModel": PixArt,
    "DiTTransformer2DModel": DiT,
    "SanaTransformer2DModel": Sana,
    "QwenImageTransformer2DModel": QwenImage,
    "ZImageTransformer2DModel": ZImage,
}
