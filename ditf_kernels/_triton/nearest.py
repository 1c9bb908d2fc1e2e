"""Nearest neighbours by cosine without a similarity matrix, in three launches.

prepare   inverse norms that were not given, in one read of the rows, and the empty answer; a program owns a few rows
argmax    a program owns a (queries, keys) tile of the product; the best of each row, and for mutual neighbours of each
          column, goes to memory as one 64-bit key with one atomic maximum
topk      a program owns a few queries, walks a part of the keys and holds the best k of each query in registers
decode    64-bit keys to index and score; for topk the parts are merged first

The maximum of 64-bit keys does not depend on the order of the programs, and the sum over D is never split between them:
the same shapes give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import INTERPRETED, NO_KEY, is_finite, key_index, key_value, ordered_key
from .rows import dots, floats, inverse_norms, shared_memory, widens

__all__ = ["cosine_argmax", "cosine_topk", "mutual_nearest"]


# --- a tile of the product -------------------------------------------------------------------------------------------


@triton.jit
def _rows(first, count, BLOCK: tl.constexpr):
    """A block of rows from first on; the last one stands in for those beyond the end: loads need no masks for them."""
    return tl.minimum(first + tl.arange(0, BLOCK).to(tl.int64), count - 1)


@triton.jit
def _factor(
    inverse_ptr, mask_ptr, stride_inverse_batch, stride_inverse_row, stride_mask_batch, stride_mask_row, batch, first,
    n_rows, BLOCK: tl.constexpr,
):  # fmt: skip
    """Inverse norms of a block of rows; NaN, which no score survives, where a row may not be chosen."""
    local = tl.arange(0, BLOCK)
    inside = local < n_rows - first
    if mask_ptr is not None:
        block_ptr = mask_ptr + batch * stride_mask_batch + first * stride_mask_row
        inside = inside & (tl.load(block_ptr + local.to(tl.int64) * stride_mask_row, mask=inside, other=0) != 0)
    block_ptr = inverse_ptr + batch * stride_inverse_batch + first * stride_inverse_row
    return tl.load(block_ptr + local.to(tl.int64) * stride_inverse_row, mask=inside, other=float("nan"))


@triton.jit
def _choosable(scores):
    """-inf where a score is not finite: a row that is not, or may not be chosen, or lies outside."""
    return tl.where(is_finite(scores), scores, float("-inf"))


@triton.jit
def _keep_best(best_ptr, scores, AXIS: tl.constexpr, first, n_rows):
    """Raise the keys from best_ptr on, n_rows at most, to the best scores of this tile, which starts at index first."""
    if AXIS == 1:
        value, where = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
    else:  # a thread meets 64 columns: their values and then their places fit in its registers, both at once do not
        value = tl.max(scores, 0)
        place = tl.arange(0, scores.shape[0])
        where = tl.min(tl.where(scores == value[None, :], place[:, None], scores.shape[0]), 0)
    row = tl.arange(0, value.shape[0])
    chosen = (row < n_rows) & (value > float("-inf"))
    tl.atomic_max(best_ptr + row, ordered_key(value, first + where), mask=chosen, sem="relaxed")


@triton.jit(do_not_specialize=["n_queries", "n_keys"])
def _argmax_kernel(
    query_ptr,  # (B, N, D)
    key_ptr,  # (B, M, D)
    query_inverse_ptr,  # (B, N)
    key_inverse_ptr,  # (B, M)
    query_mask_ptr,  # (B, N) uint8, or None: every query may be chosen
    key_mask_ptr,  # (B, M) uint8, or None
    query_best_ptr,  # (B, N) int64: the best key of each query
    key_best_ptr,  # (B, M) int64: the best query of each key, or None
    stride_query_batch,
    stride_query_row,
    stride_query_channel,
    stride_key_batch,
    stride_key_row,
    stride_key_channel,
    stride_query_inverse_batch,
    stride_query_inverse_row,
    stride_key_inverse_batch,
    stride_key_inverse_row,
    stride_query_mask_batch,
    stride_query_mask_row,
    stride_key_mask_batch,
    stride_key_mask_row,
    n_queries,
    n_keys,
    D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles that run together, so that their keys stay in L2
    WIDEN: tl.constexpr,
):
    rows, columns = tl.cdiv(n_queries, BLOCK_QUERIES), tl.cdiv(n_keys, BLOCK_KEYS)
    program = tl.program_id(0)
    batch = (program // (rows * columns)).to(tl.int64)
    tile = program % (rows * columns)
    row, column = tl.swizzle2d(tile // columns, tile % columns, rows, columns, GROUP)
    first_query, first_key = row.to(tl.int64) * BLOCK_QUERIES, column.to(tl.int64) * BLOCK_KEYS

    products = dots(
        query_ptr + batch * stride_query_batch, key_ptr + batch * stride_key_batch,
        _rows(first_query, n_queries, BLOCK_QUERIES), _rows(first_key, n_keys, BLOCK_KEYS),
        stride_query_row, stride_query_channel, stride_key_row, stride_key_channel, D, BLOCK_D, WIDEN,
    )  # fmt: skip
    key_factor = _factor(
        key_inverse_ptr, key_mask_ptr, stride_key_inverse_batch, stride_key_inverse_row, stride_key_mask_batch,
        stride_key_mask_row, batch, first_key, n_keys, BLOCK_KEYS,
    )  # fmt: skip
    scores = _choosable(products * key_factor[None, :])
    _keep_best(query_best_ptr + batch * n_queries + first_query, scores, 1, first_key, n_queries - first_query)
    if key_best_ptr is not None:
        query_factor = _factor(
            query_inverse_ptr, query_mask_ptr, stride_query_inverse_batch, stride_query_inverse_row,
            stride_query_mask_batch, stride_query_mask_row, batch, first_query, n_queries, BLOCK_QUERIES,
        )  # fmt: skip
        scores = _choosable(products * query_factor[:, None])
        _keep_best(key_best_ptr + batch * n_keys + first_key, scores, 0, first_query, n_keys - first_key)


# --- the best k ------------------------------------------------------------------------------------------------------


@triton.jit
def _best_of_tile(scores, first_key):
    """The highest score of each row as a key (NO_KEY: none is left), and its column."""
    value, where = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
    return tl.where(value > float("-inf"), ordered_key(value, first_key + where), NO_KEY), where


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_parts", "tiles_per_part"])
def _topk_kernel(
    query_ptr,  # (B, N, D)
    key_ptr,  # (B, M, D)
    key_inverse_ptr,  # (B, M)
    key_mask_ptr,  # (B, M) uint8, or None
    best_ptr,  # (B, N, n_parts, KEEP) contiguous int64: the best of each part of the keys, in no order
    stride_query_batch,
    stride_query_row,
    stride_query_channel,
    stride_key_batch,
    stride_key_row,
    stride_key_channel,
    stride_key_inverse_batch,
    stride_key_inverse_row,
    stride_key_mask_batch,
    stride_key_mask_row,
    n_queries,
    n_keys,
    n_parts,
    tiles_per_part,
    D: tl.constexpr,
    KEEP: tl.constexpr,  # k, rounded up to a power of two
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    rows, columns = tl.cdiv(n_queries, BLOCK_QUERIES), tl.cdiv(n_keys, BLOCK_KEYS)
    program = tl.program_id(0)
    batch = (program // (rows * n_parts)).to(tl.int64)
    part = (program // rows % n_parts).to(tl.int64)
    first_query = (program % rows).to(tl.int64) * BLOCK_QUERIES
    column = tl.arange(0, BLOCK_KEYS)
    slot = tl.arange(0, KEEP)
    # The places that are still empty differ, so that one new key fills one place.
    best = tl.zeros([BLOCK_QUERIES, KEEP], tl.int64) + slot[None, :] + NO_KEY

    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, columns)):
        first_key = tile * BLOCK_KEYS
        products = dots(
            query_ptr + batch * stride_query_batch, key_ptr + batch * stride_key_batch,
            _rows(first_query, n_queries, BLOCK_QUERIES), _rows(first_key, n_keys, BLOCK_KEYS),
            stride_query_row, stride_query_channel, stride_key_row, stride_key_channel, D, BLOCK_D, WIDEN,
        )  # fmt: skip
        key_factor = _factor(
            key_inverse_ptr, key_mask_ptr, stride_key_inverse_batch, stride_key_inverse_row, stride_key_mask_batch,
            stride_key_mask_row, batch, first_key, n_keys, BLOCK_KEYS,
        )  # fmt: skip
        scores = _choosable(products * key_factor[None, :])

        # Rounds until no row's next best would enter; at most KEEP, and few once the first tiles are done.
        candidate, where = _best_of_tile(scores, first_key)
        worst = tl.min(best, 1)
        while tl.max((candidate > worst).to(tl.int32), 0) > 0:
            enters = (best == worst[:, None]) & (candidate > worst)[:, None]
            best = tl.where(enters, candidate[:, None], best)
            scores = tl.where(column[None, :] == where[:, None], float("-inf"), scores)
            candidate, where = _best_of_tile(scores, first_key)
            worst = tl.min(best, 1)

    query = first_query + tl.arange(0, BLOCK_QUERIES)
    own = ((batch * n_queries + query) * n_parts + part) * KEEP
    tl.store(best_ptr + own[:, None] + slot[None, :], best, mask=(query < n_queries)[:, None])


# --- decode ----------------------------------------------------------------------------------------------------------


@triton.jit
def _decoded(key, inverse):
    """Index and score of a key, times the inverse norm of the row it was chosen for; -1 and NaN for none."""
    score = key_value(key) * inverse
    found = is_finite(score)  # the value of NO_KEY is NaN
    score = tl.minimum(tl.maximum(score, -1.0), 1.0)
    return tl.where(found, key_index(key), -1), tl.where(found, score, float("nan"))


@triton.jit(do_not_specialize=["n_rows", "n_others", "n_all"])
def _decode_kernel(
    best_ptr,  # (B, n) int64 keys
    inverse_ptr,  # (B, n)
    other_index_ptr,  # (B, m) int64: the choices of the other side, or None
    index_ptr,  # (B, n) int64
    score_ptr,  # (B, n) float32
    mutual_ptr,  # (B, n) bool, or None
    stride_inverse_batch,
    stride_inverse_row,
    n_rows,  # n
    n_others,  # m
    n_all,  # B * n
    BLOCK: tl.constexpr,
):
    own = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = own < n_all
    batch, row = own // n_rows, own % n_rows
    key = tl.load(best_ptr + own, mask=inside, other=NO_KEY)
    inverse_offset = batch * stride_inverse_batch + row * stride_inverse_row
    index, score = _decoded(key, tl.load(inverse_ptr + inverse_offset, mask=inside, other=0.0))
    tl.store(index_ptr + own, index, mask=inside)
    tl.store(score_ptr + own, score, mask=inside)
    if mutual_ptr is not None:
        found = inside & (index >= 0)
        chosen_back = tl.load(other_index_ptr + batch * n_others + index, mask=found, other=-1)
        tl.store(mutual_ptr + own, found & (chosen_back == row), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_all", "width"])
def _merge_kernel(
    best_ptr,  # (B, n, width) int64 keys
    inverse_ptr,  # (B, n)
    index_ptr,  # (B, n, K) int64
    score_ptr,  # (B, n, K) float32
    stride_inverse_batch,
    stride_inverse_row,
    n_rows,  # n
    n_all,  # B * n
    width,
    K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    own = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = own < n_all
    inverse_offset = own // n_rows * stride_inverse_batch + own % n_rows * stride_inverse_row
    inverse = tl.load(inverse_ptr + inverse_offset, mask=inside, other=0.0)
    column = tl.arange(0, BLOCK_WIDTH)
    valid = inside[:, None] & (column < width)[None, :]
    keys = tl.load(best_ptr + (own * width)[:, None] + column[None, :], mask=valid, other=NO_KEY)
    for slot in range(K):
        best = tl.max(keys, 1)
        index, score = _decoded(best, inverse)
        tl.store(index_ptr + own * K + slot, index, mask=inside)
        tl.store(score_ptr + own * K + slot, score, mask=inside)
        keys = tl.where(keys == best[:, None], NO_KEY, keys)


# --- launch ----------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Of the product, and how it is compiled."""

    queries: int
    keys: int
    channels: int  # of one step
    warps: int
    stages: int

    def shared(self) -> int:
        """Bytes of shared memory that half-precision operands take."""
        return 2 * self.stages * (self.queries + self.keys) * self.channels

    def options(self) -> dict[str, Any]:
        """As arguments of a launch."""
        return {
            "BLOCK_QUERIES": self.queries, "BLOCK_KEYS": self.keys, "BLOCK_D": self.channels,
            "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True,
        }  # fmt: skip


# From the tile that moves the fewest bytes per product to the one that fills the device with the least work.
HALF = (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4))
HALF_TOPK = (Tile(128, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4))
# Without tensor cores operands pass through registers.
FLOAT32 = (Tile(64, 64, 16, 4, 3), Tile(32, 32, 16, 4, 3))
FLOAT32_TOPK = (Tile(64, 64, 16, 8, 3), Tile(32, 32, 16, 4, 3))
INTERPRETER = (Tile(64, 64, 64, 4, 1),)  # few programs, because each one costs the interpreter a fixed time

GROUP = 8
MULTIPROCESSORS = 132  # of an H100 or H200; not asked of the device, so that tiles, and sums, are the same everywhere
DECODE = {"BLOCK": 128, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
MERGE = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
MERGED = 1024  # 64-bit keys of one program of the merge
PARTS = 64  # most parts the keys are cut into for topk


def cosine_argmax(
    query: Tensor, key: Tensor, query_inverse: Tensor | None, key_inverse: Tensor | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The op of the same name, on tensors Triton can reach."""
    best, _, query_inverse, _ = _best(query, key, query_inverse, key_inverse, None, key_mask, mutual=False)
    return _decode(best, query_inverse, None)[:2]


def mutual_nearest(
    a: Tensor,
    b: Tensor,
    a_inverse: Tensor | None,
    b_inverse: Tensor | None,
    a_mask: Tensor | None,
    b_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op of the same name, on tensors Triton can reach."""
    a_best, b_best, a_inverse, b_inverse = _best(a, b, a_inverse, b_inverse, a_mask, b_mask, mutual=True)
    index_ba, score_ba, _ = _decode(b_best, b_inverse, None)
    index_ab, score_ab, mutual = _decode(a_best, a_inverse, index_ba)
    return index_ab, index_ba, mutual, score_ab, score_ba


def cosine_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    query_inverse: Tensor | None,
    key_inverse: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The op of the same name, for k of at most 16, on tensors Triton can reach."""
    (batch, n_queries, channels), n_keys = query.shape, key.shape[1]
    query_inverse, key_inverse = inverse_norms(query, key, query_inverse, key_inverse, None, None)
    index = torch.empty((batch, n_queries, k), dtype=torch.int64, device=query.device)
    score = torch.empty((batch, n_queries, k), dtype=torch.float32, device=query.device)
    if index.numel() == 0:
        return index, score
    widen = widens(query, key)
    tile = _tile(FLOAT32_TOPK if widen else HALF_TOPK, query, n_keys)
    rows, columns = triton.cdiv(n_queries, tile.queries), triton.cdiv(n_keys, tile.keys)
    parts = max(1, min(columns, PARTS, triton.cdiv(2 * MULTIPROCESSORS, batch * rows)))
    tiles_per_part = triton.cdiv(columns, parts)
    keep = triton.next_power_of_2(k)
    best = torch.empty((batch, n_queries, parts, keep), dtype=torch.int64, device=query.device)
    with torch.cuda.device_of(query):
        _topk_kernel[(batch * rows * parts,)](
            query, key, key_inverse, _bytes(key_mask), best,
            *query.stride(), *key.stride(), *key_inverse.stride(), *_strides(key_mask),
            n_queries, n_keys, parts, tiles_per_part, D=channels, KEEP=keep, WIDEN=widen, **tile.options(),
        )  # fmt: skip
        width = triton.next_power_of_2(parts * keep)
        block_rows = max(1, MERGED // width)
        _merge_kernel[(triton.cdiv(batch * n_queries, block_rows),)](
            best, query_inverse, index, score, *query_inverse.stride(), n_queries, batch * n_queries, parts * keep,
            K=k, BLOCK_ROWS=block_rows, BLOCK_WIDTH=width, **MERGE,
        )  # fmt: skip
    return index, score


def _best(
    query, key, query_inverse, key_inverse, query_mask, key_mask, *, mutual
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The best key of each query (B, N) and, for mutual, the best query of each key (B, M); inverse norms of both."""
    (batch, n_queries, channels), n_keys = query.shape, key.shape[1]
    query_best = torch.empty((batch, n_queries), dtype=torch.int64, device=query.device)
    key_best = torch.empty((batch, n_keys), dtype=torch.int64, device=query.device) if mutual else None
    query_inverse, key_inverse = inverse_norms(query, key, query_inverse, key_inverse, query_best, key_best)
    if batch * n_queries * n_keys == 0:
        return query_best, key_best, query_inverse, key_inverse
    widen = widens(query, key)
    tile = _tile(FLOAT32 if widen else HALF, query, n_keys)
    programs = batch * triton.cdiv(n_queries, tile.queries) * triton.cdiv(n_keys, tile.keys)
    with torch.cuda.device_of(query):
        _argmax_kernel[(programs,)](
            query, key, query_inverse, key_inverse, _bytes(query_mask), _bytes(key_mask), query_best, key_best,
            *query.stride(), *key.stride(), *query_inverse.stride(), *key_inverse.stride(),
            *_strides(query_mask), *_strides(key_mask),
            n_queries, n_keys, D=channels, GROUP=GROUP, WIDEN=widen, **tile.options(),
        )  # fmt: skip
    return query_best, key_best, query_inverse, key_inverse


def _decode(best: Tensor, inverse: Tensor, other_index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Index, score and, where the choices of the other side are given, whether the choice is mutual."""
    index, score = torch.empty_like(best), floats(best)
    mutual = torch.empty(best.shape if other_index is not None else 0, dtype=torch.bool, device=best.device)
    if best.numel():
        with torch.cuda.device_of(best):
            _decode_kernel[(triton.cdiv(best.numel(), DECODE["BLOCK"]),)](
                best, inverse, other_index, index, score, None if other_index is None else mutual, *inverse.stride(),
                best.shape[1], 0 if other_index is None else other_index.shape[1], best.numel(), **DECODE,
            )  # fmt: skip
    return index, score, mutual


def _tile(tiles: tuple[Tile, ...], query: Tensor, n_keys: int) -> Tile:
    """The first tile that fits the device's shared memory and gives every multiprocessor work, else the last."""
    if INTERPRETED.value:
        tiles = INTERPRETER
    batch, n_queries = query.shape[:2]
    for tile in tiles[:-1]:
        count = batch * triton.cdiv(n_queries, tile.queries) * triton.cdiv(n_keys, tile.keys)
        if count >= MULTIPROCESSORS and tile.shared() <= shared_memory(query.device):
            return tile
    return tiles[-1]


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def _strides(mask: Tensor | None) -> tuple[int, int]:
    return (0, 0) if mask is None else mask.stride()
