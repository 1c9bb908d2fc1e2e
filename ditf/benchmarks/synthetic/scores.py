"""Hits of one method over many pairs, and what resampling the pairs says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pck import distances

__all__ = ["ALPHAS", "Score", "interval"]

ALPHAS = (0.1, 0.05)


class Score:
    """Hits of one method, pair by pair, so that intervals can be had by resampling pairs."""

    def __init__(self) -> None:
        self.hits: list[list[int]] = []  # pair -> hits per alpha
        self.counts: list[int] = []
        self.errors: list[Tensor] = []  # pair -> distance / length

    def add(self, predicted: Tensor, truth: Tensor, length: float) -> None:
        relative = distances(predicted, truth) / length
        self.hits.append([int((relative <= alpha).sum()) for alpha in ALPHAS])
        self.counts.append(len(truth))
        self.errors.append(relative)

    def samples(self, draws: int = 2000) -> np.ndarray:
        """(1 + draws, alphas) PCK in percent: of all pairs, then of resampled ones, the same draws for every method."""
        n = len(self.counts)
        picks = np.random.default_rng(0).integers(0, n, (draws, n))
        rows = np.concatenate([np.arange(n)[None], picks])
        counts = np.array(self.counts)[rows].sum(1)
        return 100 * np.array(self.hits)[rows].sum(1) / np.maximum(counts, 1)[:, None]

    def row(self) -> dict[str, Any]:
        found = {f"pck@{alpha:g}": interval(self.samples()[:, i]) for i, alpha in enumerate(ALPHAS)}
        return {**found, "median error": round(float(torch.cat(self.errors).median()), 4)}


def interval(samples: np.ndarray) -> list[float]:
    """[value, lower, upper] of a value and its bootstrap draws."""
    low, high = np.percentile(samples[1:], [2.5, 97.5])
    return [round(float(v), 1) for v in (samples[0], low, high)]
