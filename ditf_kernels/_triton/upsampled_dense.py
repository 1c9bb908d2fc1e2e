"""Nearest neighbour of every pixel among every pixel, in two launches per band of source rows.

coarse    source token x target token, float32; a program owns a tile
nearest   a program owns some pixels of one source cell. It walks the target cells twice: for the cell of the highest
          bound at the middle of its pixels, which it scores first; then a tile of cells at a time, of whose bounds few
          reach the score that its pixels have by then. The pixels of those are scored, a tile at a time.

The bound and its proof are those of ``reference/upsampled_dense.py``. What depends on one image alone, O(pixels), comes
from there too, in plain PyTorch; the launcher waits for the GPU to learn how many target cells there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.cells import TargetCells, target_cells
from ..reference.upsampled_dense import SCORE_SLACK, SQUARE_SLACK, SourcePixels, answers, source_pixels
from .numbers import is_finite
from .rows import dots, widens
from .upsampled import planes

__all__ = ["nearest"]

SCORES, SQUARES = tl.constexpr(SCORE_SLACK), tl.constexpr(SQUARE_SLACK)
NOWHERE = tl.constexpr(2**31 - 1)  # above every raster index


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_key_blocks"])
def _coarse_kernel(
    query_ptr,  # (n, D)
    key_ptr,  # (M, D)
    scale_ptr,  # () of the source
    coarse_ptr,  # (n, M) contiguous
    stride_query_row,
    stride_query_channel,
    stride_key_row,
    stride_key_channel,
    n_queries,
    n_keys,
    n_key_blocks,
    D: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    program = tl.program_id(0)
    query = (program // n_key_blocks).to(tl.int64) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    key = (program % n_key_blocks).to(tl.int64) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    products = dots(
        query_ptr, key_ptr, tl.minimum(query, n_queries - 1), tl.minimum(key, n_keys - 1), stride_query_row,
        stride_query_channel, stride_key_row, stride_key_channel, D, BLOCK_D, WIDEN,
    )  # fmt: skip
    products *= tl.load(scale_ptr)
    products = tl.where(is_finite(products), products, 0.0)
    inside = (query < n_queries)[:, None] & (key < n_keys)[None, :]
    tl.store(coarse_ptr + query[:, None] * n_keys + key[None, :], products, mask=inside)


# --- the bound -------------------------------------------------------------------------------------------------------


@triton.jit
def _projection(token_ptr, cells_ptr, corner_ptr, cell, inside, n_cells):
    """kappa L^-1 m of one source token and a tile of cells: four times (cells,)."""
    m0 = tl.load(token_ptr + tl.load(corner_ptr + cell), mask=inside, other=0.0)
    m1 = tl.load(token_ptr + tl.load(corner_ptr + n_cells + cell), mask=inside, other=0.0)
    m2 = tl.load(token_ptr + tl.load(corner_ptr + 2 * n_cells + cell), mask=inside, other=0.0)
    m3 = tl.load(token_ptr + tl.load(corner_ptr + 3 * n_cells + cell), mask=inside, other=0.0)
    at = cells_ptr + cell  # rows: kappa / |g| of four tokens; then L, row by row, reciprocals on the diagonal
    z0 = m0 * tl.load(at) * tl.load(at + 4 * n_cells)
    z1 = (m1 * tl.load(at + n_cells) - tl.load(at + 5 * n_cells) * z0) * tl.load(at + 6 * n_cells)
    z2 = m2 * tl.load(at + 2 * n_cells) - tl.load(at + 7 * n_cells) * z0
    z2 = (z2 - tl.load(at + 8 * n_cells) * z1) * tl.load(at + 9 * n_cells)
    z3 = m3 * tl.load(at + 3 * n_cells) - tl.load(at + 10 * n_cells) * z0
    z3 = z3 - tl.load(at + 11 * n_cells) * z1
    z3 = (z3 - tl.load(at + 12 * n_cells) * z2) * tl.load(at + 13 * n_cells)
    return z0, z1, z2, z3


@triton.jit
def _squared_bound(t00, t01, t10, t11, cells_ptr, corner_ptr, cell, inside, n_cells, w00, w01, w10, w11):
    """(pixels, cells): the squared length of the projections, mixed by the weights of the pixels, (pixels, 1) each."""
    a0, a1, a2, a3 = _projection(t00, cells_ptr, corner_ptr, cell, inside, n_cells)
    b0, b1, b2, b3 = _projection(t01, cells_ptr, corner_ptr, cell, inside, n_cells)
    c0, c1, c2, c3 = _projection(t10, cells_ptr, corner_ptr, cell, inside, n_cells)
    d0, d1, d2, d3 = _projection(t11, cells_ptr, corner_ptr, cell, inside, n_cells)
    z = w00 * a0[None, :] + w01 * b0[None, :] + w10 * c0[None, :] + w11 * d0[None, :]
    square = z * z
    z = w00 * a1[None, :] + w01 * b1[None, :] + w10 * c1[None, :] + w11 * d1[None, :]
    square += z * z
    z = w00 * a2[None, :] + w01 * b2[None, :] + w10 * c2[None, :] + w11 * d2[None, :]
    square += z * z
    z = w00 * a3[None, :] + w01 * b3[None, :] + w10 * c3[None, :] + w11 * d3[None, :]
    return square + z * z


# --- the scores ------------------------------------------------------------------------------------------------------


@triton.jit
def _at_token(t00, t01, t10, t11, token, w00, w01, w10, w11):
    """(pixels, 1): the dot products of the pixels with one target token."""
    top = w00 * tl.load(t00 + token) + w01 * tl.load(t01 + token)
    return top + (w10 * tl.load(t10 + token) + w11 * tl.load(t11 + token))


@triton.jit
def _score_cell(
    t00, t01, t10, t11, corner_ptr, weight_ptr, raster_ptr, cell, n_cells, n_slots, w00, w01, w10, w11, best, found,
    BLOCK_SLOTS: tl.constexpr,
):  # fmt: skip
    """The best score of the pixels and its raster index, after the pixels of one target cell."""
    n0 = _at_token(t00, t01, t10, t11, tl.load(corner_ptr + cell), w00, w01, w10, w11)
    n1 = _at_token(t00, t01, t10, t11, tl.load(corner_ptr + n_cells + cell), w00, w01, w10, w11)
    n2 = _at_token(t00, t01, t10, t11, tl.load(corner_ptr + 2 * n_cells + cell), w00, w01, w10, w11)
    n3 = _at_token(t00, t01, t10, t11, tl.load(corner_ptr + 3 * n_cells + cell), w00, w01, w10, w11)
    for first in range(0, n_slots, BLOCK_SLOTS):
        slot = first + tl.arange(0, BLOCK_SLOTS)
        inside = slot < n_slots
        at = weight_ptr + cell.to(tl.int64) * 4 * n_slots + slot
        u0 = tl.load(at, mask=inside, other=0.0)[None, :]
        u1 = tl.load(at + n_slots, mask=inside, other=0.0)[None, :]
        u2 = tl.load(at + 2 * n_slots, mask=inside, other=0.0)[None, :]
        u3 = tl.load(at + 3 * n_slots, mask=inside, other=0.0)[None, :]
        raster = tl.load(raster_ptr + cell.to(tl.int64) * n_slots + slot, mask=inside, other=NOWHERE)[None, :]
        score = n0 * u0 + n1 * u1 + n2 * u2 + n3 * u3  # (pixels, slots)
        score = tl.where(raster != NOWHERE, score, float("-inf"))
        value = tl.max(score, 1)
        lowest = tl.min(tl.where(score == value[:, None], raster, NOWHERE), 1)
        found = tl.where(value > best, lowest, tl.where(value == best, tl.minimum(lowest, found), found))
        best = tl.maximum(value, best)
    return best, found


@triton.jit(do_not_specialize=["row", "n_cells", "n_keys", "n_places_x", "slots_x", "n_blocks", "n_slots"])
def _nearest_kernel(
    coarse_ptr,  # (rows, w, M) of the tokens from this row of cells on
    axis_y_ptr,  # (2, h) int32: first place and number of places of a row of cells
    axis_x_ptr,  # (2, w) int32
    weight_y_ptr,  # (Py,) of the lower tokens
    weight_x_ptr,  # (Px,) of the right tokens
    inverse_ptr,  # (Py, Px) of the source; what is not above 0 is not asked
    lengths_ptr,  # (Py, Px) lambda
    corner_ptr,  # (4, C) int32
    cells_ptr,  # (14, C): kappa / |g|, and L
    weight_ptr,  # (C, 4, S)
    raster_ptr,  # (C, S) int32
    best_ptr,  # (Py, Px) float32
    found_ptr,  # (Py, Px) int32
    row,  # the first row of source cells
    h,
    w,
    n_keys,  # M
    n_cells,  # C
    n_slots,  # S
    n_places_x,  # Px
    slots_x,  # places of the widest source cell
    n_blocks,  # programs per source cell
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    program = tl.program_id(0)
    own = program // n_blocks
    cell_y, cell_x = own // w, own % w  # from the first row on
    slot = (program % n_blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    within_y, within_x = slot // slots_x, slot % slots_x
    inside = within_y < tl.load(axis_y_ptr + h + row + cell_y)
    inside = inside & (within_x < tl.load(axis_x_ptr + w + cell_x))
    y = tl.load(axis_y_ptr + row + cell_y) + within_y
    x = tl.load(axis_x_ptr + cell_x) + within_x
    place = y * n_places_x + x
    asked = inside & (tl.load(inverse_ptr + place, mask=inside, other=0.0) > 0)
    count = tl.sum(asked.to(tl.int32), 0)
    if count > 0:
        d, b = tl.load(weight_y_ptr + y, mask=asked, other=0.0), tl.load(weight_x_ptr + x, mask=asked, other=0.0)
        lengths = tl.load(lengths_ptr + place, mask=asked, other=0.0)
        w00, w01, w10, w11 = (
            ((1 - d) * (1 - b))[:, None],
            ((1 - d) * b)[:, None],
            (d * (1 - b))[:, None],
            (d * b)[:, None],
        )
        right = tl.minimum(cell_x + 1, w - 1)
        below = tl.minimum(row + cell_y + 1, h - 1) - row
        above_ptr = coarse_ptr + cell_y.to(tl.int64) * w * n_keys
        below_ptr = coarse_ptr + below.to(tl.int64) * w * n_keys
        t00, t01 = above_ptr + cell_x.to(tl.int64) * n_keys, above_ptr + right.to(tl.int64) * n_keys
        t10, t11 = below_ptr + cell_x.to(tl.int64) * n_keys, below_ptr + right.to(tl.int64) * n_keys
        best = tl.where(asked, float("-inf"), float("inf"))
        found = tl.full([BLOCK_PIXELS], NOWHERE, tl.int32)

        share = asked.to(tl.float32) / count
        middle_y = tl.zeros([1, 1], tl.float32) + tl.sum(d * share, 0)
        middle_x = tl.zeros([1, 1], tl.float32) + tl.sum(b * share, 0)
        m00, m01 = (1 - middle_y) * (1 - middle_x), (1 - middle_y) * middle_x
        m10, m11 = middle_y * (1 - middle_x), middle_y * middle_x
        highest, seed = -1.0, 0
        for first in range(0, n_cells, BLOCK_CELLS):
            cell = first + tl.arange(0, BLOCK_CELLS)
            valid = cell < n_cells
            at = tl.minimum(cell, n_cells - 1)
            bound = _squared_bound(
                t00, t01, t10, t11, cells_ptr, corner_ptr, at, valid, n_cells, m00, m01, m10, m11
            )  # (1, cells)
            value, where = tl.max(tl.reshape(bound, [BLOCK_CELLS]), 0, return_indices=True)
            seed = tl.where(value > highest, first + where, seed)
            highest = tl.maximum(value, highest)
        seed = tl.minimum(seed, n_cells - 1)
        best, found = _score_cell(
            t00, t01, t10, t11, corner_ptr, weight_ptr, raster_ptr, seed, n_cells, n_slots, w00, w01, w10, w11, best,
            found, BLOCK_SLOTS,
        )  # fmt: skip

        local = tl.arange(0, BLOCK_CELLS)
        for first in range(0, n_cells, BLOCK_CELLS):
            cell = first + local
            valid = cell < n_cells
            at = tl.minimum(cell, n_cells - 1)
            bound = _squared_bound(
                t00, t01, t10, t11, cells_ptr, corner_ptr, at, valid, n_cells, w00, w01, w10, w11
            )  # (pixels, cells)
            least = tl.maximum(best - SCORES * lengths, 0.0)
            least = tl.where(asked, least * least - SQUARES * lengths * lengths, float("inf"))
            reach = tl.max(bound - least[:, None], 0)
            left = tl.where(valid & (reach >= 0) & (cell != seed), BLOCK_CELLS - local, 0)
            ahead = tl.max(left, 0)
            while ahead > 0:  # the cells that are left, from the first on
                best, found = _score_cell(
                    t00, t01, t10, t11, corner_ptr, weight_ptr, raster_ptr, first + BLOCK_CELLS - ahead, n_cells,
                    n_slots, w00, w01, w10, w11, best, found, BLOCK_SLOTS,
                )  # fmt: skip
                ahead = tl.max(tl.where(left < ahead, left, 0), 0)
        tl.store(best_ptr + place, best, mask=asked)
        tl.store(found_ptr + place, found, mask=asked)


# --- launch ----------------------------------------------------------------------------------------------------------

COARSE = {
    "BLOCK_QUERIES": 64, "BLOCK_KEYS": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True,
}  # fmt: skip
COARSE_WIDE = {**COARSE, "BLOCK_QUERIES": 32, "BLOCK_KEYS": 32}  # float32 operands
# No fused multiply-adds: the last bit decides between near ties. Larger tiles spill, or fill a multiprocessor alone.
NEAREST = {
    "BLOCK_PIXELS": 32, "BLOCK_CELLS": 32, "BLOCK_SLOTS": 32, "num_warps": 4, "num_stages": 1,
    "enable_fp_fusion": False,
}  # fmt: skip

COARSE_SCORES = 1 << 26  # of one band of source rows: 256 MiB of float32


def nearest(
    query: Tensor,
    key: Tensor,
    query_planes: Tensor | None,
    key_planes: Tensor | None,
    query_mask: Tensor | None,
    mask: Tensor | None,
    query_grid: list[int],
    query_size: list[int],
    key_grid: list[int],
    key_size: list[int],
) -> tuple[Tensor, Tensor]:
    """The op ``upsampled_nearest``, on tensors Triton can reach."""
    query_planes = planes(query, query_grid) if query_planes is None else query_planes
    key_planes = planes(key, key_grid) if key_planes is None else key_planes
    source = source_pixels(query_planes, query_mask, (query_grid[0], query_grid[1]), (query_size[0], query_size[1]))
    cells = target_cells(key_planes, mask, (key_grid[0], key_grid[1]), (key_size[0], key_size[1]))
    best = torch.full_like(source.inverse, -torch.inf)
    found = torch.full_like(source.inverse, NOWHERE.value, dtype=torch.int32)
    if cells.corner.shape[1]:
        with torch.cuda.device_of(key):
            _launch(query, key, source, cells, best, found)
    index = found.to(torch.int64).masked_fill_(found == NOWHERE.value, torch.iinfo(torch.int64).max)
    index, score = answers(best, index, source, cells)
    xy = torch.stack([index % key_size[1], index // key_size[1]], -1).masked_fill((index < 0)[..., None], -1)
    return xy, score


def _launch(query: Tensor, key: Tensor, source: SourcePixels, cells: TargetCells, best: Tensor, found: Tensor) -> None:
    (h, w), n_keys, n_cells = source.grid, len(key), cells.corner.shape[1]
    axes = [torch.stack([axis.member[:, 0], axis.counts]).to(torch.int32) for axis in (source.y, source.x)]
    table = torch.stack([*(cells.inverse_length * cells.kappa), *(t for row in cells.factor for t in row)])  # (14, C)
    corner = cells.corner.to(torch.int32)
    raster = cells.raster.clamp_max(NOWHERE.value).to(torch.int32)
    tensors = (
        *axes, source.y.weight, source.x.weight, source.inverse.contiguous(), source.lengths.contiguous(), corner,
        table, cells.weight, raster, best, found,
    )  # fmt: skip
    blocks = triton.cdiv(source.y.width * source.x.width, NEAREST["BLOCK_PIXELS"])
    widen = widens(query, key)
    tile = COARSE_WIDE if widen else COARSE
    key_blocks = triton.cdiv(n_keys, tile["BLOCK_KEYS"])
    step = max(1, COARSE_SCORES // (w * n_keys) - 1)
    for row in range(0, h, step):
        rows = min(step, h - row)
        tokens = query[row * w : (row + rows + 1) * w]  # with the row below
        coarse = torch.empty(len(tokens), n_keys, dtype=torch.float32, device=key.device)
        _coarse_kernel[(triton.cdiv(len(tokens), tile["BLOCK_QUERIES"]) * key_blocks,)](
            tokens, key, source.scale, coarse, *tokens.stride(), *key.stride(), len(tokens), n_keys, key_blocks,
            D=key.shape[1], WIDEN=widen, **tile,
        )  # fmt: skip
        _nearest_kernel[(rows * w * blocks,)](
            coarse, *tensors, row, h, w, n_keys, n_cells, cells.raster.shape[1], best.shape[1], source.x.width, blocks,
            **NEAREST,
        )  # fmt: skip
