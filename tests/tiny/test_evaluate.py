"""The numbers of the card are counted as they should be."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf.benchmarks.synthetic import Network, Score, Setting, scene_cases, variants
from ditf.benchmarks.synthetic.evaluation import plan_of
from ditf.tiny import card, evaluate

FOLDER = Path(evaluate.__file__).parent


def test_a_score_counts_points_and_resamples_pairs():
    score = Score()
    truth = torch.tensor([[10.0, 10.0], [20.0, 20.0]])
    score.add(truth + torch.tensor([[0.0, 0.0], [8.0, 0.0]]), truth, 100.0)  # right; right at 0.1 only
    score.add(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 100.0)  # wrong
    samples = score.samples(500)
    assert samples[0].tolist() == pytest.approx([200 / 3, 100 / 3])
    assert set(np.round(samples[1:, 0]).astype(int)) == {0, 67, 100}
    value, low, high = score.row()["pck@0.1"]
    assert (value, low, high) == (66.7, 0.0, 100.0)


def test_differences_are_paired():
    one, other = Score(), Score()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        truth = torch.rand(5, 2, generator=generator) * 100
        predicted = truth + torch.randn(5, 2, generator=generator) * 15
        one.add(predicted, truth, 100.0)
        other.add(predicted, truth, 100.0)
    assert np.abs(one.samples() - other.samples()).max() == 0


def test_the_variants_are_those_of_the_extractor():
    import ditf

    setting = Setting(block=5, timestep=50, ensemble=2, size=32)
    network = Network("ditf-tiny", setting)
    picture = scene_cases(1, 0)[0].source
    made = variants(network.raw(picture), network.modulation(5), [91])
    options = {
        "raw": {"normalization": "none", "discard": "none"},
        "layernorm": {"normalization": "layernorm", "discard": "none"},
        "adaln": {"discard": "none"},
        "adaln + discard": {"discard": (91,)},
    }
    assert made.keys() == options.keys()
    for name, option in options.items():
        fx = ditf.FeatureExtractor.from_pretrained(
            "ditf-tiny", block=5, timestep=50, ensemble=2, size=32, **option
        )  # fmt: skip
        torch.testing.assert_close(made[name].tokens, fx(picture).tokens, rtol=1e-4, atol=1e-5)


def test_a_small_report_makes_a_card(tmp_path, monkeypatch):
    few = functools.partial(evaluate.massive_channels_of_blocks, pictures=8)
    monkeypatch.setattr(evaluate, "massive_channels_of_blocks", few)
    plan = dataclasses.replace(plan_of(1, sets=["semantic"]), pairs=12)
    for name in ("config.json", "ditf.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    numbers = evaluate.report(str(tmp_path), plan=plan)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert [row["block"] for row in numbers["massive channels"]] == list(range(len(numbers["massive channels"])))
    first = numbers["first pairs"]["semantic"]["identity"]["0.1"]
    share = numbers["sets"]["semantic"]["rows"]["identity"]["pck"]["0.1"]["point_micro"][0]
    assert share == pytest.approx(100 * sum(first) / numbers["counts"]["points"], abs=1e-4)  # its only group

    (tmp_path / "card.json").write_text('{"training": {"images": 1234, "seconds": 60, "data": "scenes"}}')
    card.write_card(tmp_path, numbers)
    written = json.loads((tmp_path / "card.json").read_text())
    assert written["training"]["images"] == 1234
    assert written["evaluation"] == numbers
    text = (tmp_path / "CARD.md").read_text()
    assert "1,234 procedural pictures" in text
    assert "best constant shift" in text
    assert "against the best pixel patches" in text
