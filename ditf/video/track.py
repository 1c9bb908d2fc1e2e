"""Points of the first frame followed through a video by their features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels.reference import upsampled_similarity

from ..errors import InputError
from ..matching import match_points
from ..types import FeatureMap, Tracks, checked_points
from .propagate import check_frame

__all__ = ["TrackStep", "iter_tracks", "track_points"]

Points = Tensor | np.ndarray | Sequence[Sequence[float]]
Mode = Literal["direct", "chained", "window"]

_TEMPERATURE = 0.02  # of the soft-argmax: GeoAware-SC's published value
_HALF_WINDOW = 0.25  # of it, in tokens: a wider one is pulled to the middle of tokens, where similarity is lopsided
_STENCIL, _ROUNDS = 5, 12  # samples along a side of the window; how often it is moved at most
_PIXELS_AT_ONCE = 1 << 24  # of similarity maps
_NUMBERS_AT_ONCE = 1 << 24  # of sampled features


@dataclass(frozen=True, eq=False)
class TrackStep:
    """Where the points are in one frame, on the CPU.

    Attributes:
        points: (K, 2) float32, (x, y) pixels.
        visible: (K,) bool.
        score: (K,) float32 cosine similarity.
    """

    points: Tensor
    visible: Tensor
    score: Tensor


def track_points(
    frame_features: Iterable[FeatureMap],
    points: Points,
    *,
    mode: Mode = "direct",
    radius: float = 8.0,
    cycle_tolerance: float = 1.5,
    subpixel: bool = True,
    backend: str | None = None,
) -> Tracks:
    """Points of the first frame in every frame of a video.

    Args:
        frame_features: FeatureMaps of the frames in order, all of one size: a list, or a generator, which is asked for
            a frame at a time; the first and the last are kept.
        points: (K, 2) float, (x, y) pixels of the first frame, at least one.
        mode: "direct" finds each point of the first frame anywhere in every frame: it cannot drift, and may jump.
            "window" does so within ``radius`` of where the point was a frame before. "chained" goes from frame to
            frame, anywhere: it follows a slowly changing look, and errors add up.
        radius: of "window", in tokens along x and along y.
        cycle_tolerance: a point is visible where its match, matched back, lies within so many tokens (their longer
            side) of where it came from: of the point in the first frame, or for "chained" of the point in the frame
            before. A chain that was once broken stays invisible, as nothing says it is on the same point again.
        subpixel: refine each match by a soft-argmax over half a token's width, re-centred until it rests. Without it
            a chain moves by whole pixels, and slow motion is lost.
        backend: "auto", "triton", "torch" or "verify"; default what the features were made with.

    Returns:
        Tracks: points (T, K, 2), visible (T, K), score (T, K), on the CPU; the first frame's are the points given.

    Raises:
        InputError: points outside the first frame, no frames, or frames that do not fit one another.
        VerificationError: with ``backend="verify"``, the kernel and its twin disagree.
    """
    frames = iter(frame_features)
    first = list(itertools.islice(frames, 1))
    steps = list(
        iter_tracks(
            itertools.chain(first, frames), points, mode=mode, radius=radius, cycle_tolerance=cycle_tolerance,
            subpixel=subpixel, backend=backend,
        )
    )  # fmt: skip
    found, visible, score = (torch.stack([getattr(s, name) for s in steps]) for name in ("points", "visible", "score"))
    return Tracks(found, visible, score, first[0].image_size)


def iter_tracks(
    frame_features: Iterable[FeatureMap],
    points: Points,
    *,
    mode: Mode = "direct",
    radius: float = 8.0,
    cycle_tolerance: float = 1.5,
    subpixel: bool = True,
    backend: str | None = None,
) -> Iterator[TrackStep]:
    """One frame after another of :func:`track_points`; where the points are in frame t comes before frame t + 1 is
    asked for.

    Raises:
        InputError, VerificationError: as :func:`track_points`; at the frame that is at fault.
    """
    if mode not in ("direct", "chained", "window"):
        raise InputError.of("mode", mode, '"direct", "chained" or "window"')
    for name, value in (("radius", radius), ("cycle_tolerance", cycle_tolerance)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise InputError.of(name, value, "a finite number of tokens above 0")
    start = checked_points("points", points, None)
    if not len(start):
        raise InputError("points: got none, expected at least one (x, y)")
    return _steps(iter(frame_features), start, mode, radius, cycle_tolerance, subpixel, backend)


@torch.no_grad()
def _steps(
    frames: Iterator[FeatureMap],
    start: Tensor,
    mode: Mode,
    radius: float,
    cycle_tolerance: float,
    subpixel: bool,
    backend: str | None,
) -> Iterator[TrackStep]:
    first = next(frames, None)
    if first is None:
        raise InputError("frame_features: got no frames, expected FeatureMaps, the first frame's first")
    check_frame(first, first, 0)
    start = checked_points("points", start, first.image_size).to(first.tokens.device)
    token = _token_sides(first)
    source, origin, here = first, start, start  # where the query comes from, and where the points were last
    visible = torch.ones(len(start), dtype=torch.bool, device=start.device)
    yield TrackStep(start.cpu(), visible.cpu(), torch.ones(len(start)))
    for index, frame in enumerate(frames, 1):
        check_frame(frame, first, index)
        if mode == "chained" and index > 1:
            origin = here
        if mode == "window":
            found = _match_near(source, frame, origin, here, radius * token)
        else:
            found = match_points(source, frame, origin, backend=backend).target
        if subpixel:
            found = _refined(source.sample(origin), frame, found, token)
        score = F.cosine_similarity(source.sample(origin), frame.sample(found), dim=-1)
        back = match_points(frame, source, found, backend=backend).target
        returns = (back - origin).norm(dim=-1) <= cycle_tolerance * token.max()
        visible = returns & visible if mode == "chained" else returns
        here = found
        yield TrackStep(here.cpu(), visible.cpu(), score.cpu())
        if mode == "chained":
            source = frame


def _token_sides(features: FeatureMap) -> Tensor:
    """(2,) float32: how wide and how high a token is, in image pixels."""
    (h, w), (height, width) = features.grid, features.extent
    return torch.tensor([width / w, height / h], device=features.tokens.device)


def _match_near(src: FeatureMap, tgt: FeatureMap, points: Tensor, centres: Tensor, reach: Tensor) -> Tensor:
    """(K, 2) the most similar pixel within ``reach`` (x, y) of each centre, the first in raster order among equals."""
    query = src.sample(points)
    (left, top), (height, width) = tgt.offset, tgt.image_size
    x = torch.arange(width, device=query.device)
    y = torch.arange(height, device=query.device)
    step = max(1, _PIXELS_AT_ONCE // (tgt.extent[0] * tgt.extent[1]))
    found = []
    for some, centre in zip(query.split(step), centres.split(step), strict=True):
        score = upsampled_similarity(some, tgt.tokens, tgt.grid, tgt.extent)
        score = score[:, top : top + height, left : left + width]
        near = ((y - centre[:, 1:]).abs() <= reach[1])[:, :, None] & ((x - centre[:, :1]).abs() <= reach[0])[:, None]
        best = score.masked_fill(~near, -torch.inf).flatten(1).argmax(1)
        found.append(torch.stack([best % width, best // width], -1).float())
    return torch.cat(found)


def _refined(query: Tensor, tgt: FeatureMap, start: Tensor, token: Tensor) -> Tensor:
    """(K, 2) mean position under softmax(similarity / T) in a window of half a token, moved until it rests.

    A window that does not move is as far on one side of the peak as on the other: its mean is the peak's middle,
    wherever the first one was placed.
    """
    side = torch.linspace(-_HALF_WINDOW, _HALF_WINDOW, _STENCIL, device=query.device)
    offsets = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2) * token  # (S, 2)
    limit = torch.tensor(tgt.image_size[::-1], device=query.device) - 1.0
    step = max(1, _NUMBERS_AT_ONCE // (len(offsets) * query.shape[1]))
    refined = []
    for some, here in zip(F.normalize(query, dim=-1, eps=1e-12).split(step), start.split(step), strict=True):
        for _ in range(_ROUNDS):
            places = here[:, None] + offsets  # (k, S, 2)
            outside = ((places < 0) | (places > limit)).any(-1)
            sampled = tgt.sample(places.clamp(torch.zeros_like(limit), limit).flatten(0, 1)).unflatten(
                0, places.shape[:2]
            )
            score = (F.normalize(sampled, dim=-1, eps=1e-12) * some[:, None]).sum(-1)  # (k, S)
            weight = (score / _TEMPERATURE).masked_fill(outside, -torch.inf).softmax(1)
            moved = (weight[..., None] * places).sum(1).clamp(torch.zeros_like(limit), limit)
            still = bool((moved - here).abs().max() < 0.01)
            here = moved
            if still:
                break
        refined.append(here)
    return torch.cat(refined)
