"""Every transformer class of the zoo, block by block: the tap takes the image's tokens as the block modulates them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditf import InputError, ModelError, tap
from ditf.backbones import run_to_blocks
from ditf.backbones.rules import MODULATION
from ditf.backbones.stacks import ARCHITECTURES, block_count, block_sites
from ditf.backbones.weights import drop_after

from .. import zoo
from ..zoo import ZOO, Sample

EVERY = pytest.mark.parametrize("name", list(ZOO))
MIXED_BEFORE = {"lumina-2", "z-image"}
"""Their image tokens attend to one another before the first block."""


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    """Made once: the tests leave the models as they are."""
    return {}


@pytest.fixture
def sample(name: str, samples: dict[str, Sample]) -> Iterator[Sample]:
    if name not in samples:
        samples[name] = ZOO[name]()
    given = samples[name]
    yield given._replace(inputs=copy.deepcopy(given.inputs))  # some models change the lists they are given
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in given.model.modules())


def blocks_of(sample: Sample) -> range:
    return range(len(block_sites(sample.model)))


def fresh(sample: Sample) -> dict[str, Any]:
    return copy.deepcopy(sample.inputs)


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


class Stop(Exception):  # noqa: N818
    pass


ATTENTIONS = ("attn", "attn1", "attention", "self_attention", "self_attn", "block.attn1")
FEED_FORWARDS = ("ff", "ffn", "feed_forward", "img_mlp", "mlp", "block.ff_i")


def part(sample: Sample, block: int, names: tuple[str, ...]) -> Any:
    parts = dict(block_sites(sample.model)[block].module.named_modules())
    return next((parts[name] for name in names if name in parts), None)


def at(sample: Sample, module: nn.Module, *, output: bool = False) -> Tensor:
    """All tokens that a part of a block is given, or answers: seen by a hook of the test's own."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *answer: Any) -> None:
        given = answer[:1] if answer else (kwargs.get("hidden_states"), kwargs.get("x"), *args)
        given = given[0] if answer and isinstance(given[0], tuple) else given
        seen.append(next(value for value in given if isinstance(value, Tensor)))
        raise Stop

    register = module.register_forward_hook if output else module.register_forward_pre_hook
    handle = register(look, with_kwargs=True)
    try:
        with torch.no_grad(), pytest.raises(Stop):
            sample.model(**fresh(sample))
    finally:
        handle.remove()
    return seen[0]


def attention_input(sample: Sample, block: int) -> Tensor:
    return at(sample, part(sample, block, ATTENTIONS))


def positions(features: Tensor, among: Tensor) -> list[int]:
    """Where the first of these consecutive tokens sits in each row, and that they are consecutive."""
    distance, position = torch.cdist(features.double(), among.double()).min(-1)
    assert float(distance.max()) < 1e-5 * float(among.double().norm(dim=-1).max())
    assert torch.equal(position, position[:, :1] + torch.arange(features.shape[1])), "other tokens, or another order"
    return position[:, 0].tolist()


@EVERY
def test_features_are_consecutive_tokens_of_what_each_block_feeds_its_attention(sample: Sample, name: str):
    count = math.prod(sample.grid)
    for block in blocks_of(sample):
        taken = tap(sample.model, block, fresh(sample), grid=sample.grid)
        seen = attention_input(sample, block)
        assert taken.features.shape == (len(seen), count, seen.shape[-1])
        assert taken.features.dtype == torch.float32
        assert taken.raw.shape == taken.features.shape
        positions(taken.features, seen)


@EVERY
def test_probe_gives_the_same_features_without_a_row(sample: Sample, name: str, monkeypatch: pytest.MonkeyPatch):
    known = [tap(sample.model, block, fresh(sample), grid=sample.grid) for block in blocks_of(sample)]
    monkeypatch.setattr("ditf.backbones.modulation.MODULATION", {})
    for block, expected in enumerate(known):
        taken = tap(sample.model, block, fresh(sample), grid=sample.grid)
        assert torch.equal(taken.raw, expected.raw)
        assert taken.norm == expected.norm
        assert relative(taken.features, expected.features) < 1e-5


def tokens_of(values: Tensor, sequence_first: bool = False) -> Tensor:
    """(B, S, D), also of what Sana's convolutions take and what ERNIE keeps as (S, B, D)."""
    if values.ndim == 4:
        return values.flatten(2).transpose(1, 2)
    return values.transpose(0, 1) if sequence_first else values.flatten(1, -2)


NO_FEED_FORWARD = re.compile(r"(Flux|Flux2|Chroma|Bria|.*Fibo|.*Image|Hunyuan.*|Motif.*)Single\w*Block|PRXBlock")
"""Block classes whose MLP runs beside the attention, or in layers of the block itself."""


@EVERY
def test_mlp_site_is_what_each_block_feeds_its_feed_forward_network(sample: Sample, name: str):
    for site in block_sites(sample.model):
        kind, network = type(site.module).__name__, part(sample, site.index, FEED_FORWARDS)
        if NO_FEED_FORWARD.fullmatch(kind) or kind.startswith("Flux3"):
            with pytest.raises(InputError, match=rf'site: got "mlp", but block {site.index} .* has no norm of its own'):
                tap(sample.model, site.index, fresh(sample), grid=sample.grid, site="mlp")
            continue
        taken = tap(sample.model, site.index, fresh(sample), grid=sample.grid, site="mlp")
        fed = tokens_of(at(sample, network), sequence_first=name == "ernie-image")
        positions(taken.features, fed)
        assert taken.norm in ("layer", "rms")
        assert not torch.equal(taken.raw, tap(sample.model, site.index, fresh(sample), grid=sample.grid).raw)


@EVERY
def test_mlp_activation_is_what_the_network_makes_of_the_mlp_site(sample: Sample, name: str):
    for site in block_sites(sample.model):
        kind, network = type(site.module).__name__, part(sample, site.index, FEED_FORWARDS)
        if NO_FEED_FORWARD.fullmatch(kind):
            with pytest.raises(InputError, match=rf'activation: got "mlp", but block {site.index} .* beside'):
                tap(sample.model, site.index, fresh(sample), grid=sample.grid, activation="mlp")
            continue
        taken = tap(sample.model, site.index, fresh(sample), grid=sample.grid, activation="mlp")
        where: Any = "attention" if kind.startswith("Flux3") else "mlp"
        entering = tap(sample.model, site.index, fresh(sample), grid=sample.grid, site=where).features
        if name.startswith("sana"):  # convolutions over the grid
            grid = sample.grid if len(sample.grid) == 3 else (1, *sample.grid)
            entering = entering.unflatten(1, grid)
            entering = entering if len(sample.grid) == 3 else entering[:, 0].movedim(-1, 1)
        with torch.no_grad():
            expected = tokens_of(network(entering))
        assert relative(taken.features, expected) < 1e-5
        assert taken.norm is taken.shift is taken.scale is None


PROJECTIONS: dict[Any, tuple[str, ...]] = {
    "q": ("to_q", "to_query"),
    "k": ("to_k", "to_key"),
    "v": ("to_v", "to_value"),
}
FUSED = ("img_qkv_proj", "img_attn_qkv", "to_qkv_mlp_proj")


@EVERY
def test_queries_keys_and_values_are_projections_of_the_features(sample: Sample, name: str):
    for block in blocks_of(sample):
        entering = tap(sample.model, block, fresh(sample), grid=sample.grid).features
        attention = part(sample, block, ATTENTIONS)
        for index, (activation, names) in enumerate(PROJECTIONS.items()):
            taken = tap(sample.model, block, fresh(sample), grid=sample.grid, activation=activation)
            own = next((getattr(attention, n) for n in names if hasattr(attention, n)), None)
            fused = next((getattr(attention, n) for n in FUSED if hasattr(attention, n)), None)
            with torch.no_grad():
                expected = own(entering) if own else fused(entering).split(entering.shape[-1], -1)[index]  # pyright: ignore[reportOptionalCall]
            assert relative(taken.features, expected) < 1e-5


@EVERY
def test_attention_activation_is_what_it_answers_for_the_image(sample: Sample, name: str):
    for block in blocks_of(sample):
        taken = tap(sample.model, block, fresh(sample), grid=sample.grid, activation="attention")
        entering = tap(sample.model, block, fresh(sample), grid=sample.grid)
        answer = at(sample, part(sample, block, ATTENTIONS), output=True).flatten(2)
        given = attention_input(sample, block)
        where = positions(taken.features, answer)
        assert answer.shape[1] in (given.shape[1], math.prod(sample.grid))
        if answer.shape[1] == given.shape[1]:
            assert where == positions(entering.features, given)


def test_fused_projections_are_taken_apart():
    sample = zoo.flux()
    expected = {a: tap(sample.model, 3, fresh(sample), grid=sample.grid, activation=a).features for a in PROJECTIONS}
    sample.model.fuse_qkv_projections()
    for activation, features in expected.items():
        taken = tap(sample.model, 3, fresh(sample), grid=sample.grid, activation=activation)
        assert relative(taken.features, features) < 1e-5


def test_activations_are_averaged_over_the_ensemble_and_nothing_else():
    sample = zoo.flux()
    taken = tap(
        sample.model, 1, fresh(sample), grid=sample.grid, activation="q", ensemble=2, discard=(3,), topk_per_token=2
    )
    assert relative(taken.features, taken.raw.mean(0, keepdim=True)) < 1e-6


def shifted(sample: Sample, token: tuple[int, int, int]) -> dict[str, Any]:
    """The inputs with 1 added to the patch of the image, or to the packed token, at (frame, row, column)."""
    (frame, row, column), (height, width), inputs = token, sample.grid[-2:], fresh(sample)
    kind = type(sample.model).__name__
    if "x" in inputs:  # a list of images (C, 1, H, W)
        for image in inputs["x"]:
            _patch(image, (height, width), row, column).add_(1)
        return inputs
    latent = inputs["hidden_states"]
    if latent.ndim == 3:
        text = int((inputs["indicator"][0] != 2).sum()) if "indicator" in inputs else 0
        latent[:, text + (frame * height + row) * width + column] += 1
    elif latent.ndim == 4:
        _patch(latent, (height, width), row, column).add_(1)
    elif kind == "Kandinsky5Transformer3DModel":  # (B, T, H, W, C)
        _patch(latent[:, frame].movedim(-1, 1), (height, width), row, column).add_(1)
    elif kind == "CogVideoXTransformer3DModel":  # (B, T, C, H, W)
        _patch(latent[:, frame], (height, width), row, column).add_(1)
    else:
        _patch(latent[:, :, frame], (height, width), row, column).add_(1)
    return inputs


def _patch(latent: Tensor, grid: tuple[int, int], row: int, column: int) -> Tensor:
    down, right = latent.shape[-2] // grid[0], latent.shape[-1] // grid[1]
    return latent[..., row * down : (row + 1) * down, column * right : (column + 1) * right]


@EVERY
def test_a_patch_of_the_image_moves_its_own_token_in_raster_order(sample: Sample, name: str):
    frames, (height, width) = sample.grid[0] if len(sample.grid) == 3 else 1, sample.grid[-2:]
    before = run_to_blocks(sample.model, [0], fresh(sample), sample.grid)[0].tokens
    for frame, row, column in ((frames - 1, 1, min(2, width - 1)), (0, height - 1, 0)):
        after = run_to_blocks(sample.model, [0], shifted(sample, (frame, row, column)), sample.grid)[0].tokens
        moved = (after - before).abs().amax(-1)
        index = (frame * height + row) * width + column
        assert moved.argmax(1).tolist() == [index] * len(moved)
        if name not in MIXED_BEFORE:
            moved[:, index] = 0
            assert float(moved.max()) < 1e-5


@EVERY
def test_nothing_after_the_tapped_block_runs(sample: Sample, name: str):
    sites, ran = block_sites(sample.model), []
    handles = [s.module.register_forward_pre_hook(lambda m, a, i=s.index: ran.append(i)) for s in sites]
    for part in ARCHITECTURES[type(sample.model).__name__].head:
        if isinstance(module := getattr(sample.model, part), nn.Module):
            handles.append(module.register_forward_pre_hook(lambda m, a: ran.append("head")))
    try:
        for block in blocks_of(sample):
            ran.clear()
            run_to_blocks(sample.model, [block], fresh(sample), sample.grid)
            assert ran == list(range(block + 1))
    finally:
        for handle in handles:
            handle.remove()


@EVERY
def test_what_follows_the_tapped_block_need_not_be_there(sample: Sample, name: str):
    expected = run_to_blocks(sample.model, blocks_of(sample), fresh(sample), sample.grid)
    for block in blocks_of(sample):
        model = copy.deepcopy(sample.model)
        drop_after(block)(model)
        left = model.state_dict()
        assert len(left) < len(sample.model.state_dict())
        taken = run_to_blocks(model, [block], fresh(sample), sample.grid)[block]
        assert torch.equal(taken.tokens, expected[block].tokens)


@EVERY
def test_config_tells_the_number_of_blocks(sample: Sample, name: str):
    assert block_count(type(sample.model).__name__, sample.model.config) == len(block_sites(sample.model))


def test_every_row_is_proved():
    samples = [make() for make in ZOO.values()]
    assert set(ARCHITECTURES) == {type(sample.model).__name__ for sample in samples}
    blocks = {type(site.module).__name__ for sample in samples for site in block_sites(sample.model)}
    assert set(MODULATION) == blocks


def test_frames_in_the_batch_become_tokens_of_one_video():
    sample = zoo.latte()
    model = zoo.made(type(sample.model), **{**sample.model.config, "video_length": 3})
    video = Sample(model, {**sample.inputs, "hidden_states": zoo.noise(2, 4, 3, 8, 12)}, (3, 4, 6))
    for block in blocks_of(video):
        taken = tap(video.model, block, fresh(video), grid=(3, 4, 6))
        assert taken.features.shape == (2, 72, 16)
        assert relative(taken.features.reshape(6, 24, 16), attention_input(video, block)) < 1e-5
    before, after = (
        tap(video.model, 0, given, grid=(3, 4, 6)).raw for given in (fresh(video), shifted(video, (2, 1, 3)))
    )
    moved = (after - before).abs().amax(-1)
    assert (moved > 1e-6).nonzero()[:, 1].tolist() == [2 * 24 + 6 + 3] * 2
    with pytest.raises(InputError, match=r"grid: got '4 frames'"):
        tap(video.model, 0, fresh(video), grid=(4, 4, 6))


def test_references_that_come_first_are_left_out():
    """FLUX.2 klein, while it fills its cache of keys and values."""
    sample = zoo.flux2()
    references, ids = zoo.noise(2, 24, 4, seed=9), zoo.image_ids(4, 6, 4)
    ids[:, 0] = 10
    more = {
        "hidden_states": torch.cat([references, sample.inputs["hidden_states"]], 1),
        "img_ids": torch.cat([ids, sample.inputs["img_ids"]]),
        "kv_cache_mode": "extract",
        "num_ref_tokens": 24,
    }
    both = Sample(sample.model, {**sample.inputs, **more}, (4, 6))
    for block in blocks_of(both):
        taken = tap(both.model, block, fresh(both), grid=(4, 6))
        assert relative(taken.features, attention_input(both, block)[:, -24:]) < 1e-5
    assert torch.equal(
        tap(both.model, 0, fresh(both), grid=(4, 6)).raw,
        tap(sample.model, 0, fresh(sample), grid=(4, 6)).raw,
    )


def test_tokens_that_the_model_reorders_are_refused():
    sample = zoo.kandinsky5()
    sparse = {"to_fractal": True, "sta_mask": None, "P": 0.9}
    with pytest.raises(InputError, match="to_fractal"):
        tap(sample.model, 0, {**fresh(sample), "sparse_params": sparse}, grid=(1, 4, 6))


@pytest.mark.parametrize("name", ["flux", "lumina-2", "cogvideox-2b", "omnigen", "krea-2", "wan-2.1"])
def test_offloaded_models_give_the_same_features(name: str):
    from accelerate import cpu_offload

    sample = ZOO[name]()
    expected = [tap(sample.model, block, fresh(sample), grid=sample.grid).features for block in blocks_of(sample)]
    cpu_offload(sample.model, execution_device=torch.device("cpu"))
    for _ in range(2):  # the first compares with the attention's input, the second leaves before it
        for block, features in enumerate(expected):
            assert relative(tap(sample.model, block, fresh(sample), grid=sample.grid).features, features) < 1e-5


@pytest.mark.parametrize("name", ["flux2", "hidream", "kandinsky-5", "ltx", "wan-2.1", "qwen-image", "sana"])
def test_bfloat16_passes_its_own_check(name: str):
    sample = ZOO[name]()
    exact = ("timestep", "timesteps", "img_ids", "txt_ids")

    def half(key: str, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point() and key not in exact
        return value.bfloat16() if floating else value

    inputs = {key: half(key, value) for key, value in fresh(sample).items()}
    expected = [tap(sample.model, block, fresh(sample), grid=sample.grid).features for block in blocks_of(sample)]
    exact_parts = tuple(sample.model._keep_in_fp32_modules or ())
    for part, weight in sample.model.named_parameters():
        weight.data = weight if any(exact in part for exact in exact_parts) else weight.bfloat16()
    for block, features in enumerate(expected):
        taken = tap(sample.model, block, copy.deepcopy(inputs), grid=sample.grid)
        assert taken.features.dtype == torch.float32
        assert relative(taken.features, features) < 0.15


def test_a_class_of_tomorrow_without_text_needs_no_row(monkeypatch: pytest.MonkeyPatch):
    sample = ZOO["wan-2.1"]()
    expected = tap(sample.model, 1, fresh(sample), grid=sample.grid).features
    monkeypatch.delitem(ARCHITECTURES, "WanTransformer3DModel")
    monkeypatch.delitem(MODULATION, "WanTransformerBlock")
    assert relative(tap(sample.model, 1, fresh(sample), grid=sample.grid).features, expected) < 1e-5


def test_a_class_of_tomorrow_with_text_is_told_the_layout(monkeypatch: pytest.MonkeyPatch):
    sample = ZOO["flux2"]()
    expected = tap(sample.model, 3, fresh(sample), grid=sample.grid).features
    monkeypatch.delitem(ARCHITECTURES, "Flux2Transformer2DModel")
    monkeypatch.delitem(MODULATION, "Flux2SingleTransformerBlock")
    with pytest.raises(InputError, match=r"24 image tokens, but block 3 sees 31 tokens.*layout="):
        tap(sample.model, 3, fresh(sample), grid=sample.grid)
    taken = tap(sample.model, 3, fresh(sample), grid=sample.grid, layout="text+image")
    assert relative(taken.features, expected) < 1e-5


def test_a_u_net_is_refused():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(ModelError, match=r"UNet2DConditionModel is a U-Net.*diffusion transformer"):
        tap(model, 0, {}, grid=(8, 8))
