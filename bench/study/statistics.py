"""Intervals: bootstrap over pairs, and slopes of curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
Interval = tuple[float, float, float]
"""Value, lower and upper end of the 95% interval."""


def pck_samples(hits: Sequence[int] | np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(1 + DRAWS,) PCK in percent: of all pairs, then of resampled ones; equal draws for an equal number of pairs.

    Args:
        hits, counts: right points and points of each pair.
    """
    rows = _draws(len(counts))
    return 100 * np.array(hits)[rows].sum(1) / np.maximum(np.array(counts)[rows].sum(1), 1)


def mean_samples(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(1 + DRAWS,) mean: of all values, then of resampled ones."""
    return np.array(values, np.float64)[_draws(len(values))].mean(1)


def slope_samples(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> np.ndarray:
    """(1 + DRAWS, 2) intercept and slope of the least-squares line: of all points, then of resampled ones.

    Draws in which all x are equal have no line; they are left out, and at least two distinct x are needed.
    """
    rows = _draws(len(x))
    xs, ys = np.array(x, np.float64)[rows], np.array(y, np.float64)[rows]
    away = xs - xs.mean(1, keepdims=True)
    spread = (away**2).sum(1)
    kept = spread > 1e-12
    slope = (away * ys).sum(1)[kept] / spread[kept]
    return np.stack([ys.mean(1)[kept] - slope * xs.mean(1)[kept], slope], axis=1)


def interval(samples: np.ndarray) -> Interval:
    """Of a value and its bootstrap draws."""
    low, high = np.percentile(samples[1:], [2.5, 97.5])
    return float(samples[0]), float(low), float(high)


def _draws(count: int) -> np.ndarray:
    """(1 + DRAWS, count) indices: each once, then with replacement."""
    picks = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    return np.concatenate([np.arange(count)[None], picks])
