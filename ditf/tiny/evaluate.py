"""What ``ditf-tiny`` can and cannot do, measured beside what needs no model at all.

    python -m ditf.tiny.evaluate [--checkpoint FOLDER] [--json OUT] [--write-card]
    python -m ditf.tiny.evaluate --tune

Two tasks. *Semantic*: named parts of one procedural instance found in another of its kind. *Photographs*: points of
scikit-image's pictures found in a rotated, scaled, recoloured copy. Cards are measured on other seeds than settings are
tuned on, and both on other seeds than training draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..benchmarks.rivals import constant_shift, identity, pixel_patches
from ..benchmarks.synthetic import (
    BEST,
    PHOTOGRAPH_SIDE,
    PHOTOGRAPHS,
    SCENE_SIDE,
    Case,
    Network,
    Score,
    Setting,
    interval,
    massive_channels_of_blocks,
    photograph_cases,
    random_checkpoint,
    scene_cases,
    top_channel,
    variants,
)
from ..errors import DitfError
from ..matching import match_points, mutual_matches
from ..types import FeatureMap, write_atomically
from .scenes import apply_homography

__all__ = ["massive_channels_of_blocks", "report", "tune"]

PATCHES = (9, 17, 25)
_TUNING, _CARD = 1_000_000, 2_000_000  # first seeds
_WARP_RANGES = "rotation 18 to 30 degrees, scale 0.72 to 0.85, about a point just outside a corner, recoloured"


def report(checkpoint: str = "ditf-tiny", *, scenes: int = 240, warps: int = 8) -> dict[str, Any]:
    """Everything the card says, as plain JSON values; equal checkpoints give equal reports."""
    massive = massive_channels_of_blocks(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint(checkpoint, Path(folder))
        tasks = {
            "semantic": (scene_cases(scenes, _CARD), Setting.of("semantic")),
            "photographs": (photograph_cases(warps, _CARD), Setting.of("geometric")),
        }
        scores = {name: _measure(cases, setting, checkpoint, folder) for name, (cases, setting) in tasks.items()}
    return {
        "semantic": {
            "about": f"Parts of one instance found in another of its kind, {SCENE_SIDE} px, seeds from {_CARD}; "
            "errors relative to the larger side of the target's box",
            **scores["semantic"],
        },
        "photographs": {
            "about": f"The photographs {', '.join(PHOTOGRAPHS)} at {PHOTOGRAPH_SIDE} px: {_WARP_RANGES}, seeds from "
            f"{_CARD}; errors relative to the larger side of the picture",
            **scores["photographs"],
        },
        "massive channels": massive,
        "intervals": "95%, bootstrap over pairs",
    }


def _measure(cases: list[Case], setting: Setting, checkpoint: str, random_folder: str) -> dict[str, Any]:
    scores: dict[str, Score] = {}
    mutual: dict[str, Score] = {}
    for name, source in (("", checkpoint), ("random network, ", random_folder)):
        network = Network(source, setting)
        modulation = network.modulation(setting.block)
        pairs = [(network.raw(case.source), network.raw(case.target)) for case in cases]
        top = top_channel([tokens for pair in pairs for tokens in pair])
        for case, (first, second) in zip(cases, pairs, strict=True):
            a, b = variants(first, modulation, [top]), variants(second, modulation, [top])
            for variant in a:
                predicted = match_points(a[variant], b[variant], case.points).target
                scores.setdefault(name + variant, Score()).add(predicted, case.truth, case.length)
            if not name and case.matrix is not None:
                _add_mutual(mutual, a[BEST], b[BEST], case)
    rivals = _rivals(setting.size)
    for case in cases:
        for name, rival in rivals.items():
            scores.setdefault(name, Score()).add(rival(case), case.truth, case.length)
    best = max((f"pixel patches {patch} px" for patch in PATCHES), key=lambda name: scores[name].samples()[0, 0])
    compared = [
        ("adaln", "raw"), ("adaln", "layernorm"), (BEST, "adaln"), (BEST, f"random network, {BEST}"), (BEST, best),
    ]  # fmt: skip
    result = {
        "setting": dataclasses.asdict(setting),
        "pairs": len(cases),
        "points": sum(len(case.points) for case in cases),
        "rows": {name: score.row() for name, score in scores.items()},
        "differences in pck@0.1": {
            f"{one} - {other}": interval((scores[one].samples() - scores[other].samples())[:, 0])
            for one, other in compared
        },
    }
    if mutual:
        result["mutual matches only"] = {
            "points": sum(mutual[BEST].counts),
            "rows": {name: score.row() for name, score in mutual.items()},
        }
    return result


def _add_mutual(scores: dict[str, Score], first: FeatureMap, second: FeatureMap, case: Case) -> None:
    """Matches that lead back, against their own identity and constant shift."""
    assert case.matrix is not None
    matches = mutual_matches(first, second)
    truth = apply_homography(case.matrix, matches.source)
    height, width = case.target.shape[:2]
    inside = ((truth >= 0) & (truth <= torch.tensor([width - 1, height - 1]))).all(1)
    points, truth = matches.source[inside], truth[inside]
    if not len(points):
        return
    predictions = {
        BEST: matches.target[inside],
        "identity": points,
        "best constant shift": constant_shift(points, truth),
    }
    for name, predicted in predictions.items():
        scores.setdefault(name, Score()).add(predicted, truth, case.length)


def _rivals(side: int) -> dict[str, Callable[[Case], Tensor]]:
    """What needs no model. The constant shift is told the truth."""

    def patches(patch: int) -> Callable[[Case], Tensor]:
        return lambda case: pixel_patches(case.source, case.target, case.points, patch=patch, side=side)

    return {
        "identity": lambda case: identity(case.points, _size(case.source), _size(case.target)),
        "best constant shift": lambda case: constant_shift(case.points, case.truth),
        **{f"pixel patches {patch} px": patches(patch) for patch in PATCHES},
    }


def tune(checkpoint: str = "ditf-tiny", *, scenes: int = 80, warps: int = 4) -> Iterator[dict[str, Any]]:
    """PCK of every block, timestep and size on the tuning pairs; one row at a time."""
    tasks = (
        ("semantic", scene_cases(scenes, _TUNING), (64, 96, 128), (20, 100, 200)),
        ("photographs", photograph_cases(warps, _TUNING), (96, 128, 192), (20, 100, 200)),
    )
    for task, cases, sizes, timesteps in tasks:
        for size in sizes:
            for timestep in timesteps:
                yield from _tune_at(checkpoint, task, cases, Setting(0, timestep, 4, size))


def _tune_at(checkpoint: str, task: str, cases: list[Case], setting: Setting) -> Iterator[dict[str, Any]]:
    network = Network(checkpoint, setting)
    pairs = [(network.raw_of_blocks(case.source), network.raw_of_blocks(case.target)) for case in cases]
    for block in range(1, network.extractor.backbone.num_blocks):
        modulation = network.modulation(block)
        top = top_channel([layers[block] for pair in pairs for layers in pair])
        scores: dict[str, Score] = {}
        for case, (first, second) in zip(cases, pairs, strict=True):
            a, b = (variants(layers[block], modulation, [top]) for layers in (first, second))
            for variant in a:
                predicted = match_points(a[variant], b[variant], case.points).target
                scores.setdefault(variant, Score()).add(predicted, case.truth, case.length)
        found = {variant: [round(v, 1) for v in score.samples(1)[0].tolist()] for variant, score in scores.items()}
        yield {"task": task, "size": setting.size, "timestep": setting.timestep, "block": block, "top": top, **found}


def _size(picture: np.ndarray) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]


def main(arguments: list[str] | None = None) -> int:
    """Measure a checkpoint; the table goes to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ditf-tiny", help="a folder written by ditf.tiny.train")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--write-card", action="store_true", help="write card.json and CARD.md beside the checkpoint")
    parser.add_argument("--tune", action="store_true", help="compare settings on the tuning pairs instead")
    options = parser.parse_args(arguments)
    from .card import as_text, write_card

    try:
        if options.tune:
            for row in tune(options.checkpoint):
                print(json.dumps(row), flush=True)
            return 0
        numbers = report(options.checkpoint)
        print(as_text(numbers))
        if options.json:
            write_atomically(options.json, (json.dumps(numbers, indent=1) + "\n").encode())
        if options.write_card:
            folder = Path(__file__).parent if options.checkpoint == "ditf-tiny" else Path(options.checkpoint)
            for path in write_card(folder, numbers):
                print(f"wrote {os.path.relpath(path)}", file=sys.stderr)
    except DitfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
