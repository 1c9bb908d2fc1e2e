"""The tap shows what enters a block and what the block's own AdaLN makes of it, in every family, and stops there."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ditf import InputError, ModelError
from ditf.backbones import run_to_blocks, tap
from ditf.backbones.modulation import MODULATION
from ditf.backbones.stacks import ARCHITECTURES, block_sites

from . import tiny_models as tiny

GOLDEN = Path(__file__).parent.parent / "golden" / "flux_pre_adaln.safetensors"
GRID = (4, 6)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]], int]] = {
    "flux": (tiny.flux, tiny.flux_inputs, 5),
    "flux-schnell": (lambda: tiny.flux(guidance_embeds=False), lambda: {**tiny.flux_inputs(), "guidance": None}, 5),
    "sd3": (lambda: tiny.sd3(dual_attention_layers=(), qk_norm=None), tiny.sd3_inputs, 3),
    "sd3.5-dual": (lambda: tiny.sd3(dual_attention_layers=(0, 1)), tiny.sd3_inputs, 3),
    "pixart": (tiny.pixart, tiny.pixart_inputs, 3),
}
CASES = [(name, block) for name, (_, _, count) in MODELS.items() for block in range(count)]


class Stop(Exception):  # noqa: N818
    pass


def attention_input(model: nn.Module, block: int, inputs: dict[str, Any]) -> Tensor:
    """What the block itself feeds its attention: seen by a hook of the test's own."""
    site, seen = block_sites(model)[block], []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        raise Stop

    attention: Any = getattr(site.module, "attn", None) or site.module.attn1
    handle = attention.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), pytest.raises(Stop):
            model(**inputs)
    finally:
        handle.remove()
    return seen[0][:, -24:]  # FLUX's single blocks put the text first


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def golden() -> tuple[Any, dict[str, Any], dict[str, Tensor], tuple[int, ...], int]:
    """The model, its inputs, what is expected, the discarded channels and the block."""
    from diffusers import FluxTransformer2DModel

    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "input": {}, "expect": {}}
    with safe_open(GOLDEN, "pt") as file:
        about = file.metadata()
        for key in file.keys():  # noqa: SIM118 (not a dict)
            part, name = key.split("/", 1)
            parts[part][name] = file.get_tensor(key)
    model = FluxTransformer2DModel(**json.loads(about["config"]))
    model.load_state_dict(parts["weight"])
    given = parts["input"]
    inputs = {
        "hidden_states": given["img"],
        "encoder_hidden_states": given["txt"],
        "pooled_projections": given["y"],
        "timestep": given["t"],
        "guidance": given["g"],
        "img_ids": given["img_ids"][0],
        "txt_ids": given["txt_ids"][0],
    }
    return model, inputs, parts["expect"], tuple(json.loads(about["discard"])), int(about["block"])


def test_reference_implementation_is_reproduced():
    model, inputs, expect, discard, block = golden()
    assert model.training
    plain = tap(model, block, inputs, grid=(5, 7), ensemble=2)
    discarded = tap(model, block, inputs, grid=(5, 7), ensemble=2, discard=discard)
    assert model.training, "train mode was not restored"
    assert relative(plain.raw, expect["pre_adaln_tokens"]) < 1e-5
    assert plain.shift is not None
    assert plain.scale is not None
    assert relative(plain.shift, expect["shift"][:1]) < 1e-5
    assert relative(plain.scale, expect["scale"][:1]) < 1e-5
    assert relative(plain.features, expect["ensemble_adaln"]) < 1e-5
    assert relative(discarded.features, expect["ensemble_adaln_discard"]) < 1e-5
    assert plain.features.shape == (1, 35, 48)
    assert plain.features.dtype == torch.float32


@pytest.mark.parametrize(("name", "block"), CASES)
def test_feature_is_what_the_block_feeds_its_attention(name: str, block: int):
    make, make_inputs, count = MODELS[name]
    model, inputs = make(), make_inputs()
    assert len(block_sites(model)) == count
    taken = tap(model, block, inputs, grid=GRID)
    assert relative(taken.features, attention_input(model, block, inputs)) < 1e-5
    assert taken.shift is not None
    assert float(taken.shift.abs().max()) > 0.05, "a modulation of zero proves nothing"


@pytest.mark.parametrize("name", ["flux", "sd3.5-dual", "pixart"])
def test_probe_recovers_the_modulation_of_a_class_without_a_row(name: str, monkeypatch: pytest.MonkeyPatch):
    make, make_inputs, count = MODELS[name]
    model, inputs = make(), make_inputs()
    known = run_to_blocks(model, range(count), inputs, GRID)
    monkeypatch.setattr("ditf.backbones.modulation.MODULATION", {})
    probed = run_to_blocks(model, range(count), inputs, GRID)
    for block in range(count):
        assert torch.equal(probed[block].tokens, known[block].tokens)
        assert probed[block].norm == "layer"
        for part in ("shift", "scale"):
            assert relative(getattr(probed[block], part), getattr(known[block], part)) < 1e-5
            assert getattr(probed[block], part).shape == getattr(known[block], part).shape


@pytest.mark.parametrize("name", list(MODELS))
def test_many_blocks_of_one_forward_equal_each_alone(name: str):
    make, make_inputs, count = MODELS[name]
    model, inputs = make(), make_inputs()
    together = run_to_blocks(model, [count - 1, 0, 1], inputs, GRID)
    assert list(together) == [count - 1, 0, 1]
    for block, taken in together.items():
        alone = run_to_blocks(model, [block], inputs, GRID)[block]
        assert torch.equal(taken.tokens, alone.tokens)
        assert torch.equal(taken.shift, alone.shift)


def test_nothing_after_the_tapped_block_runs():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    ran: list[str] = []
    for site in block_sites(model):
        site.module.register_forward_pre_hook(lambda module, args, name=site.name: ran.append(name))
    model.proj_out.register_forward_pre_hook(lambda module, args: ran.append("head"))
    run_to_blocks(model, [3], inputs, GRID)
    assert ran == [site.name for site in block_sites(model)[:4]]


def test_no_hook_stays_behind():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    before = model(**inputs).sample
    run_to_blocks(model, [1, 3], inputs, GRID)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(**inputs).sample, before)


def test_compiled_blocks_are_tapped_too():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    expected = run_to_blocks(model, [3], inputs, GRID)[3].tokens
    for site in block_sites(model):
        site.module.compile(backend="eager")
    assert torch.equal(run_to_blocks(model, [3], inputs, GRID)[3].tokens, expected)
    assert all(site.module._compiled_call_impl is not None for site in block_sites(model))
    assert torch.equal(run_to_blocks(torch.compile(model, backend="eager"), [3], inputs, GRID)[3].tokens, expected)


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_offloaded_models_are_tapped_too(name: str):
    from accelerate import cpu_offload

    make, make_inputs, count = MODELS[name]
    inputs = make_inputs()
    expected = run_to_blocks(make(), [count - 1], inputs, GRID)[count - 1]
    model = make()
    cpu_offload(model, execution_device=torch.device("cpu"))
    taken = run_to_blocks(model, [count - 1], inputs, GRID)[count - 1]
    assert torch.equal(taken.tokens, expected.tokens)
    assert torch.equal(taken.shift, expected.shift)  # pyright: ignore


def test_threads_that_share_a_model_do_not_mix():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    expected = run_to_blocks(model, range(5), inputs, GRID)
    with ThreadPoolExecutor(4) as pool:
        taken = pool.map(lambda block: run_to_blocks(model, [block], inputs, GRID)[block].tokens, list(range(5)) * 4)
    for block, tokens in zip(list(range(5)) * 4, taken, strict=True):
        assert torch.equal(tokens, expected[block].tokens)


def test_ensemble_is_averaged_before_the_norm():
    model, inputs = tiny.flux(), tiny.flux_inputs(batch=4)
    for name in ("encoder_hidden_states", "pooled_projections"):
        inputs[name] = inputs[name][:1].expand(4, *inputs[name].shape[1:])
    taken = tap(model, 3, inputs, grid=GRID, ensemble=2, discard=(1, 5), topk_per_token=2)
    assert taken.shift is not None
    assert taken.scale is not None
    x = taken.raw.double().unflatten(0, (2, 2)).mean(1)
    x[..., [1, 5]] = 0
    x = x.scatter(2, x.abs().topk(2, dim=2).indices, 0.0)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = x * (1 + taken.scale.double()) + taken.shift.double()
    assert taken.features.shape == (2, 24, 32)
    assert relative(taken.features, expected) < 1e-5


def test_discard_at_the_output_zeroes_the_feature():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    plain = tap(model, 3, inputs, grid=GRID)
    taken = tap(model, 3, inputs, grid=GRID, discard=(4,), discard_at="output")
    expected = plain.features.clone()
    expected[..., 4] = 0
    assert torch.equal(taken.features, expected)


def test_normalizations_leave_out_what_they_say():
    model, inputs = tiny.flux(), tiny.flux_inputs()
    untouched = tap(model, 3, inputs, grid=GRID, ensemble=2, normalization="none", discard=(3,), topk_per_token=1)
    mean = untouched.raw.double().mean(0, keepdim=True)
    mean[..., 3] = 0
    assert relative(untouched.features, mean.scatter(2, mean.abs().argmax(2, keepdim=True), 0.0)) < 1e-6
    norm = tap(model, 3, inputs, grid=GRID, normalization="layernorm")
    assert relative(norm.features, torch.nn.functional.layer_norm(untouched.raw.double(), (32,), eps=1e-6)) < 1e-5


@pytest.mark.parametrize("block", [0, 3])
def test_reference_images_after_the_target_are_left_out(block: int):
    model, inputs = tiny.flux(), tiny.flux_inputs(height=6)
    with pytest.raises(InputError, match=rf"grid: got 24 image tokens, but block {block} sees"):
        run_to_blocks(model, [block], inputs, GRID)
    inputs["img_ids"][24:, 0] = 1  # as FLUX.1-Kontext marks its reference: the last two rows
    taken = run_to_blocks(model, [block], inputs, GRID)[block]
    assert torch.equal(taken.tokens, run_to_blocks(model, [block], inputs, (6, 6))[block].tokens[:, :24])


class Mixer(nn.Module):
    """A block no table knows: RMSNorm with weight, scale only, text before image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm = nn.RMSNorm(width, eps=1e-5)
        self.to_scale = nn.Linear(width, width)
        self.attn = MixerAttention(width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.attn(self.first_norm(x) * (1 + self.to_scale(condition)[:, None]))


class MixerAttention(nn.MultiheadAttention):
    def __init__(self, width: int) -> None:
        super().__init__(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, x, x, need_weights=False)[0]


class UnknownTransformer(nn.Module):
    def __init__(self, width: int = 16, text: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Parameter(torch.randn(1, text, width))
        self.stem = nn.ModuleList([nn.Linear(4, 4)])
        self.layers = nn.ModuleList([Mixer(width) for _ in range(3)])
        for layer in self.layers:
            nn.init.normal_(layer.first_norm.weight)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([self.text.expand(len(tokens), -1, -1), tokens], 1)
        for layer in self.layers:
            x = layer(x, condition)
        return x


def test_unknown_class_is_probed():
    model = UnknownTransformer()
    inputs = {"tokens": tiny.noise(2, 24, 16), "condition": tiny.noise(2, 16, seed=1)}
    taken = tap(model, 2, inputs, grid=GRID, layout="text+image")
    block: Any = model.layers[2]
    assert taken.norm == "rms"
    assert taken.raw.shape == (2, 24, 16)
    expected = block.first_norm(taken.raw) * (1 + block.to_scale(inputs["condition"])[:, None])
    assert relative(taken.features, expected) < 1e-5
    assert torch.equal(taken.raw, tap(model, 2, inputs, grid=GRID, layout="last").raw)


def test_unknown_class_with_text_asks_for_the_layout():
    inputs = {"tokens": tiny.noise(2, 24, 16), "condition": tiny.noise(2, 16, seed=1)}
    with pytest.raises(InputError, match=r"24 image tokens, but block 1 sees 27.*layout="):
        tap(UnknownTransformer(), 1, inputs, grid=GRID)


def test_unknown_class_without_text_needs_no_layout():
    inputs = {"tokens": tiny.noise(2, 24, 16), "condition": tiny.noise(2, 16, seed=1)}
    assert tap(UnknownTransformer(text=0), 1, inputs, grid=GRID).features.shape == (2, 24, 16)


def test_subclass_inherits_its_parents_row():
    from diffusers import FluxTransformer2DModel

    class FineTune(FluxTransformer2DModel):
        pass

    model = tiny.flux()
    expected = run_to_blocks(model, [3], tiny.flux_inputs(), GRID)[3].tokens
    model.__class__ = FineTune
    assert torch.equal(run_to_blocks(model, [3], tiny.flux_inputs(), GRID)[3].tokens, expected)


def test_a_wrong_formula_is_noticed(monkeypatch: pytest.MonkeyPatch):
    right = MODULATION["FluxSingleTransformerBlock"]
    monkeypatch.setitem(MODULATION, "FluxSingleTransformerBlock", lambda *seen: right(*seen)[::-1])
    with pytest.raises(ModelError, match=r"block 3 .* differs .* by \d.*allowed 0\.0001.*report"):
        tap(tiny.flux(), 3, tiny.flux_inputs(), grid=GRID)


def test_half_precision_passes_its_own_check():
    model = tiny.flux().to(torch.bfloat16)
    inputs = {k: v.bfloat16() if k not in ("img_ids", "txt_ids") else v for k, v in tiny.flux_inputs().items()}
    taken = tap(model, 3, inputs, grid=GRID)
    assert taken.raw.dtype == torch.bfloat16
    assert taken.features.dtype == torch.float32
    assert relative(taken.features, tap(tiny.flux(), 3, tiny.flux_inputs(), grid=GRID).features) < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": 5}, r"block: got 5, expected an index in 0\.\.4"),
        ({"block": -1}, r"block: got -1, expected an index in 0\.\.4"),
        ({"block": 1.5}, r"block: got 1\.5, expected an integer"),
        ({"grid": (5, 5)}, r"grid: got 25 image tokens, but block 1 sees 24"),
        ({"grid": (4, 0)}, r"grid: got \(4, 0\)"),
        ({"grid": 24}, r"grid: got 24"),
        ({"ensemble": 3}, r"ensemble: got 3, expected a divisor of the batch of 2"),
        ({"discard": (32,)}, r"discard: got 32, expected channels in 0\.\.31"),
        ({"discard_at": "middle"}, r"discard_at: got 'middle'"),
        ({"normalization": "batch"}, r"normalization: got 'batch'"),
        ({"layout": "img"}, r"layout: got 'img', expected one of image, "),
        ({"fused": "maybe"}, r"fused: got 'maybe'"),
        ({"inputs": [1]}, r"inputs: got 'list'"),
        ({"transformer": "flux"}, r"transformer: got 'str'"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], words: str):
    arguments = {"transformer": tiny.flux(), "block": 1, "inputs": tiny.flux_inputs(), "grid": GRID, **changes}
    with pytest.raises(InputError, match=words):
        tap(**arguments)


def test_single_block_grid_must_leave_room_for_the_text():
    with pytest.raises(InputError, match=r"grid: got 31 image tokens, but block 3 sees 31"):
        tap(tiny.flux(), 3, tiny.flux_inputs(), grid=(1, 31))


def test_a_module_without_blocks_is_no_transformer():
    with pytest.raises(ModelError, match="no list of transformer blocks"):
        tap(nn.Linear(2, 2), 0, {}, grid=GRID)


def test_a_block_that_is_skipped_is_said():
    inputs = {**tiny.sd3_inputs(), "skip_layers": [1]}
    with pytest.raises(ModelError, match=r"block 1 .* never reached"):
        tap(tiny.sd3(), 1, inputs, grid=GRID)


@pytest.mark.parametrize("make", [tiny.flux, tiny.sd3, tiny.pixart])
def test_every_row_names_attributes_of_its_class(make: Callable[[], Any]):
    model = make()
    for part in ARCHITECTURES[type(model).__name__].head:
        assert hasattr(model, part)
