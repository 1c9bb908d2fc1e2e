"""Descriptors at keypoints: a model's features, and the SIFT and plain pixels that it must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..geometry.keypoints import opencv
from ..store import FeatureStore
from ..types import FeatureMap
from .hpatches import PlaneProtocol
from .methods import PATCH, Method, ModelMethod, Picture, key_of

__all__ = ["Described", "Describer", "MapDescriber", "PatchDescriber", "SiftDescriber", "features_at"]


@dataclass(frozen=True, eq=False)
class Described:
    """Keypoints of one image.

    Attributes:
        points: (K, 2) float64 pixels.
        features: (K, D) floating point.
    """

    points: np.ndarray
    features: Tensor


class Describer(Interface):
    """Anything that describes keypoints.

    Attributes:
        name: of its row.
        backend: which kernels match its features, or None.
        metric: by which they are near, "cosine" or "l2".
    """

    name: str
    backend: str | None
    metric: str

    def about(self) -> dict[str, Any]:
        """All that its descriptors depend on besides the picture and its keypoints, as plain JSON values."""
        ...

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Told which pictures of one sequence are to come."""
        ...

    def describe(self, picture: Picture, points: np.ndarray) -> Described:
        """At the points (K, 2), or at keypoints of its own."""
        ...


class MapDescriber:
    """Features of a method's map, which the store holds, at the keypoints."""

    def __init__(self, method: Method, protocol: PlaneProtocol, store: FeatureStore) -> None:
        self.method, self.protocol, self.store = method, protocol, store
        self.name, self.backend, self.metric = method.name, method.backend, protocol.metric
        self._begun = False

    def about(self) -> dict[str, Any]:
        return {**self.method.about(), "sampling": self.protocol.sampling, "device": self.method.device.type}

    def begin(self, pictures: Sequence[Picture]) -> None:
        self.store.keep((key_of(self.method, picture) for picture in pictures), owner=self.name)
        if not self._begun and isinstance(self.method, ModelMethod):
            self.method.prepare_texts(pictures[:1])  # one text for all
        self._begun = True

    def describe(self, picture: Picture, points: np.ndarray) -> Described:
        features = self._map(picture).to(self.method.device)
        return Described(points, features_at(features, points, self.protocol.sampling))

    def _map(self, picture: Picture) -> FeatureMap:
        key = key_of(self.method, picture)
        features = self.store.get(key)
        if features is not None:
            return features
        features = {who.name: one for who, one in self.method.extract(picture)}[self.name]
        if not bool(torch.isfinite(features.tokens).all()):
            raise ModelError(f"{picture.path}: the features of {self.name} are not finite; try another --model-dtype")
        self.store.put(key, features)
        return features


def features_at(features: FeatureMap, points: np.ndarray, sampling: str) -> Tensor:
    """(K, D) float32 features at (K, 2) pixels; see :class:`ditf.benchmarks.hpatches.PlaneProtocol`.

    "shifted" reads coordinates that put -1 and 1 on the centres of the outermost pixels as if they were their edges.
    """
    if sampling == "center" or not len(points):
        return features.sample(points.reshape(-1, 2))
    height, width = features.image_size
    middle = (np.array([width, height], np.float64) - 1) / 2
    place = torch.from_numpy((points - middle) / middle).float().to(features.tokens.device)
    maps = features.map[None].float()  # (1, D, h, w)
    found = F.grid_sample(maps, place[None, None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return found[0, :, 0].T.contiguous()


class SiftDescriber:
    """SIFT at its own keypoints, with their scales and directions; square roots of its histograms (RootSIFT)."""

    name, metric = "SIFT", "cosine"
    backend: str | None = None

    def __init__(self, count: int) -> None:
        self.count = count

    def about(self) -> dict[str, Any]:
        return {"sift": "own keypoints, square roots", "count": self.count, "opencv": opencv("SIFT").__version__}

    def begin(self, pictures: Sequence[Picture]) -> None:
        pass

    def describe(self, picture: Picture, points: np.ndarray) -> Described:
        grey = np.asarray(picture.pixels().convert("L"))
        sift = opencv("SIFT").SIFT_create(enable_precise_upscale=True)
        found = sorted(sift.detect(grey, None), key=lambda point: (-point.response, point.pt, point.angle))
        kept, histograms = sift.compute(grey, found[: self.count]) if found else ([], None)
        places = np.array([point.pt for point in kept], np.float64).reshape(-1, 2)
        values = np.zeros((0, 128), np.float32) if histograms is None else histograms
        return Described(places, torch.from_numpy(np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-12))))


class PatchDescriber:
    """Patches of plain pixels minus their mean, of the picture at half its size, centred on the keypoints."""

    name, metric = "pixel patches", "cosine"
    backend: str | None = None

    def about(self) -> dict[str, Any]:
        return {"patch": PATCH, "scale": 0.5, "centred": "on the keypoint"}

    def begin(self, pictures: Sequence[Picture]) -> None:
        pass

    def describe(self, picture: Picture, points: np.ndarray) -> Described:
        image = picture.pixels()
        height, width = picture.info.size
        small = image.resize((max(1, round(width / 2)), max(1, round(height / 2))))
        pixels = torch.from_numpy(np.array(small, np.float32) / 255.0).permute(2, 0, 1)[None]  # (1, 3, H, W)
        reach = torch.arange(PATCH, dtype=torch.float32) - PATCH // 2
        around = torch.cartesian_prod(reach, reach).flip(1)  # (patch^2, 2) as (x, y), pixels of the small picture
        size = torch.tensor([small.width, small.height], dtype=torch.float32)
        ratio = size / torch.tensor([width, height], dtype=torch.float32)
        at = (torch.from_numpy(points).float() + 0.5) * ratio  # pixel edges at integers
        grid = (at[:, None] + around) * 2 / size - 1  # (K, patch^2, 2)
        found = F.grid_sample(pixels, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        patches = found[0].permute(1, 2, 0).flatten(1)  # (K, patch^2 * 3)
        return Described(points, patches - patches.mean(1, keepdim=True))
