"""Many pairs in one call give what each gives alone, and share what they can."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ditf
from ditf import FeatureMap, InputError, Matches
from ditf.matching import points as points_module
from ditf.matching.queries import sample_points
from ditf_kernels.backend import verification_counts

from .feature_maps import make, scores_at


def some_pairs() -> tuple[list[FeatureMap], list[FeatureMap], list[torch.Tensor]]:
    """Sizes, grids, padding, precisions and numbers of points of many kinds; one target stands in three pairs."""
    shared = make((5, 4), (21, 17), 10)
    src = [make((4, 3), (20, 18), 1), make((2, 6), (9, 40), 2), make((4, 3), (20, 18), 3), make((3, 3), (12, 30), 4)]
    src += [make((4, 4), (20, 40), 5, canvas=(40, 40), offset=(0, 10)), make((1, 1), (6, 6), 6)]
    tgt = [shared, make((3, 5), (31, 47), 11), shared, make((6, 6), (30, 60), 12, canvas=(60, 60), offset=(0, 15))]
    tgt += [make((3, 5), (31, 47), 13).to(torch.float16), shared]
    generator = torch.Generator().manual_seed(0)
    points = [
        torch.rand(count, 2, generator=generator) * torch.tensor([m.image_size[1] - 1, m.image_size[0] - 1])
        for m, count in zip(src, (3, 7, 0, 5, 4, 1), strict=True)
    ]
    return src, tgt, points


def assert_same(many: Matches, one: Matches) -> None:
    assert len(many) == len(one)
    assert (many.source_size, many.target_size) == (one.source_size, one.target_size)
    for name in ("source", "target", "score", "topk", "cycle_error"):
        a, b = getattr(many, name), getattr(one, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), name


OPTIONS = [
    {},
    {"topk": 3, "cycle": True},
    {"refine": "soft", "temperature": 0.1},
    {"refine": "window-soft", "window": 1, "topk": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_pairs_with_targets_of_their_own_give_bit_for_bit_what_each_gives_alone(options) -> None:
    src, tgt, points = some_pairs()
    tgt = [tgt[0], *tgt[1:2], make((5, 4), (21, 17), 10), *tgt[3:5], make((5, 4), (21, 17), 10)]
    for found, *pair in zip(ditf.match_points(src, tgt, points, **options), src, tgt, points, strict=True):
        assert_same(found, ditf.match_points(*pair, **options))


@pytest.mark.parametrize("options", OPTIONS)
def test_pairs_that_share_a_target_give_what_each_gives_alone(options) -> None:
    src, tgt, points = some_pairs()
    for found, *pair in zip(ditf.match_points(src, tgt, points, **options), src, tgt, points, strict=True):
        alone = ditf.match_points(*pair, **options)
        torch.testing.assert_close(found.score, alone.score, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.target, alone.target, rtol=0, atol=1e-3)  # of pixels: none differs
        for name in ("topk", "cycle_error"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=0, atol=1e-6)


def test_masks_and_boxes_are_lists_with_none_where_there_is_none() -> None:
    src, tgt, points = some_pairs()
    tgt[2], tgt[5] = make((5, 4), (21, 17), 20), make((5, 4), (21, 17), 21)
    masks = [None, torch.rand(31, 47) < 0.5, None, None, None, np.eye(21, 17, dtype=bool)]
    boxes = [(2, 2, 9, 9), None, None, (20, 0, 30, 20), None, None]
    many = ditf.match_points(src, tgt, points, target_mask=masks, target_box=boxes, source_box=[None] * 6)
    for found, a, b, p, mask, box in zip(many, src, tgt, points, masks, boxes, strict=True):
        assert_same(found, ditf.match_points(a, b, p, target_mask=mask, target_box=box))


class Calls:
    """Counts the calls of a kernel and keeps their arguments."""

    def __init__(self, monkeypatch, name: str) -> None:
        self.arguments: list[tuple] = []
        function = getattr(points_module, name)

        def counted(*arguments, **options):
            self.arguments.append((arguments, options))
            return function(*arguments, **options)

        monkeypatch.setattr(points_module, name, counted)


def test_one_call_of_the_kernel_for_all_pairs_each_target_once(monkeypatch) -> None:
    src, tgt, points = some_pairs()
    tgt[4] = tgt[4].to(torch.float32)
    argmax, planes = Calls(monkeypatch, "upsampled_argmax_batch"), Calls(monkeypatch, "upsampled_planes")
    ditf.match_points(src, tgt, points)
    ((query, key, offsets, grids, _), _) = argmax.arguments[0]
    assert len(argmax.arguments) == 1
    assert not planes.arguments  # the kernel makes them of each target, and each is there once
    assert len(key) == 20 + 15 + 36 + 15
    assert len(query) == 20
    assert offsets == [0, 4, 11, 16, 20]
    assert grids == [(5, 4), (3, 5), (6, 6), (3, 5)]


def test_planes_of_a_target_under_several_masks_are_worked_out_once(monkeypatch) -> None:
    src, _, points = some_pairs()
    shared, masks = make((5, 4), (21, 17), 10), [torch.rand(21, 17) < 0.5 for _ in range(6)]
    argmax, planes = Calls(monkeypatch, "upsampled_argmax_batch"), Calls(monkeypatch, "upsampled_planes")
    many = ditf.match_points(src, [shared] * 6, points, target_mask=masks)
    assert (len(argmax.arguments), len(planes.arguments)) == (1, 1)
    for found, a, p, mask in zip(many, src, points, masks, strict=True):  # under its own mask each is its own problem
        assert_same(found, ditf.match_points(a, shared, p, target_mask=mask))


def test_planes_are_worked_out_once_where_only_one_target_stands_under_several_masks(monkeypatch) -> None:
    src, _, points = some_pairs()
    shared, other = make((5, 4), (21, 17), 10), make((3, 5), (31, 47), 11)
    boxes = [(0, 0, 9, 9), (3, 3, 12, 12), None, (0, 0, 9, 9), None, None]
    targets = [shared, shared, shared, shared, other, other]
    argmax, planes = Calls(monkeypatch, "upsampled_argmax_batch"), Calls(monkeypatch, "upsampled_planes")
    many = ditf.match_points(src, targets, points, target_box=boxes)
    ((_, key, _, grids, _), options) = argmax.arguments[0]
    assert grids == [(5, 4), (5, 4), (5, 4), (3, 5)]  # equal boxes are one problem
    assert options["planes"].shape == (5, len(key))
    assert len(planes.arguments) == 2
    for found, *pair, box in zip(many, src, targets, points, boxes, strict=True):
        alone = ditf.match_points(*pair, target_box=box)
        assert torch.equal(found.target, alone.target)
        torch.testing.assert_close(found.score, alone.score, rtol=0, atol=1e-6)


def test_a_padded_source_of_many_pairs_is_one_target_on_the_way_back(monkeypatch) -> None:
    padded = make((4, 4), (20, 40), 5, canvas=(40, 40), offset=(0, 10))
    targets = [make((3, 5), (31, 47), seed) for seed in (11, 12, 13)]
    argmax = Calls(monkeypatch, "upsampled_argmax_batch")
    ditf.match_points([padded] * 3, targets, [[(3, 4)]] * 3, cycle=True)
    assert argmax.arguments[1][0][3] == [(4, 4)]


def test_arrays_of_points_and_masks_count_as_lists() -> None:
    src, tgt = [make((4, 3), (20, 18), 1), make((4, 3), (20, 18), 2)], [make((3, 5), (31, 47), s) for s in (3, 4)]
    points, masks = np.array([[(5, 7), (1, 1)], [(3, 3), (9, 9)]]), np.random.default_rng(0).random((2, 31, 47)) < 0.5
    many = ditf.match_points(src, tgt, points, target_mask=masks)
    for found, a, b, p, mask in zip(many, src, tgt, points, masks, strict=True):
        assert_same(found, ditf.match_points(a, b, p, target_mask=mask))


def test_targets_beyond_the_budget_take_more_calls_and_give_the_same(monkeypatch) -> None:
    src, tgt, points = some_pairs()
    whole = ditf.match_points(src, tgt, points, cycle=True)
    monkeypatch.setattr(points_module, "PACKED_BYTES_ELSEWHERE", 1)
    argmax = Calls(monkeypatch, "upsampled_argmax_batch")
    split = ditf.match_points(src, tgt, points, cycle=True)
    assert len(argmax.arguments) == 4 + 6  # there: one per target; back: one per source
    for a, b in zip(split, whole, strict=True):
        assert_same(a, b)


def test_precisions_and_backends_are_never_mixed_in_a_call(monkeypatch) -> None:
    src, tgt, points = some_pairs()
    src[1] = dataclasses.replace(src[1], backend="torch")
    argmax = Calls(monkeypatch, "upsampled_argmax_batch")
    ditf.match_points(src, tgt, points)
    called = [(key.dtype, options["backend"]) for ((_, key, *_), options) in argmax.arguments]
    assert called == [
        (torch.float32, None),
        (torch.float32, "torch"),
        (torch.float32, None),
        (torch.float16, None),
    ]


def test_points_of_all_sources_are_sampled_as_each_map_samples_its_own() -> None:
    src, _, points = some_pairs()
    src[1] = src[1].to(torch.float16)
    tokens = src[3].tokens.clone()
    tokens[1] = torch.nan
    src[3] = FeatureMap(tokens=tokens, grid=src[3].grid, image_size=src[3].image_size)
    points[3] = torch.cat([points[3], torch.tensor([[0.0, 0.0], [29.0, 11.0]])])
    expected = torch.cat([m.sample(own) for m, own in zip(src, points, strict=True)])
    assert torch.equal(sample_points(src, points).nan_to_num(7.0), expected.nan_to_num(7.0))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_match_is_the_best_pixel_by_the_reference_protocol(data) -> None:
    side, length = st.integers(1, 6), st.integers(1, 24)
    maps = [
        make((data.draw(side), data.draw(side)), (data.draw(length), data.draw(length)), seed, 8) for seed in range(6)
    ]
    src, tgt = maps[:3], [maps[3], maps[4], data.draw(st.sampled_from([maps[3], maps[5]]))]
    points = [
        [(data.draw(st.integers(0, m.image_size[1] - 1)), data.draw(st.integers(0, m.image_size[0] - 1)))] for m in src
    ]
    for found, a, b, ((x, y),) in zip(ditf.match_points(src, tgt, points), src, tgt, points, strict=True):
        scores = scores_at(a, b, x, y)
        column, row = found.target[0].long().tolist()
        assert float(scores.max() - scores[row, column]) < 1e-6
        assert float(scores.max()) == pytest.approx(float(found.score), abs=2e-6)


@pytest.mark.verify
def test_with_verify_every_pair_meets_the_twin() -> None:
    src, tgt, points = (values[:2] for values in some_pairs())
    before = verification_counts().get("upsampled_argmax", 0)
    checked = ditf.match_points(src, tgt, points, backend="verify")
    assert verification_counts()["upsampled_argmax"] == before + 1
    for found, own in zip(checked, ditf.match_points(src, tgt, points), strict=True):
        assert torch.equal(found.target, own.target)


def test_no_pairs_give_no_matches() -> None:
    assert ditf.match_points([], [], []) == []


def test_lists_that_do_not_fit_are_refused() -> None:
    a, b, other = make((2, 2), (8, 8)), make((2, 2), (8, 8), 1), make((2, 2), (8, 8), channels=8)
    one = [[(1, 1)]]
    for src, tgt, points, options, message in (
        ([a], [b, b], one, {}, "tgt: got '2 of them', expected 1, one per pair as in src"),
        ([a, a], [b, b], one, {}, "points: got '1 of them', expected 2"),
        ([a], [b], one, {"target_mask": []}, "target_mask: got '0 of them', expected 1"),
        ([a], b, one, {}, "tgt: got 'FeatureMap', expected a list with one entry per pair"),
        ([a], [b], one, {"target_mask": np.ones((8, 8), bool)}, "target_mask: got '8 of them', expected 1"),
        ([a], [b], one, {"counterparts": "self"}, "counterparts: got '4 of them', expected 1"),
        ([a], [b], one, {"flipped_source": a}, "flipped_source: got 'FeatureMap', expected a list"),
        ([a, a], [b, other], one * 2, {}, r"tgt\[1\]: got '8 channels', expected 16 as in src\[0\]"),
        ([a, a], [b, b], [[(1, 1)], [(1, 9)]], {}, r"points\[1\]: got \(1.0, 9.0\)"),
        ([a, a], [b, b], one * 2, {"target_box": [None, (9, 9, 9, 9)]}, r"target_box\[1\]: got"),
        (a, [b], one, {}, "tgt: got 'list', expected a FeatureMap"),
    ):
        with pytest.raises(InputError, match=message):
            ditf.match_points(src, tgt, points, **options)
