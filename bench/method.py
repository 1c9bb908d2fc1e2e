"""Measure what DiTF claims on one model, part by part; ``make report`` tells the result.

    python bench/method.py measure --checkpoint ditf-tiny [--parts grid,massive] [--pairs 8]
    python bench/method.py measure --growth FOLDER --variants base=FOLDER --variants no-qk-norm=FOLDER

A part that is there already, of the same weights and settings, is left as it is (``--again`` measures it anew); a
stopped grid goes on at the next timestep, stopped rows at the next group of pairs. Parts: rows (accuracy on test
pairs), grid (blocks x timesteps), ensemble, massive (channels), growth and variants (curves of training runs; measured
only where folders are given).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from study.files import PARTS, model_card, read_part, versions, write_part
from study.measure import TIMESTEPS, Task, ensemble_of, grid_of, massive_of
from study.rows import rows_of
from study.runs import curves_of, rivals_of_curves, run_of

from ditf.benchmarks.synthetic import Setting
from ditf.benchmarks.synthetic.sets import QUICK
from ditf.errors import DitfError, InputError

RESULTS = Path(__file__).parent / "results" / "method"
GRID_PAIRS: dict[Task, int] = {"semantic": 120, "photographs": 32}
ENSEMBLE_PAIRS = 120
MASSIVE_PICTURES = 48
RUNS = ("growth", "variants")  # read anew every time: it takes no time

log = logging.getLogger("method")


class Study:
    """Where results go and what they are of."""

    def __init__(self, options: argparse.Namespace) -> None:
        for name in ("pairs", "threads"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise InputError.of(name, value, "at least 1")
        torch.set_num_threads(options.threads)
        self.options, self.out = options, Path(options.out)
        self.model = model_card(options.checkpoint)
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, part: str) -> None:
        """Measure a part unless it is there."""
        card = self._card(part)
        known = {} if self.options.again or part in RUNS else read_part(self.out, part) or {}
        if known.get("card") != card:
            known = {}
        if known and known.get("complete", True):
            log.info("%s: there already", part)
            return
        start = time.perf_counter()
        measure: Callable[[dict[str, Any], dict[str, Any]], None] = getattr(self, f"_{part}")
        measure(card, known)
        log.info("%s: %.0f s", part, time.perf_counter() - start)

    def _card(self, part: str) -> dict[str, Any]:
        if part in RUNS:
            return {"runs": [run_of(run)[0] for run in getattr(self.options, part)]}
        asked = {
            "rows": {"pairs": self.options.pairs or QUICK},
            "grid": {"pairs": self._pairs("semantic"), "photographs": self._pairs("photographs")},
            "ensemble": {"pairs": self.options.pairs or ENSEMBLE_PAIRS},
            "massive": {"pictures": min(2 * (self.options.pairs or MASSIVE_PICTURES), MASSIVE_PICTURES)},
        }
        return {
            "model": self.model,
            "presets": {task: dataclasses.asdict(Setting.of(task)) for task in ("semantic", "geometric")},
            "seed": 0,
            **asked[part],
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _pairs(self, task: Task) -> int:
        return min(self.options.pairs, GRID_PAIRS[task]) if self.options.pairs else GRID_PAIRS[task]

    def _rows(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        write_part(self.out, "rows", card, rows_of(self.options.checkpoint, self.options.pairs, self.out))

    def _grid(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        tasks: dict[str, Any] = dict(known.get("tasks", {}))
        for task in GRID_PAIRS:
            known_task = tasks.get(task, {})
            for found in grid_of(self.options.checkpoint, task, self._pairs(task), TIMESTEPS, known_task):
                tasks[task] = found
                write_part(self.out, "grid", card, {"complete": False, "tasks": tasks})
        write_part(self.out, "grid", card, {"complete": True, "tasks": tasks})

    def _ensemble(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        write_part(self.out, "ensemble", card, ensemble_of(self.options.checkpoint, card["pairs"]))

    def _massive(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        write_part(self.out, "massive", card, massive_of(self.options.checkpoint, card["pictures"], TIMESTEPS))

    def _growth(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        write_part(self.out, "growth", card, self._curves(self.options.growth))

    def _curves(self, runs: list[str]) -> dict[str, Any]:
        return {"rivals": rivals_of_curves(), "runs": curves_of(runs)}

    def _variants(self, card: dict[str, Any], known: dict[str, Any]) -> None:
        write_part(self.out, "variants", card, self._curves(self.options.variants))


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        study = Study(options)
        for part in _parts(options):
            study.run(part)
    except DitfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parts(options: argparse.Namespace) -> list[str]:
    """Those asked for; else all that can be measured with what was given."""
    runs = {"growth": options.growth, "variants": options.variants}
    if options.parts is None:
        return [part for part in PARTS if runs.get(part, True)]
    parts = [part.strip() for part in options.parts.split(",")]
    for part in parts:
        if part not in PARTS:
            raise InputError.of("parts", part, f"some of {', '.join(PARTS)}")
        if not runs.get(part, True):
            raise InputError(f"parts: {part} is made of training runs; give --{part} FOLDER")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python bench/method.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measure = parser.add_subparsers(required=True, metavar="measure").add_parser("measure", help="measure parts")
    measure.add_argument("--checkpoint", default="ditf-tiny", help="ditf-tiny, or a folder written by ditf.tiny.train")
    measure.add_argument("--out", default=RESULTS, type=Path, help="folder of the result files")
    measure.add_argument("--parts", help=f"some of {','.join(PARTS)}; default all that can be measured")
    measure.add_argument("--pairs", type=int, help="fewer pairs, for a trial")
    measure.add_argument("--growth", action="append", default=[], metavar="[NAME=]FOLDER", help="a training run")
    measure.add_argument("--variants", action="append", default=[], metavar="[NAME=]FOLDER", help="a short run")
    measure.add_argument("--threads", type=int, default=2, help="of the CPU")
    measure.add_argument("--again", action="store_true", help="measure what is there already as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
