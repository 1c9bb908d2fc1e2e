"""Points of one kind, and points that change places in a mirror: read, derived from names, and scored apart."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ditf import InputError
from ditf.benchmarks import ap10k, spair
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.benchmarks.results import result_document, to_csv, to_markdown
from ditf.benchmarks.runner import evaluate
from ditf.benchmarks.symmetry import Symmetry, geometry_aware, mirror_places, read_symmetry

from .minis import SPAIR_SHIFTS, Oracle, make_ap10k, make_spair, write_json

CODE = PROTOCOLS["ditf-code"]
MINI = {"cat": {"alike": [[0, 1], ["2", "3"]]}, "bicycle": {"alike": [["0", "2"], ["5", "9"]], "mirror": [["0", "2"]]}}


def symmetry(folder: Path, content=MINI) -> Symmetry:
    write_json(folder / "symmetry.json", content)
    return read_symmetry(folder / "symmetry.json")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (["0", "1", "2", "3"], [True, True, True]),
        (["0", "2"], [False, False, False]),  # each alone in the target
        (["0", "1", "2"], [True, True, False]),
        (["0", "2", "3", "4"], [False, False, True]),  # not "3" itself but its company is asked for
    ],
)
def test_a_point_counts_where_the_target_shows_two_of_its_kind(seen, expected) -> None:
    groups = [("0", "1"), ("2", "3", "4")]
    assert geometry_aware(["0", "1", "2"], seen, groups).tolist() == expected
    assert geometry_aware(["7"], ["0", "1", "7"], groups).tolist() == [False]


def test_the_kinds_and_counterparts_of_animals_are_what_their_points_are_called() -> None:
    groups = {tuple(map(int, g)) for g in ap10k.SYMMETRY.groups("any")}
    paws = (7, 10, 13, 16)
    assert groups == {(0, 1), (5, 8), (6, 9), paws, (11, 14), (12, 15)}
    order = [int(ap10k.SYMMETRY.counterpart("any", str(i))) for i in range(17)]
    assert order == [1, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7, 14, 15, 16, 11, 12, 13]


def test_a_counterpart_that_the_source_does_not_show_has_no_place(tmp_path) -> None:
    found = mirror_places(["0", "2", "5"], {"0": (1, 2), "5": (3, 4)}, symmetry(tmp_path), "bicycle")
    assert np.isnan(found[0]).all()  # the counterpart of 0 is 2
    assert found[1:].tolist() == [[1, 2], [3, 4]]  # that of 2 is 0; 5 is its own


def test_points_that_are_alike_change_places_in_a_mirror_only_where_the_file_says_so(tmp_path) -> None:
    """Two wheels of a bicycle are alike, and the front one stays the front one."""
    found = symmetry(tmp_path, {"*": {"alike": [["a", "b"]], "mirror": [["a", "c"]]}, "x": {"alike": [["a", "b"]]}})
    assert [found.counterpart("any", i) for i in "abcz"] == ["c", "b", "a", "z"]
    found.check(["any", "x"], mirror=True)  # "*" speaks for it
    alone = symmetry(tmp_path, {"x": {"alike": [["a", "b"]]}})
    alone.check(["x"], mirror=False)
    with pytest.raises(InputError, match='"mirror" is missing for x'):
        alone.check(["x"], mirror=True)


def test_the_geometry_aware_subset_of_spair_has_the_averages_of_the_closed_form(tmp_path) -> None:
    """Cat: errors 0, 5, 10, 3 of length 100; bicycle: 4 and 5 of 40, its third point has no company; the pair of one
    point has none either."""
    pairs = spair.read(make_spair(tmp_path), "test", CODE, symmetry=symmetry(tmp_path))
    evaluation = evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work")
    found = result_document(evaluation, pairs, {"title": "mini"}, card={})
    aware = found["geometry_aware"]
    assert (aware["pairs"], aware["points"], aware["of_points"]) == (2, 6, 8)
    [oracle] = [row for row in aware["methods"] if row["name"] == "oracle"]
    assert oracle["pck"]["0.1"] == pytest.approx(
        {"point_micro": 83.3333, "point_macro": 75, "image_micro": 75, "image_macro": 75, "point_pairweighted": 75}
    )
    assert oracle["pck"]["0.05"]["point_micro"] == 50
    assert oracle["pck"]["0.05"]["point_macro"] == 37.5
    assert [pair["geometry_aware"] for pair in found["pairs"]] == [[0, 1, 2, 3], [], [0, 1]]
    assert found["methods"][0]["pck"]["0.1"]["point_micro"] == 62.5  # all points, as ever
    assert found["data"]["symmetry"]["file"] == "symmetry.json"
    rows = [r for r in csv.DictReader(io.StringIO(to_csv(found))) if r["category"] == "geometry-aware, micro"]
    assert [float(r["point PCK@0.1"]) for r in rows if r["method"] == "oracle"] == [83.3333]
    assert "| oracle | 0.1 | 83.33 | 75.00 |" in to_markdown(found)


def test_company_counts_that_only_the_target_shows(tmp_path) -> None:
    """The first target also shows point 4, which its source does not; the other targets show one of the two at most."""
    content = {"cat": {"alike": [["0", "4"]]}, "bicycle": {}}
    pairs = spair.read(make_spair(tmp_path), "test", CODE, symmetry=symmetry(tmp_path, content))
    marks = [pair.geometry.tolist() for pair in pairs.pairs if pair.geometry is not None]
    assert marks == [[True, False, False, False], [False], [False, False, False]]


def test_the_eyes_of_animals_are_geometry_aware_and_a_lone_shoulder_is_not(tmp_path) -> None:
    root, protocol = make_ap10k(tmp_path), ap10k.protocols["geoaware"]
    for split in ("test", "test_cross_species", "test_cross_family"):
        [pair] = ap10k.read(root, split, protocol).pairs
        assert pair.geometry is not None
        assert np.flatnonzero(pair.geometry).tolist() == [0, 1]
    assert pair.counterparts is not None
    assert pair.counterparts[:3].tolist() == pair.points[[1, 0, 2]].tolist()
    assert np.isnan(pair.counterparts[3]).all()  # the right shoulder is not seen


def test_without_a_description_spair_has_no_subset(tmp_path) -> None:
    pairs = spair.read(make_spair(tmp_path), "test", CODE)
    evaluation = evaluate([Oracle(SPAIR_SHIFTS)], pairs, CODE, folder=tmp_path / "work")
    assert "geometry_aware" not in result_document(evaluation, pairs, {}, card={})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cat": {"alike": [["0", "1"]]}}, "nothing is said of bicycle"),
        ({"cat": {"alike": [["0", "1"], ["1", "2"]]}}, "1 twice"),
        ({"cat": {"alike": [["0"]]}}, "2 or more ids"),
        ({"cat": {"mirror": [["0", "1", "2"]]}}, "lists of 2 ids"),
        ({"cat": {"mirrored": []}}, "mirrored"),
        ({"cat": {"alike": {"0": "1"}}}, "a list of lists"),
        ([], "no JSON object"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path, content, words) -> None:
    with pytest.raises(InputError, match=words):
        spair.read(make_spair(tmp_path), "test", CODE, symmetry=symmetry(tmp_path, json.loads(json.dumps(content))))
