"""Pairs of pictures with exact truth: procedural scenes, and photographs under a known warp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError
from ...tiny.scenes import scene_pair, warped_pair

__all__ = [
    "PHOTOGRAPHS",
    "PHOTOGRAPH_SIDE",
    "SCENE_SIDE",
    "VALIDATION_PHOTOGRAPHS",
    "Case",
    "photograph",
    "photograph_cases",
    "scene_cases",
]

PHOTOGRAPHS = ("astronaut", "ihc", "camera", "chelsea", "coffee", "coins", "retina", "rocket")
"""Models are judged on these. Not brick, grass and gravel: they repeat themselves, so that at 96 px hardly anything,
SIFT included, tells their points apart."""
VALIDATION_PHOTOGRAPHS = ("hubble_deep_field", "moon", "motorcycle_left", "page")
"""Settings are chosen on these."""
PHOTOGRAPH_SIDE = 256
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


def photograph_cases(
    warps: int,
    first_seed: int,
    *,
    side: int = PHOTOGRAPH_SIDE,
    grid: int = 14,
    names: Sequence[str] = PHOTOGRAPHS,
) -> list[Case]:
    """Each photograph under ``warps`` random warps. The reference length is the larger side of the picture.

    Args:
        warps: copies of each photograph.
        first_seed: of the warps.
        side: longest side of the pictures in pixels.
        grid: points along that side.
        names: of scikit-image's pictures.

    Raises:
        InputError: scikit-image is not installed, or has no such picture.
    """
    cases = []
    for number, name in enumerate(names):
        picture = photograph(name, side)
        for warp in range(warps):
            seed = first_seed + warps * number + warp
            pair = warped_pair(picture, rotation=None, scale=None, pivot=None, grid=grid, seed=seed)
            cases.append(
                Case(pair.source, pair.target, pair.source_points, pair.target_points, float(side), pair.matrix)
            )
    return cases


def photograph(name: str, side: int = PHOTOGRAPH_SIDE) -> np.ndarray:
    """(H, W, 3) uint8: one of the pictures that lie in scikit-image's own package, shrunk; nothing is downloaded.

    Args:
        name: of the file, without its ending.
        side: longest side in pixels at most.

    Raises:
        InputError: scikit-image is not installed, or has no such picture.
    """
    try:
        import skimage.data
    except ImportError:
        raise InputError('photographs come with scikit-image; pip install "ditf[demo]"') from None
    folder = Path(skimage.data.__file__).parent
    found = [path for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.is_file()]
    if not found:
        raise InputError(f"photograph: {name} is not in {folder}; install scikit-image 0.25 or later")
    with Image.open(found[0]) as image:
        picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.array(picture)
