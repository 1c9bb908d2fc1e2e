"""What is asked of a match, checked: pairs of feature maps, their points, and the pixels that take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..types import FeatureMap, checked_points
from .regions import Box, Mask, contains, on_canvas, region

__all__ = ["Group", "Pair", "Points", "check_pair", "grouped", "make_pairs", "reversed_pairs"]

Points = Tensor | np.ndarray | Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class Pair:
    """One source, one target, and the points to find.

    Attributes:
        source: the map that the points are looked up in; features of the mirrored image where that matches better.
        target: the map in which they are found.
        points: (K, 2) float32 on the CPU, (x, y) pixels of the source image as given.
        lookup: (K, 2) where they lie in ``source``; NaN for a point that takes no part.
        source_region, target_region: (H, W) bool in the frame of ``source`` and ``target``, or None.
        target_canvas: bool over the target's canvas, what the kernel takes, or None.
        backend: of the kernels.
        mirrored: whether ``source`` is the mirrored image's; None where there was no choice.
    """

    source: FeatureMap
    target: FeatureMap
    points: Tensor
    lookup: Tensor
    source_region: Tensor | None = None
    target_region: Tensor | None = None
    target_canvas: Tensor | None = None
    backend: str | None = None
    mirrored: bool | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Pairs that share a target and its mask: their points are one problem for the kernel."""

    target: FeatureMap
    mask: Tensor | None
    backend: str | None
    members: tuple[int, ...]


def grouped(pairs: Sequence[Pair]) -> list[Group]:
    """Pairs by target, mask and backend, in first-seen order; targets are recognised by identity."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault((id(pair.target), id(pair.target_canvas), pair.backend), []).append(i)
    firsts = [(pairs[own[0]], tuple(own)) for own in members.values()]
    return [Group(first.target, first.target_canvas, first.backend, own) for first, own in firsts]


def reversed_pairs(pairs: Sequence[Pair], found: Sequence[Tensor]) -> list[Pair]:
    """The ways back: from the pixels found in each target (K, 2), NaN where none was, to those of its source."""
    canvases: dict[tuple[int, int], Tensor | None] = {}
    back = []
    for pair, xy in zip(pairs, found, strict=True):
        key = id(pair.source), id(pair.source_region)
        if key not in canvases:
            canvases[key] = on_canvas(pair.source, pair.source_region)
        back.append(
            Pair(pair.target, pair.source, xy, xy, pair.target_region, pair.source_region, canvases[key], pair.backend)
        )
    return back


def make_pairs(
    src: Sequence[FeatureMap],
    tgt: Sequence[FeatureMap],
    points: Sequence[Points],
    *,
    names: bool,
    backend: str | None,
    **per_pair: Sequence[Any] | None,
) -> list[Pair]:
    """The pairs, checked.

    Args:
        src, tgt, points: one per pair.
        names: whether messages give the position in the lists.
        per_pair: ``source_mask``, ``target_mask``, ``source_box``, ``target_box``: None, or one (or None) per pair.

    Raises:
        InputError: lists of different lengths, features that do not fit, points or regions that cannot be used.
    """
    count = len(src)
    for name, values in (("tgt", tgt), ("points", points), *per_pair.items()):
        if values is not None and len(values) != count:
            raise InputError.of(name, f"{len(values)} of them", f"{count}, one per pair as in src")
    regions = _Regions()
    pairs = []
    for i, (source, target, own) in enumerate(zip(src, tgt, points, strict=True)):
        where = f"[{i}]" if names else ""
        check_pair(source, target, where, like=src[0])
        mask = {name: None if values is None else values[i] for name, values in per_pair.items()}
        xy = _points_on_cpu(f"points{where}", own, source.image_size)
        inside = regions.of("source", source, mask["source_mask"], mask["source_box"], where)[0]
        chosen, canvas = regions.of("target", target, mask["target_mask"], mask["target_box"], where)
        lookup = xy if inside is None else xy.masked_fill(~contains(inside, xy).cpu()[:, None], torch.nan)
        pairs.append(Pair(source, target, xy, lookup, inside, chosen, canvas, backend or source.backend))
    return pairs


class _Regions:
    """Regions and their canvases, made once for the same features, mask and box."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = {}
        self.kept: list[Any] = []  # what identities are taken of must live on

    def of(
        self, side: str, features: FeatureMap, mask: Mask | None, box: Box | None, where: str
    ) -> tuple[Tensor | None, Tensor | None]:
        key = (side, id(features), id(mask), None if box is None else str(box))
        if key not in self.known:
            inside = region(side, mask, box, features.image_size, where)
            self.known[key] = inside, on_canvas(features, inside) if side == "target" else None
            self.kept.append((features, mask))
        return self.known[key]


def check_pair(src: Any, tgt: Any, where: str = "", like: FeatureMap | None = None) -> None:
    """Refuse what are no feature maps, or maps of other channels or on another device than ``like`` (default src).

    Raises:
        InputError: see above.
    """
    for name, features in (("src", src), ("tgt", tgt)):
        if not isinstance(features, FeatureMap):
            raise InputError.of(f"{name}{where}", type(features).__name__, "a FeatureMap")
    first = (src if like is None else like).tokens
    whose = f"as in src{'[0]' if where else ''}"
    for name, features in (("src", src), ("tgt", tgt)):
        tokens = features.tokens
        if tokens.shape[1] != first.shape[1]:
            expected = f"{first.shape[1]} {whose}; use one model for both"
            raise InputError.of(f"{name}{where}", f"{tokens.shape[1]} channels", expected)
        if tokens.device != first.device:
            expected = f"{first.device} {whose}; move them with .to({str(first.device)!r})"
            raise InputError.of(f"{name}{where}", f"features on {tokens.device}", expected)


def _points_on_cpu(name: str, points: Points, image_size: tuple[int, int]) -> Tensor:
    if isinstance(points, Tensor):
        points = points.detach().cpu()  # one wait, where each check would be one
    return checked_points(name, points, image_size)
