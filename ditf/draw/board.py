"""Pictures of several images: rows of panels with captions, and the legend of their colours."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .colors import HUES, PAPER, SOFT_INK, Color
from .layout import MARGIN, canvas_size, plan_panels, resized
from .overlay import Overlay

__all__ = ["LABEL_HUES", "draw_row", "label_color", "stack"]

# Those of the palette that show on a photograph and on paper.
LABEL_HUES: tuple[Color, ...] = tuple(hue for hue in HUES if hue != (255, 255, 255))


def label_color(number: int) -> Color:
    """The colour of label 1, 2, ...; they repeat after eleven."""
    return LABEL_HUES[(number - 1) % len(LABEL_HUES)]


def draw_row(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    title: str | None = None,
    height: int = 440,
    legend: Sequence[tuple[str, Color]] = (),
    note: str = "",
) -> Image.Image:
    """Images side by side; below them coloured squares with their names, and a line of text."""
    panels = plan_panels([(i.height, i.width) for i in images], height=height, title=title is not None)
    canvas = Image.new("RGB", canvas_size(panels), PAPER)
    overlay = Overlay(canvas.size)
    for image, panel, caption in zip(images, panels, captions, strict=True):
        canvas.paste(resized(image, panel), (panel.left, panel.top))
        overlay.frame(panel)
        overlay.caption(panel, caption)
    if title is not None:
        overlay.title(title)
    below = max(panel.box[3] for panel in panels) + 18
    left = overlay.legend((MARGIN, below), legend, canvas.width - MARGIN)
    overlay.text((left, below), note, 13, SOFT_INK, "lm", limit=canvas.width - MARGIN - left)
    return overlay.over(canvas)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below one another, on paper."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas
