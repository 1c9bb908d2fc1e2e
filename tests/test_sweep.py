"""A sweep measures what it says, runs each picture once per timestep, and survives being killed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ditf
from ditf import FeatureExtractor, FeatureMap, InputError, StoreError
from ditf.benchmarks.pck import pck
from ditf.benchmarks.rivals import identity
from ditf.benchmarks.synthetic import random_checkpoint
from ditf.cli import main
from ditf.draw import draw_table, viridis
from ditf.extractor import TappedImage
from ditf.massive import calibrated_channels
from ditf.presets import load_preset
from ditf.sweep import LabelledPair, _half_scores, sweep
from ditf.sweep_cases import labelled_sources, read_pairs, warped_sources
from ditf.warps import apply_homography, warped_copy

SIZE = 48
SMALL = {"blocks": [1, 5], "timesteps": [20, 200], "discard": ["none", (91,)], "ensemble": [1, 2], "warps": 2}


def photo(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def fx() -> FeatureExtractor:
    return FeatureExtractor.from_pretrained("ditf-tiny", truncate=False, device="cpu", size=SIZE, ensemble=2)


@pytest.fixture(scope="module")
def result(fx):
    return sweep(fx, [photo(0), photo(1)], normalization=["adaln", "layernorm", "none"], **SMALL)


def count_forwards(fx: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    run = fx.backbone.run

    def counted(blocks, *arguments, **options):
        seen.append(tuple(blocks))
        return run(blocks, *arguments, **options)

    monkeypatch.setattr(fx.backbone, "run", counted)
    return seen


# --- one forward, many features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["adaln", "layernorm", "none"])
@pytest.mark.parametrize("discard", ["none", (91, 3)])
def test_features_of_a_tapped_image_are_bitwise_those_of_a_forward_of_their_own(fx, normalization, discard) -> None:
    tapped = fx.tap_image(photo(0), blocks=[1, 5])
    other = fx.replace(normalization=normalization, discard=discard, discard_at="output", topk_per_token=1)
    for block, own in other(photo(0), blocks=[1, 5]).items():
        derived = other.features_of(tapped, block)
        assert torch.equal(derived.tokens, own.tokens)
        assert derived.card == own.card


def test_a_smaller_ensemble_is_the_first_members_of_the_larger(fx) -> None:
    tapped = fx.replace(ensemble=3).tap_image(photo(0), blocks=[5])
    for count in (1, 2):
        one = fx.replace(ensemble=count)
        torch.testing.assert_close(one.features_of(tapped, 5).tokens, one(photo(0), blocks=[5])[5].tokens, rtol=1e-4,
                                   atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("other", [{"timestep": 30}, {"seed": 1}, {"size": 64}, {"ensemble": 3}, {"block": 6}])
def test_features_that_need_another_forward_are_refused(fx, other) -> None:
    tapped = fx.tap_image(photo(0), blocks=[5])
    asked = fx.replace(**other)
    with pytest.raises(InputError, match="tapped|ensemble"):
        asked.features_of(tapped, asked.config.block)


def test_several_timesteps_give_the_mean_of_their_unit_features(fx, tmp_path) -> None:
    singles = [fx.replace(timestep=t)(photo(0)) for t in (20, 200, 500)]
    expected = torch.stack([F.normalize(f.tokens.double(), dim=1) for f in singles]).mean(0)
    found = fx(photo(0), timesteps=[20, 200, 500])
    torch.testing.assert_close(found.tokens.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.inverse_norm.double(), 1 / expected.norm(dim=1), rtol=1e-5, atol=0)
    assert (found.timestep, found.card["config"]["timestep"]) == (None, [20, 200, 500])
    assert "timestep" not in repr(found)
    loaded = FeatureMap.load(found.save(tmp_path / "mean.safetensors"))
    assert (loaded.timestep, loaded.card["config"]["timestep"]) == (None, [20, 200, 500])


def test_several_timesteps_serve_many_images_and_blocks_and_one_is_its_unit_features(fx) -> None:
    many = fx([photo(0), photo(1)], blocks=[1, 5], timesteps=[200])
    for image, layers in zip((photo(0), photo(1)), many, strict=True):
        for block, found in layers.items():
            own = fx.replace(timestep=200)(image, blocks=[block])[block].tokens
            torch.testing.assert_close(found.tokens, F.normalize(own, dim=1), rtol=1e-5, atol=1e-6)


def test_the_card_of_several_timesteps_has_the_channels_found_at_each(fx) -> None:
    auto = fx.replace(discard="auto")
    card = auto(photo(0), timesteps=[20, 200]).card
    block = fx.config.block
    assert card["config"]["discard"] == [calibrated_channels(auto, [block], t)[block] for t in (20, 200)]


@pytest.mark.parametrize("timesteps", [[], [20, 20], [2000]])
def test_timesteps_outside_their_domain_are_refused(fx, timesteps) -> None:
    with pytest.raises(InputError, match="timestep"):
        fx(photo(0), timesteps=timesteps)


def test_raw_tokens_of_several_timesteps_are_refused(fx) -> None:
    with pytest.raises(InputError, match="raw tokens"):
        fx.replace(normalization="none")(photo(0), timesteps=[20, 200])


# --- what is measured ------------------------------------------------------------------------------------------------


def test_every_picture_is_run_once_per_timestep(fx, monkeypatch) -> None:
    seen = count_forwards(fx, monkeypatch)
    sweep(fx, [photo(0), photo(1)], normalization=["adaln", "none"], **SMALL)
    assert seen == [(1, 5)] * (2 * (1 + 2) * 2)  # pictures, each with two warps, at two timesteps


def test_blocks_beyond_the_one_the_model_was_loaded_for_are_read() -> None:
    short = FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", size=SIZE, ensemble=1, block=1)
    short(photo(0))
    found = sweep(short, [photo(0)], blocks=[0, 7], timesteps=[20], discard=["none"], warps=2)
    assert [row.setting.block for row in found.rows] == [0, 7]


def test_scores_are_those_of_matching_the_warps_one_by_one(fx, result) -> None:
    """The public way: features of picture and warp, match_points, pck; even warps choose, odd ones report."""
    sources = warped_sources([photo(0), photo(1)], fx.config, 4, warps=2, seed=0)
    assert len(result.rows) == 2 * 2 * 2 * 3 * 2
    for row in result.rows[::7]:
        s = row.setting
        discard = "none" if s.discard == "none" else (91,)
        own = fx.replace(timestep=s.timestep, normalization=s.normalization, discard=discard)
        for half, score in enumerate((row.choosing, row.held_out)):
            hits = {0.1: 0.0, 0.05: 0.0}
            points = 0
            for source in sources:
                case = source.load()
                target = case.targets[half]
                a, b = (
                    own.replace(ensemble=s.ensemble).features_of(own.tap_image(p, blocks=[s.block]), s.block)
                    for p in (case.picture, target.picture)
                )
                found = ditf.match_points(a, b, target.points).target
                points += len(found)
                for alpha in hits:
                    hits[alpha] += len(found) * pck(found, target.truth, alpha, max(case.picture.shape[:2]))
            assert score.pck_10.value == pytest.approx(100 * hits[0.1] / points)
            assert score.pck_05.value == pytest.approx(100 * hits[0.05] / points)
            assert result.points[half] == points


def test_the_best_row_is_the_best_of_the_choosing_half_and_the_cheapest_of_equals(result) -> None:
    assert result.best.choosing.mean == max(row.choosing.mean for row in result.rows)
    equal = [row for row in result.rows if row.choosing.mean == result.best.choosing.mean]
    assert result.best.setting.ensemble == min(row.setting.ensemble for row in equal)


def test_rivals_are_measured_on_the_same_points(fx, result) -> None:
    assert [r.name for r in result.rivals] == [
        "identity", "best constant shift", "pixel patches 9 px", "pixel patches 17 px", "pixel patches 25 px",
    ]  # fmt: skip
    hits, points = 0.0, 0
    for source in warped_sources([photo(0), photo(1)], fx.config, 4, warps=2, seed=0):
        target = source.load().targets[1]
        same = identity(target.points, (36, 48), (36, 48))
        hits += len(same) * pck(same, target.truth, 0.1, 48)
        points += len(same)
    assert result.rivals[0].held_out.pck_10.value == pytest.approx(100 * hits / points)


def test_intervals_resample_pictures() -> None:
    hit, miss = torch.zeros(1, 10), torch.full((1, 10), 0.07)
    (score,) = _half_scores([hit, miss])
    assert (score.pck_10.value, score.pck_10.low, score.pck_10.high) == (100, 100, 100)
    assert (score.pck_05.value, score.pck_05.low, score.pck_05.high) == (50, 0, 100)  # both draws may be one picture
    assert score.median_error == pytest.approx(0.035)
    (many,) = _half_scores([hit, miss] * 50)
    assert many.pck_05.low == pytest.approx(50 - 1.96 * 5, abs=1)  # binomial: 100 pictures, deviation 5%
    assert many.pck_05.high == pytest.approx(50 + 1.96 * 5, abs=1)


def test_a_single_picture_has_no_interval_and_a_lost_point_is_a_miss() -> None:
    (score,) = _half_scores([torch.tensor([[0.0, torch.inf, torch.inf]])])
    assert (score.pck_10.low, score.pck_10.high, score.median_error) == (None, None, float("inf"))
    assert score.pck_10.value == pytest.approx(100 / 3)


def test_a_picture_has_the_same_warps_in_any_list_and_counts_once(fx) -> None:
    first, second = warped_sources([photo(0), photo(1), photo(0)], fx.config, 4, warps=2, seed=0)
    (alone,) = warped_sources([photo(1)], fx.config, 4, warps=2, seed=0)
    assert (alone.key, alone.key == first.key) == (second.key, False)
    for one, other in zip(alone.load().targets, second.load().targets, strict=True):
        assert np.array_equal(one.picture, other.picture)
    (reseeded,) = warped_sources([photo(1)], fx.config, 4, warps=2, seed=1)
    assert reseeded.key != alone.key
    assert not np.array_equal(reseeded.load().targets[0].picture, alone.load().targets[0].picture)


def test_pictures_are_warped_no_larger_than_the_model_sees_them(fx) -> None:
    large, small = warped_sources([photo(0, (120, 160)), photo(1, (24, 32))], fx.config, 4, warps=2, seed=0)
    assert (large.load().picture.shape, large.side) == ((36, 48, 3), 48)
    assert (small.load().picture.shape, small.side) == ((24, 32, 3), 48)


def test_a_warped_copy_shows_a_dot_where_its_map_says() -> None:
    dot = np.zeros((60, 80, 3), np.uint8)
    dot[19:22, 39:42] = 255
    pair = warped_copy(dot, rotation=-20, scale=0.8, pivot=(0.5, 0.5), recolour=False)
    y, x = np.argwhere(pair.target[..., 0] > 128).mean(0)
    expected = apply_homography(pair.matrix, torch.tensor([[40.0, 20.0]]))[0]
    assert (x, y) == pytest.approx(tuple(expected.tolist()), abs=0.5)


# --- discards --------------------------------------------------------------------------------------------------------


def test_auto_discards_what_is_found_per_block_and_a_preset_file_names_the_channels(fx, monkeypatch) -> None:
    seen = count_forwards(fx, monkeypatch)
    only = sweep(fx, [photo(0)], blocks=[1, 5], timesteps=[210], discard=["auto"], warps=2)
    found = calibrated_channels(fx, [1, 5], 210)
    assert {row.setting.block: row.channels for row in only.rows} == found
    assert found[5], "block 5 of ditf-tiny has massive channels at timestep 210"
    assert only.preset.config.discard == (only.best.channels or "none")
    assert set(seen) == {(1, 5)}  # the calibration, too, takes all blocks from one forward


def test_a_preset_that_discards_nothing_is_left_out_beside_others(fx) -> None:
    bare = FeatureExtractor(fx.backbone, size=SIZE, ensemble=1)
    bare.preset = dataclasses.replace(bare.preset, config=bare.preset.config.replace(discard="none"))
    found = sweep(bare, [photo(0)], blocks=[1], timesteps=[20], discard=["none", "preset"], warps=2)
    assert [row.setting.discard for row in found.rows] == ["none"]
    alone = sweep(bare, [photo(0)], blocks=[1], timesteps=[20], discard=["preset"], warps=2)
    assert [(row.setting.discard, row.channels) for row in alone.rows] == [("preset", ())]


# --- stopped and resumed ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch; torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_sweep import SIZE, SMALL, photo
import ditf
from ditf.sweep import sweep
fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", truncate=False, device="cpu", size=SIZE, ensemble=2)
run, count = fx.backbone.run, 0
def counted(*arguments, **options):
    global count
    count += 1
    if count == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(*arguments, **options)
fx.backbone.run = counted
sweep(fx, [photo(0), photo(1)], folder={folder!r}, **SMALL)
"""


def test_a_killed_sweep_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(tmp_path, monkeypatch) -> None:
    """12 forwards: a picture and two warps are a unit; the eighth is in the middle of the third unit."""
    fx = FeatureExtractor.from_pretrained("ditf-tiny", truncate=False, device="cpu", size=SIZE, ensemble=2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(killed))
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list((killed / "units").glob("*.safetensors"))) == 2 + 2  # and the rivals of two pictures
    assert not (killed / "result.json").exists()
    seen = count_forwards(fx, monkeypatch)
    for folder, forwards in ((killed, 6), (whole, 12)):
        seen.clear()
        sweep(fx, [photo(0), photo(1)], folder=folder, **SMALL).save(folder)
        assert len(seen) == forwards
    for name in ("result.json", "table.csv", "heatmap.png", "preset.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(os.listdir(killed / "units")) == sorted(os.listdir(whole / "units"))


def test_the_same_sweep_again_needs_no_forward_and_a_changed_one_all_of_its_own(fx, tmp_path, monkeypatch) -> None:
    seen = count_forwards(fx, monkeypatch)
    base = {"blocks": [1], "timesteps": [20], "discard": ["none"], "ensemble": [1], "warps": 2, "folder": tmp_path}
    first = sweep(fx, [photo(0)], **base)
    assert len(seen) == 3
    assert sweep(fx, [photo(0)], **base).to_dict() == first.to_dict()
    assert len(seen) == 3
    changed = [
        (fx, photo(2), {}), (fx, photo(0), {"timesteps": [21]}), (fx, photo(0), {"blocks": [2]}),
        (fx, photo(0), {"discard": [(3,)]}), (fx, photo(0), {"normalization": ["none"]}),
        (fx, photo(0), {"seed": 1}), (fx.replace(seed=1), photo(0), {}), (fx.replace(size=64), photo(0), {}),
        (fx.replace(discard_at="output"), photo(0), {}), (fx.replace(prompt="a cat"), photo(0), {}),
    ]  # fmt: skip
    for other, picture, change in changed:
        seen.clear()
        fresh = sweep(other, [picture], **{**base, "folder": None, **change})
        assert len(seen) == 3
        assert sweep(other, [picture], **{**base, **change}).to_dict() == fresh.to_dict()
        assert len(seen) == 6, change


def test_other_weights_under_the_same_name_are_another_model(tmp_path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    found = []
    for seed in (0, 1, 0):
        random_checkpoint("ditf-tiny", model, seed)
        fx = FeatureExtractor.from_pretrained(str(model), device="cpu", block=1, size=SIZE, ensemble=1, discard="none")
        sweep(fx, [photo(0)], blocks=[1], timesteps=[20], discard=["none"], warps=2, folder=out)
        found.append(len(os.listdir(out / "units")))
    assert found == [2, 3, 3]  # the rivals are the same


def test_a_damaged_unit_is_computed_again(fx, tmp_path, monkeypatch, caplog) -> None:
    base = {"blocks": [1], "timesteps": [20], "discard": ["none"], "ensemble": [1], "warps": 2, "folder": tmp_path}
    first = sweep(fx, [photo(0)], **base)
    for path in (tmp_path / "units").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    seen = count_forwards(fx, monkeypatch)
    assert sweep(fx, [photo(0)], **base).to_dict() == first.to_dict()
    assert len(seen) == 3
    assert "computing it again" in caplog.text


def test_progress_says_first_what_was_there(fx, tmp_path) -> None:
    told: list[tuple[int, int]] = []
    base = {"blocks": [1], "timesteps": [20], "discard": ["none"], "ensemble": [1], "warps": 2, "folder": tmp_path}
    sweep(fx, [photo(0)], **base, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]
    told.clear()
    sweep(fx, [photo(0), photo(1)], **base, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 4), (3, 4), (4, 4)]


def test_a_folder_that_cannot_be_made_is_a_store_error(fx, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="folder"):
        sweep(fx, [photo(0)], blocks=[1], timesteps=[20], discard=["none"], warps=2, folder=tmp_path / "file")


# --- pairs with keypoints --------------------------------------------------------------------------------------------


def write_pairs(folder: Path, **changes) -> Path:
    """Three pictures, all six ordered pairs; the points are the same pixels shifted by nothing."""
    for i in range(3):
        photo(i).save(folder / f"{i}.png")
    pairs = [
        {"source": f"{i}.png", "target": f"{j}.png", "source_points": [[10, 12], [40, 30.5]],
         "target_points": [[11, 12], [30, 20]]} | changes
        for i in range(3) for j in range(3) if i != j
    ]  # fmt: skip
    path = folder / "pairs.json"
    path.write_text(json.dumps({"pairs": pairs}))
    return path


def test_labelled_pairs_run_every_picture_once_per_timestep(fx, tmp_path, monkeypatch) -> None:
    seen = count_forwards(fx, monkeypatch)
    found = sweep(fx, points=write_pairs(tmp_path), **{**SMALL, "discard": ["none"]})
    assert len(seen) == 3 * 2
    assert (found.labelled, found.images, found.pairs, found.points) == (True, 3, 6, (6, 6))
    assert "6 labelled pairs" in found.preset.source["block"]


def test_identity_of_labelled_pairs_is_what_the_labels_say(fx, tmp_path) -> None:
    """Points move by 1 and by 14.5 pixels; an eighth of 64 pixels is 8."""
    (row,) = sweep(fx, points=write_pairs(tmp_path), blocks=[1], timesteps=[20], discard=["none"]).rows
    assert row.setting.block == 1
    found = sweep(fx, points=write_pairs(tmp_path), blocks=[1], timesteps=[20], discard=["none"]).rivals[0]
    assert found.held_out.pck_10.value == 50
    assert found.held_out.median_error == pytest.approx((1 / 64 + 14.5 / 64) / 2, rel=1e-5)
    short = sweep(fx, points=write_pairs(tmp_path, length=5), blocks=[1], timesteps=[20], discard=["none"])
    assert short.rivals[0].held_out.pck_10.value == 0


def test_the_halves_of_labelled_pairs_do_not_follow_their_order(fx) -> None:
    """Two kinds in turn: both halves hold both, and each pair is in one."""
    points = [((1.0 + i, 2.0),) for i in range(20)]
    pairs = [LabelledPair(photo(i % 2), photo(2), one, one) for i, one in enumerate(points)]
    first, second = labelled_sources(pairs, fx.config, 4)
    for source in (first, second):
        assert len(source.halves) == 10
        assert 2 <= sum(source.halves) <= 8
    assert sum(first.halves) + sum(second.halves) == 10


def test_a_pair_of_a_picture_with_itself_is_found_exactly(fx) -> None:
    points = ((10.0, 12.0), (40.0, 30.0))
    pairs = [LabelledPair(photo(0), photo(0), points, points)] * 2
    found = sweep(fx, points=pairs, blocks=[5], timesteps=[20], discard=["none"])
    assert found.best.held_out.median_error < 0.02
    assert found.rivals[0].held_out.pck_05.value == 100


def test_categories_fill_the_prompt_and_make_other_units(fx, tmp_path, monkeypatch) -> None:
    seen: list[str] = []
    tap = FeatureExtractor.tap_image

    def noted(self, image, *, blocks, prompt=None, category=None) -> TappedImage:
        seen.append(prompt)
        return tap(self, image, blocks=blocks, prompt=prompt, category=category)

    monkeypatch.setattr(FeatureExtractor, "tap_image", noted)
    asking = fx.replace(prompt="a photo of a {category}")
    for category in ("cat", "dog"):
        file = write_pairs(tmp_path, category=category)
        sweep(asking, points=file, blocks=[1], timesteps=[20], discard=["none"], folder=tmp_path)
    assert seen == ["a photo of a cat"] * 3 + ["a photo of a dog"] * 3


PAIR = {"source": "0.png", "target": "1.png", "source_points": [[1, 2]], "target_points": [[3, 4]]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("no json", "cannot be read"),
        ([], "holds no pairs"),
        ({"pairs": []}, "holds no pairs"),
        ({"pairs": ["a"]}, "pair 1: got 'a', expected an object"),
        ({"pairs": [PAIR, {**PAIR, "box": 3}]}, "pair 2: got 'box', expected source"),
        ({"pairs": [{"source": "0.png"}]}, "'target' is missing"),
        ({"pairs": [{**PAIR, "target": 3}]}, "target is 3, expected a text"),
        ({"pairs": [{**PAIR, "length": -1}]}, "length is -1"),
        ({"pairs": [{**PAIR, "source_points": [[1, 2, 3]]}]}, r"expected \[\[x, y\]"),
    ],
)
def test_a_malformed_file_of_pairs_is_refused(tmp_path, document, said) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=said):
        read_pairs(path)


def test_a_missing_file_of_pairs_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pairs(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([LabelledPair(photo(0), photo(1), ((1, 2),), ((3, 4),))], "1 pairs"),
        ([LabelledPair(photo(0), photo(1), ((1, 2),), ((3, 4), (5, 6)))] * 2, "as many as source_points"),
        ([LabelledPair(photo(0), photo(1), (), ())] * 2, "at least one"),
        ([LabelledPair(photo(0), photo(1), ((1, 200),), ((3, 4),))] * 2, "source_points: got"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(fx, pairs, said) -> None:
    with pytest.raises(InputError, match=said):
        sweep(fx, points=pairs, blocks=[1], timesteps=[20], discard=["none"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "either images or points"),
        ({"images": []}, "at least one picture"),
        ({"warps": 3}, "even number"),
        ({"blocks": [8]}, r"indices in 0\.\.7"),
        ({"blocks": []}, "at least one"),
        ({"timesteps": [20, 20]}, "distinct"),
        ({"timesteps": [2000]}, "0..1000"),
        ({"ensemble": [0]}, "at least 1"),
        ({"normalization": "adaln"}, "a list"),
        ({"normalization": ["batch"]}, "adaln"),
        ({"discard": ["most"]}, "discard"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_any_forward(fx, monkeypatch, change, said) -> None:
    seen = count_forwards(fx, monkeypatch)
    with pytest.raises(InputError, match=said):
        sweep(fx, **{"images": [photo(0)], "blocks": [1], "timesteps": [20], "discard": ["none"], **change})
    assert not seen


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_preset_file_makes_the_best_features(fx, result, tmp_path) -> None:
    result.save(tmp_path)
    tuned = FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", preset=tmp_path / "preset.json")
    best = result.best.setting
    c = tuned.config
    assert (c.block, c.timestep, c.normalization, c.ensemble) == (
        best.block, best.timestep, best.normalization, best.ensemble,
    )  # fmt: skip
    assert (c.discard, c.size) == (result.best.channels or "none", SIZE)
    assert tuned.preset.source["block"] == "ditf sweep of 2 images and 4 warps of themselves"
    assert tuned.preset.source["size"] == "given to ditf sweep"
    assert tuned.preset.source["resize"] == fx.preset.source["resize"]
    by_hand = fx.replace(**dataclasses.asdict(c))
    assert torch.equal(tuned(photo(3)).tokens, by_hand(photo(3)).tokens)
    assert FeatureExtractor.from_pretrained("ditf-tiny", preset=tmp_path / "preset.json", size=64).config.size == 64


def test_a_preset_file_is_for_its_model_alone_and_knows_no_other_fields(result, tmp_path) -> None:
    result.save(tmp_path)
    path = tmp_path / "preset.json"
    with pytest.raises(InputError, match="made for ditf-tiny, and the model is me/other"):
        load_preset(path, "me/other", num_blocks=8)
    with pytest.raises(InputError, match="block: got"):
        load_preset(path, "ditf-tiny", num_blocks=1)
    document = json.loads(path.read_text())
    for change, said in (
        ({"config": {**document["config"], "depth": 3}}, "config 'depth'"),
        ({"source": {"depth": "me"}}, "source 'depth'"),
        ({"config": {"block": 1}}, "no 'timestep'"),
        ({"config": {**document["config"], "discard": "preset"}}, "preset discard"),
        ({"model": 3}, "model is 3"),
        ({"extra": 3}, "got 'extra'"),
        ({"ditf preset": 99}, "no preset of ditf"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(InputError, match=said):
            load_preset(path, "ditf-tiny", num_blocks=8)
    with pytest.raises(InputError, match="no such file"):
        FeatureExtractor.from_pretrained("ditf-tiny", preset=tmp_path / "none.json")
    with pytest.raises(InputError, match="protocol"):
        FeatureExtractor.from_pretrained("ditf-tiny", preset=path, protocol="ditf-code")


def test_another_revision_than_the_presets_is_warned_of(tmp_path, caplog) -> None:
    path = tmp_path / "preset.json"
    ditf.presets.save_preset(path, ditf.presets.find_preset("x", "semantic", num_blocks=8), model="me/x", revision="a")
    assert load_preset(path, "you/x", num_blocks=8, revision="a").config.block == 4
    assert not caplog.text
    load_preset(path, "me/x", num_blocks=8, revision="b")
    assert "made with revision a" in caplog.text


def test_the_table_has_a_line_for_every_setting_and_rival(result, tmp_path) -> None:
    result.save(tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(lines) == len(result.rows) + len(result.rivals)
    for line, row in zip(lines, result.rows, strict=False):
        assert (int(line["block"]), float(line["timestep"])) == (row.setting.block, row.setting.timestep)
        assert float(line["held-out PCK@0.05 low"]) == pytest.approx(row.held_out.pck_05.low, abs=0.01)
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["best"]["block"] == result.best.setting.block
    assert len(document["rows"]) == len(result.rows)


def test_the_heat_map_shows_every_value_in_its_colour_and_frames_the_best(result) -> None:
    values = np.array([[0.0, 50.0], [100.0, np.nan]])
    picture = draw_table(values, rows=["a", "b"], columns=["x", "y"], title="t", mark=(1, 0))
    left, top = 90, 100  # of the first cell, 64 x 26 pixels
    for (i, j), expected in {(0, 0): viridis(0.0), (0, 1): viridis(0.5), (1, 1): (150, 152, 158)}.items():
        assert picture.getpixel((left + j * 64 + 6, top + i * 26 + 6)) == expected
    assert picture.getpixel((left + 2, top + 26 + 13)) not in (viridis(1.0), (255, 255, 255))  # the frame
    grid, blocks, timesteps = result.grid()
    at = blocks.index(result.best.setting.block), timesteps.index(result.best.setting.timestep)
    assert grid[at] == grid.max() == result.best.choosing.mean
    with pytest.raises(InputError, match="values"):
        draw_table(values, rows=["a"], columns=["x", "y"], title="t")


# --- the command -----------------------------------------------------------------------------------------------------

QUICK = ("--blocks", "1,4-5", "--timesteps", "20", "--discard", "none,91+3", "--ensemble", "1", "--warps", "2")


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        photo(i).save(f"{i}.png")
    return ["0.png", "1.png"]


def test_the_command_prints_the_best_setting_beside_its_rivals_and_writes_files(pictures, capsys) -> None:
    assert main(["sweep", *pictures, *QUICK, "--size", "48", "--out", "found"]) == 0
    text = capsys.readouterr().out
    assert "best: --block" in text
    assert "best constant shift" in text
    assert text.count("*") == 1
    assert "not semantics" in text
    assert {"result.json", "table.csv", "heatmap.png", "preset.json", "units"} == set(os.listdir("found"))
    tuned = FeatureExtractor.from_pretrained("ditf-tiny", preset="found/preset.json")
    assert f"--block {tuned.config.block} " in text


def test_json_is_one_document_and_a_second_run_reuses_the_units(pictures, capsys, monkeypatch) -> None:
    document = None
    for _ in range(2):
        assert main(["sweep", *pictures, *QUICK, "--size", "48", "--out", "found", "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again.pop("seconds")
        assert document in (None, again)
        document = again
        # what is there already is enough: from here on, no forward
        monkeypatch.setattr("ditf.backbones.Backbone.run", None)
    assert document is not None
    assert [row["block"] for row in document["rows"]] == [1, 1, 4, 4, 5, 5]
    assert document["rows"][1]["channels"] == [91, 3]
    assert document["files"] == ["found/result.json", "found/table.csv", "found/heatmap.png", "found/preset.json"]


def test_the_command_takes_pairs(tmp_path, capsys) -> None:
    file = write_pairs(tmp_path)
    assert main(["sweep", "--points", str(file), *QUICK, "--json", "--size", "48"]) == 0
    assert json.loads(capsys.readouterr().out)["labelled"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either pictures or --points"),
        (["0.png", "--points", "x.json"], "either pictures or --points"),
        (["none.png"], "no such file: none.png"),
        (["0.png", "--blocks", "5-2"], "--blocks: got '5-2'"),
        (["0.png", "--blocks", "a"], "--blocks: got 'a'"),
        (["0.png", "--timesteps", "a"], "--timesteps: got 'a'"),
        (["0.png", "--ensemble", "1.5"], "--ensemble: got '1.5'"),
        (["0.png", "--discard", "3,x"], "--discard: got 'x'"),
        (["0.png", "--normalization", "batch"], "normalization: got 'batch'"),
        (["--points", "none.json"], "points: no such file"),
        (["0.png", "--out", "1.png"], "--out: 1.png is a file"),
    ],
)
def test_wrong_use_exits_with_two_and_one_sentence(pictures, capsys, arguments, said) -> None:
    assert main(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
