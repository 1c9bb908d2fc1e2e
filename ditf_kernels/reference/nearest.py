"""Twins of ``ditf_kernels.nearest``: the product in tiles, and the best so far kept from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

import torch
from torch import Tensor

from .rows import BLOCK, NORM_FLOOR, blocks

__all__ = ["cosine_argmax", "cosine_at", "cosine_topk", "inverse_norms", "is_mutual", "mutual_nearest"]

# Scores of one tile: 1024 x 1024 on a CPU, which still multiplies at full speed and is reduced while in the cache; a
# GPU takes 256 MiB.
TILE = {"cpu": 4 * BLOCK}
TILE_ELSEWHERE = 256 * BLOCK


def cosine_argmax(
    query: Tensor,
    key: Tensor,
    query_inverse_norm: Tensor | None,
    key_inverse_norm: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """For each query the key with the highest cosine similarity.

    Args:
        query: (B, N, D).
        key: (B, M, D).
        query_inverse_norm, key_inverse_norm: (B, N), (B, M) float32; None: worked out from the rows.
        key_mask: (B, M) bool, True where a key may be chosen, or None.

    Returns:
        index (B, N) int64 and score (B, N) float32 in [-1, 1]; the lowest index among equal scores; -1 and NaN where
        the query is not finite or no key may be chosen.
    """
    norms = _both_inverse_norms(query, key, query_inverse_norm, key_inverse_norm)
    index, score = _nothing(query, ())
    with torch.no_grad():
        key_factor = _factor(norms[1], key_mask)
        for pair in range(len(query)):
            best = _Best(query[pair])
            for rows, columns, dots in _tiles(query[pair], key[pair]):
                best.update(rows, columns, _choosable(dots, key_factor[pair, columns]))
            index[pair], score[pair] = best.found(norms[0][pair])
    return index, _differentiable(score, query, key, norms, index)


def mutual_nearest(
    a: Tensor,
    b: Tensor,
    a_inverse_norm: Tensor | None,
    b_inverse_norm: Tensor | None,
    a_mask: Tensor | None,
    b_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`cosine_argmax` in both directions from one pass over the product, and where they agree.

    Args:
        a: (B, N, D).
        b: (B, M, D).
        a_inverse_norm, b_inverse_norm, a_mask, b_mask: as for :func:`cosine_argmax`, of either side.

    Returns:
        index_ab (B, N), index_ba (B, M), mutual (B, N) bool, score_ab (B, N), score_ba (B, M).
    """
    norms = _both_inverse_norms(a, b, a_inverse_norm, b_inverse_norm)
    (index_ab, score_ab), (index_ba, score_ba) = _nothing(a, ()), _nothing(b, ())
    with torch.no_grad():
        a_factor, b_factor = _factor(norms[0], a_mask), _factor(norms[1], b_mask)
        for pair in range(len(a)):
            of_a, of_b = _Best(a[pair]), _Best(b[pair])
            for rows, columns, dots in _tiles(a[pair], b[pair]):
                # A transposed copy: the maximum along rows of memory is several times faster than across them.
                turned = dots.T.clone(memory_format=torch.contiguous_format)
                of_b.update(columns, rows, _choosable(turned, a_factor[pair, rows]))
                of_a.update(rows, columns, _choosable(dots, b_factor[pair, columns]))
            index_ab[pair], score_ab[pair] = of_a.found(norms[0][pair])
            index_ba[pair], score_ba[pair] = of_b.found(norms[1][pair])
    score_ab = _differentiable(score_ab, a, b, norms, index_ab)
    score_ba = _differentiable(score_ba, b, a, (norms[1], norms[0]), index_ba)
    return index_ab, index_ba, is_mutual(index_ab, index_ba), score_ab, score_ba


def cosine_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    query_inverse_norm: Tensor | None,
    key_inverse_norm: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """For each query the k keys with the highest cosine similarity, the highest first.

    Args:
        query, key, query_inverse_norm, key_inverse_norm, key_mask: as for :func:`cosine_argmax`.
        k: how many; may exceed M.

    Returns:
        index (B, N, k) int64 and score (B, N, k) float32; the lowest index first among equal scores; -1 and NaN where
        there are fewer.
    """
    norms = _both_inverse_norms(query, key, query_inverse_norm, key_inverse_norm)
    index, score = _nothing(query, (k,))
    with torch.no_grad():
        key_factor = _factor(norms[1], key_mask)
        for pair in range(len(query)):
            best = torch.full((query.shape[1], k), torch.iinfo(torch.int64).min, device=query.device)
            for rows, columns, dots in _tiles(query[pair], key[pair]):
                ranks = _ranks(_choosable(dots, key_factor[pair, columns]), columns.start)
                ranks = ranks.topk(min(k, ranks.shape[1])).values
                best[rows] = torch.cat([best[rows], ranks], 1).topk(k).values
            index[pair], score[pair] = _found(*_unranked(best), norms[0][pair, :, None])
    return index, _differentiable(score, query, key, norms, index)


def cosine_at(
    query: Tensor,
    key: Tensor,
    query_inverse_norm: Tensor | None,
    key_inverse_norm: Tensor | None,
    index: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Cosine similarity of each query with keys named by index, row by row; differentiable.

    Args:
        query, key, query_inverse_norm, key_inverse_norm: as for :func:`cosine_argmax`.
        index: (B, N) or (B, N, k) int64; a negative one names no key.
        dtype: of the arithmetic and the result.

    Returns:
        In the shape of index, in [-1, 1]; NaN where there is no key, or query or key is not finite.
    """
    norms = _both_inverse_norms(query, key, query_inverse_norm, key_inverse_norm, dtype)
    if index.numel() == 0 or key.shape[1] == 0:
        return query.new_full(index.shape, torch.nan, dtype=dtype)
    named = index if index.ndim == 3 else index[..., None]  # (B, N, k)
    missing, named = named < 0, named.clamp_min(0)
    pair = torch.arange(len(query), device=query.device)[:, None, None]
    rows = query[:, :, None].to(dtype).masked_fill(missing[..., None], 0.0)  # (B, N, k, D)
    keys = key[pair, named].to(dtype).masked_fill(missing[..., None], 0.0)
    score = (rows * keys).sum(-1) * norms[0][:, :, None].masked_fill(missing, 0.0) * norms[1][pair, named]
    return score.clamp(-1, 1).masked_fill(missing | ~score.isfinite(), torch.nan).reshape(index.shape)


def inverse_norms(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 / max(|row|, 1e-12) of (B, n, D) as (B, n), in this dtype; NaN where a length is not finite."""
    parts = [rows[:, a:b].to(dtype).norm(dim=-1) for a, b in blocks(rows.shape[1], rows.shape[2], rows.device)]
    length = torch.cat(parts, 1) if parts else rows.new_empty(rows.shape[:2], dtype=dtype)
    return length.clamp_min(NORM_FLOOR).reciprocal().masked_fill(~length.isfinite(), torch.nan)


def is_mutual(index_ab: Tensor, index_ba: Tensor) -> Tensor:
    """Where the choice of a row of a, (B, N), chooses that row back: (B, N) bool; index_ba is (B, M)."""
    if index_ba.shape[1] == 0:
        return torch.zeros_like(index_ab, dtype=torch.bool)
    back = index_ba.gather(1, index_ab.clamp_min(0))
    return (index_ab >= 0) & (back == torch.arange(index_ab.shape[1], device=index_ab.device))


# --- tiles of the product --------------------------------------------------------------------------------------------


def _tiles(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and float32 dot products of (N, D) with (M, D), the columns in the outer loop.

    A block of keys is widened once; on a GPU operands of one half-precision dtype are multiplied as they are.
    """
    as_they_are = query.device.type == "cuda" and query.dtype == key.dtype != torch.float32
    side = isqrt(TILE.get(query.device.type, TILE_ELSEWHERE))
    for columns in _slices(len(key), side):
        k = key[columns] if as_they_are else key[columns].to(torch.float32)
        for rows in _slices(len(query), side):
            q = query[rows]
            yield rows, columns, torch.mm(q, k.T, out_dtype=torch.float32) if as_they_are else q.to(torch.float32) @ k.T


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _both_inverse_norms(query, key, query_inverse_norm, key_inverse_norm, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Those given, in this dtype, or else those of the rows."""
    pairs = ((query, query_inverse_norm), (key, key_inverse_norm))
    first, second = (inverse_norms(rows, dtype) if given is None else given.to(dtype) for rows, given in pairs)
    return first, second


def _factor(inverse_norm: Tensor, mask: Tensor | None) -> Tensor:
    """Inverse norms, NaN where a row may not be chosen."""
    return inverse_norm if mask is None else inverse_norm.masked_fill(~mask, torch.nan)


def _choosable(dots: Tensor, factor: Tensor) -> Tensor:
    """Scores but for the factor of the rows, in the place of the dot products; -inf where one is not finite."""
    return dots.mul_(factor).nan_to_num_(-torch.inf, -torch.inf, -torch.inf)


# --- the best so far -------------------------------------------------------------------------------------------------


class _Best:
    """The highest score of each row and where it is."""

    def __init__(self, rows: Tensor) -> None:
        self.index = rows.new_full((len(rows),), -1, dtype=torch.int64)
        self.score = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)

    def update(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Take a tile of scores into account; columns must come in rising order."""
        top, where = scores.max(1)  # the first maximum, as documented
        better = top > self.score[rows]  # strictly: an earlier tile keeps a tie
        self.score[rows] = torch.where(better, top, self.score[rows])
        self.index[rows] = torch.where(better, where + columns.start, self.index[rows])

    def found(self, inverse_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Index and cosine of each row; -1 and NaN for none."""
        return _found(self.index, self.score, inverse_norm)


def _found(index: Tensor, score: Tensor, inverse_norm: Tensor) -> tuple[Tensor, Tensor]:
    score = score * inverse_norm
    none = ~score.isfinite()
    return index.masked_fill(none, -1), score.clamp(-1, 1).masked_fill(none, torch.nan)


def _ranks(scores: Tensor, first: int) -> Tensor:
    """int64 that rise with the score and, among equal ones, fall with the column's index; the scores are used up."""
    bits = scores.add_(0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)  # below zero the bits of a float fall as it rises
    ranks = bits.to(torch.int64)
    ranks <<= 32
    ranks |= 0xFFFFFFFF - first - torch.arange(scores.shape[1], device=scores.device)
    return ranks


def _unranked(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Index and score; NaN for the lowest int64, which is no rank."""
    bits = (ranks >> 32) ^ ((ranks >> 63) & 0x7FFFFFFF)
    return 0xFFFFFFFF - (ranks & 0xFFFFFFFF), bits.to(torch.int32).view(torch.float32)


def _nothing(rows: Tensor, each: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Index and score of nothing found: (B, n, *each)."""
    shape = (*rows.shape[:2], *each)
    return rows.new_full(shape, -1, dtype=torch.int64), rows.new_full(shape, torch.nan, dtype=torch.float32)


def _differentiable(score: Tensor, query: Tensor, key: Tensor, norms: tuple[Tensor, Tensor], index: Tensor) -> Tensor:
    """The scores again from their own rows, where a gradient is wanted: the search keeps nothing of the product."""
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (query, key, *norms)):
        return score
    return cosine_at(query, key, *norms, index, torch.float32)
