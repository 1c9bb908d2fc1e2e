"""The best k pixels and soft positions equal their definitions, written out in float64 on upsampled features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ditf
from ditf import FeatureMap
from ditf.matching import scores as scores_module
from ditf_kernels.reference import rows

from .feature_maps import make, scores_at

SRC = make((4, 3), (20, 18), 1)
POINTS = [(5, 7), (1, 1), (17, 19), (9, 3)]
TARGETS = {
    "plain": make((3, 5), (31, 47), 2),
    "fine": make((20, 20), (60, 100), 3),
    "coarse, smaller than its grid": make((7, 9), (5, 8), 4),
    "padded": make((6, 6), (30, 60), 5, canvas=(60, 60), offset=(0, 15)),
}


def expectation(score: Tensor, temperature: float) -> list[float]:
    """[x, y] of scores (H, W) float64, minus infinity where nothing may be chosen."""
    weight = (score / temperature).flatten().softmax(0).view(score.shape)
    x, y = (torch.arange(n, dtype=torch.float64) for n in (score.shape[1], score.shape[0]))
    return [float((weight.sum(0) * x).sum()), float((weight.sum(1) * y).sum())]


def within_window(score: Tensor, tgt: FeatureMap, window: float) -> Tensor:
    """Minus infinity beyond so many tokens of the maximum."""
    height, width = score.shape
    index = int(score.argmax())
    down, across = (window * tgt.extent[i] / tgt.grid[i] for i in (0, 1))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    outside = ((y - index // width).abs() > down) | ((x - index % width).abs() > across)
    return score.masked_fill(outside, -torch.inf)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [0.02, 0.3])
def test_soft_is_the_expectation_over_the_image(target, temperature) -> None:
    tgt = TARGETS[target]
    found = ditf.match_points(SRC, tgt, POINTS, refine="soft", temperature=temperature)
    expected = [expectation(scores_at(SRC, tgt, *point), temperature) for point in POINTS]
    torch.testing.assert_close(found.target, torch.tensor(expected), rtol=0, atol=2e-3)
    assert torch.equal(found.score, ditf.match_points(SRC, tgt, POINTS).score)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("window", [0.5, 1.4, 7])
def test_window_soft_is_the_expectation_within_the_window_and_nothing_outside(target, window) -> None:
    tgt = TARGETS[target]
    found = ditf.match_points(SRC, tgt, POINTS, refine="window-soft", temperature=0.1, window=window)
    expected = [expectation(within_window(scores_at(SRC, tgt, *p), tgt, window), 0.1) for p in POINTS]
    torch.testing.assert_close(found.target, torch.tensor(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize("refine", ["soft", "window-soft"])
def test_masked_pixels_have_no_weight(refine) -> None:
    tgt = TARGETS["plain"]
    mask = torch.rand(31, 47, generator=torch.Generator().manual_seed(0)) < 0.3
    found = ditf.match_points(SRC, tgt, POINTS, refine=refine, temperature=0.1, window=1, target_mask=mask)
    scores = [scores_at(SRC, tgt, *point).masked_fill(~mask, -torch.inf) for point in POINTS]
    if refine == "window-soft":
        scores = [within_window(score, tgt, 1) for score in scores]
    torch.testing.assert_close(found.target, torch.tensor([expectation(s, 0.1) for s in scores]), rtol=0, atol=2e-3)


@pytest.mark.parametrize("refine", ["soft", "window-soft"])
def test_a_broken_cell_has_no_weight(refine) -> None:
    tokens = TARGETS["plain"].tokens.clone()
    tokens[7] = torch.nan
    tgt = FeatureMap(tokens=tokens, grid=(3, 5), image_size=(31, 47))
    found = ditf.match_points(SRC, tgt, POINTS, refine=refine, temperature=0.1, window=2)
    whole = FeatureMap(tokens=tokens.nan_to_num(0.0), grid=(3, 5), image_size=(31, 47))
    cell = torch.zeros(1, 1, 3, 5, dtype=torch.float64)
    cell[0, 0, 1, 2] = 1
    broken = F.interpolate(cell, (31, 47), mode="bilinear")[0, 0] > 0  # the cell has weight there
    expected = []
    for point in POINTS:
        score = scores_at(SRC, whole, *point).masked_fill(broken, -torch.inf)
        expected.append(expectation(score if refine == "soft" else within_window(score, tgt, 2), 0.1))
    torch.testing.assert_close(found.target, torch.tensor(expected), rtol=0, atol=2e-3)


def test_a_lone_peak_is_its_own_expectation_however_low() -> None:
    """Where the rest of the image has weight, as in GeoAware-SC's own code, a low peak is pulled to the centre."""
    side, peak = 21, (3, 16)  # (x, y) in tokens, one pixel each
    tokens = torch.zeros(side * side, 2)
    tokens[:, 1] = 1.0
    tokens[peak[1] * side + peak[0]] = torch.tensor([0.1, 0.99**0.5])  # cosine 0.1, 0 elsewhere
    tgt = FeatureMap(tokens=tokens, grid=(side, side), image_size=(side, side))
    src = FeatureMap(tokens=torch.tensor([[1.0, 0.0]]), grid=(1, 1), image_size=(1, 1))
    windowed = ditf.match_points(src, tgt, [(0, 0)], refine="window-soft", window=3)
    torch.testing.assert_close(windowed.target, torch.tensor([[3.0, 16.0]]), rtol=0, atol=1e-4)
    pulled = ditf.match_points(src, tgt, [(0, 0)], refine="soft")
    assert float(pulled.target[0, 0]) > 5


@pytest.mark.parametrize("refine", ["soft", "window-soft"])
def test_a_cold_softmax_is_the_best_pixel(refine) -> None:
    found = ditf.match_points(SRC, TARGETS["coarse, smaller than its grid"], POINTS, refine=refine, temperature=1e-6)
    best = ditf.match_points(SRC, TARGETS["coarse, smaller than its grid"], POINTS)
    torch.testing.assert_close(found.target, best.target, rtol=0, atol=1e-3)


@pytest.mark.parametrize("k", [2, 5, 40])
@pytest.mark.parametrize("target", TARGETS)
def test_topk_are_the_best_pixels_in_order(target, k) -> None:
    tgt = TARGETS[target]
    matches = ditf.match_points(SRC, tgt, POINTS, topk=k)
    assert matches.topk.shape == (4, k, 3)
    for i, point in enumerate(POINTS):
        score = scores_at(SRC, tgt, *point)
        top = matches.topk[i].double()
        expected = score.flatten().topk(k).values
        torch.testing.assert_close(top[:, 2], expected, rtol=0, atol=2e-6)
        x, y = top[:, 0].long(), top[:, 1].long()
        torch.testing.assert_close(score[y, x], expected, rtol=0, atol=2e-6)
        assert len(set(zip(x.tolist(), y.tolist(), strict=True))) == k
    assert torch.equal(matches.topk[:, 0, :2], matches.target)
    assert torch.equal(matches.topk[:, 0, 2], matches.score)


def test_equal_scores_are_taken_in_raster_order() -> None:
    plain = FeatureMap(tokens=torch.ones(6, 4), grid=(2, 3), image_size=(4, 5))
    top = ditf.match_points(plain, plain, [(2, 2)], topk=12).topk[0]
    assert top[:, :2].tolist() == [[i % 5, i // 5] for i in range(12)]


def test_negative_scores_are_ordered_too() -> None:
    tokens = torch.tensor([[-1.0, 0.1], [-1.0, 0.2], [-1.0, 0.4], [-1.0, 0.3]])
    tgt = FeatureMap(tokens=tokens, grid=(1, 4), image_size=(1, 4))
    src = FeatureMap(tokens=torch.tensor([[1.0, 0.0]]), grid=(1, 1), image_size=(1, 1))
    assert ditf.match_points(src, tgt, [(0, 0)], topk=4).topk[0, :, 0].tolist() == [2, 3, 1, 0]


def test_pixels_that_are_missing_are_told() -> None:
    tgt = TARGETS["plain"]
    mask = torch.zeros(31, 47, dtype=torch.bool)
    mask[3, 4] = mask[20, 11] = True
    top = ditf.match_points(SRC, tgt, POINTS, topk=4, target_mask=mask).topk
    assert {tuple(xy) for xy in top[:, :2, :2].reshape(-1, 2).tolist()} == {(4.0, 3.0), (11.0, 20.0)}
    assert top[:, 2:, :2].eq(-1).all()
    assert top[:, 2:, 2].isnan().all()


@pytest.mark.parametrize("options", [{"refine": "soft"}, {"refine": "window-soft", "window": 2}, {"topk": 7}])
def test_small_bites_give_the_same(options, monkeypatch) -> None:
    tgt, points = TARGETS["padded"], [(x, y) for x in range(0, 18, 2) for y in range(0, 20, 3)]
    whole = ditf.match_points(SRC, tgt, points, **options)
    monkeypatch.setattr(rows, "BLOCK", 500)
    monkeypatch.setattr(scores_module, "COARSE_BYTES", 4 * 36 * 5)
    bitten = ditf.match_points(SRC, tgt, points, **options)
    torch.testing.assert_close(bitten.target, whole.target, rtol=0, atol=1e-4)
    assert whole.topk is None or torch.equal(bitten.topk, whole.topk)


def test_half_precision_features_are_refined_in_float32() -> None:
    tgt = TARGETS["plain"].to(torch.float16)
    widened = tgt.to(torch.float32)
    for options in ({"refine": "soft"}, {"refine": "window-soft"}, {"topk": 3}):
        half, full = (ditf.match_points(SRC, t, POINTS, **options) for t in (tgt, widened))
        torch.testing.assert_close(half.target, full.target, rtol=0, atol=1e-4)
