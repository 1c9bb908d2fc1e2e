"""Where images lie on a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import InputError

__all__ = ["COLUMN", "LEGEND", "MARGIN", "TITLE", "Panel", "canvas_size", "plan_panels", "resized"]

MARGIN, GAP = 20, 18
CAPTION, TITLE, LEGEND = 24, 36, 34
_WIDEST, _SHORTEST_ROW, _THINNEST, COLUMN = 600, 260, 40, 170


@dataclass(frozen=True)
class Panel:
    """Where one image lies on the canvas.

    Attributes:
        left, top, width, height: in canvas pixels.
        image_size: (H, W) of the image shown.
    """

    left: int
    top: int
    width: int
    height: int
    image_size: tuple[int, int]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Canvas position (0, 0 being the corner of the canvas) of the centre of image pixel (x, y)."""
        rows, columns = self.image_size
        return self.left + (x + 0.5) * self.width / columns, self.top + (y + 0.5) * self.height / rows

    @property
    def center(self) -> float:
        return self.left + self.width / 2

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.left + self.width, self.top + self.height


def plan_panels(sizes: Sequence[tuple[int, int]], *, height: int = 440, title: bool = False) -> list[Panel]:
    """Where :func:`draw_matches` puts images of these (H, W), left to right.

    All get one height where that leaves the widest readable; a long, thin image is fitted on its own, and stretched
    to a minimum where it would vanish.

    Raises:
        InputError: a height below 16.
    """
    if height < 16:
        raise InputError.of("height", height, "at least 16 pixels")
    widest = _WIDEST if len(sizes) < 3 else round(_WIDEST * 0.85)
    common = min(height, max(_SHORTEST_ROW, min(widest * rows / columns for rows, columns in sizes)))
    fitted = []
    for rows, columns in sizes:
        scale = min(common / rows, widest / columns)
        fitted.append((max(_THINNEST, round(columns * scale)), max(_THINNEST, round(rows * scale))))
    row = max(rows for _, rows in fitted)
    top, left = MARGIN + CAPTION + (TITLE if title else 0), MARGIN
    panels = []
    for (wide, high), size in zip(fitted, sizes, strict=True):
        column = max(wide, COLUMN)
        panels.append(Panel(left + (column - wide) // 2, top + (row - high) // 2, wide, high, size))
        left += column + GAP
    return panels


def canvas_size(panels: Sequence[Panel]) -> tuple[int, int]:
    """(width, height) of a picture of these panels, a line below them for a legend."""
    right = max(p.center + max(p.width, COLUMN) / 2 for p in panels)
    return math.ceil(right) + MARGIN, round(max(p.box[3] for p in panels)) + LEGEND


def resized(image: Image.Image, panel: Panel) -> Image.Image:
    """At the panel's size; a strongly enlarged image keeps its pixels visible."""
    enlarged = panel.width >= 4 * image.width or panel.height >= 4 * image.height
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return image.resize((panel.width, panel.height), how)
