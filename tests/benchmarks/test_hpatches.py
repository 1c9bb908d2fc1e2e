"""``ditf eval hpatches``: planes with known homographies, features that know the answer, and damaged folders."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ditf import FeatureMap, InputError, ModelError, StoreError
from ditf.benchmarks import hpatches
from ditf.benchmarks.hpatches import LEFT_OUT, protocols, read, read_keypoints
from ditf.benchmarks.hpatches_methods import Described, MapDescriber, PatchDescriber, SiftDescriber, features_at
from ditf.benchmarks.hpatches_pictures import draw_planes
from ditf.benchmarks.hpatches_results import GROUPS, plane_document, summary
from ditf.benchmarks.hpatches_runner import PIXELS, PairScore, estimated, evaluate_planes, matched
from ditf.benchmarks.latex import latex_table
from ditf.benchmarks.methods import ModelMethod, Picture
from ditf.benchmarks.pairs import Problems, index_images
from ditf.benchmarks.published import plane_rows_for
from ditf.benchmarks.registry import benchmark_of_folder, find_benchmark
from ditf.benchmarks.sheets import GAP, GREEN, LABEL, RED, WIDTH
from ditf.cli import main
from ditf.store import FeatureStore

from .minis import Oracle, fourier, texture, write_image

SIZE = (120, 160)
TURNED = np.array([[0, -1.0, 119], [1, 0, 0], [0, 0, 1]])
VIEWS = [
    np.array([[1, 0, 4.0], [0, 1, 2], [0, 0, 1]]),
    np.array([[0.9, 0.05, 6], [-0.04, 0.95, 5], [0, 0, 1]]),
    np.array([[1.05, 0.02, -4], [0.01, 1.1, -6], [1e-4, 2e-4, 1]]),
    TURNED,
    np.diag([0.8, 0.8, 1.0]),
]
PLANES = {"i_mini": [np.eye(3)] * 5, "v_mini": VIEWS}
TINY = ["--model", "ditf-tiny", "--device", "cpu", "--ensemble", "1", "--size", "32"]
RESULTS = ("r.json", "r.summary.csv", "r.pairs.csv", "r.md", "r.tex", "r.png")


def seen(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    mapped = np.c_[points, np.ones(len(points))] @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def moved_by(x: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, 0], [0, 0, 1.0]])


def make_hpatches(folder: Path, *, off: float = 0.0, planes: dict[str, list[np.ndarray]] | None = None) -> Path:
    """Two sequences of 120 x 160 pixels and, in ``keypoints``, 60 points of each image that match one another exactly.

    The true homographies are moved by ``off`` pixels along x, so that right ones are off by so much at every corner.
    """
    root, keypoints = folder / "hpatches-sequences-release", folder / "keypoints"
    keypoints.mkdir(parents=True, exist_ok=True)
    for seed, (name, homographies) in enumerate((PLANES if planes is None else planes).items()):
        random = np.random.default_rng(seed)
        points = np.c_[random.uniform(30, 115, 60), random.uniform(30, 90, 60)]
        picture = texture(*SIZE, 1)
        for number, matrix in enumerate([np.eye(3), *homographies], 1):
            warped = picture if number == 1 else cv2.warpPerspective(picture, matrix, SIZE[::-1])
            write_image(root / name / f"{number}.ppm", warped)
            if number > 1:
                np.savetxt(root / name / f"H_1_{number}", moved_by(off) @ matrix)
            np.savetxt(keypoints / f"{name}-{number}.kp", seen(points, matrix))
    return root


class Known:
    """A describer whose features are where on the plane a keypoint lies."""

    name, metric = "oracle", "cosine"
    backend: str | None = None

    def __init__(self, planes: dict[str, list[np.ndarray]] | None = None) -> None:
        self.planes = PLANES if planes is None else planes
        self.described: list[str] = []

    def about(self) -> dict:
        return {"oracle": 1}

    def begin(self, pictures) -> None:
        self.described.append("begun")

    def describe(self, picture: Picture, points: np.ndarray) -> Described:
        sequence, number = picture.path.parent.name, int(picture.path.stem)
        self.described.append(f"{sequence}/{number}")
        matrix = np.eye(3) if number == 1 else self.planes[sequence][number - 2]
        return Described(points, fourier(torch.from_numpy(seen(points, np.linalg.inv(matrix)))).float())


def run(root: Path, folder: Path, protocol: str = "ditf", describers: list | None = None, **options):
    planes = read(root, options.pop("split", "all"), protocols[protocol])
    options.setdefault("keypoints", root.parent / "keypoints")
    return evaluate_planes(describers or [Known()], planes, protocols[protocol], folder=folder, **options)


@pytest.fixture(autouse=True)
def _quiet_logs():
    import logging
    import warnings

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level = before, level


# --- closed form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", protocols)
@pytest.mark.parametrize(("off", "right"), [(0, [100, 100, 100]), (2, [0, 100, 100]), (4, [0, 0, 100]), (6, [0, 0, 0])])
def test_accuracy_is_a_step_at_the_corner_error(tmp_path, protocol, off, right) -> None:
    evaluation = run(make_hpatches(tmp_path, off=off), tmp_path / "work", protocol)
    found = summary(evaluation.scores["oracle"], (1, 3, 5))
    assert list(found["accuracy"].values()) == right
    assert found["median_corner_error"] == pytest.approx(off, abs=2e-3)
    assert found["mean_matches"] == found["mean_keypoints"] == 60
    assert found["without_homography"] == 0


@pytest.mark.parametrize("off", [0, 2.5, 10.5])
def test_matching_accuracy_is_a_step_at_the_distance_of_the_matches(tmp_path, off) -> None:
    found = summary(run(make_hpatches(tmp_path, off=off), tmp_path / "work").scores["oracle"], (1, 3, 5))
    assert list(found["matching_accuracy"].values()) == [100.0 * (t >= off) for t in PIXELS]


def test_exactly_at_the_threshold_is_right() -> None:
    """``<=``, as DIFT has it."""
    one = PairScore("v_a", 2, (10, 10), 10, 3.0, (0,) * 10)
    assert summary([one], (1, 3, 5))["accuracy"] == {"1": 0, "3": 100, "5": 100}
    assert summary([replace(one, error=np.nextafter(3.0, 4))], (1, 3, 5))["accuracy"]["3"] == 0


def test_a_pair_weighs_as_much_as_any_other_and_one_without_matches_scores_nothing() -> None:
    many = PairScore("v_a", 2, (100, 100), 100, 0.5, (100,) * 10)
    none = PairScore("i_a", 2, (100, 100), 0, float("inf"), (0,) * 10, "0 matches")
    found = summary([many, none], (1, 3, 5))
    assert found["accuracy"]["5"] == 50
    assert found["matching_accuracy"]["10"] == 50  # pooled over matches it would be 100
    assert (found["without_homography"], found["median_corner_error"]) == (1, None)


def test_light_and_viewpoint_are_averaged_apart_and_together_over_pairs(tmp_path) -> None:
    """One sequence of light and two of viewpoints that cannot be matched: a third of the pairs, not the mean of two."""
    planes = {"i_a": [np.eye(3)] * 5, "v_a": VIEWS, "v_b": VIEWS}
    root = make_hpatches(tmp_path, planes=planes)
    blind = Known({"i_a": [np.eye(3)] * 5, "v_a": [TURNED] * 5, "v_b": [TURNED] * 5})
    evaluation = run(root, tmp_path / "work", describers=[blind])
    planes_read = read(root, "all", protocols["ditf"])
    document = plane_document(evaluation, planes_read, {"title": "HPatches"}, card={})
    groups = document["methods"][0]["groups"]
    share = groups["viewpoint"]["accuracy"]["5"]
    assert groups["illumination"]["accuracy"]["5"] == 100
    assert share < 50
    assert groups["all"]["accuracy"]["5"] == pytest.approx((100 + 2 * share) / 3, abs=1e-3)
    assert [groups[g]["pairs"] for g in ("all", "illumination", "viewpoint")] == [15, 5, 10]


def test_the_identity_knows_light_and_nothing_of_viewpoints(tmp_path) -> None:
    found = run(make_hpatches(tmp_path), tmp_path / "work").scores["identity"]
    light, views = found[:5], found[5:]
    assert all(one.error == 0 and one.within == (60,) * 10 for one in light)
    assert views[0].error == pytest.approx(np.hypot(4, 2))
    assert views[0].within == (0,) * 4 + (60,) * 6  # 4.47 pixels


# --- rules -----------------------------------------------------------------------------------------------------------


def test_too_few_or_degenerate_matches_are_wrong_and_no_crash() -> None:
    three = np.array([[0.0, 0], [10, 0], [0, 10]])
    line = np.c_[np.arange(30.0), np.arange(30.0)]
    for protocol in protocols.values():
        assert "needs 4" in estimated(three, three, protocol, 0).reason
        assert not estimated(np.zeros((0, 2)), np.zeros((0, 2)), protocol, 0).found
        found = estimated(line, line, protocol, 0)
        assert found.corner_error(np.eye(3) * 1.0, SIZE) >= 0  # a number or infinite, never NaN
    assert not estimated(line, line, protocols["ditf"], 0).found


def test_published_estimators_are_opencvs_calls_on_float32_points() -> None:
    random = np.random.default_rng(3)
    source = random.uniform(0, 150, (80, 2))
    target = seen(source, VIEWS[2]) + random.normal(0, 0.4, (80, 2))
    target[:25] = random.uniform(0, 150, (25, 2))
    sides = [side.astype(np.float32).reshape(-1, 1, 2) for side in (source, target)]
    for name, flag in (("dift-sd", cv2.LMEDS), ("dift-adm", cv2.RANSAC)):
        expected = cv2.findHomography(*sides, flag, ransacReprojThreshold=3)[0]  # its defaults: 2000, 0.995
        found = estimated(source, target, protocols[name], 0).matrix
        assert found is not None
        assert np.array_equal(found.numpy(), expected)


def test_lmeds_breaks_beyond_half_outliers_where_magsac_does_not() -> None:
    random = np.random.default_rng(5)
    source = random.uniform(0, 150, (200, 2))
    target = seen(source, VIEWS[1])
    target[:130] = random.uniform(0, 150, (130, 2))
    error = {
        name: estimated(source, target, protocols[name], 0).corner_error(VIEWS[1], SIZE) for name in ("dift-sd", "ditf")
    }
    assert error["ditf"] < 1e-2 < 5 < error["dift-sd"]


def test_magsac_depends_on_its_seed_alone() -> None:
    random = np.random.default_rng(7)
    source = random.uniform(0, 150, (60, 2))
    target = seen(source, VIEWS[0]) + random.normal(0, 2, (60, 2))
    target[:30] = random.uniform(0, 150, (30, 2))
    first, second, other = (estimated(source, target, protocols["ditf"], seed).matrix for seed in (0, 0, 1))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert other is not None
    assert not torch.equal(first, other)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_matches_are_mutual_and_the_first_among_equals(metric) -> None:
    first = Described(np.array([[0.0, 0], [1, 0], [2, 0]]), torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    second = Described(np.array([[5.0, 0], [6, 0]]), torch.tensor([[0.0, 1], [1, 0]]))
    source, target = matched(first, second, metric, None)
    assert source.tolist() == [[0, 0], [2, 0]]  # not [1, 0], which is as near as [0, 0] and comes later
    assert target.tolist() == [[6, 0], [5, 0]]


def test_distance_sees_lengths_and_cosine_does_not() -> None:
    first = Described(np.array([[0.0, 0]]), torch.tensor([[1.0, 0.2]]))
    second = Described(np.array([[1.0, 0], [2, 0]]), torch.tensor([[50.0, 10], [1, 0]]))
    assert matched(first, second, "cosine", None)[1].tolist() == [[1, 0]]
    assert matched(first, second, "l2", None)[1].tolist() == [[2, 0]]


def test_equal_keypoints_count_once_and_are_taken_in_sorted_order(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    for path in (tmp_path / "keypoints").glob("*.kp"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*reversed(lines), *lines[:20]]) + "\n")
    plain = run(make_hpatches(tmp_path / "plain"), tmp_path / "a").scores
    assert run(root, tmp_path / "b").scores == plain


# --- where features are taken ----------------------------------------------------------------------------------------


def ramp(width: int = 640) -> FeatureMap:
    """Features that are, bilinearly, the pixel's x; 1 in a second channel to see them shrink."""
    cells = width // 8
    x = (torch.arange(cells) + 0.5) * 8 - 0.5
    tokens = torch.stack([x, torch.ones(cells)], -1).repeat(4, 1)
    return FeatureMap(tokens=tokens, grid=(4, cells), image_size=(32, width))


def test_centred_sampling_takes_features_where_the_keypoints_are() -> None:
    points = np.array([[4.0, 15.5], [319.5, 15.5], [635.0, 15.5], [639.0, 15.5]])
    found = features_at(ramp(), points, "center")
    assert torch.allclose(found[:, 0], torch.tensor([4.0, 319.5, 635, 635.5]))  # clamped in the border band
    assert torch.allclose(found[:, 1], torch.ones(4))


def test_shifted_sampling_is_off_by_half_a_pixel_at_the_borders_and_shrinks_there() -> None:
    """x' = (x (W / (W - 1)) - 0.5), written out, against the map padded by zeros."""
    points = np.array([[50.0, 15.5], [319.5, 15.5], [600.0, 15.5], [639.0, 15.5]])
    found = features_at(ramp(), points, "shifted")
    assert torch.allclose(found[:3, 0], torch.from_numpy(points[:3, 0] * 640 / 639 - 0.5).float(), atol=1e-3)
    assert torch.allclose(found[:, 1], torch.tensor([1.0, 1, 1, 0.5]), atol=1e-4)


def test_the_shift_parts_the_two_sides_of_a_match_that_lies_left_in_one_image_and_right_in_the_other() -> None:
    """By almost a pixel; the right rule by nothing."""
    one, wide = ramp(), np.array([[40.0, 15.5], [50.0, 15.5]])
    moved = FeatureMap(tokens=one.tokens - torch.tensor([560.0, 0]), grid=one.grid, image_size=one.image_size)
    apart = {
        how: float((features_at(one, wide, how) - features_at(moved, wide + [560, 0], how))[:, 0].abs().max())
        for how in ("center", "shifted")
    }
    assert apart["center"] < 1e-3
    assert apart["shifted"] == pytest.approx(560 / 639, abs=1e-3)


# --- keypoints from files --------------------------------------------------------------------------------------------


def test_keypoints_are_read_in_every_documented_form_and_no_pickle(tmp_path) -> None:
    points = np.array([[3.5, 4.25], [10.0, 20.0]])
    np.savetxt(tmp_path / "v_a-1.kp", points)
    np.savez(tmp_path / "v_a-2.npz", keypoints=np.c_[points, [0.5, 0.7]], scores=[0.1, 0.2])
    (tmp_path / "v_a").mkdir()
    np.savez(tmp_path / "v_a" / "3.npz", keypoints=points.astype(np.float32))
    with (tmp_path / "v_a" / "4.ppm.d2-net").open("wb") as file:
        np.savez(file, keypoints=points, descriptors=np.ones((2, 8)))
    for number in (1, 2, 3, 4):
        found = read_keypoints(tmp_path, "v_a", number)
        assert found is not None
        assert found.tolist() == points.tolist()
    assert read_keypoints(tmp_path, "v_a", 5) is None
    np.savez(tmp_path / "v_a-5.npz", keypoints=np.array([{"x": 1}], dtype=object))
    (tmp_path / "v_a-6.npz").write_bytes(b"not an archive")
    np.savez(tmp_path / "v_b-1.npz", points=points)
    (tmp_path / "v_b-2.kp").write_text("1 2\n3\n")
    (tmp_path / "v_b-3.kp").write_text("1 nan\n")
    (tmp_path / "v_b-4.kp").write_text("")
    for name, number in (("v_a", 5), ("v_a", 6), ("v_b", 1), ("v_b", 2), ("v_b", 3)):
        with pytest.raises(ValueError, match=f"{name}-{number}"):
            read_keypoints(tmp_path, name, number)
    empty = read_keypoints(tmp_path, "v_b", 4)
    assert empty is not None
    assert empty.shape == (0, 2)


def test_damaged_keypoints_leave_their_pairs_out_and_empty_ones_make_them_wrong(tmp_path) -> None:
    root, files = make_hpatches(tmp_path), tmp_path / "keypoints"
    (files / "v_mini-2.kp").unlink()
    (files / "v_mini-3.kp").write_text("1 2 3\n4\n")
    (files / "v_mini-4.kp").write_text("")
    (files / "i_mini-2.kp").write_text((files / "i_mini-2.kp").read_text() + "160 3\n-1 3\n")
    evaluation = run(root, tmp_path / "work")
    scores = {(one.sequence, one.number): one for one in evaluation.scores["oracle"]}
    assert sorted(k for name, k in scores if name == "v_mini") == [4, 5, 6]
    assert (scores["v_mini", 4].matches, scores["v_mini", 4].error) == (0, float("inf"))
    assert scores["i_mini", 2].features == (60, 60)
    problems = evaluation.problems.to_dict()
    assert problems["missing annotation"]["first"] == ["keypoints of v_mini/2.ppm"]
    assert "v_mini-3.kp" in problems["malformed annotation"]["first"][0]
    assert problems["keypoints outside their image, left out"]["first"] == ["i_mini/2.ppm: 2"]
    assert evaluation.problems.damage


# --- folders ---------------------------------------------------------------------------------------------------------


def test_sequences_left_out_by_convention_are_named_and_do_not_count(tmp_path) -> None:
    assert len(LEFT_OUT) == 8
    planes = {"i_dc": [np.eye(3)] * 5, "v_talent": VIEWS, "v_mini": VIEWS}
    root = make_hpatches(tmp_path, planes=planes)
    found = read(root, "all", protocols["ditf"])
    assert [one.name for one in found.sequences] == ["v_mini"]
    assert found.facts == {
        "sequences_found": 3,
        "left_out_by_convention": ["i_dc", "v_talent"],
        "fewer": "1 of the 108 published sequences are here: no score of the whole data set.",
    }
    view = read(root, "viewpoint", protocols["ditf"]).facts["fewer"]
    assert [view[:11], read(root, "all", protocols["ditf-116"]).facts["fewer"][:12]] == ["1 of the 56", "3 of the 116"]
    assert [one.name for one in read(root, "all", protocols["ditf-116"]).sequences] == ["i_dc", "v_mini", "v_talent"]
    assert [one.name for one in read(root, "illumination", protocols["ditf-116"]).sequences] == ["i_dc"]


def test_damage_is_counted_and_named_and_the_rest_is_scored(tmp_path) -> None:
    root = make_hpatches(tmp_path, planes={**PLANES, "v_gone": VIEWS, "i_bad": [np.eye(3)] * 5})
    (root / "v_gone" / "1.ppm").unlink()
    (root / "v_mini" / "2.ppm").unlink()
    (root / "v_mini" / "H_1_3").unlink()
    (root / "v_mini" / "H_1_4").write_text("1 0 0\n0 1\n0 0 1\n")
    (root / "v_mini" / "H_1_5").write_text("1 0 0\n0 1 0\nnan 0 1\n")
    (root / "v_mini" / "H_1_6").write_text("1 0 0\n2 0 0\n0 0 1\n")  # of rank 2
    (root / "i_bad" / "3.ppm").write_bytes((root / "i_bad" / "3.ppm").read_bytes()[:400])
    (root / ".DS_Store").write_text("")
    (root / "x_other").mkdir()
    known = Known({**PLANES, "i_bad": [np.eye(3)] * 5})
    evaluation = run(root, tmp_path / "work", describers=[known])
    problems = {kind: found["first"] for kind, found in evaluation.problems.to_dict().items()}
    assert problems["missing image"] == ["v_gone/1.ppm", "v_mini/2.ppm"]
    assert problems["missing annotation"] == ["v_mini/H_1_3"]
    assert problems["malformed annotation"] == ["v_mini/H_1_4", "v_mini/H_1_5", "v_mini/H_1_6"]
    assert [Path(one).name for one in problems["unreadable image"]] == ["3.ppm"]
    assert problems["neither i_* nor v_*, left aside"] == [".DS_Store", "x_other"]
    scored = [(one.sequence, one.number) for one in evaluation.scores["oracle"]]
    assert scored == [("i_bad", k) for k in (2, 4, 5, 6)] + [("i_mini", k) for k in range(2, 7)]


def test_stray_files_change_no_number(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    plain = run(root, tmp_path / "a").scores
    (root / "Thumbs.db").write_text("")
    (root / "v_mini" / ".DS_Store").write_text("")
    (root / "v_mini" / "7.ppm").write_text("")
    (root / "v_mini" / "H_2_3").write_text("")
    evaluation = run(root, tmp_path / "b")
    assert evaluation.scores == plain
    assert not evaluation.problems.damage


def test_images_of_one_sequence_may_differ_in_size(tmp_path) -> None:
    """As real ones do; the corners are those of image 1."""
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])  # pixel edges to pixel edges
    root = make_hpatches(tmp_path, planes={"v_size": [half] * 5})
    for number in range(2, 7):
        write_image(root / "v_size" / f"{number}.ppm", texture(60, 80, 2))
    found = run(root, tmp_path / "work", describers=[Known({"v_size": [half] * 5})]).scores
    assert all(one.error < 1e-3 for one in found["oracle"])
    assert all(one.error < 1e-9 for one in found["identity"])  # the same relative position


def test_check_and_refusals_name_what_is_missing(tmp_path, capsys) -> None:
    root = make_hpatches(tmp_path)
    (root / "v_mini" / "H_1_3").unlink()
    (root / ".DS_Store").write_text("")
    assert benchmark_of_folder(root).name == "hpatches"
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "hpatches"
    assert found["missing"] == [
        "i_*: 1 sequences, the published archive has 57",
        "v_*: 1 sequences, the published archive has 59",
        "missing annotation: 1 (v_mini/H_1_3)",
    ]
    with pytest.raises(InputError, match="no folder i_"):
        read(tmp_path / "keypoints", "all", protocols["ditf"])
    with pytest.raises(InputError, match="--split"):
        read(root, "test", protocols["ditf"])
    with pytest.raises(InputError, match="no sequence to score"):
        read(make_hpatches(tmp_path / "x", planes={"i_dc": [np.eye(3)] * 5}), "all", protocols["ditf"])
    assert find_benchmark("hpatches").splits == hpatches.SPLITS


# --- methods ---------------------------------------------------------------------------------------------------------


def picture_of(path: Path) -> Picture:
    return Picture(path, index_images([path], Problems())[path], "image")


def test_sift_and_patches_solve_what_they_can(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    evaluation = run(root, tmp_path / "work", describers=[SiftDescriber(500), PatchDescriber()])
    sift, patches = (evaluation.scores[name] for name in ("SIFT", "pixel patches"))
    assert [one.error < 1 for one in sift[:5]] == [True] * 5
    assert sift[8].error < 3  # a quarter turn, which patches cannot follow
    assert [one.error < 1 for one in patches[:6]] == [True] * 6  # the same light, and a translation
    assert patches[8].error > 5


def test_a_flat_image_has_no_keypoints_and_is_wrong(tmp_path) -> None:
    root = make_hpatches(tmp_path, planes={"i_flat": [np.eye(3)] * 5})
    write_image(root / "i_flat" / "4.ppm", np.full((*SIZE, 3), 90, np.uint8))
    found = run(root, tmp_path / "work", describers=[SiftDescriber(500), PatchDescriber()], keypoints=None).scores
    for name in ("SIFT", "pixel patches"):
        assert [one.number for one in found[name] if one.error > 5] == [4]
        assert found[name][2].reason


def test_a_models_map_is_made_once_and_read_at_the_keypoints(tmp_path) -> None:
    root, store, maps = make_hpatches(tmp_path), FeatureStore(tmp_path / "features"), Oracle({}, name="maps")
    one = MapDescriber(maps, protocols["ditf"], store)
    found = run(root, tmp_path / "a", describers=[one], split="illumination").scores["maps"]
    assert all(score.error < 1 and score.matches == 60 for score in found)
    assert [path.stem for path in maps.seen] == ["1", "2", "3", "4", "5", "6"]
    other = MapDescriber(maps, protocols["dift-sd"], store)
    run(root, tmp_path / "b", "dift-sd", describers=[other], split="illumination")
    assert len(maps.seen) == 6  # another protocol, the same features


def test_features_that_are_not_finite_are_an_error_that_names_the_image(tmp_path) -> None:
    class Broken(Oracle):
        def extract(self, picture: Picture):
            [(_, features)] = super().extract(picture)
            features.tokens[3, 1] = torch.nan
            return [(self, features)]

    one = MapDescriber(Broken({}), protocols["ditf"], FeatureStore(tmp_path / "features"))
    with pytest.raises(ModelError, match="1.ppm"):
        run(make_hpatches(tmp_path), tmp_path / "w", describers=[one])


def test_refused_before_the_first_image(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    with pytest.raises(InputError, match="distinct names"):
        run(root, tmp_path / "work", describers=[Known(), Known()])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        run(root, tmp_path / "file")


# --- the picture -----------------------------------------------------------------------------------------------------


def colours(picture: Image.Image, top: int, height: int) -> dict[str, int]:
    """How many pixels of some rows are exactly of the colours of right and wrong."""
    pixels = np.asarray(picture)[top : top + height].astype(int)
    return {name: int((pixels == colour).all(-1).sum()) for name, colour in (("right", GREEN), ("wrong", RED))}


def test_the_picture_has_the_worst_pairs_above_the_best_and_colours_by_the_truth(tmp_path) -> None:
    planes = {"v_good": [moved_by(3)] * 5, "v_bad": [moved_by(3)] * 5}
    root = make_hpatches(tmp_path, planes=planes)
    np.savetxt(root / "v_bad" / "H_1_4", moved_by(9))  # said to lie elsewhere: its matches are all wrong
    found = read(root, "all", protocols["ditf"])
    evaluation = run(root, tmp_path / "work", describers=[Known(planes)])
    picture = draw_planes(evaluation, found, "oracle", count=1)
    assert picture.width == WIDTH
    row = (picture.height - GAP) // 2  # the upper is v_bad 1-4, the lower any other
    bad, good = (colours(picture, k * row + LABEL + GAP, row - LABEL - GAP) for k in (0, 1))
    assert bad["right"] == good["wrong"] == 0
    assert min(bad["wrong"], good["right"]) > 1000
    assert np.asarray(picture).tobytes() == np.asarray(draw_planes(evaluation, found, "oracle", count=1)).tobytes()
    again = run(root, tmp_path / "work", describers=[Known(planes)])  # from what the first run left
    assert np.asarray(draw_planes(again, found, "oracle", count=1)).tobytes() == np.asarray(picture).tobytes()


def test_pairs_without_matches_or_with_frames_that_go_to_infinity_are_drawn_all_the_same(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    found, evaluation = read(root, "all", protocols["ditf"]), run(root, tmp_path / "work")
    name, far = "v_mini", (1.0, 0, 0, 0, 1, 0, -0.02, 0, 1)  # the line x = 50 goes to infinity
    none = PairScore(name, 2, (0, 0), 0, float("inf"), (0,) * 10, "0 matches; a homography needs 4")
    wild = PairScore(name, 3, (4, 4), 4, 1e9, (0,) * 10, "", far, ((1.0, 2.0, 3.0, 4.0),) * 4)
    picture = draw_planes(replace(evaluation, scores={"oracle": (none, wild)}), found, "oracle")
    assert colours(picture, 0, picture.height)["wrong"] > 0


# --- stopped and resumed ---------------------------------------------------------------------------------------------


def test_finished_sequences_are_not_described_again_and_changed_ones_are(tmp_path) -> None:
    root = make_hpatches(tmp_path)
    first = run(root, tmp_path / "work")
    again = Known()
    assert run(root, tmp_path / "work", describers=[again]).scores == first.scores
    assert again.described == []
    np.savetxt(root / "v_mini" / "H_1_2", np.eye(3))
    found = run(root, tmp_path / "work", describers=[again])
    assert set(again.described) == {"begun", *(f"v_mini/{k}" for k in range(1, 7))}
    assert found.scores["oracle"][5].error == pytest.approx(np.hypot(4, 2), abs=1e-2)
    [unit.write_text("[{") for unit in (tmp_path / "work" / "units").glob("*.json")]
    assert run(root, tmp_path / "work").scores == found.scores


SCRIPT = """
import os, signal, sys
import torch; torch.set_num_threads(1)
from ditf.benchmarks.methods import ModelMethod
from ditf.cli import main
extract, count = ModelMethod.extract, 0
def counted(self, picture):
    global count
    count += 1
    if count == 4:  # i_mini is one picture, and the first of v_mini: in the middle of v_mini
        os.kill(os.getpid(), signal.SIGKILL)
    return extract(self, picture)
ModelMethod.extract = counted
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(tmp_path, monkeypatch) -> None:
    root = make_hpatches(tmp_path)

    def arguments(out: Path) -> list[str]:
        return ["eval", "hpatches", "--data", str(root), *TINY, "--out", str(out)]

    broken, whole = tmp_path / "broken" / "r.json", tmp_path / "whole" / "r.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments(broken)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not broken.exists()
    extracted: list[str] = []
    extract = ModelMethod.extract
    monkeypatch.setattr(ModelMethod, "extract", lambda self, p: extracted.append(p.path.stem) or extract(self, p))
    assert main(arguments(broken)) == 0
    resumed = len(extracted)
    assert main(arguments(whole)) == 0
    assert (resumed, len(extracted) - resumed) == (3, 6)
    for file in RESULTS:
        assert (broken.parent / file).read_bytes() == (whole.parent / file).read_bytes(), file
    before = len(extracted)
    assert main(arguments(whole)) == 0
    assert len(extracted) == before


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_rivals_card_and_tables(tmp_path, capsys) -> None:
    root, out = make_hpatches(tmp_path), tmp_path / "deep" / "r.json"
    keypoints = ["--keypoints", str(tmp_path / "keypoints"), "--protocol", "dift-sd"]
    assert main(["eval", "hpatches", "--data", str(root), *TINY, *keypoints, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert [one["name"] for one in found["methods"]] == ["ditf-tiny", "SIFT", "pixel patches", "identity"]
    assert (found["protocol"]["name"], found["protocol"]["estimator"]) == ("dift-sd", "lmeds")
    assert found["card"]["keypoints"] == "from files"
    assert found["card"]["methods"]["ditf-tiny"]["config"]["timestep"] > 0
    assert found["complete"] is True
    assert found["methods"][0]["groups"]["illumination"]["accuracy"] == {"1": 100, "3": 100, "5": 100}
    assert len(found["pairs"]) == found["counts"]["pairs"] == 10
    rows = list(csv.DictReader(out.with_name("r.summary.csv").open()))
    assert len(rows) == 4 * 3
    assert float(rows[0]["MMA@3px"]) == found["methods"][0]["groups"]["all"]["matching_accuracy"]["3"]
    assert len(list(csv.DictReader(out.with_name("r.pairs.csv").open()))) == 40
    assert out.with_name("r.run.json").exists()
    assert out.with_name("r.png").exists()
    assert found["data"]["fewer"].startswith("2 of the 108 published sequences")
    assert "ditf-tiny & illumination & 100.0 & 100.0 & 100.0 & " in out.with_name("r.tex").read_text()
    assert {row["group"] for row in found["published"]} == set(GROUPS)
    assert all(row["source"] and row["note"] for row in found["published"])
    assert "| SIFT | all | 49.8 | 78.6 | 78.6 | convention not stated |" in out.with_name("r.md").read_text()


def test_a_table_for_latex_escapes_what_it_would_not_print() -> None:
    text = latex_table("a\nb", ["m_1", "50%"], [["x\\y~{z}", "1"]])
    assert "% a b" in text
    assert "m\\_1 & 50\\% \\\\" in text
    assert "x\\textbackslash{}y\\textasciitilde{}\\{z\\} & 1 \\\\" in text


def test_published_rows_of_light_and_viewpoint_agree_with_those_of_all() -> None:
    """57 and 59 sequences of as many pairs each; printed to a tenth."""
    rows = {(row.method, row.group): dict(row.accuracy)[3] for row in plane_rows_for("all")}
    for method in {name for name, _ in rows}:
        light, view = rows[method, "illumination"], rows[method, "viewpoint"]
        assert rows[method, "all"] == pytest.approx((57 * light + 59 * view) / 116, abs=0.25)
    assert {row.group for row in plane_rows_for("viewpoint")} == {"viewpoint"}


def test_damaged_data_ends_with_exit_code_1_and_says_what(tmp_path, capsys) -> None:
    root = make_hpatches(tmp_path)
    (root / "v_mini" / "5.ppm").unlink()
    assert main(["eval", "hpatches", "--data", str(root), *TINY, "--out", str(tmp_path / "r.json")]) == 1
    captured = capsys.readouterr()
    assert "v_mini/5.ppm" in captured.err
    assert "MMA 3 px" in captured.out
    assert "SuperPoint" in captured.out
    assert "could not be checked" in captured.out
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is False
    bad = ["eval", "hpatches", "--data", str(root), "--out", str(tmp_path / "q.json"), "--keypoints", "nowhere"]
    assert main(bad) == 2
    assert "--keypoints" in capsys.readouterr().err


def test_results_of_planes_are_refused_by_the_comparison_of_labelled_pairs(tmp_path, capsys) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"ditf result": 1, "benchmark": "hpatches", "split": "all"}))
    assert main(["eval", "compare", str(path), str(path)]) == 2
    assert "labelled pairs" in capsys.readouterr().err
