"""Twins of ``ditf_kernels.adaln``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import BLOCK, NORM_FLOOR, blocks

__all__ = ["adaln", "adaln_with_inverse_norm", "zero_largest"]

SMALL = 4 * BLOCK  # elements, of which a few temporaries do no harm


def adaln(*args) -> Tensor:
    """The first result of :func:`adaln_with_inverse_norm`, same arguments."""
    return _adaln(*args, with_inverse_norm=False)[0]


def adaln_with_inverse_norm(*args) -> tuple[Tensor, Tensor]:
    """Norm and modulation of tokens, and the inverse norms of the rows; the order of steps is that of the body.

    Args (positional, those of the registered op):
        x: (B*E, N, D); row b*E + e is member e of image b.
        shift, scale: (1|B, 1|N, D) or None.
        weight, bias: (D,) of the norm itself, or None.
        discard: (n,) channel indices or None; indices outside 0..D-1 name no channel.
        add_one: multiply by 1 + scale instead of scale.
        norm: "layer" or "rms".
        eps: of the norm.
        discard_output: discard after the modulation instead of before the norm.
        topk_per_token: how many of each token's largest |x| are zeroed; equal ones from the lowest channel on.
        ensemble: E.
        l2_normalize: divide each row by its length.
        out_dtype: of the first result.

    Returns:
        (B, N, D) and 1 / max(|row|, 1e-12), (B, N) float32, of the float32 rows before they are rounded to out_dtype.
    """
    return _adaln(*args, with_inverse_norm=True)


def _adaln(
    x, shift, scale, weight, bias, discard, add_one, norm, eps, discard_output, topk_per_token, ensemble, l2_normalize,
    out_dtype, *, with_inverse_norm,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    images, tokens, channels = x.shape[0] // ensemble, x.shape[1], x.shape[2]
    dropped = None if discard is None else _dropped(discard, channels, x.device)
    gain, offset = _affine(shift, scale, weight, bias, add_one)

    def rows(image: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        y = x[image * ensemble : (image + 1) * ensemble, first:last].to(torch.float32)  # (E, n, D)
        y = y[0] if ensemble == 1 else y.mean(0)
        if dropped is not None and not discard_output:
            y = _zeroed(y, dropped)
        if topk_per_token:
            y = zero_largest(y, topk_per_token)
        y = _normed(y, _rows_of(gain, image, first, last), _rows_of(offset, image, first, last), norm, eps)
        if dropped is not None and discard_output:
            y = _zeroed(y, dropped)
        if l2_normalize:
            y = y / y.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
        inverse = y.norm(dim=-1).clamp_min(NORM_FLOOR).reciprocal() if with_inverse_norm else y.new_empty(0)
        return y, inverse

    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, shift, scale, weight, bias)):
        parts = [rows(image, 0, tokens) for image in range(images)]
        return torch.stack([y for y, _ in parts]).to(out_dtype), torch.stack([inverse for _, inverse in parts])

    steps = (ensemble > 1, dropped is not None, topk_per_token, l2_normalize, with_inverse_norm)
    if images == 1 and out_dtype == torch.float32 and (x.numel() <= SMALL or not (any(steps) or x.dtype != out_dtype)):
        y, inverse = rows(0, 0, tokens)  # small, or the norm alone, which needs no temporary: nothing to copy together
        return y[None], inverse[None]

    out = torch.empty((images, tokens, channels), dtype=out_dtype, device=x.device)
    inverse_norm = torch.empty((images, tokens), dtype=torch.float32, device=x.device)
    for image in range(images):
        for first, last in blocks(tokens, channels * ensemble, x.device):
            y, inverse = rows(image, first, last)
            out[image, first:last] = y
            if with_inverse_norm:
                inverse_norm[image, first:last] = inverse
    return out, inverse_norm


def _dropped(discard: Tensor, channels: int, device: torch.device) -> Tensor:
    """The channels named, int64; where looking at them would have to wait for the device, a mask (D,) of them."""
    if device.type == "cpu":
        return discard[(discard >= 0) & (discard < channels)].to(torch.int64)
    return (torch.arange(channels, device=device)[:, None] == discard).any(1)


def _zeroed(y: Tensor, dropped: Tensor) -> Tensor:
    """Filling by index is seven times as fast as by a mask that has to be broadcast."""
    return y.masked_fill(dropped, 0.0) if dropped.dtype == torch.bool else y.index_fill(-1, dropped, 0.0)


def _affine(shift, scale, weight, bias, add_one) -> tuple[Tensor | None, Tensor | None]:
    """(n * weight + bias) * scale + shift as n * gain + offset: gain and offset (1|B, 1|N, D) float32 or None."""
    shift, scale, weight, bias = (None if t is None else t.to(torch.float32) for t in (shift, scale, weight, bias))
    if scale is not None and add_one:
        scale = 1.0 + scale
    weight, bias = (None if t is None else t[None, None] for t in (weight, bias))  # (1, 1, D)
    gain = scale if weight is None else weight if scale is None else weight * scale
    moved_bias = bias if bias is None or scale is None else bias * scale
    offset = shift if moved_bias is None else moved_bias if shift is None else moved_bias + shift
    return gain, offset


def _rows_of(t: Tensor | None, image: int, first: int, last: int) -> Tensor | None:
    """The part of (1|B, 1|N, D) that meets tokens first..last of an image: (1|n, D)."""
    if t is None:
        return None
    own = t[image if t.shape[0] > 1 else 0]
    return own[first:last] if own.shape[0] > 1 else own


def _normed(y: Tensor, gain: Tensor | None, offset: Tensor | None, norm: str, eps: float) -> Tensor:
    """Norm of the rows (n, D), times gain, plus offset; one pass over memory where both are shared by all tokens."""
    shape = y.shape[-1:]
    shared = all(t is None or t.shape[0] == 1 for t in (gain, offset))
    if norm == "layer" and shared:
        return F.layer_norm(y, shape, None if gain is None else gain[0], None if offset is None else offset[0], eps)
    y = F.layer_norm(y, shape, eps=eps) if norm == "layer" else F.rms_norm(y, shape, eps=eps)
    y = y if gain is None else y * gain
    return y if offset is None else y + offset


def zero_largest(y: Tensor, k: int) -> Tensor:
    """Zero each row's k largest |y|; equal ones from the lowest index on, NaN never."""
    size = y.detach().abs().nan_to_num(nan=-1.0, posinf=torch.inf)  # (n, D)
    largest = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(min(k, y.shape[-1])):
        index = size.argmax(-1, keepdim=True)  # the first maximum, as documented
        largest.scatter_(-1, index, True)
        size.scatter_(-1, index, -1.0)
    return y.masked_fill(largest & ~y.isnan(), 0.0)
