"""Left-right pose alignment: whether the source matches better as it is or mirrored.

GeoAware-SC (Zhang et al., CVPR 2024, test-time adaptive pose alignment): the source is matched as it is and flipped,
and the pose of the smaller *instance matching distance* is kept: the mean Euclidean distance between the unit features
of the source's instance and their nearest neighbours in the target's. Where no instance mask is at hand its authors
average over mutual nearest neighbours instead. Both are worked out here on the tokens (theirs: resampled to 64 x 64).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ditf_kernels import cosine_argmax, mutual_nearest

from ..errors import InputError, kernel_errors
from ..types import FeatureMap
from .pairs import Pair
from .regions import on_tokens

__all__ = ["Counterparts", "instance_matching_distance", "of_better_pose"]

Counterparts = Sequence[int] | Tensor | np.ndarray | Literal["self"]


def of_better_pose(
    pairs: Sequence[Pair], flipped: Sequence[Any] | None, counterparts: Sequence[Any] | None, *, names: bool
) -> list[Pair]:
    """The pairs, with the mirrored source in place of the source where its instance matching distance is smaller.

    Args:
        flipped: features of each source image mirrored left to right, or None; None: of no pair.
        counterparts: for each pair with mirrored features what :func:`ditf.match_points` says of them.
        names: whether messages give the position in the lists.

    Raises:
        InputError: mirrored features that do not fit, or counterparts that are missing, needless or not mutual.
    """
    flipped = flipped or [None] * len(pairs)
    counterparts = counterparts if counterparts is not None else [None] * len(pairs)
    for name, values in (("flipped_source", flipped), ("counterparts", counterparts)):
        if len(values) != len(pairs):
            raise InputError.of(name, f"{len(values)} of them", f"{len(pairs)}, one per pair as in src")
    chosen = []
    for i, (pair, mirror, own) in enumerate(zip(pairs, flipped, counterparts, strict=True)):
        where = f"[{i}]" if names else ""
        if mirror is not None:
            other = _mirrored(pair, mirror, own, where)
            better = instance_matching_distance(other) < instance_matching_distance(pair)
            chosen.append(other if better else dataclasses.replace(pair, mirrored=False))
        elif own is not None:
            raise InputError.of(f"counterparts{where}", own, "none without flipped_source")
        else:
            chosen.append(pair)
    return chosen


def instance_matching_distance(pair: Pair) -> float:
    """Mean distance between the source's unit features and their nearest neighbours in the target's region.

    Taken over the tokens of the source's region; where the source has none, over mutual nearest neighbours. Infinite
    where nothing matches.
    """
    source, target = pair.source, pair.target
    within, allowed = on_tokens(source, pair.source_region), on_tokens(target, pair.target_region)
    with kernel_errors():
        if pair.source_region is not None:
            _, cosine = cosine_argmax(source.tokens[within], target.tokens, key_mask=allowed, backend=pair.backend)
        else:
            both = mutual_nearest(source.tokens, target.tokens, a_mask=within, b_mask=allowed, backend=pair.backend)
            cosine = both.score_ab[both.mutual]
    cosine = cosine[~cosine.isnan()]
    distance = (2 - 2 * cosine).clamp_min(0).sqrt()  # of unit vectors
    return float(distance.mean()) if len(distance) else float("inf")


def _mirrored(pair: Pair, mirror: Any, counterparts: Any, where: str) -> Pair:
    """The pair asked of the mirrored source: each point by its counterpart's place, x becoming W - 1 - x."""
    _check_mirror(pair, mirror, where)
    order = _checked_counterparts(counterparts, len(pair.points), where)
    x, y = (pair.points if order is None else pair.points[order]).unbind(1)
    lookup = torch.stack([pair.source.image_size[1] - 1 - x, y], 1)
    return dataclasses.replace(
        pair,
        source=mirror,
        lookup=lookup.masked_fill(pair.lookup.isnan(), torch.nan),
        source_region=None if pair.source_region is None else pair.source_region.flip(1),
        mirrored=True,
    )


def _check_mirror(pair: Pair, mirror: Any, where: str) -> None:
    name, first = f"flipped_source{where}", pair.source.tokens
    if not isinstance(mirror, FeatureMap):
        raise InputError.of(name, type(mirror).__name__, "a FeatureMap of the source image mirrored left to right")
    if mirror.image_size != pair.source.image_size:
        raise InputError.of(name, f"an image of {mirror.image_size}", f"{pair.source.image_size}, the size of src")
    if mirror.tokens.shape[1] != first.shape[1] or mirror.tokens.device != first.device:
        got = f"{mirror.tokens.shape[1]} channels on {mirror.tokens.device}"
        raise InputError.of(name, got, f"{first.shape[1]} channels on {first.device}, as src")


def _checked_counterparts(value: Any, count: int, where: str) -> Tensor | None:
    """(K,) int64, or None where every point is its own counterpart.

    Raises:
        InputError: none given, not integers in 0..K-1, or not mutual.
    """
    name = f"counterparts{where}"
    if isinstance(value, str) and value == "self":
        return None
    order = None if value is None or isinstance(value, str) else np.asarray(value)
    if order is None or order.shape != (count,) or not (count == 0 or np.issubdtype(order.dtype, np.integer)):
        raise InputError.of(
            name,
            value,
            f"for each of the {count} points the index of the one that takes its place in a mirror (of a left ear the "
            'right one, of a nose itself), or "self" where sides are not told apart',
        )
    order = order.astype(np.int64)
    if not ((order >= 0) & (order < count)).all():
        raise InputError.of(name, order.tolist(), f"indices in 0..{count - 1}")
    stray = np.flatnonzero(order[order] != np.arange(count))
    if len(stray):
        i = int(stray[0])
        raise InputError.of(
            name, order.tolist(), f"mutual counterparts, but point {i} has {order[i]}, which has {order[order[i]]}"
        )
    return torch.from_numpy(order)
