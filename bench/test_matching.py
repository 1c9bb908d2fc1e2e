"""match_points against the reference protocol and its two cheaper variants, on SPair-71k sizes.

Two maps of 3072 channels, 500 x 375 px images, 8 keypoints. The target: at least 500 times the reference on a CPU with
identical predictions and less than 1/50 of its peak memory (``test_peak_memory`` prints it).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import protocols
import pytest
import torch
from torch import Tensor

import ditf

CHANNELS, GRID, SIZE, KEYPOINTS = 3072, (30, 40), (375, 500), 8


@dataclass(frozen=True)
class Pair:
    source: Tensor
    target: Tensor
    points: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, tuple[tuple[int, int], tuple[int, int]], Tensor]:
        return self.source, self.target, (SIZE, SIZE), self.points

    @property
    def features(self) -> tuple[ditf.FeatureMap, ditf.FeatureMap]:
        first, second = (
            ditf.FeatureMap(tokens=m[0].flatten(1).T, grid=GRID, image_size=SIZE) for m in (self.source, self.target)
        )
        return first, second


def make_pair() -> Pair:
    """Smooth random maps, the target a noisy copy of the source: arguments of the maximum are well apart."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CHANNELS, 8, 10, generator=generator)
    source = torch.nn.functional.interpolate(coarse, GRID, mode="bicubic")
    target = source.roll(5, 3) + 0.3 * torch.randn(source.shape, generator=generator)
    x = torch.randint(0, SIZE[1], (KEYPOINTS,), generator=generator)
    y = torch.randint(0, SIZE[0], (KEYPOINTS,), generator=generator)
    return Pair(source, target, torch.stack([x, y], 1))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.mark.benchmark(group="match 8 points, D = 3072, 500 x 375 px")
def test_ours(benchmark, pair: Pair) -> None:
    source, target = pair.features
    matches = benchmark(ditf.match_points, source, target, pair.points)
    assert torch.equal(matches.target.long(), protocols.normalise_once(*pair.arguments))


@pytest.mark.benchmark(group="match 8 points, D = 3072, 500 x 375 px")
def test_low_resolution_dots_then_upsample(benchmark, pair: Pair) -> None:
    benchmark(protocols.upsampled_dots, *pair.arguments)


@pytest.mark.benchmark(group="match 8 points, D = 3072, 500 x 375 px")
def test_normalise_once(benchmark, pair: Pair) -> None:
    benchmark.pedantic(protocols.normalise_once, pair.arguments, rounds=1)


@pytest.mark.benchmark(group="match 8 points, D = 3072, 500 x 375 px")
def test_reference_protocol(benchmark, pair: Pair) -> None:
    found = benchmark.pedantic(protocols.reference, pair.arguments, rounds=1)
    assert torch.equal(ditf.match_points(*pair.features, pair.points).target.long(), found)


def test_peak_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Peak resident memory above the inputs, each in a process of its own."""
    peak = {name: _peak_mb(name) for name in ("ours", "upsampled_dots", "normalise_once", "reference")}
    with capsys.disabled():
        print("\npeak memory above the inputs: " + ", ".join(f"{k} {v:.1f} MB" for k, v in peak.items()))
        print(f"reference / ours = {peak['reference'] / peak['ours']:.0f}")
    assert peak["ours"] * 50 < peak["reference"]


def _peak_mb(name: str) -> float:
    code = f"import test_matching as t; t.print_peak({name!r})"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(run.stdout)


def print_peak(name: str) -> None:
    """Run one protocol once on fresh inputs and print the growth of the process's peak memory in MB (Linux)."""
    pair = make_pair()
    source, target = pair.features
    ditf.match_points(*(ditf.FeatureMap(torch.rand(4, 8), (2, 2), (9, 9)) for _ in "ab"), [(1, 1)])  # warm-up
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak_kb()
    if name == "ours":
        ditf.match_points(source, target, pair.points)
    else:
        getattr(protocols, name)(*pair.arguments)
    print((_peak_kb() - before) / 1024)


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
