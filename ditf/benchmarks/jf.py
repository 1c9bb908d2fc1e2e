"""J and F of video object segmentation: overlap of regions and of boundaries (DAVIS 2017, arXiv 1704.00675)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

__all__ = ["VideoScore", "boundary_f", "jaccard", "score_video"]

_BOUND = 0.008  # of the image's diagonal: how far apart boundaries may lie and still agree
_VOID = 255


@dataclass(frozen=True, eq=False)
class VideoScore:
    """J and F of every object in every frame that counts, in 0..1.

    Attributes:
        j, f: (objects, frames) float64.
    """

    j: np.ndarray
    f: np.ndarray

    @property
    def j_and_f(self) -> float:
        """The mean of J and F over objects and frames."""
        return float((self.j.mean() + self.f.mean()) / 2)

    def recall(self, threshold: float = 0.5) -> tuple[float, float]:
        """The share of frames above the threshold, a mean over objects, of J and of F."""
        return float((self.j > threshold).mean()), float((self.f > threshold).mean())

    def decay(self) -> tuple[float, float]:
        """Mean over the first quarter of the frames less that over the last, a mean over objects, of J and of F.

        The quarters share their border frames as in the official evaluation, whose borders are 8-bit and wrap in
        videos of more than 255 frames; these do not.
        """
        count = self.j.shape[1]
        edges = np.round(np.linspace(1, count, 5) + 1e-10).astype(int) - 1
        first, last = slice(edges[0], edges[1] + 1), slice(edges[3], edges[4] + 1)
        j, f = (float((v[:, first].mean(1) - v[:, last].mean(1)).mean()) for v in (self.j, self.f))
        return j, f


def score_video(predicted: np.ndarray, truth: np.ndarray) -> VideoScore:
    """J and F of the semi-supervised task: the first frame is given and the last does not count, by convention.

    Args:
        predicted, truth: (T, H, W) object ids, 0 the background, T at least 3; 255 in ``truth`` is void and counts as
            background.

    Returns:
        Scores of objects 1 to the highest id of the first true mask; an id in between that is nowhere scores 1.

    Raises:
        InputError: shapes that differ, too few frames, no object, or a predicted id that the first mask does not have.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or truth.ndim != 3:
        raise InputError.of("predicted", predicted.shape, f"the shape of truth, {truth.shape}: (T, H, W)")
    if len(truth) < 3:
        raise InputError.of("truth", f"{len(truth)} frames", "at least 3: the first and the last do not count")
    truth = np.where(truth == _VOID, 0, truth)
    count = int(truth[0].max())
    if count < 1:
        raise InputError.of("truth", "no object in the first mask", "ids from 1 on")
    if predicted.max() > count:
        raise InputError.of("predicted", f"id {int(predicted.max())}", f"ids in 0..{count}, as in the first true mask")
    pairs = [[(p == i, t == i) for p, t in zip(predicted[1:-1], truth[1:-1], strict=True)] for i in range(1, count + 1)]
    j = np.array([[jaccard(p, t) for p, t in frames] for frames in pairs])
    f = np.array([[boundary_f(p, t) for p, t in frames] for frames in pairs])
    return VideoScore(j, f)


def jaccard(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J of two (H, W) bool masks: intersection over union; 1 where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def boundary_f(predicted: np.ndarray, truth: np.ndarray) -> float:
    """F of two (H, W) bool masks: the F-measure of boundary pixels within 0.8% of the diagonal of one another.

    1 where neither has a boundary, 0 where only one has; a mask that covers everything has none.
    """
    radius = math.ceil(_BOUND * math.hypot(*truth.shape))
    ours, theirs = _boundary(predicted), _boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & _dilated(theirs, radius)).sum() / ours.sum()
    recall = (theirs & _dilated(ours, radius)).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right, below, or right below; beyond the border nothing differs."""
    after = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != after[:-1, 1:]) | (mask != after[1:, :-1]) | (mask != after[1:, 1:])


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """True within a disk, dy^2 + dx^2 <= radius^2, of a True pixel: row by row of the disk, by running sums."""
    height, width = mask.shape
    out = np.zeros((height + 2 * radius, width), dtype=bool)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius * radius - dy * dy)
        sums = np.cumsum(np.pad(mask, ((0, 0), (reach + 1, reach))), axis=1)
        out[radius + dy : radius + dy + height] |= sums[:, 2 * reach + 1 :] > sums[:, : -2 * reach - 1]
    return out[radius : radius + height]
