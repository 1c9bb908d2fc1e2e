"""What the estimators share: which matches take part, OpenCV's call, and what leaves a model undetermined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types import DenseMatches, Matches, checked_points
from .keypoints import opencv

__all__ = [
    "Method",
    "Options",
    "Points",
    "checked_pair",
    "correspondences",
    "fit",
    "fit_homography",
    "on_a_line",
    "projected",
    "shift",
    "too_few",
]

Method = Literal["magsac", "ransac", "lmeds"]
Points = Any  # (K, 2) numbers

_CYCLE_SHARE = 0.05  # of the source's longer side: what draw_matches calls leading back
_THIN = 0.005  # points this many times narrower than long lie on a line


@dataclass(frozen=True)
class Options:
    """How OpenCV samples.

    Raises:
        InputError: an option outside its domain.
    """

    method: Method
    threshold: float
    confidence: float
    max_iterations: int
    seed: int

    def __post_init__(self) -> None:
        if self.method not in ("magsac", "ransac", "lmeds"):
            raise InputError.of("method", self.method, '"magsac", "ransac" or "lmeds"')
        if not (isinstance(self.threshold, int | float) and 0 < self.threshold < math.inf):
            raise InputError.of("threshold", self.threshold, "a number of pixels above 0")
        if not (isinstance(self.confidence, float) and 0 < self.confidence < 1):
            raise InputError.of("confidence", self.confidence, "a probability between 0 and 1")
        if not isinstance(self.max_iterations, int) or self.max_iterations < 1:
            raise InputError.of("max_iterations", self.max_iterations, "an integer of at least 1")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise InputError.of("seed", self.seed, "an integer in 0..2^31 - 1")


def correspondences(matches: Any, target: Any, cycle_tolerance: float | None) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Source and target (U, 2) float64 of the usable matches, and which of the K they are."""
    if cycle_tolerance is not None and not cycle_tolerance >= 0:
        raise InputError.of("cycle_tolerance", cycle_tolerance, "a number of pixels of at least 0, or None")
    if isinstance(matches, DenseMatches):
        raise InputError("matches: got DenseMatches, expected Matches; give dense.matches(), the mutual ones as points")
    if not isinstance(matches, Matches):
        if target is None:
            raise InputError.of("target", None, "target points (K, 2), or Matches in place of the source points")
        source, goal = checked_pair(matches, target)
        return source, goal, torch.ones(len(source), dtype=torch.bool)
    if target is not None:
        raise InputError("target: got points beside Matches, which hold their own; give one of the two")
    source, goal, score = (t.detach().cpu() for t in (matches.source, matches.target, matches.score))
    used = torch.isfinite(goal).all(1) & (goal >= 0).all(1) & torch.isfinite(score) & torch.isfinite(source).all(1)
    if matches.cycle_error is not None:
        size = matches.source_size
        tolerance = cycle_tolerance
        if tolerance is None:
            tolerance = math.inf if size is None else _CYCLE_SHARE * max(size)
        used &= matches.cycle_error.detach().cpu() <= tolerance  # NaN compares False
    return source[used].double().numpy(), goal[used].double().numpy(), used


def checked_pair(source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as (K, 2) float64 of finite numbers.

    Raises:
        InputError: another shape, a number that is not finite, different counts.
    """
    first, second = (_checked_float64(name, points) for name, points in (("source", source), ("target", target)))
    if first.shape != second.shape:
        raise InputError.of("target", f"{len(second)} points", f"{len(first)}, one for each source point")
    return first, second


def _checked_float64(name: str, points: Any) -> np.ndarray:
    checked_points(name, points, None)  # shape and finiteness
    values = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    return np.asarray(values, np.float64).reshape(-1, 2)


def fit_homography(source: np.ndarray, target: np.ndarray, how: Options) -> np.ndarray | None:
    """(3, 3) float64 or None.

    OpenCV's MAGSAC refuses maps that mirror the picture; where its answer leaves most matches out, the target is
    mirrored and the better of the two is taken.
    """
    matrix = fit(source, target, "homography", how)
    count = 0 if matrix is None else _close(matrix, source, target, how.threshold)
    if how.method != "magsac" or 2 * count >= len(source):
        return matrix
    mirrored = fit(source, target * [-1, 1], "homography", how)
    if mirrored is None:
        return matrix
    mirrored = np.diag([-1.0, 1.0, 1.0]) @ mirrored
    return mirrored if _close(mirrored, source, target, how.threshold) > count else matrix


def fit(
    source: np.ndarray,
    target: np.ndarray,
    model: Literal["homography", "fundamental"],
    how: Options,
) -> np.ndarray | None:
    """(3, 3) float64 or None. OpenCV computes in float32, so both sides are moved to their centres first."""
    cv2 = opencv(f"estimate_{model}")
    move, back = source.mean(0), target.mean(0)
    pair = source - move, target - back
    if how.method == "magsac":
        options = cv2.UsacParams()
        options.score, options.loMethod = cv2.SCORE_METHOD_MAGSAC, cv2.LOCAL_OPTIM_SIGMA
        options.final_polisher = cv2.MAGSAC
        options.threshold, options.confidence = float(how.threshold), how.confidence
        options.maxIterations = how.max_iterations
        options.randomGeneratorState, options.isParallel = how.seed, False
        find = cv2.findHomography if model == "homography" else cv2.findFundamentalMat
        matrix, _ = find(*pair, options)
    elif model == "homography":
        flag = cv2.RANSAC if how.method == "ransac" else cv2.LMEDS
        limits = {"maxIters": how.max_iterations, "confidence": how.confidence}
        matrix, _ = cv2.findHomography(*pair, flag, how.threshold, **limits)
    else:
        flag = cv2.FM_RANSAC if how.method == "ransac" else cv2.FM_LMEDS
        matrix, _ = cv2.findFundamentalMat(*pair, flag, how.threshold, how.confidence, how.max_iterations)
    if matrix is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return None
    before, after = shift(*-move).numpy(), shift(*back).numpy()
    if model == "homography":
        return after @ matrix @ before
    return np.linalg.inv(after).T @ matrix @ before


def too_few(source: np.ndarray, target: np.ndarray, least: int, what: str) -> str:
    """What is missing, if fewer than ``least`` matches or distinct points are left; else empty."""
    if len(source) < least:
        return f"{len(source)} usable matches; {what} needs {least}"
    for name, points in (("source", source), ("target", target)):
        if (distinct := len(np.unique(points, axis=0))) < least:
            return f"{distinct} distinct {name} points; {what} needs {least}"
    return ""


def on_a_line(source: np.ndarray, target: np.ndarray, threshold: float) -> str:
    """What is degenerate, if all points of a side but at most one lie on a line, up to the noise the threshold allows.

    The scatter without point i is S - n / (n - 1) p_i p_i^T, p being centred.
    """
    for name, points in (("source", source), ("target", target)):
        points = np.unique(points, axis=0)
        n, centred = len(points), points - points.mean(0)
        outer = centred[:, :, None] * centred[:, None, :]  # (n, 2, 2)
        scatter = (outer.sum(0) - n / (n - 1) * outer) / (n - 1)
        minor, major = np.sqrt(np.clip(np.linalg.eigvalsh(scatter), 0.0, None)).T  # (n,) each, pixels
        if (minor <= np.minimum(threshold / 2, _THIN * major)).any():
            return f"the {name} points lie on a line, all or all but one"
    return ""


def projected(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(K, 2) points under a homography; infinite or NaN on the line that goes to infinity."""
    mapped = np.c_[points, np.ones(len(points))] @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return mapped[:, :2] / mapped[:, 2:]


def shift(x: float, y: float) -> Tensor:
    """(3, 3) float64: the map that moves points by (x, y)."""
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _close(matrix: np.ndarray, source: np.ndarray, target: np.ndarray, threshold: float) -> int:
    return int((np.linalg.norm(projected(matrix, source) - target, axis=1) <= threshold).sum())
