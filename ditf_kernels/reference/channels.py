"""Twins of ``ditf_kernels.channels``."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import BLOCK

__all__ = ["channel_magnitude", "massive_channels"]


def massive_channels(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k channels of largest mean |x|, and the median over all channels.

    Args:
        x: (..., D) with at least one token.
        k: 1 to D.

    Returns:
        index (k,) int64, largest first, NaN before all, equal ones from the lowest channel on; magnitude (k,) float32;
        median () float32, the lower of the middle two among the channels without NaN.
    """
    magnitude = channel_magnitude(x)
    largest, index = magnitude.sort(descending=True, stable=True)  # NaN counts as the largest
    return index[:k], largest[:k], magnitude.nanmedian()


def channel_magnitude(x: Tensor) -> Tensor:
    """Mean |x| of each channel over all tokens, (D,) float32."""
    x = x[None] if x.ndim == 1 else x
    whole = torch.is_grad_enabled() and x.requires_grad
    return (_sum(x) if whole else _pairwise_sum(x)) / (x.numel() // x.shape[-1])


def _pairwise_sum(x: Tensor) -> Tensor:
    """Sum of |x| over the leading axes: rounding grows with the logarithm of the number of tokens."""
    axis = max(range(x.ndim - 1), key=lambda a: x.shape[a])
    if x.numel() <= BLOCK or x.shape[axis] == 1:
        return _sum(x)
    first, second = x.tensor_split(2, axis)
    return _pairwise_sum(first) + _pairwise_sum(second)


def _sum(x: Tensor) -> Tensor:
    return x.abs().sum(tuple(range(x.ndim - 1)), dtype=torch.float32)
