"""From a pipeline folder to matches, for every family, as a user would: tiny random weights, no network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ditf
from ditf.cli import main

from .backbones import tiny_models

OPTIONS = {"device": "cpu", "size": 64, "ensemble": 2}
PROMPTS = {"dit": ("class:1", "class:7")}
"""A model that is told classes takes no texts."""


@pytest.fixture(scope="module", params=["flux", "sd3", "pixart"])
def folder(request, tmp_path_factory) -> Path:
    return Path(tiny_models.saved(request.param, tmp_path_factory.mktemp(request.param)))


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", list(tiny_models.PIPELINES))
def test_a_folder_becomes_features_and_matches(name: str, tmp_path: Path) -> None:
    cat, dog = PROMPTS.get(name, ("a photo of a cat", "a dog"))
    fx = ditf.FeatureExtractor.from_pretrained(tiny_models.saved(name, tmp_path), **OPTIONS)
    assert fx.backbone.family == name
    source, target = fx([picture(0), picture(1)], prompt=[cat, dog])
    side = fx.backbone.pixels_per_token
    assert source.grid == (max(1, round(64 * 2 / 3 / side)), 64 // side)
    assert torch.isfinite(source.tokens).all()
    assert len(ditf.match_points(source, target, [(10, 10), (90, 60)])) == 2
    assert torch.equal(fx(picture(1), prompt=dog).tokens, target.tokens)
    assert not torch.equal(fx(picture(1), prompt=cat).tokens, target.tokens)
    assert source.card["config"]["prompt"] == cat


def test_text_and_seed_reach_the_features(folder: Path) -> None:
    fx = ditf.FeatureExtractor.from_pretrained(str(folder), **OPTIONS)
    cat = fx(picture(0), prompt="a photo of a cat").tokens
    assert not torch.equal(cat, fx(picture(0), prompt="dog").tokens)
    assert not torch.equal(cat, fx(picture(0), prompt="a photo of a cat", seed=1).tokens)


def test_sampled_latents_differ_from_their_mean_and_repeat(folder: Path) -> None:
    mean, first, second = (
        ditf.FeatureExtractor.from_pretrained(str(folder), latent=latent, **OPTIONS)(picture(0)).tokens
        for latent in ("mean", "sample", "sample")
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, mean)


def test_the_vae_runs_once_per_image(folder: Path, monkeypatch) -> None:
    fx = ditf.FeatureExtractor.from_pretrained(str(folder), latent="sample", **{**OPTIONS, "ensemble": 3})
    calls = []
    posterior = fx.backbone.posterior
    monkeypatch.setattr(fx.backbone, "posterior", lambda pixels: calls.append(1) or posterior(pixels))
    fx([picture(0), picture(1)])
    assert len(calls) == 2


def test_truncated_and_whole_models_give_the_same_bits(folder: Path) -> None:
    truncated, whole = (
        ditf.FeatureExtractor.from_pretrained(str(folder), truncate=truncate, block=1, **OPTIONS)(picture(0)).tokens
        for truncate in (True, False)
    )
    assert torch.equal(truncated, whole)


def test_a_loaded_pipeline_gives_the_same_features(folder: Path) -> None:
    from diffusers import DiffusionPipeline

    given = ditf.FeatureExtractor(DiffusionPipeline.from_pretrained(folder), block=1, size=64, ensemble=2)
    loaded = ditf.FeatureExtractor.from_pretrained(str(folder), block=1, **OPTIONS)
    torch.testing.assert_close(given(picture(0)).tokens, loaded(picture(0)).tokens, rtol=1e-4, atol=1e-4)


def test_the_command_line_takes_the_folder(folder: Path, tmp_path: Path, capsys) -> None:
    for seed, name in enumerate(("a.png", "b.png")):
        picture(seed).save(tmp_path / name)
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(folder), "--point", "10,10"]
    assert main(["match", *arguments, "--size", "64", "--ensemble", "1", "--prompt", "a cat", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["target"]) == len(answer["score"]) == 1
