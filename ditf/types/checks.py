"""What arguments of every room are held to: points inside their image, pairs of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["checked_points", "pair"]


def checked_points(name: str, points: Any, image_size: tuple[int, int] | None) -> Tensor:
    """Points (K, 2) as float32 on their own device, inside the image when its size is given.

    Raises:
        InputError: another shape, a value that is not finite, or a point outside [0, W - 1] x [0, H - 1].
    """
    try:
        points = torch.as_tensor(points if isinstance(points, Tensor) else np.asarray(points, dtype=np.float64))
        points = points.detach().to(torch.float32)
    except (TypeError, ValueError):
        raise InputError.of(name, points, "numbers of shape (K, 2): (x, y) pixels") from None
    if (points.ndim == 2 and points.shape[1] == 2) or points.numel() == 0:
        points = points.reshape(-1, 2)
    else:
        raise InputError.of(name, f"shape {tuple(points.shape)}", "shape (K, 2): (x, y) pixels")
    if not bool(torch.isfinite(points).all()):
        row = int((~torch.isfinite(points).all(1)).nonzero()[0])
        raise InputError.of(name, points[row].tolist(), f"finite numbers (point {row})")
    if image_size is not None and len(points):
        height, width = image_size
        limit = torch.tensor([width - 1, height - 1], dtype=points.dtype, device=points.device)
        outside = ((points < 0) | (points > limit)).any(1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise InputError.of(
                name, tuple(points[row].tolist()), f"x in 0..{width - 1} and y in 0..{height - 1} (point {row})"
            )
    return points


def pair(name: str, value: Any) -> tuple[int, int]:
    """Two integers of at least 1, named in the error."""
    try:
        first, second = (int(v) for v in value)
    except (TypeError, ValueError):
        raise InputError.of(name, value, "two integers (height, width)") from None
    if first < 1 or second < 1:
        raise InputError.of(name, (first, second), "two integers of at least 1")
    return first, second
