"""What diffusers offers to save memory or time leaves the features as they are, or as exact as its own forward."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditf
from ditf import ModelError
from ditf.backbones import backbone_from, load_backbone

from . import tiny_models as tiny

CPU = torch.device("cpu")
BLOCKS = {"flux": 3, "sd3": 2, "pixart": 2}
SIZES: dict[str, Any] = {"ensemble": 1, "size": 96, "discard": "none", "timestep": 260.0}
PICTURE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def extractor(pipeline: Any, block: int) -> ditf.FeatureExtractor:
    return ditf.FeatureExtractor(pipeline, block=block, fused=False, **SIZES)


def features(pipeline: Any, block: int) -> Tensor:
    """(N, D), the same from a first and a second call."""
    fx = extractor(pipeline, block)
    first, second = (fx(PICTURE, prompt="a cat").tokens for _ in range(2))
    assert torch.equal(first, second)
    return first


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return {name: features(tiny.PIPELINES[name](), block) for name, block in BLOCKS.items()}


def group_offload(kind: str, *, disk: bool = False) -> Callable[[Any], None]:
    def change(pipeline: Any) -> None:
        from diffusers.hooks import apply_group_offloading

        options: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        if disk:
            options["offload_to_disk_path"] = tempfile.mkdtemp(dir=pipeline.scratch)
        apply_group_offloading(pipeline.transformer, CPU, CPU, offload_type=kind, **options)

    return change


def sequential_offload(pipeline: Any) -> None:
    """``enable_sequential_cpu_offload`` of the parts that images pass; CLIP's text model takes it on a GPU only."""
    from accelerate import cpu_offload

    for part in (pipeline.transformer, pipeline.vae):
        cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


def compiled(pipeline: Any) -> None:
    if pipeline.transformer._repeated_blocks:
        pipeline.transformer.compile_repeated_blocks(backend="eager")
    else:
        for block in pipeline.transformer.transformer_blocks:
            block.compile(backend="eager")


MODES: dict[str, Callable[[Any], Any]] = {
    "model offload": lambda pipeline: pipeline.enable_model_cpu_offload(device="cpu"),
    "sequential offload": sequential_offload,
    "group offload of blocks": group_offload("block_level"),
    "group offload of leaves": group_offload("leaf_level"),
    "group offload of blocks to disk": group_offload("block_level", disk=True),
    "group offload of leaves to disk": group_offload("leaf_level", disk=True),
    "group offload of the whole pipeline": lambda pipeline: pipeline.enable_group_offload(
        CPU, CPU, offload_type="leaf_level"
    ),
    "native attention": lambda pipeline: pipeline.transformer.set_attention_backend("native"),
    "compiled blocks": compiled,
    "sliced VAE": lambda pipeline: pipeline.vae.enable_slicing(),
}
"""They compute the same."""


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("mode", list(MODES))
def test_features_are_those_of_the_plain_pipeline(plain: dict[str, Tensor], name: str, mode: str, tmp_path: Path):
    if mode == "compiled blocks" and name == "sd3":
        pytest.skip("as PixArt, whose class names no repeated blocks either")
    for fused in (False, True):
        pipeline = tiny.PIPELINES[name]()
        pipeline.scratch = tmp_path
        if fused:
            ditf.fuse(pipeline)
        MODES[mode](pipeline)
        got = features(pipeline, BLOCKS[name])
        assert gap(got, plain[name]) <= (1e-6 if fused else 0.0)


@pytest.mark.parametrize("mode", ["sequential offload", "group offload of blocks"])
def test_an_offloaded_model_can_be_fused_afterwards(plain: dict[str, Tensor], mode: str):
    pipeline = tiny.flux_pipeline()
    MODES[mode](pipeline)
    ditf.fuse(pipeline)
    assert gap(features(pipeline, BLOCKS["flux"]), plain["flux"]) < 1e-6


# ---- fewer bits: as exact as the model's own forward -------------------------------------------------------------


def seen_by_the_attention(transformer: nn.Module, block: nn.Module, inputs: dict[str, Any], count: int) -> Tensor:
    """(N, D) image tokens that a block's attention gets in a whole forward, nothing left early."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0, -count:])

    handle = block.get_submodule("attn" if hasattr(block, "attn") else "attn1").register_forward_pre_hook(
        look, with_kwargs=True
    )
    with torch.no_grad():
        transformer(**inputs)
    handle.remove()
    return seen[0]


def own_inputs(fx: ditf.FeatureExtractor, prompt: str) -> dict[str, Any]:
    from ditf.images import prepare

    prepared = prepare(PICTURE, fx.config, fx.backbone.pixels_per_token)
    latents = fx._noised_latents(prepared, fx.config)
    return fx.backbone.inputs(latents, fx.config.timestep, [prompt], fx.config.guidance)


def last_block(name: str, transformer: Any) -> Any:
    return transformer.single_transformer_blocks[1] if name == "flux" else transformer.transformer_blocks[2]


def float8_storage(pipeline: Any) -> None:
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def int8_weights(pipeline: Any) -> None:
    """Weights in int8 on torch's own means: modules without ``weight`` tensors."""
    for name, module in list(pipeline.transformer.named_modules()):
        if type(module) is nn.Linear:
            parent = pipeline.transformer.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Int8Linear(module))


class Int8Linear(nn.Module):
    """Weight-only int8, one scale per row, as quantisers of every library do it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.scale
        packed: Any = self.packed
        return nn.functional.linear(x, (packed * scale).to(x.dtype), self.bias)


FEWER_BITS: dict[str, tuple[Callable[[Any], None], float]] = {
    "float8 storage": (float8_storage, 0.2),
    "int8 weights": (int8_weights, 0.05),
}
"""A change and how far the features may move: what the bits of the weights allow, on random ones."""


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("mode", list(FEWER_BITS))
@pytest.mark.parametrize("fused", [False, True])
def test_fewer_bits_are_as_exact_as_the_models_own_forward(plain: dict[str, Tensor], name: str, mode: str, fused: bool):
    change, limit = FEWER_BITS[mode]
    pipeline = tiny.PIPELINES[name]()
    if fused:
        ditf.fuse(pipeline)
    change(pipeline)
    fx = extractor(pipeline, BLOCKS[name])
    got = features(pipeline, BLOCKS[name])
    inputs = own_inputs(fx, "a cat")
    expected = seen_by_the_attention(pipeline.transformer, last_block(name, pipeline.transformer), inputs, len(got))
    assert fx.backbone.dtype == torch.float32  # that of the computation, not of the storage
    assert gap(got, expected) < 1e-5
    assert 0 < gap(got, plain[name]) < limit


def test_torchao_weights_are_as_exact_as_the_models_own_forward(plain: dict[str, Tensor], tmp_path: Path):
    pytest.importorskip("torchao", reason="quantises checkpoints")
    from diffusers import FluxTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]

    tiny.tiny_flux_pipeline(tmp_path)
    quantised = FluxTransformer2DModel.from_pretrained(
        tmp_path,
        subfolder="transformer",
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        dtype=torch.bfloat16,
    )
    pipeline = tiny.flux_pipeline()
    pipeline.transformer = quantised
    got = features(pipeline, BLOCKS["flux"])
    fx = extractor(pipeline, BLOCKS["flux"])
    expected = seen_by_the_attention(
        quantised, last_block("flux", quantised), own_inputs(fx, "a cat"), len(got)
    ).float()
    assert gap(got, expected) < 1e-2  # the feature is float32, the attention's input bfloat16
    assert gap(got, plain["flux"]) < 0.1
    for file in (tmp_path / "transformer").iterdir():
        file.unlink()
    quantised.save_pretrained(tmp_path / "transformer")
    loaded = load_backbone(str(tmp_path), block=3, dtype=torch.bfloat16, device="cpu")
    assert not list(loaded.transformer.single_transformer_blocks[2].parameters())  # pyright: ignore
    assert gap(features(loaded, 3), got) < 1e-2


# ---- nothing is left behind by leaving early ---------------------------------------------------------------------


@pytest.fixture
def onloaded(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Groups of modules whose weights are on the device now."""
    from diffusers.hooks.group_offloading import ModuleGroup

    now: set[int] = set()
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: (now.add(id(group)), onload(group))[1])
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: (now.discard(id(group)), offload(group))[1])
    return now


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_has_put_everything_away(name: str, kind: str, onloaded: set[int], tmp_path: Path):
    pipeline = tiny.PIPELINES[name]()
    pipeline.scratch = tmp_path
    group_offload(kind, disk=True)(pipeline)
    fx = extractor(pipeline, 0)
    for block in reversed(range(BLOCKS[name] + 1)):  # a later forward does not come by the deeper blocks
        fx.replace(block=block)(PICTURE)
        assert onloaded == set()


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_sequential_offloading_has_put_everything_away(name: str, site: str):
    pipeline = tiny.PIPELINES[name]()
    sequential_offload(pipeline)
    block = 0 if site == "mlp" else BLOCKS[name]  # FLUX's single blocks have no second norm
    extractor(pipeline, block).replace(site=site)(PICTURE)
    assert [key for key, value in pipeline.transformer.named_parameters() if not value.is_meta] == []


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_the_probe_leaves_nothing_either(kind: str, onloaded: set[int], monkeypatch: pytest.MonkeyPatch):
    from ditf.backbones import modulation

    expected = features(tiny.flux_pipeline(), 3)
    monkeypatch.setattr(modulation, "MODULATION", {})
    pipeline = tiny.flux_pipeline()
    group_offload(kind)(pipeline)
    assert gap(features(pipeline, 3), expected) < 1e-5
    assert onloaded == set()


def test_the_whole_pipeline_still_runs_after_an_extraction():
    call: dict[str, Any] = {"prompt": "a cat", "height": 64, "width": 64, "num_inference_steps": 1, "output_type": "pt"}

    def picture(pipeline: Any) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**call, generator=torch.Generator().manual_seed(0)).images

    expected = picture(tiny.flux_pipeline())
    for mode in ("model offload", "group offload of leaves", "sequential offload"):
        pipeline = tiny.flux_pipeline()
        MODES[mode](pipeline)
        features(pipeline, 3)
        assert torch.equal(picture(pipeline), expected), mode


def test_activations_are_freed_when_the_forward_is_left():
    pipeline = tiny.flux_pipeline()
    seen: list[weakref.ref[Tensor]] = []
    pipeline.transformer.single_transformer_blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(weakref.ref(kwargs["hidden_states"])), with_kwargs=True
    )
    fx = extractor(pipeline, 3)
    gc.disable()  # whoever keeps the traceback keeps the tokens, until the next collection
    try:
        fx(PICTURE)
        assert [reference() for reference in seen] == [None]
    finally:
        gc.enable()


# ---- the autoencoder, adapters, training -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_a_tiled_autoencoder_gives_its_own_latents(name: str, monkeypatch: pytest.MonkeyPatch):
    pipeline, calls = tiny.PIPELINES[name](), []
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pipeline.vae.enable_tiling()
    whole = pipeline.vae._tiled_encode
    monkeypatch.setattr(pipeline.vae, "_tiled_encode", lambda x: (calls.append(x.shape), whole(x))[1])
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mode()
    shift = pipeline.vae.config.shift_factor or 0.0
    latent = backbone_from(pipeline).encode_image(pixels)
    assert len(calls) == 2
    torch.testing.assert_close(latent, (expected - shift) * pipeline.vae.config.scaling_factor)
    assert features(pipeline, BLOCKS[name]).isfinite().all()


@pytest.mark.parametrize("merged", [False, True])
def test_low_rank_adapters_count(plain: dict[str, Tensor], merged: bool):
    peft = pytest.importorskip("peft", reason="diffusers' adapters are peft's")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "proj_mlp", "linear"], init_lora_weights=False)

    def adapted() -> Any:
        pipeline = tiny.flux_pipeline()
        torch.manual_seed(1)
        pipeline.transformer.add_adapter(config, "style")
        return pipeline

    pipeline = adapted()
    if merged:
        pipeline.transformer.fuse_lora(lora_scale=1.0)
    got = features(pipeline, 3)
    by_hand = tiny.flux_pipeline()  # W + alpha / r * B A
    for name, module in adapted().transformer.named_modules():
        if hasattr(module, "lora_A"):
            delta = module.lora_B["style"].weight @ module.lora_A["style"].weight * 2
            by_hand.transformer.get_submodule(name).weight.data += delta.detach()
    expected = features(by_hand, 3)
    assert gap(got, expected) < 1e-5
    assert gap(got, plain["flux"]) > 0.01
    fused = adapted()
    ditf.fuse(fused)
    assert gap(features(fused, 3), expected) < 1e-5


def test_a_model_in_training_gives_the_same_and_goes_on_training(plain: dict[str, Tensor]):
    pipeline = tiny.flux_pipeline()
    pipeline.transformer.train()
    pipeline.transformer.enable_gradient_checkpointing()
    assert torch.equal(features(pipeline, 3), plain["flux"])
    assert all(module.training for module in pipeline.transformer.modules())
    loss = pipeline.transformer(**tiny.flux_inputs()).sample.square().mean()
    loss.backward()
    assert pipeline.transformer.transformer_blocks[0].attn.to_q.weight.grad.any()


@pytest.mark.parametrize("cache", ["FirstBlockCacheConfig", "PyramidAttentionBroadcastConfig", "TaylorSeerCacheConfig"])
def test_caches_between_forwards_are_refused_until_they_are_off(plain: dict[str, Tensor], cache: str):
    import diffusers

    options: dict[str, Any] = {}
    if cache == "PyramidAttentionBroadcastConfig":
        options = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 260}
    pipeline = tiny.flux_pipeline()
    pipeline.transformer.enable_cache(getattr(diffusers, cache)(**options))
    with pytest.raises(
        ModelError, match=r"FluxTransformer2DModel: a cache .* earlier images; call .*disable_cache\(\)"
    ):
        features(pipeline, 3)
    pipeline.transformer.disable_cache()
    assert torch.equal(features(pipeline, 3), plain["flux"])


def test_projections_fused_by_diffusers_give_the_same(plain: dict[str, Tensor]):
    pipeline = tiny.flux_pipeline()
    pipeline.transformer.fuse_qkv_projections()
    assert gap(features(pipeline, 3), plain["flux"]) < 1e-6
