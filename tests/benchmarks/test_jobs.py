"""Pairs whose features are projected together, against the projection written out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf import InputError
from ditf.benchmarks.jobs import PairJob
from ditf.benchmarks.pairs import Pair
from ditf.benchmarks.protocols import PROTOCOLS, frame_pair

from ..feature_maps import make, scores_at

CODE = PROTOCOLS["ditf-code"]
GRID, SIZE = (6, 8), (48, 64)


def job(channels: int) -> PairJob:
    points = np.array([[12.0, 20.0], [40.0, 31.0], [55.0, 6.0]])
    pair = Pair("one", "cat", Path("a"), Path("b"), None, None, points, points, {"box": 50.0}, "cat", "cat")
    maps = [make(GRID, SIZE, seed) for seed in (0, 1)]
    return PairJob(3, frame_pair(pair, CODE, (SIZE, SIZE)), maps, channels, CODE, "float32", None)


def test_a_pair_is_matched_on_the_principal_components_of_both_its_images() -> None:
    """The best 5 directions of all 96 tokens, mean taken away, by a singular value decomposition in float64."""
    work = job(5)
    tokens = torch.cat([one.tokens.double() for one in work.maps])
    centred = tokens - tokens.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:5]
    source, target = (
        dataclasses.replace(one, tokens=(one.tokens.double() - tokens.mean(0)) @ directions.T) for one in work.maps
    )
    [(number, _, place, score)] = work.solve()
    assert number == 3
    for (x, y), found, best in zip(
        work.framed.points.astype(int).tolist(), place.tolist(), score.tolist(), strict=True
    ):
        expected = scores_at(source, target, x, y)
        assert best == pytest.approx(float(expected.max()), abs=1e-5)
        assert float(expected[int(found[1]), int(found[0])]) == pytest.approx(float(expected.max()), abs=1e-6)


def test_more_channels_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="--fuse-channels: got 17, expected at most 16"):
        job(17).solve()
