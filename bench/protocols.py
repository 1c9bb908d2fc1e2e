"""Rivals of ``match_points``: what published evaluators do to find one point in another image.

All take (1, D, h, w) maps, (H, W) sizes and (K, 2) integer points and return (K, 2) predictions (x, y).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def reference(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """The reference protocol: upsample both maps to their images, then normalise and compare per keypoint."""
    source = F.interpolate(source, sizes[0], mode="bilinear")
    target = F.interpolate(target, sizes[1], mode="bilinear")
    found = []
    for x, y in points.tolist():
        query = F.normalize(source[0, :, y, x], dim=0)  # (D,)
        pixels = F.normalize(target.flatten(2), dim=1)[0]  # (D, H * W), for every keypoint again
        found.append((query @ pixels).argmax())
    return _xy(torch.stack(found), sizes[1])


def normalise_once(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """The same with the target normalised once for all keypoints."""
    source = F.interpolate(source, sizes[0], mode="bilinear")
    pixels = F.normalize(F.interpolate(target, sizes[1], mode="bilinear").flatten(2), dim=1)[0]  # (D, H * W)
    query = F.normalize(source[0, :, points[:, 1], points[:, 0]], dim=0)  # (D, K)
    return _xy((query.T @ pixels).argmax(1), sizes[1])


def upsampled_dots(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """Low-resolution cosines, upsampled: as cheap as ours, but not the same answer."""
    size = sizes[0]
    grid = (points + 0.5) / torch.tensor([size[1], size[0]]) * 2 - 1
    query = F.grid_sample(source, grid[None, None].float(), padding_mode="border", align_corners=False)[0, :, 0].T
    cosine = F.normalize(query, dim=1) @ F.normalize(target[0].flatten(1), dim=0)  # (K, h * w)
    scores = F.interpolate(cosine.view(1, len(points), *target.shape[2:]), sizes[1], mode="bilinear")
    return _xy(scores[0].flatten(1).argmax(1), sizes[1])


def _xy(index: Tensor, size: Size) -> Tensor:
    return torch.stack([index % size[1], index // size[1]], 1)
