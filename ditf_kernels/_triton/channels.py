"""Massive channels, in three launches; no atomics, every sum in a fixed order.

partial    (P, D): a program sums |x| of some blocks of rows over a block of columns, which is the one read of x
magnitude  (D,): the partial sums of a column, over the number of rows
rank       each channel counts the channels before it: its place among the k largest, and who is the median
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..channels import ROW_AXES, row_axes
from .numbers import load_float32

__all__ = ["massive_channels"]


@triton.jit(do_not_specialize=["n_middle", "n_rows", "n_blocks", "n_parts"])
def _partial_kernel(
    x_ptr,  # (outer, n_middle, n_rows, D)
    partial_ptr,  # (n_parts, D) contiguous
    stride_outer,
    stride_middle,
    stride_row,
    stride_channel,
    n_middle,
    n_rows,
    n_blocks,  # of rows, over all outer and middle indices
    n_parts,  # programs per block of columns
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    column_blocks: tl.constexpr = (D + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    column = (tl.program_id(0) % column_blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    part = tl.program_id(0) // column_blocks
    row_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    inside = (column < D)[None, :]
    offset = (column.to(tl.int64) * stride_channel)[None, :]
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for block in tl.range(part, n_blocks, n_parts, num_stages=STAGES):
        outside = (block // row_blocks).to(tl.int64)
        row = (block % row_blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        start = x_ptr + (outside // n_middle) * stride_outer + (outside % n_middle) * stride_middle
        x = load_float32(start + (row * stride_row)[:, None] + offset, inside & (row < n_rows)[:, None])
        total += tl.abs(x)
    tl.store(partial_ptr + part.to(tl.int64) * D + column, tl.sum(total, 0), mask=column < D)


@triton.jit(do_not_specialize=["n_parts", "count"])
def _magnitude_kernel(
    partial_ptr,  # (n_parts, D) contiguous
    magnitude_ptr,  # (D,)
    n_parts,
    count,  # float32, rows summed
    D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros([BLOCK_PARTS, BLOCK_COLUMNS], tl.float32)
    for first in range(0, n_parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)
        mask = (part < n_parts)[:, None] & (column < D)[None, :]
        total += tl.load(partial_ptr + part.to(tl.int64)[:, None] * D + column[None, :], mask=mask, other=0.0)
    tl.store(magnitude_ptr + column, tl.sum(total, 0) / count, mask=column < D)


@triton.jit
def _ordered_bits(magnitude):
    """int32 in the order of these numbers >= 0, with NaN above infinity."""
    bits = magnitude.to(tl.int32, bitcast=True)
    return tl.where(magnitude == magnitude, bits, 0x7FC00000)


@triton.jit(do_not_specialize=["k"])
def _rank_kernel(
    magnitude_ptr,  # (D,)
    index_ptr,  # (k,) int64
    largest_ptr,  # (k,)
    median_ptr,  # (1,)
    k,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(magnitude_ptr + channel, mask=channel < D, other=0.0)
    bits = _ordered_bits(own)[:, None]
    before = tl.zeros([BLOCK, BLOCK_OTHERS], tl.int32)
    missing = tl.zeros([BLOCK_OTHERS], tl.int32)
    for first in range(0, D, BLOCK_OTHERS):
        other = first + tl.arange(0, BLOCK_OTHERS)
        magnitude = tl.load(magnitude_ptr + other, mask=other < D, other=0.0)
        other_bits = tl.where(other < D, _ordered_bits(magnitude), -1)[None, :]
        first_of_equal = (other_bits == bits) & (other[None, :] < channel[:, None])
        before += ((other_bits > bits) | first_of_equal).to(tl.int32)
        missing += (magnitude != magnitude).to(tl.int32)
    rank = tl.sum(before, 1)
    chosen = (channel < D) & (rank < k)
    tl.store(index_ptr + rank, channel.to(tl.int64), mask=chosen)
    tl.store(largest_ptr + rank, own, mask=chosen)
    n_missing = tl.sum(missing, 0)
    middle = tl.minimum(n_missing + (D - n_missing) // 2, D - 1)  # the lower median, counted from the largest down
    tl.store(median_ptr + tl.zeros([BLOCK], tl.int32), own, mask=(channel < D) & (rank == middle))


# --- launch ----------------------------------------------------------------------------------------------------------

PARTIAL = {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 256, "STAGES": 3, "num_warps": 4, "num_stages": 3}
MAGNITUDE = {"BLOCK_PARTS": 32, "BLOCK_COLUMNS": 64, "num_warps": 4, "num_stages": 1}
RANK = {"BLOCK": 32, "BLOCK_OTHERS": 64, "num_warps": 4, "num_stages": 1}
EXACT = {"enable_fp_fusion": False}

PROGRAMS = 528  # four for each of the 132 multiprocessors of an H100
BLOCKS = 64  # of rows that one program adds up: what bounds the rounding of a long sum


def massive_channels(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The op of the same name, on tensors Triton can reach."""
    channels = x.shape[-1]
    axes = sorted(row_axes(x))  # the longest innermost, where a program takes a block of it
    (outer, stride_outer), (middle, stride_middle), (rows, stride_row) = [(1, 0)] * (ROW_AXES - len(axes)) + axes
    blocks = outer * middle * triton.cdiv(rows, PARTIAL["BLOCK_ROWS"])
    column_blocks = triton.cdiv(channels, PARTIAL["BLOCK_COLUMNS"])
    parts = min(blocks, max(triton.cdiv(PROGRAMS, column_blocks), triton.cdiv(blocks, BLOCKS)))

    partial = torch.empty((parts, channels), dtype=torch.float32, device=x.device)
    magnitude = torch.empty((channels,), dtype=torch.float32, device=x.device)
    index = torch.empty((k,), dtype=torch.int64, device=x.device)
    largest = torch.empty((k,), dtype=torch.float32, device=x.device)
    median = torch.empty((), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _partial_kernel[(column_blocks * parts,)](
            x, partial, stride_outer, stride_middle, stride_row, x.stride(-1), middle, rows, blocks, parts,
            D=channels, **PARTIAL, **EXACT,
        )  # fmt: skip
        _magnitude_kernel[(triton.cdiv(channels, MAGNITUDE["BLOCK_COLUMNS"]),)](
            partial, magnitude, parts, float(outer * middle * rows), D=channels, **MAGNITUDE, **EXACT
        )
        _rank_kernel[(triton.cdiv(channels, RANK["BLOCK"]),)](
            magnitude, index, largest, median, k, D=channels, **RANK, **EXACT
        )
    return index, largest, median
