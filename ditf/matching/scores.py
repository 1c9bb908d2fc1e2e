"""More than the best pixel: the best k, and expected positions under a softmax over all pixels or a window of them.

Everything is made of coarse scores (K, h*w) and the target's Gram planes, a band of pixel rows at a time, so memory
does not grow with the image. Positions are those of the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ditf_kernels.reference import AxisTaps, axis_taps, unit_rows, upsampled_inverse_norm
from ditf_kernels.reference.rows import blocks

from ..types import FeatureMap
from .queries import exact_dtype

__all__ = ["Scores", "best_k", "expected_position", "expected_position_in_window"]

COARSE_BYTES = 1 << 28  # of the coarse scores of the queries that are worked on together
QUERIES = 16  # that share one interpolated band of inverse norms
INDEX_BITS = 32


class Scores:
    """Similarities of some queries with the pixels of one target.

    Args:
        target: its features.
        mask: (H, W) bool over its canvas, True where a pixel may be chosen, or None.
        planes: (5, h, w) of :func:`ditf_kernels.upsampled_planes`.
    """

    def __init__(self, target: FeatureMap, mask: Tensor | None, planes: Tensor) -> None:
        self.target, self.mask, self.planes, self.size = target, mask, planes, target.extent
        device = target.tokens.device
        self.ys = axis_taps(target.grid[0], self.size[0], device)
        self.xs = axis_taps(target.grid[1], self.size[1], device)

    def chunks(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the queries (K, D) and their coarse scores (k, h, w), as many at a time as fit."""
        step = max(1, COARSE_BYTES // (4 * len(self.target.tokens)))
        for first in range(0, len(query), step):
            rows = slice(first, min(first + step, len(query)))
            yield rows, self._coarse(query[rows])

    def bands(self, coarse: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
        """Queries, first pixel row and scores (k, rows, W); minus infinity where no pixel may be chosen."""
        height, width = self.size
        parts = [slice(i, min(i + QUERIES, len(coarse))) for i in range(0, len(coarse), QUERIES)]
        for first, last in blocks(height, width * min(QUERIES, max(1, len(coarse))), coarse.device):
            band = AxisTaps(*(t[first:last] for t in self.ys))
            inverse = upsampled_inverse_norm(self.planes, self.size, (first, last))  # (rows, W)
            blocked = inverse.isnan() if self.mask is None else inverse.isnan() | ~self.mask[first:last]
            blocked = blocked if bool(blocked.any()) else None
            for part in parts:
                score = _upsampled(coarse[part], band, self.xs).mul_(inverse).clamp_(-1, 1)
                yield part, first, score if blocked is None else score.masked_fill_(blocked, -torch.inf)

    def _coarse(self, query: Tensor) -> Tensor:
        """(k, h, w) float32 dot products of unit queries with raw tokens; what is not finite is told by the planes."""
        unit, tokens = unit_rows(query), self.target.tokens
        if tokens.dtype == torch.float32:
            scores = unit @ tokens.T
        else:
            steps = blocks(len(tokens), tokens.shape[1], tokens.device)
            scores = torch.cat([unit @ tokens[a:b].to(torch.float32).T for a, b in steps], 1)
        return scores.nan_to_num(0.0, 0.0, 0.0).unflatten(1, self.target.grid)


def best_k(scores: Scores, query: Tensor, best: Tensor, best_score: Tensor, k: int) -> Tensor:
    """(K, k, 3) float32 x, y, score: the match itself, then the next best; equal scores in raster order.

    Args:
        query: (K, D).
        best: (K, 2) int64, the pixel that matched, (-1, -1) where none did.
        best_score: (K,) its score.

    Rows that are missing, for want of pixels, are (-1, -1, NaN).
    """
    width = scores.size[1]
    found = torch.full((len(query), k, 3), -1.0, dtype=torch.float32, device=query.device)
    found[..., 2] = torch.nan
    for rows, coarse in scores.chunks(query):
        first = best[rows, 1] * width + best[rows, 0]  # (n,), below 0 where nothing matched
        kept = torch.full((len(coarse), k), _NOTHING, dtype=torch.int64, device=query.device)
        least = torch.full((len(coarse),), -torch.inf, device=query.device)  # what a later pixel has to exceed
        for part, top, band in scores.bands(coarse):
            band = band.flatten(1)  # (n, pixels)
            better = (band.amax(1) > least[part]).nonzero()[:, 0]
            if not len(better):
                continue
            own = better + part.start
            index = torch.arange(top * width, top * width + band.shape[1], device=query.device)
            key = _ordered(band[better], index)
            key = key.masked_fill_(index == first[own, None], _NOTHING)  # it has its place already
            kept[own] = torch.cat([kept[own], key], 1).topk(k).values
            least[own] = _decoded(kept[own, -1], width)[:, 2].nan_to_num(-torch.inf)
        found[rows] = _decoded(kept, width)
    found = torch.cat([torch.cat([best.to(torch.float32), best_score[:, None]], 1)[:, None], found[:, : k - 1]], 1)
    none = best[:, :1] < 0  # (K, 1): nothing may be chosen, or the query is not finite
    found[..., :2] = found[..., :2].masked_fill(none[..., None], -1.0)
    found[..., 2] = found[..., 2].masked_fill(none, torch.nan)
    return found


def expected_position(scores: Scores, query: Tensor, best: Tensor, best_score: Tensor, temperature: float) -> Tensor:
    """(K, 2) float32 mean position under softmax(score / temperature) over all pixels that may be chosen.

    Args:
        query, best, best_score: as for :func:`best_k`; the score bounds the exponents. (-1, -1) stays.
    """
    exact = exact_dtype(query.device)
    total = torch.zeros(len(query), 3, dtype=exact, device=query.device)  # sums of weights, of x and of y
    x = torch.arange(scores.size[1], dtype=exact, device=query.device)
    for rows, coarse in scores.chunks(query):
        sums, highest = total[rows], best_score[rows].nan_to_num(0.0)
        for part, first, band in scores.bands(coarse):
            weight = band.sub_(highest[part, None, None]).div_(temperature).exp_()  # (k, rows, W)
            y = torch.arange(first, first + band.shape[1], dtype=exact, device=query.device)
            columns, lines = weight.sum(1).to(exact), weight.sum(2).to(exact)  # (k, W), (k, rows)
            sums[part] += torch.stack([lines.sum(1), columns @ x, lines @ y], 1)
    mean = (total[:, 1:] / total[:, :1]).to(torch.float32)
    return torch.where(best < 0, best.to(torch.float32), mean)


def expected_position_in_window(
    scores: Scores, query: Tensor, best: Tensor, best_score: Tensor, temperature: float, window: float
) -> Tensor:
    """The same within ``window`` tokens of the best pixel, up, down, left and right; nothing else is looked at."""
    (height, width), (h, w) = scores.size, scores.target.grid
    exact, device = exact_dtype(query.device), query.device
    down, across = int(window * height / h), int(window * width / w)  # half sides in pixels
    down, across = min(down, height), min(across, width)
    y = best[:, 1:] + torch.arange(-down, down + 1, device=device)  # (K, Y)
    x = best[:, :1] + torch.arange(-across, across + 1, device=device)  # (K, X)
    if not len(query):
        return best.to(torch.float32)
    first = int(y.min().clamp(0, height - 1))
    last = int(y.max().clamp(0, height - 1)) + 1
    inverse = upsampled_inverse_norm(scores.planes, scores.size, (first, last))  # of the rows that windows reach
    mean = torch.empty(len(query), 2, dtype=exact, device=device)
    for rows, coarse in scores.chunks(query):
        for a, b in blocks(len(coarse), y.shape[1] * x.shape[1], device):
            part = slice(rows.start + a, rows.start + b)
            line, column = y[part].clamp(0, height - 1), x[part].clamp(0, width - 1)
            norm = inverse[(line - first)[:, :, None], column[:, None]]  # (k, Y, X)
            score = _windows(coarse[a:b], scores, line, column).mul_(norm).clamp_(-1, 1)
            inside = (line == y[part])[:, :, None] & (column == x[part])[:, None] & ~norm.isnan()
            if scores.mask is not None:
                inside &= scores.mask[line[:, :, None], column[:, None]]
            score = score.sub_(best_score[part].nan_to_num(0.0)[:, None, None]).div_(temperature)
            weight = score.masked_fill_(~inside, -torch.inf).exp_()
            columns, lines = weight.sum(1).to(exact), weight.sum(2).to(exact)
            sums = torch.stack([(columns * column).sum(1), (lines * line).sum(1)], 1)
            mean[part] = sums / lines.sum(1, keepdim=True)
    return torch.where(best < 0, best.to(torch.float32), mean.to(torch.float32))


def _windows(coarse: Tensor, scores: Scores, y: Tensor, x: Tensor) -> Tensor:
    """Interpolated coarse scores (k, h, w) at each query's own pixel rows (k, Y) and columns (k, X): (k, Y, X)."""
    w = coarse.shape[2]
    low, high, weight = (t[y] for t in scores.ys)  # (k, Y)
    above, below = (coarse.gather(1, t[:, :, None].expand(-1, -1, w)) for t in (low, high))
    weight = weight[:, :, None]
    lines = above * (1 - weight) + below * weight  # (k, Y, w)
    low, high, weight = (t[x][:, None].expand(-1, y.shape[1], -1) for t in scores.xs)  # (k, Y, X)
    return lines.gather(2, low).mul_(1 - weight).add_(lines.gather(2, high).mul_(weight))


def _upsampled(coarse: Tensor, ys: AxisTaps, xs: AxisTaps) -> Tensor:
    """(k, h, w) at the pixels of the taps: (k, rows, W); equal weights give equal bits."""
    low, high = int(ys.low[0]), int(ys.high[-1]) + 1  # the grid rows this band needs
    coarse = coarse[:, low:high]
    left, right = coarse.index_select(2, xs.low), coarse.index_select(2, xs.high)
    wide = left * (1 - xs.weight) + right * xs.weight  # (k, high - low, W)
    weight = ys.weight[:, None]
    above = wide.index_select(1, ys.low - low).mul_(1 - weight)
    return above.add_(wide.index_select(1, ys.high - low).mul_(weight))


_NOTHING = -(1 << 63)


def _ordered(score: Tensor, index: Tensor) -> Tensor:
    """(k, n) int64 that order as the scores do, and among equal ones as the falling index; _NOTHING for -infinity."""
    bits = (score + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: minus zero equals zero
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (bits << INDEX_BITS) | ((1 << INDEX_BITS) - 1 - index)
    return key.masked_fill_(score == -torch.inf, _NOTHING)


def _decoded(key: Tensor, width: int) -> Tensor:
    """(..., 3) float32 x, y and score of :func:`_ordered` keys; (-1, -1, NaN) of _NOTHING."""
    bits, index = key >> INDEX_BITS, (1 << INDEX_BITS) - 1 - (key & ((1 << INDEX_BITS) - 1))
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    score = bits.to(torch.int32).view(torch.float32)
    found = torch.stack([(index % width).float(), (index // width).float(), score], -1)
    missing = torch.tensor([-1.0, -1.0, torch.nan], device=key.device)
    return torch.where((key == _NOTHING)[..., None], missing, found)
