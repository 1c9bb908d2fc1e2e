"""Parts that several images share: clusters of their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from ..types import FeatureMap
from .board import draw_row, label_color
from .components import feature_grids, on_image

__all__ = ["draw_parts", "part_labels"]

_STARTS, _ROUNDS = 4, 100


def draw_parts(
    features: Sequence[FeatureMap | Tensor] | FeatureMap | Tensor,
    *,
    images: Sequence[Any] | None = None,
    parts: int = 6,
    seed: int = 0,
    opacity: float = 0.6,
    title: str | None = None,
    captions: Sequence[str] | None = None,
    height: int = 300,
) -> Image.Image:
    """Images under the colours of the parts that :func:`part_labels` finds in all of them together.

    Args:
        features: one or several feature maps of one model, or tensors (D, h, w).
        images: the images they are of; without them, the colours alone.
        parts: how many, at most 64.
        seed: of the clusters' starts.
        opacity: of the colours over the images, in 0..1.
        title: a line above everything.
        captions: one for each.
        height: of the images in the picture.

    Raises:
        InputError: as :func:`part_labels`; another number of images or captions; an opacity outside 0..1.
    """
    maps = [features] if isinstance(features, FeatureMap | Tensor) else list(features)
    labels = part_labels(maps, parts, seed=seed)
    names = [f"image {i + 1}" for i in range(len(maps))] if captions is None else list(captions)
    for name, given in (("images", images), ("captions", names)):
        if given is not None and len(given) != len(maps):
            raise InputError.of(name, len(given), f"one for each of the {len(maps)} feature maps")
    if not 0 <= opacity <= 1:
        raise InputError.of("opacity", opacity, "a number in 0..1")
    palette = np.array([label_color(i + 1) for i in range(parts)], np.uint8)
    painted = [on_image(Image.fromarray(palette[one.numpy()]), of) for one, of in zip(labels, maps, strict=True)]
    if images is not None:
        shown = [load_image(image) for image in images]
        painted = [Image.blend(i, p.resize(i.size, 0), opacity) for i, p in zip(shown, painted, strict=True)]
    legend = [(f"part {i + 1}", label_color(i + 1)) for i in range(parts)]
    return draw_row(painted, names, title=title, height=height, legend=legend)


def part_labels(features: Sequence[FeatureMap | Tensor], parts: int, *, seed: int = 0) -> list[Tensor]:
    """(h, w) int64 for each map: which of the joint clusters a token belongs to, 0 being the largest.

    Spherical k-means over the tokens of all maps: tokens of unit length, centres of unit length, the centre of largest
    cosine; the best of 4 starts drawn as k-means++ does (Arthur and Vassilvitskii, 2007), each run until no token
    changes its cluster, 100 rounds at most.

    Raises:
        InputError: parts that are not in 1..64 or more than there are tokens; features that are not finite or differ in
            channels.
    """
    grids = feature_grids(features)
    tokens = torch.nn.functional.normalize(torch.cat([grid.flatten(0, 1) for grid in grids]), dim=1)
    if not isinstance(parts, int) or not 1 <= parts <= min(64, len(tokens)):
        raise InputError.of("parts", parts, f"an integer in 1..{min(64, len(tokens))}")
    generator = torch.Generator().manual_seed(seed)
    runs = [_clusters(tokens, parts, generator) for _ in range(_STARTS)]
    label, _ = max(runs, key=lambda run: run[1])
    order = torch.bincount(label, minlength=parts).argsort(descending=True, stable=True)
    label = order.argsort()[label]
    pieces = label.split([grid.shape[0] * grid.shape[1] for grid in grids])
    return [piece.reshape(grid.shape[:2]) for piece, grid in zip(pieces, grids, strict=True)]


def _clusters(tokens: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Labels (N,) of one run, and the sum of the cosines to their centres."""
    first = int(torch.randint(len(tokens), (1,), generator=generator))
    centres = tokens[first : first + 1]
    while len(centres) < count:
        apart = (1.0 - (tokens @ centres.T).amax(1)).clamp(min=0.0)  # half the squared distance
        weights = apart if bool(apart.sum() > 1e-12) else torch.ones_like(apart)
        drawn = int(torch.multinomial(weights, 1, generator=generator))
        centres = torch.cat([centres, tokens[drawn : drawn + 1]])
    label = torch.full((len(tokens),), -1)
    for _ in range(_ROUNDS):
        cosine, new = (tokens @ centres.T).max(1)
        if torch.equal(new, label):
            break
        label = new
        sums = torch.zeros_like(centres).index_add_(0, label, tokens)
        empty = torch.bincount(label, minlength=count) == 0
        sums[empty] = tokens[cosine.argsort()[: int(empty.sum())]]  # the tokens that fit worst start anew
        centres = torch.nn.functional.normalize(sums, dim=1)
    return label, float((tokens * centres[label]).sum())
