"""The rows of the table: the method part by part, the same of a network that learned nothing, what needs no network.

A method is given a group's pictures and finds the points of all its pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditf_kernels import upsampled_argmax

from ...errors import ModelError
from ...extractor import FeatureExtractor
from ...geometry.keypoints import opencv
from ...massive import calibrated_channels
from ...matching import match_points
from ...store import model_identity
from ...tiny.scenes import VALIDATION_SEED
from ...types import ExtractConfig, FeatureMap
from ..rivals import constant_shift, identity, patch_map
from .cases import Case, scene_cases
from .model import BEST, top_channel
from .sets import Group

__all__ = [
    "PATCHES",
    "RANDOM",
    "ModelRows",
    "PixelRows",
    "Rows",
    "SiftRows",
    "chosen_row",
    "config_dict",
    "heads",
    "matched",
]

PATCHES = (9, 13, 17, 21, 25)
"""Sides of pixel patches, in pixels of the resized picture."""

RANDOM = "random network, "
"""Before the rows of a network of the same shape with random weights."""

_PATCH_SIDE = 192  # pictures are shrunk to no more than this for patches, whatever the model sees
_STRIDE = 4  # pixels between patches
_LOOK_AT = 4  # pictures that show which channel leads
_SIFT_SIZES = (4.0, 8.0)  # diameters of keypoints, in pixels of the picture
_SIFT_PLACES = 32  # along the longer side of the target


class Rows(Interface):
    """One or more rows of the table, from the same work on a picture.

    Attributes:
        names: of the rows.
    """

    names: tuple[str, ...]

    def about(self) -> dict[str, Any]:
        """All that what is found depends on besides the pictures, as plain JSON values."""
        ...

    def find(self, group: Group) -> dict[str, list[Tensor]]:
        """Row -> per case (K, 2) float32 where the points are in the target."""
        ...


def chosen_row(config: ExtractConfig) -> str:
    """The row that a config asks for, which a preset chose on validation pairs."""
    if config.activation != "block":
        return f"activation {config.activation}"
    if config.normalization != "adaln":
        return {"none": "raw", "layernorm": "layernorm"}[config.normalization]
    return "adaln" if config.discard in ("none", ()) else BEST


def heads(fx: FeatureExtractor, discard: Sequence[int]) -> dict[str, FeatureExtractor]:
    """The ablation: the extractor with raw tokens, with LayerNorm, with AdaLN, with AdaLN after a discard."""
    rows: dict[str, tuple[str, Any]] = {
        "raw": ("none", "none"),
        "layernorm": ("layernorm", "none"),
        "adaln": ("adaln", "none"),
        BEST: ("adaln", tuple(discard)),
    }
    return {
        name: fx.replace(activation="block", normalization=normalization, discard=channels)
        for name, (normalization, channels) in rows.items()
    }


class ModelRows:
    """The ablation of one model at one setting, from one forward a picture.

    Args:
        fx: its block, timestep, ensemble and size hold; where it taps another activation, that is a row of its own.
        prefix: before the names of the rows.
        own_channels: discard the largest channel of this network, whatever the config names.
    """

    def __init__(self, fx: FeatureExtractor, *, prefix: str = "", own_channels: bool = False) -> None:
        self.fx, self.prefix, self.block = fx, prefix, fx.config.block
        self.discard, self.discard_from = _channels(fx, own_channels)
        self._heads = heads(fx, self.discard)
        self._other = fx if fx.config.activation != "block" else None
        extra = [chosen_row(fx.config)] if self._other else []
        self.names = tuple(prefix + name for name in [*self._heads, *extra])

    def about(self) -> dict[str, Any]:
        model = model_identity(self.fx)
        if self.prefix:  # lies in a folder of no meaning
            model = {k: v for k, v in model.items() if k not in ("model", "revision")}
        return {"model": model, "config": config_dict(self.fx.config), "discard": list(self.discard)}

    def maps(self, picture: Any, word: str) -> dict[str, FeatureMap]:
        """Row -> features of one picture."""
        tapped = self._heads["raw"].tap_image(picture, blocks=[self.block], category=word)
        found = {self.prefix + name: head.features_of(tapped, self.block) for name, head in self._heads.items()}
        if self._other is not None:
            found[self.prefix + chosen_row(self.fx.config)] = self._other(picture, category=word)
        for name, one in found.items():
            if not bool(torch.isfinite(one.tokens).all()):
                raise ModelError(f"the features of {name} are not finite; try another --model-dtype")
        return found

    def find(self, group: Group) -> dict[str, list[Tensor]]:
        maps = {id(picture): self.maps(picture, group.word) for picture in group.pictures}
        return {name: matched({key: of[name] for key, of in maps.items()}, group.cases) for name in self.names}


class PixelRows:
    """What needs no network: the same place, the best constant shift (told the truth), patches of pixels minus their
    mean.

    Args:
        side: longest side of a picture as the model sees it; patches are cut from that, or from 192 pixels if it is
            more.
    """

    def __init__(self, side: int) -> None:
        self.side = min(side, _PATCH_SIDE)
        self.names = ("identity", "best constant shift", *(f"pixel patches {patch} px" for patch in PATCHES))

    def about(self) -> dict[str, Any]:
        return {"pixels": list(PATCHES), "side": self.side, "stride": _STRIDE}

    def find(self, group: Group) -> dict[str, list[Tensor]]:
        found = {
            "identity": [identity(case.points, _size(case.source), _size(case.target)) for case in group.cases],
            "best constant shift": [constant_shift(case.points, case.truth) for case in group.cases],
        }
        for patch in PATCHES:
            maps = {id(one): patch_map(one, patch, self.side, _STRIDE) for one in group.pictures}
            found[f"pixel patches {patch} px"] = matched(maps, group.cases)
        return found


class SiftRows:
    """SIFT descriptors at the points, upright, at sizes of their own: square roots of the histograms (RootSIFT).

    The target is described at 32 places along its longer side; between them, descriptors are interpolated as the
    features of a model are.

    Raises:
        InputError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        self.names = tuple(f"SIFT {size:g} px" for size in _SIFT_SIZES)
        self.version = str(opencv("SIFT").__version__)

    def about(self) -> dict[str, Any]:
        return {"sift": list(_SIFT_SIZES), "places": _SIFT_PLACES, "opencv": self.version}

    def find(self, group: Group) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for name, diameter in zip(self.names, _SIFT_SIZES, strict=True):
            grids = {id(one): _dense_sift(one, diameter) for one in group.pictures}
            places = []
            for case in group.cases:
                keys, grid = grids[id(case.target)]
                queries = _sift(_grey(case.source), case.points.numpy(), diameter)
                places.append(upsampled_argmax(queries, keys, grid, _size(case.target))[0].float())
            found[name] = places
        return found


def config_dict(config: ExtractConfig) -> dict[str, Any]:
    """As plain JSON values."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _channels(fx: FeatureExtractor, own: bool) -> tuple[tuple[int, ...], str]:
    """What the row with the discard zeroes, and who says so."""
    config = fx.config
    if not own and isinstance(config.discard, tuple) and config.discard:
        return config.discard, "the config"
    if not own and config.discard == "auto":
        found = calibrated_channels(fx, [config.block], config.timestep)[config.block]
        if found:
            return found, "massive on ditf's own pictures"
    raw = fx.replace(activation="block", normalization="none", discard="none")
    cases = scene_cases(_LOOK_AT // 2, VALIDATION_SEED)
    maps = [raw(picture, category="animal") for case in cases for picture in (case.source, case.target)]
    return (top_channel(maps),), f"the largest of {_LOOK_AT} validation pictures"


def matched(maps: Mapping[int, FeatureMap], cases: Sequence[Case]) -> list[Tensor]:
    """Per case (K, 2) the best pixel of each of its points, by features of its pictures: id -> map."""
    sources, targets = ([maps[id(getattr(case, side))] for case in cases] for side in ("source", "target"))
    return [one.target.cpu() for one in match_points(sources, targets, [case.points for case in cases])]


def _dense_sift(picture: np.ndarray, diameter: float) -> tuple[Tensor, tuple[int, int]]:
    """(h*w, 128) descriptors at the middles of equal cells, and (h, w)."""
    height, width = _size(picture)
    rows, columns = (max(1, round(_SIFT_PLACES * side / max(height, width))) for side in (height, width))
    y, x = ((np.arange(n) + 0.5) * (side / n) - 0.5 for n, side in ((rows, height), (columns, width)))
    places = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    return _sift(_grey(picture), places, diameter), (rows, columns)


def _sift(grey: np.ndarray, places: np.ndarray, diameter: float) -> Tensor:
    """(K, 128) float32 at (K, 2) places."""
    cv2 = opencv("SIFT")
    points = [cv2.KeyPoint(float(x), float(y), diameter, 0.0) for x, y in places]
    kept, histograms = cv2.SIFT_create(enable_precise_upscale=True).compute(grey, points)
    if len(kept) != len(points):
        raise ModelError(f"SIFT: described {len(kept)} of {len(points)} points")
    return torch.from_numpy(np.sqrt(histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12)))


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("L"))


def _size(picture: np.ndarray) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]
