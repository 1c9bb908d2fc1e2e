"""The card of a checkpoint, from ``ditf eval synthetic`` and a look at its channels.

    python -m ditf.tiny.evaluate [--checkpoint FOLDER] [--full] [--work FOLDER] [--json OUT] [--write-card]
    python -m ditf.tiny.evaluate --tune [--pairs 120]

What is measured, on which pairs, and beside what, is said in :mod:`ditf.benchmarks.synthetic`. The card has the same
numbers as ``ditf eval synthetic --model ditf-tiny``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..benchmarks.synthetic import massive_channels_of_blocks
from ..benchmarks.synthetic.card import card_of
from ..benchmarks.synthetic.evaluation import Evaluation, Plan, evaluate, extractors_of, plan_of
from ..benchmarks.synthetic.results import synthetic_document
from ..benchmarks.synthetic.summary import ALPHAS
from ..benchmarks.synthetic.tune import PAIRS, tune
from ..errors import DitfError
from ..extractor import FeatureExtractor
from ..types import write_atomically

__all__ = ["massive_channels_of_blocks", "report"]

_KEPT = ("split", "protocol", "card", "counts", "averages", "sets", "temporal")
"""Of a result: all but what is the same in every one, and the pairs."""


def report(
    checkpoint: str = "ditf-tiny", *, plan: Plan | None = None, folder: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Everything the card says, as plain JSON values; equal checkpoints give equal reports.

    Args:
        checkpoint: the bundled one, or a folder that ``ditf.tiny.train`` wrote.
        plan: default what ``ditf eval synthetic`` does.
        folder: where finished work is kept, so that a stopped run goes on; default none is kept.

    Raises:
        DitfError: as :func:`ditf.benchmarks.synthetic.evaluation.evaluate`.
    """
    plan = plan or plan_of()
    extractors = extractors_of(FeatureExtractor.from_pretrained(checkpoint), plan.tasks, {})
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = evaluate(extractors, plan, model=checkpoint, folder=folder or scratch, progress=_told)
    document = synthetic_document(evaluation, card=card_of(extractors, evaluation), pairs=False)
    return {
        **{name: document[name] for name in _KEPT},
        "first pairs": first_pairs(evaluation),
        "massive channels": massive_channels_of_blocks(checkpoint),
    }


def first_pairs(evaluation: Evaluation) -> dict[str, Any]:
    """Of each set's first group, correct points of every pair: enough to see whether a card belongs to its weights."""
    found = {}
    for one in evaluation.sets:
        group = one.records[0].name.rsplit("/", 1)[0]
        records = [record for record in one.records if record.name.rsplit("/", 1)[0] == group]
        found[one.of.name] = {
            row: {f"{alpha:g}": [int((record.errors[row] <= alpha).sum()) for record in records] for alpha in ALPHAS}
            for row in records[0].errors
        }
    return found


def _told(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{stage} {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _tuned(options: argparse.Namespace, plan: Plan) -> dict[str, Mapping[str, Any]]:
    fx = FeatureExtractor.from_pretrained(options.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        return tune(fx, plan, overrides={}, folder=options.work or scratch, progress=_told)


def main(arguments: list[str] | None = None) -> int:
    """Measure a checkpoint; the tables go to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ditf-tiny", help="a folder written by ditf.tiny.train")
    parser.add_argument("--full", action="store_true", help="4,000 pairs in place of 400")
    parser.add_argument("--pairs", type=int, help="about so many pairs")
    parser.add_argument("--work", type=Path, help="keep finished work here, so that a stopped run goes on")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--write-card", action="store_true", help="write card.json and CARD.md beside the checkpoint")
    parser.add_argument("--tune", action="store_true", help="choose settings on the validation pairs instead")
    options = parser.parse_args(arguments)
    from .card import as_text, write_card

    try:
        few = PAIRS if options.tune and not options.full else None
        plan = plan_of(options.pairs or few, full=options.full)
        if options.tune:
            print(json.dumps(_tuned(options, plan), indent=1))
            return 0
        numbers = report(options.checkpoint, plan=plan, folder=options.work)
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
