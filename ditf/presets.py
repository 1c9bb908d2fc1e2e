"""What is known per (model, task), with the source of every value.

Values nobody published say so. ``CODE`` is the authors' released code, ``PAPER`` arXiv 2505.18584.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from .errors import InputError
from .types import ExtractConfig

__all__ = ["PROTOCOLS", "TASKS", "Preset", "find_preset"]

log = logging.getLogger("ditf")

TASKS = ("semantic", "temporal", "geometric")
PROTOCOLS = ("ditf-code", "ditf-paper")

CODE = "DiTF reference code (github.com/ganchaofan0000/DiTF, November 2025)"
PAPER = "arXiv 2505.18584"
DEFAULT = "ditf default, untuned"
MEASURED = "ditf-tiny card"


@dataclass(frozen=True)
class Preset:
    """A config with the source of each of its values.

    Attributes:
        config: ready to run; its ``discard`` is a tuple of channels or "none", never "preset".
        source: per field of the config, who says so.
    """

    config: ExtractConfig
    source: Mapping[str, str]

    @property
    def untuned(self) -> tuple[str, ...]:
        """Fields whose value nobody published."""
        return tuple(sorted(name for name, who in self.source.items() if who == DEFAULT))


def find_preset(model: str, task: str, *, num_blocks: int, protocol: str | None = None) -> Preset:
    """The preset of a model (hub id, or a local folder of the same name) for a task.

    Args:
        model: "black-forest-labs/FLUX.1-dev", ".../FLUX.1-dev", "ditf-tiny", ...
        task: "semantic", "temporal" or "geometric".
        num_blocks: how many blocks the model has; an unknown model is tapped half-way.
        protocol: "ditf-code" (default) or "ditf-paper", where a model has published values.

    Raises:
        InputError: an unknown task or protocol, or a protocol the model has no values for.
    """
    if task not in TASKS:
        raise InputError.of("task", task, f"one of {', '.join(TASKS)}")
    if protocol is not None and protocol not in PROTOCOLS:
        raise InputError.of("protocol", protocol, f"one of {', '.join(PROTOCOLS)}")
    name = PurePath(model).name.lower()
    known = _KNOWN.get((name, task, protocol or "ditf-code"))
    if known is None and protocol is not None:
        raise InputError(f"protocol: {protocol} has no published values for {model}, task {task}; leave it out")
    preset = _generic(num_blocks, _BEST_BLOCK_SHARE) if known is None else known
    if preset.config.block >= num_blocks:
        raise InputError.of("block", preset.config.block, f"an index in 0..{num_blocks - 1} of {model}")
    if preset.untuned:
        log.info(
            "%s, task %s: %s are ditf defaults that nobody tuned; set them as keywords",
            model, task, ", ".join(preset.untuned),
        )  # fmt: skip
    return preset


# FLUX.1-dev taps block 28 of 57: the only depth anybody published serves as the default share for other models.
_BEST_BLOCK_SHARE = 28 / 57


def _generic(num_blocks: int, share: float) -> Preset:
    block = min(num_blocks - 1, round(num_blocks * share))
    config = ExtractConfig(block=block, timestep=260, ensemble=4, size=640, discard="none")
    return Preset(config, _sources(config, DEFAULT))


def _sources(config: ExtractConfig, who: str, **others: str) -> dict[str, str]:
    names = [f.name for f in dataclasses.fields(config)]
    unpublished = {"seed", "activation", "condition", "shared_noise", "multiple", "topk_per_token", "site"}
    return {name: others.get(name, who) for name in names if name not in unpublished}


def _preset(who: str, values: dict[str, Any], **others: str) -> Preset:
    config = ExtractConfig(**values)
    return Preset(config, _sources(config, who, **others))


_FLUX_CODE = {
    "block": 28, "timestep": 260, "size": 640, "ensemble": 8, "latent": "sample",
    "discard": (154, 1446), "guidance": 3.5, "prompt": "a photo of a {category}",
}  # fmt: skip

_FLUX_TEMPORAL = {
    "block": 24, "timestep": 90, "size": 960, "resize": "shortest", "ensemble": 1, "latent": "sample",
    "discard": "none", "guidance": 3.5, "prompt": "a photo of a image",
}  # fmt: skip

_TINY = {
    "block": 5, "timestep": 20, "size": 96, "ensemble": 4, "discard": (91,),
}  # fmt: skip

_CAPTIONS = f"{PAPER}; the reference code reads one long caption per image instead"

_KNOWN: dict[tuple[str, str, str], Preset] = {
    ("flux.1-dev", "semantic", "ditf-code"): _preset(CODE, _FLUX_CODE, prompt=_CAPTIONS),
    ("flux.1-dev", "semantic", "ditf-paper"): _preset(
        CODE, {**_FLUX_CODE, "size": 960}, size=f"{PAPER}, appendix, as quoted by a third-party audit", prompt=PAPER
    ),
    ("flux.1-dev", "temporal", "ditf-code"): _preset(CODE, _FLUX_TEMPORAL, discard=DEFAULT),
    ("flux.1-dev", "geometric", "ditf-code"): _preset(DEFAULT, _FLUX_CODE, discard=CODE, guidance=CODE, latent=CODE),
    **{("ditf-tiny", task, "ditf-code"): _preset(MEASURED, _TINY) for task in TASKS},
}
