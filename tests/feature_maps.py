"""Feature maps made of random numbers, and the reference protocol on them, written out in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditf import FeatureMap


def make(grid: tuple[int, int], size: tuple[int, int], seed: int = 0, channels: int = 16, **values: Any) -> FeatureMap:
    tokens = torch.randn(grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(seed))
    return FeatureMap(tokens=tokens, grid=grid, image_size=size, **values)


def from_map(features: Tensor, size: tuple[int, int], **values: Any) -> FeatureMap:
    """Of features (D, h, w)."""
    tokens = features.flatten(1).T.contiguous()
    return FeatureMap(tokens=tokens, grid=(features.shape[1], features.shape[2]), image_size=size, **values)


def mirror_image(features: FeatureMap) -> FeatureMap:
    """What a backbone that knows neither left nor right makes of the mirrored image."""
    return from_map(features.map.flip(2), features.image_size)


def upsampled(features: FeatureMap) -> Tensor:
    """(D, H, W) float64 over the image, each pixel normalised."""
    canvas = F.interpolate(features.map[None].double(), features.extent, mode="bilinear")[0]
    (x, y), (height, width) = features.offset, features.image_size
    return F.normalize(canvas[:, y : y + height, x : x + width], dim=0)


def scores_at(src: FeatureMap, tgt: FeatureMap, x: int, y: int) -> Tensor:
    """(H, W) float64 by the reference protocol."""
    return torch.einsum("d,dhw->hw", upsampled(src)[:, y, x], upsampled(tgt))
