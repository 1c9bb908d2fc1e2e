"""Checkpoints are read in stages, offline, and only as far as they are used; failures say what to do."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditf import InputError, ModelError
from ditf.backbones import Backbone, backbone_from, load_backbone
from ditf.backbones import weights as weights_module

from . import tiny_models as tiny

SAVERS: dict[str, Callable[..., str]] = {
    "flux": tiny.tiny_flux_pipeline,
    "sd3": tiny.tiny_sd3_pipeline,
    "pixart": tiny.tiny_pixart_pipeline,
}
COUNTS = {"flux": 5, "sd3": 3, "pixart": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved pipeline of each family, the transformer in many shards."""
    return {name: Path(save(tmp_path_factory.mktemp(name), shard="20KB")) for name, save in SAVERS.items()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError("the network is switched off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def features(backbone: Backbone, blocks: list[int]) -> dict[int, Tensor]:
    """Tokens and modulation of some blocks, from pixels to the tap."""
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = backbone.add_noise(backbone.encode_image(image), tiny.noise(1, 4, 8, 12), 260)
    taken = backbone.run(blocks, backbone.inputs(noisy, 260, ["a cat"]), backbone.grid(noisy))
    return {block: torch.cat([t.tokens, t.shift, t.scale], 1) for block, t in taken.items()}  # pyright: ignore


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    original = weights_module._opened
    monkeypatch.setattr(weights_module, "_opened", lambda path: (opened.append(path.name), original(path))[1])
    return opened


def last_shards(folder: Path, keep_up_to: str) -> list[Path]:
    """Shards that hold nothing of what runs up to a block."""
    model = folder / "transformer"
    weight_map = json.loads((model / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    unused = ("single_transformer_blocks.2", "single_transformer_blocks.1", "norm_out", "proj_out")
    used = {file for name, file in weight_map.items() if not name.startswith(unused)}
    assert keep_up_to == "single_transformer_blocks.0"
    return [model / file for file in sorted(set(weight_map.values()) - used)]


@pytest.mark.parametrize("name", list(SAVERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_truncated_run_equals_the_full_pipeline_bitwise(folders: dict[str, Path], name: str, dtype: torch.dtype):
    from diffusers import AutoencoderKL, DiffusionPipeline

    vae = AutoencoderKL.from_pretrained(folders[name], subfolder="vae")  # always float32
    whole = backbone_from(DiffusionPipeline.from_pretrained(folders[name], vae=vae, dtype=dtype))
    for weight in (*whole.transformer.parameters(), *vae.parameters()):
        weight.data = weight.data.clone()  # bits depend on how memory is aligned; a mapped file is not
    for block in sorted({0, 2, COUNTS[name] - 1}):
        truncated = load_backbone(str(folders[name]), block=block, dtype=dtype, device="cpu")
        got, expected = features(truncated, [block])[block], features(whole, [block])[block]
        assert torch.equal(got, expected)
    complete = load_backbone(str(folders[name]), block=0, dtype=dtype, device="cpu", truncate=False)
    assert torch.equal(features(complete, [COUNTS[name] - 1])[COUNTS[name] - 1], expected)


def test_what_is_not_used_is_neither_read_nor_in_memory(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = copy(folders["flux"], tmp_path)
    unused = last_shards(folder, "single_transformer_blocks.0")
    assert len(unused) > 3
    unused[0].unlink()
    for shard in unused[1:]:
        shard.write_bytes(b"not safetensors")
    opened = opened_files(monkeypatch)
    backbone = load_backbone(str(folder), block=2, device="cpu")
    assert torch.equal(features(backbone, [2])[2], features(load_backbone(str(folders["flux"]), block=2), [2])[2])
    assert not {shard.name for shard in unused} & set(opened)
    model: Any = backbone.transformer
    assert len(model.single_transformer_blocks) == 3
    for dropped in (model.norm_out, model.proj_out, *model.single_transformer_blocks[1:]):
        assert not list(dropped.parameters())
    assert not any(weight.is_meta for weight in model.state_dict().values())
    left_out = ("single_transformer_blocks.1", "single_transformer_blocks.2", "norm_out", "proj_out")
    used = [name for name, _ in tiny.flux().named_parameters() if not name.startswith(left_out)]
    assert [name for name, _ in model.named_parameters()] == used
    with pytest.raises(ModelError, match="truncate=False"):
        model.proj_out(None)


def test_the_vae_has_no_decoder(folders: dict[str, Path]):
    backbone = load_backbone(str(folders["pixart"]), block=0, device="cpu", dtype=torch.bfloat16)
    vae: Any = backbone._parts.vae
    assert not list(vae.decoder.parameters())
    assert not list(vae.post_quant_conv.parameters())
    assert vae.encoder.conv_in.weight.dtype == torch.float32


def test_a_deeper_block_than_loaded_is_refused(folders: dict[str, Path]):
    backbone = load_backbone(str(folders["flux"]), block=2, device="cpu")
    assert backbone.num_blocks == 5
    with pytest.raises(InputError, match=r"block: got 3, expected an index in 0\.\.2"):
        features(backbone, [3])
    backbone.truncate_after(4)  # anew
    assert set(features(backbone, [1, 4])) == {1, 4}


def test_only_configs_are_read_at_first(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    backbone = load_backbone(str(folder), block=2, device="cpu")
    assert (backbone.num_blocks, backbone.pixels_per_token, backbone.default_guidance) == (5, 16, 3.5)
    with pytest.raises(ModelError, match=r"vae: no AutoencoderKL can be loaded from it"):
        backbone.encode_image(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ModelError, match="text encoders cannot be loaded"):
        backbone.text(["cat"])
    with pytest.raises(ModelError, match=r"no transformer/diffusion_pytorch_model-00001"):
        _ = backbone.transformer


def test_text_encoders_need_nothing_else_and_are_freed(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    for part in ("transformer", "vae"):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
    seen: list[weakref.ref[Any]] = []
    backbone = load_backbone(str(folder), block=2, device="cpu")
    encode = backbone._family.encode_prompt

    def watch(pipeline: Any, prompt: str, device: torch.device) -> Any:
        seen.append(weakref.ref(pipeline.text_encoder_2))
        return encode(pipeline, prompt, device)

    object.__setattr__(backbone._family, "encode_prompt", watch)
    assert backbone.text(["cat", "dog"]).keys() == {"cat", "dog"}
    gc.collect()
    assert len(seen) == 2
    assert seen[0]() is None


def test_text_encoders_go_where_they_fit(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    parts: Any = load_backbone(str(folders["flux"]), device="cpu")._parts
    pipeline = tiny.flux_pipeline()
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    needed = sum(4 * p.numel() for module in modules for p in module.parameters())
    parts.device = torch.device("cuda")
    for free, expected in [(2 * needed, "cuda"), (needed, "cpu")]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert parts._where_it_fits(pipeline).type == expected


def test_reloading_text_encoders_again_and_again_is_said(folders: dict[str, Path], caplog: pytest.LogCaptureFixture):
    backbone = load_backbone(str(folders["pixart"]), device="cpu")
    for prompt in ("one", "two", "two", "three", "four"):
        backbone.text([prompt])
    assert caplog.text.count("give all prompts in one call") == 1


def test_parts_loaded_in_inference_mode_work_outside(folders: dict[str, Path]):
    backbone = load_backbone(str(folders["sd3"]), block=1, device="cpu")
    with torch.inference_mode():
        inside = features(backbone, [1])[1]
    assert not any(p.is_inference() for p in backbone.transformer.parameters())
    assert not any(value.is_inference() for value in backbone.text(["a cat"])["a cat"].values())
    assert torch.equal(inside, features(backbone, [1])[1])


def test_modules_that_must_stay_float32_do(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from diffusers import FluxTransformer2DModel

    monkeypatch.setattr(FluxTransformer2DModel, "_keep_in_fp32_modules", ["norm_q"])
    model: Any = load_backbone(str(folders["flux"]), block=2, dtype=torch.bfloat16, device="cpu").transformer
    assert model.transformer_blocks[0].attn.norm_q.weight.dtype == torch.float32
    assert model.transformer_blocks[0].attn.norm_k.weight.dtype == torch.bfloat16


def test_old_names_of_attention_weights_are_understood(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["pixart"], tmp_path)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    values = load_file(file)
    for new, name in old.items():
        values = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in values.items()}
    assert any(".query." in name for name in values)
    save_file(values, file)
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(
        load_backbone(str(folder), block=0).encode_image(image),
        load_backbone(str(folders["pixart"]), block=0).encode_image(image),
    )


def test_pickled_weights_are_refused_and_converting_them_helps(folders: dict[str, Path], tmp_path: Path):
    from diffusers import DiffusionPipeline

    folder = copy(folders["pixart"], tmp_path)
    whole = DiffusionPipeline.from_pretrained(folder)
    for name in ("transformer", "vae", "text_encoder"):
        for file in (folder / name).glob("*.safetensors*"):
            file.unlink()
    for name in ("transformer", "vae"):
        whole.components[name].save_pretrained(folder / name, safe_serialization=False)
    torch.save(whole.components["text_encoder"].state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    pickled: Any = load_backbone(str(folder), block=1, device="cpu")
    words = (
        r"no safetensors weights inside; pickled ones .* can run any code .*use_safetensors=False\)\.save_pretrained"
    )
    for use in (lambda: pickled.transformer, lambda: pickled.text(["cat"]), lambda: features(pickled, [1])):
        with pytest.raises(ModelError, match=words):
            use()
    DiffusionPipeline.from_pretrained(folder, use_safetensors=False).save_pretrained(tmp_path / "converted")
    converted = load_backbone(str(tmp_path / "converted"), block=1)
    assert torch.equal(features(converted, [1])[1], features(load_backbone(str(folders["pixart"]), block=1), [1])[1])


def test_float16_flux_warns(folders: dict[str, Path], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "ditf"):
        load_backbone(str(folders["sd3"]), dtype=torch.float16)
        assert not caplog.records
        load_backbone(str(folders["flux"]), dtype=torch.float16)
    assert "float16" in caplog.text
    assert "overflow" in caplog.text


# ---- broken checkpoints ------------------------------------------------------------------------------------------


def test_a_missing_weight_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["pixart"], tmp_path)
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["transformer_blocks.0.attn1.to_q.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"weight transformer_blocks\.0\.attn1\.to_q\.weight is missing"):
        _ = load_backbone(str(folder), block=1).transformer


def test_a_weight_of_another_shape_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["pixart"], tmp_path)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "caption_channels": 16}))
    with pytest.raises(ModelError, match=r"weight caption_projection.* has shape \(24, 32\).*\(24, 16\)"):
        _ = load_backbone(str(folder), block=1).transformer


def test_a_damaged_file_that_is_used_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    for kept in (100, len(whole) - 10, 0):  # in the header, in the last tensor, nothing
        shard.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=rf"{shard.name}: cannot be read .*download the checkpoint again"):
            _ = load_backbone(str(folder), block=4).transformer
    (folder / "transformer" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_backbone(str(folder), block=4)


def test_a_folder_that_is_no_pipeline_is_named(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model_index\.json inside"):
        load_backbone(str(tmp_path))
    with pytest.raises(ModelError, match="holds one model, not a pipeline"):
        load_backbone(str(folders["flux"] / "transformer"))
    with pytest.raises(ModelError, match="no such folder"):
        load_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no such folder"):
        load_backbone("./nowhere")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]},
            r"StableDiffusionPipeline \(UNet2DConditionModel\) is a U-Net; DiTF needs a diffusion transformer: Flux",
        ),
        ({"_class_name": "FluxPipeline", "transformer": [None, None]}, "FluxPipeline has no transformer"),
    ],
)
def test_a_pipeline_without_a_transformer_is_named(tmp_path: Path, index: dict[str, Any], words: str):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=words):
        load_backbone(str(tmp_path))


def test_a_class_that_diffusers_does_not_have_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    file = folder / "model_index.json"
    index = {**json.loads(file.read_text()), "_class_name": "Flux9Pipeline"}
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"Flux9Pipeline is not in diffusers \d"):
        load_backbone(str(folder))


def test_the_old_class_of_pixart_and_dit_is_understood(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["pixart"], tmp_path)
    for name, change in {
        "model_index.json": {"transformer": ["diffusers", "Transformer2DModel"]},
        "transformer/config.json": {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"},
    }.items():
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    old, new = load_backbone(str(folder), block=1), load_backbone(str(folders["pixart"]), block=1)
    assert old.family == "pixart"
    assert torch.equal(features(old, [1])[1], features(new, [1])[1])


@pytest.mark.parametrize("file", ["adapter_config.json", "pytorch_lora_weights.safetensors"])
def test_an_adapter_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str):
    words = r"holds a LoRA adapter, not a model; load its base pipeline .*load_lora_weights.*fuse_lora"
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=words):
        load_backbone(str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", FakeHub(tmp_path, tmp_path / "cache").download)
    with pytest.raises(ModelError, match=words):
        load_backbone("someone/adapter")


def test_an_unfinished_download_is_named(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    sorted((folder / "transformer").glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match=r"no transformer/.*-00002-of-.* inside, its download is not finished"):
        _ = load_backbone(str(folder), block=4).transformer


def test_inpainting_variants_are_refused(folders: dict[str, Path], tmp_path: Path):
    folder = copy(folders["flux"], tmp_path)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 32}))
    with pytest.raises(ModelError, match="takes 8 latent channels and the VAE gives 4"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": 5}, r"block: got 5, expected an index in 0\.\.4"),
        ({"block": -1}, r"block: got -1"),
        ({"device": "tpu9"}, r"device: got 'tpu9'"),
        ({"dtype": torch.int8}, r"dtype: got torch\.int8"),
    ],
)
def test_bad_arguments_are_named(folders: dict[str, Path], changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        load_backbone(str(folders["flux"]), **changes)


# ---- the hub -----------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """``hf_hub_download`` of one repository, kept in a folder like the cache's."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache / "snapshots" / COMMIT
        self.fetched: list[str] = []
        self.asked: list[dict[str, Any]] = []

    def download(self, source: str, name: str, **options: Any) -> str:
        self.asked.append({"source": source, **options})
        if not (self.folder / name).is_file():
            raise hub.LocalEntryNotFoundError(name) if options["local_files_only"] else hub.EntryNotFoundError(name)
        self.fetched.append(name)
        target = self.cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / name, target)
        return str(target)


@pytest.mark.parametrize("local_files_only", [False, True])
def test_only_the_shards_that_are_used_are_downloaded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_files_only: bool
):
    fake = FakeHub(folders["flux"], tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    backbone = load_backbone(
        "someone/tiny-flux", block=2, device="cpu", token="secret", local_files_only=local_files_only
    )
    assert (backbone.name, backbone.revision) == ("someone/tiny-flux", COMMIT)
    assert all(name.endswith(".json") for name in fake.fetched)
    backbone.encode_image(torch.zeros(1, 3, 64, 96))
    _ = backbone.transformer
    unused = {f"transformer/{path.name}" for path in last_shards(folders["flux"], "single_transformer_blocks.0")}
    assert not unused & set(fake.fetched)
    assert "vae/diffusion_pytorch_model.safetensors" in fake.fetched
    assert {call["token"] for call in fake.asked} == {"secret"}
    assert {call["revision"] for call in fake.asked[1:]} <= {None, COMMIT}
    assert fake.asked[-1]["revision"] == COMMIT
    assert {call["local_files_only"] for call in fake.asked} == {local_files_only}


def test_encoding_a_prompt_downloads_neither_transformer_nor_vae(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from diffusers.pipelines import pipeline_utils

    fake = FakeHub(folders["flux"], tmp_path)
    files = sorted(str(path.relative_to(folders["flux"])) for path in folders["flux"].rglob("*") if path.is_file())

    def snapshot(source: str, *, allow_patterns: list[str], ignore_patterns: list[str], **options: Any) -> str:
        for name in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            fake.download(source, name, local_files_only=False)
        return str(fake.cache)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    for name, value in {
        "hf_hub_download": lambda source, name, **_: fake.download(source, name, local_files_only=False),
        "model_info": lambda *_, **__: SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files]),
        "snapshot_download": snapshot,
    }.items():
        monkeypatch.setattr(pipeline_utils, name, value)
    got = load_backbone("someone/tiny-flux", block=2, device="cpu").text(["a cat"])["a cat"]
    expected = load_backbone(str(folders["flux"]), block=2, device="cpu").text(["a cat"])["a cat"]
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    weights = {name for name in fake.fetched if name.endswith(".safetensors")}
    assert weights == {"text_encoder/model.safetensors", "text_encoder_2/model.safetensors"}


def answer(status: int) -> Any:
    """As much of a response as the hub's errors look at, whichever HTTP library it uses."""
    return SimpleNamespace(status_code=status, headers={}, request=None, text="", url="https://example.org")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub.GatedRepoError("no", response=answer(403)), "access is gated and was refused"),
        (hub.RepositoryNotFoundError("no", response=answer(404)), "no such public model on the hub"),
        (hub.RevisionNotFoundError("no", response=answer(404)), "no such revision"),
        (hub.LocalTokenNotFoundError("no"), "a token was asked for and none is stored"),
        (hub.HTTPError("read timed out"), r"the download broke off \(read timed out\)"),
        (hub.XetDownloadError(""), r"the download broke off \(XetDownloadError\)"),
        (OSError(), r"its files cannot be had \(OSError\)"),
        (hub.LocalEntryNotFoundError("no"), "not on this machine and the hub cannot be reached"),
        (hub.OfflineModeIsEnabled("no"), "not on this machine and the hub cannot be reached"),
        (ConnectionError("no"), "not on this machine and the hub cannot be reached"),
        (hub.HFValidationError("no"), "neither a folder on this machine nor a hub id"),
        (hub.HfHubHTTPError("500", response=answer(500)), "the hub answered with an error"),
    ],
)
def test_hub_failures_say_why_and_three_things_to_try(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str):
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=f"owner/model: .*{reason}") as caught:
        load_backbone("owner/model")
    words = str(caught.value)
    assert all(part in words for part in ("(1) check the id", "(2) accept", "hf auth login", "(3) download", "folder"))
    assert "\n" not in words


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_gated_are_said_when_they_are_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    """The configs of a gated model are often public."""
    from diffusers.pipelines import pipeline_utils

    fake = FakeHub(folders["flux"], tmp_path)

    def download(source: str, name: str, **options: Any) -> str:
        if name.endswith(".safetensors"):
            raise hub.GatedRepoError("Access to model owner/model is restricted.", response=answer(403))
        return fake.download(source, name, **{"local_files_only": False, **options})

    def refuse(*_: Any, **__: Any) -> None:
        raise hub.GatedRepoError("Access to model owner/model is restricted.", response=answer(403))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name in ("hf_hub_download", "model_info", "snapshot_download"):
        monkeypatch.setattr(pipeline_utils, name, refuse)
    backbone = load_backbone("owner/model", block=2, device="cpu", prompt_cache=False)
    use: dict[str, Callable[[], Any]] = {
        "transformer": lambda: backbone.transformer,
        "vae": lambda: backbone.encode_image(torch.zeros(1, 3, 64, 96)),
        "text_encoder": lambda: backbone.text(["a cat"]),
    }
    with pytest.raises(ModelError, match=r"owner/model: access is gated and was refused; try: \(1\).*hf auth login"):
        use[part]()


def test_a_shard_that_the_hub_does_not_have_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = copy(folders["flux"], tmp_path)
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard.unlink()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", FakeHub(folder, tmp_path / "cache").download)
    with pytest.raises(ModelError, match=rf"owner/model: a file is missing \(transformer/{shard.name}\)"):
        _ = load_backbone("owner/model", block=4, device="cpu").transformer


def test_no_network_and_nothing_cached_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"owner/model: .*\(3\) download"):
        load_backbone("owner/model", local_files_only=True)


# ---- already loaded ----------------------------------------------------------------------------------------------


def test_a_bare_transformer_encodes_neither_images_nor_prompts():
    backbone = backbone_from(tiny.flux())
    assert backbone.num_blocks == 5
    with pytest.raises(ModelError, match=r"without a VAE.*ditf\.tap"):
        backbone.encode_image(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ModelError, match=r"without text encoders.*ditf\.tap"):
        backbone.text(["cat"])


def test_what_has_no_transformer_is_named():
    with pytest.raises(ModelError, match="str has no transformer"):
        backbone_from("flux")
    unet = SimpleNamespace(unet=nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"SimpleNamespace \(Linear\) is a U-Net"):
        backbone_from(unet)
    with pytest.raises(ModelError, match=r"Linear: ditf prepares inputs for .*whole pipeline.*ditf\.tap"):
        backbone_from(nn.Linear(2, 2))


def test_a_given_pipeline_is_moved_only_when_asked():
    pipeline = tiny.flux_pipeline()
    assert backbone_from(pipeline).dtype == torch.float32
    assert backbone_from(pipeline, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.bfloat16
