"""PF-PASCAL and PF-WILLOW: one miniature, as many scores as there are reference lengths."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ditf import InputError
from ditf.benchmarks import pfpascal, pfwillow
from ditf.benchmarks.registry import benchmark_of_folder, find_benchmark
from ditf.benchmarks.results import result_document
from ditf.benchmarks.runner import evaluate

from .minis import PFPASCAL_SHIFTS, PFWILLOW_ERRORS, Oracle, make_pfpascal, make_pfwillow

ALPHAS = ("0.05", "0.1", "0.15")


def pck(module, root: Path, work: Path, name: str, shifts) -> list[float]:
    protocol = module.protocols[name]
    pairs = module.read(root, "test", protocol)
    evaluation = evaluate([Oracle(shifts)], pairs, protocol, folder=work)
    document = result_document(evaluation, pairs, find_benchmark(pairs.benchmark).about, card={})
    return [document["methods"][0]["pck"][alpha]["image_micro"] for alpha in ALPHAS]


# --- PF-PASCAL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hpf", [50, 75, 100]),
        ("ditf-code", [50, 75, 100]),
        ("scnet", [37.5, 62.5, 100]),
        ("bbox", [37.5, 50, 100]),
        ("pf", [12.5, 12.5, 12.5]),
    ],
)
def test_every_reference_length_of_pf_pascal_has_its_own_score(tmp_path, name, expected) -> None:
    """Errors 0, 7.97, 15, 16 of 160 x 120 and 4, 20 of 120 x 160; the source's points span 32 and 24 pixels."""
    assert pck(pfpascal, make_pfpascal(tmp_path), tmp_path / "work", name, PFPASCAL_SHIFTS) == expected


def test_classes_count_from_one_in_the_order_of_voc(tmp_path) -> None:
    pairs = pfpascal.read(make_pfpascal(tmp_path), "test", pfpascal.protocols["hpf"])
    assert [pair.category for pair in pairs.pairs] == ["cat", "bicycle"]


def test_sd4match_measures_on_the_stretched_image(tmp_path) -> None:
    """PF-PASCAL by its side, PF-WILLOW by the extent of its stretched points: 100 x 50 of 160 x 120."""
    from ditf.benchmarks.protocols import errors_in_frame, frame_pair

    for module, root, length in (
        (pfpascal, make_pfpascal(tmp_path), 768), (pfwillow, make_pfwillow(tmp_path), 100 * 4.8),
    ):  # fmt: skip
        protocol = module.protocols["sd4match"]
        framed = frame_pair(module.read(root, "test", protocol).pairs[0], protocol, ((120, 160), (120, 160)))
        assert framed.length == pytest.approx(length)
        errors = errors_in_frame(framed.truth + np.array([1.0, 1.0]), framed, protocol)
        assert errors.tolist() == pytest.approx([np.hypot(4.8, 6.4)] * len(errors))


def test_geoaware_scores_pf_pascal_on_the_canvas_strictly_in_float32(tmp_path) -> None:
    from ditf.benchmarks.protocols import frame_pair
    from ditf.benchmarks.scores import within

    protocol = pfpascal.protocols["geoaware"]
    pair = pfpascal.read(make_pfpascal(tmp_path), "test", protocol).pairs[0]
    framed = frame_pair(pair, protocol, ((120, 160), (120, 160)))
    assert framed.length == 840
    assert not within(np.array([84.0]), framed.length, 0.1, protocol.operator, protocol.arithmetic).any()
    assert within(np.array([83.99]), framed.length, 0.1, protocol.operator, protocol.arithmetic).all()


def test_without_points_in_the_csv_those_that_both_mat_files_have_are_taken(tmp_path) -> None:
    root = make_pfpascal(tmp_path)
    table = root / "test_pairs_pf_pascal.csv"
    rows = list(csv.DictReader(table.open()))
    with (root / "val_pairs.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["source_image", "target_image", "class", "flip"])
        writer.writerows(
            [row["source_image"], row["target_image"], row["class"], flip] for row in rows for flip in "01"
        )
    pairs = pfpascal.read(root, "val", pfpascal.protocols["hpf"])
    test = pfpascal.read(root, "test", pfpascal.protocols["hpf"])
    assert [p.points.tolist() for p in pairs.pairs] == [p.points.tolist() for p in test.pairs]  # the NaN row is gone
    assert pairs.problems.count("mirrored pair, left out") == 2


def test_padding_of_minus_one_is_no_point(tmp_path) -> None:
    root = make_pfpascal(tmp_path)
    table = root / "test_pairs_pf_pascal.csv"
    head, first, *rest = table.read_text().split("\n")
    cells = first.split(",")
    cells[3:] = [f"{cell};-1;-1" for cell in cells[3:]]
    table.write_text("\n".join([head, ",".join(cells), *rest]))
    assert len(pfpascal.read(root, "test", pfpascal.protocols["hpf"]).pairs[0].points) == 4


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (",8,", ",21,", "unknown category"),
        (",8,", ",eight,", "malformed annotation"),
        ("40.0;56.0", "40.0;x", "malformed annotation"),
        ("40.0;56.0;", "40.0;", "malformed annotation"),
    ],
)
def test_damaged_rows_of_pf_pascal_are_counted_and_named(tmp_path, old, new, kind) -> None:
    root = make_pfpascal(tmp_path)
    table = root / "test_pairs_pf_pascal.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    pairs = pfpascal.read(root, "test", pfpascal.protocols["hpf"])
    [name] = pairs.problems.names(kind)
    assert name.startswith("0000-2008_000001-2008_000002")
    assert len(pairs.pairs) == 1


def test_a_missing_mat_file_is_counted_where_it_is_needed(tmp_path) -> None:
    root = make_pfpascal(tmp_path)
    (root / "Annotations" / "cat" / "2008_000002.mat").unlink()
    (root / "Annotations" / "bicycle" / "2009_000002.mat").write_bytes(b"no mat file")
    assert not pfpascal.read(root, "test", pfpascal.protocols["hpf"]).problems
    with pytest.raises(InputError, match=r"malformed annotation: 1 .*; missing annotation: 1"):
        pfpascal.read(root, "test", pfpascal.protocols["bbox"])


def test_stray_files_in_the_annotations_are_no_classes(tmp_path) -> None:
    root = make_pfpascal(tmp_path)
    (root / "Annotations" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "__MACOSX").mkdir()
    assert not pfpascal.read(root, "test", pfpascal.protocols["bbox"]).problems
    missing = "\n".join(pfpascal.check(root))
    assert "2 pairs, the published split has 299" in missing
    assert "18 of 20 classes missing, first aeroplane" in missing
    assert "val_pairs_pf_pascal.csv or val_pairs.csv" in missing


# --- PF-WILLOW -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hpf", [70, 90, 100]), ("hpf-padded", [80, 100, 100]), ("weakalign", [70, 90, 100]), ("img", [80, 100, 100])],
)
def test_every_reference_length_of_pf_willow_has_its_own_score(tmp_path, name, expected) -> None:
    """Errors 0 six times, 4, 6, 9, 11; the extent of 100 pixels becomes 139 where padding of -1 is counted."""
    root = make_pfwillow(tmp_path)
    assert pck(pfwillow, root, tmp_path / "work", name, {"b": (8, 8)}) == expected
    pair = pfwillow.read(root, "test", pfwillow.protocols[name]).pairs[0]
    assert (pair.lengths["target points"], pair.lengths["padded target points"]) == (100, 139)


def test_the_source_and_the_target_extent_are_not_the_same(tmp_path) -> None:
    root = make_pfwillow(tmp_path)
    table = root / "test_pairs_pf.csv"
    table.write_text(table.read_text().replace("30.0", "20.0", 1))
    pair = pfwillow.read(root, "test", pfwillow.protocols["weakalign"]).pairs[0]
    assert (pair.lengths["source points"], pair.lengths["target points"]) == (110, 100)


def test_columns_are_ten_of_each_coordinate_and_the_errors_are_those_annotated(tmp_path) -> None:
    protocol = pfwillow.protocols["hpf"]
    pairs = pfwillow.read(make_pfwillow(tmp_path), "test", protocol)
    found = evaluate([Oracle({"b": (8, 8)})], pairs, protocol, folder=tmp_path / "work").found["oracle"][0]
    assert found.errors.tolist() == PFWILLOW_ERRORS


def test_parentheses_in_folder_names_are_plain_letters(tmp_path) -> None:
    pairs = pfwillow.read(make_pfwillow(tmp_path), "test", pfwillow.protocols["hpf"])
    assert (pairs.pairs[0].category, pairs.pairs[0].source_prompt) == ("car(G)", "car")


def test_damaged_rows_of_pf_willow_are_counted_and_named(tmp_path) -> None:
    root = make_pfwillow(tmp_path)
    table = root / "test_pairs_pf.csv"
    head, row = table.read_text().strip().split("\n")
    short, strange = ",".join(row.split(",")[:-1]), row.replace("car(G)", "car(X)")
    table.write_text("\n".join([head, row, short, strange, ""]))
    pairs = pfwillow.read(root, "test", pfwillow.protocols["hpf"])
    assert len(pairs.pairs) == 1
    assert (pairs.problems.count("malformed annotation"), pairs.problems.count("unknown category")) == (1, 1)
    assert "3 pairs, the published list has 900" in "\n".join(pfwillow.check(root))


def test_folders_are_told_apart_and_a_missing_list_is_said(tmp_path) -> None:
    root = make_pfwillow(tmp_path)
    assert benchmark_of_folder(root).name == "pfwillow"
    assert benchmark_of_folder(make_pfpascal(tmp_path)).name == "pfpascal"
    (root / "test_pairs_pf.csv").unlink()
    with pytest.raises(InputError, match="lacks the pair list"):
        pfwillow.read(root, "test", pfwillow.protocols["hpf"])
