"""Nearest neighbour of every pixel among every pixel, both images upsampled bilinearly, without upsampled features.

Both sides are interpolated, so with the weights w_i of a source pixel p and v_j of a target pixel q on their tokens

    score(p, q) = sum_ij w_i v_j <f_i, g_j> / (|F(p)| |G(q)|)

and the lengths come from five Gram planes a side, as in :func:`ditf_kernels.upsampled_argmax`. Nearly all q are never
looked at: pixels between the same four tokens form a cell, and the length of p's projection on the span of the cell's
four tokens bounds the scores of all of them (Cauchy-Schwarz; ``reference/upsampled_dense.py`` has the proof, rounding
included). Of the bundled model's features of two photographs 98 to 99.5% of the cells are ruled out so, of random
features 86%.

For images of P pixels and grids of N tokens each, and s target pixels scored per source pixel: bytes that must move are
2 * N * D elements and 20 * P; FLOPs 2 * N^2 * D of the coarse dot products, 22 * P * N of the bounds (35 in the kernel,
which does not share them between the pixels of a cell), 8 * P * s of the scores. For 768 x 768 px, 48 x 48 tokens,
D = 3072 and s of 20 cells of 256 pixels that is 33 + 30 + 24 GFLOP; the product of upsampled features takes 2,138,000.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype, checked_pair
from ._registry import define, takes_gradient

__all__ = ["upsampled_nearest"]

PIXELS = (1 << 31) - 1  # of an image, and products of two grids' tokens, in the kernel


def upsampled_nearest(
    query: Tensor,
    query_grid: tuple[int, int],
    query_size: tuple[int, int],
    key: Tensor,
    key_grid: tuple[int, int],
    key_size: tuple[int, int],
    *,
    query_planes: Tensor | None = None,
    key_planes: Tensor | None = None,
    query_mask: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """For each pixel of the source image the pixel of the target image with the highest cosine similarity, exactly.

    Equal to upsampling both feature maps bilinearly to their images (``align_corners=False``), normalising every pixel
    and comparing all with all, in memory that grows with the number of pixels.

    Args:
        query: (hq*wq, D) source features in raster order, any strides; float32 may meet half precision.
        query_grid, query_size: (hq, wq), and (Hq, Wq) of the source image in pixels.
        key: (hk*wk, D) target features.
        key_grid, key_size: (hk, wk), and (Hk, Wk) of the target image.
        query_planes, key_planes: (5, h, w) of :func:`upsampled_planes` of either side, to save their computation.
        query_mask: (Hq, Wq) bool, False where no answer is wanted (and no time spent); None: everywhere.
        mask: (Hk, Wk) bool, True where a target pixel may be chosen; None: everywhere.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        xy: (Hq, Wq, 2) int64, (x, y) pixels of the target. Among equal scores the lowest raster index.
        score: (Hq, Wq) float32 in [-1, 1]. Zero vectors, and pixels of either side where the neighbours cancel,
        |F(p)|^2 <= 2^-10 (sum_i w_i |f_i|)^2, have similarity 0 with everything.

        A source pixel on which a token that is not finite has weight, without a pixel to choose, or outside
        ``query_mask`` gets (-1, -1) and NaN. Target pixels on which such a token has weight are never chosen.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here.
    """
    grids = checked_pair("query_grid", query_grid), checked_pair("key_grid", key_grid)
    sizes = checked_pair("query_size", query_size), checked_pair("key_size", key_size)
    _check_side("query", query, query_planes, grids[0], key.device)
    _check_side("key", key, key_planes, grids[1], key.device)
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"query: got {query.shape[1]} channels, expected {key.shape[1]}, as key has")
    for name, given, size in (("query_mask", query_mask, sizes[0]), ("mask", mask, sizes[1])):
        if given is not None:
            if given.shape != size or given.dtype != torch.bool:
                raise ValueError(f"{name}: got {tuple(given.shape)} {given.dtype}, expected {size} bool")
            _check_device(name, given, key.device)
    query_flat, key_flat = (None if planes is None else planes.flatten(1) for planes in (query_planes, key_planes))
    flat, query_wanted = (None if given is None else given.flatten() for given in (mask, query_mask))
    args = (query, key, query_flat, key_flat, query_wanted, flat, [*grids[0]], [*sizes[0]], [*grids[1]], [*sizes[1]])
    if takes_gradient("upsampled_nearest", backend, query, key, query_planes, key_planes):
        return reference.upsampled_nearest(*args)
    return _nearest(*args, backend)


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_side(name: str, tokens: Tensor, planes: Tensor | None, grid: tuple[int, int], device: torch.device) -> None:
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(tokens.shape)}, expected (rows, D) with D of at least 1")
    check_dtype(name, tokens.dtype)
    if tokens.shape[0] != grid[0] * grid[1]:
        raise ValueError(f"{name}: got {tokens.shape[0]} rows, expected {grid[0] * grid[1]}, the cells of its grid")
    _check_device(name, tokens, device)
    if planes is not None:
        if planes.shape != (5, *grid) or planes.dtype != torch.float32:
            raise ValueError(f"{name}_planes: got {tuple(planes.shape)} {planes.dtype}, expected {(5, *grid)} float32")
        _check_device(f"{name}_planes", planes, device)


def _check_device(name: str, t: Tensor, device: torch.device) -> None:
    if t.device != device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {device}, where key is")


# --- registration ----------------------------------------------------------------------------------------------------


def _fake(
    query, key, query_planes, key_planes, query_mask, mask, query_grid, query_size, key_grid, key_size, backend
) -> tuple[Tensor, Tensor]:
    height, width = query_size
    return query.new_empty((height, width, 2), dtype=torch.int64), query.new_empty((height, width), dtype=torch.float32)


def _compare(inputs, kernel: tuple[Tensor, Tensor], twin: tuple[Tensor, Tensor]) -> None:
    """Scores directly; pixels by what the kernel's choice scores against the twin's, in float64."""
    (xy, score), (twin_xy, twin_score) = kernel, twin
    _backend.check_close("upsampled_nearest", "score", score, twin_score)
    query, key, _, _, _, mask, query_grid, query_size, key_grid, key_size = inputs
    own = (xy != twin_xy).any(-1).flatten().nonzero()[:, 0]
    if len(own) == 0:
        return
    chosen = xy.flatten(0, 1)[own]
    _check_pixels(chosen, mask, key_size)
    found = chosen[:, 1] * key_size[1] + chosen[:, 0]
    grids, sizes = ((*query_grid,), (*key_grid,)), ((*query_size,), (*key_size,))
    ours = reference.chosen_score(query, key, grids, sizes, own, found).to(torch.float32)
    _backend.check_close("upsampled_nearest", "score at the chosen pixel", ours, twin_score.flatten()[own])


def _check_pixels(xy: Tensor, mask: Tensor | None, size: Sequence[int]) -> None:
    """Raise VerificationError for a pixel that could not be chosen at all."""
    x, y = xy.unbind(1)
    good = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    if mask is not None:
        good = good & mask[(y * size[1] + x).clamp(0, len(mask) - 1)]
    if not bool(good.all()):
        raise _backend.VerificationError(
            f"upsampled_nearest: xy, shape {tuple(xy.shape)}, dtype {xy.dtype}, has {xy[~good][0].tolist()}, "
            f"which is outside the image of (H, W) = {tuple(size)} or its mask"
        )


def _limit(
    query, key, query_planes, key_planes, query_mask, mask, query_grid, query_size, key_grid, key_size
) -> str | None:
    for height, width in (query_size, key_size):
        if height * width > PIXELS:
            return f"an image of {height} x {width} pixels has more than {PIXELS}"
    return None


_nearest = define(
    "upsampled_nearest(Tensor query, Tensor key, Tensor? query_planes, Tensor? key_planes, Tensor? query_mask, "
    "Tensor? mask, SymInt[] query_grid, SymInt[] query_size, SymInt[] key_grid, SymInt[] key_size, str? backend) "
    "-> (Tensor, Tensor)",
    twin=reference.upsampled_nearest,
    kernel="upsampled_dense.nearest",
    fake=_fake,
    compare=_compare,
    limit=_limit,
)
