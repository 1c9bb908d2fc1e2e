"""Pairs of pictures with exact truth: procedural scenes, and photographs under a known warp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...tiny.scenes import scene_pair, warped_pair

__all__ = ["PHOTOGRAPHS", "PHOTOGRAPH_SIDE", "SCENE_SIDE", "Case", "photograph_cases", "scene_cases"]

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
PHOTOGRAPH_SIDE = 384
SCENE_SIDE = 128


@dataclass(frozen=True, eq=False)
class Case:
    """One pair with the truth.

    Attributes:
        source, target: (H, W, 3) uint8.
        points, truth: (K, 2) float32 pixels of source and target.
        length: an error counts as right up to alpha times this many pixels.
        matrix: (3, 3) map from source to target, where there is one.
    """

    source: np.ndarray
    target: np.ndarray
    points: Tensor
    truth: Tensor
    length: float
    matrix: Tensor | None = None


def scene_cases(count: int, first_seed: int, *, size: int = SCENE_SIDE, clutter: bool = False) -> list[Case]:
    """Pairs of instances; the kinds take turns. The reference length is the larger side of the target's box."""
    cases = []
    for i in range(count):
        kind = ("quad", "bird", "fish", "car")[i % 4]
        first, second = scene_pair(first_seed + i, size, kind, clutter=clutter)
        names = [name for name in first.keypoints if first.visible[name] and second.visible[name]]
        points, truth = (torch.tensor([scene.keypoints[name] for name in names]) for scene in (first, second))
        x0, y0, x1, y1 = second.bbox
        cases.append(Case(first.pixels, second.pixels, points, truth, max(x1 - x0, y1 - y0)))
    return cases


def photograph_cases(warps: int, first_seed: int, *, side: int = PHOTOGRAPH_SIDE, grid: int = 14) -> list[Case]:
    """Each photograph under ``warps`` random warps. The reference length is the larger side of the picture.

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise InputError('photographs come with scikit-image; pip install "ditf[demo]"') from None
    cases = []
    for number, name in enumerate(PHOTOGRAPHS):
        photograph = Image.fromarray(getattr(data, name)()[..., :3])
        photograph.thumbnail((side, side), Image.Resampling.LANCZOS)
        for warp in range(warps):
            seed = first_seed + warps * number + warp
            pair = warped_pair(np.array(photograph), rotation=None, scale=None, pivot=None, grid=grid, seed=seed)
            cases.append(
                Case(pair.source, pair.target, pair.source_points, pair.target_points, float(side), pair.matrix)
            )
    return cases
