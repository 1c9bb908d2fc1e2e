"""A table of numbers, coloured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..errors import InputError
from .colors import INK, PAPER, SOFT_INK, span_of
from .layout import MARGIN
from .overlay import Overlay

__all__ = ["draw_table"]

_CELL = 64, 26  # (width, height) of a table's cell


def draw_table(
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    about: str = "",
    row_title: str = "",
    column_title: str = "",
    mark: tuple[int, int] | None = None,
) -> Image.Image:
    """A table of numbers with one decimal, each cell in the colour of its value.

    Args:
        values: (R, C) numbers; what is not finite stays grey.
        rows, columns: their names.
        title, about: two lines above everything.
        row_title, column_title: what the names are.
        mark: (row, column) to frame.

    Raises:
        InputError: names that do not fit the values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape != (len(rows), len(columns)) or not values.size:
        raise InputError.of("values", values.shape, f"shape ({len(rows)}, {len(columns)}), of at least one cell")
    wide, high = _CELL
    left, top = MARGIN + 70, MARGIN + 80
    size = max(left + wide * len(columns) + MARGIN, 480), top + high * len(rows) + MARGIN
    overlay = Overlay(size)
    limit = size[0] - 2 * MARGIN
    overlay.text((MARGIN, MARGIN + 6), title, 17, INK, "lm", limit=limit)
    overlay.text((MARGIN, MARGIN + 28), about, 13, SOFT_INK, "lm", limit=limit)
    overlay.text((left - 10, top - 12), row_title, 13, SOFT_INK, "rm")
    overlay.text((left + wide * len(columns) / 2, top - 30), column_title, 13, SOFT_INK, "mm")
    span = span_of(values) or (0.0, 1.0)
    for j, name in enumerate(columns):
        overlay.text((left + (j + 0.5) * wide, top - 12), name, 13, INK, "mm")
    for i, name in enumerate(rows):
        overlay.text((left - 10, top + (i + 0.5) * high), name, 13, INK, "rm")
        for j in range(len(columns)):
            box = (left + j * wide, top + i * high, left + (j + 1) * wide, top + (i + 1) * high)
            overlay.cell(box, float(values[i, j]), span, marked=(i, j) == mark)
    return overlay.over(Image.new("RGB", size, PAPER))
