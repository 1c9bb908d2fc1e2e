"""``ditf propagate`` and ``ditf track``: what they write, print and refuse. Most run in this process with a stand-in
for the model; those that measure memory are processes of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ditf
from ditf import FeatureMap
from ditf.benchmarks.clips import make_clip
from ditf.cli import main
from ditf.cli.common import ModelOptions
from ditf.images import load_image
from ditf.video import VideoWriter, load_mask, load_tracks, open_video, save_mask

FRAMES, SIZE = 6, (48, 64)


class StandIn:
    """Features of colours: every cell's mean colour, thrown into 16 dimensions."""

    backbone = SimpleNamespace(pixels_per_token=4)

    def __init__(self, **overrides):
        self.overrides = overrides

    def replace(self, **overrides):
        return StandIn(**overrides)

    def __call__(self, image, prompt=None):
        image = load_image(image)
        cells = np.asarray(image.resize((16, 12), Image.Resampling.BOX), np.float32).reshape(-1, 3)
        throw = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
        return FeatureMap(
            tokens=torch.from_numpy(np.sin(cells / 40 @ throw)),
            grid=(12, 16),
            image_size=(image.height, image.width),
            card={"model": "stand-in", "config": {"prompt": prompt or "", **self.overrides}},
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[ModelOptions]:
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
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("diffusers", "transformers", "torch", "PIL")}
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level = before, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clip as MP4 and as pictures, its first mask, and what is wrong with others."""
    clip = make_clip(11, FRAMES, size=SIZE)
    (tmp_path / "frames").mkdir()
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for t, frame in enumerate(clip):
            image = Image.fromarray(frame.pixels)
            writer.write(image)
            image.save(tmp_path / "frames" / f"{t}.png")
    save_mask(tmp_path / "mask.png", clip[0].mask)
    save_mask(tmp_path / "empty.png", np.zeros(SIZE, np.uint8))
    save_mask(tmp_path / "small.png", np.ones((40, 64), np.uint8))
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(tmp_path / "deep.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ditf propagate


def test_every_frame_gets_a_mask_and_the_first_is_the_one_given(here, stand_in, capsys) -> None:
    assert main(["propagate", "clip.mp4", "--mask", "mask.png", "--out", "masks", "--overlay", "new/o.mp4"]) == 0
    names = [f"{t:05d}.png" for t in range(FRAMES)]
    assert sorted(p.name for p in (here / "masks").iterdir()) == [*names, "propagation.json"]
    assert (load_mask(here / "masks" / "00000.png") == load_mask(here / "mask.png")).all()
    expected = ditf.propagate_labels(
        [StandIn()(frame.image) for frame in open_video("clip.mp4")], load_mask("mask.png"), stride=4
    )  # fmt: skip
    for t, name in enumerate(names):
        assert (load_mask(here / "masks" / name) == expected[t]).all()
    overlay = open_video(here / "new" / "o.mp4")
    assert (overlay.count, overlay.size, overlay.rate) == (FRAMES, SIZE, 10)
    assert stand_in[0].task == "temporal"
    assert "6 frames, 2 objects (1, 2)" in capsys.readouterr().out


def test_json_is_one_document_with_the_protocol_and_its_sources(here, stand_in, capsys) -> None:
    arguments = [
        "propagate",
        "frames",
        "--mask",
        "mask.png",
        "--out",
        "masks",
        "--json",
        "--preset-protocol",
        "dift-sd",
    ]
    assert main([*arguments, "--radius", "3", "--frames", "4", "--prompt", "a fish"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["frames"], printed["objects"], printed["size"]) == (4, [1, 2], list(SIZE))
    protocol = printed["protocol"]
    assert (protocol["name"], protocol["radius"], protocol["topk"], protocol["stride"]) == ("dift-sd", 3, 15, 4)
    assert protocol["source"]["radius"] == "given"
    assert "side" not in protocol
    assert "DIFT" in protocol["source"]["topk"]
    assert printed["card"]["config"]["prompt"] == "a fish"
    assert set(printed["seconds"]) == {"video", "model", "features", "propagation", "write"}
    written = json.loads((here / "masks" / "propagation.json").read_text())
    assert written == {name: value for name, value in printed.items() if name not in ("seconds", "out", "overlay")}
    assert len(list((here / "masks").glob("0*.png"))) == 4


def test_frames_are_resized_as_published_when_that_is_asked_for(here, stand_in, capsys) -> None:
    arguments = ["propagate", "clip.mp4", "--mask", "mask.png", "--out", "masks", "--protocol-size", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["card"]["config"] == {"prompt": "", "resize": "stretch", "size": [960, 1280], "resample": "bilinear"}
    assert printed["protocol"]["side"] == 960
    assert main([*arguments, "--size", "64"]) == 2
    assert "--protocol-size: got --size as well" in capsys.readouterr().err


def test_masks_are_not_replaced_unasked_and_older_ones_are_named(here, stand_in, capsys) -> None:
    arguments = ["propagate", "clip.mp4", "--mask", "mask.png", "--out", "masks"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "masks holds 6 masks already, first 00000.png; give --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--frames", "3"]) == 0
    assert "still holds 3 masks of an earlier, longer run, from 00003.png on" in capsys.readouterr().err


def test_a_frame_that_cannot_be_read_stops_the_run_and_is_named(here, stand_in, capsys) -> None:
    whole = (here / "frames" / "3.png").read_bytes()
    (here / "frames" / "3.png").write_bytes(whole[: len(whole) // 2])
    assert main(["propagate", "frames", "--mask", "mask.png", "--out", "masks", "--overlay", "o.mp4"]) == 2
    assert "frame 3" in capsys.readouterr().err
    assert not (here / "o.mp4").exists()
    assert not list(here.glob(".*tmp"))
    assert len(list((here / "masks").glob("0*.png"))) == 3  # what was done stays; no card says that it is whole
    assert not (here / "masks" / "propagation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.mp4"], "video: no such file: none.mp4"),
        (["mask.png"], "has 1 frame"),
        (["clip.mp4", "--mask", "none.png"], "mask: no such file"),
        (["clip.mp4", "--mask", "empty.png"], "--mask: empty.png holds no object"),
        (["clip.mp4", "--mask", "small.png"], "--mask: small.png is 64 x 40 pixels, expected 64 x 48 as the video"),
        (["clip.mp4", "--mask", "deep.png"], "--mask: deep.png holds the value 300, expected at most 255"),
        (["clip.mp4", "--frames", "1"], "--frames: got 1, expected at least 2"),
        (["clip.mp4", "--topk", "0"], "--topk: got 0"),
        (["clip.mp4", "--n-last", "-1"], "--n-last: got -1"),
        (["clip.mp4", "--temperature", "0"], "--temperature: got 0"),
        (["clip.mp4", "--preset-protocol", "davis"], "davis"),
        (["clip.mp4", "--overlay", "o.avi"], "--overlay: got 'o.avi', expected a name that ends in .mp4"),
        (["clip.mp4", "--overlay", "clip.mp4"], "--overlay: clip.mp4 is the video itself"),
        (["clip.mp4", "--out", "mask.png"], "--out: mask.png is a file; give a folder"),
        (["frames", "--out", "frames"], "--out: frames is the folder of the frames"),
    ],
)
def test_what_cannot_be_propagated_is_refused_before_the_model_is_loaded(
    here, stand_in, capsys, arguments, words
) -> None:
    given = ["propagate", *arguments]
    given += [] if "--mask" in given else ["--mask", "mask.png"]
    given += [] if "--out" in given else ["--out", "masks"]
    assert main(given) == 2
    assert words in capsys.readouterr().err
    assert not stand_in
    assert (here / "clip.mp4").stat().st_size > 1000
    assert not (here / "masks").exists()


# ditf track


def test_tracks_come_as_a_table_arrays_and_a_card(here, stand_in, capsys) -> None:
    Path("points.csv").write_text("x,y\n12,13\n40.5,30\n")
    arguments = ["track", "clip.mp4", "--points", "points.csv", "--out", "t", "--overlay", "t/o.mp4", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = ditf.track_points([StandIn()(f.image) for f in open_video("clip.mp4")], [(12, 13), (40.5, 30)])
    tracks = load_tracks("t/tracks.npz")
    assert torch.allclose(tracks.points, expected.points)
    assert (tracks.visible == expected.visible).all()
    assert tracks.image_size == SIZE
    assert printed["tracks"]["points"] == tracks.points.tolist()
    assert printed["visible"] == tracks.visible.float().mean(0).tolist()
    rows = Path("t/tracks.csv").read_text().splitlines()
    assert rows[0] == "frame,time,point,x,y,visible,score"
    assert rows[1].startswith("0,0.000000,0,12.000,13.000,1,")
    assert rows[3].startswith("1,0.100000,0,")
    assert len(rows) == 1 + 2 * FRAMES
    card = json.loads(Path("t/tracks.json").read_text())
    assert card["tracking"] == {"mode": "direct", "radius": 8.0, "cycle_tolerance": 1.5}
    assert card["card"]["model"] == "stand-in"
    assert open_video("t/o.mp4").count == FRAMES
    assert stand_in[0].task == "temporal"


@pytest.mark.parametrize("mode", ["direct", "chained", "window"])
def test_every_mode_prints_a_row_per_point(here, stand_in, capsys, mode: str) -> None:
    assert main(["track", "frames", "--point", "10,20", "--point", "30,7", "--out", "t", "--mode", mode]) == 0
    out = capsys.readouterr().out
    assert "2 points in 6 frames" in out
    assert "10, 20" in out
    assert main(["track", "frames", "--point", "10,20", "--out", "t"]) == 2
    assert "t holds tracks.csv already; give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--point: missing; give --point x,y (repeatable) or --points FILE"),
        (["--point", "64,3"], "--point: got 64,3, expected x in 0..63 and y in 0..47"),
        (["--point", "a,3"], "--point: got 'a,3'"),
        (["--points", "none.csv"], "--points: no such file"),
        (["--point", "1,1", "--points", "none.csv"], "give one of the two"),
        (["--point", "1,1", "--radius", "0"], "--radius: got 0"),
        (["--point", "1,1", "--cycle-tolerance", "-1"], "--cycle-tolerance: got -1"),
        (["--point", "1,1", "--mode", "flow"], "flow"),
        (["--point", "1,1", "--overlay", "o.gif"], "ends in .mp4"),
    ],
)
def test_what_cannot_be_tracked_is_refused_before_the_model_is_loaded(here, stand_in, capsys, arguments, words) -> None:
    assert main(["track", "clip.mp4", "--out", "t", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not stand_in
    assert not (here / "t").exists()


# Processes of their own

_MEASURED = """
import json, resource, sys
from ditf.cli import main
code = main(sys.argv[1:])
print("peak", code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
TINY = ["--size", "32", "--block", "1", "--ensemble", "1", "--discard", "none", "--seed", "0"]


def measured(*arguments: str, folder: Path) -> tuple[str, float]:
    """What a run prints, and its largest resident memory in MB."""
    root = str(Path(ditf.__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    code, peak = done.stderr.split("peak ")[-1].split()[:2]
    assert code == "0", done.stderr
    return done.stdout, int(peak) / 1024


def write_clip(path: Path, length: int, size=(32, 48)) -> None:
    clip = make_clip(12, length, size=size)
    with VideoWriter(path, 25) as writer:
        for frame in clip:
            writer.write(Image.fromarray(frame.pixels))
    save_mask(path.with_suffix(".png"), clip[0].mask)


def test_the_bundled_model_carries_a_mask_and_points_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 4)
    out, _ = measured("propagate", "clip.mp4", "--mask", "clip.png", "--out", "masks", "--json", *TINY, folder=tmp_path)
    document = json.loads(out)
    assert document["frames"] == 4
    assert document["card"]["model"] == "ditf-tiny"
    assert document["card"]["config"]["block"] == 1
    assert document["protocol"]["stride"] == 4
    assert {"00000.png", "00003.png"} <= {p.name for p in (tmp_path / "masks").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["propagate", "track"])
def test_memory_does_not_grow_with_the_video(tmp_path: Path, command: str) -> None:
    write_clip(tmp_path / "clip.mp4", 2000)
    given = ["--mask", "clip.png"] if command == "propagate" else ["--point", "20,12", "--point", "30,20"]
    peaks = []
    for frames in ("60", "2000"):
        arguments = [command, "clip.mp4", *given, "--out", frames, "--overlay", f"{frames}.mp4", "--frames", frames]
        peaks.append(measured(*arguments, *TINY, folder=tmp_path)[1])
        assert open_video(tmp_path / f"{frames}.mp4").count == int(frames)
    print(f"{command}: {peaks[0]:.0f} MB for 60 frames, {peaks[1]:.0f} MB for 2000")
    assert peaks[1] <= 1.2 * peaks[0]
