"""Nearest neighbour on the upsampled grid, in four launches for any number of pairs.

planes    (5, M): dot products of each cell with itself and its neighbours; a program owns a few cells
coarse    unit query x raw key, float32, pair by pair; a program owns a (queries, cells) tile
argmax    a program owns a tile of pixels: their inverse norms once, then one interpolation per query, one atomic each
decode    64-bit keys to (x, y) and score

A *segment* is a pair, or a part of its queries where the coarse scores of all of them would take too much memory. The
segment table (S, 9) int64 tells a program where its data are, with 64-bit offsets.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import (
    CANCELLED,
    INTERPRETED,
    NO_KEY,
    NORM_FLOOR,
    is_finite,
    key_index,
    key_value,
    load_float32,
    ordered_key,
)

__all__ = ["argmax", "planes"]


class Segment(NamedTuple):
    """One row of the segment table."""

    h: int
    w: int
    height: int
    width: int
    cell: int  # first row of its key
    query: int  # first row of its queries
    count: int  # number of its queries
    coarse: int  # first of its count * h * w coarse scores
    pixel: int  # first of its height * width mask values


FIELDS = tl.constexpr(len(Segment._fields))


@triton.jit
def _field(table_ptr, segment, FIELD: tl.constexpr):
    return tl.load(table_ptr + segment * FIELDS + FIELD)


# --- planes ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_blocks", "n_cells"])
def _planes_kernel(
    key_ptr,  # (M, D)
    planes_ptr,  # (5, M) contiguous
    table_ptr,  # (S, FIELDS)
    stride_key_row,
    stride_key_channel,
    n_blocks,  # programs per segment
    n_cells,  # M
    D: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    segment = program // n_blocks
    h, w = _field(table_ptr, segment, 0), _field(table_ptr, segment, 1)
    cell = (program % n_blocks).to(tl.int64) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    inside = cell < h * w
    if (program % n_blocks) * BLOCK_CELLS < h * w:
        y, x = cell // w, cell % w
        y_low, x_right = tl.minimum(y + 1, h - 1), tl.minimum(x + 1, w - 1)  # clamped neighbours
        base = key_ptr + _field(table_ptr, segment, 4) * stride_key_row
        here_ptr = (base + cell * stride_key_row)[:, None]
        right_ptr = (base + (y * w + x_right) * stride_key_row)[:, None]
        below_ptr = (base + (y_low * w + x) * stride_key_row)[:, None]
        diagonal_ptr = (base + (y_low * w + x_right) * stride_key_row)[:, None]

        itself = tl.zeros([BLOCK_CELLS, BLOCK_D], tl.float32)
        across, down, diagonal, anti = itself, itself, itself, itself
        for first in range(0, D, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            valid = inside[:, None] & (channel < D)[None, :]
            offset = (channel.to(tl.int64) * stride_key_channel)[None, :]
            a = load_float32(here_ptr + offset, valid)  # (BLOCK_CELLS, BLOCK_D)
            r = load_float32(right_ptr + offset, valid)
            b = load_float32(below_ptr + offset, valid)
            d = load_float32(diagonal_ptr + offset, valid)
            itself += a * a
            across += a * r
            down += a * b
            diagonal += a * d
            anti += r * b

        n = n_cells.to(tl.int64)
        out = planes_ptr + _field(table_ptr, segment, 4) + cell
        tl.store(out, tl.sum(itself, 1), mask=inside)
        tl.store(out + n, tl.sum(across, 1), mask=inside)
        tl.store(out + 2 * n, tl.sum(down, 1), mask=inside)
        tl.store(out + 3 * n, tl.sum(diagonal, 1), mask=inside)
        tl.store(out + 4 * n, tl.sum(anti, 1), mask=inside)


# --- coarse scores ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_cell_blocks", "n_query_blocks"])
def _coarse_kernel(
    query_ptr,  # (K, D)
    key_ptr,  # (M, D)
    coarse_ptr,  # per segment (count, h*w), back to back
    table_ptr,  # (S, FIELDS)
    stride_query_row,
    stride_query_channel,
    stride_key_row,
    stride_key_channel,
    n_cell_blocks,
    n_query_blocks,
    D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    program = tl.program_id(0)
    segment = program // (n_cell_blocks * n_query_blocks)
    cells = _field(table_ptr, segment, 0) * _field(table_ptr, segment, 1)
    count = _field(table_ptr, segment, 6)
    cell = (program % n_cell_blocks).to(tl.int64) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    first_query = (program // n_cell_blocks % n_query_blocks) * BLOCK_QUERIES
    query = first_query.to(tl.int64) + tl.arange(0, BLOCK_QUERIES)
    if (first_query < count) & ((program % n_cell_blocks) * BLOCK_CELLS < cells):
        query_row = (_field(table_ptr, segment, 5) + query) * stride_query_row
        key_row = (_field(table_ptr, segment, 4) + cell) * stride_key_row
        dot = tl.zeros([BLOCK_QUERIES, BLOCK_CELLS], tl.float32)
        square = tl.zeros([BLOCK_QUERIES], tl.float32)
        for first in range(0, D, BLOCK_D):
            channel = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
            q_ptr = query_ptr + query_row[:, None] + (channel * stride_query_channel)[None, :]
            k_ptr = key_ptr + key_row[None, :] + (channel * stride_key_channel)[:, None]
            q_mask = (query < count)[:, None] & (channel < D)[None, :]
            k_mask = (cell < cells)[None, :] & (channel < D)[:, None]
            if WIDEN:
                q = load_float32(q_ptr, q_mask)  # (BLOCK_QUERIES, BLOCK_D)
                k = load_float32(k_ptr, k_mask)  # (BLOCK_D, BLOCK_CELLS)
                dot = tl.dot(q, k, dot, input_precision="ieee")  # TF32 would cost seven bits
                square += tl.sum(q * q, 1)
            else:
                q = tl.load(q_ptr, mask=q_mask, other=0.0)
                k = tl.load(k_ptr, mask=k_mask, other=0.0)
                dot = tl.dot(q, k, dot)
                square += tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)

        # A row with NaN marks a query that is not finite; a cell that is not finite becomes 0 here and is told by the
        # planes, so that it cannot leak into pixels on which it has weight 0.
        length = tl.sqrt(square)
        unit = dot / tl.maximum(length, NORM_FLOOR)[:, None]
        unit = tl.where(is_finite(unit), unit, 0.0)
        unit = tl.where(is_finite(length)[:, None], unit, float("nan"))
        out = coarse_ptr + _field(table_ptr, segment, 7) + query[:, None] * cells + cell[None, :]
        tl.store(out, unit, mask=(query < count)[:, None] & (cell < cells)[None, :])


# --- argmax over pixels ----------------------------------------------------------------------------------------------


@triton.jit
def _taps(pixel, cells, length):
    """reference.axis_taps: integer positions in units of 1 / 2L cells, so that border weights are exactly 0."""
    unit = 2 * length
    position = (2 * pixel + 1) * cells - length
    position = tl.minimum(tl.maximum(position, 0), unit * (cells - 1))
    low = position // unit
    weight = tl.div_rn((position - low * unit).to(tl.float32), unit.to(tl.float32))
    return low.to(tl.int32), tl.minimum(low + 1, cells - 1).to(tl.int32), weight


@triton.jit
def _squared_length(planes_ptr, offset, weight, inside):
    """Of a cell; 0 if it is not finite, and whether that breaks the pixel."""
    value = tl.load(planes_ptr + offset, mask=inside, other=0.0)
    finite = is_finite(value)
    return tl.where(finite, value, 0.0), (weight > 0) & (finite == 0)


@triton.jit
def _finite_or_zero(pointer, inside):
    value = tl.load(pointer, mask=inside, other=0.0)
    return tl.where(is_finite(value), value, 0.0)


@triton.jit
def _inverse_norm(planes_ptr, stride_plane, stride_cell, w, y_low, y_high, wy, x_low, x_high, wx, inside):
    """1 / |F(p)| of a tile of pixels: 0 where it cancels, NaN where a cell that is not finite has weight."""
    a, b, c, d = 1 - wx, wx, 1 - wy, wy  # a, b (1, X); c, d (Y, 1)
    o00, o01 = (y_low * w + x_low) * stride_cell, (y_low * w + x_high) * stride_cell  # (Y, X)
    o10, o11 = (y_high * w + x_low) * stride_cell, (y_high * w + x_high) * stride_cell
    s00, broken00 = _squared_length(planes_ptr, o00, c * a, inside)
    s01, broken01 = _squared_length(planes_ptr, o01, c * b, inside)
    s10, broken10 = _squared_length(planes_ptr, o10, d * a, inside)
    s11, broken11 = _squared_length(planes_ptr, o11, d * b, inside)
    bound = c * (a * tl.sqrt(s00) + b * tl.sqrt(s01)) + d * (a * tl.sqrt(s10) + b * tl.sqrt(s11))

    across_top = _finite_or_zero(planes_ptr + stride_plane + o00, inside)
    across_bottom = _finite_or_zero(planes_ptr + stride_plane + o10, inside)
    down_left = _finite_or_zero(planes_ptr + 2 * stride_plane + o00, inside)
    down_right = _finite_or_zero(planes_ptr + 2 * stride_plane + o01, inside)
    diagonals = _finite_or_zero(planes_ptr + 3 * stride_plane + o00, inside)
    diagonals += _finite_or_zero(planes_ptr + 4 * stride_plane + o00, inside)
    top = a * a * s00 + b * b * s01 + 2 * a * b * across_top
    bottom = a * a * s10 + b * b * s11 + 2 * a * b * across_bottom
    between = a * a * down_left + b * b * down_right + a * b * diagonals
    square = c * c * top + d * d * bottom + 2 * c * d * between

    inverse = 1.0 / tl.sqrt(tl.maximum(square, NORM_FLOOR * NORM_FLOOR))
    inverse = tl.where(square <= bound * bound * CANCELLED, 0.0, inverse)
    return tl.where(broken00 | broken01 | broken10 | broken11, float("nan"), inverse)


@triton.jit(do_not_specialize=["n_tiles", "n_groups"])
def _argmax_kernel(
    coarse_ptr,  # per segment (count, h*w), back to back
    planes_ptr,  # (5, M)
    mask_ptr,  # per pair (height, width) uint8, back to back; None: every pixel may be chosen
    best_ptr,  # (K,) int64 keys
    table_ptr,  # (S, FIELDS)
    stride_plane,
    stride_cell,
    stride_mask,
    n_tiles,  # programs per segment along the pixels
    n_groups,  # programs per segment along the queries
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    GROUP: tl.constexpr,  # queries of one program
):
    program = tl.program_id(0)
    segment = program // (n_tiles * n_groups)
    tile = program % n_tiles
    first_query = (program // n_tiles % n_groups) * GROUP
    h, w = _field(table_ptr, segment, 0), _field(table_ptr, segment, 1)
    height, width = _field(table_ptr, segment, 2), _field(table_ptr, segment, 3)
    count = _field(table_ptr, segment, 6)
    tiles_x = (width + BLOCK_X - 1) // BLOCK_X
    first_y = (tile // tiles_x) * BLOCK_Y
    if (first_y < height) & (first_query < count):
        y = (first_y + tl.arange(0, BLOCK_Y))[:, None]  # (Y, 1) int64
        x = ((tile % tiles_x) * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]  # (1, X)
        inside = (y < height) & (x < width)
        y_low, y_high, wy = _taps(tl.minimum(y, height - 1), h, height)
        x_low, x_high, wx = _taps(tl.minimum(x, width - 1), w, width)
        cells_ptr = planes_ptr + _field(table_ptr, segment, 4) * stride_cell
        inverse = _inverse_norm(
            cells_ptr, stride_plane, stride_cell, w, y_low, y_high, wy, x_low, x_high, wx, inside
        )  # (Y, X)
        if mask_ptr is not None:
            allowed_ptr = mask_ptr + (_field(table_ptr, segment, 8) + y * width + x) * stride_mask
            inside = inside & (tl.load(allowed_ptr, mask=inside, other=0) != 0)

        top_left, top_right = y_low * w + x_low, y_low * w + x_high
        bottom_left, bottom_right = y_high * w + x_low, y_high * w + x_high
        for query in range(first_query, tl.minimum(first_query + GROUP, count)):
            row = coarse_ptr + _field(table_ptr, segment, 7) + query * h * w
            s00 = tl.load(row + top_left, mask=inside, other=0.0)
            s01 = tl.load(row + top_right, mask=inside, other=0.0)
            s10 = tl.load(row + bottom_left, mask=inside, other=0.0)
            s11 = tl.load(row + bottom_right, mask=inside, other=0.0)
            top, bottom = (1 - wx) * s00 + wx * s01, (1 - wx) * s10 + wx * s11
            score = ((1 - wy) * top + wy * bottom) * inverse
            score = tl.where(inside & (score == score), score, float("-inf"))
            score = tl.reshape(score, [BLOCK_Y * BLOCK_X])
            value, where = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
            pixel = (first_y + where // BLOCK_X) * width + (tile % tiles_x) * BLOCK_X + where % BLOCK_X
            best = best_ptr + _field(table_ptr, segment, 5) + query
            tl.atomic_max(best, ordered_key(value, pixel), mask=value > float("-inf"))


@triton.jit(do_not_specialize=["n_blocks"])
def _decode_kernel(
    best_ptr,  # (K,) int64 keys
    xy_ptr,  # (K, 2) int64
    score_ptr,  # (K,) float32
    table_ptr,  # (S, FIELDS)
    n_blocks,  # programs per segment
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    segment = program // n_blocks
    own = (program % n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = own < _field(table_ptr, segment, 6)
    width = _field(table_ptr, segment, 3)
    query = _field(table_ptr, segment, 5) + own
    key = tl.load(best_ptr + query, mask=inside, other=NO_KEY)
    found = key != NO_KEY
    pixel = key_index(key)
    score = tl.minimum(tl.maximum(key_value(key), -1.0), 1.0)
    tl.store(score_ptr + query, tl.where(found, score, float("nan")), mask=inside)
    tl.store(xy_ptr + 2 * query, tl.where(found, pixel % width, -1), mask=inside)
    tl.store(xy_ptr + 2 * query + 1, tl.where(found, pixel // width, -1), mask=inside)


# --- launch ----------------------------------------------------------------------------------------------------------

PLANES = {"BLOCK_CELLS": 4, "BLOCK_D": 256, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
COARSE = {
    "BLOCK_QUERIES": 16,
    "BLOCK_CELLS": 16,
    "BLOCK_D": 32,
    "num_warps": 4,
    "num_stages": 3,
    "enable_fp_fusion": True,
}
# No fused multiply-adds over pixels, as in the twin: the last bit decides between near ties.
ARGMAX = {"BLOCK_Y": 4, "BLOCK_X": 128, "GROUP": 32, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
DECODE = {"BLOCK": 128, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

QUERIES = 4096  # of one segment
COARSE_SCORES = 1 << 26  # of one launch: 256 MiB of float32


def planes(key: Tensor, grids: Sequence[int]) -> Tensor:
    """The op ``upsampled_planes``, on tensors Triton can reach."""
    out = torch.empty((5, key.shape[0]), dtype=torch.float32, device=key.device)
    segments = _segments([0] * (len(grids) // 2 + 1), grids, grids)
    if not out.numel():
        return out
    blocks = triton.cdiv(max(s.h * s.w for s in segments), PLANES["BLOCK_CELLS"])
    with torch.cuda.device_of(key):
        _planes_kernel[(blocks * len(segments),)](
            key, out, _table(tuple(segments), key.device), *key.stride(), blocks, key.shape[0], D=key.shape[1], **PLANES
        )
    return out


def argmax(
    query: Tensor,
    key: Tensor,
    planes_of_key: Tensor | None,
    mask: Tensor | None,
    query_offsets: Sequence[int],
    grids: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The op ``upsampled_argmax``, on tensors Triton can reach."""
    count = query.shape[0]
    xy = torch.empty((count, 2), dtype=torch.int64, device=key.device)
    score = torch.empty((count,), dtype=torch.float32, device=key.device)
    if count == 0:
        return xy, score
    if planes_of_key is None:
        planes_of_key = planes(key, grids)
    if mask is not None:
        mask = mask.view(torch.uint8)
    best = torch.full((count,), NO_KEY.value, dtype=torch.int64, device=key.device)
    with torch.cuda.device_of(key):
        for segments in _launches(_segments(query_offsets, grids, sizes)):
            _launch(segments, query, key, planes_of_key, mask, best, xy, score)
    return xy, score


def _launch(segments: list[Segment], query, key, planes_of_key, mask, best, xy, score) -> None:
    table = _table(tuple(segments), key.device)
    most = max(s.count for s in segments)
    last = segments[-1]
    coarse = torch.empty(last.coarse + last.count * last.h * last.w, dtype=torch.float32, device=key.device)

    cell_blocks = triton.cdiv(max(s.h * s.w for s in segments), COARSE["BLOCK_CELLS"])
    query_blocks = triton.cdiv(most, COARSE["BLOCK_QUERIES"])
    widen = query.dtype != key.dtype or key.dtype == torch.float32 or INTERPRETED.value
    _coarse_kernel[(cell_blocks * query_blocks * len(segments),)](
        query, key, coarse, table, *query.stride(), *key.stride(), cell_blocks, query_blocks,
        D=key.shape[1], WIDEN=widen, **COARSE,
    )  # fmt: skip

    tiles = max(triton.cdiv(s.height, ARGMAX["BLOCK_Y"]) * triton.cdiv(s.width, ARGMAX["BLOCK_X"]) for s in segments)
    groups = triton.cdiv(most, ARGMAX["GROUP"])
    _argmax_kernel[(tiles * groups * len(segments),)](
        coarse, planes_of_key, mask, best, table, *planes_of_key.stride(), 1 if mask is None else mask.stride(0),
        tiles, groups, **ARGMAX,
    )  # fmt: skip

    blocks = triton.cdiv(most, DECODE["BLOCK"])
    _decode_kernel[(blocks * len(segments),)](best, xy, score, table, blocks, **DECODE)


def _segments(query_offsets: Sequence[int], grids: Sequence[int], sizes: Sequence[int]) -> list[Segment]:
    """One or more per pair, none of more than QUERIES queries; a pair without queries has one too (for its planes)."""
    segments, cell, pixel = [], 0, 0
    pairs = zip(grids[0::2], grids[1::2], sizes[0::2], sizes[1::2], itertools.pairwise(query_offsets), strict=True)
    for h, w, height, width, (first, last) in pairs:
        for query in range(first, max(last, first + 1), QUERIES):
            segments.append(Segment(h, w, height, width, cell, query, min(QUERIES, last - query), 0, pixel))
        cell, pixel = cell + h * w, pixel + height * width
    return segments


def _launches(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Groups of segments whose coarse scores fit, with their places in the buffer."""
    group, used = [], 0
    for segment in segments:
        needed = segment.count * segment.h * segment.w
        if needed == 0:
            continue
        if group and used + needed > COARSE_SCORES:
            yield group
            group, used = [], 0
        group.append(segment._replace(coarse=used))
        used += needed
    if group:
        yield group


@functools.lru_cache(maxsize=64)
def _table(segments: tuple[Segment, ...], device: torch.device) -> Tensor:
    """On the device; kept, because images of a few sizes come again and again."""
    return torch.tensor(segments, dtype=torch.int64, device=device)
