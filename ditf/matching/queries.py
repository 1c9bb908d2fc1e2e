"""The features of many pairs' points at once: where each lies between its tokens, then one gather per source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import FeatureMap

__all__ = ["exact_dtype", "sample_points"]


def sample_points(maps: Sequence[FeatureMap], points: Sequence[Tensor]) -> Tensor:
    """:meth:`FeatureMap.sample` of every map at its own points, back to back and bit for bit.

    Args:
        maps: of the same number of channels, on one device.
        points: per map (K_i, 2) float32, (x, y) pixels of its image, all on one device; NaN rows give NaN features.

    Returns:
        (K, D) float32, K the sum of the K_i, on the maps' device.
    """
    device = maps[0].tokens.device
    counts = [len(own) for own in points]
    place = torch.cat(list(points))  # (K, 2)
    about = torch.tensor(
        [[*m.grid[::-1], *m.extent[::-1], *m.offset] for m in maps], dtype=torch.int64, device=place.device
    )  # (P, 6)
    about = about.repeat_interleave(torch.tensor(counts, device=place.device), 0, output_size=len(place))  # (K, 6)
    cells, length, offset = about.split(2, 1)  # (K, 2) each, x first

    exact = exact_dtype(place.device)
    position = ((2 * (place + offset).to(exact) + 1) * cells - length) / (2 * length)
    position = torch.minimum(position.clamp_min(0), (cells - 1).to(exact))
    low = position.nan_to_num(0.0).floor().to(torch.int64)
    weight = (position - low).to(torch.float32).to(device)  # (K, 2)
    high = torch.minimum(low + 1, cells - 1)
    (x0, y0), (x1, y1), w = low.unbind(1), high.unbind(1), cells[:, 0]
    corners = torch.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1]).to(device)  # (4, K)

    own = zip(maps, corners.split(counts, 1), strict=True)
    rows = torch.cat([m.tokens[index].to(torch.float32) for m, index in own], 1)  # (4, K, D)
    wx, wy = weight[:, :1], weight[:, 1:]
    return _mix(_mix(rows[0], rows[1], wx), _mix(rows[2], rows[3], wx), wy)


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _mix(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Between low and high; a row of weight 0 takes no part, not even with NaN."""
    return torch.where(weight == 0, low, (1 - weight) * low + weight * high)
