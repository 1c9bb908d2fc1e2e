"""match_points beside the reference protocol and its two cheaper variants, on SPair-71k sizes.

Two maps of 3072 channels on 30 x 40 tokens, images of 500 x 375 px, 8 keypoints. Rivals, in ``bench/protocols.py``: the
reference protocol (both maps upsampled, all pixels normalised per keypoint), the same normalising once, and
low-resolution dot products, upsampled, which answer differently. On a CPU one keypoint of eight of the reference is run
and its time extrapolated; its memory is then what comes on top of the upsampled target.

Floor: bytes = the target's h * w * D elements, FLOPs = 2 * K * h * w * D. ``match_points`` starts from points in the
CPU's memory, so on CUDA all rows are calls with their launches, until the result is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import protocols
import pytest
import torch
from harness import DEVICE, GPU, measure, seconds

import ditf

CHANNELS, GRID, SIZE, KEYPOINTS = 3072, (30, 40), (375, 500), 8
DTYPE = torch.float16 if GPU else torch.float32
GROUP = f"match {KEYPOINTS} points, D = {CHANNELS}, {SIZE[1]} x {SIZE[0]} px"
CELLS = GRID[0] * GRID[1]
FLOOR = {"bytes": CELLS * CHANNELS * DTYPE.itemsize, "flops": 2 * KEYPOINTS * CELLS * CHANNELS, "dtype": DTYPE}


def make_pair() -> protocols.Pair:
    torch.manual_seed(0)
    return protocols.make_pair(CHANNELS, GRID, SIZE, KEYPOINTS, DEVICE, DTYPE)


def feature_maps(pair: protocols.Pair) -> tuple[ditf.FeatureMap, ditf.FeatureMap]:
    first, second = (
        ditf.FeatureMap(m[0].flatten(1).T.contiguous(), GRID, pair.size) for m in (pair.source, pair.target)
    )
    return first, second


# Of the rows that ran: predictions, and MB of memory above the inputs.
_found: dict[str, torch.Tensor] = {}
_peak: dict[str, float] = {}


def test_ours(benchmark) -> None:
    def make_inputs():
        pair = make_pair()
        return *feature_maps(pair), pair.points

    def call(*inputs):
        return ditf.match_points(*inputs).target

    run(benchmark, "ours", call, make_inputs)


def test_low_resolution_dots_then_upsample(benchmark) -> None:
    run(benchmark, "low-resolution dots, then upsample (inexact)", protocols.upsampled_dots)


def test_normalise_once(benchmark) -> None:
    run(benchmark, "normalise once", protocols.normalise_once, rounds=5 if GPU else 1)


@pytest.mark.skipif(not GPU, reason="on a CPU one keypoint is run instead")
def test_reference_protocol(benchmark) -> None:
    run(benchmark, "reference protocol", protocols.reference, rounds=5)


@pytest.mark.skipif(GPU, reason="on a GPU all keypoints are run")
def test_reference_protocol_on_one_keypoint(benchmark) -> None:
    pair = make_pair()
    source, source_seconds = seconds(lambda: protocols.upsample(pair.source, SIZE))
    query = protocols.at_pixels(source, pair.points[:1]).clone()
    del source
    pixels, target_seconds = seconds(lambda: protocols.upsample(pair.target, SIZE))
    run(
        benchmark,
        "reference protocol",
        protocols.find_per_point_in,
        lambda: (query, pixels),
        rounds=1,
        extrapolate=KEYPOINTS,
        fixed_seconds=source_seconds + target_seconds,
    )


def arguments() -> tuple[Any, ...]:
    return make_pair().arguments


def run(benchmark, provider: str, function: Callable[..., torch.Tensor], make_inputs=arguments, **how: Any) -> None:
    found = measure(benchmark, function, make_inputs, provider=provider, group=GROUP, graph=False, **FLOOR, **how)
    _found[provider] = found
    if (peak := benchmark.extra_info["peak_mb"]) is not None:
        _peak[provider] = peak


def test_predictions_are_identical() -> None:
    if not {"ours", "normalise once", "reference protocol"} <= set(_found):
        pytest.skip("compares the rows above, of which some did not run")
    exact = _found["normalise once"]
    if GPU:  # where the rows are half precision, as the reference code's
        source, target, sizes, points = make_pair().arguments
        exact = protocols.normalise_once(source.float(), target.float(), sizes, points)
    else:
        assert torch.equal(_found["reference protocol"], exact[:1])
    assert protocols.agree(_found["ours"], exact)


def test_memory_is_a_fiftieth() -> None:
    if not {"ours", "reference protocol"} <= set(_peak):
        pytest.skip("compares rows above, of which some did not run, or memory could not be known")
    assert _peak["ours"] * 50 < _peak["reference protocol"]
