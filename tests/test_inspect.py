"""``ditf inspect``: its tables, its files, and what it refuses."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from PIL import Image

from ditf.cli import main
from ditf.tiny.scenes import sample_scene

SMALL = ("--size", "32", "--ensemble", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _quiet_logs():
    """The command configures logging and warnings of the whole process; put them back."""
    import warnings

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("diffusers", "transformers", "torch", "PIL")}
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level = before, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{seed}.png" for seed in range(8)]
    for seed, path in enumerate(paths):
        Image.fromarray(sample_scene(seed, 64).pixels).save(path)
    return [str(path) for path in paths]


def test_the_table_names_the_massive_channel(photos, capsys) -> None:
    assert main(["inspect", *photos, *SMALL, "--block", "5", "--timestep", "20"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "yes" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:4] == ["5", "20", "91", "yes"]


def test_files_hold_what_is_printed(photos, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "made" / "here"
    asked = ("--blocks", "0,5", "--timesteps", "20,300", "--out", str(out), "--json")
    assert main(["inspect", *photos, *SMALL, *asked]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["channels"] == [91]
    assert [(layer["block"], layer["timestep"]) for layer in document["layers"]] == [
        (0, 20),
        (5, 20),
        (0, 300),
        (5, 300),
    ]
    assert [layer["channels"] for layer in document["layers"]] == [[], [91], [], [91]]
    assert {layer["images"] for layer in document["layers"]} == {8}
    plots = {f"block-0{block}-timestep-{t}.png" for block in (0, 5) for t in (20, 300)}
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "map.png", *plots}
    assert sorted(document["files"]) == sorted(str(path) for path in out.iterdir())
    written = json.loads((out / "report.json").read_text())
    assert written == {name: document[name] for name in written}
    assert "| 5 | 20 | 91 | yes |" in (out / "report.md").read_text()
    with Image.open(out / "map.png") as picture:
        picture.verify()


def test_equal_runs_write_equal_files(photos, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        assert main(["inspect", *photos, *SMALL, "--out", str(folder)]) == 0
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_all_blocks_and_no_pictures_take_the_whole_model_and_the_bundled_ones(capsys) -> None:
    assert main(["inspect", *SMALL, "--blocks", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [layer["block"] for layer in document["layers"]] == list(range(8))
    assert document["layers"][0]["images"] == 16


def test_without_matplotlib_the_rest_is_written(photos, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["inspect", *photos, *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert "pip install" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png",), "no such file: missing.png"),
        (("--blocks", "a"), "--blocks: got 'a', expected all, or block numbers"),
        (("--blocks", "8"), "block: got 8"),
        (("--blocks", "1,1"), "blocks: got [1, 1], expected distinct"),
        (("--blocks", "1", "--block", "2"), "--blocks: got --block as well"),
        (("--timesteps", "x"), "--timesteps: got 'x', expected noise levels"),
        (("--timesteps", "20", "--timestep", "20"), "--timesteps: got --timestep as well"),
        (("--timesteps", "2000"), "timestep: got 2000"),
        (("--ratio", "0"), "ratio: got 0"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, message, capsys) -> None:
    assert main(["inspect", *SMALL, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_work(photos, capsys) -> None:
    assert main(["inspect", *photos, "--out", photos[0]]) == 2
    assert "--out:" in capsys.readouterr().err
