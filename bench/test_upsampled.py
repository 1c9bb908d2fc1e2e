"""upsampled_argmax, one pair and many at once, beside what published evaluators do with the same queries and targets.

On CUDA 64 maps of 3072 channels on grids of at most 40 tokens a side, images of SPair-71k's sizes, 10 queries each; on
a CPU, where the rivals would take minutes, two maps of 768 channels and half the side. Rivals, in
``bench/protocols.py``, go pair by pair: pixels normalised per point (the reference code), normalised once, and
low-resolution cosines, upsampled, which answer differently; and our own op pair by pair.

Floor: bytes = sum h * w * D elements of the targets, each once; FLOPs = sum 2 * K * h * w * D of the coarse scores. The
K * H * W pixels that are scored on the way cost about 12 FLOPs each and no memory, and are not in the limit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import protocols
import pytest
import torch
from harness import DEVICE, GPU, measure
from torch import Tensor

from ditf_kernels import upsampled_argmax, upsampled_argmax_batch, upsampled_planes

DTYPE = torch.float16 if GPU else torch.float32
QUERIES = 10
CHANNELS, PAIRS, SHRINK = (3072, 64, 1) if GPU else (768, 2, 2)
IMAGES = (((30, 40), (375, 500)), ((26, 40), (333, 500)), ((40, 30), (500, 375)), ((32, 40), (400, 500)))  # grid, size


def images(count: int) -> list[tuple[protocols.Size, protocols.Size]]:
    """(grid, size) of each pair's target."""
    chosen = [IMAGES[i % len(IMAGES)] for i in range(count)]
    return [((h // SHRINK, w // SHRINK), (height // SHRINK, width // SHRINK)) for (h, w), (height, width) in chosen]


@dataclass(frozen=True)
class Pairs:
    query: Tensor  # (P * QUERIES, D)
    key: Tensor  # (sum h * w, D)

    def each(self) -> Iterator[tuple[Tensor, Tensor, protocols.Size, protocols.Size]]:
        """Per pair its queries (K, D), target (h * w, D), grid and size."""
        places = images(len(self.query) // QUERIES)
        keys = self.key.split([h * w for (h, w), _ in places])
        for query, key, (grid, size) in zip(self.query.split(QUERIES), keys, places, strict=True):
            yield query, key, grid, size


def make_pairs(count: int) -> Pairs:
    """The same numbers at every call, in memory of their own; the first pair does not depend on the count."""
    torch.manual_seed(0)
    pairs = [protocols.make_pair(CHANNELS, grid, size, QUERIES, DEVICE, DTYPE) for grid, size in images(count)]
    queries = [pair.source[0].flatten(1).T[::23][:QUERIES] for pair in pairs]
    return Pairs(torch.cat(queries), torch.cat([pair.target[0].flatten(1).T for pair in pairs]))


# --- providers -------------------------------------------------------------------------------------------------------


def batched(pairs: Pairs) -> Tensor:
    offsets = range(0, len(pairs.query) + 1, QUERIES)
    grids, sizes = zip(*images(len(offsets) - 1), strict=True)
    return upsampled_argmax_batch(pairs.query, pairs.key, offsets, grids, sizes)[0]


def one_by_one(pairs: Pairs) -> Tensor:
    return torch.cat([upsampled_argmax(*pair)[0] for pair in pairs.each()])


def by(find: Callable[[Tensor, Tensor, protocols.Size], Tensor]) -> Callable[[Pairs], Tensor]:
    """A rival that takes pair by pair."""
    return lambda pairs: torch.cat([find(q, k.T.unflatten(1, grid)[None], size) for q, k, grid, size in pairs.each()])


PER_POINT, ONCE = by(protocols.find_per_point), by(protocols.find_normalise_once)
DOTS = by(protocols.find_upsampled_dots)
SLOW = {"graph": False, "rounds": 3 if GPU else 1}
PROVIDERS: dict[str, tuple[Callable[[Pairs], Tensor], dict[str, Any]]] = {
    "ours": (batched, {}),
    "ours, pair by pair": (one_by_one, {}),
    "low-resolution dots, then upsample (inexact)": (DOTS, {}),
    "normalise once": (ONCE, SLOW),
    "reference code": (PER_POINT, SLOW),
}


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_many_pairs(benchmark, provider: str) -> None:
    run(benchmark, provider, *PROVIDERS[provider], PAIRS)


@pytest.mark.parametrize("provider", ["ours", "low-resolution dots, then upsample (inexact)", "normalise once"])
def test_one_pair(benchmark, provider: str) -> None:
    function = one_by_one if provider == "ours" else PROVIDERS[provider][0]
    run(benchmark, provider, function, {} if GPU else PROVIDERS[provider][1], 1)


def test_one_pair_with_planes_at_hand(benchmark) -> None:
    """The target has been matched before."""

    def make_inputs() -> tuple[Any, ...]:
        query, key, grid, size = next(make_pairs(1).each())
        return query, key, grid, size, upsampled_planes(key, grid)

    def call(query: Tensor, key: Tensor, grid: protocols.Size, size: protocols.Size, planes: Tensor) -> Tensor:
        return upsampled_argmax(query, key, grid, size, planes=planes)[0]

    found = measure(benchmark, call, make_inputs, provider="ours, planes at hand", group=group_of(1), **floor_of(1))
    assert protocols.agree(found, exact())


def run(benchmark, provider: str, function: Callable[[Pairs], Tensor], how: dict[str, Any], count: int) -> None:
    found = measure(
        benchmark,
        function,
        lambda: (make_pairs(count),),
        provider=provider,
        group=group_of(count),
        **floor_of(count),
        **how,
    )
    if provider.startswith("ours"):
        assert protocols.agree(found[:QUERIES], exact())


@functools.cache
def exact() -> Tensor:
    """Predictions of the first pair by the exact protocol in float32."""
    query, key, grid, size = next(make_pairs(1).each())
    return protocols.find_normalise_once(query.float(), key.float().T.unflatten(1, grid)[None], size)


def group_of(count: int) -> str:
    pixels = f"about {500 // SHRINK} x {375 // SHRINK} px"
    return f"upsampled_argmax, {count} pair{'s' * (count > 1)}, {QUERIES} points each, D = {CHANNELS}, {pixels}"


def floor_of(count: int) -> dict[str, Any]:
    cells = sum(h * w for (h, w), _ in images(count))
    return {"bytes": cells * CHANNELS * DTYPE.itemsize, "flops": 2 * QUERIES * cells * CHANNELS, "dtype": DTYPE}
