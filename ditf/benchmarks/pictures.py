"""The pairs that went best and worst, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .results import hits_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from .protocols import Framed
    from .runner import Evaluation, Found

__all__ = ["draw_extremes"]

_HEIGHT = 220  # of one image
_WIDTH = 900
_GAP, _LABEL = 8, 18
_GREEN, _RED, _INK = (40, 190, 90), (225, 60, 50), (30, 30, 30)


def draw_extremes(evaluation: Evaluation, method: str, *, count: int = 3) -> Image:
    """The ``count`` worst pairs above the ``count`` best, of those with the most points among equals.

    Source on the left, target on the right; a ring is the truth, a dot the prediction: green if right at the first
    alpha, red if not, with a line between the two.
    """
    from PIL import Image

    protocol = evaluation.protocol
    hits = hits_of(evaluation.found[method], evaluation.pairs, protocol, protocol.alphas[0])
    points = np.array([len(one.truth) for one in evaluation.pairs])
    share = hits / points
    order = sorted(range(len(points)), key=lambda i: (share[i], -points[i], evaluation.pairs[i].pair.name))
    worst = order[:count]
    best = sorted(
        (i for i in order if i not in worst), key=lambda i: (-share[i], -points[i], evaluation.pairs[i].pair.name)
    )[:count]
    rows = [_row(evaluation.pairs[i], evaluation.found[method][i], evaluation, int(hits[i])) for i in (*worst, *best)]
    sheet = Image.new("RGB", (_WIDTH, sum(row.height + _GAP for row in rows) + _GAP), "white")
    top = _GAP
    for row in rows:
        sheet.paste(row, (_GAP, top))
        top += row.height + _GAP
    return sheet


def _row(framed: Framed, found: Found, evaluation: Evaluation, hits: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    from .protocols import model_input
    from .scores import within

    protocol, pair = evaluation.protocol, framed.pair
    row = Image.new("RGB", (_WIDTH - 2 * _GAP, _HEIGHT + _LABEL), "white")
    pen = ImageDraw.Draw(row)
    label = f"{pair.category}: {hits} of {len(framed.truth)} right at {protocol.alphas[0]:g}   {pair.name}"
    pen.text((0, 2), label.encode("ascii", "replace").decode(), fill=_INK, font=ImageFont.load_default())
    right = within(found.errors, framed.length, protocol.alphas[0], protocol.operator, protocol.arithmetic)
    left = 0
    sides = ((pair.source, framed.source_size, framed.points), (pair.target, framed.target_size, framed.truth))
    for side, (path, size, places) in enumerate(sides):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if protocol.canvas is not None:
            image = model_input(image, protocol, protocol.canvas, 1)
        scale = min(_HEIGHT / size[0], (row.width - _GAP) / 2 / size[1])
        image = image.resize((max(1, round(size[1] * scale)), max(1, round(size[0] * scale))))
        row.paste(image, (left, _LABEL))
        for k, place in enumerate(places):
            colour = _GREEN if right[k] else _RED
            at = _spot(place, scale, left)
            if side == 1 and (found.predicted[k] >= 0).all():
                hit = _spot(found.predicted[k], scale, left)
                pen.line([at, hit], fill=colour, width=1)
                pen.ellipse([hit[0] - 2, hit[1] - 2, hit[0] + 2, hit[1] + 2], fill=colour)
            pen.ellipse([at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4], outline=colour, width=2)
        left += image.width + _GAP
    return row


def _spot(place: Sequence[float] | np.ndarray, scale: float, left: int) -> tuple[float, float]:
    return (float(place[0]) + 0.5) * scale + left, (float(place[1]) + 0.5) * scale + _LABEL
