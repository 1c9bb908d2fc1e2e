"""Shift and scale made of the timestep alone, of the pooled text alone, or of nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ditf import InputError, ModelError, tap
from ditf.backbones import run_to_blocks
from ditf.backbones.conditions import CONDITIONS, Sources

from ..zoo import ZOO, Sample, flux, sd3, wan
from . import tiny_models as tiny

WITH_TEXT = ("flux", "sd3", "sd3.5-dual", "hunyuan-video", "framepack", "hidream", "kandinsky-5", "mochi")
TIMESTEP_ALONE = (
    "auraflow", "bria", "bria-fibo", "longcat-image", "ovis-image", "qwen-image", "z-image", "cogvideox-2b",
    "easyanimate",
)  # fmt: skip
TIMESTEPS = ("timestep", "timesteps", "t")
POOLED = ("pooled_projections", "pooled_embeds")


def modulation(sample: Sample, block: int, condition: Any, **changes: Any) -> Tensor:
    inputs = {**copy.deepcopy(sample.inputs), **changes}
    taken = run_to_blocks(sample.model, [block], inputs, sample.grid, condition=condition)[block]
    return torch.cat([v for v in (taken.shift, taken.scale) if v is not None], -1)


def other_timestep(sample: Sample) -> dict[str, Any]:
    name = next(name for name in TIMESTEPS if name in sample.inputs)
    return {name: sample.inputs[name] // 2 if sample.inputs[name].dtype == torch.int64 else sample.inputs[name] / 2}


def other_text(sample: Sample) -> dict[str, Any]:
    changed = {}
    for name in ("encoder_hidden_states", "encoder_hidden_states_t5", *POOLED):
        if isinstance(value := sample.inputs.get(name), Tensor):
            changed[name] = value + torch.linspace(-1, 1, value.shape[-1])
    return changed or {"cap_feats": [text + 1 for text in sample.inputs["cap_feats"]]}


def test_every_known_family_is_tested():
    samples = [ZOO[name]() for name in (*WITH_TEXT, *TIMESTEP_ALONE)]
    assert set(CONDITIONS) == {type(sample.model).__name__ for sample in samples}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_timestep_and_text_reach_only_what_is_named_after_them(name: str):
    sample = ZOO[name]()
    time, text = other_timestep(sample), other_text(sample)
    for condition, moved_by_time, moved_by_text in (
        ("t&c", True, True),
        ("t", True, False),
        ("c", False, True),
        ("none", False, False),
    ):
        for block in (0, 1):
            as_given = modulation(sample, block, condition)
            assert torch.equal(modulation(sample, block, condition, **time), as_given) != moved_by_time
            assert torch.equal(modulation(sample, block, condition, **text), as_given) != moved_by_text


@pytest.mark.parametrize("name", TIMESTEP_ALONE)
def test_a_family_without_pooled_text_has_the_timestep_alone(name: str):
    sample = ZOO[name]()
    as_given = modulation(sample, 0, "t&c")
    assert torch.equal(modulation(sample, 0, "t&c", **other_text(sample)), as_given)
    assert torch.equal(modulation(sample, 0, "t"), as_given)
    nothing = modulation(sample, 0, "none")
    assert not torch.equal(nothing, as_given)
    assert torch.equal(modulation(sample, 0, "none", **other_timestep(sample)), nothing)
    with pytest.raises(InputError, match=r"condition: got 'c', expected .* has no pooled text"):
        modulation(sample, 0, "c")


@pytest.mark.parametrize("block", [0, 3])
def test_flux_conditions_are_those_of_its_embedders(block: int):
    sample = flux()
    model, given = sample.model, sample.inputs
    embed, module = model.time_text_embed, [*model.transformer_blocks, *model.single_transformer_blocks][block]
    norm = module.norm1 if block == 0 else module.norm
    time = embed.timestep_embedder(embed.time_proj(given["timestep"] * 1000))
    time = time + embed.guidance_embedder(embed.time_proj(given["guidance"] * 1000))
    text = embed.text_embedder(given["pooled_projections"])
    for condition, vector in {"t&c": time + text, "t": time, "c": text, "none": torch.zeros_like(text)}.items():
        taken = tap(model, block, copy.deepcopy(given), grid=sample.grid, condition=condition)  # pyright: ignore
        shift, scale = norm.linear(torch.nn.functional.silu(vector))[:, None].split(32, -1)[:2]
        assert taken.shift is not None
        assert torch.allclose(taken.shift, shift, rtol=1e-5, atol=1e-6)
        assert taken.scale is not None
        assert torch.allclose(taken.scale, scale, rtol=1e-5, atol=1e-6)
        x = torch.nn.functional.layer_norm(taken.raw, (32,), eps=1e-6)
        assert torch.allclose(taken.features, x * (1 + scale) + shift, atol=1e-5)


def test_a_model_without_guidance_has_a_timestep_too():
    model, inputs = tiny.flux(guidance_embeds=False), {**tiny.flux_inputs(), "guidance": None}
    embed = model.time_text_embed
    vector = embed.timestep_embedder(embed.time_proj(inputs["timestep"] * 1000))
    taken = tap(model, 3, inputs, grid=(4, 6), condition="t")
    shift = model.single_transformer_blocks[1].norm.linear(torch.nn.functional.silu(vector))[:, None, :32]
    assert taken.shift is not None
    assert torch.allclose(taken.shift, shift, rtol=1e-5, atol=1e-6)


def test_the_condition_reaches_the_tapped_block_alone():
    sample = sd3()
    expected = tap(sample.model, 2, copy.deepcopy(sample.inputs), grid=sample.grid).raw
    assert torch.equal(
        tap(sample.model, 2, copy.deepcopy(sample.inputs), grid=sample.grid, condition="none").raw, expected
    )
    assert not any(module._forward_hooks for module in sample.model.modules())


def test_parts_that_do_not_add_up_are_noticed(monkeypatch: pytest.MonkeyPatch):
    wrong = Sources(timestep=("time_text_embed.timestep_embedder",), text=("time_text_embed.text_embedder",))
    monkeypatch.setitem(CONDITIONS, "FluxTransformer2DModel", wrong)
    sample = flux()
    with pytest.raises(ModelError, match="do not add up"):
        tap(sample.model, 1, sample.inputs, grid=sample.grid, condition="t")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"condition": "text"}, r"condition: got 'text', expected one of t&c, t, c, none"),
        ({"site": "norm2"}, r"site: got 'norm2', expected one of attention, mlp"),
        ({"activation": "x"}, r"activation: got 'x', expected one of block, q, "),
        ({"activation": "q", "site": "mlp"}, r"site: got 'mlp'"),
        ({"activation": "q", "condition": "t"}, r"condition: got 't', expected \"t&c\" unless"),
        ({"site": "mlp", "condition": "t"}, r"condition: got 't', expected \"t&c\" unless"),
    ],
)
def test_bad_choices_are_named(changes: dict[str, Any], words: str):
    sample = flux()
    with pytest.raises(InputError, match=words):
        tap(sample.model, 1, sample.inputs, grid=sample.grid, **changes)


def test_a_family_whose_conditioning_is_not_known_says_so():
    sample = wan()
    with pytest.raises(InputError, match="condition: got 't', .*WanTransformer3DModel"):
        tap(sample.model, 1, sample.inputs, grid=sample.grid, condition="t")


def test_tokens_with_a_timestep_of_their_own_are_not_taken_apart():
    sample = ZOO["hunyuan-video-token-replace"]()
    with pytest.raises(InputError, match="another timestep"):
        tap(sample.model, 1, sample.inputs, grid=sample.grid, condition="t")
