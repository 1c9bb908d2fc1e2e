"""Presets say who published each value, and leave the rest marked as ditf's own."""

from __future__ import annotations

import dataclasses

import pytest

from ditf import InputError
from ditf.presets import CODE, DEFAULT, TASKS, find_preset


def test_flux_dev_is_the_reference_code() -> None:
    preset = find_preset("black-forest-labs/FLUX.1-dev", "semantic", num_blocks=57)
    c = preset.config
    assert (c.block, c.timestep, c.size, c.resize, c.ensemble) == (28, 260, 640, "longest", 8)
    assert c.rounding == "half-even"  # the released code uses Python's round
    assert (c.latent, c.discard, c.discard_at, c.guidance) == ("sample", (154, 1446), "input", 3.5)
    assert preset.untuned == ()
    assert preset.source["discard"] == CODE


def test_a_local_folder_of_the_same_name_is_the_same_model() -> None:
    assert find_preset("/models/FLUX.1-dev/", "semantic", num_blocks=57).config.discard == (154, 1446)


def test_the_protocols_differ_in_size_alone() -> None:
    code, paper = (
        find_preset("FLUX.1-dev", "semantic", num_blocks=57, protocol=p).config for p in ("ditf-code", "ditf-paper")
    )
    assert dataclasses.replace(code, size=960) == paper


def test_the_temporal_preset_is_that_of_the_video_evaluation() -> None:
    c = find_preset("black-forest-labs/FLUX.1-dev", "temporal", num_blocks=57).config
    assert (c.block, c.timestep, c.size, c.resize, c.ensemble) == (24, 90, 960, "shortest", 1)
    assert c.prompt == "a photo of a image"
    assert (c.multiple, c.rounding) == (32, "floor")  # 854 x 480 becomes 1696 x 960


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_model_is_tapped_at_half_its_depth_and_says_nobody_tuned_it(task, caplog) -> None:
    with caplog.at_level("INFO", logger="ditf"):
        preset = find_preset("someone/else", task, num_blocks=24)
    assert preset.config.block == 12
    assert preset.config.discard == "none"
    assert set(preset.source.values()) == {DEFAULT}
    assert "nobody tuned" in caplog.text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["FLUX.1-dev", "ditf-tiny", "other"])
def test_every_source_names_a_field_and_every_preset_discard_is_resolved(model: str, task: str) -> None:
    preset = find_preset(model, task, num_blocks=57)
    assert set(preset.source) <= {f.name for f in dataclasses.fields(preset.config)}
    assert preset.config.discard not in ("preset", "auto")


def test_a_model_too_shallow_for_its_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"block: got 28, expected an index in 0\.\.4"):
        find_preset("me/FLUX.1-dev", "semantic", num_blocks=5)


def test_a_protocol_without_published_values_is_refused() -> None:
    with pytest.raises(InputError, match="no published values"):
        find_preset("ditf-tiny", "semantic", num_blocks=8, protocol="ditf-paper")
