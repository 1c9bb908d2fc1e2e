"""docs/method.md says what the result files say: verdicts both ways, gaps, slopes, equal files and equal text."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import report
from study import claims, measure, runs, verdicts
from study.document import PICTURES, VARIANTS, document
from study.files import PARTS, read_part, write_part
from study.growth import first_massive, joined, outlook
from study.statistics import interval, pck_samples, slope_samples

from ditf.errors import InputError

CLUSTERS, POINTS = 24, 50
SETTING = {"block": 4, "timestep": 100, "ensemble": 1, "size": 96, "row": "adaln"}


def hits(percent: float) -> dict[str, list[int]]:
    """Of every cluster, around a PCK; all clusters differ a little, all methods in the same way."""
    found = [round(POINTS * percent / 100) + (i % 3) - 1 for i in range(CLUSTERS)]
    return {"0.1": found, "0.05": [n // 2 for n in found]}


def variants(raw: float, adaln: float) -> dict[str, dict[str, list[int]]]:
    return dict(zip(VARIANTS, map(hits, (raw, raw, adaln, adaln)), strict=True))


def paired() -> dict[str, Any]:
    return {
        "setting": SETTING, "pairs": 6 * CLUSTERS, "pictures": 3 * CLUSTERS, "counts": [POINTS] * CLUSTERS,
        "rivals": {"identity": hits(10), "best constant shift": hits(20), "pixel patches 9 px": hits(15)},
    }  # fmt: skip


def rows_of(gain: float) -> dict[str, Any]:
    row = {"pck@0.1": [40.0, 38.0, 42.0], "pck@0.05": [20.0, 18.0, 22.0], "median error": 0.2}
    around = [gain, gain - 1.0, gain + 1.0]
    differences = {
        "adaln - raw": around, "adaln + discard - adaln": around, "adaln - pixel patches 9 px": [4 * v for v in around],
        "adaln - random network, adaln": [4 * v for v in around],
    }  # fmt: skip
    task = {
        "about": "Pairs.", "setting": SETTING, "pairs": 400, "clusters": 40, "points": 4000,
        "rows": {"adaln": row, "identity": row}, "differences in pck@0.1": differences,
    }  # fmt: skip
    return {"tasks": {name: copy.deepcopy(task) for name in ("semantic", "held-out-kinds", "photographs")}}


def layer(block: int, sign: int) -> dict[str, Any]:
    """A block that has one massive channel, or none where the sign is negative."""
    top = {
        "channel": 91, "massive": sign > 0, "ratio": 30.0 if sign > 0 else 3.0, "leads_images": 1.0,
        "leads_tokens": 0.99, "top_images": 1.0, "one_sign": 1.0, "energy": 0.6, "gain": 0.2 + 0.01 * block,
    }  # fmt: skip
    return {
        "block": block, "timestep": 100, "width": 128, "massive": [91] if sign > 0 else [], "mean_gain": 0.6,
        "overlap": {"images": 1.0, "tokens": 0.9}, "top": [top, top | {"channel": 3, "ratio": 2.0}],
        "times the median": {
            "raw": [30.0, 31.0], "layernorm": [29.0, 30.0], "adaln": [9.0, 10.0], "gain_rank": 0.1,
        },
    }  # fmt: skip


def curve(gain_per_doubling: float, *, delay: float = 1.0) -> dict[str, list[Any]]:
    """24 points; the ratio rises with the images, in steps, and AdaLN's gain with the ratio."""
    images = [20_000 * i for i in range(1, 25)]
    ratio = [2.0 + delay * (i // 4) * 3.0 for i in range(1, 25)]
    raw = [5.0 + 2.0 * math.log2(n / 20_000) for n in images]
    adaln = [value + gain_per_doubling * math.log2(r) for value, r in zip(raw, ratio, strict=True)]
    return {
        "step": list(range(1, 25)), "images": images, "seconds": [60.0 * i for i in range(1, 25)],
        "loss": [0.1] * 24, "channel": [91] * 24, "ratio": ratio, "raw": raw, "layernorm": raw, "adaln": adaln,
        "adaln_discard": adaln,
    }  # fmt: skip


def made_up(sign: int = 1) -> dict[str, Any]:
    """All parts; every claim holds, or with -1 none does."""
    grid = paired() | {
        "timesteps": [20, 100],
        "cells": [
            {
                "timestep": t,
                "block": b,
                "discarded": 91,
                "hits": variants(30.0, 40.0 + sign * (10.0 if 3 <= b <= 5 else 0)),
            }
            for t in (20, 100)
            for b in range(9)
        ],
    }
    noises = [{"ensemble": n, "discarded": 91, "hits": variants(30.0, 40.0 + sign * n)} for n in range(1, 9)]
    ensemble = paired() | {"sizes": list(range(1, 9)), "noises": {"independent": noises, "shared": noises}}
    massive = {
        "setting": SETTING, "pictures": 48, "layers": [layer(block, sign) for block in range(9)],
        "definition": {"ratio": 10.0, "top": 10, "images": 0.95, "one_sign": 0.9},
    }  # fmt: skip
    rivals = {"identity": 10.0, "best constant shift": 20.0, "pixel patches 9 px": 15.0}
    trained = [{"name": "main", "settings": {"qk_norm": True}, "curve": curve(2.0 * sign)}]
    other = {"name": "no-qk-norm", "settings": {"qk_norm": False}, "curve": curve(2.0 * sign, delay=2.0)}
    found = {
        "rows": rows_of(5.0 * sign), "grid": {"complete": True, "tasks": {"semantic": grid, "photographs": grid}},
        "ensemble": ensemble, "massive": massive, "growth": {"rivals": rivals, "runs": trained},
        "variants": {"rivals": rivals, "runs": [*trained, other]},
    }  # fmt: skip
    return {part: {"card": {"model": {"name": "made up"}}, **of} for part, of in found.items()}


def verdicts_of(results: dict[str, Any]) -> dict[str, str]:
    return {one.title: one.verdict for one in claims.claims(results)}


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_every_claim_holds_where_the_numbers_say_so():
    assert set(verdicts_of(made_up()).values()) == {verdicts.HOLDS}


def test_no_claim_holds_where_the_numbers_say_the_opposite():
    found = verdicts_of(made_up(-1))
    about_channels = {title: found.pop(title) for title in list(found)[1:4]}
    assert set(found.values()) == {verdicts.FAILS}
    assert set(about_channels.values()) == {verdicts.UNDECIDED}  # nothing is massive, so nothing can be said of it


def test_channels_that_wander_or_are_scaled_up_fail_their_claims():
    results = made_up()
    for one in results["massive"]["layers"]:
        one["top"][0] |= {"leads_tokens": 0.5, "gain": 1.0 + 0.01 * one["block"]}
        one["times the median"]["adaln"] = [50.0, 51.0]
    _, constant, singled_out, silenced, *_ = claims.claims(results)
    assert [constant.verdict, singled_out.verdict, silenced.verdict] == [verdicts.FAILS] * 3
    assert "50% of the tokens" in constant.numbers
    assert "Below the mean in 0 of 8 blocks" in singled_out.numbers


def test_a_channel_scaled_down_like_many_others_is_not_singled_out():
    results = made_up()
    for one in results["massive"]["layers"]:
        one["times the median"]["gain_rank"] = 0.3
    claim = claims.claims(results)[2]
    assert claim.verdict == verdicts.UNDECIDED
    assert "over blocks): holds. In the median block 30% of the channels" in claim.numbers


@pytest.mark.parametrize(
    ("found", "verdict"),
    [((1.0, 0.1, 2.0), "holds"), ((1.0, -0.1, 2.0), "undecided"), ((-1.0, -2.0, -0.1), "does not hold")],
)
def test_a_verdict_is_where_the_interval_lies(found, verdict):
    assert verdicts.verdict_of(found) == verdict


def test_few_pairs_decide_nothing():
    results = made_up()
    for task in results["rows"]["tasks"].values():
        task["clusters"] = 2
    found = verdicts_of(results)
    assert found["Modulation helps"] == found["Discarding what is left helps"] == verdicts.UNDECIDED
    assert "too few pairs" in document(results)


def test_targets_ask_for_the_points_and_for_the_interval():
    results = made_up()  # 20 points (16 to 24) above the rivals
    assert [reached for _, _, reached in claims.targets(results)] == ["reached"] * 3
    for task in results["rows"]["tasks"].values():
        task["differences in pck@0.1"] = {
            "adaln - pixel patches 9 px": [12.0, 11.0, 13.0], "adaln - random network, adaln": [20.0, -0.1, 40.0],
        }  # fmt: skip
    assert [reached for _, _, reached in claims.targets(results)] == ["not reached", "not reached", "reached"]


def test_a_gain_that_only_follows_training_is_not_put_down_to_the_channel():
    results = made_up()
    for run in results["growth"]["runs"] + results["variants"]["runs"]:
        one = run["curve"]
        one["adaln"] = [raw + math.log2(n) for raw, n in zip(one["raw"], one["images"], strict=True)]
    (claim,) = [one for one in claims.claims(results) if one.title.startswith("AdaLN's gain")]
    assert claim.verdict == verdicts.UNDECIDED
    assert "+0.0 points (-0.0 to +0.0) at an equal number of images" in claim.numbers.replace(
        "-0.0 points", "+0.0 points"
    )


# --- the document ----------------------------------------------------------------------------------------------------


def test_missing_parts_are_said_to_be_missing():
    text = document({})
    assert f"Not measured: {', '.join(PARTS)}." in text
    assert set(verdicts_of({}).values()) == {verdicts.MISSING}
    results = made_up()
    del results["massive"]
    assert "Not measured: massive." in document(results)
    assert "measure --parts massive" in document(results)


def test_parts_of_different_weights_are_told_apart():
    results = made_up()
    for part in results:
        results[part]["card"] = {"model": {"name": "made up", "sha256": "a" * 64}}
    assert "different weights" not in document(results)
    results["grid"]["card"] = {"model": {"name": "made up", "sha256": "b" * 64}}
    assert "**The parts were measured on different weights**" in document(results)
    assert "grid on bbbbbbbbbbbb" in document(results)


def test_equal_files_give_equal_text_and_pictures_that_the_text_shows(tmp_path):
    for part, found in made_up().items():
        card = found.pop("card")
        path = write_part(tmp_path, part, card, found)
        before = path.read_bytes()
        write_part(tmp_path, part, card, found)
        assert path.read_bytes() == before
        assert json.loads(before)["card"] == card
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "docs" / "method.md")]) == 0
    text = (tmp_path / "docs" / "method.md").read_text()
    assert text == document(made_up())
    for name in PICTURES:
        assert f"(method/{name})" in text
        assert (tmp_path / "docs" / "method" / name).read_bytes().startswith(b"\x89PNG")


def test_the_committed_report_is_what_the_committed_files_give():
    assert report.DOCUMENT.read_text() == document(report.read(report.RESULTS))


def test_a_grid_that_was_stopped_is_not_told(tmp_path):
    write_part(tmp_path, "grid", {}, {"complete": False, "tasks": {}})
    assert report.read(tmp_path) == {}


def test_a_file_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "grid.json").write_text('{"part": "grid"}')
    with pytest.raises(InputError, match="no result of this study"):
        read_part(tmp_path, "grid")
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "method.md")]) == 1
    assert "delete it and measure the part again" in capsys.readouterr().err


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_slopes_and_pck_are_the_plain_ones_and_intervals_hold_them():
    x, y = np.arange(10.0), np.array([1.0, 3, 2, 5, 4, 6, 8, 7, 9, 12])
    intercept, slope = slope_samples(x, y)[0]
    assert (slope, intercept) == pytest.approx(np.polyfit(x, y, 1))
    value, low, high = interval(slope_samples(x, y)[:, 1])
    assert low < value < high
    assert pck_samples([1, 2, 0, 3], [4, 4, 2, 10])[0] == pytest.approx(100 * 6 / 20)


def test_a_curve_is_extrapolated_along_its_line_and_said_to_be():
    one = curve(0.0)
    one["adaln"] = [3.0 * math.log2(n / 1000) for n in one["images"]]
    text = outlook(one)
    end = 3.0 * math.log2(480)
    assert "+3.0 points per doubling" in text
    assert f"2 times the images {end + 3:.0f}%" in text
    assert f"10 times the images {end + 3 * math.log2(10):.0f}%" in text
    assert "Extrapolated" in text
    assert "buy nothing sure" in outlook(one | {"adaln": [20.0 + (-1) ** i for i in range(24)]})


def test_runs_after_each_other_are_one_curve_and_a_channel_is_massive_from_where_it_stays():
    whole = curve(1.0)
    halves = [{"curve": {name: values[part] for name, values in whole.items()}} for part in (slice(12, 24), slice(12))]
    assert joined(halves) == whole
    assert first_massive({"images": [1, 2, 3, 4], "ratio": [12.0, 9.0, None, 11.0]}) == 4
    assert first_massive({"images": [1, 2], "ratio": [12.0, 9.0]}) is None


def test_curves_are_read_from_folders_of_training_runs(tmp_path):
    lines = [",".join(runs.COLUMNS), "2,40,1.5,0.1,91,12.5,20,21,22,", "1,20,1,0.2,91,2.5,10,11,12,nan"]
    (tmp_path / runs.CURVE).write_text("\n".join(lines) + "\n")
    (tmp_path / "card.json").write_text(json.dumps({"training": {"recipe": {"qk_norm": False}}}))
    (found,) = runs.curves_of([f"bare={tmp_path}"])
    assert (found["name"], found["settings"]) == ("bare", {"qk_norm": False})
    assert found["curve"]["images"] == [20, 40]
    assert found["curve"]["adaln_discard"] == [None, None]
    (tmp_path / runs.CURVE).write_text("step,images\n1,2\n")
    with pytest.raises(InputError, match="'seconds' is missing"):
        runs.curves_of([str(tmp_path)])


def test_rivals_of_curves_are_measured_on_the_pairs_of_the_curves(monkeypatch):
    from ditf.benchmarks import synthetic
    from ditf.tiny import growth

    class SeenError(Exception):
        pass

    def seen(count: int, first_seed: int, *, size: int) -> None:
        raise SeenError(count, first_seed, size)

    monkeypatch.setattr(synthetic, "scene_cases", seen)
    with pytest.raises(SeenError) as error:
        growth.measure(None)  # pyright: ignore[reportArgumentType]
    assert error.value.args == runs.GROWTH_PAIRS


def test_a_stopped_grid_goes_on_and_ends_the_same(monkeypatch):
    made = []

    def cells(checkpoint: str, groups: Any, setting: Any) -> list[dict[str, Any]]:
        made.append(setting.timestep)
        return [{"timestep": setting.timestep, "block": 0}]

    monkeypatch.setattr(measure, "_cells", cells)
    whole = [copy.deepcopy(one) for one in measure.grid_of("ditf-tiny", "semantic", 6, (20, 100), {})]
    assert made == [20, 100]
    resumed = list(measure.grid_of("ditf-tiny", "semantic", 6, (20, 100), whole[0]))
    assert made == [20, 100, 100]
    assert resumed[-1] == whole[-1]
    assert whole[-1]["pairs"] == 6
