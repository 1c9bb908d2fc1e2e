"""Cells of a grid, the squares between four neighbouring tokens: their pixels, and what bounds the scores of these.

The bound, and why it holds, is explained in ``upsampled_dense``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .upsampled import axis_taps, upsampled_inverse_norm

__all__ = ["NOWHERE", "CellAxis", "TargetCells", "cell_axis", "first_allowed", "target_cells", "token_lengths"]

Size = tuple[int, int]

REGULAR = 2.0**-9  # epsilon: far above the rounding of C, far below the angles between tokens that matter
KAPPA_SLACK = 2.0**-12  # rounding of kappa, relative: at most 500 * 2^-24
NOWHERE = torch.iinfo(torch.int64).max  # above every raster index


class CellAxis(NamedTuple):
    """One axis of an image, by the cells of its grid; pixels that sit alike (in the border bands) count once."""

    cells: int
    width: int  # the most places of a cell
    place_of: Tensor  # (L,) int64, the place of each pixel
    first: Tensor  # (P,) int64, the first pixel of each place
    low: Tensor  # (P,) int64, its cell
    weight: Tensor  # (P,) float32, on the cell's high token
    member: Tensor  # (cells, width) int64, the places of a cell, the last repeated
    counts: Tensor  # (cells,) int64, how many there are


@functools.lru_cache(maxsize=64)
def cell_axis(cells: int, length: int, device: torch.device) -> CellAxis:
    """The geometry of L pixels over n tokens, by ``axis_taps``; worked out on the CPU."""
    low, _, weight = axis_taps(cells, length)
    new = torch.ones(length, dtype=torch.bool)
    new[1:] = (low[1:] != low[:-1]) | (weight[1:] != weight[:-1])
    first = new.nonzero()[:, 0]
    count = torch.bincount(low[first], minlength=cells)
    width = int(count.max())
    within = torch.minimum(torch.arange(width), (count - 1).clamp_min(0)[:, None])  # (cells, width)
    member = ((count.cumsum(0) - count)[:, None] + within).clamp_max(len(first) - 1)
    tensors = (new.cumsum(0) - 1, first, low[first], weight[first], member, count)
    return CellAxis(cells, width, *(t.to(device) for t in tensors))


def token_lengths(planes: Tensor) -> Tensor:
    """|f| of each token, from the planes (5, h*w); 0 where it is not finite."""
    return planes[0].nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0).sqrt()


class TargetCells(NamedTuple):
    """The C cells of the target in which a pixel may be chosen. A cell's pixels are Y x X, the last ones repeated."""

    corner: Tensor  # (4, C) int64 tokens: top left, top right, bottom left, bottom right
    inverse_length: Tensor  # (4, C) 1 / |g_j|; 0 for a token that is zero or not finite
    factor: tuple[tuple[Tensor, ...], ...]  # L, row by row, of (C,) each; reciprocals on the diagonal
    kappa: Tensor  # (C,)
    weight: Tensor  # (C, 4, Y*X), of the tokens over |G(q)|
    raster: Tensor  # (C, Y*X) int64 index in the image; NOWHERE where a pixel may not be chosen
    blocked: bool  # whether there is such a pixel


def target_cells(planes: Tensor, mask: Tensor | None, grid: Size, size: Size) -> TargetCells:
    """What is needed of a target to bound and to score, from the planes (5, h*w) alone; O(pixels) of memory."""
    h, w = grid
    y, x = (cell_axis(n, length, planes.device) for n, length in zip(grid, size, strict=True))
    inverse = upsampled_inverse_norm(planes.unflatten(1, grid), size)[y.first[:, None], x.first]  # (Py, Px)
    index = first_allowed(mask, y, x, size).masked_fill(inverse.isnan(), NOWHERE)
    rows, columns = y.member.T[:, None, :, None], x.member.T[None, :, None, :]  # (Y, 1, h, 1), (1, X, 1, w)
    index, inverse = index[rows, columns], inverse[rows, columns].nan_to_num(0.0)  # (Y, X, h, w)
    inside = (y.counts > 0)[:, None] & (x.counts > 0)
    alive = ((index != NOWHERE).any(0).any(0) & inside).flatten().nonzero()[:, 0]  # (C,)
    index, inverse = index.flatten(2)[:, :, alive], inverse.flatten(2)[:, :, alive]

    row, column = alive // w, alive % w
    below, right = (row + 1).clamp_max(h - 1), (column + 1).clamp_max(w - 1)
    corner = torch.stack([row * w + column, row * w + right, below * w + column, below * w + right])
    d, b = y.weight[y.member].T[:, None, row], x.weight[x.member].T[None, :, column]  # (Y, 1, C), (1, X, C)
    weight = torch.stack([(1 - d) * (1 - b), (1 - d) * b, d * (1 - b), d * b])  # (4, Y, X, C)
    length = token_lengths(planes)
    inverse_length = torch.where(length > 0, 1 / length, 0.0)[corner]
    factor = _factor(planes, corner, inverse_length)
    v = weight * length[corner][:, None, None]
    reach = [v[k] / factor[k][k] for k in range(4)]  # L^T v, (Y, X, C) each
    for i, k in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2)):
        reach[k] = reach[k] + factor[i][k] * v[i]
    kappa = torch.stack(reach).norm(dim=0) * inverse
    kappa = kappa.masked_fill(index == NOWHERE, 0.0).flatten(0, 1).amax(0) * (1 + KAPPA_SLACK)
    weight = (weight * inverse).flatten(1, 2).permute(2, 0, 1).contiguous()
    index = index.flatten(0, 1).T.contiguous()
    return TargetCells(corner, inverse_length, factor, kappa, weight, index, bool((index == NOWHERE).any()))


def first_allowed(mask: Tensor | None, y: CellAxis, x: CellAxis, size: Size) -> Tensor:
    """(Py, Px) raster index of the first pixel of each place that may be chosen, NOWHERE if there is none."""
    if mask is None:
        return y.first[:, None] * size[1] + x.first
    raster = torch.arange(size[0] * size[1], device=mask.device).masked_fill(~mask, NOWHERE).view(size)
    least = raster.new_full((len(y.first), size[1]), NOWHERE)
    least.scatter_reduce_(0, y.place_of[:, None].expand(size), raster, "amin")
    out = raster.new_full((len(y.first), len(x.first)), NOWHERE)
    return out.scatter_reduce_(1, x.place_of.expand(len(y.first), -1), least, "amin")


def _factor(planes: Tensor, corner: Tensor, inverse_length: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """L with L L^T = C + epsilon I, row by row; diagonals as reciprocals. Rounding cannot make it singular."""
    _, right, below, diagonal, anti = planes.nan_to_num(0.0, 0.0, 0.0)
    a, b, c, d = inverse_length
    cosine = {
        (1, 0): right[corner[0]] * a * b, (2, 0): below[corner[0]] * a * c, (3, 0): diagonal[corner[0]] * a * d,
        (2, 1): anti[corner[0]] * b * c, (3, 1): below[corner[1]] * b * d, (3, 2): right[corner[2]] * c * d,
    }  # fmt: skip
    rows: list[list[Tensor]] = []
    for i in range(4):
        row: list[Tensor] = []
        for j in range(i):
            dot = sum((row[k] * rows[j][k] for k in range(j)), torch.zeros_like(a))
            row.append((cosine[i, j] - dot) * rows[j][j])
        left = 1 + REGULAR - sum((t * t for t in row), torch.zeros_like(a))
        rows.append([*row, left.clamp_min(REGULAR / 2).rsqrt()])
    return tuple(tuple(row) for row in rows)
