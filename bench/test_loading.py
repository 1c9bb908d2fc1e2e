"""Loading what block 28 of a FLUX-shaped checkpoint (19 + 38 blocks) needs beside loading all of it.

The checkpoint is random, in bfloat16 as such models are published, in shards of 32 MB, an autoencoder beside it. On a
CPU it becomes float32, on CUDA it stays bfloat16. Rival: diffusers' own ``from_pretrained`` of the same pipeline, which
like ours reads no text encoders here. Bytes are those of the tensors that safetensors handed out.

And features of three blocks from one call beside those of the deepest alone; rival: one call for each.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DEVICE, DTYPE, GPU, measure, seconds

import ditf
from ditf.backbones import load_backbone

pytest.importorskip("diffusers", reason="the models are diffusers'")
pytest.importorskip("transformers", reason="the rival loads a pipeline")

BLOCK, BLOCKS = 28, [14, 21, 28]
HEADS, AXES = 5, (16, 24, 24)
CONFIG: dict[str, Any] = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": sum(AXES),
    "num_attention_heads": HEADS, "joint_attention_dim": 256, "pooled_projection_dim": 128, "guidance_embeds": True,
    "axes_dims_rope": AXES,
}  # fmt: skip
NO_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder"))
PICTURE = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))

_found: dict[str, tuple[float, float]] = {}
"""Provider -> MB read, MB of memory at the peak."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer: Any = FluxTransformer2DModel(**CONFIG)
    transformer.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    transformer.save_pretrained(folder / "transformer", max_shard_size="32MB")
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {
        "transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL", "scheduler": "FlowMatchEulerDiscreteScheduler",
    }  # fmt: skip
    index: dict[str, Any] = {name: ["diffusers", kind] for name, kind in parts.items()}
    index |= {name: [None, None] for name in NO_TEXT} | {
        "_class_name": "FluxPipeline",
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every tensor that is read, in order."""
    import safetensors
    import safetensors.torch

    sizes: list[int] = []
    real = safetensors.safe_open

    class Counting:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = real(*args, **kwargs)

        def __enter__(self) -> Counting:
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            value = self.file.get_tensor(name)
            sizes.append(value.nbytes)
            return value

        def get_tensors(self, *args: Any) -> Any:
            values = self.file.get_tensors(*args)
            sizes.extend(value.nbytes for value in values.values())
            return values

    monkeypatch.setattr(safetensors, "safe_open", Counting)
    monkeypatch.setattr(safetensors.torch, "safe_open", Counting)
    return sizes


def loaders(folder: Path) -> dict[str, Callable[[], Any]]:
    def ours(truncate: bool) -> Any:
        backbone = load_backbone(
            str(folder), block=BLOCK, truncate=truncate, dtype=DTYPE, device=DEVICE, prompt_cache=False
        )
        return backbone.transformer, backbone._parts.vae

    def diffusers() -> Any:
        from diffusers import FluxPipeline

        pipeline = FluxPipeline.from_pretrained(folder, **NO_TEXT, dtype=DTYPE, use_safetensors=True).to(DEVICE)
        return pipeline.transformer, pipeline.vae

    return {"ours": lambda: ours(True), "ours, truncate=False": lambda: ours(False), "diffusers": diffusers}


@pytest.mark.parametrize("provider", ["ours", "ours, truncate=False", "diffusers"])
def test_loading(benchmark: Any, checkpoint: Path, read: list[int], provider: str) -> None:
    from diffusers.utils import logging

    logging.disable_progress_bar()
    load = loaders(checkpoint)[provider]
    transformer, _ = load()
    assert not any(p.is_meta for p in transformer.parameters())
    megabytes = sum(read) / 2**20
    del transformer
    whole = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors")) / 2**20
    measure(
        benchmark,
        load,
        tuple,
        provider=provider,
        group=f"loading for block {BLOCK} of 57, checkpoint of {whole:.0f} MB",
        graph=False,
        rounds=3,
        note=f"{megabytes:.0f} MB read",
        read_mb=megabytes,
    )
    _found[provider] = megabytes, benchmark.extra_info["peak_mb"] or 0.0


def test_what_is_read_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """The share of the whole; FLUX's own proportions give 0.66."""
    if len(_found) < 3:
        pytest.skip("needs the rows above")
    ours, whole = _found["ours"], _found["diffusers"]
    shares = [one / other for one, other in zip(ours, whole, strict=True) if other]
    with capsys.disabled():
        for name, share, one, other in zip(("read", "memory at the peak"), shares, ours, whole, strict=False):
            print(f"\n{name}: {one:.0f} of diffusers' {other:.0f} MB ({share:.0%})", end="")
        print()
    assert _found["ours, truncate=False"][0] == pytest.approx(whole[0])
    assert max(shares) <= 0.70


@pytest.fixture(scope="module")
def extractor(checkpoint: Path) -> ditf.FeatureExtractor:
    fx = ditf.FeatureExtractor.from_pretrained(
        str(checkpoint), block=BLOCK, ensemble=1, size=128, discard="none", device=DEVICE, dtype=DTYPE,
        prompt="a photo", prompt_cache=False,
    )  # fmt: skip
    fx.backbone.remember("a photo", prompt_embeds=torch.randn(1, 64, 256), pooled_prompt_embeds=torch.randn(1, 128))
    return fx


def test_share_of_three_blocks(extractor: ditf.FeatureExtractor, capsys: pytest.CaptureFixture[str]) -> None:
    """The same two calls in turns, by the time this process computed: what else runs on the machine counts less."""
    calls = [lambda: extractor(PICTURE), lambda: extractor(PICTURE, blocks=BLOCKS)]
    times: list[list[float]] = [[], []]
    for _ in range(10):
        for call, taken in zip(calls, times, strict=True):
            began = time.process_time()
            seconds(call)
            taken.append(time.process_time() - began)
    one, three = (statistics.median(taken[1:]) for taken in times)
    with capsys.disabled():
        print(f"\nthree blocks in one call: {three / one:.3f} of the deepest alone")


@pytest.mark.parametrize("provider", ["the deepest alone", "ours", "one call for each"])
def test_three_blocks(benchmark: Any, extractor: ditf.FeatureExtractor, provider: str) -> None:
    each = [extractor.replace(block=block) for block in BLOCKS]
    calls: dict[str, Callable[[], Any]] = {
        "the deepest alone": lambda: extractor(PICTURE),
        "ours": lambda: extractor(PICTURE, blocks=BLOCKS),
        "one call for each": lambda: {fx.config.block: fx(PICTURE) for fx in each},
    }
    result = measure(
        benchmark,
        calls[provider],
        tuple,
        provider=provider,
        group=f"features of blocks {', '.join(map(str, BLOCKS))} of one 128 px image",
        graph=False,
        rounds=20 if GPU else 5,
    )
    if provider != "the deepest alone":
        assert list(result) == BLOCKS
