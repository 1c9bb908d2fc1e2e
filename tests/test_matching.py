"""Matches equal the reference protocol, written out in float64 with upsampled features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import ditf
from ditf import FeatureMap, InputError
from ditf.benchmarks.pck import distances, pck
from ditf.benchmarks.rivals import constant_shift, identity, pixel_patches
from ditf.matching import distinctive_points, mutual_matches, token_centres

from .feature_maps import from_map, make, mirror_image, scores_at, upsampled

GOLDEN = Path(__file__).parent / "golden" / "keypoint_matching.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict:
    with safe_open(GOLDEN, "pt") as file:
        about = {k: json.loads(v) for k, v in file.metadata().items() if k != "note"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for side in ("source", "target"):
        m = tensors[f"{side}_map"][0]
        tensors[side] = FeatureMap(
            tokens=m.flatten(1).T, grid=tuple(m.shape[1:]), image_size=tuple(about[f"{side}_size"])
        )
    return {**tensors, **about}


def test_predictions_and_scores_are_those_of_the_reference(golden) -> None:
    matches = ditf.match_points(golden["source"], golden["target"], golden["keypoints"])
    assert torch.equal(matches.target.long(), golden["prediction"])
    torch.testing.assert_close(matches.score.double(), golden["score"], rtol=1e-5, atol=1e-6)


def test_the_heat_map_is_that_of_the_reference(golden) -> None:
    heat = ditf.similarity_map(golden["source"], golden["target"], golden["keypoints"][0])
    torch.testing.assert_close(heat, golden["heatmap0"], rtol=1e-5, atol=2e-6)


def test_pck_is_that_of_the_reference(golden) -> None:
    x0, y0, x1, y1 = golden["bbox"].tolist()
    predicted = ditf.match_points(golden["source"], golden["target"], golden["keypoints"]).target
    for alpha, expected in golden["pck"].items():
        assert pck(predicted, golden["ground_truth"].float(), float(alpha), max(y1 - y0, x1 - x0)) == expected


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (31, 47)), ((1, 1), (9, 7)), ((7, 2), (5, 40)), ((4, 4), (4, 4))])
def test_every_score_of_the_map_is_the_upsampled_cosine(grid, size) -> None:
    src, tgt = make((4, 3), (20, 18), 1), make(grid, size, 2)
    heat = ditf.similarity_map(src, tgt, (5, 7))
    torch.testing.assert_close(heat.double(), scores_at(src, tgt, 5, 7), rtol=0, atol=2e-6)


def test_the_best_pixel_is_the_first_of_the_best_in_raster_order() -> None:
    src, tgt = make((4, 3), (20, 18), 1), make((3, 5), (31, 47), 2)
    points = [(x, y) for x in (0, 5, 17) for y in (0, 9, 19)]
    matches = ditf.match_points(src, tgt, points)
    for (x, y), found, score in zip(points, matches.target.long().tolist(), matches.score.tolist(), strict=True):
        expected = scores_at(src, tgt, x, y)
        assert abs(float(expected.max()) - score) < 2e-6
        first = int((expected > expected.max() - 1e-9).flatten().int().argmax())
        gap = float(expected.max() - expected[found[1], found[0]])
        assert found == [first % 47, first // 47] or 1e-9 < gap < 1e-6


def test_fractional_points_are_interpolated() -> None:
    src, tgt = make((2, 2), (20, 20), 1), make((3, 3), (21, 21), 2)
    quarter = 0.75 * src.tokens[0] + 0.25 * src.tokens[1]  # x = 7 lies a quarter of the way from 4.5 to 14.5
    expected = F.normalize(quarter.double(), dim=0)
    heat = ditf.similarity_map(src, tgt, (7.0, 4.5))
    torch.testing.assert_close(heat.double(), torch.einsum("d,dhw->hw", expected, upsampled(tgt)), rtol=0, atol=2e-6)


def test_the_cycle_error_is_the_way_back() -> None:
    src, tgt = make((4, 3), (20, 18), 1), make((3, 5), (31, 47), 2)
    points = torch.tensor([[5.0, 7.0], [1.0, 1.0]])
    there = ditf.match_points(src, tgt, points, cycle=True)
    back = ditf.match_points(tgt, src, there.target)
    torch.testing.assert_close(there.cycle_error, (back.target - points).norm(dim=1))


def test_an_image_matches_itself_everywhere() -> None:
    f = make((6, 7), (60, 70), 3, 64)
    centres = token_centres(f)
    found = mutual_matches(f, f)
    assert len(found) == 42
    error = (found.target - found.source).abs()
    border = (found.source < 5) | (found.source > torch.tensor([64, 54]))  # its pixels tie: the first one wins
    assert float(error[~border].max()) <= 1  # centres lie between pixels
    assert float(error[border].max()) <= 5
    torch.testing.assert_close(centres[8], torch.tensor([14.5, 14.5]))


INTERIOR = [(x, y) for x in (4, 11, 17, 30, 42) for y in (4, 9, 22, 35)]  # of 48 x 40 px on cells of 8 px


def test_a_picture_is_found_in_itself() -> None:
    f = make((5, 6), (40, 48), 1, 32)
    matches = ditf.match_points(f, f, INTERIOR, cycle=True)
    assert torch.equal(matches.target, matches.source)
    assert float(matches.score.min()) > 1 - 1e-6
    assert not matches.cycle_error.any()


def test_a_shifted_picture_moves_every_point_by_the_shift() -> None:
    scene = torch.randn(32, 7, 9, generator=torch.Generator().manual_seed(1))
    src, tgt = from_map(scene[:, :5, :6], (40, 48)), from_map(scene[:, 2:, 3:], (40, 48))
    points = torch.tensor([(x, y) for x in (29, 36, 43) for y in (20, 25, 35)])
    matches = ditf.match_points(src, tgt, points)
    assert torch.equal(matches.target, (points - torch.tensor([24, 16])).float())


def test_a_mirrored_picture_mirrors_every_point() -> None:
    f = make((5, 6), (40, 48), 1, 32)
    matches = ditf.match_points(f, mirror_image(f), INTERIOR)
    assert torch.equal(matches.target[:, 0], 47 - matches.source[:, 0])
    assert torch.equal(matches.target[:, 1], matches.source[:, 1])


def test_a_turned_picture_turns_every_point() -> None:
    f = make((5, 6), (40, 48), 1, 32)
    turned = from_map(f.map.transpose(1, 2).flip(2), (48, 40))  # a quarter turn clockwise
    matches = ditf.match_points(f, turned, INTERIOR)
    assert torch.equal(matches.target[:, 0], 39 - matches.source[:, 1])
    assert torch.equal(matches.target[:, 1], matches.source[:, 0])


def test_an_enlarged_picture_scales_every_point_to_half_a_pixel() -> None:
    f = make((5, 6), (40, 48), 1, 32)
    large = FeatureMap(tokens=f.tokens, grid=f.grid, image_size=(80, 96))
    matches = ditf.match_points(f, large, INTERIOR)
    assert float((matches.target - (matches.source * 2 + 0.5)).abs().max()) == 0.5  # centres fall between pixels


def test_padding_is_never_chosen_and_coordinates_stay_those_of_the_image() -> None:
    src = make((3, 3), (30, 30), 1)
    padded = make((6, 6), (30, 60), 2, canvas=(60, 60), offset=(0, 15))
    matches = ditf.match_points(src, padded, [(x, y) for x in range(0, 30, 3) for y in range(0, 30, 3)])
    whole = upsampled(padded)
    for (x, y), found in zip(matches.source.long().tolist(), matches.target.long().tolist(), strict=True):
        scores = torch.einsum("d,dhw->hw", upsampled(src)[:, y, x], whole)
        assert float(scores.max() - scores[found[1], found[0]]) < 1e-6
    assert ditf.similarity_map(src, padded, (3, 3)).shape == (30, 60)


def test_distinctive_points_avoid_the_plain_background() -> None:
    tokens = torch.ones(100, 8) + 0.01 * torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    tokens[[33, 77]] = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)) * 3
    f = FeatureMap(tokens=tokens, grid=(10, 10), image_size=(100, 100))
    points = distinctive_points(f, 4).tolist()
    assert len(points) == 4
    assert [34.5, 34.5] in points
    assert [74.5, 74.5] in points


def test_no_points_give_no_matches() -> None:
    assert len(ditf.match_points(make((2, 2), (8, 8)), make((2, 2), (8, 8)), [], cycle=True, topk=2)) == 0


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ([(8, 0)], {}, r"points: got \(8.0, 0.0\), expected x in 0\.\.7"),
        ([(1, 1)], {"topk": 0}, "topk: got 0"),
        ([(1, 1)], {"refine": "best"}, "refine: got 'best'"),
        ([(1, 1)], {"temperature": 0.0}, "temperature: got 0.0, expected a finite number above 0"),
        ([(1, 1)], {"window": float("nan")}, "window: got nan"),
    ],
)
def test_bad_input_names_the_argument(points, options, message) -> None:
    with pytest.raises(InputError, match=message):
        ditf.match_points(make((2, 2), (8, 8)), make((2, 2), (8, 8)), points, **options)


@pytest.mark.parametrize("function", [ditf.match_points, ditf.similarity_map])
def test_features_that_do_not_fit_are_refused(function) -> None:
    src, tgt = make((2, 2), (8, 8), channels=8), make((2, 2), (8, 8))
    point = [(1, 1)] if function is ditf.match_points else (1, 1)
    with pytest.raises(InputError, match="tgt: got .16 channels., expected .?8 as in src; use one model for both"):
        function(src, tgt, point)
    elsewhere = FeatureMap(tokens=torch.empty(4, 16, device="meta"), grid=(2, 2), image_size=(8, 8))
    with pytest.raises(InputError, match="tgt: got 'features on meta', expected cpu as in src; move them with"):
        function(tgt, elsewhere, point)
    with pytest.raises(InputError, match="tgt: got 'Tensor', expected a FeatureMap"):
        function(src, tgt.tokens, point)


def test_a_point_without_a_prediction_is_wrong_not_missing() -> None:
    truth = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    assert distances(torch.tensor([[-1.0, -1.0], [8.0, 9.0]]), truth).tolist() == [float("inf"), 5.0]
    assert pck(torch.tensor([[-1.0, -1.0], [8.0, 9.0]]), truth, 0.1, 50) == 0.5  # the boundary counts


def test_rivals_are_what_they_say() -> None:
    points = torch.tensor([[0.0, 0.0], [9.0, 4.0], [3.0, 2.0]])
    torch.testing.assert_close(identity(points, (5, 10), (10, 20)), points * 2 + 0.5)
    moved = points + torch.tensor([3.0, -1.0])
    torch.testing.assert_close(constant_shift(points, moved), moved)


def test_pixel_patches_find_a_shifted_picture() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    points = torch.tensor([[20.0, 20.0], [40.0, 30.0]])
    found = pixel_patches(scene[:, :64], scene[:, 8:72], points, patch=9, side=64)
    assert float((found - (points - torch.tensor([8.0, 0.0]))).abs().max()) <= 2
