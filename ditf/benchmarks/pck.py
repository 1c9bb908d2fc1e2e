"""Percentage of correct keypoints: the share of points that land within alpha times a reference length."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["distances", "pck"]


def distances(predicted: Tensor, truth: Tensor) -> Tensor:
    """(K,) float64 Euclidean distance in pixels between (K, 2) points; infinite where nothing was predicted.

    A prediction of (-1, -1) or NaN says that no pixel could be chosen: it counts as wrong, never as missing.

    Raises:
        InputError: shapes that differ.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2 or predicted.shape[1] != 2:
        raise InputError.of("predicted", tuple(predicted.shape), f"the shape of truth, {tuple(truth.shape)}: (K, 2)")
    found = torch.isfinite(predicted).all(-1) & (predicted >= 0).all(-1)
    apart = (predicted.double() - truth.double()).norm(dim=-1)
    return torch.where(found, apart, torch.inf)


def pck(predicted: Tensor, truth: Tensor, alpha: float, length: float) -> float:
    """Share of points with distance <= alpha * length, in 0..1 (the SPair-71k rule, boundary included).

    Args:
        predicted, truth: (K, 2) points in pixels of the target image, K at least 1.
        alpha: 0.1, 0.05, 0.01.
        length: reference length in pixels: max(H, W) of the target's bounding box, or of its image.

    Raises:
        InputError: no points, or shapes that differ.
    """
    if not len(truth):
        raise InputError.of("truth", "0 points", "at least one point")
    return float((distances(predicted, truth) <= alpha * length).double().mean())
