"""Massive channels: the mean magnitude of every channel over all tokens, its largest and its median, in one read.

Over R tokens x of D channels, in float32:

    m_c    = sum_r |x_rc| / R
    index  = the k channels of largest m, equal ones from the lowest channel on
    median = the lower of the two middle values of m, as torch.median has it

Bytes that must move: R * D elements, once; FLOPs: 2 * R * D, and D^2 comparisons. It is bound by memory.
Source: DiTF (arXiv 2505.18584), section 3; massive activations (arXiv 2402.17762).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype
from ._registry import define, takes_gradient

__all__ = ["massive_channels"]

ROW_AXES = 3  # that the kernel takes, after axes that lie one inside the other have been merged


def massive_channels(x: Tensor, k: int, *, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The k channels of largest mean |x|, and what is usual among all channels.

    Args:
        x: (..., D) tokens, any leading shape, any strides; nothing is copied. (D,) is one token.
        k: how many channels, 1 to D.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        index: (k,) int64 channels, largest magnitude first; of equal ones the lowest channel.
        magnitude: (k,) float32, the mean |x| of these channels over all tokens.
        median: () float32, the median of the D magnitudes; of an even number the lower of the middle two, which is
        the magnitude of some channel. Those far above it are massive (``magnitude / median``).

        A channel that holds NaN has magnitude NaN and ranks first, before infinite ones: what broke is not hidden
        behind what is merely large. The median leaves such channels out, so that it still tells what is usual; it is
        NaN if all are. Equal calls give equal bits.

    Raises:
        ValueError: an argument that does not fit, or x without tokens, of which there is no mean.
        BackendError: the backend cannot run here, or has no backward pass for an input that requires grad.
    """
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., D) with at least one token and one channel")
    check_dtype("x", x.dtype)
    channels = x.shape[-1]
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)) or k < 1 or k > channels:
        raise ValueError(f"k: got {k!r}, expected an integer of at least 1 and at most {channels}, the channels of x")
    if takes_gradient("massive_channels", backend, x):
        return reference.massive_channels(x, k)
    return _massive(x, k, backend)


# --- registration ----------------------------------------------------------------------------------------------------


def row_axes(x: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the leading axes, from the outermost in memory on, those that lie one inside the other merged.

    The order of the tokens does not matter to a mean, so sequence-first and transposed views merge too.
    """
    axes = [(n, stride) for n, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    merged: list[tuple[int, int]] = []
    for size, stride in sorted(axes, key=lambda axis: axis[1], reverse=True):
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def _limit(x: Tensor, k: int) -> str | None:
    axes = len(row_axes(x))
    return f"x has {axes} leading axes that do not merge, and the kernel takes {ROW_AXES}" if axes > ROW_AXES else None


def _fake(x, k, backend) -> tuple[Tensor, Tensor, Tensor]:
    magnitude = x.new_empty((k,), dtype=torch.float32)
    return x.new_empty((k,), dtype=torch.int64), magnitude, x.new_empty((), dtype=torch.float32)


def _compare(inputs: tuple[Any, ...], kernel: tuple[Tensor, ...], twin: tuple[Tensor, ...]) -> None:
    """Magnitudes in units of the median; channels by their magnitude, which may tie within rounding."""
    (index, magnitude, median), (twin_index, twin_magnitude, twin_median) = kernel, twin
    usual = float(twin_median)
    unit = usual if 0 < usual < math.inf else 1.0
    _backend.check_close("massive_channels", "median over that of the twin", median / unit, twin_median / unit)
    _backend.check_close("massive_channels", "magnitude over the median", magnitude / unit, twin_magnitude / unit)
    if torch.equal(index, twin_index):
        return
    channels = inputs[0].shape[-1]
    if bool((index < 0).any() | (index >= channels).any()) or len(index.unique()) < len(index):
        raise _backend.VerificationError(
            f"massive_channels: index, shape {tuple(index.shape)}, dtype {index.dtype}, has channels that are not "
            f"distinct or not in 0..{channels - 1}"
        )
    own = reference.channel_magnitude(inputs[0])[index]
    _backend.check_close("massive_channels", "magnitude of the chosen channels", own / unit, twin_magnitude / unit)


_massive = define(
    "massive_channels(Tensor x, SymInt k, str? backend) -> (Tensor, Tensor, Tensor)",
    twin=reference.massive_channels,
    kernel="channels.massive_channels",
    fake=_fake,
    compare=_compare,
    limit=_limit,
)
