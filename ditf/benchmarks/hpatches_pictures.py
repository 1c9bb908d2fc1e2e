"""The pairs of planes that went best and worst, as one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.robust import projected
from .sheets import GAP, GREEN, LABEL, RED, extremes, labelled, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

    from .hpatches import Sequence, SequenceSet
    from .hpatches_runner import PairScore, PlaneEvaluation

__all__ = ["draw_planes"]

_HEIGHT = 300  # of one image
_TRUTH = (250, 250, 250)
_FAR = 1e5  # pixels; beyond, nothing of the frame would be seen


def draw_planes(evaluation: PlaneEvaluation, planes: SequenceSet, method: str, *, count: int = 3) -> Image:
    """The ``count`` pairs with the largest corner errors above the ``count`` with the smallest.

    Image 1 on the left, the other on the right; up to 60 of the matches, evenly taken, green if within the middle
    threshold of the truth, red if not. On the right the frame of image 1 as the truth maps it, white, and as the
    estimated homography does, in the colour of its own corner error.
    """
    sequences = {one.name: one for one in planes.sequences}
    worst, best = extremes(
        evaluation.scores[method],
        lambda one: (-one.error, -one.matches, one.sequence, one.number),
        lambda one: (one.error, -one.matches, one.sequence, one.number),
        count,
    )
    within = evaluation.protocol.alphas[len(evaluation.protocol.alphas) // 2]
    return stacked([_row(one, sequences[one.sequence], within) for one in (*worst, *best)])


def _row(one: PairScore, sequence: Sequence, within: float) -> Image:
    from PIL import Image, ImageDraw

    error = f"corners off by {one.error:.2f} px" if math.isfinite(one.error) else f"no homography: {one.reason}"
    text = f"{one.sequence} 1-{one.number}: {error}; {one.matches} matches, {_right(one):.0f} % within 3 px"
    row = labelled(text, _HEIGHT)
    truth, pen = sequence.homographies[one.number], ImageDraw.Draw(row)
    left, places, first = 0, [], (0, 0)
    for number in (1, one.number):
        with Image.open(sequence.images[number]) as opened:
            image = opened.convert("RGB")
        scale = min(_HEIGHT / image.height, (row.width - GAP) / 2 / image.width)
        panel = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        if number == 1:
            first = image.size
        else:
            _frame(panel, truth, first, scale, _TRUTH, 3)
            if one.homography is not None:
                colour = GREEN if one.error <= within else RED
                _frame(panel, np.array(one.homography).reshape(3, 3), first, scale, colour, 1)
        row.paste(panel, (left, LABEL))
        places.append((scale, left))
        left += panel.width + GAP
    if one.sample:
        matches = np.array(one.sample)  # (M, 4)
        apart = np.linalg.norm(projected(truth, matches[:, :2]) - matches[:, 2:], axis=1)
        for k in np.argsort(-apart, kind="stable"):  # right ones on top
            ends = [_spot(matches[k, 2 * side : 2 * side + 2], *places[side]) for side in (0, 1)]
            colour = GREEN if apart[k] <= within else RED
            pen.line(ends, fill=colour, width=1)
            for x, y in ends:
                pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
    return row


def _right(one: PairScore) -> float:
    """Percent of the matches within 3 pixels."""
    return 100 * float(one.accuracy[2])


def _frame(
    panel: Image, matrix: np.ndarray, size: tuple[int, int], scale: float, colour: tuple[int, int, int], width: int
) -> None:  # fmt: skip
    """Where an image of ``size`` (W, H) comes to lie under a homography; nothing if a part of it goes to infinity."""
    from PIL import ImageDraw

    x, y = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [x, 0], [x, y], [0, y], [0, 0]], np.float64)
    depth = corners @ matrix[2, :2] + matrix[2, 2]
    ends = (projected(matrix, corners) + 0.5) * scale
    if depth.min() * depth.max() > 0 and np.abs(ends).max() < _FAR:
        ImageDraw.Draw(panel).line([(float(a), float(b)) for a, b in ends], fill=colour, width=width, joint="curve")


def _spot(place: np.ndarray, scale: float, left: int) -> tuple[float, float]:
    return (float(place[0]) + 0.5) * scale + left, (float(place[1]) + 0.5) * scale + LABEL
