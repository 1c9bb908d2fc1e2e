"""The numbers of the card are counted as they should be."""

import json

import numpy as np
import pytest
import torch

from ditf.benchmarks.synthetic import Network, Score, Setting, scene_cases, variants
from ditf.tiny import card, evaluate


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


def test_cases_for_tuning_and_for_the_card_differ_from_each_other():
    tuning, cards = (scene_cases(4, first) for first in (evaluate._TUNING, evaluate._CARD))
    for one, other in zip(tuning, cards, strict=True):
        assert not np.array_equal(one.source, other.source)


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


def test_a_small_report_holds_every_row_and_makes_a_card(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    small = {"semantic": Setting(5, 100, 1, 32), "geometric": Setting(5, 50, 1, 48)}
    monkeypatch.setattr(Setting, "of", small.__getitem__)
    monkeypatch.setattr(evaluate, "SCENE_SIDE", 32)
    monkeypatch.setattr(evaluate, "PHOTOGRAPH_SIDE", 96)
    numbers = evaluate.report(scenes=4, warps=1)
    for task in ("semantic", "photographs"):
        rows = numbers[task]["rows"]
        for name in ("raw", "layernorm", "adaln", "adaln + discard", "random network, adaln", "identity",
                     "best constant shift", "pixel patches 9 px", "pixel patches 25 px"):  # fmt: skip
            assert 0 <= rows[name]["pck@0.05"][0] <= rows[name]["pck@0.1"][0] <= 100
    assert numbers["photographs"]["mutual matches only"]["rows"].keys() > {"identity", "best constant shift"}
    assert len(numbers["massive channels"]) == 8
    assert json.loads(json.dumps(numbers)) == numbers

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((evaluate.Path(evaluate.__file__).parent / name).read_bytes())
    (tmp_path / "card.json").write_text('{"training": {"images": 1234, "seconds": 60, "data": "scenes"}}')
    card.write_card(tmp_path, numbers)
    written = json.loads((tmp_path / "card.json").read_text())
    assert written["training"]["images"] == 1234
    assert written["evaluation"] == numbers
    text = (tmp_path / "CARD.md").read_text()
    assert "1,234 procedural pictures" in text
    assert "best constant shift" in text
    assert text.count("\n| ") > 30
