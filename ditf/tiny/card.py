"""The card of a checkpoint: ``card.json`` for machines, ``CARD.md`` for people, both from the same numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..benchmarks.synthetic.results import to_markdown
from ..types import write_atomically

__all__ = ["as_text", "write_card"]

_TEMPLATE = """# ditf-tiny

A diffusion transformer small enough to ship with the package ({megabytes:.1f} MB, {parameters:.2f} million parameters):
FLUX's class in diffusers, {double} double-stream and {single} single-stream blocks of width {width}, on
{patch} x {patch} patches of RGB pixels in [-1, 1], without VAE and text. It exists so that every path of `ditf` runs
offline on a CPU in seconds: the demo, the tests, the examples.

**It is a test piece for the pipeline more than a matcher.** Where it stands against plain pixel patches, which need no
model (95% intervals):

{verdict}

## How it was trained

Flow matching on {images:,} procedural pictures of four kinds of things, in {minutes:.0f} minutes on a {device}; loss
{loss} at the end. The weights are an exponential moving average, stored in float16. It has never seen a photograph.
Pictures: {data}. `python -m ditf.tiny.train` continues from any checkpoint.

## What it can do

Measured by `ditf eval synthetic --model ditf-tiny` on pairs that neither training nor the choice of settings has seen.
Values in percent with 95% intervals, bootstrapped over pairs that share pictures. The constant shift is told the truth;
pixel patches are centred (minus their mean), at the size the model sees, and need no model at all. "Random network" has
the same shape and diffusers' random weights. The row in bold is what the model's preset does.

{tables}
## Massive channels

Per block: the channel with the largest mean |x|, against the median over channels ({pictures}).
`largest in tokens` is the share of tokens in which that very channel is the largest; `AdaLN gain` is |1 + scale| of the
channel beside the mean of all channels: below the mean, AdaLN suppresses it.

{massive}

A ratio alone does not make a channel massive: the leading channels of block 0 are colours of the input, different from
picture to picture. One that leads in every picture with one sign is what the discard is for.
"""


def write_card(folder: Path, numbers: Mapping[str, Any]) -> list[Path]:
    """Put a report into the checkpoint's ``card.json``, beside what training wrote there, and tell it in ``CARD.md``.

    Raises:
        StoreError: the folder cannot be written.
    """
    paths = [folder / "card.json", folder / "CARD.md"]
    card = json.loads(paths[0].read_text()) if paths[0].is_file() else {}
    card["evaluation"] = dict(numbers)
    write_atomically(paths[0], (_compact(json.dumps(card, indent=1, allow_nan=False)) + "\n").encode())
    config = json.loads((folder / "config.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    write_atomically(paths[1], _markdown(card, config, size).encode())
    return paths


def _compact(text: str) -> str:
    """Lists of numbers on one line: the card ships."""
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def as_text(numbers: Mapping[str, Any]) -> str:
    """The report's tables, for a terminal."""
    return f"{to_markdown(numbers)}\n{_massive(numbers['massive channels'])}"


def _markdown(card: Mapping[str, Any], config: Mapping[str, Any], size: int) -> str:
    numbers, training = card["evaluation"], card.get("training", {})
    return _TEMPLATE.format(
        megabytes=size / 2**20,
        parameters=size / 2e6,
        double=config["num_layers"],
        single=config["num_single_layers"],
        width=config["num_attention_heads"] * config["attention_head_dim"],
        patch=round((config["in_channels"] / 3) ** 0.5),
        verdict=_verdict(numbers),
        data=training.get("data", "unknown").removeprefix("procedural scenes of ditf.tiny.scenes: "),
        images=training.get("images", 0),
        minutes=training.get("seconds", 0) / 60,
        device=training.get("device", "CPU"),
        loss=training.get("loss"),
        tables=to_markdown(numbers),
        massive=_massive(numbers["massive channels"]),
        pictures="48 procedural pictures at 64 px, timestep 100",
    )


def _verdict(numbers: Mapping[str, Any]) -> str:
    """The chosen row of every set beside the best pixel patches."""
    lines = []
    for name, one in numbers["sets"].items():
        ours = one["rows"][one["chosen"]]["pck"]["0.1"]["point_micro"]
        identity = one["rows"]["identity"]["pck"]["0.1"]["point_micro"][0]
        found = [d for d in one["differences"] if (d["first"], d["second"]) == (one["chosen"], one["best_patches"])]
        difference, low, high = found[0]["pck"]["0.1"]["point_micro"]
        between = "" if low is None else f" ({low:+.1f} to {high:+.1f})"
        lines.append(
            f"* {name}: PCK@0.1 {ours[0]:.1f}%, {difference:+.1f}{between} points against the best pixel patches\n"
            f"  ({one['best_patches'].removeprefix('pixel patches ')}); identity {identity:.1f}%."
        )
    return "\n".join(lines)


def _massive(blocks: Iterable[Mapping[str, Any]]) -> str:
    blocks = list(blocks)
    return _table(tuple(blocks[0]), (tuple(block.values()) for block in blocks))


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
