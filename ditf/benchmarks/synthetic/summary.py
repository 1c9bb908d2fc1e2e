"""From errors of single points to averages, and how sure they are: a bootstrap over clusters of pairs.

Pairs that share pictures are a cluster. Clusters are drawn within their category, all rows of the table over the same
draws, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compare import bootstrap
from ..scores import AGGREGATES, aggregate

__all__ = ["ALPHAS", "DRAWS", "HEADLINE", "PairRecord", "best_of", "clip_values", "comparisons", "pair_values"]

ALPHAS = (0.1, 0.05)
DRAWS = 2000
HEADLINE = "point_micro"
"""The average that names the best of several patches."""

_SEED = 0


@dataclass(frozen=True, eq=False)
class PairRecord:
    """What was found in one pair.

    Attributes:
        name: of the pair.
        category, cluster: see :class:`ditf.benchmarks.synthetic.sets.Group`.
        source, target: names of the pictures.
        length: reference length in pixels.
        errors: row -> (K,) float64 distance / length, infinite where nothing was found.
    """

    name: str
    category: str
    cluster: str
    source: str
    target: str
    length: float
    errors: Mapping[str, np.ndarray]

    @property
    def points(self) -> int:
        return len(next(iter(self.errors.values())))


def pair_values(
    records: Sequence[PairRecord], compared: Sequence[tuple[str, str]] | None = None, *, draws: int = DRAWS
) -> dict[str, Any]:
    """Rows and differences of a set, in percent, as plain JSON values.

    Args:
        records: of all pairs, with the same rows.
        compared: (one, other) for every difference, one minus other.

    Returns:
        "rows": row -> {"pck": {alpha: {average: [value, lower, upper]}}, "median_error"}; "differences":
        [{"first", "second", "pck": likewise}]. Bounds are 2.5 and 97.5 percentiles of the draws, None where no category
        has more than one cluster.
    """
    categories, clusters = [one.category for one in records], [one.cluster for one in records]
    counts = np.array([one.points for one in records])
    names = list(records[0].errors)
    cells = [(name, alpha) for name in names for alpha in ALPHAS]
    hits = [np.array([(one.errors[name] <= alpha).sum() for one in records]) for name, alpha in cells]
    drawn = dict(zip(cells, bootstrap(categories, clusters, hits, counts, draws), strict=True))
    whole = {cell: aggregate(categories, of, counts) for cell, of in zip(cells, hits, strict=True)}

    sure = len(set(zip(categories, clusters, strict=True))) > len(set(categories))

    def row(name: str) -> dict[str, Any]:
        pck = {
            f"{a:g}": {kind: _bounded(whole[name, a][kind], drawn[name, a][kind], sure) for kind in AGGREGATES}
            for a in ALPHAS
        }
        median = float(np.median(np.concatenate([one.errors[name] for one in records])))
        return {"pck": pck, "median_error": round(median, 4) if np.isfinite(median) else None}

    def difference(one: str, other: str) -> dict[str, Any]:
        pck = {
            f"{alpha:g}": {
                kind: _bounded(
                    whole[one, alpha][kind] - whole[other, alpha][kind],
                    drawn[one, alpha][kind] - drawn[other, alpha][kind],
                    sure,
                )
                for kind in AGGREGATES
            }
            for alpha in ALPHAS
        }
        return {"first": one, "second": other, "pck": pck}

    return {
        "rows": {name: row(name) for name in names},
        "differences": [difference(one, other) for one, other in compared or ()],
    }


def clip_values(
    rows: Mapping[str, Sequence[Mapping[str, float]]], compared: Sequence[tuple[str, str]] = (), *, draws: int = DRAWS
) -> dict[str, Any]:
    """Means over clips with bounds from drawing clips; a measure that a row lacks is None.

    Args:
        rows: row -> per clip, measure -> value.
    """
    clips = len(next(iter(rows.values())))
    picks = np.random.default_rng(_SEED).integers(0, clips, (draws, clips))
    measures = list(next(iter(rows.values()))[0])

    def values(name: str, measure: str) -> np.ndarray:
        return np.array([clip[measure] for clip in rows[name]], np.float64)

    def bounds(of: np.ndarray) -> list[float | None] | None:
        return None if np.isnan(of).any() else _bounded(float(of.mean()), of[picks].mean(1), clips > 1)

    return {
        "rows": {name: {m: bounds(values(name, m)) for m in measures} for name in rows},
        "differences": [
            {"first": one, "second": other, **{m: bounds(values(one, m) - values(other, m)) for m in measures}}
            for one, other in compared
        ],
    }


def comparisons(
    rows: Sequence[str], chosen: str, patches: str, *, discarded: str, random: str
) -> list[tuple[str, str]]:
    """The differences worth a line, among the rows that there are.

    Args:
        chosen: the row of the model's own preset.
        patches: the best row of pixel patches.
        discarded: the row of AdaLN after the discard.
        random: what stands before the rows of the random network.
    """
    wanted = [
        ("adaln", "raw"),
        ("adaln", "layernorm"),
        (discarded, "adaln"),
        (chosen, patches),
        (chosen, random + chosen),
        *((chosen, name) for name in rows if name.startswith("SIFT")),
    ]
    return [(one, other) for one, other in wanted if one in rows and other in rows and one != other]


def best_of(names: Sequence[str], records: Sequence[PairRecord]) -> str:
    """The row with the most points within 0.1 of the reference length."""
    return max(names, key=lambda name: sum(int((one.errors[name] <= ALPHAS[0]).sum()) for one in records))


def _bounded(value: float, drawn: np.ndarray, sure: bool) -> list[float | None]:
    """[value, lower, upper]; no bounds where there was nothing to draw from."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(value), 4), *(round(float(v), 4) if sure else None for v in (low, high))]
