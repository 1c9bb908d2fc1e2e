"""Features as colours: the first three principal components of all images together."""

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
from .board import draw_row, stack
from .layout import LEGEND, MARGIN

__all__ = ["draw_pca", "feature_grids", "on_image", "pca_colors"]

_PERCENTILES = (1.0, 99.0)  # of a component over all tokens: black and full
_DIRECT = 512  # tokens or channels up to which all eigenvectors are computed
_BACKGROUND = (26, 28, 34)


def draw_pca(
    features: Sequence[FeatureMap | Tensor] | FeatureMap | Tensor,
    *,
    images: Sequence[Any] | None = None,
    foreground: bool = False,
    title: str | None = None,
    captions: Sequence[str] | None = None,
    height: int = 300,
) -> Image.Image:
    """Feature maps in the colours of their joint principal components: equal colours are similar features.

    The recipe is that of :func:`pca_colors`. Every token is one flat square: nothing is smoothed.

    Args:
        features: one or several feature maps of one model, or tensors (D, h, w).
        images: the images they are of, shown above them.
        foreground: colour only what the first component takes for the foreground.
        title: a line above everything.
        captions: one for each.
        height: of the images in the picture.

    Raises:
        InputError: no features, another number of channels, of images or of captions.
    """
    maps = [features] if isinstance(features, FeatureMap | Tensor) else list(features)
    colors = pca_colors(maps, foreground=foreground)
    names = [f"image {i + 1}" for i in range(len(maps))] if captions is None else list(captions)
    for name, given in (("images", images), ("captions", names)):
        if given is not None and len(given) != len(maps):
            raise InputError.of(name, len(given), f"one for each of the {len(maps)} feature maps")
    painted = []
    for one, color in zip(maps, colors, strict=True):
        filled = np.where(np.isfinite(color), color * 255.0, np.array(_BACKGROUND, np.float64))
        painted.append(on_image(Image.fromarray(np.rint(filled).astype(np.uint8)), one))
    if images is None:
        return draw_row(painted, names, title=title, height=height)
    shown = [load_image(image) for image in images]
    above = draw_row(shown, names, title=title, height=height)
    above = above.crop((0, 0, above.width, above.height - LEGEND + MARGIN // 2))
    what = f"{'foreground ' if foreground else ''}components 1 to 3, joint"
    return stack([above, draw_row(painted, [what] * len(maps), height=height)])


def pca_colors(features: Sequence[FeatureMap | Tensor], *, foreground: bool = False) -> list[np.ndarray]:
    """(h, w, 3) float64 in [0, 1] for each map: red, green and blue are the principal components 1, 2 and 3.

    All tokens of all maps are centred by their joint mean and projected on the three eigenvectors of their joint
    covariance with the largest eigenvalues, in float64. The entry of an eigenvector that is largest in magnitude is
    made positive. Each component is scaled so that its 1st and 99th percentile over all tokens are 0 and 1, and
    clipped. A component without variance is 0.5.

    Args:
        features: feature maps of one model, or tensors (D, h, w).
        foreground: the first component is cut in two at Otsu's threshold, joint over all maps; the side with the
            smaller share of the border tokens is the foreground. The components are then those of the foreground
            alone, and the rest is NaN.

    Raises:
        InputError: no features, values that are not finite, or maps of different channels.
    """
    grids = feature_grids(features)
    tokens = torch.cat([grid.flatten(0, 1) for grid in grids])  # (sum of h * w, D) float64
    kept = torch.ones(len(tokens), dtype=torch.bool)
    if foreground:
        kept = _foreground(_components(tokens, tokens, 1)[:, 0], grids)
    projected = _components(tokens[kept], tokens[kept], 3)
    colors = torch.full((len(tokens), 3), torch.nan, dtype=torch.float64)
    colors[kept] = _scaled(projected)
    parts = colors.split([grid.shape[0] * grid.shape[1] for grid in grids])
    return [part.reshape(*grid.shape[:2], 3).numpy() for part, grid in zip(parts, grids, strict=True)]


def feature_grids(features: Sequence[FeatureMap | Tensor]) -> list[Tensor]:
    """(h, w, D) float64 on the CPU for each.

    Raises:
        InputError: no features, other shapes, values that are not finite, or maps of different channels.
    """
    if not len(features):
        raise InputError.of("features", "none", "at least one feature map")
    grids = []
    for position, one in enumerate(features):
        values = one.map if isinstance(one, FeatureMap) else one
        if not isinstance(values, Tensor) or values.ndim != 3 or not values.numel():
            got = getattr(values, "shape", type(values).__name__)
            raise InputError.of(f"features[{position}]", got, "a FeatureMap or a tensor (D, h, w)")
        grid = values.detach().cpu().double().permute(1, 2, 0)
        if grid.shape[2] != (grids or [grid])[0].shape[2]:
            raise InputError.of(
                f"features[{position}]", f"{grid.shape[2]} channels", f"{grids[0].shape[2]}, as the first map has"
            )
        if not bool(torch.isfinite(grid).all()):
            raise InputError.of(f"features[{position}]", "values that are not finite", "finite features")
        grids.append(grid)
    return grids


def on_image(cells: Image.Image, features: FeatureMap | Tensor) -> Image.Image:
    """One pixel per token, enlarged to what the grid covers, without what is not of the image."""
    if not isinstance(features, FeatureMap):
        return cells.resize((cells.width * 16, cells.height * 16), Image.Resampling.NEAREST)
    height, width = features.extent
    left, top = features.offset
    grown = cells.resize((width, height), Image.Resampling.NEAREST)
    return grown.crop((left, top, left + features.image_size[1], top + features.image_size[0]))


def _components(fitted: Tensor, tokens: Tensor, count: int) -> Tensor:
    """(N, count) projections of tokens on the leading eigenvectors of the fitted ones' covariance."""
    mean = fitted.mean(0)
    centred = fitted - mean
    axes = _leading_axes(centred, min(count, *centred.shape))
    found = axes.shape[1]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    projected = (tokens - mean) @ (axes * torch.where(largest < 0, -1.0, 1.0))
    return torch.nn.functional.pad(projected, (0, count - found))


def _leading_axes(centred: Tensor, count: int) -> Tensor:
    """(D, count) eigenvectors of X^T X with the largest eigenvalues; zero where there is no variance.

    Of many channels by subspace iteration, which for features takes a tenth of the full decomposition's time; where it
    has not converged to 1e-9 after 48 steps (eigenvalues all alike), by the full one.
    """
    if min(centred.shape) > _DIRECT:
        start = torch.randn(
            centred.shape[1], count + 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        basis = torch.linalg.qr(start).Q
        for _ in range(6):
            for _ in range(8):
                basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
            seen = centred @ basis
            values, mixing = torch.linalg.eigh(seen.T @ seen)  # ascending
            axes, values = (basis @ mixing)[:, -count:].flip(1), values[-count:].flip(0)
            left = (centred.T @ (centred @ axes) - axes * values).norm(dim=0).max()
            if bool(left <= 1e-9 * values[0]):
                return axes * (values > 1e-12 * values[0].clamp(min=1e-300))
    if centred.shape[0] >= centred.shape[1]:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
    else:  # the same eigenvectors from the smaller product
        values, left = torch.linalg.eigh(centred @ centred.T)
        vectors = torch.nn.functional.normalize(centred.T @ left, dim=0)
    kept = values[-count:].flip(0) > 1e-12 * values[-1].clamp(min=1e-300)
    return vectors[:, -count:].flip(1) * kept


def _scaled(projected: Tensor) -> Tensor:
    shares = torch.tensor(_PERCENTILES, dtype=torch.float64) / 100
    low, high = torch.from_numpy(np.quantile(projected.numpy(), shares.numpy(), axis=0))
    wide = (high - low) > 1e-9 * projected.abs().max().clamp(min=1e-300)
    scaled = ((projected - low) / torch.where(wide, high - low, 1.0)).clamp(0.0, 1.0)
    return torch.where(wide, scaled, 0.5)


def _foreground(values: Tensor, grids: Sequence[Tensor]) -> Tensor:
    """(N,) bool: the side of Otsu's threshold that holds the smaller share of the border."""
    above = values > _otsu(values)
    border = []
    for grid in grids:
        edge = torch.ones(grid.shape[:2], dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        border.append(edge.flatten())
    at_border = torch.cat(border)
    share = [float(at_border[side].double().mean()) if bool(side.any()) else 2.0 for side in (above, ~above)]
    return above if share[0] <= share[1] else ~above


def _otsu(values: Tensor) -> float:
    """The threshold between sorted values that leaves the largest variance between its two sides (Otsu, 1979)."""
    ordered = values.sort().values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)
    sums = ordered.cumsum(0)[:-1]
    between = (sums / below - (ordered.sum() - sums) / (n - below)) ** 2 * below * (n - below)
    if not len(between):
        return float(ordered[0]) - 1.0
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)
