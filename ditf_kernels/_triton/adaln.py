"""AdaLN features: a program holds one token in registers, reads it once and writes it once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .numbers import NORM_FLOOR, load_float32, store_rounded

__all__ = ["adaln", "adaln_with_inverse_norm"]


@triton.jit
def _zeroed_channels(x, col, discard_ptr, stride_discard, n_discard):
    """Zero listed channels. Selected after the load: a test in the load's mask would split it into scalar loads."""
    for i in range(n_discard):
        channel = tl.load(discard_ptr + i * stride_discard)
        x = tl.where(col == channel, 0.0, x)
    return x


@triton.jit
def _without_largest(x, col, inside, K: tl.constexpr):
    """Zero the K largest |x|; equal ones from the lowest channel on, NaN never."""
    size = tl.where(inside & (x == x), tl.abs(x), -1.0)
    for _ in range(K):
        chosen = col == tl.argmax(size, 0, tie_break_left=True)
        x = tl.where(chosen & (size >= 0), 0.0, x)
        size = tl.where(chosen, -1.0, size)
    return x


@triton.jit(do_not_specialize=["n_tokens", "n_discard"])
def _adaln_kernel(
    x_ptr,  # (B*E, N, D)
    shift_ptr,  # (B, N, D), strides may be 0; None: no shift
    scale_ptr,  # likewise
    weight_ptr,  # (D,) or None
    bias_ptr,  # (D,) or None
    discard_ptr,  # (n_discard,) or None
    y_ptr,  # (B, N, D) contiguous
    inverse_norm_ptr,  # (B, N) contiguous, or None
    stride_x_row,
    stride_x_token,
    stride_x_channel,
    stride_shift_image,
    stride_shift_token,
    stride_shift_channel,
    stride_scale_image,
    stride_scale_token,
    stride_scale_channel,
    stride_weight,
    stride_bias,
    stride_discard,
    n_tokens,
    n_discard,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ENSEMBLE: tl.constexpr,
    TOPK: tl.constexpr,
    ADD_ONE: tl.constexpr,
    RMS: tl.constexpr,
    DISCARD_OUTPUT: tl.constexpr,
    L2: tl.constexpr,
):
    program = tl.program_id(0)
    image = (program // n_tokens).to(tl.int64)
    token = (program % n_tokens).to(tl.int64)
    col = tl.arange(0, BLOCK_D)
    inside = col < D
    offset = col.to(tl.int64)

    x = tl.zeros([BLOCK_D], tl.float32)
    for member in range(ENSEMBLE):
        row = (image * ENSEMBLE + member) * stride_x_row + token * stride_x_token
        x += load_float32(x_ptr + row + offset * stride_x_channel, inside)
    if ENSEMBLE > 1:
        x = x / ENSEMBLE
    if discard_ptr is not None and not DISCARD_OUTPUT:
        x = _zeroed_channels(x, col, discard_ptr, stride_discard, n_discard)
    if TOPK > 0:
        x = _without_largest(x, col, inside, TOPK)

    # The row is in registers, so the variance takes its own pass: E[x^2] - E[x]^2 cancels under massive channels.
    if not RMS:
        x = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps)

    if weight_ptr is not None:
        y = y * load_float32(weight_ptr + offset * stride_weight, inside)
    if bias_ptr is not None:
        y = y + load_float32(bias_ptr + offset * stride_bias, inside)
    if scale_ptr is not None:
        row = image * stride_scale_image + token * stride_scale_token
        scale = load_float32(scale_ptr + row + offset * stride_scale_channel, inside)
        y = y * (1.0 + scale) if ADD_ONE else y * scale
    if shift_ptr is not None:
        row = image * stride_shift_image + token * stride_shift_token
        y = y + load_float32(shift_ptr + row + offset * stride_shift_channel, inside)
    if discard_ptr is not None and DISCARD_OUTPUT:
        y = _zeroed_channels(y, col, discard_ptr, stride_discard, n_discard)

    if L2:
        y = y / _length(y)
    if inverse_norm_ptr is not None:
        tl.store(inverse_norm_ptr + program.to(tl.int64), 1.0 / _length(y))
    store_rounded(y_ptr + program.to(tl.int64) * D + offset, y, inside)


@triton.jit
def _length(y):
    return tl.maximum(tl.sqrt(tl.sum(y * y, 0)), NORM_FLOOR, propagate_nan=tl.PropagateNan.ALL)


# --- launch ----------------------------------------------------------------------------------------------------------

WARPS = ((1024, 2), (4096, 4), (8192, 8))  # up to this padded width, so many warps: at most 32 values a thread


def launch_options(block_d: int) -> dict[str, Any]:
    """Compile options for a row of this padded width."""
    warps = next((warps for width, warps in WARPS if block_d <= width), 16)
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}


def adaln(*args: Any) -> Tensor:
    """The op of the same name, on tensors Triton can reach."""
    return _launch(*args, with_inverse_norm=False)[0]


def adaln_with_inverse_norm(*args: Any) -> tuple[Tensor, Tensor]:
    """The op of the same name, on tensors Triton can reach."""
    y, inverse_norm = _launch(*args, with_inverse_norm=True)
    assert inverse_norm is not None
    return y, inverse_norm


def _launch(
    x, shift, scale, weight, bias, discard, add_one, norm, eps, discard_output, topk_per_token, ensemble, l2_normalize,
    out_dtype, *, with_inverse_norm,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    images, tokens, channels = x.shape[0] // ensemble, x.shape[1], x.shape[2]
    y = torch.empty((images, tokens, channels), dtype=out_dtype, device=x.device)
    inverse_norm = torch.empty((images, tokens), dtype=torch.float32, device=x.device) if with_inverse_norm else None
    if images * tokens == 0:
        return y, inverse_norm
    block_d = triton.next_power_of_2(channels)
    with torch.cuda.device_of(x):
        _adaln_kernel[(images * tokens,)](
            x, shift, scale, weight, bias, discard, y, inverse_norm,
            *x.stride(),
            *_broadcast_strides(shift, images, tokens),
            *_broadcast_strides(scale, images, tokens),
            *(1 if t is None else t.stride(0) for t in (weight, bias, discard)),
            tokens,
            0 if discard is None else discard.shape[0],
            eps,
            D=channels, BLOCK_D=block_d, ENSEMBLE=ensemble, TOPK=topk_per_token, ADD_ONE=add_one, RMS=norm == "rms",
            DISCARD_OUTPUT=discard_output, L2=l2_normalize,
            **launch_options(block_d),
        )  # fmt: skip
    return y, inverse_norm


def _broadcast_strides(t: Tensor | None, images: int, tokens: int) -> tuple[int, ...]:
    """Strides of (1|B, 1|N, D) read as (B, N, D)."""
    return (0, 0, 1) if t is None else t.expand(images, tokens, t.shape[2]).stride()
