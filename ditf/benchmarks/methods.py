"""What is evaluated: a model at one setting, or the pixel patches that it must beat.

A method turns a picture into a feature map and says all that the map depends on; the runner stores the map under it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..presets import MEASURED
from ..store import digest, model_identity
from ..types import FeatureMap
from .pairs import ImageInfo
from .protocols import Protocol, model_input

if TYPE_CHECKING:
    from ..extractor import FeatureExtractor

__all__ = ["Method", "ModelMethod", "PatchMethod", "Picture", "caption_of", "share_forwards"]

PATCH, PATCH_SIDE, PATCH_STRIDE = 17, 256, 8
"""Pixel patches: their side, the longest side of the resized image, and the pixels between patches."""


@dataclass(frozen=True)
class Picture:
    """One image under one prompt category, or its mirror image: what features are computed once for."""

    path: Path
    info: ImageInfo
    category: str
    mirrored: bool = False

    def pixels(self) -> Image.Image:
        """RGB as stored (annotations know nothing of EXIF rotation), left and right exchanged where it is mirrored."""
        with Image.open(self.path) as image:
            pixels = np.asarray(image.convert("RGB"))
        return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]) if self.mirrored else pixels)


class Method(Interface):
    """Anything with features.

    Attributes:
        name: of its row.
        device: where it matches.
        backend: which kernels match its features, or None.
    """

    name: str
    device: torch.device
    backend: str | None

    def about(self) -> dict[str, Any]:
        """All that its features depend on besides the picture, as plain JSON values."""
        ...

    def about_picture(self, picture: Picture) -> dict[str, Any]:
        """What depends on the picture besides its pixels: the prompt."""
        ...

    def extract(self, picture: Picture) -> list[tuple[Method, FeatureMap]]:
        """Its features, and those of other methods that came from the same forward."""
        ...


class Follower(Method, Interface):
    """A method whose features are made of another's."""

    def follow(self, picture: Picture, features: FeatureMap) -> FeatureMap: ...


def key_of(method: Method, picture: Picture) -> str:
    """Name of a picture's features in a store."""
    from .. import __version__

    about = {"image": picture.info.digest, "method": method.about(), "picture": method.about_picture(picture)}
    if picture.mirrored:
        about["mirrored"] = True
    return digest({**about, "ditf": __version__})


class ModelMethod:
    """A model under a protocol.

    Args:
        name: of its row.
        fx: its settings hold but for resize and size, which are the protocol's. A size that was measured on the model
            itself (ditf-tiny) or given by the user (``size``) holds too.
        prompt: template; None: the protocol's, or the model's own where that has none.
        captions: texts of single images, see :func:`caption_of`.
    """

    def __init__(
        self,
        name: str,
        fx: FeatureExtractor,
        protocol: Protocol,
        *,
        size: int | None = None,
        prompt: str | None = None,
        captions: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.protocol = name, protocol
        self.device, self.backend = fx.backbone.device, _backend_of(fx)
        self.size, self.size_source = _size(fx, protocol, size)
        self.multiple = fx.config.multiple or fx.backbone.pixels_per_token
        template = prompt if prompt is not None else protocol.prompt
        self.template = fx.config.prompt if template is None else template
        self.captions = captions or {}
        self.fx = fx.replace(resize="stretch", size=self.size, prompt=self.template, multiple=None)
        self._sized: dict[tuple[int, int], FeatureExtractor] = {}
        self._about: dict[str, Any] | None = None
        self._family: list[ModelMethod] = [self]
        self.followers: list[Follower] = []

    def about(self) -> dict[str, Any]:
        """The model, its config, and how pictures are brought to it."""
        if self._about is None:
            config = dataclasses.asdict(self.fx.config)
            config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k != "prompt"}
            config |= {"resize": self.protocol.resize, "resample": self.protocol.resample, "multiple": self.multiple}
            self._about = {"model": model_identity(self.fx), "config": config}
        return self._about

    def card(self) -> dict[str, Any]:
        """For a result file."""
        return {
            **self.about()["model"],
            "config": self.about()["config"],
            "size_from": self.size_source,
            "patches_a_side": self.size // self.multiple if self.protocol.canvas else None,
            "prompt": self.template,
            "captions": len(self.captions),
        }

    def prompt_of(self, picture: Picture) -> str:
        caption = caption_of(self.captions, picture.category, picture.path.name)
        return self.template.replace("{category}", picture.category) if caption is None else caption

    def about_picture(self, picture: Picture) -> dict[str, Any]:
        return {"prompt": self.prompt_of(picture)}

    def prepare_texts(self, pictures: Sequence[Picture]) -> None:
        """Encode all prompts before the first picture, so that text encoders are loaded once."""
        self.fx.backbone.text(sorted({self.prompt_of(picture) for picture in pictures}))

    def extract(self, picture: Picture) -> list[tuple[Method, FeatureMap]]:
        pixels = model_input(picture.pixels(), self.protocol, self.size, self.multiple)
        size, prompt = (pixels.height, pixels.width), self.prompt_of(picture)
        if len(self._family) == 1:
            own = [_placed(self._at(size)(pixels, prompt=prompt), picture)]
        else:
            largest = max(self._family, key=lambda method: method.fx.config.ensemble)
            blocks = sorted({method.fx.config.block for method in self._family})
            tapped = largest._at(size).tap_image(pixels, blocks=blocks, prompt=prompt)
            own = [_placed(m._at(size).features_of(tapped, m.fx.config.block), picture) for m in self._family]
        found: list[tuple[Method, FeatureMap]] = []
        for method, features in zip(self._family, own, strict=True):
            found.append((method, features))
            found += [(follower, follower.follow(picture, features)) for follower in method.followers]
        return found

    def _at(self, size: tuple[int, int]) -> FeatureExtractor:
        if size not in self._sized:
            self._sized[size] = self.fx.replace(size=size)
        return self._sized[size]


def share_forwards(methods: Sequence[ModelMethod]) -> None:
    """Let methods that differ in what follows the forward alone take their features from one forward a picture."""
    after = ("block", "discard", "discard_at", "topk_per_token", "normalization", "ensemble")
    families: dict[str, list[ModelMethod]] = {}
    for method in methods:
        config = {k: v for k, v in dataclasses.asdict(method.fx.config).items() if k not in after}
        families.setdefault(repr(sorted(config.items())), []).append(method)
    for family in families.values():
        for method in family:
            method._family = family


def caption_of(captions: Mapping[str, str], category: str, name: str) -> str | None:
    """The text of one image: under ``category/name``, ``categoryname`` (as DiTF's file has it), or ``name``, with or
    without its ending; None if there is none."""
    if not captions:
        return None
    stem = Path(name).stem
    for key in (f"{category}/{name}", f"{category}{name}", f"{category}/{stem}", f"{category}{stem}", name, stem):
        if key in captions:
            return captions[key]
    return None


class PatchMethod:
    """Patches of plain pixels minus their mean: what a model must beat."""

    name = "pixel patches"
    backend: str | None = None

    def __init__(self, protocol: Protocol) -> None:
        self.protocol, self.device = protocol, torch.device("cpu")

    def about(self) -> dict[str, Any]:
        p = self.protocol
        return {"patch": PATCH, "side": PATCH_SIDE, "stride": PATCH_STRIDE, "resize": p.resize, "resample": p.resample}

    def about_picture(self, picture: Picture) -> dict[str, Any]:
        return {}

    def extract(self, picture: Picture) -> list[tuple[Method, FeatureMap]]:
        from .rivals import patch_tokens

        pixels = model_input(picture.pixels(), self.protocol, PATCH_SIDE, PATCH_STRIDE)
        grid = (pixels.height // PATCH_STRIDE, pixels.width // PATCH_STRIDE)
        tokens = patch_tokens(np.asarray(pixels), PATCH, PATCH_STRIDE)
        return [(self, FeatureMap(tokens=tokens, grid=grid, image_size=picture.info.size))]


def _placed(features: FeatureMap, picture: Picture) -> FeatureMap:
    """The model saw resized pixels; the grid covers the picture."""
    return dataclasses.replace(features, image_size=picture.info.size)


def _size(fx: FeatureExtractor, protocol: Protocol, given: int | None) -> tuple[int, str]:
    """Pixels, and who says so."""
    if given is not None:
        if given < 1:
            raise InputError.of("--size", given, "at least one pixel")
        return given, "given"
    own = fx.config.size
    if fx.preset.source.get("size") == MEASURED and isinstance(own, int):
        return own, f"{MEASURED}; the protocol says {protocol.size}"
    return protocol.size, "protocol"


def _backend_of(fx: FeatureExtractor) -> str | None:
    from ..types import backend_of

    return backend_of(fx.fused)
