"""Any picture under a known map: the truth that needs no labels.

Points are (x, y) in pixel-index coordinates, sizes are (H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InputError

__all__ = ["Border", "WarpedPair", "apply_homography", "warp_image", "warped_copy"]

Border = Literal["edge", "reflect", "plain"]


@dataclass(frozen=True, eq=False)
class WarpedPair:
    """A picture and its copy under a known map.

    Attributes:
        source, target: (H, W, 3) uint8 of one size.
        source_points, target_points: (K, 2) float32; pairs of truly corresponding points, inside both pictures.
        matrix: (3, 3) float64 homography from source to target pixels.
    """

    source: np.ndarray
    target: np.ndarray
    source_points: Tensor
    target_points: Tensor
    matrix: Tensor


def warped_copy(
    picture: np.ndarray,
    *,
    rotation: float | None = None,
    scale: float | None = None,
    pivot: tuple[float, float] | None = None,
    recolour: bool = True,
    border: Border = "edge",
    grid: int = 16,
    seed: int = 0,
) -> WarpedPair:
    """A picture and a rotated, scaled and recoloured copy of it, with the exact map between them.

    The map leaves one point in place, the pivot, and everything else moves the more the further it is from there. With
    the pivot in a corner, "the same coordinates" is a poor guess.

    Args:
        picture: (H, W, 3) uint8.
        rotation: degrees, positive clockwise on the screen; None draws 18 to 30, either way.
        scale: None draws 0.72 to 0.85.
        pivot: the point that stays, as shares of width and height; None draws one just outside any corner.
        recolour: change the brightness and tint of the copy.
        border: what shows beyond the picture: its edge pixels repeated, the picture mirrored, or its mean colour.
        grid: truth is given for a grid of this many points along the longer side, as far as both pictures show them.
        seed: of everything that is drawn.

    Raises:
        InputError: an image that is no (H, W, 3) uint8 array, or no point inside both pictures.
    """
    source = _checked_picture(picture)
    random = np.random.default_rng([seed, 2])
    # All are drawn, whichever are given: giving one leaves the others as they were.
    drawn = float(random.uniform(18, 30) * random.choice([-1, 1])), random.uniform(0.72, 0.85), _random_pivot(random)
    rotation = drawn[0] if rotation is None else rotation
    scale = drawn[1] if scale is None else scale
    pivot = drawn[2] if pivot is None else pivot
    height, width = source.shape[:2]
    matrix = _similarity(rotation, scale, (pivot[0] * width - 0.5, pivot[1] * height - 0.5))
    target = warp_image(source, matrix, border=border)
    if recolour:
        tinted = target * random.uniform(0.7, 1.3, 3) + random.normal(size=3) * 12
        target = np.clip(tinted, 0, 255).astype(np.uint8)
    points = _grid_points(height, width, grid)
    moved = apply_homography(matrix, points)
    limit = torch.tensor([width - 1, height - 1])
    inside = ((moved >= 0) & (moved <= limit)).all(1)
    if not bool(inside.any()):
        raise InputError.of("pivot", pivot, "a point that leaves some of the picture inside the copy")
    return WarpedPair(source, target, points[inside], moved[inside], matrix)


def warp_image(image: np.ndarray, matrix: Tensor, *, border: Border = "edge") -> np.ndarray:
    """The picture under a homography, bicubic, at the same size.

    Args:
        image: (H, W, 3) uint8.
        matrix: (3, 3) from source to target, both in pixel-index coordinates: a dot centred on p shows up at matrix(p).
        border: what shows beyond the picture.
    """
    height, width = _checked_picture(image).shape[:2]
    backward = torch.linalg.inv(matrix.double())
    corners = torch.tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=torch.float64)
    seen = apply_homography(backward, corners)
    reach = torch.cat([-seen, seen - torch.tensor([width - 1, height - 1])]).max().item()
    margin = max(0, math.ceil(reach)) + 3  # and the bicubic filter's own reach
    if border == "plain":
        padded = np.full([side + 2 * margin for side in (height, width)] + [3], image.mean((0, 1)).round(), np.uint8)
        padded[margin : margin + height, margin : margin + width] = image
    else:
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode=border)
    # Pillow maps the centre (x + 0.5, y + 0.5) of an output pixel to the input, where pixel 0 covers [0, 1].
    into_padded = _translation(margin + 0.5) @ backward @ _translation(-0.5)
    coefficients = (into_padded / into_padded[2, 2]).flatten()[:8].tolist()
    warped = Image.fromarray(padded).transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    return np.array(warped)


def apply_homography(matrix: Tensor, points: Tensor) -> Tensor:
    """(K, 2) points (x, y) mapped by a (3, 3) homography, in the points' dtype."""
    homogeneous = torch.cat([points.double(), torch.ones(len(points), 1, dtype=torch.float64)], dim=1)
    mapped = homogeneous @ matrix.double().T
    return (mapped[:, :2] / mapped[:, 2:]).to(points.dtype)


def _similarity(degrees: float, scale: float, pivot: tuple[float, float]) -> Tensor:
    """Rotation (clockwise on the screen, y being down) and scale about a point that stays."""
    cos, sin = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    return _translation(*pivot) @ turn @ _translation(-pivot[0], -pivot[1])


def _translation(x: float, y: float | None = None) -> Tensor:
    return torch.tensor([[1, 0, x], [0, 1, x if y is None else y], [0, 0, 1]], dtype=torch.float64)


def _random_pivot(random: np.random.Generator) -> tuple[float, float]:
    x, y = random.uniform(-0.06, 0.0, 2)
    return (float(x if random.random() < 0.5 else 1 - x), float(y if random.random() < 0.5 else 1 - y))


def _grid_points(height: int, width: int, count: int) -> Tensor:
    """(K, 2) float32: the centres of about square cells, ``count`` along the longer side."""
    cell = max(height, width) / count
    xs, ys = (torch.arange(round(side / cell)) for side in (width, height))
    x, y = (xs + 0.5) * (width / len(xs)) - 0.5, (ys + 0.5) * (height / len(ys)) - 0.5
    return torch.cartesian_prod(y, x).flip(1).float()


def _checked_picture(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}".strip()
        raise InputError.of("image", got, "a (H, W, 3) uint8 array")
    return image
