"""Every pixel of a photograph to its nearest pixel of a warped copy, exactly, beside brute force.

Features are those of the bundled model on a photograph of scikit-image and its seeded warp (rotated, scaled and
recoloured), projected at random to the channels of a larger model; a second table has random features, on which less
can be pruned. On a CPU 256 x 256 px, 40 x 40 tokens, 768 channels; on CUDA 768 x 768 px, 48 x 48 tokens, 3072 channels.

Rivals, all with both maps upsampled: the product of all pixels with all pixels, in chunks of 512 source pixels; the
same in tiles that stay in the cache, by our own ``cosine_argmax``; the reference protocol, which normalises the
target's pixels for every source pixel again; and our own op for points, given every pixel, which does without upsampled
targets but prunes nothing. On a CPU a part of the source pixels is run, taken
evenly from all of the image, and its time extrapolated; what does not depend on their number is timed once, on its own.

Floor: bytes = both maps once and 20 bytes a source pixel; FLOPs = 2 * N^2 * D of the coarse dot products. ``pruned`` is
the share of pairs of a source pixel and a target cell that were never looked into.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, GPU, measure, seconds
from torch import Tensor

from ditf_kernels import cosine_argmax, reference, upsampled_argmax, upsampled_nearest
from ditf_kernels.reference.upsampled_dense import Pruning, prune_and_match

SIDE, PIXELS, CHANNELS = (48, 768, 3072) if GPU else (40, 256, 768)
GRID, SIZE = (SIDE, SIDE), (PIXELS, PIXELS)
DTYPE = torch.float16 if GPU else torch.float32
CHUNK = 512  # source pixels of one product
PARTS = {
    "brute force": 1 if GPU else 16,
    "brute force, in tiles": 1 if GPU else 16,
    "reference protocol": PIXELS**2 // 16,
    "every pixel as a point": 64,
}
KINDS = {"photograph": "a photograph and its warp", "random": "random features"}


@functools.cache
def features(kind: str) -> tuple[Tensor, Tensor]:
    """Source and target tokens (N, D)."""
    noise = torch.Generator().manual_seed(0)
    if kind == "random":
        pair = [torch.randn(SIDE**2, CHANNELS, generator=noise) for _ in range(2)]
    else:
        from PIL import Image
        from skimage import data

        import ditf
        from ditf.warps import warped_copy

        warp = warped_copy(_as_array(Image.fromarray(data.astronaut()).resize(SIZE)), seed=1)
        extract = ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", fused=False, size=4 * SIDE)
        maps = extract([warp.source, warp.target])
        assert maps[0].grid == GRID
        mix = torch.randn(maps[0].tokens.shape[1], CHANNELS, generator=noise) / CHANNELS**0.5
        pair = [m.tokens.float() @ mix for m in maps]
    source, target = (t.to(DEVICE, DTYPE) for t in pair)
    return source, target


def _as_array(image: Any) -> Any:
    import numpy as np

    return np.array(image)


def group_of(kind: str) -> str:
    return f"all {PIXELS} x {PIXELS} px to all, {SIDE} x {SIDE} tokens, D = {CHANNELS}, {KINDS[kind]}"


FLOOR = {
    "bytes": 2 * SIDE**2 * CHANNELS * DTYPE.itemsize + 20 * PIXELS**2,
    "flops": 2 * SIDE**4 * CHANNELS,
    "dtype": DTYPE,
}


# --- providers -------------------------------------------------------------------------------------------------------


def upsample(tokens: Tensor) -> Tensor:
    """(D, H*W), each pixel normalised."""
    return F.normalize(F.interpolate(tokens.T.unflatten(1, GRID)[None], SIZE, mode="bilinear")[0].flatten(1), dim=0)


def part(count: int) -> Tensor:
    """Raster indices of count source pixels, taken evenly from all."""
    return torch.linspace(0, PIXELS**2 - 1, count, device=DEVICE).long()


def brute_force(source: Tensor, target: Tensor) -> Tensor:
    """(K, D) pixels of the source with (D, H*W) of the target."""
    return torch.cat([(chunk @ target).argmax(1) for chunk in source.split(CHUNK)])


def brute_force_in_tiles(source: Tensor, target: Tensor) -> Tensor:
    """The same with the target as (H*W, D)."""
    ones = [torch.ones(len(t), device=DEVICE) for t in (source, target)]  # all are of length 1
    return cosine_argmax(source, target, query_inverse_norm=ones[0], key_inverse_norm=ones[1])[0]


def reference_protocol(source: Tensor, target: Tensor) -> Tensor:
    """The same, all of the target's pixels (D, H*W) normalised for each source pixel."""
    return torch.stack([(q @ F.normalize(target, dim=0)).argmax() for q in source])


def every_pixel_as_a_point(source: Tensor, target: Tensor) -> Tensor:
    return raster(upsampled_argmax(source, target, GRID, SIZE)[0])


def raster(xy: Tensor) -> Tensor:
    return (xy[..., 1] * PIXELS + xy[..., 0]).flatten()


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ours(benchmark, kind: str) -> None:
    source, target = features(kind)

    def call(source: Tensor, target: Tensor) -> Tensor:
        return upsampled_nearest(source, GRID, SIZE, target, GRID, SIZE)[0]

    facts = {} if GPU else pruned(source, target)
    found = measure(
        benchmark, call, lambda: (source.clone(), target.clone()), provider="ours", group=group_of(kind), graph=False,
        rounds=3, **FLOOR, **facts,
    )  # fmt: skip
    assert_exact(found, source, target)


def pruned(source: Tensor, target: Tensor) -> dict[str, Any]:
    pruning = Pruning()
    prune_and_match(source, target, None, None, None, None, [*GRID], [*SIZE], [*GRID], [*SIZE], pruning)
    return {"pruned": pruning.share, "note": f"{pruning.share:.2%} of pixel x cell pairs pruned"}


def assert_exact(found: Tensor, source: Tensor, target: Tensor) -> None:
    """No pixel scores higher by 1e-6 in float64, for 512 source pixels."""
    own = part(512)
    best = brute_force(upsample(source.float())[:, own].T, upsample(target.float()))
    grids, sizes = (GRID, GRID), (SIZE, SIZE)
    ours, expected = (
        reference.chosen_score(source, target, grids, sizes, own, pixels) for pixels in (raster(found)[own], best)
    )
    assert float((expected - ours).max()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_brute_force(benchmark, kind: str) -> None:
    source, target = features(kind)
    (own, pixels), fixed = seconds(lambda: (upsample(source).T, upsample(target)))
    own = own[part(PIXELS**2 // PARTS["brute force"])].contiguous()
    row(benchmark, kind, "brute force", brute_force, (own, pixels), fixed)


def test_brute_force_in_tiles(benchmark) -> None:
    source, target = features("photograph")
    (own, pixels), fixed = seconds(lambda: (upsample(source).T, upsample(target).T.contiguous()))
    own = own[part(PIXELS**2 // PARTS["brute force, in tiles"])].contiguous()
    row(benchmark, "photograph", "brute force, in tiles", brute_force_in_tiles, (own, pixels), fixed)


def test_reference_protocol(benchmark) -> None:
    source, target = features("photograph")
    (own, pixels), fixed = seconds(
        lambda: (upsample(source).T, F.interpolate(target.T.unflatten(1, GRID)[None], SIZE, mode="bilinear"))
    )
    own = own[part(PIXELS**2 // PARTS["reference protocol"])].contiguous()
    row(benchmark, "photograph", "reference protocol", reference_protocol, (own, pixels[0].flatten(1)), fixed)


def test_every_pixel_as_a_point(benchmark) -> None:
    source, target = features("photograph")
    own, fixed = seconds(lambda: upsample(source).T)
    own = own[part(PIXELS**2 // PARTS["every pixel as a point"])].contiguous()
    row(benchmark, "photograph", "every pixel as a point", every_pixel_as_a_point, (own, target), fixed)


def row(
    benchmark: Any, kind: str, provider: str, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], fixed: float
) -> None:
    measure(
        benchmark, function, lambda: tuple(t.clone() for t in inputs) if GPU else inputs, provider=provider,
        group=group_of(kind), graph=False, rounds=1, extrapolate=PARTS[provider], fixed_seconds=fixed, **FLOOR,
    )  # fmt: skip
