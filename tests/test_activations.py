"""Site, activation and condition reach the features of an image as they reach ``ditf.tap``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ditf

PHOTO = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
CHOICES: list[dict[str, Any]] = [
    {"site": "mlp"},
    *({"activation": name} for name in ("q", "k", "v", "attention", "mlp")),
    *({"condition": name} for name in ("t", "c", "none")),
]


def extractor(**overrides: Any) -> ditf.FeatureExtractor:
    small = {"size": 64, "ensemble": 2, "timestep": 260, "block": 0}
    return ditf.FeatureExtractor.from_pretrained("ditf-tiny", device="cpu", **{**small, **overrides})


@pytest.fixture(scope="module")
def usual() -> torch.Tensor:
    return extractor()(PHOTO).tokens


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))
def test_features_are_those_of_the_tap(choice: dict[str, Any], usual: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    fx = extractor(**choice)
    given: list[tuple[Any, Any]] = []
    run = fx.backbone.run

    def watched(blocks: Any, inputs: Any, grid: Any, **chosen: Any) -> Any:
        given.append((inputs, grid))
        return run(blocks, inputs, grid, **chosen)

    monkeypatch.setattr(fx.backbone, "run", watched)
    features = fx(PHOTO)
    (inputs, grid), discard = given[0], fx.config.discard
    channels = discard if isinstance(discard, tuple) else ()
    taken = ditf.tap(fx.backbone.transformer, 0, inputs, grid=grid, ensemble=2, discard=channels, **choice)
    assert torch.allclose(features.tokens, taken.features[0], rtol=1e-5, atol=1e-5)
    assert features.tokens.shape[1] != usual.shape[1] or not torch.allclose(features.tokens, usual, atol=1e-3)
    assert features.card["config"] | choice == features.card["config"]


def test_a_block_without_the_site_says_so():
    with pytest.raises(ditf.InputError, match='site: got "mlp", but block .* use site="attention"'):
        extractor(site="mlp", block=5)(PHOTO)
