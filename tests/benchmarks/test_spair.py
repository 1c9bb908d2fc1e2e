"""SPair-71k: the miniature's closed-form answers under every rule that a wrong one would change."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ditf import InputError
from ditf.benchmarks import spair
from ditf.benchmarks.pairs import PairSet
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.benchmarks.registry import find_benchmark
from ditf.benchmarks.results import result_document
from ditf.benchmarks.runner import Evaluation, evaluate

from .minis import (
    SPAIR,
    SPAIR_ERRORS,
    SPAIR_LENGTHS,
    SPAIR_SHIFTS,
    Oracle,
    annotation,
    make_spair,
    write_image,
    write_json,
)

CODE, DIFT = PROTOCOLS["ditf-code"], PROTOCOLS["dift"]
FIRST = SPAIR[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_spair(tmp_path)


def read(root: Path, protocol=CODE) -> PairSet:
    return spair.read(root, "test", protocol)


def run(pairs: PairSet, tmp_path: Path, protocol=CODE, **options) -> Evaluation:
    return evaluate([Oracle(SPAIR_SHIFTS)], pairs, protocol, folder=tmp_path / "work", **options)


def averages(evaluation: Evaluation, pairs: PairSet, alpha: str = "0.1") -> dict[str, float]:
    document = result_document(evaluation, pairs, find_benchmark("spair").about, card={})
    return document["methods"][0]["pck"][alpha]


def rewrite(root: Path, change, pair=FIRST) -> None:
    """Change one pair's annotation."""
    content = annotation(pair)
    change(content)
    write_json(root / "PairAnnotation" / "test" / f"{pair.name}.json", content)


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "operator", "expected"),
    [
        ("0.1", "<=", (62.5, 56.6667, 44.4444, 41.6667, 64.4444)),
        ("0.05", "<=", (37.5, 30.0, 25.0, 18.75, 40.0)),
        ("0.01", "<=", (12.5, 10.0, 8.3333, 6.25, 13.3333)),
        ("0.1", "<", (37.5, 30.0, 25.0, 18.75, 40.0)),
    ],
)
def test_the_five_averages_are_those_of_the_closed_form(root, tmp_path, alpha, operator, expected) -> None:
    protocol = dataclasses.replace(CODE, operator=operator)
    pairs = read(root)
    found = averages(run(pairs, tmp_path, protocol), pairs, alpha)
    assert tuple(found.values()) == expected


def test_every_error_is_the_length_of_the_vector_that_the_annotation_is_off_by(root, tmp_path) -> None:
    evaluation = run(read(root), tmp_path)
    assert [one.errors.tolist() for one in evaluation.found["oracle"]] == SPAIR_ERRORS
    assert [one.length for one in evaluation.pairs] == SPAIR_LENGTHS
    assert all((one.score > 0.999).all() for one in evaluation.found["oracle"])


def test_the_reference_length_is_the_plain_difference_of_the_targets_box_corners(root) -> None:
    def other_source_box(content):
        content["src_bndbox"] = [1, 1, 11, 11]

    rewrite(root, other_source_box)
    assert [pair.lengths["box"] for pair in read(root).pairs] == SPAIR_LENGTHS


def test_the_annotations_are_x_y(root, tmp_path) -> None:
    pairs = read(root)
    swapped = dataclasses.replace(
        pairs,
        pairs=tuple(dataclasses.replace(p, points=p.points[:, ::-1], truth=p.truth[:, ::-1]) for p in pairs.pairs),
    )
    right, wrong = averages(run(pairs, tmp_path), pairs), averages(run(swapped, tmp_path), swapped)
    assert wrong["point_micro"] < right["point_micro"]


def test_turning_every_image_on_its_side_changes_nothing(root, tmp_path) -> None:
    pairs = read(root)
    straight = run(pairs, tmp_path)
    turned = make_spair(tmp_path / "turned")
    for pair in SPAIR:

        def turn(content):
            for key in ("src_kps", "trg_kps"):
                content[key] = [[y, x] for x, y in content[key]]
            for key in ("src_imsize", "trg_imsize"):
                content[key] = [content[key][1], content[key][0], 3]
            for key in ("src_bndbox", "trg_bndbox"):
                content[key] = [content[key][i] for i in (1, 0, 3, 2)]

        rewrite(turned, turn, pair)
        for name in (pair.source, pair.target):
            path = turned / "JPEGImages" / pair.category / f"{name}.jpg"
            write_image(path, np.zeros((pair.size[1], pair.size[0], 3), np.uint8))
    oracle = Oracle({name: (dy, dx) for name, (dx, dy) in SPAIR_SHIFTS.items()})
    again = evaluate([oracle], read(turned), CODE, folder=tmp_path / "turned work")
    for a, b in zip(straight.found["oracle"], again.found["oracle"], strict=True):
        assert a.predicted.tolist() == b.predicted[:, ::-1].tolist()


# --- the trap table --------------------------------------------------------------------------------------------------


def test_the_category_is_the_annotations_word_and_no_part_of_the_files_name(root) -> None:
    """A substring test would put this cat among the buses, or leave it out."""
    old = root / "PairAnnotation" / "test" / f"{FIRST.name}.json"
    name = "000000-2008_000001-2008_000002:bus_stop_cat"
    old.rename(old.with_name(f"{name}.json"))
    layout = root / "Layout" / "large" / "test.txt"
    layout.write_text(layout.read_text().replace(FIRST.name, name))
    assert [pair.category for pair in read(root).pairs] == ["cat", "cat", "bicycle"]


def test_the_layouts_list_decides_and_without_it_the_sorted_folder_does(root) -> None:
    listed = [SPAIR[2].name, SPAIR[0].name]
    (root / "Layout" / "large" / "test.txt").write_text("\n".join(listed) + "\n")
    assert [pair.name for pair in read(root).pairs] == listed
    shutil.rmtree(root / "Layout")
    assert [pair.name for pair in read(root).pairs] == sorted(pair.name for pair in SPAIR)


def test_stray_files_and_empty_folders_change_nothing(root, tmp_path) -> None:
    pairs = read(root)
    before = averages(run(pairs, tmp_path), pairs)
    shutil.rmtree(root / "Layout")
    for place in ("", "JPEGImages", "JPEGImages/cat", "PairAnnotation/test", "ImageAnnotation/cat"):
        (root / place / ".DS_Store").write_bytes(b"\0\1")
    (root / "PairAnnotation" / "test" / f"._{FIRST.name}.json").write_bytes(b"\0")
    (root / "JPEGImages" / "unicorn").mkdir()
    pairs = read(root)
    evaluation = run(pairs, tmp_path)
    assert averages(evaluation, pairs) == before
    assert not evaluation.problems


def test_geoaware_reads_the_points_that_both_images_annotations_have(root) -> None:
    """PairAnnotation has four points; the images' own share a fifth."""
    for name, at in ((FIRST.source, [80, 40]), (FIRST.target, [96, 48])):
        path = root / "ImageAnnotation" / "cat" / f"{name}.json"
        content = json.loads(path.read_text())
        content["kps"]["17"] = at
        write_json(path, content)
    assert len(read(root, PROTOCOLS["dift"]).pairs[0].points) == 4
    assert len(read(root, PROTOCOLS["sd-dino"]).pairs[0].points) == 4
    common = read(root, PROTOCOLS["geoaware"]).pairs[0]
    assert (common.points[-1].tolist(), common.truth[-1].tolist()) == ([80, 40], [96, 48])
    assert len(common.points) == 5


@pytest.mark.parametrize("corner", [[160, 120], [160, 40], [40, 120], [-1, 40]])
def test_a_source_point_on_or_beyond_the_border_is_moved_to_it_and_counted(root, tmp_path, corner) -> None:
    rewrite(root, lambda content: content["src_kps"].__setitem__(0, corner))
    evaluation = run(read(root), tmp_path)
    assert evaluation.pairs[0].clipped == 1
    assert evaluation.pairs[0].lookup[0].tolist() == [min(max(corner[0], 0), 159), min(max(corner[1], 0), 119)]
    assert evaluation.problems.count("pair with source points outside the image, moved to its border") == 1
    x, y = evaluation.found["oracle"][0].predicted[0]
    assert abs(x - min(evaluation.pairs[0].lookup[0, 0] + 16, 159)) <= 4  # never the other side of the image
    assert abs(y - min(evaluation.pairs[0].lookup[0, 1] + 8, 119)) <= 4


def test_points_outside_can_be_dropped_or_refused_instead(root, tmp_path) -> None:
    rewrite(root, lambda content: content["src_kps"].__setitem__(0, [160, 40]))
    evaluation = run(read(root), tmp_path, outside="drop")
    assert [len(one.truth) for one in evaluation.pairs] == [3, 1, 3]
    assert evaluation.problems.count("pair with source points outside the image, left out") == 1
    with pytest.raises(InputError, match="outside its image"):
        run(read(root), tmp_path, outside="error")


def test_points_on_the_border_are_inside(root, tmp_path) -> None:
    rewrite(root, lambda content: content["src_kps"].__setitem__(slice(0, 2), [[0, 0], [159, 119]]))
    assert run(read(root), tmp_path).pairs[0].clipped == 0


def test_a_target_point_outside_is_scored_as_it_is_and_said(root, tmp_path) -> None:
    rewrite(root, lambda content: content["trg_kps"].__setitem__(0, [160, 48]))
    evaluation = run(read(root), tmp_path)
    assert evaluation.found["oracle"][0].errors[0] == 104  # from (56, 48)
    assert evaluation.problems.count("pair with target points outside the image, scored as they are") == 1


def test_a_pair_without_points_is_left_out_and_counted_never_a_division_by_zero(root, tmp_path) -> None:
    def empty(content):
        content["src_kps"] = content["trg_kps"] = content["kps_ids"] = []

    rewrite(root, empty, SPAIR[1])
    pairs = read(root)
    assert pairs.problems.names("pair without points") == [SPAIR[1].name]
    found = averages(run(pairs, tmp_path), pairs)
    assert (found["point_micro"], found["image_micro"], found["image_macro"]) == (71.4286, 66.6667, 66.6667)
    assert not pairs.problems.damage


# --- damaged data ----------------------------------------------------------------------------------------------------


def _remove_image(root: Path) -> None:
    (root / "JPEGImages" / "cat" / "2008_000001.jpg").unlink()


def _truncate_image(root: Path) -> None:
    path = root / "JPEGImages" / "cat" / "2008_000001.jpg"
    path.write_bytes(path.read_bytes()[:400])


def _break_json(root: Path) -> None:
    (root / "PairAnnotation" / "test" / f"{FIRST.name}.json").write_text('{"category": "cat", ')


def _remove_json(root: Path) -> None:
    (root / "PairAnnotation" / "test" / f"{FIRST.name}.json").unlink()


def _odd_points(root: Path) -> None:
    rewrite(root, lambda content: content["src_kps"].pop())


def _no_number(root: Path) -> None:
    rewrite(root, lambda content: content["src_kps"].__setitem__(0, [None, 3]))


def _unknown_category(root: Path) -> None:
    rewrite(root, lambda content: content.update(category="unicorn"))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_remove_image, "missing image"),
        (_truncate_image, "unreadable image"),
        (_break_json, "malformed annotation"),
        (_remove_json, "missing annotation"),
        (_odd_points, "malformed annotation"),
        (_no_number, "malformed annotation"),
        (_unknown_category, "unknown category"),
    ],
)
def test_damage_is_counted_and_named_and_the_rest_is_scored(root, tmp_path, damage, kind) -> None:
    damage(root)
    pairs = read(root)
    evaluation = run(pairs, tmp_path)
    assert evaluation.problems.count(kind) == 1
    assert evaluation.problems.damage
    assert [one.pair.name for one in evaluation.pairs] == [SPAIR[1].name, SPAIR[2].name]
    document = result_document(evaluation, pairs, find_benchmark("spair").about, card={})
    assert document["complete"] is False
    assert document["problems"][kind]["count"] == 1


def test_an_image_of_another_size_than_annotated_is_said(root, tmp_path) -> None:
    write_image(root / "JPEGImages" / "cat" / "2008_000003.jpg", np.zeros((136, 168, 3), np.uint8))
    evaluation = run(read(root), tmp_path)
    assert evaluation.problems.names("image of another size than annotated") == [SPAIR[1].name]
    assert evaluation.pairs[1].target_size == (136, 168)


def test_a_folder_without_the_data_set_or_the_split_says_what_to_give(root, tmp_path) -> None:
    with pytest.raises(InputError, match="PairAnnotation"):
        spair.read(tmp_path / "SPair-71k" / "JPEGImages", "test", CODE)
    with pytest.raises(InputError, match="one of test, val, trn"):
        spair.read(root, "train", CODE)
    with pytest.raises(InputError, match="no pair to score"):
        spair.read(root, "val", CODE)


def test_a_check_names_what_a_half_unpacked_archive_lacks(root) -> None:
    _remove_image(root)
    _remove_json(root)
    found = "\n".join(spair.check(root))
    assert "test: 3 pairs by Layout/large/test.txt, the published split has 12234" in found
    assert f"PairAnnotation/test: 1 of 3 missing, first {FIRST.name}.json" in found
    assert "1 of 5 images of the test pairs missing, first JPEGImages/cat/2008_000001.jpg" in found
    assert "JPEGImages/sheep: no such folder" in found
