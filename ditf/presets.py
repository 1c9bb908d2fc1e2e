"""What is known per (model, task), with the source of every value.

Values nobody published say so. ``CODE`` is the authors' released code, ``PAPER`` arXiv 2505.18584.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from .errors import InputError
from .types import ExtractConfig, write_atomically

__all__ = ["PROTOCOLS", "TASKS", "Preset", "find_preset", "load_preset", "save_preset"]

log = logging.getLogger("ditf")

TASKS = ("semantic", "temporal", "geometric")
PROTOCOLS = ("ditf-code", "ditf-paper")

CODE = "DiTF reference code (github.com/ganchaofan0000/DiTF, November 2025)"
PAPER = "arXiv 2505.18584"
DEFAULT = "ditf default, untuned"
MEASURED = "ditf-tiny card"
TRACKED = "J&F on the tuning clips of ditf.benchmarks.propagation"

_FORMAT, _VERSION = "ditf preset", 1


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
            "%s, task %s: %s are ditf defaults that nobody tuned; set them as keywords, or find better ones: "
            "ditf sweep IMAGES --model %s",
            model, task, ", ".join(preset.untuned), model,
        )  # fmt: skip
    return preset


def save_preset(path: str | os.PathLike[str], preset: Preset, *, model: str, revision: str | None = None) -> Path:
    """Write a preset as a JSON file that ``FeatureExtractor.from_pretrained(model, preset=path)`` takes.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    document = {
        _FORMAT: _VERSION,
        "model": model,
        "revision": revision,
        "config": dataclasses.asdict(preset.config),
        "source": dict(preset.source),
    }
    write_atomically(Path(path), (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return Path(path)


def load_preset(path: str | os.PathLike[str], model: str, *, num_blocks: int, revision: str | None = None) -> Preset:
    """The preset that ``ditf sweep`` or :func:`save_preset` wrote.

    Args:
        model: what it will be used with: the same hub id, or a local folder of the same name.
        num_blocks: how many blocks that model has.
        revision: its commit, where it is known; another than the preset's is only warned of.

    Raises:
        InputError: no such file, no preset inside, unknown fields, another model, or a block it does not have.
    """
    document = _read_preset(Path(path))
    made_for, values, source = document["model"], document["config"], document["source"]
    if PurePath(made_for).name.lower() != PurePath(model).name.lower():
        raise InputError(f"preset: {path} was made for {made_for}, and the model is {model}; give a preset of its own")
    if revision and document["revision"] and revision != document["revision"]:
        log.warning("preset %s: made with revision %s of %s, used with %s", path, document["revision"], model, revision)
    fields = {f.name: f for f in dataclasses.fields(ExtractConfig)}
    for part, names in (("config", values), ("source", source)):
        if unknown := sorted(set(names) - set(fields)):
            raise InputError(f"preset: {path}: got {part} {unknown[0]!r}, expected fields of ExtractConfig: "
                             f"{', '.join(fields)}")  # fmt: skip
    if missing := [name for name in ("block", "timestep") if name not in values]:
        raise InputError(f"preset: {path}: config has no {missing[0]!r}; give at least block and timestep")
    config = ExtractConfig(**values)
    if config.discard == "preset":
        raise InputError.of("preset discard", "preset", 'channel indices, "auto" or "none"')
    if config.block >= num_blocks:
        raise InputError.of("block", config.block, f"an index in 0..{num_blocks - 1} of {model}")
    return Preset(config, source)


def _read_preset(path: Path) -> dict[str, Any]:
    """A preset file's five entries, of the right kinds."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"preset: no such file: {path}; check the path (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"preset: {path} cannot be read ({error}); give a file that ditf sweep wrote") from None
    if not isinstance(document, dict) or document.get(_FORMAT) != _VERSION:
        raise InputError(f'preset: {path} is no preset of ditf (no "{_FORMAT}": {_VERSION}); give one of ditf sweep')
    kinds: dict[str, Any] = {_FORMAT: int, "model": str, "revision": str | None, "config": dict, "source": dict}
    for name in document:
        if name not in kinds:
            raise InputError(f"preset: {path}: got {name!r}, expected {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(document.get(name), kind):
            raise InputError(f"preset: {path}: {name} is {document.get(name)!r}, expected {kind}")
    return document


# FLUX.1-dev taps block 28 of 57: the only depth anybody published serves as the default share for other models.
_BEST_BLOCK_SHARE = 28 / 57


def _generic(num_blocks: int, share: float) -> Preset:
    block = min(num_blocks - 1, round(num_blocks * share))
    config = ExtractConfig(block=block, timestep=260, ensemble=4, size=640, discard="none")
    return Preset(config, _sources(config, DEFAULT))


def _sources(config: ExtractConfig, who: str, **others: str) -> dict[str, str]:
    names = [f.name for f in dataclasses.fields(config)]
    unpublished = {"seed", "activation", "condition", "shared_noise", "multiple", "topk_per_token", "site"}
    return {name: others.get(name, who) for name in names if name in others or name not in unpublished}


def _preset(who: str, values: dict[str, Any], **others: str) -> Preset:
    config = ExtractConfig(**values)
    return Preset(config, _sources(config, who, **others))


_FLUX_CODE = {
    "block": 28, "timestep": 260, "size": 640, "rounding": "half-even", "ensemble": 8, "latent": "sample",
    "discard": (154, 1446), "guidance": 3.5, "prompt": "a photo of a {category}",
}  # fmt: skip

_FLUX_TEMPORAL = {
    "block": 24, "timestep": 90, "size": 960, "resize": "shortest", "rounding": "floor", "multiple": 32,
    "ensemble": 1, "latent": "sample", "discard": "none", "guidance": 3.5, "prompt": "a photo of a image",
}  # fmt: skip

_TINY = {
    "block": 5, "timestep": 200, "size": 96, "ensemble": 4, "discard": (91,),
}  # fmt: skip

_TINY_TEMPORAL = {
    "block": 3, "timestep": 100, "size": 240, "ensemble": 1, "discard": "none",
}  # fmt: skip

_CAPTIONS = f"{PAPER}; the reference code reads one long caption per image instead"

_KNOWN: dict[tuple[str, str, str], Preset] = {
    ("flux.1-dev", "semantic", "ditf-code"): _preset(CODE, _FLUX_CODE, prompt=_CAPTIONS),
    ("flux.1-dev", "semantic", "ditf-paper"): _preset(
        CODE, {**_FLUX_CODE, "size": 960}, size=f"{PAPER}, appendix, as quoted by a third-party audit", prompt=PAPER
    ),
    ("flux.1-dev", "temporal", "ditf-code"): _preset(CODE, _FLUX_TEMPORAL, discard=DEFAULT, multiple=CODE),
    ("flux.1-dev", "geometric", "ditf-code"): _preset(DEFAULT, _FLUX_CODE, discard=CODE, guidance=CODE, latent=CODE),
    **{("ditf-tiny", task, "ditf-code"): _preset(MEASURED, _TINY) for task in ("semantic", "geometric")},
    ("ditf-tiny", "temporal", "ditf-code"): _preset(TRACKED, _TINY_TEMPORAL),
}
