"""Features of frames: a model's, and patches of plain pixels that it must beat."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import InputError
from ..presets import MEASURED, TRACKED
from ..store import model_identity
from ..types import FeatureMap
from ..video import PropagationProtocol
from .davis import Frame
from .methods import PATCH, PATCH_STRIDE
from .rivals import patch_tokens

if TYPE_CHECKING:
    from ..extractor import FeatureExtractor

__all__ = ["ModelVideo", "PatchVideo", "VideoMethod", "frame_size", "resized"]

_PATCH_SIDE = 480  # of the shorter side, at most


class VideoMethod(Interface):
    """Anything with features of frames.

    Attributes:
        name: of its row.
        stride: pixels of a resized frame per token.
    """

    name: str
    stride: int

    def about(self) -> dict[str, Any]:
        """All that its features depend on besides the frame's pixels, as plain JSON values."""
        ...

    def features(self, frame: Frame) -> FeatureMap:
        """Its ``image_size`` is that of the frame."""
        ...


class ModelVideo:
    """A model under a protocol.

    Args:
        name: of its row.
        fx: its settings hold but for resize and size, which are the protocol's. A size that was measured on the model
            itself (ditf-tiny) or given by the user (``side``) is taken for the shorter side.
        side: pixels of a frame's shorter side.
        prompt: text given to the model; default its preset's.
    """

    def __init__(
        self,
        name: str,
        fx: FeatureExtractor,
        protocol: PropagationProtocol,
        *,
        side: int | None = None,
        prompt: str | None = None,
    ) -> None:
        self.name, self.stride = name, fx.backbone.pixels_per_token
        self.side, self.side_source = _side(fx, protocol, side)
        if self.side < 1 or self.side % self.stride:
            raise InputError.of("--size", self.side, f"a multiple of the model's {self.stride} pixels per token")
        self.multiple = math.lcm(protocol.multiple, self.stride)
        text = fx.config.prompt if prompt is None else prompt
        self.prompt = text.replace("{category}", "image")  # as the reference words it
        self.fx = fx.replace(resize="stretch", size=self.side, multiple=None, prompt=self.prompt)
        self._about: dict[str, Any] | None = None

    def about(self) -> dict[str, Any]:
        if self._about is None:
            config = dataclasses.asdict(self.fx.config)
            config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
            size = {"side": self.side, "multiple": self.multiple, "stride": self.stride}
            config |= {**size, "resample": "bilinear, as OpenCV's"}
            self._about = {"model": model_identity(self.fx), "config": config}
        return self._about

    def card(self) -> dict[str, Any]:
        """For a result file."""
        return {**self.about()["model"], "config": self.about()["config"], "size_from": self.side_source}

    def features(self, frame: Frame) -> FeatureMap:
        pixels = _pixels(frame)
        size = frame_size((pixels.shape[0], pixels.shape[1]), self.side, self.multiple)
        found = self.fx.replace(size=size)(Image.fromarray(resized(pixels, size)))
        return dataclasses.replace(found, image_size=(pixels.shape[0], pixels.shape[1]))


class PatchVideo:
    """Patches of plain pixels minus their mean."""

    name, stride = "pixel patches", PATCH_STRIDE

    def about(self) -> dict[str, Any]:
        return {"patch": PATCH, "stride": PATCH_STRIDE, "side": f"the frame's own, at most {_PATCH_SIDE}"}

    def features(self, frame: Frame) -> FeatureMap:
        pixels = _pixels(frame)
        own = pixels.shape[0], pixels.shape[1]
        side = max(1, min(_PATCH_SIDE, *own) // PATCH_STRIDE) * PATCH_STRIDE
        size = frame_size(own, side, PATCH_STRIDE)
        tokens = patch_tokens(resized(pixels, size), PATCH, PATCH_STRIDE)
        return FeatureMap(tokens=tokens, grid=(size[0] // PATCH_STRIDE, size[1] // PATCH_STRIDE), image_size=own)


def frame_size(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """(H, W) of a resized frame: the shorter side as said, the longer one rounded down to the multiple, as DINO has it.

    A square frame counts as wide, so that its width is rounded down.
    """
    height, width = size
    longer = max(multiple, int(side * max(size) / min(size) // multiple * multiple))
    return (longer, side) if height > width else (side, longer)


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 pixels at another size, between the nearest four as OpenCV does: nothing is averaged."""
    if pixels.shape[:2] == size:
        return pixels
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    large = F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=False)
    return large[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _pixels(frame: Frame) -> np.ndarray:
    """(H, W, 3) uint8 RGB as stored."""
    with Image.open(frame.image) as image:
        return np.asarray(image.convert("RGB"))


def _side(fx: FeatureExtractor, protocol: PropagationProtocol, given: int | None) -> tuple[int, str]:
    """Pixels of the shorter side, and who says so."""
    if given is not None:
        return given, "given"
    own, who = fx.config.size, fx.preset.source.get("size")
    if who in (MEASURED, TRACKED) and isinstance(own, int):
        return own, f"{who}; the protocol says {protocol.side}"
    if protocol.side is None:
        raise InputError("--protocol: it publishes no size of frames; give --size")
    return protocol.side, "protocol"
