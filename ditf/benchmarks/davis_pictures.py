"""The objects that went best and worst through their videos, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .davis import Frame, Video, VideoSet, read_mask
from .davis_runner import ObjectScore, VideoEvaluation, folder_name
from .sheets import GAP, GREEN, INK, LABEL, RED, WIDTH, extremes, labelled, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["draw_objects", "shown_frames"]

_COLUMNS = 4  # the first frame, and three of the others
_MISSED = (60, 110, 235)
_STRENGTH = 0.55  # of a colour over the frame


def draw_objects(evaluation: VideoEvaluation, videos: VideoSet, masks: Path, method: str, *, count: int = 3) -> Image:
    """The ``count`` objects with the lowest J&F above the ``count`` with the highest.

    On the left the first frame with the mask that was given; beside it three frames with the true mask above and the
    prediction beneath: green where both are, red where only the prediction is, blue where only the truth is.

    Args:
        masks: the folder that predictions were written to.
    """
    by_name = {video.name: video for video in videos.videos}
    worst, best = extremes(
        evaluation.scores[method],
        lambda one: (one.j + one.f, one.sequence, one.object),
        lambda one: (-one.j - one.f, one.sequence, one.object),
        count,
    )
    root = masks / folder_name(method)
    return stacked([_block(one, by_name[one.sequence], root / one.sequence) for one in (*worst, *best)])


def shown_frames(count: int) -> list[int]:
    """Which of ``count`` frames are shown: of those that count, the first, the middle and the last, each once."""
    return sorted({1, count // 2, count - 2})


def _block(one: ObjectScore, video: Video, predictions: Path) -> Image:
    width = (WIDTH - 2 * GAP - (_COLUMNS - 1) * GAP) // _COLUMNS
    height = max(1, round(video.size[0] * width / video.size[1]))
    text = f"{one.sequence}, object {one.object}: J {100 * one.j:.1f}, F {100 * one.f:.1f}; {len(video.frames)} frames"
    row = labelled(text, 2 * height + GAP)
    first = video.frames[0]
    _paste(row, first, _truth(first, one.object), None, 0, LABEL, (width, height), "given")
    for column, index in enumerate(shown_frames(len(video.frames)), 1):
        frame, left = video.frames[index], column * (width + GAP)
        truth = _truth(frame, one.object)
        found = read_mask(predictions / f"{frame.name}.png") == one.object
        _paste(row, frame, truth, None, left, LABEL, (width, height), f"{frame.name} truth")
        below = LABEL + height + GAP
        _paste(row, frame, truth, found, left, below, (width, height), f"{frame.name} found")
    return row


def _truth(frame: Frame, number: int) -> np.ndarray:
    return read_mask(frame.annotation) == number


def _paste(
    row: Image, frame: Frame, truth: np.ndarray, found: np.ndarray | None, left: int, top: int,
    size: tuple[int, int], text: str,
) -> None:  # fmt: skip
    """The frame in grey with masks (H, W) in colour, and a word in its corner."""
    from PIL import Image, ImageDraw, ImageFont

    with Image.open(frame.image) as opened:
        pixels = np.asarray(opened.convert("L").convert("RGB"), np.float32)
    colours = [(truth, GREEN)]
    if found is not None:
        colours = [(truth & found, GREEN), (found & ~truth, RED), (truth & ~found, _MISSED)]
    painted = pixels.copy()
    for where, colour in colours:
        painted[where] = (1 - _STRENGTH) * pixels[where] + _STRENGTH * np.array(colour, np.float32)
    panel = Image.fromarray(painted.round().astype(np.uint8)).resize(size)
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default()
    pen.rectangle(pen.textbbox((3, 1), text, font=font), fill="white")
    pen.text((3, 1), text, fill=INK, font=font)
    row.paste(panel, (left, top))
