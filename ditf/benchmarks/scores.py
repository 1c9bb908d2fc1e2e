"""Percentage of correct keypoints over many pairs, in the five ways in which the literature averages it.

Tables mix them without saying so: 57.7 and 59.5 are the same run of DIFT on SPair-71k, averaged over categories and
pooled over points. All five are always reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import InputError

__all__ = ["AGGREGATES", "Arithmetic", "Operator", "aggregate", "pair_weights", "per_category", "within"]

Operator = Literal["<=", "<"]
Arithmetic = Literal["ratio", "alpha32", "float32"]

AGGREGATES = {
    "point_micro": "all correct points over all points",
    "point_macro": "mean over categories of their share of correct points",
    "image_micro": "mean over pairs of their share of correct points",
    "image_macro": "mean over categories of their mean over pairs",
    "point_pairweighted": "categories' share of correct points, weighted by their number of pairs",
}


def within(errors: np.ndarray, length: float, alpha: float, operator: Operator, arithmetic: Arithmetic) -> np.ndarray:
    """(K,) bool: which errors are within alpha times the reference length, by a published comparison.

    Args:
        errors: (K,) float64 pixels; infinite where nothing was found.
        length: pixels.
        operator: whether an error of exactly the threshold is right.
        arithmetic: "ratio": error / length against alpha in float64 (DIFT, DiTF). "alpha32": error in float32 against
            alpha in float32 times length in float64 (GeoAware-SC, sd-dino on SPair-71k and AP-10K): at equality 0.1
            and 0.05 pass even under "<", 0.01 fails. "float32": all in float32 (PF-PASCAL in the same code, NCNet).
    """
    if arithmetic == "ratio":
        left, right = errors / length, np.float64(alpha)
    elif arithmetic == "alpha32":
        left, right = errors.astype(np.float32).astype(np.float64), np.float64(np.float32(alpha)) * length
    elif arithmetic == "float32":
        left, right = errors.astype(np.float32), np.float32(alpha) * np.float32(length)
    else:
        raise InputError.of("arithmetic", arithmetic, '"ratio", "alpha32" or "float32"')
    return left <= right if operator == "<=" else left < right


def aggregate(categories: Sequence[str], hits: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """The five averages, in percent.

    Args:
        categories: P names, one per pair.
        hits, counts: (P,) correct points and points of each pair; every pair has at least one.

    Raises:
        InputError: no pairs, or a pair without points.
    """
    hits, counts = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
    if not len(counts) or counts.min() < 1:
        raise InputError.of("counts", counts.tolist()[:3], "at least one pair, every pair with at least one point")
    rows = per_category(categories, hits, counts)
    pairs = np.array([row["pairs"] for row in rows.values()], np.float64)
    points = np.array([row["point"] for row in rows.values()])
    images = np.array([row["image"] for row in rows.values()])
    return {
        "point_micro": float(100 * hits.sum() / counts.sum()),
        "point_macro": float(points.mean()),
        "image_micro": float(100 * (hits / counts).mean()),
        "image_macro": float(images.mean()),
        "point_pairweighted": float((pairs * points).sum() / pairs.sum()),
    }


def pair_weights(categories: Sequence[str], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every average as weights (P,) of the pairs' correct points: ``100 * weights @ hits``, for many hits at once."""
    counts = np.asarray(counts, np.float64)
    names, index = np.unique(np.asarray(categories), return_inverse=True)
    pairs = np.bincount(index, minlength=len(names)).astype(np.float64)[index]  # of the pair's category
    points = np.bincount(index, weights=counts, minlength=len(names))[index]
    return {
        "point_micro": np.ones_like(counts) / counts.sum(),
        "point_macro": 1 / (points * len(names)),
        "image_micro": 1 / (counts * len(counts)),
        "image_macro": 1 / (counts * pairs * len(names)),
        "point_pairweighted": pairs / (points * len(counts)),
    }


def per_category(categories: Sequence[str], hits: np.ndarray, counts: np.ndarray) -> dict[str, dict[str, float]]:
    """Category -> pairs, points, share of correct points ("point") and mean over pairs ("image"), in percent."""
    hits, counts, names = np.asarray(hits, np.float64), np.asarray(counts, np.float64), np.asarray(categories)
    rows = {}
    for name in sorted(set(categories)):
        here = names == name
        rows[name] = {
            "pairs": int(here.sum()),
            "points": int(counts[here].sum()),
            "point": float(100 * hits[here].sum() / counts[here].sum()),
            "image": float(100 * (hits[here] / counts[here]).mean()),
        }
    return rows
