"""How points are found: the source's features at its points, and the best place of the target for each.

The maps are :class:`ditf.FeatureMap`; only their tokens and grid are read, the frame says what they cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import cosine_argmax, upsampled_argmax_batch
from ditf_kernels.reference import sample_grid

from ..errors import InputError, kernel_errors
from ..types import FeatureMap
from .protocols import Protocol

__all__ = ["MatchDtype", "best_places", "check_dtype", "queries_at"]

MatchDtype = Literal["float32", "float16"]

_TEMPERATURE = 0.02  # of the window soft-argmax, as published
_SOFT_TEMPERATURE, _SIGMA = 0.04, 7.0  # of SD4Match's soft-argmax, and of its Gaussian, in tokens
_MARGIN = 1e-4  # pixels by which SD4Match keeps points off the border
_CELL = 14.0  # pixels of a patch on the published canvas, in which ``hit`` is given
_PACK = 64  # targets in one call on a GPU

_SOFT = ("softmax", "kernel-softmax")

Size = tuple[int, int]


def check_dtype(dtype: str, protocol: Protocol) -> None:
    """Raises InputError for an unknown dtype, or float16 where it would change nothing."""
    if dtype not in ("float32", "float16"):
        raise InputError.of("dtype", dtype, '"float32" or "float16"')
    if dtype == "float16" and protocol.match != "pixels":
        expected = f"float32 for protocol {protocol.name}; float16 is the arithmetic of code that matches every pixel"
        raise InputError.of("dtype", dtype, expected)


def queries_at(features: FeatureMap, lookup: np.ndarray, size: Size, protocol: Protocol, dtype: MatchDtype) -> Tensor:
    """(K, D) features of the source at its points.

    Args:
        features: of the source.
        lookup: (K, 2) float64 points in the frame, inside it.
        size: (H, W) of the frame.
        dtype: "float16" reproduces DiTF's arithmetic: the map is upsampled in float16 and read at whole pixels.
    """
    device = features.tokens.device
    if protocol.match in _SOFT:
        places = torch.from_numpy(_to_tokens(lookup, size, features.grid, protocol))
        return sample_grid(features.tokens, features.grid, features.grid, places.to(device, _exact(device)))
    if protocol.match != "pixels":
        return features.tokens[_cell_of(torch.from_numpy(lookup), features.grid, size).to(device)].float()
    points = torch.from_numpy(np.ascontiguousarray(lookup)).to(_exact(device)).to(device)
    if dtype == "float32":
        return sample_grid(features.tokens, features.grid, size, points)
    pixels = _upsampled_half(features, size)  # (D, H, W)
    at = points.long()
    return pixels[:, at[:, 1], at[:, 0]].T.contiguous()


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def best_places(
    queries: Sequence[Tensor], targets: Sequence[FeatureMap], sizes: Sequence[Size], protocol: Protocol,
    dtype: MatchDtype, backend: str | None = None,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """For each target its queries' best places: (K, 2) float64 in its frame and (K,) float32 cosine, on the CPU.

    Args:
        queries: one (K, D) per target.
        sizes: (H, W) of each target's frame.

    Raises:
        InputError: queries and targets from different models.
    """
    for query, target in zip(queries, targets, strict=True):
        if query.shape[1] != target.tokens.shape[1]:
            raise InputError.of("features", f"{query.shape[1]} channels", f"{target.tokens.shape[1]}, as the target")
    if protocol.match in _SOFT:
        return [_soft(q, t, s, protocol) for q, t, s in zip(queries, targets, sizes, strict=True)]
    if protocol.match != "pixels":
        return [_patches(q, t, s, protocol, backend) for q, t, s in zip(queries, targets, sizes, strict=True)]
    if dtype == "float16":
        return [_pixels_half(q, t, s) for q, t, s in zip(queries, targets, sizes, strict=True)]
    step = _PACK if targets and targets[0].tokens.is_cuda else 1  # a CPU gains nothing from packing
    found: list[tuple[Tensor, Tensor]] = []
    for i in range(0, len(targets), step):
        found += _pixels(queries[i : i + step], targets[i : i + step], sizes[i : i + step], backend)
    return found


def _pixels(
    queries: Sequence[Tensor], targets: Sequence[FeatureMap], sizes: Sequence[Size], backend: str | None
) -> list[tuple[Tensor, Tensor]]:
    counts = [len(query) for query in queries]
    offsets = [0, *np.cumsum(counts).tolist()]
    device = targets[0].tokens.device
    key = targets[0].tokens if len(targets) == 1 else torch.cat([target.tokens for target in targets])
    query = torch.cat([query.to(device) for query in queries])
    with kernel_errors():
        xy, score = upsampled_argmax_batch(
            query, key, offsets, [target.grid for target in targets], list(sizes), backend=backend
        )
    xy, score = xy.cpu().double(), score.cpu()
    return list(zip(xy.split(counts), score.split(counts), strict=True))


def _pixels_half(query: Tensor, target: FeatureMap, size: Size) -> tuple[Tensor, Tensor]:
    """The reference code's arithmetic: every pixel upsampled, normalised and compared in float16."""
    pixels = F.normalize(_upsampled_half(target, size).flatten(1), dim=0)  # (D, H * W)
    unit = F.normalize(query.to(pixels.device), dim=1)
    places, scores = [], []
    for one in unit:  # one at a time, as the reference
        similarity = one @ pixels
        best = int(similarity.float().cpu().argmax())  # the first maximum
        places.append([best % size[1], best // size[1]])
        scores.append(float(similarity[best]))
    return torch.tensor(places, dtype=torch.float64).reshape(-1, 2), torch.tensor(scores, dtype=torch.float32)


def _upsampled_half(features: FeatureMap, size: Size) -> Tensor:
    grid = features.map[None].to(torch.float16)
    if not bool(torch.isfinite(grid).all()):
        raise InputError("--dtype: got float16, in which these features overflow; give float32, or discard channels")
    return F.interpolate(grid, size, mode="bilinear", align_corners=False)[0]


# --- patches ---------------------------------------------------------------------------------------------------------


def _cell_of(points: Tensor, grid: Size, size: Size) -> Tensor:
    """(K,) index of the token that a point is in."""
    row = (points[:, 1] * grid[0] / size[0]).floor().long().clamp(0, grid[0] - 1)
    column = (points[:, 0] * grid[1] / size[1]).floor().long().clamp(0, grid[1] - 1)
    return row * grid[1] + column


def _patches(
    query: Tensor, target: FeatureMap, size: Size, protocol: Protocol, backend: str | None
) -> tuple[Tensor, Tensor]:
    query = query.to(target.tokens.device)
    with kernel_errors():
        index, score = cosine_argmax(query, target.tokens, backend=backend)
    index = index.cpu()
    row, column = (index // target.grid[1]).double(), (index % target.grid[1]).double()
    if protocol.match != "patches":
        row, column = _window(query, target, index, protocol)
    # A cell of 14 pixels on the published grid; another grid keeps the place within the cell.
    high, wide = size[0] / target.grid[0], size[1] / target.grid[1]
    share = protocol.hit / _CELL
    place = torch.stack([(column + share) * wide, (row + share) * high], 1)
    place = torch.where((index < 0)[:, None], -1.0, place)
    return place, score.float().cpu()


def _window(query: Tensor, target: FeatureMap, index: Tensor, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """(K,) expected row and column around the best cell, on the CPU."""
    h, w = target.grid
    key = F.normalize(target.tokens.float(), dim=1)
    similarity = (F.normalize(query.float(), dim=1) @ key.T).cpu().unflatten(1, (h, w))  # (K, h, w)
    rows, columns = torch.arange(h), torch.arange(w)
    best_row, best_column = (index // w)[:, None], (index % w)[:, None]
    inside = ((rows - best_row).abs() <= protocol.window)[:, :, None]
    inside = inside & ((columns - best_column).abs() <= protocol.window)[:, None, :]
    outside = 0.0 if protocol.match == "window" else -torch.inf
    weight = (similarity.masked_fill(~inside, outside) / _TEMPERATURE).flatten(1).softmax(1).unflatten(1, (h, w))
    weight = weight.double()
    return (weight.sum(2) * rows).sum(1), (weight.sum(1) * columns).sum(1)


# --- soft-argmax over all tokens -------------------------------------------------------------------------------------


def _to_tokens(points: np.ndarray, size: Size, grid: Size, protocol: Protocol) -> np.ndarray:
    """(K, 2) columns and rows of the points (K, 2) of an image (H, W) that is stretched to the protocol's size."""
    side = _stretched(protocol)
    at = np.clip(points * (side / np.array(size[::-1], np.float64)), _MARGIN, side - 1 - _MARGIN)
    return at * ((np.array(grid[::-1], np.float64) - 1) / (side - 1))


def _stretched(protocol: Protocol) -> np.ndarray:
    """(2,) width and height to which the protocol stretches images."""
    if protocol.compare is None:
        raise InputError.of("protocol", protocol.name, "one with a size to which images are stretched")
    return np.array(protocol.compare, np.float64)


def _soft(query: Tensor, target: FeatureMap, size: Size, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Expected place under a softmax over all tokens, corner tokens on the corners of the stretched image."""
    h, w = target.grid
    key = F.normalize(target.tokens.float(), dim=1)
    similarity = F.normalize(query.to(key).float(), dim=1) @ key.T  # (K, h * w)
    score, best = similarity.max(1)
    rows, columns = torch.arange(h, device=key.device), torch.arange(w, device=key.device)
    if protocol.match == "kernel-softmax":
        down = (rows - best[:, None] // w).float().square()[:, :, None]
        across = (columns - best[:, None] % w).float().square()[:, None]
        similarity = similarity * torch.exp(-(down + across) / (2 * _SIGMA**2)).flatten(1)
    weight = (similarity / _SOFT_TEMPERATURE).softmax(1).unflatten(1, (h, w)).cpu().double()
    place = torch.stack([(weight.sum(1) * columns.cpu()).sum(1), (weight.sum(2) * rows.cpu()).sum(1)], 1)
    side, cells = _stretched(protocol), np.maximum(np.array([w, h], np.float64) - 1, 1)
    to_image = (side - 1) / cells * np.array(size[::-1], np.float64) / side
    return place * torch.from_numpy(to_image), score.float().cpu()
