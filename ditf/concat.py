"""Features of several backbones beside one another, and the joint projection of several images' features.

DiTF's rows "+ DINOv2" (arXiv 2505.18584, appendix, Eq. 14) concatenate the features of two backbones and project them
to 1280 channels by PCA. The weights of the parts and their normalisation were not published. Ours, as in sd-dino and
GeoAware-SC: every part of every token has unit length and weight 1 unless told otherwise. The projection is worked out
on the tokens of both images together, mean-centred: apart, their channels would mean different things.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels.reference import sample_grid

from .errors import InputError
from .types import FeatureMap

__all__ = ["concat", "joint_pca"]

NORM_FLOOR = 1e-12  # a shorter token counts as zero, as everywhere


def concat(maps: Any, weights: Sequence[float] | None = None, pca: int | None = None) -> Any:
    """:meth:`ditf.FeatureMap.concat`, which says what this does."""
    maps = _checked_list("maps", maps)
    if not all(isinstance(m, FeatureMap) for m in maps):
        images = [_checked_list(f"maps[{i}]", own) for i, own in enumerate(maps)]
        if len({len(own) for own in images}) > 1:
            raise InputError.of("maps", [len(own) for own in images], "as many maps of every image")
        joined = [_concat_one(own, weights, f"maps[{i}]") for i, own in enumerate(images)]
        return joined if pca is None else joint_pca(joined, pca)
    if pca is not None:
        raise InputError.of(
            "pca",
            pca,
            "None for one image: projections worked out apart cannot be matched; give a list of maps per image, "
            "[[dit_a, dino_a], [dit_b, dino_b]]",
        )
    return _concat_one(maps, weights, "maps")


def joint_pca(maps: Sequence[FeatureMap], components: int) -> list[FeatureMap]:
    """The features of several images on the principal components of all their tokens together.

    Distances between tokens are kept as well as ``components`` channels can; all of them where there are as many as
    the tokens' rank. Cosines change, since the mean of all tokens is taken away first, as in DiTF's supplement. The
    decomposition is that of a float64 Gram matrix of the smaller side, tokens or channels, so it is exact; of each
    component the token coordinate of largest magnitude is positive.

    Args:
        maps: of images to be matched with one another, of the same channels, on one device.
        components: channels to keep; at most the channels and at most one less than the tokens of all the images.

    Returns:
        The maps in order, with float32 tokens of ``components`` channels.

    Raises:
        InputError: maps that do not fit one another, or more components than there can be.
    """
    maps = _checked_list("maps", maps)
    _check_alike(maps, "maps")
    for i, features in enumerate(maps):
        if features.tokens.shape[1] != maps[0].tokens.shape[1]:
            expected = f"{maps[0].tokens.shape[1]} as in maps[0]"
            raise InputError.of(f"maps[{i}]", f"{features.tokens.shape[1]} channels", expected)
    counts = [len(m.tokens) for m in maps]
    most = min(maps[0].tokens.shape[1], sum(counts) - 1)
    if not isinstance(components, int) or isinstance(components, bool) or not 1 <= components <= most:
        raise InputError.of("components", components, f"an integer in 1..{most}")
    device = maps[0].tokens.device
    exact = "cpu" if device.type == "mps" else device  # MPS has no float64
    tokens = torch.cat([m.tokens.to(exact, torch.float64) for m in maps])  # (N, D)
    if not bool(tokens.isfinite().all()):
        raise InputError("maps: got tokens that are not finite, expected finite ones; extract them anew")
    projected = _principal_coordinates(tokens - tokens.mean(0), components).to(device, torch.float32)
    about = {"components": components, "images": len(maps)}
    return [
        dataclasses.replace(m, tokens=own.clone(), inverse_norm=None, card={**m.card, "pca": about})
        for m, own in zip(maps, projected.split(counts), strict=True)
    ]


def _principal_coordinates(centred: Tensor, components: int) -> Tensor:
    """(N, components) float64 of centred rows (N, D), the component of largest variance first."""
    rows, channels = centred.shape
    if rows <= channels:  # X = U S V': X X' = U S^2 U', and the coordinates X V are U S
        square, vectors = torch.linalg.eigh(centred @ centred.T)
        square, vectors = square.flip(0)[:components], vectors.flip(1)[:, :components]
        found = vectors * square.clamp_min(0).sqrt()
    else:
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors
        found = centred @ vectors.flip(1)[:, :components]
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * torch.where(largest < 0, -1.0, 1.0)


def _concat_one(maps: list[Any], weights: Sequence[float] | None, name: str) -> FeatureMap:
    _check_alike(maps, name)
    shares = _checked_weights(weights, len(maps))
    first = maps[0]
    for i, features in enumerate(maps):
        if features.image_size != first.image_size:
            raise InputError.of(
                f"{name}[{i}]", f"an image of {features.image_size}", f"{first.image_size} as in {name}[0]: one image"
            )
    parts = [F.normalize(_on_grid_of(first, m), dim=1, eps=NORM_FLOOR) for m in maps]  # (N, D_i) each
    tokens = torch.cat([share * part for share, part in zip(shares, parts, strict=True)], 1)
    dtype = max((m.tokens.dtype for m in maps), key=lambda d: d.itemsize)
    card = {"concat": [dict(m.card) for m in maps], "weights": [share**2 for share in shares]}
    return dataclasses.replace(
        first,
        tokens=tokens.to(dtype),
        inverse_norm=None,
        block=_common([m.block for m in maps]),
        timestep=_common([m.timestep for m in maps]),
        card=card,
    )


def _on_grid_of(first: FeatureMap, other: FeatureMap) -> Tensor:
    """(N, D) float32: the other's features, bilinear, at the centres of the first's tokens."""
    same = (first.grid, first.extent, first.offset) == (other.grid, other.extent, other.offset)
    if same:
        return other.tokens.to(torch.float32)
    (h, w), (height, width), device = first.grid, first.extent, other.tokens.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    y = (torch.arange(h, device=device, dtype=exact) + 0.5) * (height / h) - 0.5
    x = (torch.arange(w, device=device, dtype=exact) + 0.5) * (width / w) - 0.5
    x, y = x - first.offset[0] + other.offset[0], y - first.offset[1] + other.offset[1]  # canvas, image, other canvas
    centres = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).reshape(-1, 2)
    return sample_grid(other.tokens, other.grid, other.extent, centres)


def _common(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _checked_list(name: str, maps: Any) -> list[Any]:
    if isinstance(maps, FeatureMap) or not isinstance(maps, Sequence) or not maps:
        raise InputError.of(name, type(maps).__name__, "a list of at least one FeatureMap")
    return list(maps)


def _check_alike(maps: list[Any], name: str) -> None:
    """Refuse what are no feature maps, or maps on several devices."""
    for i, features in enumerate(maps):
        if not isinstance(features, FeatureMap):
            raise InputError.of(f"{name}[{i}]", type(features).__name__, "a FeatureMap")
        if features.tokens.device != maps[0].tokens.device:
            device = maps[0].tokens.device
            raise InputError.of(
                f"{name}[{i}]",
                f"features on {features.tokens.device}",
                f"{device} as {name}[0]; move them with .to({str(device)!r})",
            )


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """The factors of the parts, their squares summing to 1."""
    try:
        values = [1.0] * count if weights is None else [float(w) for w in weights]
    except (TypeError, ValueError):
        raise InputError.of("weights", weights, "numbers, one per map") from None
    if len(values) != count:
        raise InputError.of("weights", values, f"{count} numbers, one per map")
    if not all(math.isfinite(w) and w >= 0 for w in values) or not any(values):
        raise InputError.of("weights", values, "finite numbers of at least 0, not all 0")
    length = math.hypot(*values)
    return [w / length for w in values]
