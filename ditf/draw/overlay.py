"""What lies over the images: text, frames, lines, markers, tags and legends.

Everything is drawn three times as large and averaged down, so edges are smooth.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colors import HUES, INK, PAPER, SOFT_INK, UNMATCHED, Color, luminance, read_colors, share_of, viridis
from .layout import COLUMN, MARGIN, TITLE, Panel

__all__ = ["FINE", "LineStyle", "Overlay", "Tag"]

FINE = 3  # the overlay is drawn this many times larger
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tag:
    """A short text beside a point, in canvas pixels."""

    at: tuple[float, float]
    text: str
    color: Color


@dataclass(frozen=True)
class LineStyle:
    """How strongly matches are drawn: sizes in canvas pixels, ``line_alpha`` in 0..255."""

    radius: float
    line: float
    line_alpha: int
    font: int
    scores: bool
    crowding: float  # the share of a tag that others may cover before it is left out


class Overlay:
    """A transparent layer, finer than the canvas; positions and lengths are in canvas pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.image = Image.new("RGBA", (size[0] * FINE, size[1] * FINE), (255, 255, 255, 0))
        self.draw = ImageDraw.Draw(self.image)

    def over(self, canvas: Image.Image) -> Image.Image:
        """The canvas with this layer on it."""
        layer = self.image.resize(self.size, Image.Resampling.BOX)  # Pillow premultiplies alpha for this
        return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        color: Color,
        anchor: str,
        *,
        limit: float | None = None,
    ) -> None:
        font = _font(size)
        text = _ascii(text)
        if limit is not None and font.getlength(text) > limit * FINE:
            while len(text) > 1 and font.getlength(text + "...") > limit * FINE:
                text = text[:-1]
            text += "..."
        self.draw.text((at[0] * FINE, at[1] * FINE), text, (*color, 255), font, anchor)

    def caption(self, panel: Panel, text: str) -> None:
        self.text((panel.center, panel.top - 11), text, 14, INK, "mm", limit=max(panel.width, COLUMN))

    def title(self, text: str) -> None:
        """A line above everything."""
        self.text((MARGIN, MARGIN + TITLE / 2 - 7), text, 19, INK, "lm", limit=self.size[0] - 2 * MARGIN)

    def frame(self, panel: Panel) -> None:
        left, top, right, bottom = panel.box
        self.draw.rectangle(
            (left * FINE - 2, top * FINE - 2, right * FINE + 1, bottom * FINE + 1), None, (*SOFT_INK, 120), 2
        )

    def line(
        self, start: tuple[float, float], end: tuple[float, float], color: Color, style: LineStyle, *, faint: bool
    ) -> None:
        """From centre to centre, over a darker line that keeps it visible on its own colour."""
        ends = [start[0] * FINE, start[1] * FINE, end[0] * FINE, end[1] * FINE]
        width, alpha = (0.6 * style.line, 2 * style.line_alpha // 5) if faint else (style.line, style.line_alpha)
        if alpha > 100:
            self.draw.line(ends, (*INK, alpha // 2), round((width + 1.4) * FINE))
        self.draw.line(ends, (*color, alpha), max(1, round(width * FINE)))

    def stroke(self, points: Sequence[tuple[float, float]], color: Color, width: float, alpha: int) -> None:
        """A polyline with round joints over a darker, wider one."""
        fine = [(x * FINE, y * FINE) for x, y in points]
        self.draw.line(fine, (*INK, alpha // 2), round((width + 1.4) * FINE), "curve")
        self.draw.line(fine, (*color, alpha), max(1, round(width * FINE)), "curve")

    def ring(self, at: tuple[float, float], color: Color, radius: float) -> None:
        """A hollow marker of a point that is not seen."""
        x, y = at[0] * FINE, at[1] * FINE
        for reach, ink, width in ((2.6, INK, 0.8), (1.8, PAPER, 1.1), (0.7, color, 1.4)):
            r = (radius + reach) * FINE
            self.draw.ellipse((x - r, y - r, x + r - 1, y + r - 1), None, (*ink, 255), round(width * FINE))

    def legend(self, at: tuple[float, float], entries: Sequence[tuple[str, Color]], right: float) -> float:
        """Coloured squares with their names, as far as they fit; returns where the line goes on."""
        left, middle = at
        font = _font(13)
        for position, (name, color) in enumerate(entries):
            wide = 12 + 6 + font.getlength(_ascii(name)) / FINE + 16
            rest = f"and {len(entries) - position} more"
            room = font.getlength(rest) / FINE + 16 if position + 1 < len(entries) else 0.0
            if left + wide + room > right:
                self.text((left, middle), rest, 13, SOFT_INK, "lm")
                return left + font.getlength(rest) / FINE + 16
            box = (left, middle - 6, left + 12, middle + 6)
            self.draw.rectangle([v * FINE for v in box], (*color, 255), (*INK, 160), 2)
            self.text((left + 18, middle), name, 13, INK, "lm")
            left += wide
        return left

    def marker(self, at: tuple[float, float], color: Color, radius: float) -> None:
        """A disc of the pair's colour, rimmed white and dark; its centre is the point."""
        for reach, fill in ((2.4, INK), (1.6, PAPER), (0.0, color)):
            r = (radius + reach) * FINE
            x, y = at[0] * FINE, at[1] * FINE
            self.draw.ellipse((x - r, y - r, x + r - 1, y + r - 1), (*fill, 255))

    def tags(
        self,
        tags: Sequence[Tag],
        panel: Panel,
        size: int,
        radius: float,
        crowding: float = math.inf,
        first: str = "right",
    ) -> None:
        """A pill of text beside each point, where it covers least of the markers and of the tags before it."""
        font = _font(size)
        high = size + 5.0
        reach = radius + 4.5
        markers = [(t.at[0] - reach, t.at[1] - reach, t.at[0] + reach, t.at[1] + reach) for t in tags]
        placed: list[Box] = []
        for tag in tags:
            wide = font.getlength(tag.text) / FINE + 9.0
            boxes = [_shifted(box, panel.box) for box in _around(tag.at, wide, high, reach, first)]
            costs = [
                sum(_common(box, other) for other in placed) * 2 + sum(_common(box, other) for other in markers)
                for box in boxes
            ]
            best = min(range(len(boxes)), key=lambda i: (costs[i], i))
            if costs[best] > crowding * wide * high:
                continue
            placed.append(boxes[best])
            self._pill(boxes[best], tag, font)

    def _pill(self, box: Box, tag: Tag, font: Any) -> None:
        left, top, right, bottom = (v * FINE for v in box)
        self.draw.rounded_rectangle((left, top, right, bottom), 4 * FINE, (*tag.color, 240), (*INK, 200), 2)
        ink = INK if luminance(tag.color) > 0.3 else PAPER
        self.draw.text(((left + right) / 2, (top + bottom) / 2), tag.text, (*ink, 255), font, "mm")

    def cell(self, box: Box, value: float, span: tuple[float, float], *, marked: bool) -> None:
        """A coloured rectangle with its number; framed where it is marked."""
        left, top, right, bottom = (v * FINE for v in box)
        color = viridis(share_of(value, span)) if math.isfinite(value) else UNMATCHED
        self.draw.rectangle((left + 2, top + 2, right - 3, bottom - 3), (*color, 255))
        if marked:
            self.draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), None, (*HUES[5], 255), 3 * FINE)
        ink = INK if luminance(color) > 0.3 else PAPER
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        self.text(centre, f"{value:.1f}", 13, ink, "mm")

    def color_bar(self, panel: Panel, colors: str, span: tuple[float, float] | None) -> None:
        """Below a panel, with the values at its two ends."""
        y = panel.box[3] + 16
        if span is None:
            self.text((panel.center, y), "no finite value", 13, SOFT_INK, "mm")
            return
        half = min(90.0, max(panel.width, COLUMN) / 2 - 48)
        left, right = panel.center - half, panel.center + half
        steps = read_colors(colors, np.linspace(0.0, 1.0, max(2, round((right - left) * FINE))))
        bar = Image.fromarray(np.repeat(steps[None].astype(np.uint8), 10 * FINE, axis=0)).convert("RGBA")
        self.image.paste(bar, (round(left * FINE), round((y - 5) * FINE)))
        self.text((left - 7, y), f"{span[0]:.2f}", 13, SOFT_INK, "rm")
        self.text((right + 7, y), f"{span[1]:.2f}", 13, SOFT_INK, "lm")


def _around(at: tuple[float, float], wide: float, high: float, reach: float, first: str) -> list[Box]:
    """Twelve places for a box beside a point, the preferred side first."""
    x, y = at
    lefts = {"near": x + reach, "far": x - reach - wide, "middle": x - wide / 2}
    if first == "left":
        lefts["near"], lefts["far"] = lefts["far"], lefts["near"]
    tops = {"above": y - reach - high, "below": y + reach, "level": y - high / 2, "up": y - high, "down": y}
    places = (
        ("near", "level"), ("near", "up"), ("near", "down"), ("far", "level"), ("far", "up"), ("far", "down"),
        ("middle", "above"), ("middle", "below"), ("near", "above"), ("near", "below"), ("far", "above"),
        ("far", "below"),
    )  # fmt: skip
    return [(lefts[h], tops[v], lefts[h] + wide, tops[v] + high) for h, v in places]


def _shifted(box: Box, inside: Box) -> Box:
    """The box moved into another, as far as it fits."""
    left = max(inside[0] + 1, min(box[0], inside[2] - 1 - (box[2] - box[0])))
    top = max(inside[1] + 1, min(box[1], inside[3] - 1 - (box[3] - box[1])))
    return left, top, left + box[2] - box[0], top + box[3] - box[1]


def _common(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _font(size: int) -> Any:
    return ImageFont.load_default(size * FINE)


def _ascii(text: str) -> str:
    """What Pillow's own font can write: accents dropped, other letters as "?"."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()
