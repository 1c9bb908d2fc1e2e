"""Nothing runs twice: many blocks cost one pass, a prompt is encoded once; a size is refused before anything loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ditf
from ditf import InputError
from ditf.backbones import backbone_from
from ditf.backbones.stacks import block_sites

from . import tiny_models as tiny

COUNTS = {"flux": 5, "sd3": 3, "pixart": 3}


def calls_of_blocks(transformer: Any) -> list[int]:
    """A list that gets the index of every block that is called."""
    calls: list[int] = []
    index = {site.module: site.index for site in block_sites(transformer)}
    for block in index:
        block.register_forward_pre_hook(lambda module, args: calls.append(index[module]))
    return calls


@pytest.mark.parametrize("name", list(COUNTS))
def test_many_blocks_cost_one_pass_to_the_deepest(tmp_path: Path, name: str):
    folder = tiny.saved(name, tmp_path)
    last = COUNTS[name] - 1
    fx = ditf.FeatureExtractor.from_pretrained(
        folder, block=last - 1, size=64, ensemble=2, discard="none", device="cpu"
    )
    image = torch.rand(3, 64, 64)
    fx(image)  # compares each block's formula with the block once
    calls = calls_of_blocks(fx.backbone.transformer)
    found = fx(image, blocks=[last - 1, 0, last - 2] if last > 2 else [last - 1, 0])
    assert calls == list(range(last))
    calls.clear()
    for block, one in found.items():
        assert torch.equal(fx.replace(block=block)(image).tokens, one.tokens)
    assert len(calls) == sum(block + 1 for block in found)


def test_a_second_image_with_the_same_prompt_runs_no_text_encoder(tmp_path: Path):
    fx = ditf.FeatureExtractor.from_pretrained(
        tiny.saved("flux", tmp_path), block=1, size=64, ensemble=1, device="cpu", prompt_cache=False
    )
    parts: Any = fx.backbone._parts
    for seed in range(3):
        fx(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)), prompt="a cat")
    assert parts._text_loads == 1
    pipeline, encoded = tiny.flux_pipeline(), []
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.register_forward_pre_hook(lambda module, args: encoded.append(type(module).__name__))
    given = ditf.FeatureExtractor(pipeline, block=1, size=64, ensemble=1)
    for prompt in ("a cat", "a cat", "a dog"):
        given([torch.rand(3, 64, 64)] * 2, prompt=prompt)
    assert encoded == ["CLIPTextModel", "T5EncoderModel"] * 2


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("sd3", (400, 64), r"size: got \(400, 64\), expected sides of at most 384 pixels"),
        ("z-image", (64, 528), r"size: got \(64, 528\), expected at most 512 x 512 pixels"),
    ],
)
def test_a_size_beyond_the_position_table_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, size: tuple[int, int], words: str
):
    folder = Path(tiny.saved(name, tmp_path / "model"))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    fx = ditf.FeatureExtractor.from_pretrained(
        str(folder), block=1, resize="stretch", size=size, ensemble=1, device="cpu"
    )
    with pytest.raises(InputError, match=words):
        fx(torch.rand(3, 64, 64))


@pytest.mark.parametrize("name", ["flux", "flux2", "pixart", "dit", "sana", "qwen-image"])
def test_models_that_compute_or_interpolate_their_positions_take_any_size(name: str):
    backbone = backbone_from(tiny.PIPELINES[name]())
    side = backbone.pixels_per_token
    backbone.check_size(70 * side, 3 * side)
    cells = backbone._family.patch
    latents = tiny.noise(1, backbone._family.latent_channels, 70 * cells, 3 * cells)
    tokens = backbone.run([1], backbone.inputs(latents, 260, [""]), (70, 3))[1].tokens
    assert tokens.shape[1] == 210
    assert tokens.isfinite().all()
