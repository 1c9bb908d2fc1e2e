"""Masks and boxes on either side decide which pixels and points take part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ditf
from ditf import InputError
from ditf.matching.regions import on_tokens, region

from .feature_maps import make, scores_at

SRC, TGT = make((4, 3), (20, 18), 1), make((3, 5), (31, 47), 2)


def best_inside(x: int, y: int, allowed: torch.Tensor) -> list[int]:
    """[x, y] by the reference protocol."""
    index = int(scores_at(SRC, TGT, x, y).masked_fill(~allowed, -9).argmax())
    return [index % 47, index // 47]


def test_a_mask_restricts_the_choice_and_an_empty_one_gives_nothing() -> None:
    mask = np.zeros((31, 47), bool)
    mask[4:9, 30:40] = True
    expected = best_inside(5, 7, torch.from_numpy(mask))
    assert ditf.match_points(SRC, TGT, [(5, 7)], target_mask=mask).target.long().tolist() == [expected]
    counted = mask.astype(np.uint8) * 255
    assert ditf.match_points(SRC, TGT, [(5, 7)], target_mask=counted).target.long().tolist() == [expected]
    nothing = ditf.match_points(SRC, TGT, [(5, 7)], target_mask=np.zeros((31, 47), bool), cycle=True, topk=3)
    assert nothing.target.tolist() == [[-1, -1]]
    assert nothing.score.isnan().all()
    assert nothing.cycle_error.isnan().all()
    assert nothing.topk[..., :2].eq(-1).all()
    assert nothing.topk[..., 2].isnan().all()


def test_a_box_is_the_mask_of_the_pixels_from_corner_to_corner() -> None:
    mask = torch.zeros(31, 47, dtype=torch.bool)
    mask[4:10, 30:41] = True
    assert torch.equal(region("target", None, (30, 4, 40, 9), (31, 47)), mask)
    assert torch.equal(region("target", None, (29.2, 3.5, 40.9, 9.0), (31, 47)), mask)
    boxed = ditf.match_points(SRC, TGT, [(5, 7), (1, 1)], target_box=(30, 4, 40, 9))
    masked = ditf.match_points(SRC, TGT, [(5, 7), (1, 1)], target_mask=mask)
    assert torch.equal(boxed.target, masked.target)
    outer = ditf.match_points(SRC, TGT, [(5, 7)], target_box=(-100, -100, 500, 500))
    assert torch.equal(outer.target, ditf.match_points(SRC, TGT, [(5, 7)]).target)


def test_with_a_mask_and_a_box_what_is_in_both_takes_part() -> None:
    mask = torch.zeros(31, 47, dtype=torch.bool)
    mask[:, 20:35] = True
    both = mask.clone()
    both[:5] = both[12:] = False
    found = ditf.match_points(SRC, TGT, [(5, 7)], target_mask=mask, target_box=(0, 5, 46, 11))
    assert found.target.long().tolist() == [best_inside(5, 7, both)]


def test_a_source_point_outside_has_no_match_and_the_others_are_as_ever() -> None:
    points = [(5, 7), (1, 1), (4.6, 7), (4.4, 7)]
    everywhere = ditf.match_points(SRC, TGT, points)
    boxed = ditf.match_points(SRC, TGT, points, source_box=(5, 5, 9, 9), cycle=True, topk=2, refine="soft")
    assert boxed.source.tolist() == everywhere.source.tolist()
    assert boxed.score.isnan().tolist() == [False, True, False, True]  # the nearest pixel decides
    assert torch.equal(boxed.score[[0, 2]], everywhere.score[[0, 2]])
    assert boxed.target[[1, 3]].eq(-1).all()
    assert boxed.topk[[1, 3], :, :2].eq(-1).all()
    assert boxed.cycle_error.isnan().tolist() == [False, True, False, True]


def test_the_way_back_stays_in_the_source_region() -> None:
    points = [(x, y) for x in range(0, 18, 4) for y in range(0, 20, 4)]
    mask = torch.zeros(20, 18, dtype=torch.bool)
    mask[::4, ::4] = True  # the points themselves
    matches = ditf.match_points(SRC, TGT, points, source_mask=mask, cycle=True)
    back = ditf.match_points(TGT, SRC, matches.target, target_mask=mask)
    torch.testing.assert_close(matches.cycle_error, (back.target - matches.source).norm(dim=1))
    free = ditf.match_points(SRC, TGT, points, cycle=True)
    assert not torch.equal(free.cycle_error, matches.cycle_error)


def test_nothing_chosen_on_a_padded_target_is_told_as_on_any_other() -> None:
    padded = make((6, 6), (30, 60), 5, canvas=(60, 60), offset=(0, 15))
    nothing = ditf.match_points(SRC, padded, [(5, 7)], target_mask=np.zeros((30, 60), bool), topk=2, refine="soft")
    assert nothing.target.tolist() == [[-1, -1]]
    assert nothing.topk[..., :2].eq(-1).all()


def test_a_region_lies_on_the_tokens_whose_cells_it_touches() -> None:
    padded = make((4, 4), (20, 40), canvas=(40, 40), offset=(0, 10))  # rows of cells 1 and 2 hold the image
    assert on_tokens(padded, None).view(4, 4).any(1).tolist() == [False, True, True, False]
    one = region("source", None, (10, 0, 19, 9), (20, 40))
    assert on_tokens(padded, one).nonzero().flatten().tolist() == [5]
    assert on_tokens(make((2, 2), (8, 8)), None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_mask": np.ones((3, 3), bool)},
            r"target_mask: got \(3, 3\), expected \(31, 47\), the size of the tar",
        ),
        ({"source_mask": np.ones((31, 47), bool)}, r"source_mask: got \(31, 47\), expected \(20, 18\)"),
        ({"target_mask": np.ones((31, 47))}, "target_mask: got torch.float64, expected bool or integers"),
        ({"target_box": (5, 5, 4, 9)}, r"target_box: got \(5.0, 5.0, 4.0, 9.0\), expected .* x0 <= x1"),
        ({"target_box": (5, 5, 9)}, r"target_box: got \(5, 5, 9\), expected four numbers"),
        ({"source_box": (50, 5, 59, 9)}, "source_box: .* expected a box with a pixel of the 18 x 20 image"),
        ({"source_box": (0.2, 0, 0.8, 9)}, "source_box: .* expected a box with a pixel"),
        ({"source_box": (float("nan"), 0, 1, 9)}, "source_box: got"),
    ],
)
def test_bad_regions_name_the_argument(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ditf.match_points(SRC, TGT, [(1, 1)], **options)
