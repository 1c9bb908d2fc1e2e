"""Pictures of matches and of similarities, with Pillow alone: no display, no font file, the same pixels every time.

Everything over the images (lines, markers, tags) is drawn three times as large and averaged down, so edges are smooth.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import InputError
from .images import load_image
from .types import Matches

__all__ = ["Panel", "draw_heat_map", "draw_matches", "draw_table", "plan_panels", "viridis"]

Color = tuple[int, int, int]

_FINE = 3  # the overlay is drawn this many times larger
_MARGIN, _GAP = 20, 18
_CAPTION, _TITLE, _LEGEND = 24, 36, 34
_CELL = 64, 26  # (width, height) of a table's cell
_WIDEST, _SHORTEST_ROW, _THINNEST, _COLUMN = 600, 260, 40, 170

_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 36, 46)
_SOFT_INK: Color = (104, 110, 124)
_UNMATCHED: Color = (150, 152, 158)

# Okabe and Ito's palette, then five of Tol's that stay apart from it for colour-blind eyes.
_HUES: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (255, 255, 255), (136, 34, 85), (187, 204, 51), (122, 72, 38),
)  # fmt: skip

# Seventeen evenly spaced colours of matplotlib's viridis and inferno (CC0), read with linear interpolation.
_VIRIDIS = "44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725"
_INFERNO = "0000040b0724210c4a3d096557106e71196e8a226aa32c61bc3754d24644e45a31f1731df98e09fcac11f9cb35f2ea69fcffa4"


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


def draw_matches(
    matches: Matches,
    source: Any,
    target: Any,
    *,
    heat_map: Tensor | np.ndarray | None = None,
    heat_point: int = 0,
    title: str | None = None,
    captions: tuple[str, str] = ("source", "target"),
    color_by: Literal["auto", "point", "score"] = "auto",
    cycle_tolerance: float | None = None,
    height: int = 440,
) -> Image.Image:
    """Both images side by side; every pair has a number, a colour, a line, and its score beside the target point.

    A point without a match (target (-1, -1) or a score that is not a number) is a grey marker without a line. Where
    the matches know their cycle error, those that do not lead back have a faint line.

    Args:
        matches: K pairs.
        source, target: the images they were found in; anything :func:`ditf.images.load_image` reads.
        heat_map: (H, W) similarities over the target, as ``similarity_map`` gives; shown as a third panel.
        heat_point: the position in ``matches`` of the point ``heat_map`` belongs to.
        title: a line above everything.
        captions: above the two images; letters outside ASCII are spelled without accents or as "?".
        color_by: a hue of its own for every point, or the score on a colour bar; "auto" takes hues up to 12 points.
        cycle_tolerance: the largest cycle error, in source pixels, of a match that leads back; default 5% of the
            longer side of the source.
        height: of the images, in pixels of the picture; wide images are shown lower.

    Returns:
        An RGB picture.

    Raises:
        InputError: images of another size than the matches', points outside them, a heat map of another shape.
    """
    if color_by not in ("auto", "point", "score"):
        raise InputError.of("color_by", color_by, "one of auto, point, score")
    images = [load_image(source), load_image(target)]
    tolerance = 0.05 * max(images[0].size) if cycle_tolerance is None else cycle_tolerance
    pairs = _pairs(matches, images, tolerance)
    if heat_map is not None:
        if not 0 <= heat_point < max(1, len(pairs)):
            raise InputError.of("heat_point", heat_point, f"an index in 0..{len(pairs) - 1}")
        heat_map = _checked_heat_map(heat_map, images[1])
        images.append(images[1])
    panels = plan_panels([(i.height, i.width) for i in images], height=height, title=title is not None)
    size = _canvas_size(panels)
    by_score = color_by == "score" or (color_by == "auto" and len(pairs) > len(_HUES))
    span = _span(np.array([pair.score for pair in pairs]))
    colors = [_pair_color(pair, by_score, span) for pair in pairs]

    canvas = Image.new("RGB", size, _PAPER)
    shown = [*images[:2], *([] if heat_map is None else [_blended(images[1], heat_map)])]
    for image, panel in zip(shown, panels, strict=True):
        canvas.paste(_resized(image, panel), (panel.left, panel.top))
    overlay = _Overlay(size)
    names = [*captions, f"similarity to point {heat_point + 1}"]
    for panel, name in zip(panels, names, strict=False):
        overlay.frame(panel)
        overlay.caption(panel, name)
    if title is not None:
        overlay.text((_MARGIN, _MARGIN + _TITLE / 2 - 7), title, 19, _INK, "lm", limit=size[0] - 2 * _MARGIN)
    _draw_pairs(overlay, pairs, colors, panels)
    _draw_legend(overlay, pairs, by_score, span, tolerance, panels)
    if heat_map is not None:
        overlay.color_bar(panels[2], _INFERNO, _span(heat_map))
        if pairs and pairs[heat_point].found:
            pair = pairs[heat_point]
            overlay.marker(panels[2].at(*pair.target), colors[heat_point], 5.0)
            overlay.tags([_Tag(panels[2].at(*pair.target), str(pair.number), colors[heat_point])], panels[2], 13, 5.0)
    return overlay.over(canvas)


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
    values = _checked_heat_map(similarity, shown)
    panels = plan_panels([(shown.height, shown.width)], height=height)
    canvas = Image.new("RGB", _canvas_size(panels), _PAPER)
    canvas.paste(_resized(_blended(shown, values), panels[0]), (panels[0].left, panels[0].top))
    overlay = _Overlay(canvas.size)
    overlay.frame(panels[0])
    overlay.caption(panels[0], caption)
    overlay.color_bar(panels[0], _INFERNO, _span(values))
    if point is not None:
        x, y = (float(v) for v in point)
        if not (0 <= x <= shown.width - 1 and 0 <= y <= shown.height - 1):
            raise InputError.of("point", (x, y), f"x in 0..{shown.width - 1} and y in 0..{shown.height - 1}")
        overlay.marker(panels[0].at(x, y), _HUES[1], 5.0)
    return overlay.over(canvas)


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
    left, top = _MARGIN + 70, _MARGIN + 80
    size = max(left + wide * len(columns) + _MARGIN, 480), top + high * len(rows) + _MARGIN
    overlay = _Overlay(size)
    limit = size[0] - 2 * _MARGIN
    overlay.text((_MARGIN, _MARGIN + 6), title, 17, _INK, "lm", limit=limit)
    overlay.text((_MARGIN, _MARGIN + 28), about, 13, _SOFT_INK, "lm", limit=limit)
    overlay.text((left - 10, top - 12), row_title, 13, _SOFT_INK, "rm")
    overlay.text((left + wide * len(columns) / 2, top - 30), column_title, 13, _SOFT_INK, "mm")
    span = _span(values) or (0.0, 1.0)
    for j, name in enumerate(columns):
        overlay.text((left + (j + 0.5) * wide, top - 12), name, 13, _INK, "mm")
    for i, name in enumerate(rows):
        overlay.text((left - 10, top + (i + 0.5) * high), name, 13, _INK, "rm")
        for j in range(len(columns)):
            box = (left + j * wide, top + i * high, left + (j + 1) * wide, top + (i + 1) * high)
            overlay.cell(box, float(values[i, j]), span, marked=(i, j) == mark)
    return overlay.over(Image.new("RGB", size, _PAPER))


def viridis(share: float) -> Color:
    """The colour of a number in 0..1."""
    red, green, blue = _colors(_VIRIDIS, np.array([share]))[0].round().tolist()
    return int(red), int(green), int(blue)


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
    top, left = _MARGIN + _CAPTION + (_TITLE if title else 0), _MARGIN
    panels = []
    for (wide, high), size in zip(fitted, sizes, strict=True):
        column = max(wide, _COLUMN)
        panels.append(Panel(left + (column - wide) // 2, top + (row - high) // 2, wide, high, size))
        left += column + _GAP
    return panels


@dataclass(frozen=True)
class _Pair:
    number: int
    source: tuple[float, float]
    target: tuple[float, float]
    score: float
    found: bool
    doubtful: bool


@dataclass(frozen=True)
class _Tag:
    at: tuple[float, float]
    text: str
    color: Color


@dataclass(frozen=True)
class _Style:
    radius: float
    line: float
    line_alpha: int
    font: int
    scores: bool
    crowding: float  # the share of a tag that others may cover before it is left out


def _style(count: int) -> _Style:
    if count <= 8:
        return _Style(radius=5.0, line=2.2, line_alpha=235, font=13, scores=True, crowding=math.inf)
    if count <= 16:
        return _Style(radius=4.5, line=1.8, line_alpha=215, font=12, scores=True, crowding=math.inf)
    if count <= 60:
        return _Style(radius=3.6, line=1.2, line_alpha=150, font=10, scores=False, crowding=0.25)
    return _Style(radius=2.6, line=0.7, line_alpha=90, font=10, scores=False, crowding=0.0)


def _draw_pairs(overlay: _Overlay, pairs: list[_Pair], colors: list[Color], panels: list[Panel]) -> None:
    style = _style(len(pairs))
    ends = [(panels[0].at(*p.source), panels[1].at(*p.target) if p.found else None) for p in pairs]
    for pair, (start, end), color in zip(pairs, ends, colors, strict=True):
        if end is not None:
            overlay.line(start, end, color, style, faint=pair.doubtful)
    for (start, end), color in zip(ends, colors, strict=True):
        for at in (start, end):
            if at is not None:
                overlay.marker(at, color, style.radius)
    if len(pairs) > 60:
        return
    source_tags = [_Tag(ends[i][0], str(p.number), colors[i]) for i, p in enumerate(pairs)]
    target_tags = [
        _Tag(end, f"{pair.number}: {pair.score:.2f}" if style.scores else str(pair.number), color)
        for pair, (_, end), color in zip(pairs, ends, colors, strict=True)
        if end is not None
    ]
    overlay.tags(source_tags, panels[0], style.font, style.radius, style.crowding, first="left")  # lines leave right
    overlay.tags(target_tags, panels[1], style.font, style.radius, style.crowding)


def _draw_legend(
    overlay: _Overlay,
    pairs: list[_Pair],
    by_score: bool,
    span: tuple[float, float] | None,
    tolerance: float,
    panels: list[Panel],
) -> None:
    missing = [pair.number for pair in pairs if not pair.found]
    notes = []
    if len(missing) < len(pairs):
        if _style(len(pairs)).scores:
            notes.append("beside the target points: cosine similarity")
        elif by_score:
            notes.append("colour: cosine similarity")
    if any(pair.doubtful for pair in pairs):
        notes.append(f"faint lines: do not lead back within {tolerance:.0f} px")
    if missing:
        names = ", ".join(map(str, missing[:6])) + (", ..." if len(missing) > 6 else "")
        notes.append(f"no match for {names} (grey)")
    if by_score:
        overlay.color_bar(panels[1], _VIRIDIS, span)
    taken = panels[1:2] if by_score else panels[2:3]
    right = taken[0].center - max(taken[0].width, _COLUMN) / 2 if taken else overlay.size[0] - _MARGIN
    if notes:
        row = max(panel.box[3] for panel in panels)
        overlay.text((_MARGIN, row + 16), "; ".join(notes), 13, _SOFT_INK, "lm", limit=right - _MARGIN - 8)


class _Overlay:
    """A transparent layer, finer than the canvas; positions and lengths are in canvas pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.image = Image.new("RGBA", (size[0] * _FINE, size[1] * _FINE), (255, 255, 255, 0))
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
        if limit is not None and font.getlength(text) > limit * _FINE:
            while len(text) > 1 and font.getlength(text + "...") > limit * _FINE:
                text = text[:-1]
            text += "..."
        self.draw.text((at[0] * _FINE, at[1] * _FINE), text, (*color, 255), font, anchor)

    def caption(self, panel: Panel, text: str) -> None:
        self.text((panel.center, panel.top - 11), text, 14, _INK, "mm", limit=max(panel.width, _COLUMN))

    def frame(self, panel: Panel) -> None:
        left, top, right, bottom = panel.box
        self.draw.rectangle(
            (left * _FINE - 2, top * _FINE - 2, right * _FINE + 1, bottom * _FINE + 1), None, (*_SOFT_INK, 120), 2
        )

    def line(
        self, start: tuple[float, float], end: tuple[float, float], color: Color, style: _Style, *, faint: bool
    ) -> None:
        """From centre to centre, over a darker line that keeps it visible on its own colour."""
        ends = [start[0] * _FINE, start[1] * _FINE, end[0] * _FINE, end[1] * _FINE]
        width, alpha = (0.6 * style.line, 2 * style.line_alpha // 5) if faint else (style.line, style.line_alpha)
        if alpha > 100:
            self.draw.line(ends, (*_INK, alpha // 2), round((width + 1.4) * _FINE))
        self.draw.line(ends, (*color, alpha), max(1, round(width * _FINE)))

    def marker(self, at: tuple[float, float], color: Color, radius: float) -> None:
        """A disc of the pair's colour, rimmed white and dark; its centre is the point."""
        for reach, fill in ((2.4, _INK), (1.6, _PAPER), (0.0, color)):
            r = (radius + reach) * _FINE
            x, y = at[0] * _FINE, at[1] * _FINE
            self.draw.ellipse((x - r, y - r, x + r - 1, y + r - 1), (*fill, 255))

    def tags(
        self,
        tags: Sequence[_Tag],
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
        placed: list[_Box] = []
        for tag in tags:
            wide = font.getlength(tag.text) / _FINE + 9.0
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

    def _pill(self, box: _Box, tag: _Tag, font: Any) -> None:
        left, top, right, bottom = (v * _FINE for v in box)
        self.draw.rounded_rectangle((left, top, right, bottom), 4 * _FINE, (*tag.color, 240), (*_INK, 200), 2)
        ink = _INK if _luminance(tag.color) > 0.3 else _PAPER
        self.draw.text(((left + right) / 2, (top + bottom) / 2), tag.text, (*ink, 255), font, "mm")

    def cell(self, box: _Box, value: float, span: tuple[float, float], *, marked: bool) -> None:
        """A coloured rectangle with its number; framed where it is marked."""
        left, top, right, bottom = (v * _FINE for v in box)
        color = viridis(_share(value, span)) if math.isfinite(value) else _UNMATCHED
        self.draw.rectangle((left + 2, top + 2, right - 3, bottom - 3), (*color, 255))
        if marked:
            self.draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), None, (*_HUES[5], 255), 3 * _FINE)
        ink = _INK if _luminance(color) > 0.3 else _PAPER
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        self.text(centre, f"{value:.1f}", 13, ink, "mm")

    def color_bar(self, panel: Panel, colors: str, span: tuple[float, float] | None) -> None:
        """Below a panel, with the values at its two ends."""
        y = panel.box[3] + 16
        if span is None:
            self.text((panel.center, y), "no finite value", 13, _SOFT_INK, "mm")
            return
        half = min(90.0, max(panel.width, _COLUMN) / 2 - 48)
        left, right = panel.center - half, panel.center + half
        steps = _colors(colors, np.linspace(0.0, 1.0, max(2, round((right - left) * _FINE))))
        bar = Image.fromarray(np.repeat(steps[None].astype(np.uint8), 10 * _FINE, axis=0)).convert("RGBA")
        self.image.paste(bar, (round(left * _FINE), round((y - 5) * _FINE)))
        self.text((left - 7, y), f"{span[0]:.2f}", 13, _SOFT_INK, "rm")
        self.text((right + 7, y), f"{span[1]:.2f}", 13, _SOFT_INK, "lm")


_Box = tuple[float, float, float, float]


def _around(at: tuple[float, float], wide: float, high: float, reach: float, first: str) -> list[_Box]:
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


def _shifted(box: _Box, inside: _Box) -> _Box:
    """The box moved into another, as far as it fits."""
    left = max(inside[0] + 1, min(box[0], inside[2] - 1 - (box[2] - box[0])))
    top = max(inside[1] + 1, min(box[1], inside[3] - 1 - (box[3] - box[1])))
    return left, top, left + box[2] - box[0], top + box[3] - box[1]


def _common(a: _Box, b: _Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _pairs(matches: Matches, images: Sequence[Image.Image], tolerance: float) -> list[_Pair]:
    for name, size, image in zip(("source", "target"), (matches.source_size, matches.target_size), images, strict=True):
        if size is not None and tuple(size) != (image.height, image.width):
            raise InputError.of(name, (image.height, image.width), f"the (H, W) that was matched, {tuple(size)}")
    errors = [0.0] * len(matches) if matches.cycle_error is None else matches.cycle_error.tolist()
    rows = zip(matches.source.tolist(), matches.target.tolist(), matches.score.tolist(), errors, strict=True)
    pairs = []
    for number, (source, target, score, error) in enumerate(rows, 1):
        found = math.isfinite(score) and tuple(target) != (-1.0, -1.0)
        for name, point, image in (("source", source, images[0]), ("target", target if found else None, images[1])):
            if point is not None and not (0 <= point[0] <= image.width - 1 and 0 <= point[1] <= image.height - 1):
                raise InputError.of(
                    f"{name} point {number}", tuple(point), f"x in 0..{image.width - 1}, y in 0..{image.height - 1}"
                )
        pairs.append(
            _Pair(
                number, (source[0], source[1]), (target[0], target[1]), score, found, found and not error <= tolerance
            )
        )
    return pairs


def _pair_color(pair: _Pair, by_score: bool, span: tuple[float, float] | None) -> Color:
    if not pair.found:
        return _UNMATCHED
    if not by_score or span is None:
        return _HUES[(pair.number - 1) % len(_HUES)]
    red, green, blue = _colors(_VIRIDIS, np.array([_share(pair.score, span)]))[0].tolist()
    return int(red), int(green), int(blue)


def _checked_heat_map(values: Tensor | np.ndarray, image: Image.Image) -> np.ndarray:
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)
    if array.shape != (image.height, image.width):
        raise InputError.of("heat_map", f"shape {array.shape}", f"(H, W) of the image, {(image.height, image.width)}")
    return array


def _blended(image: Image.Image, similarity: np.ndarray) -> Image.Image:
    """The image in grey under the colours of its similarities; grey alone where they are not finite."""
    finite = np.isfinite(similarity)
    grey = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    share = _share(np.where(finite, similarity, 0.0), _span(similarity) or (0.0, 1.0))
    mixed = 0.32 * grey + 0.68 * _colors(_INFERNO, np.clip(share, 0.0, 1.0))
    return Image.fromarray(np.rint(np.where(finite[..., None], mixed, grey)).astype(np.uint8))


def _span(values: np.ndarray) -> tuple[float, float] | None:
    """(least, largest) of the finite values."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _share(value: Any, span: tuple[float, float]) -> Any:
    """Where a value lies between the two ends, 0 to 1; all of it the upper end where they are one."""
    low, high = span
    return (value - low) / (high - low) if high > low else value * 0.0 + 1.0


def _colors(table: str, shares: np.ndarray) -> np.ndarray:
    """(..., 3) float colours 0..255 of shares in [0, 1]."""
    stops = np.frombuffer(bytes.fromhex(table), np.uint8).reshape(-1, 3).astype(np.float32)
    at = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(shares, at, stops[:, channel]) for channel in range(3)], axis=-1)


def _resized(image: Image.Image, panel: Panel) -> Image.Image:
    """At the panel's size; a strongly enlarged image keeps its pixels visible."""
    enlarged = panel.width >= 4 * image.width or panel.height >= 4 * image.height
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return image.resize((panel.width, panel.height), how)


def _canvas_size(panels: Sequence[Panel]) -> tuple[int, int]:
    right = max(p.center + max(p.width, _COLUMN) / 2 for p in panels)
    return math.ceil(right) + _MARGIN, round(max(p.box[3] for p in panels)) + _LEGEND


def _luminance(color: Color) -> float:
    """Relative luminance, 0 (black) to 1 (white)."""
    red, green, blue = ((v / 255) ** 2.2 for v in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _font(size: int) -> Any:
    return ImageFont.load_default(size * _FINE)


def _ascii(text: str) -> str:
    """What Pillow's own font can write: accents dropped, other letters as "?"."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()
