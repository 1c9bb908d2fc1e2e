"""Label propagation: each token takes the labels of its most similar tokens in context frames, inside a local window.

For query token i at (y, x) and key token j of frame f at (v, u), with |v - y| <= R and |u - x| <= R:

    s_ij = <q_i, k_j> / (max(|q_i|, 1e-12) max(|k_j|, 1e-12))
    N(i) = the K keys of largest s_ij over all frames together
    out  = sum_{j in N(i)} w_ij label_j,    w_ij = exp((s_ij - max_j s_ij) / T) / sum_{j in N(i)} exp(...)

Bytes that must move: (F + 1) * h*w * D elements of features and (F + 1) * C * h*w of labels; FLOPs: 2 * F * h*w * D
times the cells of a window, (2R + 1)^2 less what the border cuts off. It is bound by arithmetic. The affinity of all
keys with all queries, (F * h*w, h*w), is never formed.

Source: the video segmentation of DINO (arXiv 2104.14294), whose constants DIFT (arXiv 2306.03881) and DiTF change; it
masks every frame. Videowalk (arXiv 2006.14613) leaves the first frame free: ``global_frames=1``. DINO keeps *all* keys
not below the K-th, more than K where they tie, as they often do after exp in half precision; here there are exactly K.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import backend as _backend
from . import reference
from ._checks import check_dtype, check_integer, checked_pair
from ._registry import define, takes_gradient

__all__ = ["propagate_topk"]

TOPK = 32  # that the kernel keeps in registers
KEYS = (1 << 31) - 1  # in the kernel, which counts the cells of all frames in 32 bits


def propagate_topk(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    grid: tuple[int, int],
    *,
    radius: int,
    topk: int,
    temperature: float,
    global_frames: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Labels of one frame from those of its context frames, (C, h*w) float32.

    Args:
        query: (h*w, D) features of the frame, raster order, any lengths and strides; float32 may meet half precision.
        keys: (F, h*w, D) features of the context frames, likewise.
        labels: (F, C, h*w) their labels: one-hot, soft or any other numbers, float32, bfloat16 or float16.
        grid: (h, w).
        radius: a key may be chosen if neither its row nor its column is farther than this from the query's; at least 0.
        topk: how many keys are chosen over all frames together, at least 1.
        temperature: of the softmax over the chosen cosines, above 0.
        global_frames: the first so many frames have no window; 0 to F. With F nothing is windowed.
        backend: "auto", "triton", "torch" or "verify"; None: what ``use_backend`` or the environment says.

    Returns:
        The weighted labels. Exactly ``topk`` keys take part, among equal cosines those of the lowest (frame, raster)
        index; where the window and the frames hold fewer, all of them. A zero vector has cosine 0 with everything. A
        query token that is not finite, or has no key to choose, gets NaN in every channel; a key that is not finite is
        never chosen. Labels that are not finite spread to the tokens that choose them.

    Raises:
        ValueError: an argument that does not fit.
        BackendError: the backend cannot run here, or has no backward pass for an input that requires grad.
    """
    args = _checked(query, keys, labels, grid, radius, topk, temperature, global_frames)
    if takes_gradient("propagate_topk", backend, query, keys, labels):
        return reference.propagate_topk(*args)[0]
    return _propagate(*args, backend)[0]


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(query, keys, labels, grid, radius, topk, temperature, global_frames) -> tuple[Any, ...]:
    """The arguments of the registered op, without the backend."""
    h, w = checked_pair("grid", grid)
    if query.ndim != 2 or query.shape[1] == 0:
        raise ValueError(f"query: got shape {tuple(query.shape)}, expected (h*w, D) with D of at least 1")
    if query.shape[0] != h * w:
        raise ValueError(f"grid: got {(h, w)}, expected h * w = {query.shape[0]}, the rows of query")
    if keys.ndim != 3 or keys.shape[1:] != query.shape:
        raise ValueError(f"keys: got shape {tuple(keys.shape)}, expected (F, {h * w}, {query.shape[1]})")
    frames = keys.shape[0]
    if labels.ndim != 3 or labels.shape[0] != frames or labels.shape[2] != h * w:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected ({frames}, C, {h * w})")
    for name, t in (("query", query), ("keys", keys), ("labels", labels)):
        check_dtype(name, t.dtype)
        if t.device != query.device:
            raise ValueError(f"{name}: got a tensor on {t.device}, expected one on {query.device}, where query is")
    check_integer("radius", radius, 0, None)
    check_integer("topk", topk, 1, None)
    check_integer("global_frames", global_frames, 0, frames)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature!r}, expected a finite number above 0")
    return query, keys, labels, [h, w], radius, topk, float(temperature), global_frames


# --- registration ----------------------------------------------------------------------------------------------------


def _fake(query, keys, labels, grid, radius, topk, temperature, global_frames, backend) -> tuple[Tensor, ...]:
    cells = query.shape[0]
    return (
        query.new_empty((labels.shape[1], cells), dtype=torch.float32),
        query.new_empty((cells, topk), dtype=torch.int64),
        query.new_empty((cells, topk), dtype=torch.float32),
    )


def _compare(inputs: tuple[Any, ...], kernel: tuple[Tensor, ...], twin: tuple[Tensor, ...]) -> None:
    """Cosines rank by rank; keys by their cosine; labels by what the kernel's own choice makes of them."""
    (out, index, score), (_, twin_index, twin_score) = kernel, twin
    query, keys, labels, grid, radius, _, temperature, global_frames = inputs
    _backend.check_close("propagate_topk", "cosine", score, twin_score)
    differs = (index != twin_index).any(1).nonzero()[:, 0]
    if len(differs):
        _check_keys(differs, index[differs], keys.shape[0], grid, radius, global_frames)
        own = reference.chosen_cosine(query[differs], keys, index[differs])
        _backend.check_close("propagate_topk", "cosine of the chosen keys", own, twin_score[differs])
    expected = reference.blended_labels(labels, index, score, temperature)
    unit = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax().clamp_min(1e-30) if expected.numel() else 1.0
    _backend.check_close("propagate_topk", "labels over the largest", out / unit, expected / unit)


def _check_keys(token: Tensor, index: Tensor, frames: int, grid: list[int], radius: int, global_frames: int) -> None:
    """Raise VerificationError for keys (n, K) that could not be chosen for these query tokens (n,)."""
    (h, w), found = grid, index >= 0
    frame, cell = index // (h * w), index % (h * w)
    near = ((cell // w - (token // w)[:, None]).abs() <= radius) & ((cell % w - (token % w)[:, None]).abs() <= radius)
    good = ~found | ((near | (frame < global_frames)) & (frame < frames))
    order = index.sort(1).values
    twice = (order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)
    if not bool(good.all()) or bool(twice.any()):
        row = int((~good.all(1) | twice.any(1)).nonzero()[0, 0])
        raise _backend.VerificationError(
            f"propagate_topk: index, shape {tuple(index.shape)}, dtype {index.dtype}, has {index[row].tolist()} for "
            f"query token {int(token[row])}, which are not distinct keys of its window"
        )


def _limit(query, keys, labels, grid, radius, topk, temperature, global_frames) -> str | None:
    if topk > TOPK:
        return f"topk of {topk} is more than {TOPK}"
    count = keys.shape[0] * keys.shape[1]
    return f"{count} keys are more than {KEYS}" if count > KEYS else None


_propagate = define(
    "propagate_topk(Tensor query, Tensor keys, Tensor labels, SymInt[] grid, SymInt radius, SymInt topk, "
    "float temperature, SymInt global_frames, str? backend) -> (Tensor, Tensor, Tensor)",
    twin=reference.propagate_topk,
    kernel="propagate.propagate_topk",
    fake=_fake,
    compare=_compare,
    limit=_limit,
)
