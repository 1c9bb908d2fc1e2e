"""One scene seen twice: a camera that moves before a flat world, with the exact map between the two pictures.

Points are (x, y) in pixel-index coordinates, sizes are (H, W).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..geometry.keypoints import grid_points
from ..warps import WarpedPair, apply_homography
from .rendering import developed, painted
from .scenes import random_scene

__all__ = ["view_pair"]


def view_pair(
    seed: int,
    size: int = 64,
    kind: str | None = None,
    *,
    clutter: bool = True,
    style: str = "flat",
    occluders: int = 0,
    viewpoint: float = 0.0,
    grid: int = 16,
) -> WarpedPair:
    """Two views of one scene: the geometric case.

    Each view shows a quadrilateral that lies wholly in the scene, turned by 12 to 24 degrees, one clockwise and one
    anticlockwise, at half to three quarters of the scene's side, with its corners moved for the perspective: nothing
    beyond the scene's border is ever made up. Each has a light of its own.

    Args:
        seed: of the scene and of both views.
        size: side of both pictures in pixels.
        kind, clutter, style, occluders, viewpoint: of the scene; see :func:`ditf.tiny.scenes.sample_scene`.
        grid: truth is given for a grid of this many points along a side, as far as both pictures show them.

    Raises:
        InputError: an argument that :func:`ditf.tiny.scenes.sample_scene` would not take, or a grid below 1.
    """
    if grid < 1:
        raise InputError.of("grid", grid, "at least 1")
    random = np.random.default_rng([seed, 3])
    scene = random_scene(random, kind, clutter=clutter, style=style, occluders=occluders, viewpoint=viewpoint)
    turn = random.choice([-1.0, 1.0])
    views = [_random_view(random, sign * turn) for sign in (-1, 1)]
    lights = [tuple(random.uniform(0.8, 1.15, 2).tolist()) for _ in views]
    canvas = painted(scene, size)
    source, target = (developed(_seen(canvas, view), light, size) for view, light in zip(views, lights, strict=True))
    to_source, to_target = (_in_pixels(view, size) for view in views)
    matrix = torch.from_numpy(to_target @ np.linalg.inv(to_source))
    points = grid_points((size, size), size / grid)
    moved = apply_homography(matrix, points)
    inside = ((moved >= 0) & (moved <= size - 1)).all(1)
    return WarpedPair(source, target, points[inside], moved[inside], matrix)


def _random_view(random: np.random.Generator, turn: float) -> np.ndarray:
    """(3, 3) homography from a quadrilateral of the unit square to the whole unit square."""
    angle, side = turn * np.radians(random.uniform(12, 24)), random.uniform(0.52, 0.74)
    cos, sin = np.cos(angle), np.sin(angle)
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = (square * random.uniform(0.9, 1.0, (4, 2))) @ np.array([[cos, sin], [-sin, cos]]) * side
    low, high = corners.min(0), corners.max(0)
    corners += random.uniform(0.25, 0.75, 2) * (1 - (high - low)) - low  # off the middle, and inside
    return _homography(corners, square + 0.5)


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 3) that takes four points (4, 2) to four others: eight linear equations (direct linear transform)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def _in_pixels(view: np.ndarray, size: int) -> np.ndarray:
    """From units of the scene to pixel-index coordinates of the view's picture."""
    return np.array([[size, 0, -0.5], [0, size, -0.5], [0, 0, 1.0]]) @ view


def _seen(canvas: Image.Image, view: np.ndarray) -> Image.Image:
    """The canvas under a view of the unit square, at the same size."""
    scale = np.diag([canvas.width, canvas.height, 1.0])
    back = scale @ np.linalg.inv(view) @ np.linalg.inv(scale)  # Pillow's corners of pixels need no halves
    coefficients = (back / back[2, 2]).ravel()[:8].tolist()
    return canvas.transform(canvas.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
