"""``ditf match``: homographies, dense matches, more of each match, and files for other programs.

Most run in this process, with features that say where a place lies in the first picture.
"""

import csv
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import ditf
from ditf import FeatureMap, Homography
from ditf.cli import main
from ditf.cli.common import ModelOptions
from ditf.exports import load_matches
from ditf.images import load_image
from ditf.matching import token_centres

SOURCE_SIZE, TARGET_SIZE = (120, 160), (130, 150)
TRUE = Homography(torch.tensor([[0.8, -0.25, 35.0], [0.25, 0.75, 5.0], [2e-4, 0, 1]]))


class Oracle:
    """Random Fourier features of a place's true coordinates in the first picture."""

    def __call__(self, images, prompt=None):
        return [self.one(load_image(image)) for image in images]

    def one(self, image):
        size = (image.height, image.width)
        frame = FeatureMap(torch.zeros(15 * 20, 1), (15, 20), size, block=3, timestep=50.0, card={"model": "oracle"})
        places = token_centres(frame).double()
        if size == TARGET_SIZE:
            places = TRUE.inverse().apply(places)
        random = np.random.default_rng(0)
        waves = places.numpy() @ (random.normal(size=(2, 128)) / 12.0) + random.uniform(0, 2 * np.pi, 128)
        return FeatureMap(
            torch.from_numpy(np.cos(waves)).float(), (15, 20), size, block=3, timestep=50.0, card={"model": "oracle"}
        )


@pytest.fixture(autouse=True)
def _oracle(monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda options, verbose: Oracle())


@pytest.fixture(autouse=True)
def _quiet_logs():
    """The command configures logging and warnings of the whole process; put them back."""
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
    random = np.random.default_rng(1)
    coarse = Image.fromarray(random.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    photo = coarse.resize(SOURCE_SIZE[::-1], Image.Resampling.BICUBIC)
    photo.save(tmp_path / "a.png")
    TRUE.warp(photo, TARGET_SIZE).save(tmp_path / "b.png")
    (tmp_path / "blank name.png").write_bytes((tmp_path / "b.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments, code=0):
    assert main(["match", "a.png", "b.png", *map(str, arguments)]) == code
    return capsys.readouterr()


def document(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json").out)


# Homographies


def test_the_homography_is_found_printed_drawn_and_applied(here, capsys):
    found = document(capsys, "--homography", "--out", "h.png", "--warped", "w.png")
    homography = Homography(torch.tensor(found["homography"]["matrix"]))
    assert homography.corner_error(TRUE, SOURCE_SIZE) < 1.5
    assert len(found["homography"]["inliers"]) > 0.7 * len(found["source"]) > 50
    warped, goal = (np.asarray(Image.open(here / name).convert("RGB"), float) for name in ("w.png", "b.png"))
    assert warped.shape == goal.shape
    shown = (goal.sum(-1) > 0) & (warped.sum(-1) > 0)
    assert np.abs(warped - goal)[shown].mean() < 8
    printed = run(capsys, "--homography").out
    assert "matches agree" in printed
    assert f"{homography.matrix[0, 2]:.6g}" in printed


def test_points_at_hand_give_the_homography_of_these_points(here, capsys):
    points = ["--point", "10,10", "--point", "150,8", "--point", "140,110", "--point", "20,100", "--point", "80,60"]
    found = document(capsys, *points, "--homography", "--refine", "window-soft")
    assert len(found["source"]) == 5
    assert Homography(torch.tensor(found["homography"]["matrix"])).corner_error(TRUE, SOURCE_SIZE) < 6


@pytest.mark.parametrize(
    ("points", "words"), [([(1, 1), (9, 9), (50, 3)], "3 usable"), ([(i * 9, i * 9) for i in range(1, 12)], "line")]
)
def test_what_gives_no_homography_is_said_and_is_no_failure(here, capsys, points, words):
    (here / "p.json").write_text(json.dumps(points))
    found = document(capsys, "--points", "p.json", "--homography", "--out", "h.png", "--warped", "w.png")
    assert found["homography"]["matrix"] is None
    assert words in found["homography"]["reason"]
    assert "warped" not in found
    assert not (here / "w.png").exists()
    assert (here / "h.png").exists()
    assert words in run(capsys, "--points", "p.json", "--homography").out


# More of each match


def test_topk_refine_and_cycle_reach_the_matcher(here, capsys):
    found = document(capsys, "--point", "40,50", "--point", "90,70", "--topk", "3", "--refine", "window-soft")
    assert np.shape(found["topk"]) == (2, 3, 3)
    truth = TRUE.apply([(40, 50), (90, 70)]).tolist()
    assert all(math.dist(a, b) < 4 for a, b in zip(found["target"], truth, strict=True))
    assert any(value % 1 for value in found["target"][0])
    assert "dropped" not in found


def test_cycle_keeps_what_leads_back_and_counts_the_rest(here, capsys):
    everything = document(capsys, "--keypoints", "grid")
    kept = document(capsys, "--keypoints", "grid", "--cycle")
    limit = 0.05 * max(SOURCE_SIZE)
    back = [error is not None and error <= limit for error in everything["cycle_error"]]
    assert 0 < sum(back) < len(back)
    assert kept["source"] == [p for p, ok in zip(everything["source"], back, strict=True) if ok]
    assert kept["dropped"] == back.count(False)
    assert f"{back.count(False)} points left out" in run(capsys, "--keypoints", "grid", "--cycle").out


def test_nothing_that_leads_back_is_an_empty_result(here, capsys, monkeypatch):
    monkeypatch.setattr("ditf.cli.match._CYCLE_SHARE", -1.0)
    found = document(capsys, "--cycle", "--out", "m.png", "--export", "m.csv", "--export-colmap", "c")
    assert found["source"] == []
    assert len(load_matches(here / "m.csv")) == 0
    assert (here / "m.png").exists()


@pytest.mark.parametrize(("kind", "least"), [("distinctive", 5), ("mutual", 50), ("grid", 300), ("sift", 5)])
def test_every_kind_of_keypoints_lies_in_the_picture(here, capsys, kind, least):
    found = document(capsys, "--keypoints", kind)
    points = np.array(found["source"])
    assert len(points) >= least
    assert (points >= 0).all()
    assert (points <= [SOURCE_SIZE[1] - 1, SOURCE_SIZE[0] - 1]).all()
    assert found["automatic_points"]


def test_a_long_table_says_how_much_it_leaves_out(here, capsys):
    assert "and 260 more" in run(capsys, "--keypoints", "grid").out


# Dense


def test_dense_matches_are_drawn_warped_and_exported(here, capsys):
    found = document(capsys, "--dense", "--out", "d.png", "--warped", "w.png", "--export", "d.npz")
    assert found["grid"] == [15, 20]
    assert len(found["target"]) == 300
    assert Image.open(here / "w.png").size == SOURCE_SIZE[::-1]
    with np.load(here / "d.npz") as arrays:
        assert arrays["target"].tolist() == np.float32(found["target"]).tolist()
    frame = FeatureMap(torch.zeros(300, 1), (15, 20), SOURCE_SIZE)
    assert found["source"] == token_centres(frame).tolist()
    assert Image.open(here / "d.png").width > 700


def test_dense_matches_of_every_pixel_are_those_of_the_library(here, capsys):
    found = document(capsys, "--dense", "--resolution", "image", "--warped", "w.png")
    features = [Oracle().one(load_image(here / name)) for name in ("a.png", "b.png")]
    assert found["resolution"] == "image"
    assert found["grid"] == list(SOURCE_SIZE)
    assert found["target"] == ditf.match_dense(*features, resolution="image").target.reshape(-1, 2).tolist()


def test_dense_matches_that_do_not_lead_back_are_none_with_cycle(here, capsys):
    everything = document(capsys, "--dense")
    kept = document(capsys, "--dense", "--cycle", "--out", "d.png")
    back = [error is not None and error <= 0.05 * max(SOURCE_SIZE) for error in everything["cycle_error"]]
    assert 0 < kept["dropped"] == back.count(False) < 300
    assert kept["target"] == [t for t, ok in zip(everything["target"], back, strict=True) if ok]


def test_dense_matches_give_a_homography_too(here, capsys):
    found = document(capsys, "--dense", "--homography")
    assert Homography(torch.tensor(found["homography"]["matrix"])).corner_error(TRUE, SOURCE_SIZE) < 1.5


# Files for other programs


def test_every_export_holds_the_matches_of_the_document(here, capsys):
    files = [flag for name in ("m.json", "m.csv", "m.npz", "m.h5") for flag in ("--export", name)]
    found = document(capsys, *files, "--export-colmap", "colmap", "--export-hloc", "hloc")
    for name in ("m.json", "m.csv", "m.npz", "m.h5"):
        matches = load_matches(here / name)
        assert matches.source.tolist() == np.float32(found["source"]).tolist()
        assert matches.target.tolist() == np.float32(found["target"]).tolist()
    assert found["exported"][:4] == ["m.json", "m.csv", "m.npz", "m.h5"]
    assert all(Path(name).exists() for name in found["exported"])
    first = (here / "colmap" / "features" / "a.png.txt").read_text().splitlines()[1].split()[:2]
    assert [float(v) - 0.5 for v in first] == np.float32(found["source"][0]).tolist()
    with h5py.File(here / "hloc" / "features.h5") as file:
        assert file["a.png"]["keypoints"][0].tolist() == np.float32(found["source"][0]).tolist()
    assert (here / "hloc" / "pairs.txt").read_text() == "a.png b.png\n"
    assert len(found["source"]) > 50  # for reconstruction, all that match both ways


def test_an_export_with_a_homography_marks_its_inliers(here, capsys):
    found = document(capsys, "--homography", "--export", "m.csv")
    rows = list(csv.DictReader((here / "m.csv").open()))
    assert [i for i, row in enumerate(rows) if row["inlier"] == "1"] == found["homography"]["inliers"]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--export", "m.txt"], ["--export", "m.txt", ".json"]),
        (["--export", "none/m.csv"], ["--export", "does not exist"]),
        (["--export", "m.csv", "--export", "m.doc"], ["m.doc"]),
        (["--export-colmap", "a.png"], ["--export-colmap", "is a file"]),
        (["--warped", "w.png"], ["--warped", "--homography"]),
        (["--homography", "--warped", "w.gif"], ["--warped", "w.gif"]),
        (["--homography", "--warped", "a.png"], ["one of the two"]),
        (["--dense", "--point", "1,2"], ["--point", "--dense"]),
        (["--resolution", "image"], ["--resolution", "--dense"]),
        (["--dense", "--topk", "2"], ["--topk", "--dense"]),
        (["--dense", "--refine", "soft"], ["--refine", "--dense"]),
        (["--topk", "0"], ["topk"]),
        (["--refine", "best"], ["--refine", "window-soft"]),
        (["--keypoints", "corners"], ["--keypoints", "sift"]),
        (["--keypoints", "grid", "--point", "1,2"], ["--keypoints"]),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(here, capsys, arguments, words, monkeypatch):
    monkeypatch.setattr(ModelOptions, "load", lambda *_: pytest.fail("a model was loaded"))
    said = run(capsys, *arguments, code=2)
    assert said.out == ""
    assert all(word in said.err for word in words)
    assert said.err.count("error:") == 1


def test_a_name_with_blanks_is_refused_for_reconstruction(here, capsys):
    assert main(["match", "a.png", "blank name.png", "--export-colmap", "c"]) == 2
    assert "rename the picture" in capsys.readouterr().err
    assert main(["match", "a.png", "a.png", "--export-hloc", "c"]) == 2
    assert "two different" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("h5py", ["--export", "m.h5"], "export"),
        ("h5py", ["--export-hloc", "h"], "export"),
        ("cv2", ["--homography"], "geometry"),
        ("cv2", ["--keypoints", "sift"], "geometry"),
    ],
)
def test_a_missing_extra_is_named_before_any_work(here, capsys, monkeypatch, module, arguments, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(ModelOptions, "load", lambda *_: pytest.fail("a model was loaded"))
    assert f'pip install "ditf[{extra}]"' in run(capsys, *arguments, code=2).err


def test_the_command_does_it_all_with_the_bundled_model(here):
    root = str(Path(ditf.__file__).parents[1])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ditf",
            "match",
            "a.png",
            "b.png",
            "--homography",
            "--keypoints",
            "sift",
            "--export",
            "m.csv",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=here,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"] == "ditf-tiny"
    assert set(found["homography"]) == {"found", "matrix", "inliers", "reason"}
    assert len(load_matches(here / "m.csv")) == len(found["source"]) > 10
