"""Label maps over an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from .board import draw_row, label_color
from .layout import plan_panels, resized

__all__ = ["draw_masks"]


def draw_masks(
    image: Any,
    labels: Tensor | np.ndarray,
    *,
    names: Sequence[str] | None = None,
    opacity: float = 0.5,
    caption: str = "",
    title: str | None = None,
    height: int = 440,
) -> Image.Image:
    """An image under its labels, each a colour with an outline; label 0 is the background and stays as it is.

    Args:
        image: anything :func:`ditf.images.load_image` reads, (H, W).
        labels: (H, W) integers of at least 0, or bool for one object.
        names: of the labels 1, 2, ...; named are only those that occur.
        opacity: of the colours, in 0..1; outlines are always opaque.
        caption: above the image.
        title: a line above everything.
        height: of the image in the picture.

    Raises:
        InputError: labels of another shape, type or sign, an opacity outside 0..1.
    """
    shown = load_image(image)
    values = _checked_labels(labels, shown)
    if not 0 <= opacity <= 1:
        raise InputError.of("opacity", opacity, "a number in 0..1")
    present = [int(v) for v in np.unique(values) if v]
    if names is not None and present and max(present) > len(names):
        raise InputError.of("names", f"{len(names)} names", f"one for each label up to {max(present)}")
    panel = plan_panels([(shown.height, shown.width)], height=height, title=title is not None)[0]
    pixels = np.asarray(resized(shown, panel), np.float64)
    index = np.searchsorted([0, *present], values).astype(np.int32)
    grown = np.asarray(Image.fromarray(index, "I").resize((panel.width, panel.height), Image.Resampling.NEAREST))
    palette = np.array([(0, 0, 0), *(label_color(number) for number in present)], np.float64)
    color = palette[grown]
    mixed = np.where((grown > 0)[..., None], (1 - opacity) * pixels + opacity * color, pixels)
    inner, outer = _outline(grown)
    mixed = np.where(outer[..., None], 255.0, np.where(inner[..., None], color, mixed))
    painted = Image.fromarray(np.rint(mixed).astype(np.uint8))
    legend = [((str(n) if names is None else names[n - 1]), label_color(n)) for n in present]
    return draw_row([painted], [caption], title=title, height=height, legend=legend)


def _outline(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of an object beside another label, two deep, and the outermost of them."""
    deep = [np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)]
    for reach, found in zip((3, 1), deep, strict=True):
        for axis in (0, 1):
            for step in range(1, min(reach, labels.shape[axis] - 1) + 1):
                first = [slice(None), slice(None)]
                second = [slice(None), slice(None)]
                first[axis], second[axis] = slice(step, None), slice(None, -step)
                differs = labels[tuple(first)] != labels[tuple(second)]
                found[tuple(first)] |= differs
                found[tuple(second)] |= differs
        found &= labels > 0
    return deep[0], deep[1]


def _checked_labels(labels: Any, image: Image.Image) -> np.ndarray:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (image.height, image.width):
        raise InputError.of("labels", f"shape {values.shape}", f"(H, W) of the image, {(image.height, image.width)}")
    if values.dtype != bool and not np.issubdtype(values.dtype, np.integer):
        raise InputError.of("labels", values.dtype, "integers or bool; take the argmax of scores first")
    if values.min() < 0:
        raise InputError.of("labels", int(values.min()), "labels of at least 0, 0 being the background")
    return values.astype(np.int64)
