"""The pairs that went best and worst, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .results import hits_of
from .sheets import GAP, GREEN, LABEL, RED, extremes, labelled, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

    from .protocols import Framed
    from .runner import Evaluation, Found

__all__ = ["draw_extremes"]

_HEIGHT = 220  # of one image


def draw_extremes(evaluation: Evaluation, method: str, *, count: int = 3) -> Image:
    """The ``count`` worst pairs above the ``count`` best, of those with the most points among equals.

    Source on the left, target on the right; a ring is the truth, a dot the prediction: green if right at the first
    alpha, red if not, with a line between the two.
    """
    protocol, pairs = evaluation.protocol, evaluation.pairs
    hits = hits_of(evaluation.found[method], pairs, protocol, protocol.alphas[0])
    points = np.array([len(one.truth) for one in pairs])
    share = hits / points
    worst, best = extremes(
        range(len(points)),
        lambda i: (share[i], -points[i], pairs[i].pair.name),
        lambda i: (-share[i], -points[i], pairs[i].pair.name),
        count,
    )
    return stacked([_row(pairs[i], evaluation.found[method][i], evaluation, int(hits[i])) for i in (*worst, *best)])


def _row(framed: Framed, found: Found, evaluation: Evaluation, hits: int) -> Image:
    from PIL import Image, ImageDraw

    from .protocols import model_input
    from .scores import within

    protocol, pair = evaluation.protocol, framed.pair
    label = f"{pair.category}: {hits} of {len(framed.truth)} right at {protocol.alphas[0]:g}   {pair.name}"
    row = labelled(label, _HEIGHT)
    pen = ImageDraw.Draw(row)
    right = within(found.errors, framed.length, protocol.alphas[0], protocol.operator, protocol.arithmetic)
    left = 0
    sides = ((pair.source, framed.source_size, framed.points), (pair.target, framed.target_size, framed.truth))
    for side, (path, size, places) in enumerate(sides):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if protocol.canvas is not None:
            image = model_input(image, protocol, protocol.canvas, 1)
        scale = min(_HEIGHT / size[0], (row.width - GAP) / 2 / size[1])
        image = image.resize((max(1, round(size[1] * scale)), max(1, round(size[0] * scale))))
        row.paste(image, (left, LABEL))
        for k, place in enumerate(places):
            colour = GREEN if right[k] else RED
            at = _spot(place, scale, left)
            if side == 1 and (found.predicted[k] >= 0).all():
                hit = _spot(found.predicted[k], scale, left)
                pen.line([at, hit], fill=colour, width=1)
                pen.ellipse([hit[0] - 2, hit[1] - 2, hit[0] + 2, hit[1] + 2], fill=colour)
            pen.ellipse([at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4], outline=colour, width=2)
        left += image.width + GAP
    return row


def _spot(place: Sequence[float] | np.ndarray, scale: float, left: int) -> tuple[float, float]:
    return (float(place[0]) + 0.5) * scale + left, (float(place[1]) + 0.5) * scale + LABEL
