"""What any matcher must beat: the same coordinates, one constant shift, and patches of plain pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import load_image
from ..matching import match_points
from ..types import FeatureMap
from .pck import distances

__all__ = ["constant_shift", "identity", "patch_map", "patch_tokens", "pixel_patches"]


def identity(points: Tensor, source_size: tuple[int, int], target_size: tuple[int, int]) -> Tensor:
    """(K, 2) the same relative position in the target image; sizes are (H, W)."""
    scale = [target_size[1] / source_size[1], target_size[0] / source_size[0]]
    return (points + 0.5) * torch.tensor(scale, dtype=points.dtype) - 0.5


def constant_shift(points: Tensor, truth: Tensor) -> Tensor:
    """(K, 2) the points moved by the one shift that fits this pair's truth best.

    It sees the answer: the shift is the median displacement or, where that is better, one of the displacements
    themselves, by median error. A matcher that loses to it has learned nothing of rotation or scale.
    """
    moves = truth - points  # (K, 2)
    candidates = torch.cat([moves.median(0).values[None], moves])
    errors = torch.stack([distances(points + move, truth).median() for move in candidates])
    return points + candidates[errors.argmin()]


def pixel_patches(source: Any, target: Any, points: Tensor, *, patch: int, side: int, stride: int = 4) -> Tensor:
    """(K, 2) matches of centred pixel patches: each patch minus its mean, cosine, argmax at image resolution.

    Args:
        source, target: images.
        points: (K, 2) in pixels of the source.
        patch: side of the square patch, in pixels of the resized image (odd).
        side: both images are resized to this longest side first, as for the model they rival.
        stride: pixels between patches.
    """
    maps = [patch_map(image, patch, side, stride) for image in (source, target)]
    return match_points(maps[0], maps[1], points).target


def patch_map(image: Any, patch: int, side: int, stride: int = 4) -> FeatureMap:
    """The patches of one image as features; arguments as of :func:`pixel_patches`."""
    pil = load_image(image)
    scale = side / max(pil.size)
    grid = tuple(max(1, round(length * scale / stride)) for length in (pil.height, pil.width))
    pixels = np.array(pil.resize((grid[1] * stride, grid[0] * stride)), dtype=np.float32) / 255.0
    return FeatureMap(tokens=patch_tokens(pixels, patch, stride), grid=(grid[0], grid[1]), image_size=_size(pil))


def patch_tokens(pixels: np.ndarray, patch: int, stride: int) -> Tensor:
    """(N, 3 * patch * patch) float32 patches of (H, W, 3) pixels, each minus its mean, one per cell of ``stride``."""
    values = pixels.astype(np.float32) / (255.0 if pixels.dtype == np.uint8 else 1.0)
    tensor = torch.from_numpy(values).permute(2, 0, 1)[None]  # (1, 3, H, W)
    before = (patch - stride) // 2
    after = patch - stride - before
    padded = torch.nn.functional.pad(tensor, (before, after, before, after), mode="replicate")
    tokens = torch.nn.functional.unfold(padded, patch, stride=stride)[0].T
    return tokens - tokens.mean(1, keepdim=True)


def _size(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width
