"""The card of a checkpoint: ``card.json`` for machines, ``CARD.md`` for people, both from the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..types import write_atomically

__all__ = ["as_text", "write_card"]

_TEMPLATE = """# ditf-tiny

A diffusion transformer small enough to ship with the package ({megabytes:.1f} MB, {parameters:.2f} million parameters):
FLUX's class in diffusers, {double} double-stream and {single} single-stream blocks of width {width}, on
{patch} x {patch} patches of RGB pixels in [-1, 1], without VAE and text. It exists so that every path of `ditf` runs
offline on a CPU in seconds: the demo, the tests, the examples.

**It is a test piece for the pipeline more than a matcher.** Its semantics are weak, and where a picture is only warped
plain pixel patches can do as well or better:

{verdict}

## How it was trained

Flow matching on {images:,} procedural pictures of four kinds of things, in {minutes:.0f} minutes on a {device}; loss
{loss} at the end. The weights are an exponential moving average, stored in float16. It has never seen a photograph.
Pictures: {data}. `python -m ditf.tiny.train` continues from any checkpoint.

## What it can do

Measured by `python -m ditf.tiny.evaluate` on pairs that neither training nor the choice of settings has seen. Values in
percent with 95% intervals, bootstrapped over pairs. The constant shift is told the truth; pixel patches are centred
(minus their mean), at the size the model sees, and need no model at all. "Random network" has the same shape and
diffusers' random weights.

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
    write_atomically(paths[0], (json.dumps(card, indent=1) + "\n").encode())
    config = json.loads((folder / "config.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    write_atomically(paths[1], _markdown(card, config, size).encode())
    return paths


def as_text(numbers: Mapping[str, Any]) -> str:
    """The report's tables, for a terminal."""
    return f"{_tables(numbers)}\n\n{_massive(numbers['massive channels'])}"


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
        tables=_tables(numbers),
        massive=_massive(numbers["massive channels"]),
        pictures="48 procedural pictures at 64 px, timestep 100",
    )


def _verdict(numbers: Mapping[str, Any]) -> str:
    ours = "adaln + discard"
    parts = []
    for task, what in (("semantic", "Parts across instances"), ("photographs", "Photographs under a known warp")):
        rows = numbers[task]["rows"]
        patches = max((name for name in rows if name.startswith("pixel")), key=lambda name: rows[name]["pck@0.1"][0])
        difference = rows[ours]["pck@0.1"][0] - rows[patches]["pck@0.1"][0]
        relation = "above" if difference > 0 else "below"
        parts.append(
            f"* {what}: PCK@0.1 {rows[ours]['pck@0.1'][0]}%, {abs(difference):.1f} points {relation} the best pixel "
            f"patches ({patches.removeprefix('pixel patches ')});\n  identity {rows['identity']['pck@0.1'][0]}%."
        )
    return "\n".join(parts)


def _tables(numbers: Mapping[str, Any]) -> str:
    blocks = []
    for task in ("semantic", "photographs"):
        found = numbers[task]
        s = found["setting"]
        blocks.append(
            f"### {task.capitalize()}\n\n{found['about']}. {found['pairs']} pairs, {found['points']} points; "
            f"block {s['block']}, timestep {s['timestep']}, {s['ensemble']} noises, {s['size']} px for the model.\n"
        )
        blocks.append(_score_table(found["rows"]))
        differences = ((name, _with_interval(v, "+")) for name, v in found["differences in pck@0.1"].items())
        blocks.append(_table(("difference in PCK@0.1", "points"), differences))
        if mutual := found.get("mutual matches only"):
            blocks.append(f"Only matches that lead back to where they came from ({mutual['points']} points):\n")
            blocks.append(_score_table(mutual["rows"]))
    return "\n".join(blocks).rstrip()


def _score_table(rows: Mapping[str, Any]) -> str:
    return _table(
        ("method", "PCK@0.1", "PCK@0.05", "median error"),
        (
            (name, *(_with_interval(row[f"pck@{a}"]) for a in ("0.1", "0.05")), f"{row['median error']:.3f}")
            for name, row in rows.items()
        ),
    )


def _massive(blocks: Iterable[Mapping[str, Any]]) -> str:
    blocks = list(blocks)
    return _table(tuple(blocks[0]), (tuple(block.values()) for block in blocks))


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _with_interval(values: Iterable[float], sign: str = "") -> str:
    value, low, high = values
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"
