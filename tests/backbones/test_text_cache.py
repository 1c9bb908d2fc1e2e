"""A prompt is encoded once for all runs; anew where what an entry was made of has changed, or an entry is damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ditf
from ditf import InputError, ModelError
from ditf.backbones import Backbone, backbone_from, load_backbone
from ditf.backbones.text_cache import TextCache, cache_folder

from . import tiny_models as tiny
from .test_recorded import auraflow_pipeline, chroma_pipeline, lumina2_pipeline

FAMILIES = ["flux", "flux2", "sd3", "pixart", "sana", "qwen-image", "z-image"]
RECORDED = {"chroma": chroma_pipeline, "lumina-2": lumina2_pipeline, "auraflow": auraflow_pipeline}
SIZES: dict[str, Any] = {"size": 64, "ensemble": 2, "discard": "none", "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.tiny_pixart_pipeline(tmp_path_factory.mktemp("pixart")))


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def opened(folder: Path, kept: Any, **options: Any) -> Backbone:
    return load_backbone(str(folder), device="cpu", prompt_cache=kept, **options)


def encoded(folder: Path, kept: Any, *prompts: str, **options: Any) -> tuple[dict[str, Any], int]:
    """The texts of a new backbone, and how often it loaded text encoders."""
    backbone = opened(folder, kept, **options)
    parts: Any = backbone._parts
    return backbone.text(list(prompts or ("a cat",))), parts._text_loads


def entries(kept: Path) -> list[Path]:
    return sorted(kept.iterdir()) if kept.is_dir() else []


def without_encoders(folder: Path) -> None:
    for file in folder.rglob("text_encoder*/*.safetensors"):
        file.unlink()


def same(one: Any, other: Any) -> bool:
    """Equal in types, structure and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


# ---- what it saves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_backbone_loads_no_text_encoder(name: str, tmp_path: Path, kept: Path):
    folder = Path(tiny.saved(name, tmp_path / "model"))
    first, loads = encoded(folder, kept, "a cat", "a dog")
    assert loads == 1
    without_encoders(folder)
    again, loads = encoded(folder, kept, "a dog", "a cat")
    assert loads == 0
    assert all(same(first[prompt], again[prompt]) for prompt in first)
    assert not any(value.is_inference() for value in again["a cat"].values())
    with pytest.raises(ModelError, match="text encoders cannot be loaded"):
        encoded(folder, kept, "a bird")


@pytest.mark.parametrize("name", list(RECORDED))
def test_a_pipeline_that_feeds_itself_needs_no_text_encoder_either(name: str, tmp_path: Path, kept: Path):
    RECORDED[name]().save_pretrained(tmp_path / "model")
    latents = tiny.noise(2, 1 if name == "chroma" else 4, 8, 12)
    first = opened(tmp_path / "model", kept, block=1)
    channels = first._family.latent_channels
    latents = tiny.noise(2, channels, 8, 12)
    expected = first.inputs(latents, 260, ["a cat", "a cat"])
    without_encoders(tmp_path / "model")
    second = opened(tmp_path / "model", kept, block=1)
    assert same(second.inputs(latents, 260, ["a cat", "a cat"]), expected)
    assert second._parts._text_loads == 0  # pyright: ignore


@pytest.mark.slow  # starts an interpreter and loads the libraries
def test_another_process_loads_no_text_encoder_and_gives_the_same_features(folder: Path, tmp_path: Path):
    def features(prompt: str) -> tuple[ditf.FeatureMap, int]:
        fx = ditf.FeatureExtractor.from_pretrained(str(folder), **SIZES)
        found = fx(torch.linspace(0, 1, 3 * 64 * 64).view(3, 64, 64), prompt=prompt)
        return found, fx.backbone._parts._text_loads  # pyright: ignore

    script = (
        "import ditf, torch\n"
        "torch.set_num_threads(1)\n"
        f"fx = ditf.FeatureExtractor.from_pretrained({str(folder)!r}, **{SIZES!r})\n"
        "picture = torch.linspace(0, 1, 3 * 64 * 64).view(3, 64, 64)\n"
        f"fx(picture, prompt='a cat').save({str(tmp_path / 'other.safetensors')!r})\n"
        "print(fx.backbone._parts._text_loads)"
    )
    first, loads = features("a cat")
    assert loads == 1
    without_encoders(folder)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "0"
    assert torch.equal(ditf.FeatureMap.load(tmp_path / "other.safetensors").tokens, first.tokens)
    with pytest.raises(ModelError, match="text encoders cannot be loaded"):
        features("a dog")


def test_only_new_prompts_are_encoded(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    encoded(folder, kept, "a cat")
    asked = []
    backbone = opened(folder, kept)
    encode = backbone._family.encode_prompt
    object.__setattr__(
        backbone._family, "encode_prompt", lambda p, prompt, d: (asked.append(prompt), encode(p, prompt, d))[1]
    )
    backbone.text(["a dog", "a cat", "a bird"])
    assert asked == ["a dog", "a bird"]
    assert len(entries(kept)) == 3


def test_embeddings_that_a_caller_gave_stay_in_memory(folder: Path, kept: Path):
    backbone = opened(folder, kept)
    backbone.remember("a cat", prompt_embeds=torch.zeros(1, 5, 32), prompt_attention_mask=torch.ones(1, 5))
    backbone.text(["a cat"])
    assert not entries(kept)
    encoded(folder, kept, "a cat")
    assert not backbone.text(["a cat"])["a cat"]["encoder_hidden_states"].any()  # what is on disk does not replace it


# ---- what encodes anew -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json", "model_index.json"])
def test_a_changed_text_encoder_or_tokenizer_is_noticed(folder: Path, kept: Path, file: str):
    encoded(folder, kept)
    stat = (folder / file).stat()
    os.utime(folder / file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert encoded(folder, kept)[1] == 1
    assert encoded(folder, kept)[1] == 0  # replaced
    assert len(entries(kept)) == 1


def test_other_weights_of_the_text_encoder_give_their_own_embeddings(folder: Path, kept: Path):
    first, _ = encoded(folder, kept)
    torch.manual_seed(7)
    encoder = tiny.t5_encoder()
    for weight in encoder.parameters():
        nn.init.normal_(weight, 0, 0.3)
    encoder.save_pretrained(folder / "text_encoder")
    changed, loads = encoded(folder, kept)
    assert loads == 1
    assert not torch.equal(first["a cat"]["encoder_hidden_states"], changed["a cat"]["encoder_hidden_states"])


def test_other_parts_of_the_checkpoint_may_change(folder: Path, kept: Path):
    encoded(folder, kept)
    for file in (*folder.glob("vae/*"), *folder.glob("transformer/*"), *folder.glob("scheduler/*")):
        os.utime(file, ns=(0, 0))
    assert encoded(folder, kept)[1] == 0


def test_another_dtype_device_folder_or_library_is_another_entry(
    folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import diffusers
    import transformers

    encoded(folder, kept)
    assert encoded(folder, kept, dtype=torch.bfloat16)[0]["a cat"]["encoder_hidden_states"].dtype == torch.bfloat16
    assert encoded(Path(shutil.copytree(folder, tmp_path / "other")), kept)[1] == 1
    assert len(entries(kept)) == 3
    for library in (diffusers, transformers, ditf):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "99")
            path = opened(folder, kept)._text_cache.path("a cat")  # pyright: ignore
        assert path not in entries(kept)
    assert opened(folder, kept)._text_cache.path("a cat") in entries(kept)  # pyright: ignore


def test_another_length_limit_is_another_entry(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    from diffusers import PixArtAlphaPipeline

    before = opened(folder, kept)._text_cache
    assert before is not None
    assert before.identity["limits"] == {"max_sequence_length": 120}

    def encode_prompt(self: Any, prompt: str, max_sequence_length: int = 300) -> None: ...

    monkeypatch.setattr(PixArtAlphaPipeline, "encode_prompt", encode_prompt)
    after = opened(folder, kept)._text_cache
    assert after is not None
    assert before.path("a cat") != after.path("a cat")


@pytest.mark.parametrize("commit", ["0" * 40, "1" * 40, None])
def test_of_the_hub_the_commit_counts(
    folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str | None
):
    snapshot = tmp_path / "snapshots" / commit if commit else tmp_path / "elsewhere"
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda source, name, **_: str(snapshot / name))
    cache = load_backbone("owner/model", device="cpu", prompt_cache=kept)._text_cache
    if commit is None:  # a branch moves: nothing says which weights an entry was made from
        assert cache is None
    else:
        assert cache is not None
        assert (cache.identity["model"], cache.identity["revision"]) == ("owner/model", commit)
        other = TextCache(kept, {**cache.identity, "revision": "2" * 40})
        assert other.path("a cat") != cache.path("a cat")
        assert str(snapshot) not in json.dumps(cache.identity)  # the hub's cache may move


# ---- damage ------------------------------------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    "damage",
    [cut, flipped, lambda content: b"", lambda content: b"no safetensors at all", lambda content: b"\xff" * 64],
)
def test_a_damaged_entry_is_said_and_made_anew(folder: Path, kept: Path, damage: Any, caplog: pytest.LogCaptureFixture):
    first, _ = encoded(folder, kept)
    (entry,) = entries(kept)
    sound = entry.read_bytes()
    entry.write_bytes(damage(sound))
    again, loads = encoded(folder, kept)
    assert loads == 1
    assert f"{entry}: cannot be read" in caplog.text
    assert same(first, again)
    assert entry.read_bytes() == sound


def test_an_entry_of_another_make_is_left_aside(folder: Path, kept: Path):
    from safetensors.torch import save_file

    encoded(folder, kept)
    (entry,) = entries(kept)
    for metadata in (None, {"ditf": "{}"}, {"ditf": "[]"}, {"ditf": '{"tensors": 1, "structure": 3, "digest": ""}'}):
        save_file({"0": torch.zeros(2)}, entry, metadata)
        assert encoded(folder, kept)[1] == 1


def test_a_folder_that_cannot_be_written_is_said_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    backbone = opened(folder, tmp_path / "file" / "below")
    assert backbone.text(["a cat", "a dog"]).keys() == {"a cat", "a dog"}
    backbone.text(["a bird"])
    assert caplog.text.count("encoded prompts cannot be kept on disk") == 1
    assert "set DITF_CACHE" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        texts, _ = encoded(folder, kept, "a cat", "a dog")
    assert set(texts) == {"a cat", "a dog"}
    assert caplog.text.count("No space left on device") == 1
    assert entries(kept) == []


# ---- where and whether -------------------------------------------------------------------------------------------


def test_the_usual_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DITF_CACHE", str(tmp_path / "chosen"))
    assert cache_folder(True) == tmp_path / "chosen" / "prompts"
    assert cache_folder(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder(False) is None
    monkeypatch.setenv("DITF_CACHE", "")
    assert cache_folder(True) is None
    monkeypatch.delenv("DITF_CACHE")
    assert cache_folder(True) == tmp_path / "xdg" / "ditf" / "prompts"
    for ignored in ("", "relative"):  # as the XDG specification says
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder(True) == tmp_path / "home" / ".cache" / "ditf" / "prompts"
    for wrong in ("", None, 3):
        with pytest.raises(InputError, match="prompt_cache: got"):
            cache_folder(wrong)  # pyright: ignore


def test_it_can_be_turned_off(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DITF_CACHE", str(tmp_path / "usual"))
    encoded(folder, False)
    fx = ditf.FeatureExtractor.from_pretrained(str(folder), prompt_cache=False, **SIZES)
    fx.backbone.text(["a cat"])
    monkeypatch.setenv("DITF_CACHE", "")
    encoded(folder, True)
    assert not (tmp_path / "usual").exists()


def test_given_pipelines_and_models_without_text_keep_nothing(tmp_path: Path, kept: Path):
    given = backbone_from(tiny.pixart_pipeline())  # its weights may have been changed
    assert given._text_cache is None
    dit = opened(Path(tiny.saved("dit", tmp_path / "dit")), kept)
    dit.text(["class:1"])
    load_backbone("ditf-tiny", device="cpu", prompt_cache=kept).text(["a cat"])
    assert entries(kept) == []


# ---- the form of an entry ----------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    seed = draw(st.integers(0, 99))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    if values.numel():
        values.view(-1)[0] = float("nan") if seed % 2 else float("inf")
    dtype = draw(st.sampled_from(DTYPES))
    values = values.to(dtype) if dtype.is_floating_point else values.nan_to_num(1, 2, -2).to(dtype)
    return values.expand(2, *shape) if draw(st.booleans()) else values.transpose(0, -1) if shape else values


PLAIN = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5)
NESTS = st.recursive(
    PLAIN | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=NESTS)
@settings(max_examples=60, deadline=None)
def test_any_nest_comes_back_bit_for_bit(value: Any, tmp_path_factory: pytest.TempPathFactory):
    cache = TextCache(tmp_path_factory.getbasetemp() / "nests", {"model": "any"})
    cache.save("prompt", {"value": value})
    assert same(cache.load("prompt"), {"value": value})


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.zeros(2).to_sparse(), torch.zeros(1, dtype=torch.cfloat)])
def test_what_is_no_plain_data_is_not_kept(value: Any, kept: Path):
    cache = TextCache(kept, {"model": "any"})
    cache.save("prompt", {"value": [value]})
    assert entries(kept) == []
    assert cache.load("prompt") is None


def test_a_prompt_of_any_letters_has_a_file(kept: Path):
    cache = TextCache(kept, {"model": "any"})
    prompts = ["", "..", "a/b", "日本語", "x" * 5000, "\x00", "\ud800", "a", "A"]
    for i, prompt in enumerate(prompts):
        cache.save(prompt, {"number": i})
    assert [cache.load(prompt)["number"] for prompt in prompts] == list(range(len(prompts)))
    assert {len(entry.stem) for entry in entries(kept)} == {64}
