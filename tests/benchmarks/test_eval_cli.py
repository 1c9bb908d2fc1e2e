"""``ditf eval`` from the outside: what it writes, prints, refuses and says about damaged data."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

import ditf
from ditf.benchmarks.ablations import ablation_summary
from ditf.benchmarks.methods import ModelMethod, Picture, caption_of
from ditf.benchmarks.pairs import ImageInfo
from ditf.benchmarks.protocols import PROTOCOLS
from ditf.benchmarks.registry import BENCHMARKS
from ditf.cli import main
from ditf.cli.common import ModelOptions

from .minis import SPAIR, make_ap10k, make_pfpascal, make_pfwillow, make_spair, write_json

TINY = ["--model", "ditf-tiny", "--device", "cpu", "--ensemble", "1", "--size", "48"]
MAKERS = {"spair": make_spair, "ap10k": make_ap10k, "pfpascal": make_pfpascal, "pfwillow": make_pfwillow}


@pytest.fixture(autouse=True)
def _quiet_logs():
    import logging
    import warnings

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level = before, level


@pytest.fixture(scope="module")
def spair_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    root = make_spair(folder)
    assert main(["eval", "spair", "--data", str(root), *TINY, "--out", str(folder / "r.json")]) == 0
    return folder


def document(path: Path) -> dict:
    return json.loads(path.read_text())


# --- what it writes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_every_data_set_runs_end_to_end_with_the_bundled_model(tmp_path, name, capsys) -> None:
    root, out = MAKERS[name](tmp_path), tmp_path / "deep" / "r.json"
    assert main(["eval", name, "--data", str(root), *TINY, "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == document(out)
    assert [method["name"] for method in found["methods"]] == ["ditf-tiny", "pixel patches", "identity"]
    assert (found["benchmark"], found["complete"], found["problems"]) == (name, True, {})
    assert found["data"]["source"].startswith("https://")
    assert found["data"]["licence"]
    for method in found["methods"]:
        for averages in method["pck"].values():
            assert len(averages) == 5
            assert all(0 <= value <= 100 for value in averages.values())
    assert {path.suffix for path in out.parent.glob("r.*") if path.is_file()} == {
        ".json",
        ".csv",
        ".md",
        ".tex",
        ".png",
    }


def test_a_result_names_the_model_the_protocol_the_pairs_and_no_time(spair_run) -> None:
    found = document(spair_run / "r.json")
    card = found["card"]["methods"]["ditf-tiny"]
    assert (card["model"], card["config"]["ensemble"], card["config"]["size"]) == ("ditf-tiny", 1, 48)
    assert found["protocol"]["name"] == "ditf-code"
    assert len(found["data"]["list_sha256"]) == 64
    assert found["data"]["pairs_of_the_whole_split"] == 12234
    assert found["counts"]["pairs"] == 3
    assert [pair["name"] for pair in found["pairs"]] == [pair.name for pair in SPAIR]
    assert set(document(spair_run / "r.run.json")) == {"started", "ended", "seconds"}


def test_the_tables_say_what_the_result_says(spair_run) -> None:
    found = document(spair_run / "r.json")
    rows = list(csv.DictReader((spair_run / "r.categories.csv").open()))
    patches = next(m for m in found["methods"] if m["name"] == "pixel patches")
    [cats] = [row for row in rows if (row["method"], row["category"]) == ("pixel patches", "cat")]
    [cat] = [row for row in patches["categories"] if row["name"] == "cat"]
    assert (int(cats["pairs"]), float(cats["point PCK@0.1"])) == (2, cat["pck"]["0.1"]["point"])
    [micro] = [row for row in rows if (row["method"], row["category"]) == ("pixel patches", "all, micro")]
    assert float(micro["image PCK@0.1"]) == patches["pck"]["0.1"]["image_micro"]
    pairs = list(csv.DictReader((spair_run / "r.pairs.csv").open()))
    assert len(pairs) == 3 * 3
    assert sum(int(row["correct@0.1"]) for row in pairs if row["method"] == "pixel patches") == 5
    markdown, latex = (spair_run / "r.md").read_text(), (spair_run / "r.tex").read_text()
    assert f"| pixel patches | 0.1 | {patches['pck']['0.1']['point_micro']:.2f} |" in markdown
    assert "| DiTF FLUX.1-dev | 0.1 | 67.1 | point_macro |" in markdown
    assert "pixel patches & 33.3 & 80.0 & 56.7 & 62.5 \\\\" in latex
    assert latex.count("&") == 4 * 4


def test_published_numbers_stand_beside_the_same_average(tmp_path, spair_run, capsys) -> None:
    arguments = ["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(spair_run / "r.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "licence:" in printed.err
    assert "point macro *" in printed.out
    for words in ("DiTF FLUX.1-dev", "67.1", "GeoAware-SC, zero-shot", "68.64", "not said"):
        assert words in printed.out


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cat/a.jpg", "cata.jpg", "cat/a", "cata", "a.jpg", "a"])
def test_a_caption_is_found_under_the_names_that_files_of_captions_use(key) -> None:
    assert caption_of({key: "a grey cat"}, "cat", "a.jpg") == "a grey cat"
    assert caption_of({key: "a grey cat"}, "cat", "b.jpg") is None


def test_images_without_a_caption_take_the_template_and_are_counted(spair_run, tmp_path) -> None:
    write_json(tmp_path / "captions.json", {"cat2008_000001.jpg": "a tabby on a wall"})
    out = tmp_path / "r.json"
    arguments = ["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(out)]
    assert main([*arguments, "--captions", str(tmp_path / "captions.json"), "--prompt", "{category}!"]) == 0
    found = document(out)
    assert found["card"]["captions"] == {"found": 1, "template_instead": 4}
    assert found["card"]["methods"]["ditf-tiny"]["prompt"] == "{category}!"


def test_each_image_is_given_its_own_prompt() -> None:
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", ensemble=1)
    captions = {"cat/a.jpg": "a tabby on a wall"}
    method = ModelMethod("m", fx, PROTOCOLS["ditf-code"], captions=captions)
    named = [Picture(Path(name), ImageInfo("x", (9, 9)), "cat") for name in ("a.jpg", "b.jpg")]
    assert [method.prompt_of(picture) for picture in named] == ["a tabby on a wall", "a photo of a cat"]


def test_the_protocol_sets_the_size_unless_the_model_was_measured_at_one_or_it_is_given() -> None:
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu")
    assert ModelMethod("m", fx, PROTOCOLS["dift"]).size == 96
    assert ModelMethod("m", fx, PROTOCOLS["dift"], size=64).size == 64
    fx.preset = dataclasses.replace(fx.preset, source={**fx.preset.source, "size": "somebody"})
    assert ModelMethod("m", fx, PROTOCOLS["dift"]).size == 768


# --- ablations -------------------------------------------------------------------------------------------------------


def test_an_ablation_has_a_row_per_part_from_one_forward_a_picture_and_conditioning(spair_run, tmp_path, monkeypatch):
    from ditf.backbones import Backbone

    runs: list[str] = []
    run = Backbone.run

    def counted(self, *arguments, **options):
        runs.append(options["condition"])
        return run(self, *arguments, **options)

    monkeypatch.setattr(Backbone, "run", counted)
    out = tmp_path / "r.json"
    arguments = ["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(out)]
    assert main([*arguments, "--ablate", "normalization,discard,condition"]) == 0
    found = document(out)
    names = [row["name"] for row in found["ablation"]["rows"]]
    assert names == [
        "raw", "LayerNorm", "AdaLN", "AdaLN + discard", "AdaLN, condition t", "AdaLN, condition c",
        "AdaLN, condition none",
    ]  # fmt: skip
    assert {condition: runs.count(condition) for condition in set(runs)} == {"t&c": 5, "t": 5, "c": 5, "none": 5}
    assert [row["reference"] for row in found["ablation"]["rows"]] == [None] * 7
    plain = document(spair_run / "r.json")  # the preset's discard is the full row
    full = next(method for method in found["methods"] if method["name"] == "AdaLN + discard")
    assert full["pck"] == plain["methods"][0]["pck"]


def test_the_references_figures_stand_beside_the_rows_of_its_own_model_only() -> None:
    about = {"protocol": {"alphas": [0.1]}, "benchmark": "spair", "split": "test"}
    rows = ("AdaLN + discard", "AdaLN", "raw", "pixel patches")
    content = {**about, "methods": [{"name": name, "pck": {"0.1": {"point_macro": 1.0}}} for name in rows]}
    found = ablation_summary(content, "black-forest-labs/FLUX.1-dev")
    assert [(row["name"], row["reference"]) for row in found["rows"]] == [
        ("raw", 29.9), ("AdaLN", 65.3), ("AdaLN + discard", 67.1),
    ]  # fmt: skip
    assert ablation_summary(content, "ditf-tiny")["reference"] is None


def test_a_row_beside_dino_comes_from_the_same_forward_as_the_models_own(spair_run, tmp_path, monkeypatch) -> None:
    import torch
    import transformers

    from ditf.backbones import Backbone
    from ditf.benchmarks import fusion

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**shape, patch_size=14, image_size=56)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    monkeypatch.setattr(fusion, "SIDE_TOKENS", 8)
    runs: list[int] = []
    run = Backbone.run
    monkeypatch.setattr(Backbone, "run", lambda self, *a, **o: (runs.append(1), run(self, *a, **o))[1])
    out = tmp_path / "r.json"
    arguments = ["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(out), "--fuse", str(tmp_path / "dino")]
    assert main(arguments) == 0
    assert len(runs) == 5
    found = document(out)
    assert [method["name"] for method in found["methods"]][:2] == ["ditf-tiny", "ditf-tiny + DINO"]
    assert found["methods"][0]["pck"] == document(spair_run / "r.json")["methods"][0]["pck"]
    assert found["card"]["methods"]["ditf-tiny + DINO"]["fused_with"]["size"] == 8 * 14
    assert main([*arguments, "--fuse-channels", "6"]) == 0
    assert len(runs) == 5  # the same features, projected pair by pair
    projected = document(out)["methods"][1]
    assert projected["name"] == "ditf-tiny + DINO, 6 channels"
    assert projected["pck"] != found["methods"][1]["pck"]
    card = document(out)["card"]["methods"][projected["name"]]
    assert card["projection"] == {"channels": 6, "of": "both images of a pair"}


def test_a_sample_with_aligned_poses_and_geometry_aware_points_runs_end_to_end(tmp_path, capsys) -> None:
    root, out = make_ap10k(tmp_path), tmp_path / "r.json"
    arguments = ["eval", "ap10k", "--data", str(root), *TINY, "--out", str(out), "--sample", "3", "--align-pose"]
    assert main(arguments) == 0
    found = document(out)
    assert (found["protocol"]["name"], found["counts"]["pairs"]) == ("geoaware+pose", 3)
    assert found["geometry_aware"]["points"] == 2 * 3
    assert [row.get("mirrored_pairs") in (0, 3) for row in found["methods"]] == [True, True, False]
    printed = capsys.readouterr().out
    for words in ("a sample of 3 pairs a category", "pairs matched mirrored", "Geometry-aware points: 6 of 9"):
        assert words in printed


# --- refused, and damaged --------------------------------------------------------------------------------------------


def test_damaged_data_is_scored_as_far_as_it_goes_said_and_fails(tmp_path, capsys) -> None:
    root, out = make_spair(tmp_path), tmp_path / "r.json"
    (root / "JPEGImages" / "cat" / "2008_000003.jpg").unlink()
    assert main(["eval", "spair", "--data", str(root), *TINY, "--out", str(out)]) == 1
    assert "missing image: 1" in capsys.readouterr().err
    found = document(out)
    assert (found["complete"], found["counts"]["pairs"]) == (False, 2)
    assert found["problems"]["pair without its image"]["first"] == [SPAIR[1].name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--protocol", "none"], "--protocol: got 'none', expected one of ditf-code"),
        (["--split", "train"], "--split: got 'train'"),
        (["--ablate", "everything"], "--ablate: got 'everything'"),
        (["--captions", "none.json"], "--captions: no such file"),
        (["--data", "nowhere"], "--data: no such folder"),
        (["--out", "r.txt"], "--out: got"),
        (["--store-gb", "-1", "--size", "0"], "--size: got 0"),
        (["--sample", "0"], "--sample: got 0"),
        (
            ["--protocol", "geoaware", "--dtype", "float16"],
            "dtype: got 'float16', expected float32 for protocol geoaware",
        ),
        (["--symmetry", "none.json"], "--symmetry: no such file"),
        (["--align-pose"], "give --symmetry FILE.json"),
        (["--fuse-channels", "1280"], "give --fuse dinov2 too"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence_before_any_work(
    spair_run, tmp_path, capsys, change, words
) -> None:
    arguments = ["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(tmp_path / "r.json"), *change]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_points_without_ids_have_no_symmetry(tmp_path, capsys) -> None:
    arguments = ["eval", "pfwillow", "--data", str(make_pfwillow(tmp_path)), *TINY, "--out", str(tmp_path / "r.json")]
    assert main([*arguments, "--align-pose"]) == 2
    assert "the points of PF-WILLOW have no ids" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a file", "/proc"])
def test_an_output_that_takes_no_files_is_refused_before_the_model_is_opened(spair_run, tmp_path, monkeypatch, place):
    """Root may write anywhere but into /proc."""
    monkeypatch.setattr(ModelOptions, "load", lambda *_: pytest.fail("the model was opened"))
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "r.json" if place == "a file" else Path("/proc/ditf/r.json")
    assert main(["eval", "spair", "--data", str(spair_run), *TINY, "--out", str(out)]) in (1, 2)


@pytest.mark.parametrize("name", ["", *BENCHMARKS, "compare"])
def test_every_help_has_an_example(name, capsys) -> None:
    assert main(["eval", *([name] if name else []), "--help"]) == 0
    assert "Example:" in capsys.readouterr().out
