"""AP-10K in GeoAware-SC's layout: the canvas, the flags, the names that contain one another; and pairs made anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditf import InputError
from ditf.benchmarks import ap10k
from ditf.benchmarks.ap10k_prepare import prepare, split_images
from ditf.benchmarks.registry import benchmark_of_folder, find_benchmark
from ditf.benchmarks.results import result_document
from ditf.benchmarks.runner import Evaluation, evaluate
from ditf.cli import main

from .minis import (
    AP10K_POINTS,
    Oracle,
    animal,
    make_ap10k,
    make_spair,
    texture,
    write_animal,
    write_animals,
    write_image,
    write_json,
)

GEOAWARE = ap10k.protocols["geoaware"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_ap10k(tmp_path)


def run(root: Path, tmp_path: Path, split: str = "test", protocol=GEOAWARE) -> Evaluation:
    return evaluate([Oracle({}, canvas=True)], ap10k.read(root, split, protocol), protocol, folder=tmp_path / "work")


def pck(root: Path, tmp_path: Path, split: str) -> list[float]:
    pairs = ap10k.read(root, split, GEOAWARE)
    document = result_document(run(root, tmp_path, split), pairs, find_benchmark("ap10k").about, card={})
    return [document["methods"][0]["pck"][alpha]["image_micro"] for alpha in ("0.1", "0.05", "0.01")]


@pytest.mark.parametrize(
    ("split", "points", "expected"),
    [
        ("test", 3, [100, 100, 100]),
        ("test_cross_species", 4, [100, 100, 100]),
        ("test_cross_family", 4, [50, 0, 0]),
    ],
)
def test_the_three_settings_score_what_the_closed_form_says(root, tmp_path, split, points, expected) -> None:
    """A point one pixel off its patch's centre on both axes is found sqrt(2) away; a turned picture is not found."""
    evaluation = run(root, tmp_path, split)
    [one] = evaluation.pairs
    assert (len(one.truth), one.length) == (points, 420)
    if split != "test_cross_family":
        assert evaluation.found["oracle"][0].errors.tolist() == pytest.approx([2**0.5] * points)
    assert pck(root, tmp_path, split) == expected


def test_the_canvas_scales_by_the_longer_side_and_centres_the_shorter(root, tmp_path) -> None:
    one = run(root, tmp_path, "test_cross_family").pairs[0]
    assert one.points[0].tolist() == [2 * 73, 2 * 87 + 140]
    assert one.truth[0].tolist() == [2 * 87 + 140, 2 * 73]


def test_a_bobcat_is_no_cat(root) -> None:
    bobcat = "data/ap-10k/ImageAnnotation/Felidae/bobcat/000000000003.json"
    write_animals(root, "test", bobcat, bobcat, "bobcat")
    pairs = ap10k.read(root, "test", GEOAWARE)
    assert [(pair.category, pair.source_prompt) for pair in pairs.pairs] == [("bobcat", "bobcat"), ("cat", "cat")]


def test_prompts_name_the_species_of_each_image_whatever_the_pair_is_called(root) -> None:
    [pair] = ap10k.read(root, "test_cross_species", GEOAWARE).pairs
    assert (pair.category, pair.source_prompt, pair.target_prompt) == ("Felidae", "cat", "bobcat")


def test_occluded_points_do_not_count_unless_the_released_loader_is_asked_for_which_halves_them(root, tmp_path) -> None:
    points = {**AP10K_POINTS, 1: (143, 87, 1)}
    write_animal(root, animal(2, "Felidae", "cat", (280, 420), points, (70, 84, 210, 140)))
    [pair] = ap10k.read(root, "test", GEOAWARE).pairs
    assert [x for x, _ in pair.points.tolist()] == [73, 213, 283]
    released = ap10k.protocols["geoaware-released"]
    [one] = run(root, tmp_path, "test", released).pairs
    assert one.points[1].tolist() == [286, 314]
    assert one.truth[1].tolist() == [143, 157]  # half of it: its flag of 1, halved, multiplies the coordinates


def test_points_that_are_not_mutually_visible_are_not_matched_at_all(root, tmp_path) -> None:
    """Hidden points lie at (0, 0); nobody looks for them."""
    assert run(root, tmp_path).pairs[0].points.min() > 100


def test_a_point_at_the_canvas_edge_is_in_the_last_patch_and_counted(root, tmp_path) -> None:
    points = {**AP10K_POINTS, 0: (420, 87, 2)}
    write_animal(root, animal(1, "Felidae", "cat", (280, 420), points, (70, 84, 210, 140)))
    evaluation = run(root, tmp_path)
    assert evaluation.pairs[0].clipped == 1
    assert evaluation.found["oracle"][0].predicted[0].tolist() == [59 * 14 + 7, 22 * 14 + 7]


def test_pair_files_written_elsewhere_are_found_and_only_suffixes_change(tmp_path) -> None:
    root = make_ap10k(tmp_path / "json" / "data.json.jpg")
    [pair] = ap10k.read(root, "test", GEOAWARE).pairs
    assert pair.source.is_file()
    assert pair.source.suffix == ".jpg"


def test_stray_files_and_empty_species_change_nothing(root) -> None:
    before = ap10k.read(root, "test", GEOAWARE).list_hash
    (root / "ImageAnnotation" / "Felidae" / ".DS_Store").write_bytes(b"\0")
    (root / "ImageAnnotation" / "Felidae" / "lynx").mkdir()
    (root / "PairAnnotation" / "test" / "._1-2:cat.json").write_bytes(b"\0")
    (root / "PairAnnotation" / ".DS_Store").write_bytes(b"\0")
    pairs = ap10k.read(root, "test", GEOAWARE)
    assert (pairs.list_hash, bool(pairs.problems)) == (before, False)


@pytest.mark.parametrize("damage", ["annotation", "pair", "category", "image"])
def test_damage_is_counted_and_named(root, tmp_path, damage) -> None:
    cat = "data/ap-10k/ImageAnnotation/Felidae/cat/000000000001.json"
    lone = write_animal(root, animal(9, "Felidae", "cat", (280, 420), AP10K_POINTS, (70, 84, 210, 140)))
    path = write_animals(root, "test", cat, lone, "cat")
    kind = {
        "annotation": "missing annotation", "pair": "malformed annotation", "category": "unknown category",
        "image": "missing image",
    }[damage]  # fmt: skip
    if damage == "annotation":
        (root / "ImageAnnotation" / "Felidae" / "cat" / "000000000009.json").unlink()
    elif damage == "pair":
        path.write_text("[]")
    elif damage == "category":
        path.rename(path.with_name(path.name.replace(":cat", ":unicorn")))
    else:
        (root / "JPEGImages" / "Felidae" / "cat" / "000000000009.jpg").unlink()
    evaluation = run(root, tmp_path)
    assert len(evaluation.pairs) == 1
    assert evaluation.problems.count(kind) == 1
    assert evaluation.problems.damage


def test_a_pair_without_common_points_is_left_out_and_counted(root) -> None:
    nothing = {i: (x, y, 0) for i, (x, y, _) in AP10K_POINTS.items()}
    cat = "data/ap-10k/ImageAnnotation/Felidae/cat/000000000001.json"
    blind = write_animal(root, animal(8, "Felidae", "cat", (280, 420), nothing, (70, 84, 210, 140)))
    write_animals(root, "test", cat, blind, "cat")
    pairs = ap10k.read(root, "test", GEOAWARE)
    assert len(pairs.pairs) == 1
    assert pairs.problems.count("pair without points") == 1


def test_the_layouts_of_data_sets_are_told_apart(root, tmp_path) -> None:
    assert benchmark_of_folder(root).name == "ap10k"
    assert benchmark_of_folder(make_spair(tmp_path)).name == "spair"
    bare = tmp_path / "bare" / "SPair-71k"
    (bare / "JPEGImages").mkdir(parents=True)
    found = benchmark_of_folder(bare)  # by its name: not even the annotations are there
    assert found.name == "spair"
    assert "has no PairAnnotation" in found.check(bare)[0]
    with pytest.raises(InputError, match="looks like none of"):
        benchmark_of_folder(root / "JPEGImages")


# --- prepare ---------------------------------------------------------------------------------------------------------


def make_archive(folder: Path, counts: dict[tuple[str, str], int]) -> Path:
    """The original archive with so many images of each (family, species)."""
    root = folder / "ap-10k"
    images, annotations, categories, number = [], [], [], 0
    picture = texture(28, 42, 0)
    for c, ((family, species), count) in enumerate(counts.items()):
        categories.append({"id": c, "name": species, "supercategory": family})
        for _ in range(count):
            number += 1
            one = animal(number, family, species, (28, 42), {i: (3 * i, i, 2) for i in range(4)}, (1, 1, 20, 20))
            images.append({k: one[k] for k in ("id", "file_name", "width", "height")})
            kept = ("image_id", "bbox", "iscrowd", "keypoints", "num_keypoints")
            annotations.append({"id": 5000 + number, "category_id": c, **{k: one[k] for k in kept}})
            write_image(root / "data" / one["file_name"], picture)
    for split, part in (("train", slice(0, None, 2)), ("val", slice(1, None, 4)), ("test", slice(3, None, 4))):
        content = {"images": images[part], "annotations": annotations[part], "categories": categories}
        write_json(root / "annotations" / f"ap10k-{split}-split1.json", content)
    return root


COUNTS = {("Felidae", "cat"): 53, ("Felidae", "bobcat"): 4, ("Canidae", "dog"): 3}


def test_images_are_split_from_the_end() -> None:
    assert {k: (len(v), v[:1]) for k, v in split_images(range(53)).items()} == {
        "test": (30, [23]), "val": (20, [3]), "trn": (3, [0]),
    }  # fmt: skip
    assert {k: len(v) for k, v in split_images(range(31)).items()} == {"test": 30, "val": 1, "trn": 0}
    assert {k: len(v) for k, v in split_images(range(7)).items()} == {"test": 7, "val": 0, "trn": 0}


def test_prepared_pairs_are_as_many_as_the_description_says_and_the_same_everywhere(tmp_path) -> None:
    lists = []
    for name in ("a", "b"):
        root = make_archive(tmp_path / name, COUNTS)
        about = prepare(root, train=True)
        lists.append(about["lists"])
        assert {split: one["pairs"] for split, one in about["lists"].items()} == {
            "test": 30 * 29 // 2 + 4 * 3 // 2 + 3 * 2 // 2, "val": 20 * 19 // 2, "trn": 3,
            "test_cross_species": 30 * 4, "val_cross_species": 0, "test_cross_family": 30, "val_cross_family": 0,
        }  # fmt: skip
    assert lists[0] == lists[1]
    pairs = ap10k.read(root, "test", GEOAWARE)
    assert len(pairs.pairs) == 435 + 6 + 3
    assert "not the published list" in pairs.facts["list"]
    assert pairs.facts["prepared"]["lists"]["test"]["sha256"] == lists[0]["test"]["sha256"]
    assert ap10k.check(root) == []


def test_crowds_and_images_with_few_points_are_left_out(tmp_path) -> None:
    root = make_archive(tmp_path, {("Felidae", "cat"): 6})
    path = root / "annotations" / "ap10k-train-split1.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["num_keypoints"] = 2
    content["annotations"].append({**content["annotations"][1], "id": 9999, "keypoints": [0] * 51})  # a second animal
    write_json(path, content)
    (tmp_path / "crowd.txt").write_text("000000000002\n")
    about = prepare(root, crowd=tmp_path / "crowd.txt")
    assert about["images"] == 4
    assert about["lists"]["test"]["pairs"] == 6
    assert about["crowd_list"] == "crowd.txt"


def test_an_image_without_its_file_is_counted(tmp_path) -> None:
    root = make_archive(tmp_path, {("Felidae", "cat"): 6})
    (root / "data" / "000000000003.jpg").unlink()
    assert prepare(root)["images_without_file"] == {"count": 1, "first": ["000000000003.jpg"]}


def test_a_folder_that_was_prepared_by_others_is_taken_as_it_is(root, tmp_path, capsys) -> None:
    archive = make_archive(tmp_path / "archive", COUNTS)
    (archive / "PairAnnotation").mkdir()
    (root / "PairAnnotation" / "test").rename(archive / "PairAnnotation" / "test")
    with pytest.raises(InputError, match="taken as they are"):
        prepare(archive)
    assert "taken as found" in ap10k.read(root, "test_cross_species", GEOAWARE).facts["list"]


def test_a_stopped_preparation_starts_over_and_leaves_no_pair_of_another_list(tmp_path, monkeypatch) -> None:
    from ditf.benchmarks import ap10k_prepare

    root, plain = make_archive(tmp_path / "a", COUNTS), make_archive(tmp_path / "b", COUNTS)
    (tmp_path / "crowd.txt").write_text("\n".join(map(str, range(1, 20))))
    with monkeypatch.context() as patch:
        patch.setattr(ap10k_prepare, "digest", lambda about: 1 / 0)  # after the first list is written
        with pytest.raises(ZeroDivisionError):
            prepare(root)
    again, alone = prepare(root, crowd=tmp_path / "crowd.txt"), prepare(plain, crowd=tmp_path / "crowd.txt")
    assert again["lists"] == alone["lists"]
    for split, one in again["lists"].items():
        assert len(list((root / "PairAnnotation" / split).glob("*.json"))) == one["pairs"]


def test_an_archive_that_is_half_unpacked_says_what_is_missing(tmp_path) -> None:
    root = make_archive(tmp_path, {("Felidae", "cat"): 3})
    with pytest.raises(InputError, match="ditf data prepare ap10k"):
        ap10k.read(root, "test", GEOAWARE)
    assert "not prepared" in ap10k.check(root)[0]
    (root / "annotations" / "ap10k-val-split1.json").write_text("{")
    with pytest.raises(InputError, match=r"ap10k-val-split1\.json cannot be used"):
        prepare(root)
    (root / "annotations" / "ap10k-val-split1.json").unlink()
    with pytest.raises(InputError, match="is missing"):
        prepare(root)


def test_the_commands_check_and_prepare(tmp_path, capsys) -> None:
    root = make_archive(tmp_path, COUNTS)
    assert main(["data", "check", str(root)]) == 1
    assert main(["data", "prepare", "ap10k", str(root), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["lists"]["test"]["pairs"] == 444
    assert main(["data", "check", str(root), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["benchmark"], about["whole"], about["missing"]) == ("ap10k", True, [])
    assert main(["data", "prepare", "ap10k", str(root)]) == 2
    assert main(["data", "prepare", "spair", str(root)]) == 2
