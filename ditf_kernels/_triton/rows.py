"""Rows of features, as queries and keys meet them: their inverse norms, and the products of some with some others."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import INTERPRETED, NO_KEY, NORM_FLOOR, is_finite, load_float32

__all__ = ["dots", "floats", "inverse_norms", "shared_memory", "widens"]

PREPARE = {"BLOCK_ROWS": 4, "BLOCK_D": 256, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit
def _prepare_rows(
    block,
    x_ptr,  # (B, n, D)
    inverse_ptr,  # (B, n) contiguous; None: the norms were given
    best_ptr,  # (B, n) contiguous int64 keys; None: nothing is chosen for these rows
    stride_batch,
    stride_row,
    stride_channel,
    n_rows,  # n
    n_all,  # B * n
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    own = block.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = own < n_all
    if best_ptr is not None:
        tl.store(best_ptr + own, tl.full([BLOCK_ROWS], NO_KEY, tl.int64), mask=inside)
    if inverse_ptr is not None:
        row_ptr = x_ptr + own // n_rows * stride_batch + own % n_rows * stride_row
        square = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
        for first in range(0, D, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            offset = channel.to(tl.int64) * stride_channel
            x = load_float32(row_ptr[:, None] + offset[None, :], inside[:, None] & (channel < D)[None, :])
            square += x * x
        length = tl.sqrt_rn(tl.sum(square, 1))
        inverse = tl.div_rn(1.0, tl.maximum(length, NORM_FLOOR))
        tl.store(inverse_ptr + own, tl.where(is_finite(length), inverse, float("nan")), mask=inside)


@triton.jit(do_not_specialize=["n_queries", "n_all_queries", "n_keys", "n_all_keys", "n_query_blocks"])
def _prepare_kernel(
    query_ptr,  # (B, N, D)
    key_ptr,  # (B, M, D)
    query_inverse_ptr,  # (B, N), or None where given
    key_inverse_ptr,  # (B, M), or None where given
    query_best_ptr,  # (B, N), or None where the answer needs no start
    key_best_ptr,  # (B, M), likewise
    stride_query_batch,
    stride_query_row,
    stride_query_channel,
    stride_key_batch,
    stride_key_row,
    stride_key_channel,
    n_queries,
    n_all_queries,
    n_keys,
    n_all_keys,
    n_query_blocks,  # programs that work on queries; the others work on keys
    D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    if program < n_query_blocks:
        _prepare_rows(
            program, query_ptr, query_inverse_ptr, query_best_ptr, stride_query_batch, stride_query_row,
            stride_query_channel, n_queries, n_all_queries, D, BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip
    else:
        _prepare_rows(
            program - n_query_blocks, key_ptr, key_inverse_ptr, key_best_ptr, stride_key_batch, stride_key_row,
            stride_key_channel, n_keys, n_all_keys, D, BLOCK_ROWS, BLOCK_D,
        )  # fmt: skip


@triton.jit
def dots(
    query_ptr,
    key_ptr,
    query,  # (queries,) int64 rows
    key,  # (keys,) int64 rows
    stride_query_row,
    stride_query_channel,
    stride_key_row,
    stride_key_channel,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(queries, keys) float32: the product of every query row with every key row."""
    query_row = (query_ptr + query * stride_query_row)[:, None]
    key_row = (key_ptr + key * stride_key_row)[None, :]
    products = tl.zeros([query.shape[0], key.shape[0]], tl.float32)
    for first in range(0, D, BLOCK_D):
        channel = first + tl.arange(0, BLOCK_D)
        offset = channel.to(tl.int64)
        q_ptr = query_row + (offset * stride_query_channel)[None, :]  # (queries, BLOCK_D)
        k_ptr = key_row + (offset * stride_key_channel)[:, None]  # (BLOCK_D, keys)
        valid = channel < D
        if WIDEN:
            q, k = load_float32(q_ptr, valid[None, :]), load_float32(k_ptr, valid[:, None])
            products = tl.dot(q, k, products, input_precision="ieee")  # TF32 would cost ten bits
        elif D % BLOCK_D == 0:
            products = tl.dot(tl.load(q_ptr), tl.load(k_ptr), products)
        else:
            q = tl.load(q_ptr, mask=valid[None, :], other=0.0)
            k = tl.load(k_ptr, mask=valid[:, None], other=0.0)
            products = tl.dot(q, k, products)
    return products


def inverse_norms(query, key, query_inverse, key_inverse, query_best, key_best) -> tuple[Tensor, Tensor]:
    """The inverse norms, computed where not given; keys of the answers (None: not needed) set to NO_KEY."""
    new_query = None if query_inverse is not None else floats(query)
    new_key = None if key_inverse is not None else floats(key)
    all_queries, all_keys = query.shape[0] * query.shape[1], key.shape[0] * key.shape[1]
    query_blocks = 0 if new_query is None and query_best is None else triton.cdiv(all_queries, PREPARE["BLOCK_ROWS"])
    key_blocks = 0 if new_key is None and key_best is None else triton.cdiv(all_keys, PREPARE["BLOCK_ROWS"])
    if query_blocks + key_blocks:
        with torch.cuda.device_of(query):
            _prepare_kernel[(query_blocks + key_blocks,)](
                query, key, new_query, new_key, query_best, key_best, *query.stride(), *key.stride(),
                query.shape[1], all_queries, key.shape[1], all_keys, query_blocks, D=query.shape[2], **PREPARE,
            )  # fmt: skip
    return query_inverse if new_query is None else new_query, key_inverse if new_key is None else new_key


@functools.lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes a program may take: 227 KB on an H100, 99 KB on a consumer's card."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def widens(query: Tensor, key: Tensor) -> bool:
    """Whether operands become float32 before they are multiplied; else the tensor cores take them as they are."""
    return query.dtype != key.dtype or key.dtype == torch.float32 or INTERPRETED.value


def floats(rows: Tensor) -> Tensor:
    """Room for one number per row, (B, n)."""
    return torch.empty(rows.shape[:2], dtype=torch.float32, device=rows.device)
