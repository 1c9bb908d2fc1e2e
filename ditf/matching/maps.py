"""Whole images: the similarity map of a point, mutual matches of all tokens, and points worth looking at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels.reference import upsampled_similarity

from ..errors import InputError
from ..types import FeatureMap, Matches, checked_points
from .pairs import check_pair
from .points import match_points

__all__ = ["distinctive_points", "mutual_matches", "similarity_map", "token_centres"]


def similarity_map(src: FeatureMap, tgt: FeatureMap, point: Sequence[float] | Tensor | np.ndarray) -> Tensor:
    """(H, W) float32 cosine similarity of one source point with every pixel of the target image.

    Args:
        src, tgt: features of the two images.
        point: (x, y) pixels of the source image.

    Raises:
        InputError: a point outside the image, or features that do not fit.
    """
    check_pair(src, tgt)
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


def _similarities(query: Tensor, tgt: FeatureMap) -> Tensor:
    """(K, H, W) float32 at target image size."""
    scores = upsampled_similarity(query, tgt.tokens, tgt.grid, tgt.extent)
    x, y = tgt.offset
    return scores[:, y : y + tgt.image_size[0], x : x + tgt.image_size[1]]


def _argmax_where(values: Tensor, where: Tensor) -> int:
    return int(values.masked_fill(~where, -torch.inf).argmax())
