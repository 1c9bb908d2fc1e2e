"""Write docs/models.md from what the tap, the probe and ditf.fuse do on every tiny model of the zoo.

Run as ``python -m tests.models_table``; a test holds its classes against the zoo's.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ditf import InputError, fuse, tap
from ditf.backbones import run_to_blocks
from ditf.backbones.families import FAMILIES
from ditf.backbones.run import BlockInput
from ditf.backbones.stacks import block_sites
from ditf.types import write_atomically

from .zoo import ZOO, Sample

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS = ("class", "blocks", "AdaLN", "tap", "probe", "fused norms", "mlp site", "conditions", "inputs", "presets")
ACCURATE, FUSED = 1e-5, 1e-4
PRESETS = {"FluxTransformer2DModel": "FLUX.1-dev, ditf-tiny"}


@dataclass
class Row:
    """What the variants of one class did; errors are the largest over variants and blocks, relative."""

    blocks: dict[str, None] = field(default_factory=dict)
    adaln: dict[str, None] = field(default_factory=dict)
    tap: float = 0.0
    probe: float = 0.0
    fuse: float = 0.0
    fused: int = 0
    norms: int = 0
    mlp: dict[str, None] = field(default_factory=dict)
    conditions: dict[str, None] = field(default_factory=dict)


def rows() -> dict[str, Row]:
    """Class -> what was measured."""
    found: dict[str, Row] = {}
    for make in ZOO.values():
        sample = make()
        _measure(sample, found.setdefault(type(sample.model).__name__, Row()))
    return found


def _measure(sample: Sample, row: Row) -> None:
    sites = block_sites(sample.model)
    for site in sites:
        row.blocks.setdefault(f"{type(site.module).__name__}")
        known, taken = _tapped(sample, site.index)
        row.adaln.setdefault(_words(known))
        row.tap = max(row.tap, _distance(taken, known.tokens, sample, site.index))
        with mock.patch("ditf.backbones.modulation.MODULATION", {}):
            _, probed = _tapped(sample, site.index)
        row.probe = max(row.probe, _relative(probed, taken))
        if _works(sample, site.index, site="mlp"):
            row.mlp.setdefault(type(site.module).__name__)
    for condition in ("t", "c", "none"):
        if _works(sample, 0, condition=condition):
            row.conditions.setdefault(condition)
    before = sample.forward()
    report = fuse(sample.model)
    row.fused, row.norms = row.fused + len(report.swapped), row.norms + len(report.swapped) + len(report.left)
    row.fuse = max(row.fuse, _relative(sample.forward(), before))


def _tapped(sample: Sample, block: int) -> tuple[BlockInput, Tensor]:
    inputs = copy.deepcopy(sample.inputs)
    taken = run_to_blocks(sample.model, [block], inputs, sample.grid)[block]
    return taken, tap(sample.model, block, copy.deepcopy(sample.inputs), grid=sample.grid).features


def _distance(features: Tensor, tokens: Tensor, sample: Sample, block: int) -> float:
    """From the features to the nearest of what the block's attention is given, seen by a hook of its own."""
    from .backbones.test_every_class import attention_input

    seen = attention_input(sample, block).double()
    return float(torch.cdist(features.double(), seen).amin(-1).max() / seen.norm(dim=-1).max())


def _works(sample: Sample, block: int, **choice: Any) -> bool:
    try:
        tap(sample.model, block, copy.deepcopy(sample.inputs), grid=sample.grid, **choice)
    except InputError:
        return False
    return True


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _words(taken: BlockInput) -> str:
    norm = {"layer": "LayerNorm", "rms": "RMSNorm"}[taken.norm or "layer"] + (
        ", affine" if taken.weight is not None else ""
    )
    vectors = {"shift": taken.shift, "scale": taken.scale}
    parts = [name for name, value in vectors.items() if value is not None]
    per_token = any(value is not None and value.shape[1] > 1 for value in vectors.values())
    return f"{norm}; {' + '.join(parts) or 'none'}{' per token' if per_token else ''}"


def _cells(name: str, row: Row) -> tuple[str, ...]:
    short = [block.removesuffix("Block").removesuffix("Transformer") for block in row.blocks]
    mlp = "yes" if len(row.mlp) == len(row.blocks) else "some blocks" if row.mlp else "no"
    return (
        f"`{name}`",
        ", ".join(short),
        " / ".join(row.adaln),
        _verdict(row.tap, ACCURATE),
        _verdict(row.probe, ACCURATE),
        f"{row.fused} of {row.norms}, {_verdict(row.fuse, FUSED)}",
        mlp,
        ", ".join(row.conditions) or "-",
        "ditf" if name in FAMILIES else "its pipeline, or prepared",
        PRESETS.get(name, "untuned"),
    )


def _verdict(error: float, limit: float) -> str:
    """1e-5 or the power of ten above, so that the last bits of a machine do not change the document."""
    if error > limit:
        return f"FAILS ({error:.1e})"
    return next(f"< 1e-{n}" for n in (5, 4) if error < 10.0**-n)


def document(found: dict[str, Row]) -> str:
    return "\n".join([TEXT, *_table(found), ""])


def _table(found: dict[str, Row]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + " --- |" * len(COLUMNS)
    for name in sorted(found):
        yield f"| {' | '.join(_cells(name, found[name]))} |"


TEXT = """# Models

What ditf does with every transformer class of diffusers that it has a row for. Written by `python -m
tests.models_table` from tiny random models of each class on a CPU in float32; no released checkpoint was run.

- **tap**: the features (norm, scale and shift as ditf computes them) against what the block itself feeds its attention,
  every block; the largest distance, relative.
- **probe**: the same features without the class's row, as for a class that ditf does not know.
- **fused norms**: norms that `ditf.fuse` swaps, of all norms in the blocks, summed over variants, and the largest
  change of the model's output, relative.
- **mlp site**: blocks that have a norm of their own before a feed-forward network (`site="mlp"`).
- **conditions**: what `condition=` can reduce the conditioning to, beside `"t&c"`.
- **inputs**: "ditf" prepares the transformer's inputs itself; else the model's own pipeline does, where it can be asked
  to, or the caller (`ditf.tap`).
- **presets**: checkpoints with values of their own; "untuned" is ditf's default, which nobody published.

A class that is not listed is probed; where text and image share a sequence, say `layout=`. A U-Net is refused.
"""


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    DOCUMENT.parent.mkdir(exist_ok=True)
    write_atomically(DOCUMENT, document(rows()).encode())


if __name__ == "__main__":
    main()
