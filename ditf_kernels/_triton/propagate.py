"""Label propagation, in three launches.

prepare    inverse norms of queries and keys, one read of the features (that of ``nearest``)
choose     a program owns a patch of queries and a frame, walks the patches of keys its windows reach and holds the best
           of each query in registers as 64-bit keys; they go to memory as (h*w, F, KEEP)
blend      a program owns some queries and channels of labels: the best over all frames, softmax, weighted labels

Patches, not raster runs: an 8 x 16 patch with radius 12 reaches 32 x 40 cells, a run of 128 reaches up to 25 rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import INTERPRETED, NO_KEY, is_finite, key_index, key_value, load_float32, ordered_key
from .rows import dots, inverse_norms, shared_memory, widens

__all__ = ["propagate_topk"]

ABOVE_ALL = tl.constexpr(2**63 - 1)  # above every key


@triton.jit
def _best_of_patch(scores, first, w, COLUMNS: tl.constexpr):
    """The highest score of each row as a key (NO_KEY: none is left), and where in the patch of cells from first on."""
    value, where = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
    index = first + (where // COLUMNS) * w + where % COLUMNS
    return tl.where(value > float("-inf"), ordered_key(value, index), NO_KEY), where


@triton.jit(do_not_specialize=["h", "w", "radius", "n_frames", "global_frames"])
def _choose_kernel(
    query_ptr,  # (h*w, D)
    keys_ptr,  # (F, h*w, D)
    inverse_ptr,  # (F, h*w) contiguous float32, NaN where a key is not finite
    best_ptr,  # (h*w, F, KEEP) contiguous int64, in no order, NO_KEY where there is none
    stride_query_row,
    stride_query_channel,
    stride_keys_frame,
    stride_keys_row,
    stride_keys_channel,
    h,
    w,
    radius,
    n_frames,
    global_frames,
    D: tl.constexpr,
    TOPK: tl.constexpr,
    KEEP: tl.constexpr,  # TOPK, rounded up to a power of two
    QUERY_ROWS: tl.constexpr,
    QUERY_COLUMNS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tiles_x = tl.cdiv(w, QUERY_COLUMNS)
    tiles = tiles_x * tl.cdiv(h, QUERY_ROWS)
    frame = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    first_y, first_x = (tile // tiles_x) * QUERY_ROWS, (tile % tiles_x) * QUERY_COLUMNS
    own = tl.arange(0, QUERY_ROWS * QUERY_COLUMNS)
    y, x = first_y + own // QUERY_COLUMNS, first_x + own % QUERY_COLUMNS
    # Cells beyond the end are read from the last one: loads without masks, and the epilogue drops what came of them.
    query = (tl.minimum(y, h - 1) * w + tl.minimum(x, w - 1)).to(tl.int64)

    reach = tl.where(frame < global_frames, h + w, radius)
    top, left = tl.maximum(first_y - reach, 0), tl.maximum(first_x - reach, 0)
    bottom, right = tl.minimum(first_y + QUERY_ROWS + reach, h), tl.minimum(first_x + QUERY_COLUMNS + reach, w)
    patches_x = tl.cdiv(right - left, KEY_COLUMNS)
    other = tl.arange(0, KEY_ROWS * KEY_COLUMNS)
    slot = tl.arange(0, KEEP)
    # The places that are still empty differ, so that one new key fills one place; those beyond TOPK are never free.
    empty = tl.where(slot < TOPK, NO_KEY + slot.to(tl.int64), ABOVE_ALL)
    best = tl.zeros([QUERY_ROWS * QUERY_COLUMNS, KEEP], tl.int64) + empty[None, :]

    for patch in range(patches_x * tl.cdiv(bottom - top, KEY_ROWS)):
        first_v, first_u = top + (patch // patches_x) * KEY_ROWS, left + (patch % patches_x) * KEY_COLUMNS
        v, u = first_v + other // KEY_COLUMNS, first_u + other % KEY_COLUMNS
        cell = (tl.minimum(v, h - 1) * w + tl.minimum(u, w - 1)).to(tl.int64)
        products = dots(
            query_ptr, keys_ptr + frame.to(tl.int64) * stride_keys_frame, query, cell,
            stride_query_row, stride_query_channel, stride_keys_row, stride_keys_channel, D, BLOCK_D, WIDEN,
        )  # fmt: skip
        first = frame.to(tl.int64) * h * w
        inverse = tl.load(inverse_ptr + first + cell, mask=(v < bottom) & (u < right), other=float("nan"))
        near_y = tl.abs(y[:, None] - v[None, :]) <= reach
        near = near_y & (tl.abs(x[:, None] - u[None, :]) <= reach)
        scores = products * inverse[None, :]
        scores = tl.where(near & is_finite(scores), scores, float("-inf"))

        # Rounds until no query's next best would enter; at most TOPK, and few once the first patches are done.
        first += first_v * w + first_u
        candidate, where = _best_of_patch(scores, first, w, KEY_COLUMNS)
        worst = tl.min(best, 1)
        while tl.max((candidate > worst).to(tl.int32), 0) > 0:
            enters = (best == worst[:, None]) & (candidate > worst)[:, None]
            best = tl.where(enters, candidate[:, None], best)
            scores = tl.where(other[None, :] == where[:, None], float("-inf"), scores)
            candidate, where = _best_of_patch(scores, first, w, KEY_COLUMNS)
            worst = tl.min(best, 1)

    found = (slot < TOPK)[None, :] & (best >= NO_KEY + KEEP)
    out = best_ptr + ((query * n_frames + frame) * KEEP)[:, None] + slot[None, :]
    tl.store(out, tl.where(found, best, NO_KEY), mask=((y < h) & (x < w))[:, None])


@triton.jit(do_not_specialize=["n_cells", "n_candidates", "n_classes", "n_blocks", "topk", "temperature"])
def _blend_kernel(
    best_ptr,  # (n_cells, n_candidates) contiguous int64 keys
    inverse_ptr,  # (n_cells,) float32, of the queries
    labels_ptr,  # (F, C, n_cells)
    out_ptr,  # (C, n_cells) contiguous
    index_ptr,  # (n_cells, topk) contiguous int64
    score_ptr,  # (n_cells, topk) contiguous
    stride_labels_frame,
    stride_labels_class,
    stride_labels_cell,
    n_cells,
    n_candidates,
    n_classes,
    n_blocks,  # programs along the queries
    topk,
    temperature,
    BLOCK: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_CANDIDATES: tl.constexpr,
):
    own = (tl.program_id(0) % n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first_class = tl.program_id(0) // n_blocks * BLOCK_CLASSES
    label = first_class.to(tl.int64) + tl.arange(0, BLOCK_CLASSES)
    inside = own < n_cells
    inverse = tl.load(inverse_ptr + own, mask=inside, other=float("nan"))
    column = tl.arange(0, BLOCK_CANDIDATES)
    last = tl.full([BLOCK], ABOVE_ALL, tl.int64)
    highest = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK_CLASSES, BLOCK], tl.float32)
    for rank in range(topk):
        # No two keys are equal, so the next best is the highest one below the last: nothing has to be crossed out.
        best = tl.full([BLOCK], NO_KEY, tl.int64)
        for first in range(0, n_candidates, BLOCK_CANDIDATES):
            place = first + column
            valid = inside[:, None] & (place < n_candidates)[None, :]
            keys = tl.load(best_ptr + (own * n_candidates)[:, None] + place[None, :], mask=valid, other=NO_KEY)
            best = tl.maximum(best, tl.max(tl.where(keys < last[:, None], keys, NO_KEY), 1))
        last = best
        score = key_value(best) * inverse  # NaN for NO_KEY
        found = is_finite(score)
        score = tl.minimum(tl.maximum(tl.where(found, score, 0.0), -1.0), 1.0)
        highest = tl.where(rank == 0, score, highest)
        weight = tl.where(found, tl.exp((score - highest) / temperature), 0.0)
        total += weight
        place = tl.where(found, key_index(best), 0)
        source = (place // n_cells) * stride_labels_frame + (place % n_cells) * stride_labels_cell
        source = labels_ptr + (label * stride_labels_class)[:, None] + source[None, :]
        out += weight[None, :] * load_float32(source, (label < n_classes)[:, None] & (inside & found)[None, :])
        if first_class == 0:
            tl.store(index_ptr + own * topk + rank, tl.where(found, place, -1), mask=inside)
            tl.store(score_ptr + own * topk + rank, tl.where(found, score, float("nan")), mask=inside)
    out = out / tl.where(total > 0, total, float("nan"))[None, :]
    out_place = out_ptr + (label * n_cells)[:, None] + own[None, :]
    tl.store(out_place, out, mask=(label < n_classes)[:, None] & inside[None, :])


# --- launch ----------------------------------------------------------------------------------------------------------

HALF = {
    "QUERY_ROWS": 8, "QUERY_COLUMNS": 16, "KEY_ROWS": 8, "KEY_COLUMNS": 16, "BLOCK_D": 64,
    "num_warps": 8, "num_stages": 4, "enable_fp_fusion": True,
}  # fmt: skip
HALF_BYTES = 4 * 2 * (128 + 128) * 64  # of shared memory: stages of half-precision queries and keys
FLOAT32 = {  # without tensor cores, operands pass through registers
    "QUERY_ROWS": 4, "QUERY_COLUMNS": 8, "KEY_ROWS": 4, "KEY_COLUMNS": 8, "BLOCK_D": 16,
    "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True,
}  # fmt: skip
BLEND = {
    "BLOCK": 16, "BLOCK_CLASSES": 16, "BLOCK_CANDIDATES": 64,
    "num_warps": 4, "num_stages": 1, "enable_fp_fusion": False,
}  # fmt: skip


def choose_options(widen: bool, shared_memory: int) -> dict[str, Any]:
    """Patches and compile options of the kernel that chooses, where a program may take so many bytes."""
    if INTERPRETED.value:
        return HALF  # the interpreter pays by the step, not by its size
    if widen:
        return FLOAT32
    return HALF if shared_memory >= HALF_BYTES else {**HALF, "num_stages": 2}


def propagate_topk(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    grid: list[int],
    radius: int,
    topk: int,
    temperature: float,
    global_frames: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of the same name, for topk of at most 32, on tensors Triton can reach."""
    (h, w), frames, classes, channels = grid, keys.shape[0], labels.shape[1], keys.shape[2]
    out = torch.empty((classes, h * w), dtype=torch.float32, device=query.device)
    index = torch.empty((h * w, topk), dtype=torch.int64, device=query.device)
    score = torch.empty((h * w, topk), dtype=torch.float32, device=query.device)
    query_inverse, inverse = inverse_norms(query[None], keys, None, None, None, None)
    widen, keep = widens(query, keys), triton.next_power_of_2(topk)
    best = torch.empty((h * w, frames, keep), dtype=torch.int64, device=query.device)
    options = choose_options(widen, 0 if INTERPRETED.value else shared_memory(query.device))
    tiles = triton.cdiv(h, options["QUERY_ROWS"]) * triton.cdiv(w, options["QUERY_COLUMNS"])
    with torch.cuda.device_of(query):
        if frames:
            _choose_kernel[(tiles * frames,)](
                query, keys, inverse, best, *query.stride(), *keys.stride(), h, w, min(radius, h + w), frames,
                global_frames, D=channels, TOPK=topk, KEEP=keep, WIDEN=widen, **options,
            )  # fmt: skip
        blocks = triton.cdiv(h * w, BLEND["BLOCK"])
        _blend_kernel[(blocks * max(1, triton.cdiv(classes, BLEND["BLOCK_CLASSES"])),)](
            best, query_inverse, labels, out, index, score, *labels.stride(), h * w, frames * keep, classes, blocks,
            topk, temperature, **BLEND,
        )  # fmt: skip
    return out, index, score
