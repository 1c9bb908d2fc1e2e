"""Image -> latent -> noise -> packed tokens and ids: as diffusers' own pipelines prepare them, noise injected."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ditf import InputError, ModelError
from ditf.backbones import Backbone, backbone_from, load_backbone

from . import tiny_models as tiny

HEIGHT, WIDTH = 64, 96
PROMPT = "a photo of a cat"
PIPELINES = tiny.PIPELINES
WITHOUT_SHIFT = {"shift": 1.0}


class Stop(Exception):  # noqa: N818
    pass


def pixels(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def what_the_transformer_gets(pipeline: Any, **call: Any) -> dict[str, Any]:
    """Run a pipeline up to its transformer."""
    seen: dict[str, Any] = {}

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        seen.update(dict(zip(names, args, strict=False)) | kwargs)
        raise Stop

    handle = pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with pytest.raises(Stop):
            pipeline(**call)
    finally:
        handle.remove()
    return seen


def inject_noise(monkeypatch: pytest.MonkeyPatch, pipeline: Any, noise: Tensor) -> None:
    module = sys.modules[type(pipeline).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise.reshape(shape))


def assert_same(got: dict[Any, Any], expected: dict[Any, Any], *, ignoring: tuple[str, ...] = ()) -> None:
    left_out = {"return_dict", "joint_attention_kwargs", "attention_kwargs", *ignoring}
    for name in sorted((set(got) | set(expected)) - left_out, key=str):
        one, other = got.get(name), expected.get(name)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert one.shape == other.shape, name
            torch.testing.assert_close(one.float(), other.float(), rtol=1e-6, atol=1e-6, msg=name)
        elif isinstance(one, list) and isinstance(one[0], Tensor):
            assert other is not None, name
            assert_same(dict(enumerate(one)), dict(enumerate(other)))
        else:
            assert one == other, name


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_flux_inputs_are_those_of_image_to_image(monkeypatch: pytest.MonkeyPatch, guidance_embeds: bool):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

    whole = tiny.flux_pipeline(guidance_embeds=guidance_embeds)
    backbone = backbone_from(whole)
    image_to_image = FluxImg2ImgPipeline(
        **{**whole.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
    )  # without resolution shift
    image_to_image.set_progress_bar_config(disable=True)
    noise = tiny.noise(1, 4, 8, 12)
    inject_noise(monkeypatch, image_to_image, noise)
    expected = what_the_transformer_gets(
        image_to_image,
        prompt=PROMPT,
        image=(pixels() + 1) / 2,
        height=HEIGHT,
        width=WIDTH,
        sigmas=[1.0, 0.26],
        num_inference_steps=2,
        strength=0.5,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(7),
    )
    latent = backbone.encode_image(pixels(), sample=True, generator=torch.Generator().manual_seed(7))
    got = backbone.inputs(backbone.add_noise(latent, noise, 260), 260, [PROMPT], 3.5)
    assert_same(got, expected)
    assert float(got["timestep"]) == pytest.approx(0.26)
    assert (got["guidance"] is not None) == guidance_embeds
    assert got["img_ids"].dtype == torch.float32


def test_sd3_inputs_are_those_of_image_to_image(monkeypatch: pytest.MonkeyPatch):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline

    whole = tiny.sd3_pipeline()
    backbone = backbone_from(whole)
    image_to_image = StableDiffusion3Img2ImgPipeline(
        **{**whole.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)}
    )
    image_to_image.set_progress_bar_config(disable=True)
    noise = tiny.noise(1, 4, 8, 12)
    inject_noise(monkeypatch, image_to_image, noise)
    expected = what_the_transformer_gets(
        image_to_image,
        prompt=PROMPT,
        image=(pixels() + 1) / 2,
        height=HEIGHT,
        width=WIDTH,
        sigmas=[1.0, 0.26],
        num_inference_steps=2,
        strength=0.5,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
    )
    latent = backbone.encode_image(pixels(), sample=True, generator=torch.Generator().manual_seed(7))
    got = backbone.inputs(backbone.add_noise(latent, noise, 260), 260, [PROMPT], None)
    assert_same(got, expected)
    assert float(got["timestep"]) == 260


@pytest.mark.parametrize("told_its_size", [False, True])
def test_pixart_inputs_are_those_of_its_pipeline(told_its_size: bool):
    # a transformer for 1024 pixels (sample_size 128) is also told resolution and aspect ratio
    whole = tiny.pixart_pipeline(sample_size=128 if told_its_size else 8)
    whole.set_progress_bar_config(disable=True)
    backbone = backbone_from(whole)
    latent, noise = backbone.encode_image(pixels()), tiny.noise(1, 4, 8, 12)
    noisy = backbone.add_noise(latent, noise, 259.6)
    torch.testing.assert_close(
        noisy, whole.scheduler.add_noise(latent, noise, torch.tensor([260])), rtol=1e-6, atol=1e-6
    )
    expected = what_the_transformer_gets(
        whole,
        prompt=PROMPT,
        latents=noisy,
        timesteps=[260],
        height=HEIGHT,
        width=WIDTH,
        guidance_scale=1.0,
        use_resolution_binning=False,
        clean_caption=False,
    )
    got = backbone.inputs(noisy, 259.6, [PROMPT], None)
    for name in ("resolution", "aspect_ratio"):
        one, other = got["added_cond_kwargs"][name], expected["added_cond_kwargs"][name]
        assert (one is None and other is None) or torch.allclose(one, other.float())
        assert (one is not None) == told_its_size
    assert_same(got, expected, ignoring=("added_cond_kwargs",))
    with torch.no_grad():
        assert whole.transformer(**got).sample.isfinite().all()


def without_shift(pipeline: Any, kind: Any = None) -> Any:
    """The pipeline (as another of its kinds) on a scheduler without resolution shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    parts = {**pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler(**WITHOUT_SHIFT)}
    changed = (kind or type(pipeline))(**parts)
    changed.set_progress_bar_config(disable=True)
    return changed


def test_flux2_inputs_are_those_of_its_pipeline():
    whole = tiny.flux2_pipeline()
    backbone, latents = backbone_from(whole), tiny.noise(1, 16, 4, 6)
    call = {"height": HEIGHT, "width": WIDTH, "sigmas": [0.26], "num_inference_steps": 1, "guidance_scale": 1.0}
    expected = what_the_transformer_gets(without_shift(whole), prompt=PROMPT, latents=latents, **call)
    assert_same(backbone.inputs(latents, 260, [PROMPT], None), expected)


def test_flux2_dev_embeds_its_guidance_and_takes_given_texts():
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    klein = tiny.flux2_pipeline(guidance_embeds=True)
    dev = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**WITHOUT_SHIFT),
        vae=klein.vae,
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        transformer=klein.transformer,
    )
    dev.set_progress_bar_config(disable=True)
    backbone, latents, text = backbone_from(dev), tiny.noise(1, 16, 4, 6), tiny.noise(1, 7, 24, seed=1)
    backbone.remember(PROMPT, prompt_embeds=text)
    call = {"height": HEIGHT, "width": WIDTH, "sigmas": [0.26], "num_inference_steps": 1, "guidance_scale": 4.0}
    expected = what_the_transformer_gets(dev, prompt_embeds=text, latents=latents, **call)
    got = backbone.inputs(latents, 260, [PROMPT], None)
    assert_same(got, expected)
    assert float(got["guidance"]) == backbone.default_guidance == 4.0


def test_qwen_image_inputs_are_those_of_image_to_image(monkeypatch: pytest.MonkeyPatch):
    from diffusers import QwenImageImg2ImgPipeline

    whole = tiny.qwen_image_pipeline()
    backbone, noise = backbone_from(whole), tiny.noise(1, 4, 8, 12)
    image_to_image = without_shift(whole, QwenImageImg2ImgPipeline)
    inject_noise(monkeypatch, image_to_image, noise)
    expected = what_the_transformer_gets(
        image_to_image,
        prompt=PROMPT,
        image=(pixels() + 1) / 2,
        height=HEIGHT,
        width=WIDTH,
        sigmas=[1.0, 0.26],
        num_inference_steps=2,
        strength=0.5,
        true_cfg_scale=1.0,
        generator=torch.Generator().manual_seed(7),
    )
    latent = backbone.encode_image(pixels(), sample=True, generator=torch.Generator().manual_seed(7))
    assert_same(backbone.inputs(backbone.add_noise(latent, noise, 260), 260, [PROMPT], None), expected)


def test_qwen_image_texts_of_different_lengths_share_a_forward():
    whole = tiny.qwen_image_pipeline()
    backbone, prompts, latents = backbone_from(whole), ["cat", "a photo of a dog"], tiny.noise(2, 4, 8, 12)
    call = {"height": HEIGHT, "width": WIDTH, "sigmas": [0.26], "num_inference_steps": 1, "true_cfg_scale": 1.0}
    packed = backbone.inputs(latents, 260, prompts, None)
    expected = what_the_transformer_gets(without_shift(whole), prompt=prompts, latents=packed["hidden_states"], **call)
    real = packed["encoder_hidden_states_mask"].bool()
    assert real.sum(1).tolist() == expected["encoder_hidden_states_mask"].sum(1).tolist()
    theirs = expected["encoder_hidden_states"][real]
    torch.testing.assert_close(packed["encoder_hidden_states"][real], theirs, rtol=1e-5, atol=1e-5)
    assert_same(packed, expected, ignoring=("encoder_hidden_states",))


def test_z_image_inputs_are_those_of_its_pipeline():
    whole = tiny.z_image_pipeline()
    backbone, latents = backbone_from(whole), tiny.noise(1, 4, 8, 12)
    call = {"height": HEIGHT, "width": WIDTH, "sigmas": [0.26], "num_inference_steps": 1, "guidance_scale": 0.0}
    expected = what_the_transformer_gets(without_shift(whole), prompt=PROMPT, latents=latents, **call)
    got = backbone.inputs(latents, 260, [PROMPT], None)
    assert_same(got, expected)
    assert float(got["t"]) == pytest.approx(0.74)


def test_sana_inputs_are_those_of_its_pipeline():
    whole = tiny.sana_pipeline()
    backbone, latents = backbone_from(whole), tiny.noise(1, 4, 4, 6)
    expected = what_the_transformer_gets(
        without_shift(whole),
        prompt=PROMPT,
        latents=latents,
        height=128,
        width=192,
        sigmas=[0.26],
        num_inference_steps=1,
        guidance_scale=1.0,
        use_resolution_binning=False,
    )
    got = backbone.inputs(latents, 260, [PROMPT], None)
    assert_same(got, expected)
    assert float(got["timestep"]) == 130  # timestep_scale 0.5


def test_dit_inputs_are_those_of_its_pipeline(monkeypatch: pytest.MonkeyPatch):
    whole = tiny.dit_pipeline()
    whole.set_progress_bar_config(disable=True)
    backbone, latents = backbone_from(whole), tiny.noise(1, 4, 8, 8)
    inject_noise(monkeypatch, whole, latents)
    expected = what_the_transformer_gets(whole, class_labels=[7], guidance_scale=1.0, num_inference_steps=2)
    assert_same(backbone.inputs(latents, 500, ["class:7"], None), expected)
    torch.testing.assert_close(
        backbone.add_noise(latents, latents.flip(0), 500),
        whole.scheduler.add_noise(latents, latents.flip(0), torch.tensor([500])),
    )


@pytest.mark.parametrize(
    ("prompt", "number"),
    [("class:3", 3), ("Golden Retriever", 7), ("Tinca tinca", 0), ("", 10), ("class:10", 10), (" goldfish ", 1)],
)
def test_a_prompt_of_dit_names_a_class(prompt: str, number: int, tmp_path: Path):
    pipeline = tiny.dit_pipeline()
    assert backbone_from(pipeline).text([prompt])[prompt]["class_labels"].tolist() == [number]
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = {"0": "tench, Tinca tinca", "1": "goldfish", "7": "golden retriever"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_backbone(str(tmp_path)).text([prompt])[prompt]["class_labels"].tolist() == [number]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a photo of a cat", r"prompt: got 'a photo of a cat', expected \"class:N\", a label of the model, or"),
        ("gold fish", r'a label of the model such as "goldfish"'),
        ("class:11", r"with N in 0\.\.9, or 10, the null class"),
    ],
)
def test_what_is_no_class_is_named(prompt: str, words: str):
    with pytest.raises(InputError, match=words):
        backbone_from(tiny.dit_pipeline()).text([prompt])


def test_given_embeddings_take_the_place_of_a_prompt():
    whole = tiny.flux_pipeline()
    with torch.no_grad():
        tokens, pooled, _ = whole.encode_prompt(prompt="a dog", prompt_2=None)
    backbone, latents = backbone_from(whole), tiny.noise(1, 4, 8, 12)
    expected = backbone.inputs(latents, 260, ["a dog"], None)
    backbone.remember("mine", prompt_embeds=tokens, pooled_prompt_embeds=pooled)
    assert_same(backbone.inputs(latents, 260, ["mine"], None), expected)
    with pytest.raises(InputError, match="embeddings: got 'prompt_embeds', expected prompt_embeds, pooled_prompt"):
        backbone.remember("mine", prompt_embeds=tokens)
    with pytest.raises(InputError, match=r"prompt_embeds: got \(1, 512, 31\), expected shape \(1, tokens, 32\)"):
        backbone.remember("mine", prompt_embeds=tokens[..., :-1], pooled_prompt_embeds=pooled)
    with pytest.raises(InputError, match="expected none: this model reads no text"):
        backbone_from(tiny.dit_pipeline()).remember("mine", prompt_embeds=tokens)


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart", "dit", "z-image"])
def test_mean_latent_is_shifted_and_scaled(name: str):
    whole = PIPELINES[name]()
    backbone = backbone_from(whole)
    with torch.no_grad():
        raw = whole.vae.encode(pixels()).latent_dist.mode()
    shift = whole.vae.config.shift_factor or 0.0
    expected = (raw - shift) * whole.vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode_image(pixels()), expected)
    assert backbone.pixels_per_token == 16


def test_latents_of_other_autoencoders_are_those_of_their_pipelines():
    flux2, sana = tiny.flux2_pipeline(), tiny.sana_pipeline()
    with torch.no_grad():
        expected = flux2._encode_vae_image(pixels(), generator=None)
        torch.testing.assert_close(backbone_from(flux2).encode_image(pixels()), expected)
        image = torch.nn.functional.pad(pixels(), (0, 0, 0, 32))
        expected = sana.vae.encode(image).latent * sana.vae.config.scaling_factor
        backbone = backbone_from(sana)
        torch.testing.assert_close(backbone.encode_image(image), expected)
    assert torch.equal(backbone.encode_image(image, sample=True), backbone.encode_image(image))  # no posterior
    assert (backbone_from(flux2).pixels_per_token, backbone.pixels_per_token) == (16, 32)


def test_vae_runs_once_for_many_samples():
    whole = tiny.flux_pipeline()
    backbone, calls = backbone_from(whole), []
    whole.vae.encoder.register_forward_pre_hook(lambda module, args: calls.append(1))
    posterior = backbone.posterior(pixels())
    one, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert len(calls) == 1
    assert not torch.equal(one, other)
    assert torch.equal(one, posterior.sample(torch.Generator().manual_seed(0)))
    assert one.dtype == posterior.mean().dtype == torch.float32


@pytest.mark.parametrize("name", list(PIPELINES))
def test_moving_one_latent_patch_moves_its_token_in_raster_order(name: str):
    backbone = backbone_from(PIPELINES[name]())
    patch, channels = backbone._family.patch, backbone._family.latent_channels
    latents = tiny.noise(1, channels, 4 * patch, 6 * patch)
    assert backbone.grid(latents) == (4, 6)
    moved = latents.clone()
    moved[:, :, 2 * patch : 3 * patch, 5 * patch : 6 * patch] += 3.0  # row 2, column 5
    taken = [backbone.run([0], backbone.inputs(x, 260, [""], None), (4, 6))[0].tokens for x in (latents, moved)]
    change = (taken[0] - taken[1]).norm(dim=-1)[0]
    assert int(change.argmax()) == 2 * 6 + 5
    if name != "z-image":  # whose refiner has let all tokens see each other before its first block
        assert int((change > 0).sum()) == 1


def test_single_blocks_see_the_same_raster_order():
    backbone = backbone_from(tiny.flux_pipeline())
    latents = tiny.noise(1, 4, 8, 12)
    moved = latents.clone()
    moved[:, :, 4:6, 10:12] += 3.0
    for block in range(2, 5):
        a, b = (
            backbone.run([block], backbone.inputs(x, 260, [""], 3.5), (4, 6))[block].tokens for x in (latents, moved)
        )
        assert int((a - b).norm(dim=-1).argmax()) == 17


def test_each_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch):
    whole, asked = tiny.flux_pipeline(), []
    encode = whole.encode_prompt
    monkeypatch.setattr(whole, "encode_prompt", lambda **call: (asked.append(call["prompt"]), encode(**call))[1])
    backbone = backbone_from(whole)
    first = backbone.text(["cat", "dog", "cat"])
    second = backbone.text(["dog", "bird"])
    assert asked == ["cat", "dog", "bird"]
    assert set(first) == {"cat", "dog"}
    assert first["dog"]["encoder_hidden_states"] is second["dog"]["encoder_hidden_states"]
    assert first["dog"]["encoder_hidden_states"].shape == (1, 512, 32)
    assert not torch.equal(first["cat"]["pooled_projections"], first["dog"]["pooled_projections"])
    assert not torch.equal(first["cat"]["encoder_hidden_states"], first["dog"]["encoder_hidden_states"])


def test_rows_of_a_batch_have_their_own_prompt():
    backbone = backbone_from(tiny.sd3_pipeline())
    got = backbone.inputs(tiny.noise(3, 4, 8, 12), 260, ["cat", "dog", "cat"], None)
    alone = backbone.text(["cat", "dog"])
    for row, prompt in enumerate(["cat", "dog", "cat"]):
        for name in ("encoder_hidden_states", "pooled_projections"):
            assert torch.equal(got[name][row], alone[prompt][name][0])


def pixel_folder(folder: Path, patch: int = 4) -> str:
    (folder / "ditf.json").write_text(f'{{"kind": "pixel", "patch": {patch}}}')
    model = tiny.flux(
        in_channels=48, guidance_embeds=False, joint_attention_dim=8, pooled_projection_dim=8, num_single_layers=2
    )
    model.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "model.safetensors")
    return str(folder)


def test_pixel_model_is_fed_as_it_was_trained(tmp_path: Path):
    backbone = load_backbone(pixel_folder(tmp_path), block=3, device="cpu")
    image = pixels()
    assert torch.equal(backbone.encode_image(image), image)
    got = backbone.inputs(image, 260, ["ignored"], None)
    expected = image.view(1, 3, 16, 4, 24, 4).permute(0, 2, 4, 1, 3, 5).reshape(1, 384, 48)
    assert torch.equal(got["hidden_states"], expected)
    assert not got["encoder_hidden_states"].any()
    assert got["encoder_hidden_states"].shape == (1, 1, 8)
    assert not got["pooled_projections"].any()
    assert got["img_ids"][25].tolist() == [0, 1, 1]
    assert (backbone.family, backbone.pixels_per_token, backbone.default_guidance) == ("pixel", 4, None)
    assert backbone.run([3], got, backbone.grid(image))[3].tokens.shape == (1, 384, 32)


def test_pixel_model_must_say_a_patch_that_fits(tmp_path: Path):
    with pytest.raises(ModelError, match=r"ditf\.json: got .*'patch': 2.* 48, the transformer's in_channels"):
        load_backbone(pixel_folder(tmp_path, patch=2))


@pytest.fixture(scope="module")
def flux() -> Backbone:
    return backbone_from(tiny.flux_pipeline())


def test_sides_must_be_whole_tokens(flux: Backbone):
    with pytest.raises(InputError, match=r"pixels: got \(1, 3, 64, 90\), expected height and width multiples of 16"):
        flux.encode_image(torch.zeros(1, 3, 64, 90))
    with pytest.raises(InputError, match=r"pixels: got \(2, 3, 64, 96\), expected shape \(1, 3, H, W\)"):
        flux.encode_image(torch.zeros(2, 3, 64, 96))
    with pytest.raises(InputError, match=r"latents: got \(1, 4, 8, 11\)"):
        flux.grid(torch.zeros(1, 4, 8, 11))


def test_every_row_needs_a_prompt(flux: Backbone):
    with pytest.raises(InputError, match="prompts: got 1, expected one text per row of the batch"):
        flux.inputs(torch.zeros(2, 4, 8, 12), 260, ["cat"], 3.5)


def test_sd3_bounds_the_size_by_its_position_table():
    backbone = backbone_from(tiny.sd3_pipeline())
    with pytest.raises(InputError, match=r"size: got \(416, 96\), expected sides of at most 384 pixels"):
        backbone.grid(torch.zeros(1, 4, 52, 12))


def test_overflowing_vae_is_named():
    whole = tiny.flux_pipeline()
    with torch.no_grad():
        whole.vae.encoder.conv_out.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="VAE's latents overflow"):
        backbone_from(whole).encode_image(pixels())
