"""Twins of ``ditf_kernels.upsampled``, and the bilinear geometry they stand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import NORM_FLOOR, blocks, unit_rows

__all__ = [
    "AxisTaps",
    "axis_taps",
    "sample_grid",
    "score_at",
    "upsampled_argmax",
    "upsampled_inverse_norm",
    "upsampled_planes",
    "upsampled_similarity",
]

CANCELLED = 2.0**-10  # |F(p)|^2 at or below this share of (sum_i w_i |f_i|)^2 is rounding noise, not a direction
QUERIES = 16  # that share one interpolated band of inverse norms

# --- bilinear geometry -----------------------------------------------------------------------------------------------


class AxisTaps(NamedTuple):
    """Where each of L pixels sits between n grid cells: value = (1 - weight) * cell[low] + weight * cell[high]."""

    low: Tensor  # (L,) int64
    high: Tensor  # (L,) int64, min(low + 1, n - 1)
    weight: Tensor  # (L,) float32 in [0, 1)


def axis_taps(cells: int, length: int, device: torch.device | str | None = None) -> AxisTaps:
    """Pixel u of L on a grid of n cells sits at clamp((u + 0.5) * n / L - 0.5, 0, n - 1).

    Worked out in integers, in units of 1 / 2L cells: the weight is correctly rounded, exactly 0 in the border bands,
    and the same for pixels that sit alike in their cells, so equal pixels get bitwise equal scores.
    """
    unit = 2 * length
    position = ((2 * torch.arange(length, device=device) + 1) * cells - length).clamp(0, unit * (cells - 1))
    low = position // unit
    weight = (position - low * unit).to(torch.float32) / unit
    return AxisTaps(low, (low + 1).clamp_max(cells - 1), weight)


def sample_grid(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int], points: Tensor) -> Tensor:
    """Features at points, bilinear between tokens (``align_corners=False``), clamped at both ends.

    Args:
        tokens: (h*w, D), raster order.
        grid: (h, w).
        size: (H, W) in pixels of the area the grid covers.
        points: (K, 2), (x, y) in pixel-index coordinates; float allowed, outside is clamped to the border.

    Returns:
        (K, D) float32, not normalised; NaN where a point is NaN.
    """
    (h, w), (height, width) = grid, size
    x_low, x_high, x_weight = _point_taps(points[:, 0], w, width)
    y_low, y_high, y_weight = _point_taps(points[:, 1], h, height)
    top = _mix(_row(tokens, y_low * w + x_low), _row(tokens, y_low * w + x_high), x_weight)  # (K, D)
    bottom = _mix(_row(tokens, y_high * w + x_low), _row(tokens, y_high * w + x_high), x_weight)
    return _mix(top, bottom, y_weight)


def _point_taps(points: Tensor, cells: int, length: int) -> AxisTaps:
    exact = torch.float32 if points.device.type == "mps" else torch.float64  # MPS has no float64
    position = ((2 * points.to(exact) + 1) * cells - length) / (2 * length)
    position = position.clamp(0, cells - 1)
    low = position.nan_to_num(0.0).floor().to(torch.int64)
    return AxisTaps(low, (low + 1).clamp_max(cells - 1), (position - low).to(torch.float32))


def _row(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens[index].to(torch.float32)


def _mix(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Rows (K, D) between low and high; a row of weight 0 takes no part, not even with NaN."""
    weight = weight[:, None]
    return torch.where(weight == 0, low, (1 - weight) * low + weight * high)


# --- nearest neighbour on the upsampled grid -------------------------------------------------------------------------


def upsampled_planes(key: Tensor, grids: Sequence[int]) -> Tensor:
    """Five dot products of each cell with itself and its neighbours (clamped at the border).

    Args:
        key: (M, D), the grids' rows back to back.
        grids: h0, w0, h1, w1, ... with the products summing to M.

    Returns:
        (5, M) float32: cell with itself, right, below, diagonal (right below), and its right with its below neighbour.
    """
    planes, start = [], 0
    for h, w in _pairs(grids):
        planes.append(_planes_of_grid(key[start : start + h * w].unflatten(0, (h, w))))
        start += h * w
    return torch.cat(planes, 1) if planes else key.new_zeros((5, 0), dtype=torch.float32)


def _planes_of_grid(cells: Tensor) -> Tensor:
    """(h, w, D) -> (5, h*w) float32."""
    h, w, channels = cells.shape
    bands = []
    for first, last in blocks(h, w * channels, cells.device):
        band = cells[first : min(last + 1, h)].to(torch.float32)  # with the row below
        if last == h:
            band = torch.cat([band, band[-1:]])
        here, below = band[:-1], band[1:]  # (n, w, D)
        right, diagonal = (torch.cat([t[:, 1:], t[:, -1:]], 1) for t in (here, below))
        products = ((here, here), (here, right), (here, below), (here, diagonal), (right, below))
        bands.append(torch.stack([(a * b).sum(-1) for a, b in products]))  # (5, n, w)
    return torch.cat(bands, 1).flatten(1)


def upsampled_inverse_norm(planes: Tensor, size: tuple[int, int], rows: tuple[int, int] | None = None) -> Tensor:
    """1 / |F(p)| of the bilinearly upsampled features, from the planes alone.

    Args:
        planes: (5, h, w) of :func:`upsampled_planes`.
        size: (H, W) of the image.
        rows: first and last (exclusive) pixel row; None: all.

    Returns:
        (rows, W) float32: 0 where F(p) is zero or cancels, NaN where a cell that is not finite has weight.
    """
    h, w = planes.shape[1:]
    ys, xs = _rows_of_taps(axis_taps(h, size[0], planes.device), rows), axis_taps(w, size[1], planes.device)
    broken = (~planes[0].isfinite()).to(torch.float32)  # (h, w)
    itself, right, below, diagonal, anti = planes.nan_to_num(0.0, 0.0, 0.0)

    # F(p) = (1-wy) T + wy U with T, U the interpolated rows above and below: first their Gram numbers, (h, W) each.
    a, b = 1 - xs.weight, xs.weight  # (W,)
    row_norm = a * a * itself[:, xs.low] + b * b * itself[:, xs.high] + 2 * a * b * right[:, xs.low]
    row_dot = a * a * below[:, xs.low] + b * b * below[:, xs.high] + a * b * (diagonal + anti)[:, xs.low]
    length = itself.sqrt()
    row_length = a * length[:, xs.low] + b * length[:, xs.high]

    c, d = (1 - ys.weight)[:, None], ys.weight[:, None]  # (rows, 1)
    square = c * c * row_norm[ys.low] + d * d * row_norm[ys.high] + 2 * c * d * row_dot[ys.low]  # (rows, W)
    bound = c * row_length[ys.low] + d * row_length[ys.high]
    inverse = square.clamp_min(NORM_FLOOR**2).sqrt().reciprocal()
    inverse = inverse.masked_fill(square <= CANCELLED * bound * bound, 0.0)
    if not bool(broken.any()):
        return inverse
    broken = a * broken[:, xs.low] + b * broken[:, xs.high]
    return inverse.masked_fill(c * broken[ys.low] + d * broken[ys.high] > 0, torch.nan)


def upsampled_argmax(
    query: Tensor,
    key: Tensor,
    planes: Tensor | None,
    mask: Tensor | None,
    query_offsets: Sequence[int],
    grids: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """For each query the pixel of its own image whose upsampled feature has the highest cosine similarity.

    Args:
        query: (K, D), the pairs' queries back to back; pair i owns rows query_offsets[i] .. query_offsets[i+1].
        key: (M, D), the pairs' grids back to back.
        planes: (5, M) of :func:`upsampled_planes`, or None.
        mask: bool, the pairs' (H, W) masks flattened back to back (True: may be chosen), or None.
        query_offsets: P + 1 numbers.
        grids, sizes: h0, w0, h1, w1, ... and H0, W0, H1, W1, ...

    Returns:
        xy (K, 2) int64 and score (K,) float32 in [-1, 1]; the lowest raster index among equal scores; (-1, -1) and NaN
        where the query is not finite or no pixel may be chosen.
    """
    results, cell, pixel = [], 0, 0
    for pair, ((h, w), (height, width)) in enumerate(zip(_pairs(grids), _pairs(sizes), strict=True)):
        cells = slice(cell, cell + h * w)
        own_planes = upsampled_planes(key[cells], (h, w)) if planes is None else planes[:, cells]
        own_mask = None if mask is None else mask[pixel : pixel + height * width].reshape(height, width)
        unit = unit_rows(query[query_offsets[pair] : query_offsets[pair + 1]])  # (k, D)
        coarse = _coarse_scores(unit, key[cells]).unflatten(1, (h, w))  # (k, h, w)
        index, score = _argmax_pixels(coarse, own_planes.unflatten(1, (h, w)), own_mask, (height, width))
        none = (index < 0) | unit[:, 0].isnan()
        xy = torch.stack([index % width, index // width], 1).masked_fill(none[:, None], -1)
        results.append((xy, score.clamp(-1, 1).masked_fill(none, torch.nan)))
        cell, pixel = cell + h * w, pixel + height * width
    if not results:
        return query.new_zeros((0, 2), dtype=torch.int64), query.new_zeros(0, dtype=torch.float32)
    return torch.cat([xy for xy, _ in results]), torch.cat([score for _, score in results])


def upsampled_similarity(query: Tensor, key: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Cosine similarity of each query with every pixel of the upsampled grid.

    Args:
        query: (K, D).
        key: (h*w, D).
        grid, size: (h, w), (H, W).

    Returns:
        (K, H, W) float32 in [-1, 1]; NaN where the query, or a cell with weight on the pixel, is not finite.
    """
    coarse = _coarse_scores(unit_rows(query), key).unflatten(1, grid)  # (K, h, w)
    broken = coarse.isnan().flatten(1).all(1)
    ys, xs = axis_taps(grid[0], size[0], key.device), axis_taps(grid[1], size[1], key.device)
    inverse = upsampled_inverse_norm(upsampled_planes(key, grid).unflatten(1, grid), size)  # (H, W)
    score = (_upsampled(coarse.nan_to_num(0.0, 0.0, 0.0), ys, xs) * inverse).clamp(-1, 1)
    return score.masked_fill(broken[:, None, None], torch.nan)


def _coarse_scores(unit: Tensor, key: Tensor) -> Tensor:
    """Dot products of unit queries with raw keys: (K, h*w) float32; the key is widened block by block."""
    if key.dtype == torch.float32:
        return unit @ key.T
    return torch.cat([unit @ key[a:b].to(torch.float32).T for a, b in blocks(len(key), key.shape[1], key.device)], 1)


def _argmax_pixels(coarse: Tensor, planes: Tensor, mask: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Best raster index (K,), -1 if there is none, and its score (K,), of coarse (K, h, w) and planes (5, h, w)."""
    height, width = size
    ys, xs = axis_taps(coarse.shape[1], height, coarse.device), axis_taps(coarse.shape[2], width, coarse.device)
    parts = coarse.nan_to_num(0.0, 0.0, 0.0).split(QUERIES)  # cells that are not finite are told by the planes
    best = [(part.new_full(part.shape[:1], -torch.inf), ys.low.new_full(part.shape[:1], -1)) for part in parts]
    for first, last in blocks(height, width * min(QUERIES, max(1, len(coarse))), coarse.device):
        inverse = upsampled_inverse_norm(planes, size, (first, last))  # (rows, W)
        blocked = inverse.isnan() if mask is None else inverse.isnan() | ~mask[first:last]
        blocked = blocked if bool(blocked.any()) else None
        band = _rows_of_taps(ys, (first, last))
        for i, part in enumerate(parts):
            score = _upsampled(part, band, xs) * inverse  # (k, rows, W)
            score = score if blocked is None else score.masked_fill(blocked, -torch.inf)
            top, where = score.flatten(1).max(1)  # the first maximum, as documented
            better = top > best[i][0]  # strictly: an earlier band keeps a tie
            best[i] = (torch.where(better, top, best[i][0]), torch.where(better, where + first * width, best[i][1]))
    return torch.cat([index for _, index in best]), torch.cat([score for score, _ in best])


def _upsampled(coarse: Tensor, ys: AxisTaps, xs: AxisTaps) -> Tensor:
    """(k, h, w) at the pixels of the taps: (k, rows, W). Equal weights give equal bits: no fused multiply-adds."""
    low, high = int(ys.low[0]), int(ys.high[-1]) + 1  # the grid rows this band needs
    coarse = coarse[:, low:high]
    left, right = coarse.index_select(2, xs.low), coarse.index_select(2, xs.high)
    wide = left * (1 - xs.weight) + right * xs.weight  # (k, high - low, W)
    above, below = wide.index_select(1, ys.low - low), wide.index_select(1, ys.high - low)
    weight = ys.weight[:, None]
    return above * (1 - weight) + below * weight


def score_at(query: Tensor, key: Tensor, grid: tuple[int, int], size: tuple[int, int], xy: Tensor) -> Tensor:
    """Cosine similarity of each query with the upsampled feature at its own pixel, in float64, without the closed form.

    Args:
        query: (K, D).
        key: (h*w, D).
        grid, size: (h, w), (H, W).
        xy: (K, 2) integers inside the image.

    Returns:
        (K,) float64; NaN where the query, or a cell with weight on the pixel, is not finite.
    """
    (h, w), (height, width) = grid, size
    query = query.to(torch.float64)
    xs, ys = axis_taps(w, width, key.device), axis_taps(h, height, key.device)
    x, y = xy[:, 0], xy[:, 1]
    wx, wy = xs.weight.double()[x], ys.weight.double()[y]  # (K,)
    corners = (
        ((1 - wy) * (1 - wx), ys.low[y] * w + xs.low[x]),
        ((1 - wy) * wx, ys.low[y] * w + xs.high[x]),
        (wy * (1 - wx), ys.high[y] * w + xs.low[x]),
        (wy * wx, ys.high[y] * w + xs.high[x]),
    )
    feature = torch.zeros_like(query)
    bound = torch.zeros_like(wx)
    for weight, cell in corners:
        row = torch.where(weight[:, None] > 0, key[cell].to(torch.float64), 0.0)
        feature = feature + weight[:, None] * row
        bound = bound + weight * row.norm(dim=1)
    length = feature.norm(dim=1)
    score = F.cosine_similarity(query, feature, dim=1, eps=NORM_FLOOR)
    return score.masked_fill(length**2 <= CANCELLED * bound**2, 0.0)


def _pairs(flat: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[0::2], flat[1::2], strict=True)


def _rows_of_taps(taps: AxisTaps, rows: tuple[int, int] | None) -> AxisTaps:
    return taps if rows is None else AxisTaps(*(t[rows[0] : rows[1]] for t in taps))
