"""``ditf eval davis``: moving squares with known J and F, features that know the answer, and damaged folders."""

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

from ditf import FeatureExtractor, FeatureMap, InputError, ModelError, StoreError
from ditf.benchmarks import davis
from ditf.benchmarks.davis import Frame, protocols, read, settings_for
from ditf.benchmarks.davis_methods import ModelVideo, PatchVideo, frame_size, resized
from ditf.benchmarks.davis_pictures import draw_objects, shown_frames
from ditf.benchmarks.davis_results import over_objects, video_document
from ditf.benchmarks.davis_runner import COPY, evaluate_videos, object_scores
from ditf.benchmarks.registry import benchmark_of_folder, find_benchmark
from ditf.benchmarks.sheets import GAP, LABEL
from ditf.cli import main
from ditf.video import palette, save_mask

from .minis import fourier, moved, texture, write_image

SIZE = H, W = (64, 96)
FRAMES = 4
STRIDE = 8
TINY = ["--model", "ditf-tiny", "--device", "cpu", "--ensemble", "1", "--size", "32"]
RESULTS = ("r.json", "r.global.csv", "r.objects.csv", "r.md", "r.tex", "r.png")
MASKS = ("ditf-tiny", "pixel-patches")


def block_mask(t: int) -> np.ndarray:
    """A block that moves a cell a frame, and an object in the corner that stays."""
    mask = np.zeros(SIZE, np.uint8)
    mask[16:48, 8 + 8 * t : 40 + 8 * t] = 1
    mask[0:8, 80:96] = 2
    return mask


def half_mask(t: int) -> np.ndarray:
    return np.where(np.arange(W) < 48, 1, 0).astype(np.uint8)[None].repeat(H, 0)


VIDEOS = {"half-plane": half_mask, "moving-block": block_mask}


def make_davis(folder: Path, videos: dict | None = None, frames: int = FRAMES) -> Path:
    root, videos = folder / "DAVIS", VIDEOS if videos is None else videos
    for name, mask in videos.items():
        (root / "Annotations/480p" / name).mkdir(parents=True, exist_ok=True)
        for t in range(frames):
            write_image(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", moved(texture(H, W, 2), 8 * t, 0))
            save_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask(t))
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in videos))
    (root / "ImageSets/2017/train.txt").write_text("")
    return root


class Known:
    """Features of what a token shows: which object, and where on it."""

    name, stride = "oracle", STRIDE

    def __init__(self) -> None:
        self.seen: list[str] = []

    def about(self) -> dict:
        return {"oracle": 1}

    def features(self, frame: Frame) -> FeatureMap:
        self.seen.append(f"{frame.sequence}/{frame.name}")
        mask = VIDEOS.get(frame.sequence, half_mask)(frame.index)[4::8, 4::8].astype(np.int64)  # (h, w)
        h, w = mask.shape
        x, y = torch.arange(w) * 8.0, torch.arange(h)[:, None] * 8.0
        moving = torch.from_numpy(mask == 1) & (frame.sequence == "moving-block")
        place = torch.stack([x.expand(h, w) - 8.0 * frame.index * moving, y.expand(h, w)], -1).double()
        which = torch.eye(3, dtype=torch.float64)[torch.from_numpy(mask)]
        tokens = torch.cat([fourier(place) * 0.5, which * 2], -1).flatten(0, 1).float()
        return FeatureMap(tokens=tokens, grid=(h, w), image_size=SIZE)


def run(root: Path, folder: Path, name: str = "ditf", methods: list | None = None, **changes):
    videos = read(root, "val")
    return evaluate_videos(
        methods or [Known()], videos, protocols[name].replace(**changes), name=name, folder=folder,
        masks=folder / "masks",
    )  # fmt: skip


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


def test_the_copied_first_mask_scores_what_the_official_evaluation_gives(tmp_path) -> None:
    """J of the block is (32 - 8t) / (32 + 8t) in frames 1 and 2; the first and last frames do not count."""
    scores = run(make_davis(tmp_path), tmp_path / "work").scores[COPY]
    assert [(one.sequence, one.object) for one in scores] == [
        ("half-plane", 1),
        ("moving-block", 1),
        ("moving-block", 2),
    ]
    assert [one.j for one in scores] == pytest.approx([1, (24 / 40 + 16 / 48) / 2, 1])
    assert [one.f for one in scores] == pytest.approx([1, (0.421875 + 0.296875) / 2, 1])
    assert [one.j_recall for one in scores] == [1, 0.5, 1]
    assert [one.j_decay for one in scores] == pytest.approx([0, 24 / 40 - 16 / 48, 0])
    found = over_objects(scores)
    assert found["j_and_f"] == pytest.approx(80.4340, abs=1e-3)  # over objects; over sequences it would be 85.3


@pytest.mark.parametrize(
    "changes", [{}, {"radius": 0}, {"radius": 2, "topk": 1}, {"n_last": 0}, {"n_last": 28, "temperature": 0.2}]
)
def test_an_edge_between_cells_that_stays_is_kept_whatever_the_settings(tmp_path, changes) -> None:
    root = make_davis(tmp_path, {"half-plane": half_mask})
    [one] = run(root, tmp_path / "work", **changes).scores["oracle"]
    assert (one.j, one.f) == (1, 1)


def test_followed_blocks_lose_their_corners_to_the_grid_and_nothing_else(tmp_path) -> None:
    """Six pixels of a convex corner are nearer to half of nothing: the upsampled label maps round it."""
    scores = run(make_davis(tmp_path), tmp_path / "work").scores["oracle"]
    assert [one.j for one in scores] == pytest.approx([1, (1024 - 24) / 1024, (128 - 6) / 128])
    assert [one.j_recall for one in scores] == [1, 1, 1]
    assert [abs(one.j_decay) for one in scores] == pytest.approx([0, 0, 0])


def test_written_masks_get_the_same_scores_from_another_evaluation(tmp_path) -> None:
    """vos-benchmark reads the folders as DAVIS's own code does."""
    from vos_benchmark.benchmark import benchmark

    root = make_davis(tmp_path)
    found = over_objects(run(root, tmp_path / "work").scores["oracle"])
    folders = [str(root / "Annotations/480p")], [str(tmp_path / "work/masks/oracle")]
    theirs = benchmark(*folders, num_processes=1, verbose=False)
    assert [float(v[0]) for v in theirs[:3]] == pytest.approx([found["j_and_f"], found["j"], found["f"]], abs=0.051)


# --- what is written -------------------------------------------------------------------------------------------------


def test_masks_are_indexed_png_in_the_official_layout(tmp_path) -> None:
    root = make_davis(tmp_path)
    run(root, tmp_path / "work")
    folder = tmp_path / "work/masks/oracle/moving-block"
    assert sorted(path.name for path in folder.iterdir()) == [f"{t:05d}.png" for t in range(FRAMES)]
    for t in range(FRAMES):
        with Image.open(folder / f"{t:05d}.png") as image:
            assert (image.mode, image.size) == ("P", (W, H))
            assert image.getpalette() == palette().ravel().tolist()
            ids = np.asarray(image)
        assert set(np.unique(ids)) == {0, 1, 2}
        assert (ids != block_mask(t)).sum() == (0 if t == 0 else 30)


def test_frames_are_read_one_at_a_time(tmp_path) -> None:
    folder, written = tmp_path / "work/masks/oracle/half-plane", []

    class Watching(Known):
        def features(self, frame: Frame) -> FeatureMap:
            written.append(len(list(folder.glob("*.png"))))
            return super().features(frame)

    run(make_davis(tmp_path, {"half-plane": half_mask}), tmp_path / "work", methods=[Watching()])
    assert written == [0, 1, 2, 3]


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("dino", (480, 854), (480, 832)), ("dift-sd", (480, 854), (480, 832)), ("ditf", (480, 854), (960, 1696)),
        ("dino", (480, 910), (480, 896)), ("dift-adm", (480, 910), (480, 896)), ("ditf", (480, 910), (960, 1792)),
        ("dino", (480, 1152), (480, 1152)), ("ditf", (480, 1152), (960, 2304)),
        ("dino", (480, 480), (480, 448)), ("dift-sd", (480, 480), (480, 480)), ("ditf", (480, 480), (960, 960)),
        ("ditf", (854, 480), (1696, 960)), ("dino", (64, 4), (7680, 480)),
    ],
)  # fmt: skip
def test_frames_get_the_published_sizes(name, size, expected) -> None:
    protocol = protocols[name]
    assert protocol.side is not None
    assert frame_size(size, protocol.side, protocol.multiple) == expected


@pytest.mark.parametrize("size", [(48, 64), (200, 300), (64, 90)])
def test_frames_are_resized_as_opencv_does_and_not_as_pillow(size) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    found = resized(pixels, size).astype(int)
    theirs = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(found - theirs).max() <= 1
    if size[0] < H:
        averaged = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(averaged - theirs).max() > 20


def test_dift_and_ditf_look_at_ten_last_frames_in_shooting_and_dino_does_not() -> None:
    last = {name: [settings_for(name, p, s).n_last for s in ("shooting", "dogs-jump")] for name, p in protocols.items()}
    assert last == {"ditf": [7, 7], "dino": [7, 7], "dift-sd": [10, 28], "dift-adm": [10, 28]}
    longer = {name: settings_for(name, p.replace(n_last=20), "shooting").n_last for name, p in protocols.items()}
    assert longer == {"ditf": 10, "dino": 20, "dift-sd": 10, "dift-adm": 10}


def test_the_exception_for_shooting_reaches_the_propagation_and_the_result(tmp_path, monkeypatch) -> None:
    from ditf.benchmarks import davis_runner

    used, original = [], davis_runner.iter_labels
    monkeypatch.setattr(
        davis_runner,
        "iter_labels",
        lambda *a, preset: used.append((preset.n_last, preset.stride)) or original(*a, preset=preset),
    )
    root = make_davis(tmp_path, {"shooting": half_mask, "half-plane": half_mask})
    evaluation = run(root, tmp_path / "work", "dift-sd")
    assert used == [(10, STRIDE), (28, STRIDE)]
    document = video_document(evaluation, read(root, "val"), {"title": "DAVIS"}, name="dift-sd", card={})
    assert document["protocol"]["exceptions"] == {"shooting": {"n_last": 10}}


def test_void_is_background_and_ids_that_come_later_do_not_count(tmp_path) -> None:
    def with_void(t: int) -> np.ndarray:
        mask = half_mask(t)
        mask[:8, :8] = 255
        if t == 2:
            mask[56:, 88:] = 3
        return mask

    root = make_davis(tmp_path, {"half-plane": with_void})
    [one] = run(root, tmp_path / "work").scores[COPY]
    assert (one.object, one.j, one.f) == (1, 1, 1)
    given = np.asarray(Image.open(tmp_path / "work/masks/oracle/half-plane/00000.png"))
    assert given.max() == 1
    assert not given[:8, :8].any()  # what was void is no part of the object


def test_one_objects_recall_and_decay_are_its_own() -> None:
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[:, :4], truth[:, 4:] = 1, 2
    predicted = truth.copy()
    predicted[3:, 4:] = 0  # the second object is lost half-way
    first, second = object_scores("a", predicted, truth)
    assert (first.j, first.j_recall, first.j_decay) == (1, 1, 0)
    assert (second.j, second.j_recall, second.j_decay) == (0.5, 0.5, 1)


def test_the_models_frames_are_upright_as_stored_and_of_the_protocols_size(tmp_path) -> None:
    fx = FeatureExtractor.from_pretrained("ditf-tiny", task="temporal", device="cpu", ensemble=1)
    root = make_davis(tmp_path, {"half-plane": half_mask})
    frame = read(root, "val").videos[0].frames[0]
    own = ModelVideo("own", fx, protocols["ditf"])
    assert (own.side, own.card()["size_from"]) == (fx.config.size, f"{fx.preset.source['size']}; the protocol says 960")
    small = ModelVideo("small", fx, protocols["ditf"], side=32, prompt="a {category}")
    features = small.features(frame)
    assert (features.grid, features.image_size) == ((8, 8), SIZE)  # 32 x 32: 48 rounded down to 32
    assert (small.prompt, small.stride) == ("a image", 4)
    with pytest.raises(InputError, match="--size"):
        ModelVideo("odd", fx, protocols["ditf"], side=33)
    assert PatchVideo().features(frame).grid == (8, 12)


# --- folders ---------------------------------------------------------------------------------------------------------


IMAGES, MASKED = "JPEGImages/480p/bad", "Annotations/480p/bad"
DAMAGE = {
    "a frame in between": (lambda r: (r / f"{IMAGES}/00002.jpg").unlink(), "missing image", "bad/00002.jpg"),
    "the last mask": (lambda r: (r / f"{MASKED}/00003.png").unlink(), "missing annotation", "bad/00003.png"),
    "the first mask": (lambda r: (r / f"{MASKED}/00000.png").unlink(), "missing annotation", "bad/00000.png"),
    "half a frame": (
        lambda r: (r / f"{IMAGES}/00001.jpg").write_bytes(b"\xff\xd8 half"), "unreadable image", "00001.jpg",
    ),
    "half a mask": (
        lambda r: (r / f"{MASKED}/00001.png").write_bytes(b"\x89PNG"), "malformed annotation", "bad/00001.png",
    ),
    "a mask in colours": (
        lambda r: write_image(r / f"{MASKED}/00001.png", texture(H, W, 1)), "malformed annotation",
        "bad/00001.png",
    ),
    "a frame of another size": (
        lambda r: write_image(r / f"{IMAGES}/00002.jpg", texture(W, H, 1)),
        "frame of another size than the first", "bad/00002.jpg",
    ),
    "a mask of another size": (
        lambda r: save_mask(r / f"{MASKED}/00002.png", half_mask(0)[:, :90]),
        "mask of another size than its frame", "bad/00002.png",
    ),
    "no object": (
        lambda r: save_mask(r / f"{MASKED}/00000.png", 0 * half_mask(0)), "first mask without an object",
        "bad",
    ),
    "two frames": (
        lambda r: [(r / kind / f"{t:05d}{end}").unlink() for t in (2, 3)
                   for kind, end in ((IMAGES, ".jpg"), (MASKED, ".png"))],
        "sequence of fewer than 3 frames", "bad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_sequence_is_named_and_the_others_are_scored(tmp_path, what) -> None:
    root = make_davis(tmp_path, {"bad": half_mask, "half-plane": half_mask})
    break_it, kind, name = DAMAGE[what]
    break_it(root)
    videos = read(root, "val")
    assert [video.name for video in videos.videos] == ["half-plane"]
    assert videos.left_out == ("bad",)
    assert list(videos.problems.to_dict()) == [kind]
    assert videos.problems.names(kind)[0].endswith(name)
    evaluation = run(root, tmp_path / "work")
    document = video_document(evaluation, videos, {"title": "DAVIS"}, name="ditf", card={})
    assert (document["complete"], document["left_out"], document["counts"]["objects"]) == (False, ["bad"], 1)


def test_a_listed_sequence_without_folders_is_missing_and_an_unlisted_one_is_not_looked_at(tmp_path) -> None:
    root = make_davis(tmp_path)
    (root / "ImageSets/2017/val.txt").write_text("half-plane\n\ngone\nhalf-plane\n")
    videos = read(root, "val")
    assert [video.name for video in videos.videos] == ["half-plane"]
    assert videos.problems.names("missing image") == ["JPEGImages/480p/gone"]
    assert videos.problems.names("missing annotation") == ["Annotations/480p/gone"]
    assert videos.facts["sequences_listed"] == 2


def test_stray_files_change_no_number_and_are_named(tmp_path) -> None:
    root = make_davis(tmp_path)
    plain = run(root, tmp_path / "a").scores
    (root / "JPEGImages/480p/.DS_Store").write_text("")
    (root / "JPEGImages/480p/moving-block/Thumbs.db").write_text("")
    (root / "Annotations/480p/moving-block/00001 copy.png").write_text("")
    videos = read(root, "val")
    assert videos.left_out == ()
    assert videos.problems.count("neither a frame nor a mask, left aside") == 2
    assert run(root, tmp_path / "b").scores == plain


def test_check_and_refusals_name_what_is_missing(tmp_path, capsys) -> None:
    root = make_davis(tmp_path)
    (root / "Annotations/480p/moving-block/00001.png").unlink()
    (root / "JPEGImages/480p/moving-block/.DS_Store").write_text("")
    assert benchmark_of_folder(root).name == "davis"
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "davis"
    assert found["missing"] == [
        "val: 2 sequences and 4 frames, the published set has 30 and 1999",
        "missing annotation: 1 (Annotations/480p/moving-block/00001.png)",
    ]
    with pytest.raises(InputError, match="--split"):
        read(root, "test-dev")
    with pytest.raises(InputError, match="no sequence to score"):
        read(root, "train")
    (root / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(InputError, match=r"val\.txt is missing"):
        read(root, "val")
    with pytest.raises(InputError, match="JPEGImages/480p"):
        read(tmp_path / "DAVIS" / "ImageSets", "val")
    assert find_benchmark("davis").splits == davis.SPLITS


def test_ids_that_no_indexed_picture_holds_are_no_mask(tmp_path) -> None:
    """A grey picture of 16 bits with 300 is not object 44."""
    path = tmp_path / "mask.png"
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(path)
    with pytest.raises(InputError, match="300"):
        davis.read_mask(path)


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe\x00", "no text"), (b"", "none is listed")])
def test_a_list_that_is_no_text_or_empty_is_refused(tmp_path, content, said) -> None:
    root = make_davis(tmp_path, {})
    (root / "ImageSets/2017/val.txt").write_bytes(content)
    (root / "JPEGImages/480p").mkdir(parents=True)
    with pytest.raises(InputError, match=said):
        read(root, "val")
    assert find_benchmark("davis").check(root)


def test_features_that_are_not_finite_are_an_error_that_names_the_frame(tmp_path) -> None:
    class Broken(Known):
        def features(self, frame: Frame) -> FeatureMap:
            features = super().features(frame)
            features.tokens[0, 0] = torch.nan if frame.index == 2 else 0
            return features

    with pytest.raises(ModelError, match="half-plane/00002.jpg"):
        run(make_davis(tmp_path), tmp_path / "work", methods=[Broken()])


def test_refused_before_the_first_frame(tmp_path) -> None:
    root, one = make_davis(tmp_path), Known()
    with pytest.raises(InputError, match="distinct names"):
        run(root, tmp_path / "work", methods=[one, Known()])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        run(root, tmp_path / "file", methods=[one])
    assert one.seen == []


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_has_the_worst_objects_above_the_best_and_names_what_is_wrong_by_colour(tmp_path) -> None:
    root, folder = make_davis(tmp_path), tmp_path / "work"
    evaluation, videos, masks = run(root, folder), read(root, "val"), folder / "masks"
    for t in range(1, FRAMES):  # object 2 of moving-block is lost, and what is found instead is the left half
        mask = block_mask(t)
        save_mask(masks / f"oracle/moving-block/{t:05d}.png", np.where(half_mask(t) == 1, 2, mask * (mask == 1)))
    scores = {
        "oracle": tuple(
            replace(one, j=0.0, f=0.0) if one.object == 2 else one for one in evaluation.scores["oracle"]
        )
    }  # fmt: skip
    picture = draw_objects(replace(evaluation, scores=scores), videos, masks, "oracle", count=1)
    pixels = np.asarray(picture).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    wrong, right, missed = (a - np.maximum(b, c) > 40 for a, b, c in (
        (red, green, blue), (green, red, blue), (blue, red, green),
    ))  # fmt: skip
    row = (picture.height - GAP) // 2
    height = (row - LABEL - 2 * GAP) // 2
    lower = slice(GAP + LABEL + height + GAP, row)  # predictions of the worst object
    assert [mask[lower].any() for mask in (wrong, missed, right)] == [True, True, False]
    upper = slice(GAP + LABEL, GAP + LABEL + height)  # its truth
    assert [mask[upper].any() for mask in (wrong, missed, right)] == [False, False, True]
    best = slice(row + GAP, picture.height)  # the half plane, which the oracle keeps
    assert [mask[best].any() for mask in (wrong, missed, right)] == [False, False, True]
    again = draw_objects(replace(evaluation, scores=scores), videos, masks, "oracle", count=1)
    assert np.array_equal(np.asarray(again), pixels)


def test_shown_frames_are_those_that_count() -> None:
    assert [shown_frames(n) for n in (3, 4, 5, 40)] == [[1], [1, 2], [1, 2, 3], [1, 20, 38]]


# --- stopped and resumed ---------------------------------------------------------------------------------------------


def test_finished_sequences_are_not_worked_again(tmp_path) -> None:
    root, again = make_davis(tmp_path), Known()
    first = run(root, tmp_path / "work").scores
    assert run(root, tmp_path / "work", methods=[again]).scores == first
    assert again.seen == []


def test_what_changed_is_worked_again_and_no_old_table_is_taken(tmp_path) -> None:
    """Changed truth, changed settings, masks that are gone or another run's: never the scores of before."""
    root, folder = make_davis(tmp_path), tmp_path / "work"
    run(root, folder)
    masks = folder / "masks/oracle/moving-block"

    def worked(**changes) -> list[str]:
        again = Known()
        run(root, folder, methods=[again], **changes)
        return sorted({name.split("/")[0] for name in again.seen})

    (masks / "00002.png").unlink()
    assert worked() == ["moving-block"]
    save_mask(masks / "00002.png", half_mask(0))
    assert worked() == ["moving-block"]
    assert worked(topk=3) == ["half-plane", "moving-block"]
    assert worked(n_last=1) == ["half-plane", "moving-block"]
    save_mask(root / "Annotations/480p/half-plane/00002.png", np.flip(half_mask(0), 1).copy())
    assert worked(n_last=1) == ["half-plane"]
    for unit in (folder / "units").glob("*.json"):
        unit.write_text("{")
    assert worked(n_last=1) == ["half-plane", "moving-block"]
    assert worked(n_last=1) == []


SCRIPT = """
import os, signal, sys
import torch; torch.set_num_threads(1)
from ditf.benchmarks.davis_methods import ModelVideo
from ditf.cli import main
features, count = ModelVideo.features, 0
def counted(self, frame):
    global count
    count += 1
    if count == 7:  # in the middle of the second sequence
        os.kill(os.getpid(), signal.SIGKILL)
    return features(self, frame)
ModelVideo.features = counted
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(tmp_path, monkeypatch) -> None:
    root = make_davis(tmp_path)

    def arguments(out: Path) -> list[str]:
        return ["eval", "davis", "--data", str(root), *TINY, "--out", str(out)]

    broken, whole = tmp_path / "broken" / "r.json", tmp_path / "whole" / "r.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments(broken)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not broken.exists()
    seen: list[str] = []
    features = ModelVideo.features
    monkeypatch.setattr(ModelVideo, "features", lambda self, f: seen.append(f.sequence) or features(self, f))
    assert main(arguments(broken)) == 0
    assert seen == ["moving-block"] * 4
    assert main(arguments(whole)) == 0
    assert len(seen) == 4 + 8
    masks = [f"r.masks/{row}/{name}/{t:05d}.png" for row in MASKS for name in VIDEOS for t in range(FRAMES)]
    for file in (*RESULTS, *masks):
        assert (broken.parent / file).read_bytes() == (whole.parent / file).read_bytes(), file
    assert main(arguments(whole)) == 0
    assert len(seen) == 4 + 8


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_rivals_card_published_and_tables(tmp_path, capsys) -> None:
    root, out = make_davis(tmp_path), tmp_path / "deep" / "r.json"
    command = ["eval", "davis", "--data", str(root), *TINY, "--out", str(out)]
    assert main([*command, "--protocol", "dift-sd", "--ties", "kept", "--affinity-dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert [one["name"] for one in found["methods"]] == ["ditf-tiny", "pixel patches", COPY]
    protocol = found["protocol"]
    assert [protocol[k] for k in ("name", "n_last", "radius", "topk", "ties")] == ["dift-sd", 28, 15, 15, "kept"]
    assert found["methods"][2]["j_and_f"] == pytest.approx(80.434, abs=1e-3)
    assert found["counts"] == {"sequences": 2, "frames": 8, "objects": 3}
    assert found["complete"] is True
    assert found["card"]["methods"]["ditf-tiny"]["config"]["side"] == 32
    assert {"method": "DINO ViT-B/8", "j_and_f": 71.4, "average": "objects"}.items() <= found["published"][3].items()
    for row in found["published"]:
        assert row["j_and_f"] == pytest.approx((row["j"] + row["f"]) / 2, abs=0.11)  # printed to a tenth
    assert found["data"]["fewer"].startswith("2 of the 30 published sequences")
    assert "first mask copied & 80.4 & " in out.with_name("r.tex").read_text()
    assert "| DINO ViT-B/8 | 71.4 | 67.9 | 74.9 | objects |" in out.with_name("r.md").read_text()
    assert out.with_name("r.png").exists()
    rows = list(csv.DictReader(out.with_name("r.global.csv").open()))
    assert float(rows[2]["J&F-Mean"]) == pytest.approx(0.80434, abs=1e-5)
    objects = list(csv.DictReader(out.with_name("r.objects.csv").open()))
    assert [row["Sequence"] for row in objects[::3]] == ["half-plane_1", "moving-block_1", "moving-block_2"]
    assert out.with_name("r.run.json").exists()


def test_damaged_data_ends_with_exit_code_1_and_says_what(tmp_path, capsys) -> None:
    root = make_davis(tmp_path)
    (root / "JPEGImages/480p/moving-block/00001.jpg").unlink()
    assert main(["eval", "davis", "--data", str(root), *TINY, "--out", str(tmp_path / "r.json")]) == 1
    captured = capsys.readouterr()
    assert "moving-block/00001.jpg" in captured.err
    assert "J&F-Mean" in captured.out
    assert "CRW" in captured.out
    assert "could not be checked" in captured.out
    bad = ["eval", "davis", "--data", str(root), *TINY, "--out", str(tmp_path / "q.json")]
    assert main([*bad, "--affinity-dtype", "bfloat16"]) == 2
    assert "ties" in capsys.readouterr().err
