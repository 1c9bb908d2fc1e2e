"""Pictures of results: rows with a line of text above, one under the other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..types import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["GAP", "GREEN", "INK", "LABEL", "RED", "WIDTH", "extremes", "labelled", "save_picture", "stacked"]

WIDTH = 900
GAP, LABEL = 8, 18
GREEN, RED, INK = (40, 190, 90), (225, 60, 50), (30, 30, 30)

T = TypeVar("T")


def extremes(
    items: Iterable[T], worst: Callable[[T], Any], best: Callable[[T], Any], count: int
) -> tuple[list[T], list[T]]:
    """The first ``count`` by ``worst``, and the first by ``best`` of the others; no item is in both."""
    items = list(items)
    low = sorted(items, key=worst)[:count]
    return low, sorted((one for one in items if one not in low), key=best)[:count]


def labelled(text: str, height: int) -> Image:
    """A white row with a line of text on top and room for ``height`` pixels beneath."""
    from PIL import Image, ImageDraw, ImageFont

    row = Image.new("RGB", (WIDTH - 2 * GAP, height + LABEL), "white")
    written = text.encode("ascii", "replace").decode()
    ImageDraw.Draw(row).text((0, 2), written, fill=INK, font=ImageFont.load_default())
    return row


def stacked(rows: Sequence[Image]) -> Image:
    """The rows on one white sheet."""
    from PIL import Image

    sheet = Image.new("RGB", (WIDTH, sum(row.height + GAP for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    return sheet


def save_picture(picture: Image, path: Path) -> Path:
    """Write a PNG; equal pictures give equal bytes.

    Raises:
        StoreError: it cannot be written.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_atomically(path, content.getvalue())
    return path
