"""Pipelines that ditf has no file for prepare their own inputs: recorded once, replayed with other latents."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

import ditf
from ditf import InputError, ModelError
from ditf.backbones import Backbone, backbone_from, load_backbone, loading
from ditf.backbones.families import Recorded, recorded

from .. import zoo
from . import tiny_models as tiny
from .test_inputs import assert_same

noise = tiny.noise


def flow(**config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_dynamic_shifting": True, **config})


def kl(channels: int = 4, levels: int = 4) -> Any:
    model = tiny.vae(channels, scaling_factor=0.3611, shift_factor=0.1159)
    return model if levels == 4 else diffusers.AutoencoderKL(block_out_channels=(4,) * levels, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=1)  # fmt: skip


def whole(kind: type[Any], **parts: Any) -> Any:
    """A pipeline with these parts, and None for the others that it must be given."""
    needed = {n for n, p in inspect.signature(kind.__init__).parameters.items() if p.default is inspect.Parameter.empty}
    pipeline = kind(**{**dict.fromkeys(needed - {"self"}), **parts})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Case(NamedTuple):
    """A pipeline around a transformer of the zoo, and the shapes of one prompt's embeddings."""

    kind: type[Any]
    transformer: str
    embeddings: dict[str, tuple[int, ...]]
    parts: dict[str, Callable[[], Any]] = {}  # noqa: RUF012 (read only)
    timestep: tuple[str, float] = ("timestep", 260.0)

    def pipeline(self) -> Any:
        parts = {"scheduler": flow, "vae": kl, **self.parts}
        made = {name: make() for name, make in parts.items()}
        return whole(self.kind, transformer=zoo.ZOO[self.transformer]().model, **made)

    def text(self, seed: int = 0) -> dict[str, Any]:
        return {
            name: torch.ones(shape, dtype=torch.bool) if "mask" in name else noise(*shape, seed=seed + i)
            for i, (name, shape) in enumerate(self.embeddings.items())
        }


ONE_LATENT_CHANNEL = {"vae": lambda: kl(1)}
NO_VAE = {"vae": lambda: None}
DDPM = {"scheduler": diffusers.DDPMScheduler}
T5 = {"prompt_embeds": (1, 5, 8)}
MASKED = {"prompt_embeds": (1, 9, 32), "prompt_attention_mask": (1, 9)}

QUICK = {
    "auraflow": Case(diffusers.AuraFlowPipeline, "auraflow", MASKED, timestep=("timestep", 0.26)),
    "chroma": Case(
        diffusers.ChromaPipeline, "chroma", MASKED, ONE_LATENT_CHANNEL, timestep=("timestep", 0.26)
    ),
    "lumina-2": Case(diffusers.Lumina2Pipeline, "lumina-2", MASKED, timestep=("timestep", 0.74)),
    "cogview-4": Case(diffusers.CogView4Pipeline, "cogview-4", T5),
    "kandinsky-5": Case(
        diffusers.Kandinsky5T2IPipeline,
        "kandinsky-5",
        {"prompt_embeds_qwen": (1, 5, 12), "prompt_embeds_clip": (1, 8), "prompt_cu_seqlens": (2,)},
    ),
    "prx": Case(
        diffusers.PRXPipeline, "prx", {"prompt_embeds": (1, 5, 16), "prompt_attention_mask": (1, 5)},
        timestep=("timestep", 0.26),
    ),
    "wan": Case(diffusers.WanPipeline, "wan-2.1", {"prompt_embeds": (1, 5, 16)}, NO_VAE),
}  # fmt: skip
SLOW = {
    "lumina-next": Case(diffusers.LuminaPipeline, "lumina-next", MASKED, timestep=("timestep", 0.74)),
    "hunyuan-dit": Case(
        diffusers.HunyuanDiTPipeline,
        "hunyuan-dit",
        {
            "prompt_embeds": (1, 4, 8), "prompt_embeds_2": (1, 4, 8),
            "prompt_attention_mask": (1, 4), "prompt_attention_mask_2": (1, 4),
        },
        DDPM,
    ),
    "cogview-3-plus": Case(
        diffusers.CogView3PlusPipeline, "cogview-3-plus", T5, {"scheduler": diffusers.CogVideoXDDIMScheduler}
    ),
    "bria": Case(
        diffusers.BriaPipeline, "bria", {"prompt_embeds": (1, 7, 32)},
        {"vae": lambda: kl(1, levels=3), "scheduler": lambda: flow(use_dynamic_shifting=False)},
    ),
    "ovis-image": Case(
        diffusers.OvisImagePipeline, "ovis-image", {"prompt_embeds": (1, 7, 32)}, ONE_LATENT_CHANNEL,
        timestep=("timestep", 0.26),
    ),
    "ernie-image": Case(
        diffusers.ErnieImagePipeline, "ernie-image", {"prompt_embeds": (5, 12)}, {"vae": tiny.flux2_vae}
    ),
    "hidream": Case(
        diffusers.HiDreamImagePipeline, "hidream",
        {"prompt_embeds_t5": (1, 5, 8), "prompt_embeds_llama3": (2, 1, 5, 4), "pooled_prompt_embeds": (1, 8)},
        timestep=("timesteps", 260.0),
    ),
    "mochi": Case(
        diffusers.MochiPipeline, "mochi", {"prompt_embeds": (1, 16, 16), "prompt_attention_mask": (1, 16)},
        {"scheduler": lambda: flow(use_dynamic_shifting=False, shift=1.0, invert_sigmas=True)},
        timestep=("timestep", 740.0),
    ),
    "hunyuan-video": Case(
        diffusers.HunyuanVideoPipeline, "hunyuan-video",
        {"prompt_embeds": (1, 5, 16), "pooled_prompt_embeds": (1, 8), "prompt_attention_mask": (1, 5)}, NO_VAE,
    ),
    "cogvideox": Case(
        diffusers.CogVideoXPipeline, "cogvideox-2b", {"prompt_embeds": (1, 8, 8)},
        {"scheduler": diffusers.CogVideoXDDIMScheduler, **NO_VAE},
    ),
}  # fmt: skip
CASES = QUICK | SLOW


def fed(name: str) -> tuple[Backbone, tuple[int, int]]:
    """A backbone that knows the texts "x" and "y", and the size of its latents for 4 x 6 tokens."""
    case = CASES[name]
    pipeline = case.pipeline()
    if name == "kandinsky-5":
        pipeline.resolutions = [(96, 64)]
    side = 8 if name == "hidream" else 0  # its pipeline prepares one size
    if side:
        pipeline.default_sample_size = side
    backbone = backbone_from(pipeline)
    for seed, prompt in enumerate("xy"):
        given = case.text(seed)
        if name == "ernie-image":
            given = {"prompt_embeds": [given["prompt_embeds"]]}
        if name == "kandinsky-5":
            given["prompt_cu_seqlens"] = torch.tensor([0, 5])
        backbone.remember(prompt, **given)
    patch = backbone._family.patch
    return backbone, (side, side) if side else (4 * patch, 6 * patch)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_pipeline_feeds_its_transformer_with_our_latents(name: str):
    backbone, size = fed(name)
    assert backbone.family == "recorded"
    patch, channels = backbone._family.patch, backbone._family.latent_channels
    latents = noise(2, channels, *size)
    both = backbone.inputs(latents, 260, ["x", "y"])
    alone = [backbone.inputs(row[None], 260, [text]) for row, text in zip(latents, "xy", strict=True)]
    argument, value = CASES[name].timestep
    assert float(both[argument].flatten()[0]) == pytest.approx(value)
    grid = backbone.grid(latents)
    last = backbone.num_blocks - 1
    together = backbone.run([last], both, grid)[last].tokens
    for row, inputs in enumerate(alone):
        expected = backbone.run([last], inputs, grid)[last].tokens[0]
        torch.testing.assert_close(together[row], expected, rtol=1e-4, atol=1e-4)

    moved = latents.clone()
    moved[0, :, 2 * patch : 3 * patch, 3 * patch : 4 * patch] += 3.0
    again = backbone.run([last], backbone.inputs(moved, 260, ["x", "y"]), grid)[last].tokens
    assert int((together - again).norm(dim=-1)[0].argmax()) == 2 * grid[1] + 3
    assert not torch.equal(together, backbone.run([last], backbone.inputs(latents, 700, ["x", "y"]), grid)[last].tokens)


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ditf had no file for any family."""
    monkeypatch.setattr(loading, "FAMILIES", {})


@pytest.mark.parametrize("name", ["flux", "flux2", "sd3", "pixart", "sana", "qwen-image"])
def test_recorded_inputs_are_those_that_ditf_prepares_itself(name: str, monkeypatch: pytest.MonkeyPatch):
    pipeline = tiny.PIPELINES[name]()
    prepared = backbone_from(pipeline)
    monkeypatch.setattr(loading, "FAMILIES", {})
    recording = backbone_from(pipeline)
    patch, channels = prepared._family.patch, prepared._family.latent_channels
    assert (recording._family.patch, recording._family.latent_channels) == (patch, channels)
    assert recording.pixels_per_token == prepared.pixels_per_token
    assert recording.default_guidance == prepared.default_guidance
    latents = noise(3, channels, 4 * patch, 6 * patch)
    texts = ["a cat", "a cat", "a dog"]
    clean = latents.flip(0)
    torch.testing.assert_close(
        recording.add_noise(clean, latents, 260), prepared.add_noise(clean, latents, 260), rtol=1e-6, atol=1e-6
    )
    got, expected = (backbone.inputs(latents, 260, texts) for backbone in (recording, prepared))
    assert_same(got, expected, ignoring=("added_cond_kwargs",))


def test_another_size_text_and_timestep_are_recorded_and_others_replayed(monkeypatch: pytest.MonkeyPatch):
    backbone, _ = fed("chroma")
    calls: list[float] = []
    record = recorded.recorded_arguments

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["timestep"])
        return record(*args, **kwargs)

    monkeypatch.setattr(recorded, "recorded_arguments", counting)
    first = backbone.inputs(noise(1, 1, 8, 12), 260, ["x"])
    assert len(calls) == 3  # two to number the latents, one of the text at this timestep
    second = backbone.inputs(noise(1, 1, 8, 12, seed=1), 260, ["x"])
    assert len(calls) == 3
    assert not torch.equal(first["hidden_states"], second["hidden_states"])
    backbone.inputs(noise(1, 1, 8, 12), 90, ["x"])
    backbone.inputs(noise(1, 1, 8, 12), 90, ["y"])
    assert len(calls) == 5
    assert backbone.inputs(noise(1, 1, 12, 12), 90, ["y"])["img_ids"].shape == (36, 3)
    assert len(calls) == 8


def test_the_pipeline_itself_is_left_as_it_was():
    pipeline = CASES["chroma"].pipeline()
    module = sys.modules[type(pipeline).__module__]
    before = (dict(vars(pipeline)), module.randn_tensor, dict(pipeline.scheduler.__dict__))
    backbone = backbone_from(pipeline)
    backbone.remember("x", **CASES["chroma"].text())
    backbone.inputs(noise(1, 1, 8, 12), 260, ["x"])
    backbone.remember("y", prompt_embeds=noise(1, 32))
    with pytest.raises(ModelError, match="ChromaPipeline cannot prepare its transformer's inputs"):
        backbone.inputs(noise(1, 1, 8, 12), 260, ["y"])
    assert (dict(vars(pipeline)), module.randn_tensor, dict(pipeline.scheduler.__dict__)) == before


# ---- from a folder -----------------------------------------------------------------------------------------------


def chroma_pipeline() -> Any:
    parts = {"text_encoder": tiny.t5_encoder(), "tokenizer": tiny.t5_tokenizer()}
    return whole(diffusers.ChromaPipeline, transformer=zoo.ZOO["chroma"]().model, vae=kl(1), scheduler=flow(), **parts)


def lumina2_pipeline() -> Any:
    small = zoo.ZOO["lumina-2"]().model
    torch.manual_seed(0)
    roomy = {**small.config, "axes_lens": (512, 128, 128)}  # its system prompt has a token per letter here
    transformer = tiny.randomised(type(small).from_config(roomy))
    parts = {"text_encoder": tiny.gemma2_encoder(32), "tokenizer": tiny.gemma_tokenizer()}
    return whole(diffusers.Lumina2Pipeline, transformer=transformer, vae=kl(4), scheduler=flow(), **parts)


def auraflow_pipeline() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=64, pad_token_id=0)
    parts = {"text_encoder": UMT5EncoderModel(config).eval(), "tokenizer": tiny.t5_tokenizer()}
    scheduler = flow(use_dynamic_shifting=False)
    return whole(
        diffusers.AuraFlowPipeline, transformer=zoo.ZOO["auraflow"]().model, vae=kl(4), scheduler=scheduler, **parts
    )


FOLDERS = {"chroma": chroma_pipeline, "lumina-2": lumina2_pipeline, "auraflow": auraflow_pipeline}


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", list(FOLDERS))
def test_a_folder_becomes_the_features_of_its_pipeline(name: str, tmp_path: Path):
    pipeline = FOLDERS[name]()
    options: dict[str, Any] = {"block": 1, "ensemble": 2, "size": 96, "discard": "none"}
    given = ditf.FeatureExtractor(pipeline, **options)
    pipeline.save_pretrained(tmp_path)
    loaded = ditf.FeatureExtractor.from_pretrained(str(tmp_path), device="cpu", **options)
    cat = loaded(picture(), prompt="a cat")
    assert cat.grid == (4, 6)
    assert cat.card["family"] == "recorded"
    torch.testing.assert_close(cat.tokens, given(picture(), prompt="a cat").tokens, rtol=1e-4, atol=1e-4)
    assert not torch.equal(cat.tokens, loaded(picture(), prompt="dog").tokens)
    assert len(list(loaded.backbone.transformer.parameters())) < len(list(pipeline.transformer.parameters()))


def test_text_encoders_are_loaded_for_new_texts_only_and_emptied(tmp_path: Path):
    chroma_pipeline().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), block=1, device="cpu")
    parts: Any = backbone._parts
    backbone.inputs(noise(2, 1, 8, 12), 260, ["a cat", "dog"])
    encoder = parts.pipeline.text_encoder
    assert all(p.is_meta for p in encoder.parameters())
    backbone.inputs(noise(1, 1, 12, 12), 90, ["dog"])
    assert parts._text_loads == 1
    backbone.inputs(noise(1, 1, 8, 12), 90, ["bird"])
    assert parts._text_loads == 2


def test_given_embeddings_load_no_text_encoder(tmp_path: Path):
    pipeline = chroma_pipeline()
    pipeline.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), block=1, device="cpu")
    with torch.no_grad():
        tokens, _, mask, *_ = pipeline.encode_prompt(prompt="a cat", do_classifier_free_guidance=False)
    latents = noise(2, 1, 8, 12)
    expected = backbone_from(pipeline).inputs(latents, 260, ["a cat", "a cat"])
    backbone.remember("a cat", prompt_embeds=tokens, prompt_attention_mask=mask)
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    assert_same(backbone.inputs(latents, 260, ["a cat", "a cat"]), expected)
    assert not backbone._parts._text_loads  # pyright: ignore
    with pytest.raises(InputError, match="embeddings: got 'pooled', expected arguments of ChromaPipeline: prompt_emb"):
        backbone.remember("a cat", pooled=tokens)
    with pytest.raises(InputError, match="prompt_embeds: got 'str', expected a tensor of one row"):
        backbone.remember("a cat", prompt_embeds="a cat")


# ---- what cannot be fed ------------------------------------------------------------------------------------------


def test_a_pipeline_that_scales_latents_is_refused():
    checker = torch.nn.Module()
    checker.device, checker.check_text_safety = torch.device("cpu"), lambda text: True
    pipeline = whole(
        diffusers.Cosmos2TextToImagePipeline,
        transformer=zoo.ZOO["cosmos-2"]().model,
        scheduler=flow(use_dynamic_shifting=False),
        safety_checker=checker,
    )
    backbone = backbone_from(pipeline)
    backbone.remember("x", prompt_embeds=noise(1, 5, 16))
    with pytest.raises(ModelError, match="Cosmos2TextToImagePipeline does more to the latents than rearrange them"):
        backbone.inputs(noise(1, 4, 8, 12), 260, ["x"])


def test_classifier_free_guidance_is_never_recorded(without_files: None, monkeypatch: pytest.MonkeyPatch):
    pipeline = tiny.z_image_pipeline()
    backbone = backbone_from(pipeline)  # its guidance of 1 is guidance: every row comes twice
    with pytest.raises(ModelError, match="ZImagePipeline does more to the latents than rearrange them"):
        backbone.inputs(noise(1, 4, 8, 12), 260, ["x"])
    monkeypatch.setattr(recorded, "_EXCEPTIONS", {"ZImagePipeline": {"guidance_scale": 0.0}})
    got = backbone_from(pipeline).inputs(noise(2, 4, 8, 12), 260, ["x", "y"])
    monkeypatch.undo()
    assert_same(got, backbone_from(pipeline).inputs(noise(2, 4, 8, 12), 260, ["x", "y"]))


def test_a_size_that_the_pipeline_does_not_keep_is_named():
    case = CASES["kandinsky-5"]
    pipeline = case.pipeline()
    pipeline.resolutions = [(64, 64)]
    backbone = backbone_from(pipeline)
    backbone.remember("x", **{**case.text(), "prompt_cu_seqlens": torch.tensor([0, 5])})
    words = r"size: got 64 x 96 pixels, but Kandinsky5T2IPipeline makes latents of shape \(1, 1, 8, 8, 4\)"
    with pytest.raises(InputError, match=words):
        backbone.inputs(noise(1, 4, 8, 12), 260, ["x"])


@pytest.mark.parametrize(("name", "most"), [("auraflow", 16), ("lumina-2", 128)])
def test_position_tables_bound_the_size(name: str, most: int):
    backbone = backbone_from(CASES[name].pipeline())
    assert backbone.grid(noise(1, 4, 2 * most, 2)) == (most, 1)
    with pytest.raises(InputError, match=rf"size: got \({16 * most + 16}, 16\), expected at most {16 * most} x"):
        backbone.grid(noise(1, 4, 2 * most + 2, 2))


def test_an_unknown_noise_is_refused():
    pipeline = CASES["chroma"].pipeline()
    pipeline.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ModelError, match="EDMEulerScheduler: neither rectified flow nor DDPM"):
        backbone_from(pipeline).add_noise(noise(1, 1, 8, 12), noise(1, 1, 8, 12), 260)


def test_prompts_of_different_lengths_do_not_share_a_forward():
    backbone = backbone_from(CASES["cogview-4"].pipeline())
    for prompt, length in (("x", 5), ("y", 7)):
        backbone.remember(prompt, prompt_embeds=noise(1, length, 8))
    with pytest.raises(InputError, match=r"batch_images: .*different lengths.*use batch_images=1"):
        backbone.inputs(noise(2, 4, 8, 12), 260, ["x", "y"])


def test_a_control_variant_is_refused():
    case = CASES["chroma"]._replace(parts={"vae": lambda: kl(3)})
    with pytest.raises(ModelError, match="takes 4 latent channels and the VAE gives 3: an inpainting or control"):
        backbone_from(case.pipeline()).encode_image(torch.zeros(1, 3, 64, 96))


def test_its_family_says_where_it_comes_from():
    family = backbone_from(CASES["wan"].pipeline())._family
    assert isinstance(family, Recorded)
    assert (family.kind, family.pixels_per_token, family.default_guidance) == (diffusers.WanPipeline, 16, None)
    assert backbone_from(CASES["hunyuan-video"].pipeline()).default_guidance == 6.0
