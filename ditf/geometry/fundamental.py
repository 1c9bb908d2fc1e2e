"""The epipolar geometry of two views from matches, by OpenCV's robust estimators."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types import Matches
from .robust import (
    Method,
    Options,
    Points,
    checked_pair,
    correspondences,
    fit,
    fit_homography,
    on_a_line,
    projected,
    too_few,
)

__all__ = ["FundamentalMatrix", "estimate_fundamental"]


@dataclass(frozen=True, eq=False)
class FundamentalMatrix:
    """The epipolar geometry of two views: target^T F source = 0.

    Attributes:
        matrix: (3, 3) float64 of rank 2 and unit norm, or None when none could be determined.
        inliers: (K,) bool, which of the given matches lie within the threshold of it.
        reason: why there is no matrix; empty when there is one.
    """

    matrix: Tensor | None
    inliers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    reason: str = ""

    @property
    def found(self) -> bool:
        """There is a matrix."""
        return self.matrix is not None

    def residuals(self, source: Points, target: Points) -> Tensor:
        """(K,) float64 Sampson distance in pixels (Hartley and Zisserman, eq. 11.9).

        Raises:
            InputError: no matrix was found, or points that do not fit.
        """
        if self.matrix is None:
            raise InputError(f"fundamental matrix: none was found ({self.reason}); look at .found first")
        first, second = checked_pair(source, target)
        return torch.from_numpy(_sampson(self.matrix.numpy(), first, second))


def estimate_fundamental(
    matches: Matches | Points,
    target: Points | None = None,
    *,
    method: Method = "magsac",
    threshold: float = 1.0,
    confidence: float = 0.999,
    max_iterations: int = 10_000,
    seed: int = 0,
    cycle_tolerance: float | None = None,
) -> FundamentalMatrix:
    """The fundamental matrix that most matches agree with; arguments and choice of matches as
    :func:`estimate_homography`, the threshold being a Sampson distance.

    Returns:
        A matrix of rank 2; without one, and with the reason, for fewer than 8 usable or distinct matches (7 leave up to
        three solutions), for points on a line, and for matches that one homography explains but for at most one: a
        plane, or a camera that only turned, has no one epipolar geometry.

    Raises:
        InputError: as :func:`estimate_homography`.
    """
    options = Options(method, threshold, confidence, max_iterations, seed)
    source, goal, used = correspondences(matches, target, cycle_tolerance)
    inliers = torch.zeros(len(used), dtype=torch.bool)
    reason = too_few(source, goal, 8, "a fundamental matrix") or on_a_line(source, goal, threshold)
    if reason:
        return FundamentalMatrix(None, inliers, reason)
    matrix = fit(source, goal, "fundamental", options)
    if matrix is None:
        return FundamentalMatrix(None, inliers, "no eight matches agree on a fundamental matrix")
    matrix = _rank_two(matrix)
    close = _sampson(matrix, source, goal) <= threshold
    reason = too_few(source[close], goal[close], 8, "a fundamental matrix")
    if not reason and _is_planar(source[close], goal[close], options):
        reason = "one homography explains them too (a plane, or a camera that only turned)"
    if reason:
        return FundamentalMatrix(None, inliers, f"of the matches that agree: {reason}")
    inliers[used.nonzero()[:, 0][torch.from_numpy(close)]] = True
    return FundamentalMatrix(torch.from_numpy(matrix), inliers)


def _is_planar(source: np.ndarray, target: np.ndarray, options: Options) -> bool:
    wider = dataclasses.replace(options, threshold=2 * options.threshold)
    matrix = fit_homography(source, target, wider)
    if matrix is None:
        return False
    apart = np.linalg.norm(projected(matrix, source) - target, axis=1)
    return int((~(apart <= wider.threshold)).sum()) < 2


def _rank_two(matrix: np.ndarray) -> np.ndarray:
    """The nearest matrix of rank 2, of unit norm, its largest entry positive."""
    left, values, right = np.linalg.svd(matrix)
    matrix = (left[:, :2] * values[:2]) @ right[:2]
    matrix = matrix / np.linalg.norm(matrix)
    return matrix * np.sign(matrix.flat[np.abs(matrix).argmax()])


def _sampson(matrix: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K,) pixels."""
    first, second = (np.c_[points, np.ones(len(points))] for points in (source, target))
    lines, back = first @ matrix.T, second @ matrix
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs((second * lines).sum(1)) / np.sqrt((lines[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1))
