"""Which of the tokens that a block sees are the image's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .architectures import Layout, Place, Stack
from .stacks import BlockSite

__all__ = ["image_tokens", "refuse_reordering", "rows_first"]


def refuse_reordering(inputs: Mapping[str, Any]) -> None:
    """Before the forward: inputs that make the transformer leave raster order.

    Raises:
        InputError: naming them.
    """
    if (inputs.get("sparse_params") or {}).get("to_fractal"):
        raise InputError("inputs: sparse_params with to_fractal=True reorders the tokens; give to_fractal=False")


def rows_first(tokens: Tensor, stack: Stack, frames: int, place: Place = "norm") -> Tensor:
    """Tokens of a stack as (B, S, D), whatever the order it keeps them in; a view where that is possible.

    Args:
        tokens: (B, S, D), (S, B, D) or (B*t, h*w, D); of heads (B, S, H, D / H); at a convolution (B, D, h, w) or
            (B, t, h, w, D).
        frames: t.

    Raises:
        InputError: a batch that is no multiple of t.
    """
    if tokens.ndim > 3 and place == "feed_forward":  # Sana's and SanaVideo's convolutions
        return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens.flatten(1, 3)
    tokens = tokens.flatten(2)  # Lumina-Next's attention answers head by head
    if stack.sequence_first and place in ("norm", "feed_forward"):
        return tokens.transpose(0, 1)
    if not stack.frames_in_batch or frames == 1:
        return tokens
    if tokens.shape[0] % frames:
        raise InputError.of("grid", f"{frames} frames", f"a number of frames that divides the {tokens.shape[0]} given")
    return tokens.unflatten(0, (-1, frames)).flatten(1, 2)


def image_tokens(
    tokens: Tensor,
    site: BlockSite,
    count: int,
    call: Mapping[str, Any],
    inputs: Mapping[str, Any],
    place: Place = "norm",
) -> Tensor:
    """The image's tokens (B, N, D) among all the tokens (B, S, D) of a block, in raster order.

    Args:
        count: N, how many tokens the image has.
        call: arguments of the block.
        inputs: arguments of the transformer.

    Returns:
        A view, but for the layouts "ragged" and "marked".

    Raises:
        InputError: the grid does not fit the tokens, the layout of an unknown class is not told, or the images of a
            row are packed in an order of their own.
    """
    if call.get("noise_mask") is not None:
        raise InputError(
            "inputs: with reference images (omni mode) Z-Image packs images and texts in an order of its own; "
            "give one image and one text per row"
        )
    layout = site.stack.layout_at(place)
    if layout == "ragged":
        found = _ragged(tokens, count, inputs)
    elif layout == "marked":
        found = _marked(tokens, count, inputs)
    else:
        start = _start(tokens.shape[1], layout, count, call, inputs)
        found = tokens[:, start : start + count] if 0 <= start <= tokens.shape[1] - count else None
    if found is None:
        choices = ", ".join(f'"{name}"' for name in get_args(Layout))
        raise InputError(
            f"grid: got {count} image tokens, but block {site.index} sees {tokens.shape[1]} tokens in layout "
            f"{layout!r}; give the grid of the inputs, or layout= one of {choices}"
        )
    return found


def _start(total: int, layout: Layout, count: int, call: Mapping[str, Any], inputs: Mapping[str, Any]) -> int:
    """Where the image begins; -1 where it cannot be told."""
    packed = _packed(inputs, layout)
    if packed is not None and count not in (packed.total, packed.target):
        return -1
    before = packed.references_before if packed is not None and count == packed.target else 0
    if total == count:
        return 0
    if layout == "image+text" or (layout == "image" and packed is not None and total == packed.total):
        return before
    if layout == "last":
        return total - count
    if layout == "middle":
        return total - _text_length(call, 0) - count
    if layout == "text+image":
        # the text is an argument of blocks that put it before the image themselves; elsewhere it is the rest
        return _text_length(call, total - (packed.total if packed is not None else count)) + before
    return -1


@dataclass(frozen=True)
class _Packed:
    """Image tokens as a transformer is given them, where it is given tokens: the target and its reference images."""

    total: int
    target: int
    references_before: int


def _packed(inputs: Mapping[str, Any], layout: Layout) -> _Packed | None:
    hidden = inputs.get("hidden_states")
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        return None
    total, ids, shapes = hidden.shape[1], inputs.get("img_ids"), inputs.get("img_shapes")
    if inputs.get("kv_cache_mode") == "extract":  # FLUX.2 klein: references come first
        before = int(inputs.get("num_ref_tokens") or 0)
        return _Packed(total, total - before, before)
    if isinstance(ids, Tensor) and ids.shape[-2] == total:  # reference images differ on the first axis (Kontext)
        first = ids.reshape(-1, ids.shape[-1])[:total, 0]
        return _Packed(total, int((first == first[0]).sum()), 0)
    if shapes:  # Qwen: (frames, height, width) of every image, per row or for all rows
        images = shapes[0] if isinstance(shapes[0][0], list | tuple) else shapes[:1]
        return _Packed(total, math.prod(images[-1 if layout == "last" else 0]), 0)
    return _Packed(total, total, 0)


def _text_length(call: Mapping[str, Any], otherwise: int) -> int:
    text = call.get("encoder_hidden_states")
    return text.shape[1] if isinstance(text, Tensor) else otherwise


def _ragged(tokens: Tensor, count: int, inputs: Mapping[str, Any]) -> Tensor | None:
    lengths = inputs["encoder_attention_mask"].sum(1).tolist()
    if max(lengths) + count > tokens.shape[1]:
        return None
    return torch.stack([row[start : start + count] for row, start in zip(tokens, map(int, lengths), strict=True)])


def _marked(tokens: Tensor, count: int, inputs: Mapping[str, Any]) -> Tensor | None:
    image = inputs["indicator"] == 2  # OUTPUT_IMAGE_INDICATOR of Ideogram 4
    if not bool((image.sum(1) == count).all()):
        return None
    return tokens[image].unflatten(0, (-1, count))
