"""J and F against the public evaluator of DAVIS masks, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vos_benchmark.evaluator import Evaluator

from ditf.benchmarks.jf import VideoScore, boundary_f, jaccard, score_video
from ditf.errors import InputError


def blobs(seed: int, frames: int, size: tuple[int, int], objects: int) -> np.ndarray:
    """(T, H, W) rectangles that drift, later ones over earlier ones; every one is in every frame."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((frames, *size), np.uint8)
    for i in range(1, objects + 1):
        corner, side = rng.integers(0, [s // 2 for s in size]), rng.integers(3, [s // 2 for s in size])
        for t in range(frames):
            y, x = corner + rng.integers(0, 4, 2) * t
            masks[t, y : y + side[0], x : x + side[1]] = i
    return masks


@pytest.mark.parametrize(("seed", "size"), [(0, (48, 70)), (1, (120, 213)), (2, (240, 320)), (3, (97, 61))])
def test_equals_the_public_evaluator(seed: int, size: tuple[int, int]) -> None:
    truth = blobs(seed, 5, size, 3)
    predicted = np.roll(truth, (1, -2), (1, 2)) * (np.random.default_rng(seed).random(truth.shape) < 0.97)
    oracle = Evaluator()
    for mask, gt in zip(predicted[1:-1], truth[1:-1], strict=True):
        oracle.feed_frame(mask, gt)
    oracle_j, oracle_f = oracle.conclude()
    ours = score_video(predicted, truth)
    for i in range(3):
        assert ours.j[i].mean() * 100 == pytest.approx(oracle_j[i + 1], abs=1e-9)
        assert ours.f[i].mean() * 100 == pytest.approx(oracle_f[i + 1], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(7, 9), (30, 41), (64, 200), (1, 5), (260, 130)]), st.floats(0, 1))
def test_any_two_masks_score_as_the_public_evaluator_says(seed: int, size: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((2, *size)) < density
    predicted[0, 0] = truth[-1, -1] = True  # or the evaluator has nothing to score
    oracle = Evaluator()
    oracle.feed_frame(predicted.astype(np.uint8), truth.astype(np.uint8))
    j, f = oracle.conclude()
    assert jaccard(predicted, truth) * 100 == pytest.approx(j[1], abs=1e-9)
    assert boundary_f(predicted, truth) * 100 == pytest.approx(f[1], abs=1e-9)


def test_a_copied_mask_of_a_moving_block_scores_as_worked_out_by_hand() -> None:
    """A 32 px block that moves 8 px a frame over 64 x 96, and a block in the corner that stays."""
    truth = np.zeros((4, 64, 96), np.uint8)
    for t in range(4):
        truth[t, 16:48, 16 + 8 * t : 48 + 8 * t] = 1
        truth[t, :8, :8] = 2
    score = score_video(np.repeat(truth[:1], 4, 0), truth)
    assert score.j[0] == pytest.approx([24 / 40, 16 / 48])
    assert score.f[0] == pytest.approx([0.421875, 0.296875])
    assert (score.j[1] == 1).all()
    assert (score.f[1] == 1).all()
    assert score.j_and_f == pytest.approx(((0.6 + 1 / 3 + 0.421875 + 0.296875) / 2 + 2) / 4)


def test_empty_and_full_masks() -> None:
    empty, full, block = np.zeros((3, 20, 20), bool)
    full = ~full
    block[5:9, 5:9] = True
    assert jaccard(empty, empty) == boundary_f(empty, empty) == 1.0
    assert jaccard(empty, block) == boundary_f(empty, block) == boundary_f(block, empty) == 0.0
    assert boundary_f(full, empty) == 1.0  # neither has a boundary
    assert jaccard(full, block) == 16 / 400


def test_recall_and_decay_take_the_official_quarters() -> None:
    values = np.linspace(1.0, 0.0, 9)[None]
    score = VideoScore(values, np.ones((1, 9)))
    assert score.recall() == (4 / 9, 1.0)
    assert score.decay() == (pytest.approx(values[0, :3].mean() - values[0, 6:].mean()), 0.0)
    long = VideoScore(np.linspace(1.0, 0.0, 1001)[None], np.zeros((1, 1001)))
    assert long.decay()[0] == pytest.approx(0.75, abs=1e-3)  # official 8-bit borders would wrap


def test_void_is_background_and_a_missing_id_between_scores_one() -> None:
    truth = np.zeros((3, 10, 10), np.uint8)
    truth[:, :3, :3], truth[:, 5:, 5:] = 3, 1
    truth[1, :, 4] = 255
    predicted = np.where(truth == 255, 0, truth)
    score = score_video(predicted, truth)
    assert score.j.tolist() == score.f.tolist() == [[1.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    ("predicted", "truth", "words"),
    [
        (np.zeros((3, 4, 4)), np.zeros((3, 4, 5)), "predicted: got"),
        (np.ones((2, 4, 4)), np.ones((2, 4, 4)), "at least 3"),
        (np.zeros((3, 4, 4)), np.zeros((3, 4, 4)), "no object in the first mask"),
        (np.full((3, 4, 4), 2), np.ones((3, 4, 4)), "id 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(predicted: np.ndarray, truth: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        score_video(predicted, truth)
