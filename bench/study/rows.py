"""Accuracy on test pairs, with the rivals beside: what ``ditf eval synthetic`` finds, the same code."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditf import FeatureExtractor
from ditf.benchmarks.synthetic.evaluation import evaluate, extractors_of, plan_of
from ditf.benchmarks.synthetic.results import synthetic_document
from ditf.benchmarks.synthetic.sets import PAIR_SETS
from ditf.benchmarks.synthetic.summary import HEADLINE

log = logging.getLogger("method")

_SETTING = ("block", "timestep", "ensemble", "size")


def rows_of(checkpoint: str, pairs: int | None, folder: Path) -> dict[str, Any]:
    """Set -> setting, pairs, rows with intervals, differences with intervals; PCK of all points, in percent.

    Args:
        pairs: of all sets together; None: as many as the benchmark takes by default.
        folder: what is finished is kept there until all is, so that a stopped run goes on.
    """
    plan, work = plan_of(pairs, sets=tuple(PAIR_SETS)), folder / "rows.work"
    extractors = extractors_of(FeatureExtractor.from_pretrained(checkpoint, truncate=False), plan.tasks, {})
    found = evaluate(extractors, plan, model=checkpoint, folder=work, progress=_told)
    tasks = tasks_of(synthetic_document(found, card={}, pairs=False))
    shutil.rmtree(work)
    return {"tasks": tasks}


def _told(stage: str, done: int, total: int) -> None:
    log.info("%d of %d %s", done, total, stage)


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
