"""Two results side by side: the paired bootstrap against draws written out, and what may not be compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditf import InputError
from ditf.benchmarks.compare import compare, read_result
from ditf.benchmarks.scores import aggregate
from ditf.cli import main


def result(seed: int, chance: float, method: str = "ours") -> dict[str, Any]:
    """120 pairs of three categories and ten target images each."""
    random, pairs = np.random.default_rng(seed), []
    layout = np.random.default_rng(99)
    for i in range(120):
        points = int(layout.integers(1, 12))
        correct = int(random.binomial(points, chance))
        pairs.append(
            {
                "name": f"{i:03d}", "category": "abc"[i % 3], "target": f"{layout.integers(10)}", "points": points,
                "correct": {method: {"0.1": correct, "0.05": correct // 2}},
            }
        )  # fmt: skip
    return {
        "ditf result": 1, "benchmark": "spair", "split": "test", "protocol": {"name": "p", "alphas": [0.1, 0.05]},
        "methods": [{"name": method}], "pairs": pairs,
    }  # fmt: skip


def alike(document: dict[str, Any], seed: int) -> dict[str, Any]:
    """Pairs of one target image succeed or fail together."""
    random = np.random.default_rng(seed)
    good = {(c, str(t)): random.random() < 0.6 for c in "abc" for t in range(10)}
    for pair in document["pairs"]:
        pair["correct"]["ours"]["0.1"] = pair["points"] if good[pair["category"], pair["target"]] else 0
    return document


@pytest.mark.parametrize("together", [False, True])
def test_the_interval_is_that_of_draws_written_out(together) -> None:
    """Target images drawn with replacement within their category, every average computed pair by pair."""
    first, second = result(0, 0.5), result(1, 0.6)
    if together:
        first, second = alike(first, 3), alike(second, 4)
    found = compare(first, second)["averages"]
    random, differences = np.random.default_rng(5), []
    pairs = list(zip(first["pairs"], second["pairs"], strict=True))
    by_image: dict[str, dict[str, list]] = {}
    for pair in pairs:
        by_image.setdefault(pair[0]["category"], {}).setdefault(pair[0]["target"], []).append(pair)
    for _ in range(800):
        drawn = [
            pair
            for images in by_image.values()
            for name in random.choice(sorted(images), len(images))
            for pair in images[name]
        ]
        names, counts = [p["category"] for p, _ in drawn], np.array([p["points"] for p, _ in drawn])
        a, b = (
            aggregate(names, np.array([pair[side]["correct"]["ours"]["0.1"] for pair in drawn]), counts)
            for side in (0, 1)
        )
        differences.append([b[k] - a[k] for k in found])
    low, high = np.percentile(differences, [2.5, 97.5], axis=0)
    width = high - low
    assert np.abs([one["low"] for one in found.values()] - low).max() < 0.15 * width.max()
    assert np.abs([one["high"] for one in found.values()] - high).max() < 0.15 * width.max()
    assert all(one["low"] < one["difference"] < one["high"] for one in found.values())


def test_pairs_of_one_image_that_fail_together_widen_the_interval() -> None:
    """As if there were 30 images and not 120 pairs."""
    first, second = alike(result(0, 0.5), 3), alike(result(1, 0.6), 4)
    images = compare(first, second)["averages"]["image_micro"]
    for document in (first, second):
        for i, pair in enumerate(document["pairs"]):
            pair["target"] = str(i)
    pairs = compare(first, second)["averages"]["image_micro"]
    assert images["high"] - images["low"] > 1.5 * (pairs["high"] - pairs["low"])


def test_a_result_against_itself_differs_by_nothing() -> None:
    one = result(0, 0.5)
    for average in compare(one, copy.deepcopy(one))["averages"].values():
        assert (average["difference"], average["low"], average["high"], average["p"]) == (0, 0, 0, 1)


def test_pairing_narrows_the_interval_of_a_constant_gain() -> None:
    first = result(0, 0.5)
    better = copy.deepcopy(first)
    for pair in better["pairs"]:
        correct = pair["correct"]["ours"]
        correct["0.1"] = min(pair["points"], correct["0.1"] + 1)
    paired = compare(first, better)["averages"]["image_micro"]
    unpaired = compare(result(7, 0.5), better)["averages"]["image_micro"]
    assert paired["high"] - paired["low"] < 0.7 * (unpaired["high"] - unpaired["low"])
    assert paired["p"] <= 0.001


def test_only_shared_pairs_count_and_the_others_are_said() -> None:
    first, second = result(0, 0.5), result(0, 0.5)
    second["pairs"] = second["pairs"][10:]
    second["pairs"][0]["points"] += 1
    found = compare(first, second)
    assert (found["pairs"], found["only_in_one"], found["with_other_points"]) == (109, 10, 1)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = result(0, 0.5)
    with pytest.raises(InputError, match="two results of one split"):
        compare(one, {**one, "split": "val"})
    with pytest.raises(InputError, match="no pair in common"):
        compare(one, {**one, "pairs": []})
    with pytest.raises(InputError, match="one of ours"):
        compare(one, one, methods=(None, "theirs"))
    with pytest.raises(InputError, match=r"one of 0\.1, 0\.05"):
        compare(one, one, alpha="0.2")
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="no result of ditf eval"):
        read_result(tmp_path / "a.json")
    with pytest.raises(InputError, match="no such file"):
        read_result(tmp_path / "b.json")


def test_the_command_prints_a_table_or_one_document(tmp_path, capsys) -> None:
    paths = [str(tmp_path / f"{i}.json") for i in range(2)]
    for i, path in enumerate(paths):
        Path(path).write_text(json.dumps(result(i, 0.4 + 0.2 * i)))
    assert main(["eval", "compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["averages"]["point_micro"]["difference"] > 10
    assert main(["eval", "compare", *paths, "--alpha", "0.05"]) == 0
    assert "PCK@0.05: 120 pairs" in capsys.readouterr().out
    assert main(["eval", "compare", paths[0], str(tmp_path / "none.json")]) == 2
