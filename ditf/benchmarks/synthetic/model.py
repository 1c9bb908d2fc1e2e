"""A checkpoint at one setting, and the ablation of the method on its tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditf_kernels import adaln

from ... import tiny
from ...backbones import BlockInput
from ...extractor import FeatureExtractor
from ...presets import find_preset
from ...types import FeatureMap

__all__ = ["BEST", "Network", "Setting", "random_checkpoint", "top_channel", "variants"]

BEST = "adaln + discard"
"""DiTF as the paper has it."""

BUNDLED = Path(tiny.__file__).parent


@dataclass(frozen=True)
class Setting:
    """Where features are taken."""

    block: int
    timestep: float
    ensemble: int
    size: int

    @classmethod
    def of(cls, task: str) -> Setting:
        """The preset of ``ditf-tiny`` for a task."""
        config = find_preset("ditf-tiny", task, num_blocks=1 << 10).config
        assert isinstance(config.size, int)
        return cls(config.block, config.timestep, config.ensemble, config.size)


class Network:
    """Raw tokens and modulation of one checkpoint at one setting."""

    def __init__(self, checkpoint: str, setting: Setting) -> None:
        self.setting = setting
        self.extractor = FeatureExtractor.from_pretrained(
            checkpoint, **dataclasses.asdict(setting), normalization="none", discard="none", truncate=False
        )

    def raw(self, picture: np.ndarray) -> FeatureMap:
        """Tokens entering the block, mean over the ensemble."""
        return self.extractor(picture)

    def raw_of_blocks(self, picture: np.ndarray) -> dict[int, FeatureMap]:
        return self.extractor(picture, blocks=range(self.extractor.backbone.num_blocks))

    def modulation(self, block: int) -> BlockInput:
        """The block's shift and scale: without a text they depend on the timestep alone."""
        backbone = self.extractor.backbone
        side = 2 * backbone.pixels_per_token
        latents = torch.zeros(1, 3, side, side)
        inputs = backbone.inputs(latents, self.setting.timestep, [""])
        with torch.inference_mode():
            return backbone.run([block], inputs, backbone.grid(latents))[block]


def variants(raw: FeatureMap, modulation: BlockInput, massive: Sequence[int]) -> dict[str, FeatureMap]:
    """The ablation: raw tokens, normalised, modulated, and modulated after the massive channels were zeroed."""
    x, m = raw.tokens[None], modulation
    discard = tuple(massive)
    return {
        "raw": raw,
        "layernorm": _with_tokens(raw, adaln(x, None, None, eps=m.eps)),
        "adaln": _with_tokens(raw, adaln(x, m.shift, m.scale, eps=m.eps)),
        BEST: _with_tokens(raw, adaln(x, m.shift, m.scale, eps=m.eps, discard=discard)),
    }


def top_channel(maps: Sequence[FeatureMap]) -> int:
    """The channel with the largest mean |x| over maps."""
    return int(torch.stack([m.tokens.abs().mean(0) for m in maps]).mean(0).argmax())


def random_checkpoint(checkpoint: str, folder: Path, seed: int = 0) -> None:
    """A network of the same shape with the random weights that diffusers gives it, as a folder."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    source = BUNDLED if checkpoint == "ditf-tiny" else Path(checkpoint)
    for name in ("config.json", "ditf.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = FluxTransformer2DModel.from_config(json.loads((source / "config.json").read_text()))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def _with_tokens(features: FeatureMap, tokens: Tensor) -> FeatureMap:
    return dataclasses.replace(features, tokens=tokens[0], inverse_norm=None)
