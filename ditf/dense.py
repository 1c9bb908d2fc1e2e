"""Every token, or every pixel, of one image found in another.

At image resolution both feature maps are upsampled bilinearly to their images and every pixel is compared with every
pixel, exactly, without the upsampled features: :func:`ditf_kernels.upsampled_nearest` says how.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditf_kernels import mutual_nearest, upsampled_nearest

from .errors import InputError, kernel_errors
from .matching import token_centres
from .matching.pairs import check_pair
from .matching.regions import Mask, on_canvas, on_tokens, region
from .types import DenseMatches, FeatureMap

__all__ = ["match_dense", "warp_image_by"]


def match_dense(
    src: FeatureMap,
    tgt: FeatureMap,
    *,
    resolution: Literal["tokens", "image"] = "tokens",
    mutual: bool = False,
    target_mask: Mask | None = None,
    backend: str | None = None,
) -> DenseMatches:
    """The most similar place of the target image (cosine) for every token, or every pixel, of the source image.

    Args:
        src, tgt: features of the two images, from the same model, block and timestep.
        resolution: "tokens" compares tokens and gives the pixel at the centre of the best one; "image" compares all
            pixels of both images, upsampled bilinearly as :func:`ditf.match_points` does, and gives whole pixels.
        mutual: also match the target back. At "tokens" this is always done, it costs nothing there; at "image" it takes
            as long again.
        target_mask: (H, W) bool or integer at target image size; only pixels that are not 0 may be chosen ("tokens":
            only tokens with such a pixel in their cell).
        backend: "auto", "triton", "torch" or "verify"; default what the source features were made with.

    Returns:
        DenseMatches over the source's tokens (h, w) or pixels (H, W). Padding of a padded image is never matched.

    Raises:
        InputError: features that do not fit, an unknown resolution, a mask of another size or dtype.
        VerificationError: with ``backend="verify"``, the kernel and its twin disagree.

    >>> dense = ditf.match_dense(source, target, resolution="image")
    >>> dense.warp("target.jpg")                      # the target in the pose of the source
    >>> ditf.estimate_homography(ditf.match_dense(source, target).matches())
    """
    check_pair(src, tgt)
    if resolution not in ("tokens", "image"):
        raise InputError.of("resolution", resolution, '"tokens" or "image"')
    if not isinstance(mutual, bool):
        raise InputError.of("mutual", mutual, "True or False")
    inside = region("target", target_mask, None, tgt.image_size)
    backend = backend or src.backend
    with kernel_errors():
        if resolution == "tokens":
            return _match_tokens(src, tgt, inside, backend)
        return _match_pixels(src, tgt, mutual, inside, backend)


def _match_tokens(src: FeatureMap, tgt: FeatureMap, inside: Tensor | None, backend: str | None) -> DenseMatches:
    own, allowed = on_tokens(src, None), on_tokens(tgt, inside)  # (N,), (M,) bool or None
    found = mutual_nearest(src.tokens, tgt.tokens, a_mask=own, b_mask=allowed, backend=backend)
    source, centres = token_centres(src), token_centres(tgt)  # (N, 2), (M, 2)
    none = found.index_ab < 0
    if own is not None:
        none, source = none | ~own, source.masked_fill(~own[:, None], torch.nan)
    index = found.index_ab.clamp_min(0)
    back = found.index_ba[index]
    error = (source[back.clamp_min(0)] - source).norm(dim=-1)
    return DenseMatches(
        source=source.unflatten(0, src.grid),
        target=centres[index].masked_fill(none[:, None], -1.0).unflatten(0, src.grid),
        score=found.score_ab.masked_fill(none, torch.nan).unflatten(0, src.grid),
        mutual=(found.mutual & ~none).unflatten(0, src.grid),
        cycle_error=error.masked_fill(none | (back < 0), torch.nan).unflatten(0, src.grid),
        resolution="tokens",
        source_size=src.image_size,
        target_size=tgt.image_size,
    )


def _match_pixels(
    src: FeatureMap, tgt: FeatureMap, mutual: bool, inside: Tensor | None, backend: str | None
) -> DenseMatches:
    target, score = _nearest_pixels(src, tgt, inside, backend)
    height, width = src.image_size
    y, x = (torch.arange(n, dtype=torch.float32, device=target.device) for n in (height, width))
    source = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    both = error = None
    if mutual:
        back, _ = _nearest_pixels(tgt, src, None, backend)  # (H, W, 2) of the target
        found = (target >= 0).all(-1)
        at = target.clamp_min(0)
        again = back[at[..., 1], at[..., 0]]
        found = found & (again >= 0).all(-1)
        error = (again - source).norm(dim=-1).masked_fill(~found, torch.nan)
        both = error == 0
    return DenseMatches(source, target.to(torch.float32), score, both, error, "image", src.image_size, tgt.image_size)


def _nearest_pixels(
    src: FeatureMap, tgt: FeatureMap, inside: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """(H, W, 2) int64 pixels of the target image, (-1, -1) for none, and scores (H, W)."""
    xy, score = upsampled_nearest(
        src.tokens, src.grid, src.extent, tgt.tokens, tgt.grid, tgt.extent,
        query_mask=on_canvas(src, None), mask=on_canvas(tgt, inside), backend=backend,
    )  # fmt: skip
    (x, y), (height, width) = src.offset, src.image_size
    xy, score = xy[y : y + height, x : x + width], score[y : y + height, x : x + width]
    return torch.where(xy < 0, xy, xy - torch.tensor(tgt.offset, device=xy.device)), score.contiguous()


# --- warping ---------------------------------------------------------------------------------------------------------


def warp_image_by(matches: DenseMatches, image: Any) -> np.ndarray:
    """See :meth:`ditf.types.DenseMatches.warp`."""
    from .images import load_image

    pixels = torch.from_numpy(np.array(load_image(image)))  # (H, W, 3) uint8
    if tuple(pixels.shape[:2]) != matches.target_size:
        height, width = matches.target_size
        raise InputError.of("image", tuple(pixels.shape[:2]), f"({height}, {width}), the size of the target image")
    target, source = matches.target.cpu(), matches.source.cpu()
    if matches.resolution == "image":
        at = target.clamp_min(0).long()
        return pixels[at[..., 1], at[..., 0]].masked_fill((target < 0).any(-1, keepdim=True), 0).numpy()
    height, width = matches.source_size
    rows, columns = (
        _nearest(source[..., 1].nanmedian(1).values, height),
        _nearest(source[..., 0].nanmedian(0).values, width),
    )
    target, centre = target[rows][:, columns], source[rows][:, columns]  # (H, W, 2)
    own = torch.stack(
        [torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)], -1
    )
    position = target + (own - centre)
    size = torch.tensor(matches.target_size[::-1], dtype=torch.float32)
    grid = ((position + 0.5) / size * 2 - 1).nan_to_num(0.0)
    warped = F.grid_sample(
        pixels.permute(2, 0, 1)[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    warped = warped[0].permute(1, 2, 0).round().to(torch.uint8)
    return warped.masked_fill((target < 0).any(-1, keepdim=True), 0).numpy()


def _nearest(centres: Tensor, length: int) -> Tensor:
    """(length,) int64: the nearest of the centres to each pixel; NaN is far."""
    distance = (torch.arange(length)[:, None] - centres).abs().nan_to_num(torch.inf)
    return distance.argmin(1)
