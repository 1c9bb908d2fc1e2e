"""Accuracy on test pairs, with the rivals beside: what ``ditf eval synthetic`` finds, measured here or read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditf import FeatureExtractor
from ditf.benchmarks.synthetic.evaluation import evaluate, plan_of
from ditf.benchmarks.synthetic.results import synthetic_document
from ditf.benchmarks.synthetic.sets import PAIR_SETS
from ditf.benchmarks.synthetic.summary import HEADLINE
from ditf.errors import InputError
from ditf.presets import find_preset

_SETTING = ("block", "timestep", "ensemble", "size")


def rows_of(checkpoint: str, pairs: int | None, folder: Path) -> dict[str, Any]:
    """Set -> setting, pairs, rows with intervals, differences with intervals; PCK of all points, in percent.

    Args:
        pairs: of all sets together; None: as many as the benchmark takes by default.
        folder: what is finished is kept there until all is, so that a stopped run goes on.
    """
    plan, work = plan_of(pairs, sets=tuple(PAIR_SETS)), folder / "rows.work"
    extractors = {task: extractor_of(checkpoint, task) for task in plan.tasks}
    found = evaluate(extractors, plan, model=checkpoint, folder=work)
    tasks = tasks_of(synthetic_document(found, card={}, pairs=False))
    shutil.rmtree(work)
    return {"tasks": tasks}


def rows_of_file(path: Path) -> dict[str, Any]:
    """The same of a result of ``ditf eval synthetic``, and its card.

    Raises:
        InputError: another kind of file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["benchmark"] != "synthetic":
            raise InputError.of("rows", document["benchmark"], "a result of ditf eval synthetic")
        return {"card": document["card"], "tasks": tasks_of(document)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"rows: {path} is no result of ditf eval synthetic ({error})") from None


def tasks_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the report tells of a result of ``ditf eval synthetic``."""
    return {name: _task(found) for name, found in document["sets"].items()}


def _task(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "about": found["about"],
        "setting": {name: found["config"][name] for name in _SETTING} | {"row": found["chosen"]},
        "discarded": found["discard"],
        "pairs": found["pairs"],
        "clusters": found["clusters"],
        "points": found["points"],
        "rows": {
            name: {
                **{f"pck@{alpha}": row["pck"][alpha][HEADLINE] for alpha in ("0.1", "0.05")},
                "median error": row["median_error"],
            }
            for name, row in found["rows"].items()
        },
        "differences in pck@0.1": {
            f"{one['first']} - {one['second']}": one["pck"]["0.1"][HEADLINE] for one in found["differences"]
        },
    }


def extractor_of(checkpoint: str, task: str) -> FeatureExtractor:
    """At the preset of ditf-tiny; another checkpoint has massive channels of its own, so none are named for it."""
    if checkpoint == "ditf-tiny":
        return FeatureExtractor.from_pretrained(checkpoint, task=task)
    config = find_preset("ditf-tiny", task, num_blocks=8).config
    fields: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return FeatureExtractor.from_pretrained(checkpoint, **{**fields, "discard": "none"})
