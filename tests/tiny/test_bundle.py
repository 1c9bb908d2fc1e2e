"""The checkpoint that ships: small, finite, loadable, with a card that belongs to it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ditf.tiny
from ditf.presets import find_preset
from ditf.tiny.scenes import sample_scene

FOLDER = Path(ditf.tiny.__file__).parent
CARD = FOLDER / "card.json"


def test_the_weights_are_small_and_finite():
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 15e6
    weights = load_file(path)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_the_weights_fit_their_config_in_diffusers():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_config(json.loads((FOLDER / "config.json").read_text()))
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    patch = json.loads((FOLDER / "ditf.json").read_text())["patch"]
    assert model.config["in_channels"] == 3 * patch**2


def test_the_card_tells_where_the_weights_come_from_and_what_they_score():
    card = json.loads(CARD.read_text())
    assert card["training"]["images"] > 0
    sets = card["evaluation"]["sets"]
    for name in ("semantic", "held-out-kinds", "held-out-styles", "geometric", "photographs"):
        rows = sets[name]["rows"]
        assert {"raw", "layernorm", "adaln", "random network, adaln", "identity", "best constant shift"} < rows.keys()
        value, low, high = rows["adaln"]["pck"]["0.1"]["point_micro"]
        assert 0 < low <= value <= high < 100
    assert sets["photographs"]["rows"]["identity"]["pck"]["0.1"]["point_micro"][0] < 10
    assert card["evaluation"]["temporal"]["rows"]["adaln"]["j_and_f"][0] > 0
    text = (FOLDER / "CARD.md").read_text()
    assert f"{card['training']['images']:,}" in text


@pytest.mark.parametrize(("task", "section"), [("semantic", "semantic"), ("geometric", "photographs")])
def test_the_card_was_measured_with_the_presets(task, section):
    config = find_preset("ditf-tiny", task, num_blocks=1000).config
    measured = json.loads(CARD.read_text())["evaluation"]["sets"][section]["config"]
    assert measured == json.loads(json.dumps(dataclasses.asdict(config)))


def test_the_massive_channel_of_the_card_is_there():
    card = json.loads(CARD.read_text())
    block = card["evaluation"]["sets"]["photographs"]["config"]["block"]
    row = next(row for row in card["evaluation"]["massive channels"] if row["block"] == block)
    fx = ditf.FeatureExtractor.from_pretrained(
        "ditf-tiny", block=block, timestep=100, ensemble=1, size=64, normalization="none", discard="none"
    )
    tokens = torch.cat([fx(sample_scene(seed).pixels).tokens for seed in range(4)])
    magnitude = tokens.abs().mean(0)
    assert int(magnitude.argmax()) == row["channel"]
    assert float(magnitude.max() / magnitude.median()) == pytest.approx(row["ratio to median"], rel=0.3)


def test_importing_the_package_is_light():
    heavy = ("diffusers", "transformers", "cv2", "skimage", "matplotlib", "triton")
    code = f"import sys, ditf.tiny.scenes; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
