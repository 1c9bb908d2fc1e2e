"""The first-class call: given points of one image, found in another; one pair or many in one call of the kernel."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ditf_kernels import upsampled_argmax_batch, upsampled_planes

from ..errors import InputError, kernel_errors
from ..types import FeatureMap, Matches
from .mirror import Counterparts, of_better_pose
from .pairs import Group, Pair, Points, grouped, make_pairs, reversed_pairs
from .queries import sample_points
from .regions import Box, Mask
from .scores import Scores, best_k, expected_position, expected_position_in_window

__all__ = ["match_points"]

Refine = Literal["argmax", "soft", "window-soft"]

TEMPERATURE = 0.02  # GeoAware-SC (Zhang et al., CVPR 2024)
WINDOW = 7.0  # tokens, GeoAware-SC; 5 in its zero-shot configuration
PACKED_BYTES = {"cuda": 1 << 30}  # of targets laid side by side for one call of the kernel
PACKED_BYTES_ELSEWHERE = 1 << 25  # where a call costs little and a copy much


@dataclass(frozen=True)
class _Options:
    """What :func:`match_points` is asked beyond the pairs."""

    topk: int
    refine: Refine
    temperature: float
    window: float
    cycle: bool


@overload
def match_points(
    src: FeatureMap,
    tgt: FeatureMap,
    points: Points,
    *,
    topk: int = ...,
    refine: Refine = ...,
    temperature: float = ...,
    window: float = ...,
    cycle: bool = ...,
    source_mask: Mask | None = ...,
    target_mask: Mask | None = ...,
    source_box: Box | None = ...,
    target_box: Box | None = ...,
    flipped_source: FeatureMap | None = ...,
    counterparts: Counterparts | None = ...,
    backend: str | None = ...,
) -> Matches: ...
@overload
def match_points(
    src: Sequence[FeatureMap],
    tgt: Sequence[FeatureMap],
    points: Sequence[Points] | Tensor | np.ndarray,
    *,
    topk: int = ...,
    refine: Refine = ...,
    temperature: float = ...,
    window: float = ...,
    cycle: bool = ...,
    source_mask: Sequence[Mask | None] | Mask | None = ...,
    target_mask: Sequence[Mask | None] | Mask | None = ...,
    source_box: Sequence[Box | None] | None = ...,
    target_box: Sequence[Box | None] | None = ...,
    flipped_source: Sequence[FeatureMap | None] | None = ...,
    counterparts: Sequence[Counterparts | None] | None = ...,
    backend: str | None = ...,
) -> list[Matches]: ...


def match_points(
    src: Any,
    tgt: Any,
    points: Any,
    *,
    topk: int = 1,
    refine: Refine = "argmax",
    temperature: float = TEMPERATURE,
    window: float = WINDOW,
    cycle: bool = False,
    source_mask: Any = None,
    target_mask: Any = None,
    source_box: Any = None,
    target_box: Any = None,
    flipped_source: Any = None,
    counterparts: Any = None,
    backend: str | None = None,
) -> Matches | list[Matches]:
    """The pixel of the target image whose feature is most similar to each source point's (cosine).

    Equal to upsampling the target features bilinearly to the image, normalising every pixel and taking the argmax,
    without the upsampled features. Among equal scores the first pixel in raster order wins.

    With lists of feature maps and of points, pairs of any sizes are matched together, in one call of the kernel (more
    where their targets exceed 1 GiB on a GPU, 32 MiB elsewhere), and every argument after ``points`` that speaks of an
    image is a list too. A map that stands in several pairs is recognised as the same object; its Gram planes are worked
    out once. A pair's whole-pixel matches are bitwise those of a call of its own, unless its target is shared: a matrix
    product with more rows may round scores otherwise, by about 1e-7.

    Args:
        src, tgt: features of the two images, from the same model, block and timestep; or as long lists of them.
        points: (K, 2) float, (x, y) pixels of the source image; fractions are interpolated.
        topk: also keep this many best pixels per point, neighbours of each other as they may be.
        refine: "argmax" gives whole pixels; "soft" the expectation under softmax(similarity / temperature) over the
            image, "window-soft" the same within ``window`` tokens of the argmax, everything else having no weight
            (GeoAware-SC's own code gives it similarity 0, which pulls weak matches to the centre). ``score`` and
            ``topk`` stay those of whole pixels.
        temperature: of the softmax; GeoAware-SC 0.02, SD4Match 0.04.
        window: half the side of the window in tokens of the target; GeoAware-SC 7, in its zero-shot configuration 5,
            on a grid of 60 x 60.
        cycle: also match back, by argmax under the source's mask and box, and give the distance in pixels
            (``cycle_error``).
        source_mask, target_mask: (H, W) bool or integer at the size of the image; only what is True takes part. No
            other pixel of the target is chosen; a source point outside has no match, as one without a valid pixel.
        source_box, target_box: (x0, y0, x1, y1) pixels, both corners inside; with a mask, what is in both takes part.
        flipped_source: features of the source image mirrored left to right (``fx(PIL.ImageOps.mirror(image))``; x
            becomes W - 1 - x). They take the place of ``src`` where they match the target better, by GeoAware-SC's
            instance matching distance (see :mod:`ditf.matching.mirror`), and ``mirrored`` says so. ``source`` stays
            the points as given.
        counterparts: with ``flipped_source``: for each point the index of the one that takes its place in a mirror, of
            a left ear the right one, of a nose itself (GeoAware-SC has such lists per category), so that a left ear
            is found as a left ear. Or "self" where sides are not told apart, as in pictures that are mirror images of
            one another.
        backend: "auto", "triton", "torch" or "verify"; default what the source features were made with.

    Returns:
        Matches of K points, or a list of them; a point without a valid pixel has target (-1, -1) and score NaN.

    Raises:
        InputError: points outside the image or not finite, features that do not fit one another, a mask of another
            size, lists of different lengths.
        VerificationError: with ``backend="verify"``, the kernel and its twin disagree.
    """
    options = _Options(topk, refine, temperature, window, cycle)
    many = isinstance(src, Sequence)
    per_pair = {
        "source_mask": source_mask,
        "target_mask": target_mask,
        "source_box": source_box,
        "target_box": target_box,
    }
    if many:
        _check_lists(tgt=tgt, points=points, flipped_source=flipped_source, counterparts=counterparts, **per_pair)
    else:
        src, tgt, points = [src], [tgt], [points]
        per_pair = {name: None if value is None else [value] for name, value in per_pair.items()}
        flipped_source = None if flipped_source is None else [flipped_source]
        counterparts = None if counterparts is None else [counterparts]
    with torch.no_grad():
        pairs = make_pairs(src, tgt, points, names=many, backend=backend, **per_pair)
        _check_options(options, pairs)
        if flipped_source is not None or counterparts is not None:
            pairs = of_better_pose(pairs, flipped_source, counterparts, names=many)
        found = _matched(pairs, options)
    return found if many else found[0]


def _check_lists(**arguments: Any) -> None:
    for name, value in arguments.items():
        needed = name in ("tgt", "points")
        several = isinstance(value, Sequence) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 1)
        if not several and (needed or value is not None):
            raise InputError.of(name, type(value).__name__, "a list with one entry per pair, as src is a list")


def _check_options(options: _Options, pairs: Sequence[Pair]) -> None:
    if options.refine not in ("argmax", "soft", "window-soft"):
        raise InputError.of("refine", options.refine, '"argmax", "soft" or "window-soft"')
    pixels = min((math.prod(pair.target.image_size) for pair in pairs), default=math.inf)
    if not isinstance(options.topk, int) or isinstance(options.topk, bool) or not 1 <= options.topk <= pixels:
        raise InputError.of("topk", options.topk, "an integer of at least 1 and at most the pixels of the target image")
    for name in ("temperature", "window"):
        value = getattr(options, name)
        if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf):
            raise InputError.of(name, value, "a finite number above 0")


# --- many pairs at once ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """Of one pair: targets in image pixels, scores, and what was asked besides."""

    target: Tensor  # (K, 2) float32
    score: Tensor  # (K,) float32
    topk: Tensor | None  # (K, k, 3)


def _matched(pairs: Sequence[Pair], options: _Options) -> list[Matches]:
    if not pairs:
        return []
    found = _find(pairs, options)
    device = pairs[0].source.tokens.device
    sources = torch.cat([pair.points for pair in pairs]).to(device).split([len(pair.points) for pair in pairs])
    matches = [
        Matches(
            source=source,
            target=own.target,
            score=own.score,
            topk=own.topk,
            source_size=pair.source.image_size,
            target_size=pair.target.image_size,
            mirrored=pair.mirrored,
        )
        for pair, source, own in zip(pairs, sources, found, strict=True)
    ]
    return _with_cycle_error(pairs, matches) if options.cycle else matches


def _with_cycle_error(pairs: Sequence[Pair], matches: Sequence[Matches]) -> list[Matches]:
    """Each match's distance from where it was looked up, once matched back; NaN without a match."""
    missing = [(m.target < 0).any(-1, keepdim=True) for m in matches]
    there = [m.target.masked_fill(none, torch.nan) for m, none in zip(matches, missing, strict=True)]
    back = _find(reversed_pairs(pairs, there), _BEST)
    done = []
    for pair, m, none, own in zip(pairs, matches, missing, back, strict=True):
        lost = (none | (own.target < 0).any(-1, keepdim=True))[:, 0]
        error = (own.target - pair.lookup.to(own.target.device)).norm(dim=-1)
        done.append(dataclasses.replace(m, cycle_error=error.masked_fill(lost, torch.nan)))
    return done


def _find(pairs: Sequence[Pair], options: _Options) -> list[_Found]:
    """Of each pair, in order: its points' best pixels, in as few calls of the kernel as the targets' sizes allow."""
    groups = grouped(pairs)
    order = [i for group in groups for i in group.members]
    counts = [len(pairs[i].lookup) for i in order]
    query = sample_points([pairs[i].source for i in order], [pairs[i].lookup for i in order])  # (K, D) float32
    shares = [sum(len(pairs[i].lookup) for i in group.members) for group in groups]
    queries = query.split(shares)
    refines = options.topk > 1 or options.refine != "argmax"
    repeated = len({id(group.target) for group in groups}) < len(groups)  # under several masks
    planes = _planes(groups) if refines or repeated else {}
    best, score = _best_pixels(groups, queries, planes)  # canvas pixels (K, 2) int64, (K,)

    target, tops = best.to(torch.float32), None
    if refines:
        refined = [
            _refined(group, own, at, value, planes[id(group.target)], options)
            for group, own, at, value in zip(groups, queries, best.split(shares), score.split(shares), strict=True)
        ]
        target = torch.cat([xy for xy, _ in refined])
        tops = None if options.topk == 1 else torch.cat([top for _, top in refined if top is not None]).split(counts)
    target = target.split(counts)
    found: list[Any] = [None] * len(pairs)
    for place, (i, xy, own) in enumerate(zip(order, target, score.split(counts), strict=True)):
        offset = pairs[i].target.offset
        top = None if tops is None else tops[place]
        found[i] = _Found(_on_image(xy, offset), own, None if top is None else _on_image(top, offset))
    return found


_BEST = _Options(1, "argmax", TEMPERATURE, WINDOW, False)


def _best_pixels(
    groups: Sequence[Group], queries: Sequence[Tensor], planes: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """(K, 2) int64 pixels of the canvases and (K,) scores; without planes the kernel makes them itself."""
    results = []
    for first, last in _calls(groups):
        own, asked = groups[first:last], queries[first:last]
        known = [planes[id(group.target)].flatten(1) for group in own] if planes else None
        key = own[0].target.tokens if len(own) == 1 else torch.cat([group.target.tokens for group in own])
        with kernel_errors():
            results.append(
                upsampled_argmax_batch(
                    torch.cat(list(asked)) if len(asked) > 1 else asked[0],
                    key,
                    [0, *itertools.accumulate(map(len, asked))],
                    [group.target.grid for group in own],
                    [group.target.extent for group in own],
                    planes=None if known is None else torch.cat(known, 1),
                    masks=[group.mask for group in own],
                    backend=own[0].backend,
                )
            )
    return torch.cat([xy for xy, _ in results]), torch.cat([score for _, score in results])


def _calls(groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    """Ranges of groups for one call each: of one dtype and backend, their targets within the budget together."""
    budget = PACKED_BYTES.get(groups[0].target.tokens.device.type, PACKED_BYTES_ELSEWHERE)
    first = used = 0
    for i, group in enumerate(groups):
        alike = (group.target.tokens.dtype, group.backend) == (groups[first].target.tokens.dtype, groups[first].backend)
        if i > first and (not alike or used + group.target.tokens.nbytes > budget):
            yield first, i
            first, used = i, 0
        used += group.target.tokens.nbytes
    yield first, len(groups)


def _planes(groups: Sequence[Group]) -> dict[int, Tensor]:
    """Gram planes (5, h, w) of every target, by identity."""
    planes: dict[int, Tensor] = {}
    for group in groups:
        target = group.target
        if id(target) not in planes:
            with kernel_errors():
                planes[id(target)] = upsampled_planes(target.tokens, target.grid, backend=group.backend)
    return planes


def _refined(
    group: Group, query: Tensor, best: Tensor, score: Tensor, planes: Tensor, options: _Options
) -> tuple[Tensor, Tensor | None]:
    """Of the queries of one group: (K, 2) positions on the canvas, and the best k or None."""
    scores = Scores(group.target, group.mask, planes)
    position = best.to(torch.float32)
    if options.refine == "soft":
        position = expected_position(scores, query, best, score, options.temperature)
    elif options.refine == "window-soft":
        position = expected_position_in_window(scores, query, best, score, options.temperature, options.window)
    return position, best_k(scores, query, best, score, options.topk) if options.topk > 1 else None


def _on_image(canvas: Tensor, offset: tuple[int, int]) -> Tensor:
    """Positions x, y (and more) of a canvas (..., 2 or 3) on the image; (-1, -1) stays."""
    if offset == (0, 0):
        return canvas
    shift = torch.tensor([*offset, 0][: canvas.shape[-1]], dtype=canvas.dtype, device=canvas.device)
    return torch.where((canvas[..., :2] < 0).any(-1, keepdim=True), canvas, canvas - shift)
