"""Parts of an image that take part in a match: masks and boxes, on the pixels, the canvas and the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..types import FeatureMap

__all__ = ["Box", "Mask", "contains", "on_canvas", "on_tokens", "region"]

Mask = Tensor | np.ndarray
Box = Sequence[float]


def region(
    side: str, mask: Mask | None, box: Box | None, image_size: tuple[int, int], where: str = ""
) -> Tensor | None:
    """(H, W) bool of the pixels inside both the mask and the box; None: every pixel.

    Args:
        side, where: "source" or "target", and the pair's place in its list, for messages.
        mask: (H, W) bool or integer, True or not 0 inside.
        box: (x0, y0, x1, y1) in pixels, both corners inside; may reach beyond the image.

    Raises:
        InputError: another shape or dtype, a box with corners in another order or without a pixel of the image.
    """
    if mask is None and box is None:
        return None
    inside = torch.ones(image_size, dtype=torch.bool)
    if mask is not None:
        inside = _checked_mask(f"{side}_mask{where}", mask, image_size, side)
    return inside if box is None else inside & _box_mask(f"{side}_box{where}", box, image_size).to(inside.device)


def on_canvas(features: FeatureMap, inside: Tensor | None) -> Tensor | None:
    """(H, W) bool over the area that the grid covers, never its padding; None when every pixel may be chosen."""
    if inside is None and features.canvas is None:
        return None
    if inside is None:
        inside = torch.ones(features.image_size, dtype=torch.bool)
    device = features.tokens.device
    if features.canvas is None:
        return inside.to(device).contiguous()
    canvas = torch.zeros(features.extent, dtype=torch.bool, device=device)
    (x, y), (height, width) = features.offset, features.image_size
    canvas[y : y + height, x : x + width] = inside.to(device)
    return canvas


def on_tokens(features: FeatureMap, inside: Tensor | None) -> Tensor | None:
    """(N,) bool: the tokens whose cell holds a pixel inside; None: all of them."""
    canvas = on_canvas(features, inside)
    if canvas is None:
        return None
    return F.adaptive_max_pool2d(canvas[None].float(), features.grid)[0].flatten() > 0


def contains(inside: Tensor, points: Tensor) -> Tensor:
    """(K,) bool: the pixel nearest to each point (K, 2) is inside."""
    pixel = points.to(inside.device).round().long()
    return inside[pixel[:, 1], pixel[:, 0]]


def _checked_mask(name: str, mask: Mask, image_size: tuple[int, int], side: str) -> Tensor:
    mask = torch.as_tensor(mask)
    if mask.shape != image_size:
        raise InputError.of(
            name, tuple(mask.shape), f"({image_size[0]}, {image_size[1]}), the size of the {side} image"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise InputError.of(name, mask.dtype, "bool or integers; compare a soft mask with a threshold first")
    return mask != 0


def _box_mask(name: str, box: Box, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    try:
        x0, y0, x1, y1 = (float(v) for v in box)
    except (TypeError, ValueError):
        raise InputError.of(name, box, "four numbers (x0, y0, x1, y1) in pixels") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 <= x1 and y0 <= y1):
        raise InputError.of(name, (x0, y0, x1, y1), "(x0, y0, x1, y1) with x0 <= x1 and y0 <= y1")
    x, y = torch.arange(width), torch.arange(height)[:, None]
    inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    if not bool(inside.any()):
        raise InputError.of(name, (x0, y0, x1, y1), f"a box with a pixel of the {width} x {height} image")
    return inside
