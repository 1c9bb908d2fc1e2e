"""Curves of training runs: what ``ditf.tiny.train`` left in their folders."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditf.benchmarks.rivals import constant_shift, identity, pixel_patches
from ditf.benchmarks.synthetic import Score, scene_cases
from ditf.benchmarks.synthetic.methods import PATCHES
from ditf.errors import InputError
from ditf.tiny.scenes import VALIDATION_SEED

CURVE = "growth.csv"
COLUMNS = ("step", "images", "seconds", "loss", "channel", "ratio", "raw", "layernorm", "adaln", "adaln_discard")
GROWTH_PAIRS = (48, VALIDATION_SEED + 700_000, 96)
"""Pairs, first seed and side of the pictures that ``ditf.tiny.growth`` measures on."""
_WHOLE = {"step", "images", "channel"}
_SETTINGS = ("config.json", "ditf.json")


@functools.cache
def rivals_of_curves() -> dict[str, float]:
    """PCK@0.1 in percent of what needs no model, on the pairs that ``ditf.tiny.growth`` measures curves on."""
    count, seed, side = GROWTH_PAIRS
    scores: dict[str, Score] = {}
    for case in scene_cases(count, seed, size=side):
        found = {
            "identity": identity(case.points, _size(case.source), _size(case.target)),
            "best constant shift": constant_shift(case.points, case.truth),
            **{
                f"pixel patches {patch} px": pixel_patches(
                    case.source, case.target, case.points, patch=patch, side=side
                )
                for patch in PATCHES
            },
        }
        for name, places in found.items():
            scores.setdefault(name, Score()).add(places, case.truth, case.length)
    return {name: round(float(score.samples(1)[0, 0]), 4) for name, score in scores.items()}


def run_of(name_and_folder: str) -> tuple[str, Path]:
    """ "NAME=FOLDER", or a folder that gives the name.

    Raises:
        InputError: no curve there.
    """
    name, _, folder = name_and_folder.rpartition("=")
    path = Path(folder)
    if not (path / CURVE).is_file():
        raise InputError.of("run", name_and_folder, f"FOLDER or NAME=FOLDER of a training run with {CURVE}")
    return name or path.name, path


def curves_of(runs: Sequence[str]) -> list[dict[str, Any]]:
    """Name, settings and curve of each run.

    Raises:
        InputError: two runs of one name, a folder without a curve, a curve without columns or points.
    """
    found = []
    for name, folder in map(run_of, runs):
        if name in {one["name"] for one in found}:
            raise InputError.of("run", name, "names that differ; give NAME=FOLDER")
        found.append({"name": name, "settings": _settings(folder), "curve": read_curve(folder / CURVE)})
    return found


def read_curve(path: Path) -> dict[str, list[float | None]]:
    """Columns of a curve, by rising number of images; what was not measured at a point is None.

    Raises:
        InputError: columns missing, a cell that is no number, no points.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise InputError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(COLUMNS)}")
        rows = [{name: _number(path, name, row[name]) for name in COLUMNS} for row in reader]
    if not rows:
        raise InputError(f"{path}: no points")
    rows.sort(key=lambda row: row["images"] or 0)
    return {name: [row[name] for row in rows] for name in COLUMNS}


def _number(path: Path, name: str, cell: str | None) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{path}: got {cell!r} in column {name!r}, expected a number") from None
    if not math.isfinite(value):
        return None
    return int(value) if name in _WHOLE else value


def _settings(folder: Path) -> dict[str, Any]:
    """What decides the weights, as far as the folder says."""
    found: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text())
    card = json.loads((folder / "card.json").read_text()) if (folder / "card.json").is_file() else {}
    found = card.get("training", {}).get("recipe") or found
    return {name: value for name, value in sorted(found.items()) if not name.startswith("_")}


def _size(picture: Any) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings in which the runs differ."""
    names = sorted({name for run in runs for name in run["settings"]})
    return [name for name in names if len({json.dumps(run["settings"].get(name)) for run in runs}) > 1]
