"""Configs refuse what they cannot mean; features survive the disk; points are checked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf import ExtractConfig, FeatureMap, InputError, Matches, StoreError
from ditf.types import checked_points

CONFIG = ExtractConfig(block=3, timestep=260)


def features(**values) -> FeatureMap:
    tokens = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    return FeatureMap(**{"tokens": tokens, "grid": (3, 4), "image_size": (30, 40), **values})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block", -1), ("block", 1.5), ("timestep", 1001), ("timestep", float("nan")), ("timestep", "260"),
        ("ensemble", 0), ("topk_per_token", -1), ("latent", "mode"), ("discard", "all"), ("discard", (1, 1)),
        ("discard", (-3,)), ("discard_at", "middle"), ("normalization", "batch"), ("resize", "crop"), ("size", 0),
        ("size", (3, 4)), ("multiple", 0), ("guidance", float("inf")), ("seed", -1), ("condition", "x"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_what_is_expected(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}: got .*expected"):
        CONFIG.replace(**{name: value})


def test_longest_side_is_shorthand() -> None:
    config = CONFIG.replace(resize="stretch", size=(32, 64)).replace(longest_side=96)
    assert (config.resize, config.size) == ("longest", 96)


def test_an_unknown_override_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'blok', expected a field of ExtractConfig: .*block"):
        CONFIG.replace(blok=3)


def test_the_map_is_the_tokens_in_raster_order() -> None:
    f = features()
    assert f.map.shape == (5, 3, 4)
    assert torch.equal(f.map[:, 2, 1], f.tokens[2 * 4 + 1])
    assert f.map.data_ptr() == f.tokens.data_ptr()


@pytest.mark.parametrize(
    "values",
    [
        {"grid": (4, 4)}, {"grid": (12,)}, {"image_size": (0, 3)}, {"tokens": torch.zeros(12)},
        {"tokens": torch.zeros(12, 5, dtype=torch.int64)}, {"inverse_norm": torch.zeros(11)},
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(values: dict) -> None:
    with pytest.raises(InputError, match="got .*expected"):
        features(**values)


def test_saved_features_come_back_equal(tmp_path: Path) -> None:
    f = features(
        inverse_norm=torch.rand(12), block=3, timestep=260.0, card={"model": "x", "config": {"seed": 1}},
        canvas=(40, 40), offset=(0, 5),
    )  # fmt: skip
    back = FeatureMap.load(f.save(tmp_path / "f.safetensors"))
    assert torch.equal(back.tokens, f.tokens)
    assert torch.equal(back.inverse_norm, f.inverse_norm)
    for name in ("grid", "image_size", "block", "timestep", "card", "canvas", "offset"):
        assert getattr(back, name) == getattr(f, name)
    assert os.listdir(tmp_path) == ["f.safetensors"]


def test_a_missing_folder_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        features().save(tmp_path / "none" / "f.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    for name in ("bad.safetensors", "none.safetensors"):
        with pytest.raises(StoreError, match=name):
            FeatureMap.load(tmp_path / name)


def test_sampling_at_a_token_centre_gives_the_token() -> None:
    f = features()  # tokens of 10 x 10 pixels: centres at 4.5 + 10 i
    sampled = f.sample([(4.5, 4.5), (34.5, 24.5), (9.5, 4.5), (0, 0)])
    assert torch.allclose(sampled[0], f.tokens[0])
    assert torch.allclose(sampled[1], f.tokens[11])
    assert torch.allclose(sampled[2], (f.tokens[0] + f.tokens[1]) / 2)
    assert torch.equal(sampled[3], f.tokens[0])  # the border band takes the border token


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(40, 3)], r"x in 0\.\.39 and y in 0\.\.29 \(point 0\)"),
        ([(3, 3), (3, -1)], r"point 1"),
        ([(float("nan"), 3)], "finite"),
        ([1, 2, 3], r"shape \(K, 2\)"),
        ([(1, 2, 3)], r"shape \(K, 2\)"),
        ("ab", "numbers"),
    ],
)
def test_bad_points_are_named(points: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_points("points", points, (30, 40))


@pytest.mark.parametrize("points", [[], np.zeros((0, 2)), torch.zeros(0, 2)])
def test_no_points_are_fine(points: object) -> None:
    assert checked_points("points", points, (30, 40)).shape == (0, 2)


def test_matches_become_plain_json_with_none_for_nan() -> None:
    m = Matches(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), torch.tensor([0.5, torch.nan]))
    assert m.to_dict() == {"source": [[0, 0], [0, 0]], "target": [[1, 2], [-1, -1]], "score": [0.5, None]}
