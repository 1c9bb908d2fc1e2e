"""Where to look: points of an image that are worth matching. Points are (x, y) in pixel-index coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..images import load_image

__all__ = ["grid_points", "sift_points"]


def grid_points(size: tuple[int, int], spacing: float) -> Tensor:
    """(K, 2) float32: the centres of equal, about square cells that cover the image, in raster order.

    Args:
        size: (H, W) of the image.
        spacing: side of a cell in pixels, at least 1; adjusted so that whole cells fill each side.

    Raises:
        InputError: a size or spacing that leaves no cell.
    """
    height, width = size
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1):
        raise InputError.of("size", size, "two integers (height, width) of at least 1")
    if not spacing >= 1:
        raise InputError.of("spacing", spacing, "a number of pixels of at least 1")
    rows, columns = (max(1, round(side / spacing)) for side in (height, width))
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) * (height / rows) - 0.5
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) * (width / columns) - 0.5
    return torch.cartesian_prod(y, x).flip(1).float()


def sift_points(image: Any, count: int) -> Tensor:
    """(count or fewer, 2) float32: distinct SIFT keypoints, the strongest first (OpenCV; Lowe, IJCV 2004).

    OpenCV enlarges the image first and by default leaves its points 0.25 px too far right and down; the exact
    enlargement is asked for, so a blob's point lies on its centre.

    Args:
        image: anything :func:`ditf.images.load_image` reads.
        count: how many at most.

    Raises:
        InputError: an unreadable image, a count below 1, or OpenCV missing.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError.of("count", count, "an integer of at least 1")
    cv2 = opencv("sift_points")
    grey = np.asarray(load_image(image).convert("L"))
    found = cv2.SIFT_create(enable_precise_upscale=True).detect(grey, None)
    found = sorted(found, key=lambda point: (-point.response, point.pt))
    places = dict.fromkeys(point.pt for point in found)  # several orientations share a place
    points = torch.tensor(list(places)[:count], dtype=torch.float32).reshape(-1, 2)
    limit = torch.tensor([grey.shape[1] - 1, grey.shape[0] - 1], dtype=torch.float32)
    return points.clamp(torch.zeros(2), limit)


def opencv(what: str) -> Any:
    """The module cv2.

    Raises:
        InputError: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise InputError(f'{what}: OpenCV is not installed; pip install "ditf[geometry]"') from None
    return cv2
