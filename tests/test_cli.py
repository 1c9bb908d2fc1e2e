"""The command line: what it prints, writes and refuses. Most run in this process with a stand-in for the model."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditf
from ditf import FeatureMap
from ditf.cli import doctor, main
from ditf.cli.common import ModelOptions
from ditf.cli.extract import file_names
from ditf.cli.points import read_points
from ditf.draw import draw_matches
from ditf.errors import InputError, ModelError
from ditf.images import load_image


class StandIn:
    """Features of colours: every cell's mean colour, thrown into 16 dimensions."""

    def __call__(self, images, prompt=None):
        if not isinstance(images, list):
            return self.one(images, prompt)
        return [self.one(image, prompt and prompt[i]) for i, image in enumerate(images)]

    def one(self, image, prompt):
        image = load_image(image)
        cells = np.asarray(image.resize((16, 12), Image.Resampling.BOX), np.float32).reshape(-1, 3)
        throw = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
        return FeatureMap(
            tokens=torch.from_numpy(np.sin(cells / 40 @ throw)),
            grid=(12, 16),
            image_size=(image.height, image.width),
            block=3,
            timestep=50.0,
            card={"model": "stand-in", "config": {"prompt": prompt or ""}},
        )


@pytest.fixture
def stand_in(monkeypatch):
    """The options every load was called with."""
    calls = []

    def load(options, verbose):
        calls.append(options)
        return StandIn()

    monkeypatch.setattr(ModelOptions, "load", load)
    return calls


@pytest.fixture(autouse=True)
def _quiet_logs():
    """The commands configure logging and warnings of the whole process; put them back."""
    import logging
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
def here(tmp_path, monkeypatch):
    """A folder with two pictures, one of them turned, and one cut short."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    photo = coarse.resize((160, 120), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg")
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "other.png")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ditf_command(*arguments, folder=None, **environment):
    """A process of its own, as a user starts it."""
    root = str(Path(ditf.__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.run(
        [sys.executable, "-m", "ditf", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
    )


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("match photo.jpg", ["B"]),
        ("match photo.jpg other.png --bogus", ["--bogus"]),
        ("match photo.jpg other.png --task foo", ["--task", "semantic"]),
        ("match photo.jpg other.png --fused maybe", ["--fused", "verify"]),
        ("match photo.jpg other.png --block three", ["--block"]),
        ("match photo.jpg other.png --point abc", ["--point", "'abc'", "120,80"]),
        ("match photo.jpg other.png --point 1", ["--point", "'1'"]),
        ("match photo.jpg other.png --point 1,2,3", ["'1,2,3'"]),
        ("match photo.jpg other.png --point nan,2", ["'nan,2'", "finite"]),
        ("match photo.jpg other.png --point 160,2", ["160,2", "0..159", "photo.jpg is 160 x 120"]),
        ("match photo.jpg other.png --point -1,2", ["-1,2"]),
        ("match photo.jpg other.png --point 1,2 --points p.csv", ["--points", "--point"]),
        ("match photo.jpg other.png --points none.csv", ["none.csv", "no such file"]),
        ("match photo.jpg other.png --discard 3,x", ["--discard", "3,x"]),
        ("match photo.jpg other.png --prompt a --prompt-source b", ["--prompt"]),
        ("match photo.jpg other.png --prompt-source b", ["--prompt-target"]),
        ("match photo.jpg other.png --out picture.gif", ["picture.gif", ".png"]),
        ("match photo.jpg other.png --out missing/picture.png", ["missing", "does not exist"]),
        ("match photo.jpg other.png --out other.png", ["other.png", "one of the two"]),
        ("match photo.jpg none.png", ["none.png"]),
        ("match photo.jpg cut.jpg", ["cut.jpg", "truncated"]),
        ("extract photo.jpg", ["--out"]),
        ("extract photo.jpg none.jpg --out features", ["none.jpg"]),
        ("extract photo.jpg --out other.png", ["other.png is a file"]),
        ("extract photo.jpg --out features --model-name x", ["--model-name"]),
        ("nonsense", ["nonsense"]),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_exit_2(arguments, words, here, stand_in, capsys):
    before = sorted(here.rglob("*"))
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err
    assert stand_in == []  # refused before the model was opened
    assert sorted(here.rglob("*")) == before


def test_a_folder_that_takes_no_files_is_said_at_once(here, stand_in, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert main(["match", "photo.jpg", "other.png", "--out", "matches.png"]) == 1
    assert main(["extract", "photo.jpg", "--out", "features"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("cannot be written to (Permission denied)") == 2
    assert stand_in == []


def test_a_folder_that_cannot_be_created_is_said_at_once(here, stand_in, capsys):
    assert main(["extract", "photo.jpg", "--out", "photo.jpg/features"]) == 1
    assert "cannot be created" in capsys.readouterr().err
    assert stand_in == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModelError("nobody/nothing: unknown; try ditf-tiny"), 1, "error: nobody/nothing"),
        (InputError("block: got 99, expected 0..11"), 2, "error: block: got 99"),
        (torch.OutOfMemoryError("tried 3 GiB"), 1, "smaller --size"),
        (RuntimeError("shapes"), 1, "RuntimeError: shapes"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_a_sentence_and_a_code(error, code, words, here, monkeypatch, capsys):
    def fail(options, verbose):
        raise error

    monkeypatch.setattr(ModelOptions, "load", fail)
    assert main(["match", "photo.jpg", "other.png"]) == code
    printed = capsys.readouterr()
    assert words in printed.err or code == 130
    assert "Traceback" not in printed.err
    assert printed.out == ""
    if code == 1:
        assert main(["match", "photo.jpg", "other.png", "--verbose"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_nothing_half_written_when_drawing_fails(here, stand_in, monkeypatch):
    (here / "matches.png").write_bytes(b"an older picture")

    def fail(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr("ditf.draw.draw_matches", fail)
    assert main(["match", "photo.jpg", "other.png", "--out", "matches.png"]) == 1
    assert (here / "matches.png").read_bytes() == b"an older picture"
    assert len(list(here.iterdir())) == 4


# Points


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "1,2\n3.5,4\n"),
        ("p.csv", "x,y\n1,2\n3.5,4\n"),
        ("p.csv", "\ufeffname;Y;X\neye;2;1\n\n# a remark\nnose;4;3.5\n"),
        ("p.txt", "# points\n1\t2\n3.5\t4"),
        ("p.json", "[[1, 2], [3.5, 4]]"),
        ("p.json", '{"points": [[1, 2], [3.5, 4]]}'),
        ("p.txt", " [[1, 2], [3.5, 4]]"),
    ],
)
def test_point_files_are_read(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_points(tmp_path / name) == [(1.0, 2.0), (3.5, 4.0)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "", "no points"),
        ("p.csv", "x,y\n", "no points"),
        ("p.json", "[]", "no points"),
        ("p.csv", "1,2\n\n3;4\n", "line 3: got '3;4'"),
        ("p.csv", "1,2\n3,inf\n", "line 2"),
        ("p.csv", "x,y\n1,2,3\n", "line 2.*2 columns"),
        ("p.csv", "1,2,3\n", "line 1"),
        ("p.csv", "\x00\x01", "line 1"),
        ("p.json", "[[1, 2],\n[3, 4", "line 2.*JSON"),
        ("p.json", "[[1, 2], [3]]", "point 2"),
        ("p.json", "[[1, true]]", "point 1"),
        ("p.json", "[[1, NaN]]", "point 1"),
        ("p.json", '{"xy": []}', "no list"),
        ("p.json", "7", "no list"),
    ],
)
def test_a_wrong_line_of_a_point_file_is_named(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_points(tmp_path / name)


def test_a_binary_point_file_is_refused(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="no text"):
        read_points(tmp_path / "p.csv")


# match


def test_match_prints_one_json_document(here, stand_in, capsys):
    arguments = ["match", "photo.jpg", "other.png", "--point", "30,40", "--point", "100,80.5", "--json"]
    assert main([*arguments, "--prompt-source", "a", "--prompt-target", "b", "--out", "m.png"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == {"source": "photo.jpg", "target": "other.png"}
    assert document["source"] == [[30, 40], [100, 80.5]]
    for (x, y), (u, v) in zip(document["source"], document["target"], strict=True):
        assert abs(159 - x - u) <= 10  # the other is mirrored; a token is 10 pixels wide
        assert abs(y - v) <= 10
    assert all(-1 <= score <= 1 for score in document["score"])
    assert document["source_size"] == document["target_size"] == [120, 160]
    assert document["prompts"] == {"source": "a", "target": "b"}
    assert document["automatic_points"] is False
    assert document["card"]["model"] == "stand-in"
    assert set(document["seconds"]) == {"images", "model", "features", "match", "draw"}
    assert document["out"] == "m.png"
    with Image.open("m.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize(("name", "kind"), [("m.png", "PNG"), ("m.JPG", "JPEG"), ("m.webp", "WEBP")])
def test_the_picture_is_of_the_kind_its_name_says(name, kind, here, stand_in):
    assert main(["match", "photo.jpg", "other.png", "--out", name]) == 0
    with Image.open(name) as picture:
        assert picture.format == kind


def test_the_heat_map_is_of_the_first_point_and_peaks_at_its_match(here, stand_in, monkeypatch, capsys):
    drawn = {}

    def watch(matches, *images, **options):
        drawn.update(options, matches=matches)
        return draw_matches(matches, *images, **options)

    monkeypatch.setattr("ditf.draw.draw_matches", watch)
    points = ["--point", "30,40", "--point", "100,80"]
    assert main(["match", "photo.jpg", "other.png", *points, "--out", "m.png"]) == 0
    heat_map, matches = drawn["heat_map"], drawn["matches"]
    x, y = (int(v) for v in matches.target[0])
    assert drawn["heat_point"] == 0
    assert heat_map.shape == (120, 160)
    assert heat_map[y, x] == pytest.approx(float(matches.score[0]), abs=1e-5)
    assert heat_map[y, x] == pytest.approx(float(heat_map.max()), abs=1e-5)


def test_without_points_about_a_dozen_are_chosen(here, stand_in, capsys):
    assert main(["match", "photo.jpg", "other.png", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 8 <= len(document["source"]) <= 16
    assert document["automatic_points"] is True
    assert document["out"] is None


def test_points_come_from_a_file(here, stand_in, capsys):
    (here / "p.csv").write_text("x,y\n10,20\n30,40\n")
    assert main(["match", "photo.jpg", "photo.jpg", "--points", "p.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == [[10, 20], [30, 40]]
    (here / "p.csv").write_text("10,20\n30,400\n")
    assert main(["match", "photo.jpg", "photo.jpg", "--points", "p.csv"]) == 2
    assert "(point 2)" in capsys.readouterr().err


def test_the_table_names_every_point_in_plain_text(here, stand_in, capsys):
    assert main(["match", "photo.jpg", "other.png", "--point", "30,40", "--out", "[bold]m.png"]) == 0
    printed = capsys.readouterr().out
    assert "30, 40" in printed
    assert "cycle error" in printed
    assert "picture: [bold]m.png" in printed  # a name is not markup
    assert "\x1b" not in printed


def test_options_reach_the_model(here, stand_in):
    arguments = "--model m --task temporal --fused verify --block 4 --timestep 90 --ensemble 2 --discard 3,5 --size 96"
    assert main(["match", "photo.jpg", "other.png", *arguments.split(), "--seed", "7", "--local-files-only"]) == 0
    options = stand_in[0]
    assert (options.model, options.task, options.fused, options.local_files_only) == ("m", "temporal", "verify", True)
    assert options.overrides() == {
        "block": 4, "timestep": 90.0, "ensemble": 2, "discard": (3, 5), "size": 96, "seed": 7,
    }  # fmt: skip


def test_a_point_without_a_match_is_null_in_json_and_said_in_the_table(here, stand_in, monkeypatch, capsys):
    one = StandIn.one

    def broken(self, image, prompt):
        features = one(self, image, prompt)
        features.tokens[:, 3] = math.nan
        return features

    monkeypatch.setattr(StandIn, "one", broken)
    assert main(["match", "photo.jpg", "other.png", "--point", "30,40", "--json", "--out", "m.png"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == [None]
    assert main(["match", "photo.jpg", "other.png", "--point", "30,40"]) == 0
    assert "no match" in capsys.readouterr().out


# extract


def test_extract_writes_a_file_per_picture(here, stand_in, capsys):
    assert main(["extract", "photo.jpg", "other.png", "./photo.jpg", "--out", "new/features", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(one["file"]).name for one in document["files"]] == ["photo.safetensors", "other.safetensors"]
    assert document["failed"] == []
    features = FeatureMap.load("new/features/photo.safetensors")
    assert features.image_size == (120, 160)
    assert features.grid == tuple(document["files"][0]["grid"]) == (12, 16)


def test_extract_replaces_files_only_when_told(here, stand_in, capsys):
    assert main(["extract", "photo.jpg", "--out", "features"]) == 0
    assert "photo.safetensors" in capsys.readouterr().out
    assert main(["extract", "other.png", "photo.jpg", "--out", "features"]) == 2
    assert "1 of 2 feature files exist already" in capsys.readouterr().err
    assert len(stand_in) == 1
    assert main(["extract", "photo.jpg", "--out", "features", "--overwrite"]) == 0


def test_a_damaged_picture_does_not_stop_the_others(here, stand_in, capsys):
    assert main(["extract", "cut.jpg", "photo.jpg", "--out", "features", "--json"]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert [one["image"] for one in document["failed"]] == ["cut.jpg"]
    assert "cut.jpg" in printed.err
    assert [path.name for path in (here / "features").iterdir()] == ["photo.safetensors"]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/cat.jpg", "b/dog.jpg"], ["cat", "dog"]),
        (["a/cat.jpg", "a/cat.png"], ["cat.jpg", "cat.png"]),
        (["a/cat.jpg", "b/cat.jpg", "dog.jpg"], ["a-cat.jpg", "b-cat.jpg", "dog"]),
        (["a/Cat.jpg", "a/cat.jpg"], ["a-Cat.jpg", "a-cat.jpg-2"]),
        (["x/a/cat.jpg", "y/a/cat.jpg"], ["a-cat.jpg", "a-cat.jpg-2"]),
        (["http://h/a/cat.jpg?s=1", "b/cat.png"], ["cat.jpg", "cat.png"]),
    ],
)
def test_pictures_of_one_name_get_files_of_their_own(sources, names):
    assert file_names(sources) == [f"{name}.safetensors" for name in names]


# doctor, help


def test_doctor_tells_what_is_there_and_why(capsys):
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == bool(report["problems"])
    assert report["versions"]["ditf"] == ditf.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["devices"]["default"] in ("cpu", "cuda", "mps")
    assert report["backend"]
    assert report["extras"]["plots"]["install"] == "pip install 'ditf[plots]'"
    assert main(["doctor"]) == code
    assert "hub cache" in capsys.readouterr().out


def test_doctor_fails_where_ditf_cannot_work(monkeypatch, capsys):
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "diffusers" else known(name))
    assert main(["doctor"]) == 1
    assert "diffusers is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["match", "extract", "doctor"])
def test_every_command_has_help_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"Example:  ditf {command}" in printed


def test_ditf_alone_shows_its_commands(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert all(command in printed.out for command in ("match", "extract", "doctor"))


# The real thing, in processes of its own


def test_help_and_version_answer_without_the_libraries():
    code = (
        "import sys; from ditf.cli import main; main(['--help']); main(['match', '--help']); main(['--version'])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ditf.__version__ in done.stdout


def test_ditf_match_finds_points_of_a_shifted_picture(here):
    done = ditf_command("match", "photo.jpg", "photo.jpg", "--point", "100,80", "--json", "--out", "m.png", folder=here)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert math.dist(document["target"][0], (100, 80)) < 16
    assert document["score"][0] > 0.9
    assert document["model"] == "ditf-tiny"
    assert document["card"]["config"]["block"] >= 0
    assert done.stderr == ""
    with Image.open(here / "m.png") as picture:
        assert picture.size[0] > 600


def test_ditf_match_prints_a_plain_table_and_repeats_itself(here, capsys):
    arguments = ["match", "photo.jpg", "other.png", "--point", "30,40"]
    done = ditf_command(*arguments, "--out", "é.png", folder=here, NO_COLOR="1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert (here / "é.png").exists()
    assert main([*arguments, "--fused", "false"]) == 0
    rows = [
        next(line for line in text.splitlines() if "30, 40" in line) for text in (done.stdout, capsys.readouterr().out)
    ]
    assert rows[0].strip("|│").replace("|", "│") == rows[1].strip("|│")


def test_ditf_extract_reads_any_kind_of_picture(here):
    rng = np.random.default_rng(0)
    Image.new("L", (1, 1), 90).save(here / "dot.png")
    Image.fromarray(rng.integers(0, 255, (40, 50, 4), dtype=np.uint8), "RGBA").save(here / "clear.png")
    Image.fromarray(rng.integers(0, 65535, (40, 50), dtype=np.uint16)).save(here / "deep.png")
    Image.new("P", (30, 900)).save(here / "palette.gif")
    names = ["dot.png", "clear.png", "deep.png", "palette.gif", "cut.jpg"]
    done = ditf_command("extract", *names, "--out", "features", "--json", folder=here)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [one["image"] for one in document["failed"]] == ["cut.jpg"]
    assert len(list((here / "features").iterdir())) == 4
    assert FeatureMap.load(here / "features" / "dot.safetensors").image_size == (1, 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--block", "99"], 2, "block"),
        (["--timestep", "2000"], 2, "timestep"),
        (["--model", "nobody/nothing", "--local-files-only"], 1, "nobody/nothing"),
        (["--device", "cuda:77"], 2, "torch sees"),
        (["--device", "gpu"], 2, "expected cuda"),
        (["--size", "0"], 2, "size"),
    ],
)
def test_ditf_match_refuses_what_the_model_cannot_do(arguments, code, word, here, capsys):
    assert main(["match", "photo.jpg", "other.png", *arguments]) == code
    printed = capsys.readouterr()
    assert word in printed.err
    assert printed.err.count("error:") == 1


def test_ditf_doctor_runs_by_itself():
    done = ditf_command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bundled model" in done.stdout
