"""Verdicts and the words for them; what is between the numbers and the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .statistics import Interval, interval, pck_samples

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not measured"
FEWEST = 12
"""Clusters of pairs, or points of a curve; fewer make intervals that are too narrow."""

Numbers = Sequence[int] | np.ndarray
Results = Mapping[str, Mapping[str, Any]]
"""part -> its result file; parts that were not measured are not there."""


@dataclass(frozen=True)
class Claim:
    """One statement and its fate.

    Attributes:
        published: what the paper or its authors print, with the source.
        rule: when it holds.
        numbers: what was found, in sentences; or a Markdown list, from its first line break on.
    """

    title: str
    published: str
    rule: str
    verdict: str
    numbers: str


def verdict_of(found: Interval) -> str:
    """Whether a difference that ought to be positive is."""
    _, low, high = found
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def interval_of(values: Sequence[float | None]) -> Interval:
    """As a file has it: bounds are missing where there were too few pairs for them."""
    value, low, high = values
    return float(value or 0.0), -math.inf if low is None else low, math.inf if high is None else high


def points(found: Interval, unit: str = "points") -> str:
    """ "+1.0 points (+0.2 to +1.8)"."""
    value, low, high = found
    bounds = f"{low:+.1f} to {high:+.1f}" if math.isfinite(low) else "no interval"
    return f"{value:+.1f} {unit} ({bounds})"


def difference(hits: Numbers, other: Numbers, counts: Numbers) -> Interval:
    """Of two methods' PCK on the same pairs, in points."""
    return interval(pck_samples(hits, counts) - pck_samples(other, counts))


def too_few(clusters: int) -> str:
    return "" if clusters >= FEWEST else f"{clusters} clusters of pairs are too few for an interval; expected {FEWEST}."


def nearest_timestep(task: Mapping[str, Any]) -> float:
    """The grid's timestep nearest to that of the setting."""
    return min(task["timesteps"], key=lambda timestep: abs(timestep - task["setting"]["timestep"]))
