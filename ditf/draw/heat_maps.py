"""An image under the colours of its similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from .colors import HUES, INFERNO, PAPER, read_colors, share_of, span_of
from .layout import canvas_size, plan_panels, resized
from .overlay import Overlay

__all__ = ["blended", "checked_heat_map", "draw_heat_map"]


def draw_heat_map(
    image: Any,
    similarity: Tensor | np.ndarray,
    *,
    point: Sequence[float] | None = None,
    caption: str = "cosine similarity",
    height: int = 440,
) -> Image.Image:
    """An image under its similarities, with a colour bar and its range.

    Args:
        image: anything :func:`ditf.images.load_image` reads, (H, W).
        similarity: (H, W) numbers; what is not finite stays grey.
        point: (x, y) to mark, for instance the best match.
        caption: above the image.
        height: of the image in the picture.

    Returns:
        An RGB picture.

    Raises:
        InputError: similarities of another shape than the image, or a point outside it.
    """
    shown = load_image(image)
    values = checked_heat_map(similarity, shown)
    panels = plan_panels([(shown.height, shown.width)], height=height)
    canvas = Image.new("RGB", canvas_size(panels), PAPER)
    canvas.paste(resized(blended(shown, values), panels[0]), (panels[0].left, panels[0].top))
    overlay = Overlay(canvas.size)
    overlay.frame(panels[0])
    overlay.caption(panels[0], caption)
    overlay.color_bar(panels[0], INFERNO, span_of(values))
    if point is not None:
        x, y = (float(v) for v in point)
        if not (0 <= x <= shown.width - 1 and 0 <= y <= shown.height - 1):
            raise InputError.of("point", (x, y), f"x in 0..{shown.width - 1} and y in 0..{shown.height - 1}")
        overlay.marker(panels[0].at(x, y), HUES[1], 5.0)
    return overlay.over(canvas)


def checked_heat_map(values: Tensor | np.ndarray, image: Image.Image) -> np.ndarray:
    """(H, W) float32 of the image's size.

    Raises:
        InputError: another shape.
    """
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)
    if array.shape != (image.height, image.width):
        raise InputError.of("heat_map", f"shape {array.shape}", f"(H, W) of the image, {(image.height, image.width)}")
    return array


def blended(image: Image.Image, similarity: np.ndarray) -> Image.Image:
    """The image in grey under the colours of its similarities; grey alone where they are not finite."""
    finite = np.isfinite(similarity)
    grey = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    share = share_of(np.where(finite, similarity, 0.0), span_of(similarity) or (0.0, 1.0))
    mixed = 0.32 * grey + 0.68 * read_colors(INFERNO, np.clip(share, 0.0, 1.0))
    return Image.fromarray(np.rint(np.where(finite[..., None], mixed, grey)).astype(np.uint8))
