"""Points of one image found in another, at the resolution of the pixels and without upsampled features.

The similarity of a query with every pixel of the target image is the interpolation of its similarities with the four
tokens around the pixel, divided by the norm of the interpolated token: both come from the (h, w) grid alone, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import upsampled_argmax
from ditf_kernels.reference import upsampled_similarity

from .errors import InputError, kernel_errors
from .types import FeatureMap, Matches, checked_points

__all__ = ["distinctive_points", "match_points", "mutual_matches", "similarity_map", "token_centres"]

Points = Tensor | np.ndarray | Sequence[Sequence[float]]
Refine = Literal["argmax", "soft", "window-soft"]

_TEMPERATURE = 0.02  # of the soft-argmax: GeoAware-SC's published value
_WINDOW_CELLS = 7  # half width of its window on a grid of about 60 cells


def match_points(
    src: FeatureMap,
    tgt: FeatureMap,
    points: Points,
    *,
    topk: int = 1,
    refine: Refine = "argmax",
    cycle: bool = False,
    target_mask: Tensor | np.ndarray | None = None,
    backend: str | None = None,
) -> Matches:
    """The pixel of the target image whose feature is most similar to each source point's (cosine).

    Equal to upsampling the target features bilinearly to the image, normalising every pixel and taking the argmax,
    without the upsampled features. Among equal scores the first pixel in raster order wins.

    Args:
        src, tgt: features of the two images, from the same model, block and timestep.
        points: (K, 2) float, (x, y) pixels of the source image; fractions are interpolated.
        topk: also keep this many best pixels per point, neighbours of each other as they may be.
        refine: "argmax" gives whole pixels; "soft" the expectation under softmax(similarity / 0.02), "window-soft"
            the same within 7 tokens of the argmax and nothing outside.
        cycle: also match back and give the distance in pixels (``cycle_error``).
        target_mask: (H, W) bool at target image size; only True pixels may be chosen.
        backend: "auto", "triton", "torch" or "verify"; default what the source features were made with.

    Returns:
        Matches of K points; a point without a valid pixel has target (-1, -1) and score NaN.

    Raises:
        InputError: points outside the image or not finite, features that do not fit, a mask of another size.
        VerificationError: with ``backend="verify"``, the kernel and its twin disagree.
    """
    _check_pair(src, tgt)
    if refine not in ("argmax", "soft", "window-soft"):
        raise InputError.of("refine", refine, '"argmax", "soft" or "window-soft"')
    if not isinstance(topk, int) or not 1 <= topk <= tgt.image_size[0] * tgt.image_size[1]:
        raise InputError.of("topk", topk, "an integer of at least 1 and at most the pixels of the target image")
    points = checked_points("points", points, src.image_size).to(src.tokens.device)
    mask = _canvas_mask(tgt, target_mask)
    backend = backend or src.backend
    query = src.sample(points).to(tgt.tokens.device)  # (K, D) float32
    with kernel_errors():
        xy, score = upsampled_argmax(query, tgt.tokens, tgt.grid, tgt.extent, mask=mask, backend=backend)
    target = _on_image(xy.to(torch.float32), tgt)
    best = _topk(query, tgt, mask, topk) if topk > 1 else None
    if refine != "argmax":
        target = _soft_argmax(query, tgt, mask, target, windowed=refine == "window-soft")
    matches = Matches(points, target, score, best, None, src.image_size, tgt.image_size)
    return dataclasses.replace(matches, cycle_error=_cycle_error(src, tgt, matches, backend)) if cycle else matches


def similarity_map(src: FeatureMap, tgt: FeatureMap, point: Sequence[float] | Tensor | np.ndarray) -> Tensor:
    """(H, W) float32 cosine similarity of one source point with every pixel of the target image.

    Args:
        src, tgt: features of the two images.
        point: (x, y) pixels of the source image.

    Raises:
        InputError: a point outside the image, or features that do not fit.
    """
    _check_pair(src, tgt)
    one = point[None] if isinstance(point, Tensor) else [point]
    return _similarities(src.sample(checked_points("point", one, src.image_size)), tgt)[0]


def mutual_matches(src: FeatureMap, tgt: FeatureMap, *, tolerance: float = 1.0) -> Matches:
    """Token centres of the source whose match leads back to them, best score first.

    Args:
        tolerance: largest cycle error, in tokens of the source.

    Returns:
        Matches with ``cycle_error`` in pixels; possibly none.
    """
    matches = match_points(src, tgt, token_centres(src), cycle=True)
    cell = max(src.extent[0] / src.grid[0], src.extent[1] / src.grid[1])
    assert matches.cycle_error is not None
    kept = matches.select(matches.cycle_error <= tolerance * cell)  # NaN compares False
    return kept.select(kept.score.argsort(descending=True, stable=True))


def distinctive_points(features: FeatureMap, count: int) -> Tensor:
    """(count or fewer, 2) centres of tokens that resemble the rest of their image least, spread over it.

    A token's distinctiveness is one minus its mean cosine, after removing the mean token, with the tokens it resembles
    most outside its own neighbourhood. The image is cut into about ``count`` cells and each gives its best token.
    """
    if not isinstance(count, int) or count < 1:
        raise InputError.of("count", count, "an integer of at least 1")
    h, w = features.grid
    tokens = features.tokens.float()
    tokens = F.normalize(tokens - tokens.mean(0), dim=-1)
    similar = tokens @ tokens.T  # (N, N)
    row, column = torch.arange(h * w, device=tokens.device) // w, torch.arange(h * w, device=tokens.device) % w
    near = ((row[:, None] - row).abs() <= 2) & ((column[:, None] - column).abs() <= 2)
    similar.masked_fill_(near, -1.0)
    distinct = 1.0 - similar.topk(min(8, h * w), dim=1).values.mean(1)  # (N,)
    columns = min(w, max(1, round((count * w / h) ** 0.5)))
    rows = min(h, max(1, count // columns))
    cell = (row * rows // h) * columns + column * columns // w
    best = [_argmax_where(distinct, cell == c) for c in range(rows * columns)]
    return token_centres(features)[best].clone()


def token_centres(features: FeatureMap) -> Tensor:
    """(N, 2) float32: the (x, y) image pixel at the centre of each token, clamped into the image."""
    (h, w), (height, width) = features.grid, features.extent
    y = (torch.arange(h, device=features.tokens.device) + 0.5) * (height / h) - 0.5 - features.offset[1]
    x = (torch.arange(w, device=features.tokens.device) + 0.5) * (width / w) - 0.5 - features.offset[0]
    centres = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).reshape(-1, 2)
    limit = torch.tensor(features.image_size[::-1], device=centres.device) - 1
    return centres.clamp(torch.zeros_like(limit), limit)


def _check_pair(src: FeatureMap, tgt: FeatureMap) -> None:
    for name, features in (("src", src), ("tgt", tgt)):
        if not isinstance(features, FeatureMap):
            raise InputError.of(name, type(features).__name__, "a FeatureMap")
    if src.tokens.shape[1] != tgt.tokens.shape[1]:
        raise InputError.of(
            "tgt", f"{tgt.tokens.shape[1]} channels", f"{src.tokens.shape[1]} as in src; use one model for both"
        )


def _canvas_mask(tgt: FeatureMap, mask: Tensor | np.ndarray | None) -> Tensor | None:
    """(H, W) bool over the target's canvas, or None when every pixel may be chosen."""
    height, width = tgt.image_size
    if mask is None and tgt.canvas is None:
        return None
    if mask is None:
        mask = torch.ones(height, width, dtype=torch.bool)
    mask = torch.as_tensor(mask)
    if mask.shape != (height, width):
        raise InputError.of("target_mask", tuple(mask.shape), f"({height}, {width}), the size of the target image")
    canvas = torch.zeros(tgt.extent, dtype=torch.bool, device=tgt.tokens.device)
    x, y = tgt.offset
    canvas[y : y + height, x : x + width] = mask.to(canvas.device, torch.bool)
    return canvas


def _on_image(canvas_xy: Tensor, tgt: FeatureMap) -> Tensor:
    """Canvas pixels (K, 2) as image pixels; (-1, -1) stays."""
    found = (canvas_xy >= 0).all(-1, keepdim=True)
    offset = torch.tensor(tgt.offset, dtype=canvas_xy.dtype, device=canvas_xy.device)
    return torch.where(found, canvas_xy - offset, canvas_xy)


def _similarities(query: Tensor, tgt: FeatureMap) -> Tensor:
    """(K, H, W) float32 at target image size."""
    scores = upsampled_similarity(query.to(tgt.tokens.device), tgt.tokens, tgt.grid, tgt.extent)
    x, y = tgt.offset
    return scores[:, y : y + tgt.image_size[0], x : x + tgt.image_size[1]]


def _topk(query: Tensor, tgt: FeatureMap, mask: Tensor | None, k: int) -> Tensor:
    """(K, k, 3) float32: x, y, score of the best pixels, one point at a time."""
    width = tgt.image_size[1]
    rows = []
    for one in query:
        score, index = _masked(_similarities(one[None], tgt)[0], tgt, mask).flatten().topk(k)
        rows.append(torch.stack([(index % width).float(), (index // width).float(), score], -1))
    return torch.stack(rows) if rows else query.new_zeros(0, k, 3)


def _soft_argmax(query: Tensor, tgt: FeatureMap, mask: Tensor | None, start: Tensor, *, windowed: bool) -> Tensor:
    """(K, 2) expected position under softmax(similarity / temperature), one point at a time."""
    height, width = tgt.image_size
    y = torch.arange(height, device=query.device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=query.device, dtype=torch.float32)
    reach = _WINDOW_CELLS * tgt.extent[0] / tgt.grid[0], _WINDOW_CELLS * tgt.extent[1] / tgt.grid[1]
    refined = start.clone()
    for i, one in enumerate(query):
        if start[i, 0] < 0:
            continue
        score = _masked(_similarities(one[None], tgt)[0], tgt, mask)
        if windowed:
            outside = ((y - start[i, 1]).abs() > reach[0]) | ((x - start[i, 0]).abs() > reach[1])
            score = score.masked_fill(outside, -torch.inf)
        weight = (score / _TEMPERATURE).flatten().softmax(0).view(height, width)
        refined[i, 0], refined[i, 1] = (weight * x).sum(), (weight * y).sum()
    return refined


def _masked(score: Tensor, tgt: FeatureMap, mask: Tensor | None) -> Tensor:
    """Scores (H, W) with minus infinity where no pixel may be chosen."""
    score = score.nan_to_num(nan=-torch.inf)
    if mask is None:
        return score
    x, y = tgt.offset
    return score.masked_fill(~mask[y : y + tgt.image_size[0], x : x + tgt.image_size[1]], -torch.inf)


def _cycle_error(src: FeatureMap, tgt: FeatureMap, matches: Matches, backend: str | None) -> Tensor:
    """(K,) pixels between each source point and the match of its match; NaN without a match."""
    found = (matches.target >= 0).all(-1)
    back = match_points(tgt, src, matches.target[found], backend=backend)
    error = torch.full((len(matches),), torch.nan, device=matches.source.device)
    error[found.to(error.device)] = (back.target.to(error.device) - matches.source[found.to(error.device)]).norm(dim=-1)
    return error


def _argmax_where(values: Tensor, where: Tensor) -> int:
    return int(values.masked_fill(~where, -torch.inf).argmax())
