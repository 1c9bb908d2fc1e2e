"""Two images side by side with the points that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from ..types import Matches
from .colors import HUES, INFERNO, PAPER, SOFT_INK, UNMATCHED, VIRIDIS, Color, read_colors, share_of, span_of
from .heat_maps import blended, checked_heat_map
from .layout import COLUMN, MARGIN, Panel, canvas_size, plan_panels, resized
from .overlay import LineStyle, Overlay, Tag

__all__ = ["draw_matches"]


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
        heat_map = checked_heat_map(heat_map, images[1])
        images.append(images[1])
    panels = plan_panels([(i.height, i.width) for i in images], height=height, title=title is not None)
    size = canvas_size(panels)
    by_score = color_by == "score" or (color_by == "auto" and len(pairs) > len(HUES))
    span = span_of(np.array([pair.score for pair in pairs]))
    colors = [_pair_color(pair, by_score, span) for pair in pairs]

    canvas = Image.new("RGB", size, PAPER)
    shown = [*images[:2], *([] if heat_map is None else [blended(images[1], heat_map)])]
    for image, panel in zip(shown, panels, strict=True):
        canvas.paste(resized(image, panel), (panel.left, panel.top))
    overlay = Overlay(size)
    names = [*captions, f"similarity to point {heat_point + 1}"]
    for panel, name in zip(panels, names, strict=False):
        overlay.frame(panel)
        overlay.caption(panel, name)
    if title is not None:
        overlay.title(title)
    _draw_pairs(overlay, pairs, colors, panels)
    _draw_legend(overlay, pairs, by_score, span, tolerance, panels)
    if heat_map is not None:
        overlay.color_bar(panels[2], INFERNO, span_of(heat_map))
        if pairs and pairs[heat_point].found:
            pair = pairs[heat_point]
            overlay.marker(panels[2].at(*pair.target), colors[heat_point], 5.0)
            overlay.tags([Tag(panels[2].at(*pair.target), str(pair.number), colors[heat_point])], panels[2], 13, 5.0)
    return overlay.over(canvas)


@dataclass(frozen=True)
class _Pair:
    number: int
    source: tuple[float, float]
    target: tuple[float, float]
    score: float
    found: bool
    doubtful: bool


def _style(count: int) -> LineStyle:
    if count <= 8:
        return LineStyle(radius=5.0, line=2.2, line_alpha=235, font=13, scores=True, crowding=math.inf)
    if count <= 16:
        return LineStyle(radius=4.5, line=1.8, line_alpha=215, font=12, scores=True, crowding=math.inf)
    if count <= 60:
        return LineStyle(radius=3.6, line=1.2, line_alpha=150, font=10, scores=False, crowding=0.25)
    return LineStyle(radius=2.6, line=0.7, line_alpha=90, font=10, scores=False, crowding=0.0)


def _draw_pairs(overlay: Overlay, pairs: list[_Pair], colors: list[Color], panels: list[Panel]) -> None:
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
    source_tags = [Tag(ends[i][0], str(p.number), colors[i]) for i, p in enumerate(pairs)]
    target_tags = [
        Tag(end, f"{pair.number}: {pair.score:.2f}" if style.scores else str(pair.number), color)
        for pair, (_, end), color in zip(pairs, ends, colors, strict=True)
        if end is not None
    ]
    overlay.tags(source_tags, panels[0], style.font, style.radius, style.crowding, first="left")  # lines leave right
    overlay.tags(target_tags, panels[1], style.font, style.radius, style.crowding)


def _draw_legend(
    overlay: Overlay,
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
        overlay.color_bar(panels[1], VIRIDIS, span)
    taken = panels[1:2] if by_score else panels[2:3]
    right = taken[0].center - max(taken[0].width, COLUMN) / 2 if taken else overlay.size[0] - MARGIN
    if notes:
        row = max(panel.box[3] for panel in panels)
        overlay.text((MARGIN, row + 16), "; ".join(notes), 13, SOFT_INK, "lm", limit=right - MARGIN - 8)


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
        return UNMATCHED
    if not by_score or span is None:
        return HUES[(pair.number - 1) % len(HUES)]
    red, green, blue = read_colors(VIRIDIS, np.array([share_of(pair.score, span)]))[0].tolist()
    return int(red), int(green), int(blue)
