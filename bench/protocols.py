"""Rivals of the matchers: what published evaluators do to find the points of one picture in another.

The ``find_*`` take queries (K, D), one target map (1, D, h, w) and its image size; the protocols take the source's map
and (K, 2) integer points instead of queries. All return (K, 2) predictions (x, y) and compute in the dtype of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

# --- from queries ----------------------------------------------------------------------------------------------------


def find_per_point(query: Tensor, target: Tensor, size: Size) -> Tensor:
    """Upsample the target to its image, then normalise all of its pixels for every point again: the reference code."""
    return find_per_point_in(query, upsample(target, size))


def find_per_point_in(query: Tensor, pixels: Tensor) -> Tensor:
    """The same in a map (1, D, H, W) that has been upsampled."""
    found = [(F.normalize(q, dim=0) @ F.normalize(pixels.flatten(2), dim=1)[0]).argmax() for q in query]
    return _xy(torch.stack(found), pixels.shape[3])


def find_normalise_once(query: Tensor, target: Tensor, size: Size) -> Tensor:
    """The same with the pixels normalised once for all points."""
    pixels = F.normalize(upsample(target, size).flatten(2), dim=1)[0]  # (D, H * W)
    return _xy((F.normalize(query, dim=1) @ pixels).argmax(1), size[1])


def find_upsampled_dots(query: Tensor, target: Tensor, size: Size) -> Tensor:
    """Low-resolution cosines, upsampled: as cheap as ours, but not the same answer."""
    cosine = F.normalize(query, dim=1) @ F.normalize(target[0].flatten(1), dim=0)  # (K, h * w)
    scores = upsample(cosine.view(1, len(query), *target.shape[2:]), size)
    return _xy(scores[0].flatten(1).argmax(1), size[1])


def soft_normalise_once(query: Tensor, target: Tensor, size: Size, window: float = 0.0) -> Tensor:
    """Expected positions (K, 2) under softmax(cosine / 0.02) of all pixels, or of a window of tokens at the best."""
    pixels = F.normalize(upsample(target, size).flatten(2), dim=1)[0]  # (D, H * W)
    return expected_positions(F.normalize(query, dim=1) @ pixels, target.shape[2:], size, window)


def soft_upsampled_dots(query: Tensor, target: Tensor, size: Size, window: float = 0.0) -> Tensor:
    """The same of low-resolution cosines, upsampled: not the same answer."""
    cosine = F.normalize(query, dim=1) @ F.normalize(target[0].flatten(1), dim=0)  # (K, h * w)
    scores = upsample(cosine.view(1, len(query), *target.shape[2:]), size)[0]
    return expected_positions(scores.flatten(1), target.shape[2:], size, window)


def expected_positions(scores: Tensor, grid: tuple[int, ...], size: Size, window: float) -> Tensor:
    """Of scores (K, H * W), with all other pixels at minus infinity where a window is given."""
    (height, width), scores = size, scores.float()
    x = torch.arange(width, device=scores.device).expand(height, width).flatten()
    y = torch.arange(height, device=scores.device)[:, None].expand(height, width).flatten()
    if window:
        best = scores.argmax(1, keepdim=True)
        far = ((y - best // width).abs() > window * height / grid[0]) | (
            (x - best % width).abs() > window * width / grid[1]
        )
        scores = scores.masked_fill(far, -torch.inf)
    weight = (scores / 0.02).softmax(1)
    return torch.stack([(weight * x).sum(1), (weight * y).sum(1)], 1)


def upsample(features: Tensor, size: Size) -> Tensor:
    return F.interpolate(features, size, mode="bilinear")


def _xy(index: Tensor, width: int) -> Tensor:
    return torch.stack([index % width, index // width], 1)


# --- from points -----------------------------------------------------------------------------------------------------


def reference(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """Both maps upsampled to their images, then normalised and compared per point."""
    return find_per_point(at_pixels(upsample(source, sizes[0]), points), target, sizes[1])


def normalise_once(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """The same with the target normalised once."""
    return find_normalise_once(at_pixels(upsample(source, sizes[0]), points), target, sizes[1])


def upsampled_dots(source: Tensor, target: Tensor, sizes: tuple[Size, Size], points: Tensor) -> Tensor:
    """Neither map upsampled."""
    return find_upsampled_dots(sampled(source, sizes[0], points), target, sizes[1])


def sampled(source: Tensor, size: Size, points: Tensor) -> Tensor:
    """(K, D) of (1, D, h, w), interpolated at the points alone."""
    (height, width), points = size, points.to(source.device)
    grid = (points + 0.5) / torch.tensor([width, height], device=source.device) * 2 - 1
    return F.grid_sample(source, grid[None, None].to(source), padding_mode="border", align_corners=False)[0, :, 0].T


def at_pixels(pixels: Tensor, points: Tensor) -> Tensor:
    """(K, D) of (1, D, H, W)."""
    return pixels[0][:, points[:, 1], points[:, 0]].T


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two maps (1, D, h, w) of images of one size (H, W), and points (K, 2) on the CPU."""

    source: Tensor
    target: Tensor
    size: Size
    points: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, tuple[Size, Size], Tensor]:
        """Of a protocol."""
        return self.source, self.target, (self.size, self.size), self.points


def make_pair(channels: int, grid: Size, size: Size, points: int, device: str, dtype: torch.dtype) -> Pair:
    """Smooth random maps, the target a noisy copy of the source: arguments of the maximum are well apart."""
    coarse = torch.randn(1, channels, grid[0] // 4 + 1, grid[1] // 4 + 1, device=device)
    source = F.interpolate(coarse, grid, mode="bicubic")
    target = source.roll(5, 3) + 0.3 * torch.randn(source.shape, device=device)
    x, y = torch.randint(0, size[1], (points,)), torch.randint(0, size[0], (points,))
    return Pair(source.to(dtype), target.to(dtype), size, torch.stack([x, y], 1))


def agree(found: Tensor, expected: Tensor) -> bool:
    """Equal predictions; on a GPU, whose products add up in another order, at most one pixel apart."""
    return int((found.long() - expected.long()).abs().max()) <= (0 if found.device.type == "cpu" else 1)
