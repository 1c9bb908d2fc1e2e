"""The synthetic benchmark: what is known in closed form, intervals that are paired, and runs that go on."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditf.tiny
from ditf import FeatureMap
from ditf.benchmarks.jf import score_video
from ditf.benchmarks.pck import distances
from ditf.benchmarks.rivals import identity
from ditf.benchmarks.synthetic import random_checkpoint, temporal
from ditf.benchmarks.synthetic.card import card_of
from ditf.benchmarks.synthetic.cases import Case, photograph
from ditf.benchmarks.synthetic.evaluation import evaluate, extractor_of, extractors_of, plan_of
from ditf.benchmarks.synthetic.methods import ModelRows, PixelRows, SiftRows, chosen_row, heads, matched
from ditf.benchmarks.synthetic.model import BEST
from ditf.benchmarks.synthetic.results import save_synthetic, synthetic_document
from ditf.benchmarks.synthetic.runner import Units, evaluate_set
from ditf.benchmarks.synthetic.sets import FULL, PAIR_SETS, QUICK, Group, find_sets
from ditf.benchmarks.synthetic.summary import PairRecord, best_of, clip_values, comparisons, pair_values
from ditf.benchmarks.synthetic.temporal import STAYING, PatchClips, clips, evaluate_clips
from ditf.benchmarks.synthetic.tune import tune
from ditf.errors import InputError, ModelError, StoreError
from ditf.tiny.kinds import HELD_OUT_KINDS, KINDS
from ditf.warps import apply_homography

SMALL = {"size": 24, "ensemble": 1}


@functools.cache
def first_group(name, split="test"):
    return next(iter(PAIR_SETS[name].groups(1, split)))


def record(category, cluster, errors, name="pair"):
    return PairRecord(name, category, cluster, "a", "b", 100.0, {k: np.array(v, float) for k, v in errors.items()})


# --- sets


@pytest.mark.parametrize("name", PAIR_SETS)
def test_groups_are_the_same_in_every_run_and_other_on_validation(name):
    if name == "photographs":
        pytest.importorskip("skimage")
    one, again = first_group(name), next(iter(PAIR_SETS[name].groups(1)))
    other = first_group(name, "validation")
    for a, b in zip(one.cases, again.cases, strict=True):
        assert np.array_equal(a.source, b.source)
        assert torch.equal(a.truth, b.truth)
    assert not any(np.array_equal(a, b) for a, b in itertools.product(one.pictures, other.pictures))
    assert len(one.pictures) < 2 * len(one.cases)  # pictures are shared


def test_400_pairs_are_400_and_a_long_run_begins_with_a_short_one():
    assert sum(one.pairs * one.count_groups(QUICK) for one in PAIR_SETS.values()) == QUICK
    assert sum(one.pairs * one.count_groups(FULL) for one in PAIR_SETS.values()) == FULL
    short, long = first_group("semantic"), next(iter(PAIR_SETS["semantic"].groups(200)))
    assert np.array_equal(short.pictures[0], long.pictures[0])


def test_held_out_kinds_are_not_those_of_training():
    assert not set(HELD_OUT_KINDS) & set(KINDS)
    assert {g.category for g in PAIR_SETS["held-out-kinds"].groups(100)} <= set(HELD_OUT_KINDS)


def test_the_same_place_finds_less_than_a_tenth_of_the_photographs_points():
    pytest.importorskip("skimage")
    groups = list(PAIR_SETS["photographs"].groups(QUICK))
    assert len({group.category for group in groups}) == 8
    for group in groups:
        errors = [
            distances(identity(c.points, c.source.shape[:2], c.target.shape[:2]), c.truth) / c.length
            for c in group.cases
        ]
        assert float((torch.cat(errors) <= 0.1).double().mean()) < 0.1, group.category


def test_truth_obeys_its_map_both_ways():
    group = first_group("geometric")
    assert group.category == "views"
    for case in group.cases:
        torch.testing.assert_close(apply_homography(case.matrix, case.points), case.truth, rtol=0, atol=1e-2)
    there, back = group.cases[:2]
    assert there.source is back.target
    assert torch.equal(there.points, back.truth)


def test_parts_of_three_instances_are_paired_in_all_orders():
    group = first_group("semantic")
    names = {id(picture): i for i, picture in enumerate(group.pictures)}
    orders = [(names[id(c.source)], names[id(c.target)]) for c in group.cases]
    assert sorted(orders) == [(i, j) for i in range(3) for j in range(3) if i != j]


def test_an_unknown_set_is_named():
    with pytest.raises(InputError, match="expected one or more of semantic"):
        find_sets(["sematic"])
    with pytest.raises(InputError, match="temporal"):
        plan_of(sets=["sematic"])
    with pytest.raises(InputError, match="at least 1"):
        plan_of(0)


# --- methods


def shifted_case(shift=(8, 4), side=64):
    """A picture and itself moved by whole cells of four pixels; truth in closed form."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8))
    large = np.asarray(coarse.resize((side + 32, side + 32), Image.Resampling.BICUBIC))
    dx, dy = shift
    source, target = large[16 : 16 + side, 16 : 16 + side], large[16 - dy : 16 - dy + side, 16 - dx : 16 - dx + side]
    points = torch.tensor([[20.0, 20.0], [33.0, 29.0], [40.0, 44.0]])
    truth = points + torch.tensor(shift, dtype=torch.float32)
    case = Case(np.ascontiguousarray(source), np.ascontiguousarray(target), points, truth, 64.0)
    return Group("shift/0", "shift", "thing", (case,), ("all",))


def test_rivals_without_a_network_are_right_in_closed_form():
    group = shifted_case()
    found = PixelRows(64).find(group)
    [case] = group.cases
    assert torch.equal(found["identity"][0], case.points)
    assert torch.equal(found["best constant shift"][0], case.truth)
    assert float(distances(found["pixel patches 17 px"][0], case.truth).max()) <= 1
    assert found.keys() == set(PixelRows(64).names)


def test_sift_finds_what_is_only_shifted():
    pytest.importorskip("cv2")
    group = shifted_case()
    for places in SiftRows().find(group).values():
        assert float(distances(places[0], group.cases[0].truth).max()) <= 3


def test_features_that_know_the_truth_find_every_point():
    [case] = shifted_case().cases
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    basis = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))

    def oracle(dx, dy):
        place = torch.stack([x * 4 + 1.5 - dx, y * 4 + 1.5 - dy], -1).reshape(-1, 2)
        waves = place @ basis / 8
        return FeatureMap(torch.cat([waves.cos(), waves.sin()], 1), (16, 16), (64, 64))

    maps = {id(case.source): oracle(0, 0), id(case.target): oracle(8, 4)}
    assert float(distances(matched(maps, [case])[0], case.truth).max()) <= 1


def test_the_rows_of_a_model_are_those_of_its_extractor():
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", **SMALL)
    rows, group = ModelRows(fx), shifted_case()
    maps = rows.maps(group.pictures[0], "thing")
    assert tuple(maps) == rows.names == ("raw", "layernorm", "adaln", BEST)
    for name, own in heads(fx, rows.discard).items():
        assert torch.equal(maps[name].tokens, own(group.pictures[0]).tokens)
    chosen = chosen_row(fx.config)
    assert torch.equal(maps[chosen].tokens, fx(group.pictures[0]).tokens)


def test_the_chosen_row_is_what_the_config_says():
    config = ditf.FeatureExtractor.from_pretrained("ditf-tiny").config
    assert chosen_row(config.replace(discard=(3,))) == BEST
    assert chosen_row(config.replace(discard="none")) == "adaln"
    assert chosen_row(config.replace(normalization="none")) == "raw"
    assert chosen_row(config.replace(activation="k")) == "activation k"
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", **SMALL, activation="k")
    assert ModelRows(fx, prefix="other ").names[-1] == "other activation k"


def test_features_that_are_not_finite_are_refused(monkeypatch):
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny", **SMALL)
    rows, picture = ModelRows(fx), shifted_case().pictures[0]
    broken = FeatureMap(torch.full((4, 2), torch.nan), (2, 2), (64, 64))
    monkeypatch.setattr(type(fx), "features_of", lambda self, tapped, block: broken)
    with pytest.raises(ModelError, match="not finite"):
        rows.maps(picture, "thing")


# --- averages and intervals


def test_the_five_averages_of_a_case_made_by_hand():
    records = [
        record("a", "1", {"x": [0.01, 0.09, 0.2, 0.3]}),  # 2 of 4 at 0.1, 1 of 4 at 0.05
        record("a", "2", {"x": [0.02, 0.04]}),  # 2 of 2
        record("b", "3", {"x": [0.2, np.inf]}),  # 0 of 2
    ]
    row = pair_values(records)["rows"]["x"]
    assert {kind: values[0] for kind, values in row["pck"]["0.1"].items()} == pytest.approx(
        {
            "point_micro": 100 * 4 / 8,
            "point_macro": (100 * 4 / 6 + 0) / 2,
            "image_micro": (50 + 100 + 0) / 3,
            "image_macro": (75 + 0) / 2,
            "point_pairweighted": (2 * 100 * 4 / 6 + 0) / 3,
        },
        abs=1e-4,
    )
    assert row["pck"]["0.05"]["point_micro"][0] == pytest.approx(100 * 3 / 8)
    assert row["median_error"] == pytest.approx((0.09 + 0.2) / 2)


def test_intervals_are_those_of_a_bootstrap_written_from_the_definition():
    random = np.random.default_rng(1)
    records = [
        record(category, cluster, {"x": random.random(5) * 0.2, "y": random.random(5) * 0.2})
        for category in "ab"
        for cluster in "123456"
        for _ in range(2)
    ]
    found = pair_values(records, [("x", "y")], draws=2000)
    draws = []
    for _ in range(2000):
        drawn = [
            one
            for category in "ab"
            for cluster in random.choice(list("123456"), 6)
            for one in records
            if (one.category, one.cluster) == (category, cluster)
        ]
        share = {k: np.mean(np.concatenate([one.errors[k] for one in drawn]) <= 0.1) for k in "xy"}
        draws.append(100 * (share["x"] - share["y"]))
    [difference] = found["differences"]
    assert difference["pck"]["0.1"]["point_micro"][1:] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=2)


def test_differences_are_paired_and_need_more_than_one_cluster():
    random = np.random.default_rng(0)
    errors = [random.random(6) * 0.2 for _ in range(8)]
    records = [record("a", str(i), {"x": e, "same": e}) for i, e in enumerate(errors)]
    [difference] = pair_values(records, [("x", "same")])["differences"]
    assert difference["pck"]["0.1"]["point_micro"] == [0, 0, 0]
    _, low, high = pair_values(records)["rows"]["x"]["pck"]["0.1"]["point_micro"]
    assert low < high
    alone = pair_values([record("a", "one", {"x": errors[0]}), record("b", "other", {"x": errors[1]})])
    assert alone["rows"]["x"]["pck"]["0.1"]["point_micro"][1:] == [None, None]


def test_comparisons_are_with_the_best_patches_and_the_same_row_of_the_random_network():
    records = [record("a", "1", {"pixel patches 9 px": [0.2, 0.2], "pixel patches 17 px": [0.2, 0.1]})]
    assert best_of(list(records[0].errors), records) == "pixel patches 17 px"
    rows = ["raw", "adaln", "discarded", "random, adaln", "pixel patches 17 px"]
    compared = comparisons(rows, "adaln", "pixel patches 17 px", discarded="discarded", random="random, ")
    assert compared == [("adaln", "raw"), ("discarded", "adaln"), ("adaln", "pixel patches 17 px"),
                        ("adaln", "random, adaln")]  # fmt: skip


def test_means_over_clips_leave_out_what_a_row_does_not_say():
    rows = {"one": [{"j": 50.0, "v": np.nan}, {"j": 70.0, "v": np.nan}], "other": [{"j": 40.0, "v": 1}] * 2}
    found = clip_values(rows, [("one", "other")])
    assert found["rows"]["one"] == {"j": [60.0, 50.0, 70.0], "v": None}
    assert found["differences"][0]["j"] == [20.0, 10.0, 30.0]


# --- clips


def test_a_copied_mask_is_scored_as_it_is_and_patches_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(temporal, "PATCHES", (5,))
    [clip] = clips(1, 3)
    rows = evaluate_clips([clip], [PatchClips(80)], Units(tmp_path), lambda n: None)
    expected = score_video(np.repeat(clip.masks[:1], 3, 0), clip.masks)
    [staying] = rows[STAYING]
    assert staying["j_and_f"] == pytest.approx(100 * expected.j_and_f)
    assert np.isnan(staying["visibility"])
    [patches] = rows["pixel patches 5 px"]
    assert 0 <= patches["within"] <= 100
    assert patches["j_and_f"] > 50


# --- whole runs


class Counted:
    """The same place, and how often it was asked for; stops when told to."""

    names = ("identity",)

    def __init__(self, stop_at=None):
        self.asked, self.stop_at = 0, stop_at

    def about(self):
        return {"identity": True}

    def find(self, group):
        if self.asked == self.stop_at:
            raise KeyboardInterrupt
        self.asked += 1
        return {"identity": [case.points for case in group.cases]}


def test_a_stopped_run_goes_on_and_finds_the_same(tmp_path):
    one, whole, rest = PAIR_SETS["semantic"], Counted(), Counted()
    expected = evaluate_set(one, [whole], Units(tmp_path / "whole"), count=60, told=lambda n: None)
    with pytest.raises(KeyboardInterrupt):
        evaluate_set(one, [Counted(2)], Units(tmp_path / "half"), count=60, told=lambda n: None)
    units = list((tmp_path / "half" / "units").glob("*.json"))
    units[0].write_text("{")  # damaged
    told = []
    found = evaluate_set(one, [rest], Units(tmp_path / "half"), count=60, told=told.append)
    assert (whole.asked, rest.asked) == (3, 2)
    assert told == [6, 12, 18]
    assert pair_values(found) == pair_values(expected)
    assert [one.name for one in found] == [one.name for one in expected]


def test_a_checkpoint_without_a_preset_is_taken_at_that_of_ditf_tiny(tmp_path):
    random_checkpoint("ditf-tiny", tmp_path)
    own = extractor_of(ditf.FeatureExtractor.from_pretrained(str(tmp_path)), "semantic", {}).config
    bundled = ditf.FeatureExtractor.from_pretrained("ditf-tiny").config
    assert (own.block, own.timestep, own.size, own.ensemble) == (
        bundled.block, bundled.timestep, bundled.size, bundled.ensemble,
    )  # fmt: skip
    assert own.discard in ("auto", "none")


def run(*arguments, **options):
    command = [sys.executable, "-m", "ditf", "eval", "synthetic", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_the_command_prints_tables_writes_a_card_and_repeats_itself(tmp_path):
    out = tmp_path / "synthetic.json"  # where it goes unless another place is named
    arguments = ("--pairs", 1, "--sets", "semantic", "--size", 24, "--ensemble", 1)
    first = run(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "adaln + discard" in first.stdout
    assert "random network" in first.stdout
    written = out.read_bytes()
    document = json.loads(written)
    assert document["counts"]["pairs"] == 6
    assert document["card"]["model"] == "ditf-tiny"
    assert document["sets"]["semantic"]["config"]["size"] == 24
    assert document["card"]["settings"]["semantic"]["source"]["size"] == "given"
    assert {f"synthetic.{kind}" for kind in ("md", "summary.csv", "pairs.csv", "run.json")} <= {
        path.name for path in tmp_path.iterdir()
    }

    out.unlink()  # as a run that was killed leaves it: some units done, no result
    units = sorted((tmp_path / "synthetic.work" / "units").glob("*.json"))
    assert len(units) >= 3  # the model, the random network, pixels, and SIFT where there is OpenCV
    for unit in units[::2]:
        unit.unlink()
    again = run(*arguments, "--json", cwd=tmp_path)
    assert out.read_bytes() == written
    assert json.loads(again.stdout) == document


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder"):
        Units(tmp_path / "file" / "work")


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(InputError, match=r"ditf\[demo\]"):
        photograph("astronaut")


def test_tuning_looks_at_validation_pairs_and_returns_the_best_first(tmp_path):
    fx = ditf.FeatureExtractor.from_pretrained("ditf-tiny")
    plan = plan_of(1, sets=["semantic"])
    options = {"overrides": {"size": 24}, "folder": tmp_path, "timesteps": (100.0,), "sizes": (1.0,)}
    found = tune(fx, plan, **options, ensembles=(1,))["tasks"]["semantic"]
    assert found["best"] == found["rows"][0]
    assert found["best"]["pck"] == max(row["pck"] for row in found["rows"])
    assert {row["row"] for row in found["rows"]} >= {"raw", "layernorm", "adaln", BEST, "activation q"}
    assert {row["block"] for row in found["rows"] if row["row"] == "raw"} == set(range(1, fx.backbone.num_blocks))
    group = first_group("semantic", "validation")
    best = found["best"]
    own = fx.replace(size=24, **{k: best[k] for k in ("block", "timestep", "activation", "ensemble")})
    method = ModelRows(own.replace(discard=tuple(best["discard"]) or "none"))
    errors = [
        distances(p, c.truth) / c.length for p, c in zip(method.find(group)[best["row"]], group.cases, strict=True)
    ]
    assert 100 * float((torch.cat(errors) <= 0.1).double().mean()) == pytest.approx(best["pck"], abs=1e-3)


# --- the shipped card


CARD = json.loads((Path(ditf.tiny.__file__).parent / "card.json").read_text()).get("evaluation", {})


@pytest.mark.parametrize("name", ["semantic", "photographs"])
def test_the_shipped_card_agrees_with_the_benchmark_on_its_first_pairs(name):
    if name == "photographs":
        pytest.importorskip("skimage")
    one, said = PAIR_SETS[name], CARD["first pairs"][name]
    [fx] = extractors_of(ditf.FeatureExtractor.from_pretrained("ditf-tiny"), [one.task], {}).values()
    group = first_group(name)
    for method, leeway in ((PixelRows(fx.config.size), 0), (ModelRows(fx), 2)):
        for row, places in method.find(group).items():
            for place, case, right in zip(places, group.cases, said[row]["0.1"], strict=True):
                errors = distances(place, case.truth) / case.length
                assert abs(int((errors <= 0.1).sum()) - right) <= leeway, row


@pytest.mark.slow
def test_the_shipped_card_agrees_with_the_whole_benchmark(tmp_path):
    plan = plan_of()
    extractors = extractors_of(ditf.FeatureExtractor.from_pretrained("ditf-tiny"), plan.tasks, {})
    evaluation = evaluate(extractors, plan, model="ditf-tiny", folder=tmp_path)
    document = synthetic_document(evaluation, card=card_of(extractors, evaluation))
    save_synthetic(document, tmp_path / "r.json")
    for name, one in document["sets"].items():
        assert one["config"] == CARD["sets"][name]["config"]
        for row, values in one["rows"].items():
            said = CARD["sets"][name]["rows"][row]["pck"]["0.1"]["point_micro"]
            assert values["pck"]["0.1"]["point_micro"] == pytest.approx(said, abs=0.5), (name, row)
