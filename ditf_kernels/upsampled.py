"""Nearest neighbour on the bilinearly upsampled grid, without upsampled features.

Bilinear upsampling is linear, so for a unit query q and a target pixel p with weights w_i on its four cells f_i

    <q, F(p)> = sum_i w_i <q, f_i>            |F(p)|^2 = sum_ij w_i w_j <f_i, f_j>

and the cosine needs the coarse dot products (K, h*w) and five Gram planes (5, h, w) only: self, right, below, diagonal,
anti-diagonal. Exact, and nothing of size H*W*D exists.

Bytes that must move: the key twice (h*w*D elements, the second time from cache) and K*h*w*4; FLOPs: 2*K*h*w*D for the
coarse scores, 10*h*w*D for the planes, about 12*K*H*W for the pixels. The reference protocol reads and writes H*W*D
elements for every query.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype, checked_pair
from ._registry import define, takes_gradient

__all__ = ["upsampled_argmax", "upsampled_argmax_batch", "upsampled_planes"]

PIXELS = (1 << 32) - 1  # of one image in the kernel, where a pixel's index takes half of a 64-bit key


def upsampled_planes(key: Tensor, grid: tuple[int, int], *, backend: str | None = None) -> Tensor:
    """Gram planes of a grid, (5, h, w) float32: all that is needed of a target to know its upsampled norms.

    Args:
        key: (h*w, D) features in raster order, any strides.
        grid: (h, w).
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        The dot product of each cell with itself, with its right, its lower and its lower-right neighbour, and of its
        right with its lower neighbour; neighbours are clamped at the border. Accumulated in float32.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    h, w = checked_pair("grid", grid)
    _check_rows("key", key)
    if key.shape[0] != h * w:
        raise ValueError(f"grid: got {(h, w)}, expected h * w = {key.shape[0]}, the rows of key")
    if takes_gradient("upsampled_planes", backend, key):
        return reference.upsampled_planes(key, (h, w)).unflatten(1, (h, w))
    return _planes(key, [h, w], backend).unflatten(1, (h, w))


def upsampled_argmax(
    query: Tensor,
    key: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    planes: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """For each query the pixel of the target image with the highest cosine similarity.

    Args:
        query: (K, D), any lengths and strides; float32 may meet a half-precision key.
        key: (h*w, D) target features in raster order, any strides.
        grid: (h, w) of the target.
        size: (H, W) of the target image in pixels.
        planes: (5, h, w) of :func:`upsampled_planes`, to save their computation.
        mask: (H, W) bool, True where a pixel may be chosen; None: everywhere.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        xy: (K, 2) int64, (x, y) pixels. Among equal scores the lowest raster index (y outer, x inner).
        score: (K,) float32 in [-1, 1]. Zero vectors and pixels where the neighbours cancel,
        |F(p)|^2 <= 2^-10 (sum_i w_i |f_i|)^2, have similarity 0 with everything.

        A query that is not finite, or without a pixel to choose, gets (-1, -1) and NaN. A key row that is not finite
        invalidates every pixel on which it has weight.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    (h, w), (height, width) = checked_pair("grid", grid), checked_pair("size", size)
    if mask is not None and mask.shape != (height, width):
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {(height, width)}")
    if planes is not None and planes.shape != (5, h, w):
        raise ValueError(f"planes: got shape {tuple(planes.shape)}, expected {(5, h, w)}")
    return _run(
        "upsampled_argmax",
        query,
        key,
        None if planes is None else planes.flatten(1),
        None if mask is None else mask.flatten(),
        [0, query.shape[0]],
        [h, w],
        [height, width],
        backend,
    )


def upsampled_argmax_batch(
    query: Tensor,
    key: Tensor,
    query_offsets: Sequence[int] | Tensor,
    grids: Sequence[tuple[int, int]] | Tensor,
    sizes: Sequence[tuple[int, int]] | Tensor,
    *,
    planes: Tensor | None = None,
    masks: Sequence[Tensor | None] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`upsampled_argmax` of many pairs at once, each with its own grid, image size and number of queries.

    The number of kernel launches does not depend on the number of pairs.

    Args:
        query: (K, D), the pairs' queries back to back.
        key: (M, D), the pairs' targets back to back: M is the sum of h * w.
        query_offsets: P + 1 integers, from 0 to K, not falling: pair i owns queries [i] to [i + 1].
        grids: P times (h, w).
        sizes: P times (H, W).
        planes: (5, M), the flattened planes of the targets back to back.
        masks: P times (H, W) bool or None.
        backend: as for :func:`upsampled_argmax`.

        Offsets, grids and sizes are integers or CPU tensors; tensors on a GPU would have to be waited for.

    Returns:
        xy (K, 2) int64 and score (K,) float32, in the order of the queries.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    grid_list, size_list = (
        [checked_pair("grids", g) for g in _plain(grids)],
        [checked_pair("sizes", s) for s in _plain(sizes)],
    )
    offsets = [operator.index(o) for o in _plain(query_offsets)]
    if len(size_list) != len(grid_list):
        raise ValueError(f"sizes: got {len(size_list)}, expected {len(grid_list)}, one per grid")
    if (
        len(offsets) != len(grid_list) + 1
        or offsets[0] != 0
        or offsets[-1] != query.shape[0]
        or any(b < a for a, b in itertools.pairwise(offsets))
    ):
        raise ValueError(
            f"query_offsets: got {offsets}, expected {len(grid_list) + 1} integers that do not fall, "
            f"from 0 to {query.shape[0]}"
        )
    mask = None
    if masks is not None and any(m is not None for m in masks):
        mask = _packed_masks(masks, size_list, query.device)
    flat_grids, flat_sizes = (list(itertools.chain.from_iterable(pairs)) for pairs in (grid_list, size_list))
    return _run("upsampled_argmax_batch", query, key, planes, mask, offsets, flat_grids, flat_sizes, backend)


def _run(name, query, key, planes, mask, offsets, grids, sizes, backend) -> tuple[Tensor, Tensor]:
    """Check what both public functions share, then call the op or, for a gradient, its twin."""
    _check_rows("query", query)
    _check_rows("key", key)
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"query: got {query.shape[1]} channels, expected {key.shape[1]}, as key has")
    rows = sum(map(operator.mul, grids[0::2], grids[1::2]))
    if key.shape[0] != rows:
        raise ValueError(f"key: got {key.shape[0]} rows, expected {rows}, the cells of the grid")
    if planes is not None and (planes.shape != (5, rows) or planes.dtype != torch.float32):
        raise ValueError(f"planes: got {tuple(planes.shape)} {planes.dtype}, expected (5, {rows}) float32")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask: got {mask.dtype}, expected bool")
    for label, t in (("query", query), ("planes", planes), ("mask", mask)):
        if t is not None and t.device != key.device:
            raise ValueError(f"{label}: got a tensor on {t.device}, expected one on {key.device}, where key is")
    args = (query, key, planes, mask, offsets, grids, sizes)
    if takes_gradient(name, backend, query, key, planes):
        return reference.upsampled_argmax(*args)
    return _argmax(*args, backend)


# --- checks ----------------------------------------------------------------------------------------------------------


def _plain(values: Any) -> Sequence[Any]:
    return values.tolist() if isinstance(values, Tensor) else values


def _check_rows(name: str, t: Tensor) -> None:
    if t.ndim != 2 or t.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(t.shape)}, expected (rows, D) with D of at least 1")
    check_dtype(name, t.dtype)


def _packed_masks(masks: Sequence[Tensor | None], sizes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """The masks flattened back to back; a missing one allows every pixel."""
    if len(masks) != len(sizes):
        raise ValueError(f"masks: got {len(masks)}, expected {len(sizes)}, one per grid")
    flat = []
    for mask, size in zip(masks, sizes, strict=True):
        if mask is not None and (mask.shape != size or mask.dtype != torch.bool):
            raise ValueError(f"masks: got {tuple(mask.shape)} {mask.dtype}, expected {size} bool")
        flat.append(torch.ones(size, dtype=torch.bool, device=device).flatten() if mask is None else mask.flatten())
    return torch.cat(flat)


# --- registration ----------------------------------------------------------------------------------------------------


def _fake_planes(key, grids, backend) -> Tensor:
    return key.new_empty((5, key.shape[0]), dtype=torch.float32)


def _fake_argmax(query, key, planes, mask, query_offsets, grids, sizes, backend) -> tuple[Tensor, Tensor]:
    count = query.shape[0]
    return query.new_empty((count, 2), dtype=torch.int64), query.new_empty((count,), dtype=torch.float32)


def _compare_planes(inputs, kernel: Tensor, twin: Tensor) -> None:
    """Dot products, compared in units of the cells' own squared lengths."""
    unit = twin[0].nan_to_num(0.0, 0.0, 0.0).amax().clamp_min(1e-30) if twin.numel() else 1.0
    _backend.check_close("upsampled_planes", "planes over the largest squared norm", kernel / unit, twin / unit)


def _compare_argmax(inputs, kernel: tuple[Tensor, Tensor], twin: tuple[Tensor, Tensor]) -> None:
    """Scores directly; pixels by what the kernel's choice scores against the twin's, in float64."""
    (xy, score), (twin_xy, twin_score) = kernel, twin
    _backend.check_close("upsampled_argmax", "score", score, twin_score)
    query, key, _, mask, offsets, grids, sizes = inputs
    cell = pixel = 0
    for pair, (first, last) in enumerate(itertools.pairwise(offsets)):
        (h, w), (height, width) = grids[2 * pair : 2 * pair + 2], sizes[2 * pair : 2 * pair + 2]
        cells, allowed = key[cell : cell + h * w], None if mask is None else mask[pixel : pixel + height * width]
        cell, pixel = cell + h * w, pixel + height * width
        differs = (xy[first:last] != twin_xy[first:last]).any(1).nonzero()[:, 0] + first
        if len(differs):
            chosen = xy[differs]
            _check_pixels(chosen, allowed, (height, width))
            ours = reference.score_at(query[differs], cells, (h, w), (height, width), chosen).to(torch.float32)
            _backend.check_close("upsampled_argmax", "score at the chosen pixel", ours, twin_score[differs])


def _check_pixels(xy: Tensor, allowed: Tensor | None, size: tuple[int, int]) -> None:
    """Raise VerificationError for a pixel that could not be chosen at all."""
    x, y = xy.unbind(1)
    good = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    if allowed is not None:
        good = good & allowed[(y * size[1] + x).clamp(0, len(allowed) - 1)]
    if not bool(good.all()):
        raise _backend.VerificationError(
            f"upsampled_argmax: xy, shape {tuple(xy.shape)}, dtype {xy.dtype}, has {xy[~good][0].tolist()}, "
            f"which is outside the image of (H, W) = {size} or its mask"
        )


def _limit(query, key, planes, mask, query_offsets, grids, sizes) -> str | None:
    for height, width in zip(sizes[0::2], sizes[1::2], strict=True):
        if height * width > PIXELS:
            return f"an image of {height} x {width} pixels has more than {PIXELS}"
    return None


_planes = define(
    "upsampled_planes(Tensor key, SymInt[] grids, str? backend) -> Tensor",
    twin=reference.upsampled_planes,
    kernel="upsampled.planes",
    fake=_fake_planes,
    compare=_compare_planes,
)
_argmax = define(
    "upsampled_argmax(Tensor query, Tensor key, Tensor? planes, Tensor? mask, SymInt[] query_offsets, SymInt[] grids, "
    "SymInt[] sizes, str? backend) -> (Tensor, Tensor)",
    twin=reference.upsampled_argmax,
    kernel="upsampled.argmax",
    fake=_fake_argmax,
    compare=_compare_argmax,
    limit=_limit,
)
