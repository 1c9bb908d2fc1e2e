"""Curves over training: the slope of accuracy, what more images would buy by it, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .runs import COLUMNS, differing
from .statistics import Interval, interval, mean_samples, slope_samples

Curve = Mapping[str, list[Any]]

PLATEAU = 10.0
"""The ratio from which a channel may count as massive."""
DOUBLINGS = 3
"""The slope is that of the last doublings of the number of images."""
_FEWEST = 4
_TIMES = (2, 4, 10)


def joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Runs that took up each other's checkpoints as one curve, by number of images."""
    rows = [row for run in runs for row in zip(*(run["curve"][name] for name in COLUMNS), strict=True)]
    rows.sort(key=lambda row: row[COLUMNS.index("images")])
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def fit(curve: Curve, column: str = "adaln") -> tuple[list[float], np.ndarray] | None:
    """Number of images of the points that the line is put through, and (1 + draws, 2) intercepts and slopes over log2.

    None where there are too few points in the last doublings.
    """
    points = [
        (images, value)
        for images, value in zip(curve["images"], curve[column], strict=True)
        if images and value is not None
    ]
    if not points:
        return None
    start = points[-1][0] / 2**DOUBLINGS
    late = [(images, value) for images, value in points if images >= start]
    if len(late) < _FEWEST or late[0][0] == late[-1][0]:
        return None
    samples = slope_samples([math.log2(images) for images, _ in late], [value for _, value in late])
    return [images for images, _ in late], samples


def outlook(curve: Curve) -> str:
    """The slope in words, and what more images would buy by it, named as the extrapolation it is."""
    found = fit(curve)
    if found is None:
        return f"Too few points in the last {DOUBLINGS} doublings of the number of images for a slope."
    images, samples = found
    value, low, high = interval(samples[:, 1])
    text = (
        f"AdaLN's PCK@0.1 changes by {value:+.1f} points per doubling of the images ({low:+.1f} to {high:+.1f}; "
        f"least squares over {len(images)} points from {images[0]:,.0f} to {images[-1]:,.0f} images, interval by "
        "resampling points, which are not independent)."
    )
    if low <= 0:
        return text + " The interval does not exclude 0: by this curve more images of the same kind buy nothing sure."
    at_end = samples[:, 0] + samples[:, 1] * math.log2(images[-1])
    steps = []
    for times in _TIMES:
        reached, lower, upper = interval(at_end + samples[:, 1] * math.log2(times))
        steps.append(f"{times} times the images {min(reached, 100):.0f}% ({lower:.0f} to {min(upper, 100):.0f})")
    return (
        f"{text} **Extrapolated** along that line, which is no measurement and takes no account of the curve bending: "
        f"{at_end[0]:.0f}% at the end of the line, {'; '.join(steps)}."
    )


def variant_rows(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rows of the table: run, what differs, images, when its channel becomes massive, ratio, PCK, gain."""
    names = differing(runs)
    for run in runs:
        curve = run["curve"]
        told = [f"{name} {run['settings'].get(name, '-')}" for name in names]
        first = first_massive(curve)
        late = _late(curve)
        gains = [curve["adaln"][i] - curve["raw"][i] for i in late]
        yield [
            run["name"],
            ", ".join(told) or "nothing that its folder tells",
            f"{curve['images'][-1]:,.0f}",
            "never" if first is None else f"{first:,.0f}",
            "-" if curve["ratio"][-1] is None else f"{curve['ratio'][-1]:.1f}",
            *(_mean(curve[name][i] for i in late) for name in ("raw", "adaln")),
            _told(gain_of(gains)) if gains else "-",
        ]


def first_massive(curve: Curve) -> float | None:
    """Images after which the leading channel's ratio is and stays at the plateau."""
    reached = None
    for images, ratio in zip(curve["images"], curve["ratio"], strict=True):
        if ratio is None:
            continue
        if ratio < PLATEAU:
            reached = None
        elif reached is None:
            reached = images
    return reached


def gain_of(gains: Sequence[float]) -> Interval:
    """Mean over points of a curve."""
    return interval(mean_samples(gains)) if len(gains) > 1 else (gains[0], -math.inf, math.inf)


def _late(curve: Curve) -> list[int]:
    """Points of the last third that have both accuracies."""
    known = [i for i in range(len(curve["images"])) if curve["raw"][i] is not None and curve["adaln"][i] is not None]
    return known[-max(1, len(known) // 3) :] if known else []


def _mean(values: Iterator[float]) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.1f}" if found else "-"


def _told(found: Interval) -> str:
    value, low, high = found
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if math.isfinite(low) else f"{value:+.1f} (one point)"
