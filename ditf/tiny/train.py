"""Train ``ditf-tiny``: flow matching on procedural scenes.

    python -m ditf.tiny.train --smoke
    python -m ditf.tiny.train --out FOLDER --recipe cpu
    python -m ditf.tiny.train --out FOLDER --resume FOLDER
    python -m ditf.tiny.train --out FOLDER --init CHECKPOINT --images 100000

The folder then holds the averaged weights as a checkpoint (``config.json``, ``model.safetensors``, ``ditf.json``,
``card.json``), ``loss.csv``, ``growth.csv`` and ``curves.png``, and ``state.safetensors`` to go on from. Every random
choice depends on the seed and the step alone: with ``--images`` on a CPU with one thread, a run that was killed and
resumed ends bitwise equal to one that was not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DitfError, InputError
from ..types import write_atomically
from .growth import GrowthRow, measure, plot_curves, read_rows, write_rows
from .recipe import RECIPES, Recipe
from .training import STATE, Training

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["Recipe", "Training", "main", "run"]

log = logging.getLogger("ditf")

_LOSSES = "loss.csv"
_COLUMNS = "step,images,seconds,loss,learning_rate\n"


def run(
    training: Training,
    folder: Path,
    *,
    log_every: int,
    save_every: float,
    stop_after: float | None = None,
    measure_every: int = 0,
) -> None:
    """Train to the end of the recipe, or for ``stop_after`` minutes.

    Args:
        log_every: steps between two rows of the loss table.
        save_every: minutes between two states.
        measure_every: pictures between two rows of the growth table; 0 measures nothing.
    """
    table = _kept_rows(folder / _LOSSES, training.step)
    rows = read_rows(folder, training.step)
    started = saved = time.monotonic()
    while training.progress < 1:
        training.advance()
        if training.step % log_every == 0:
            table += _log(training)
            write_atomically(folder / _LOSSES, table.encode())
        if (
            measure_every
            and training.images // measure_every > (training.images - training.recipe.batch) // measure_every
        ):
            rows.append(_grown(training))
            write_rows(folder, rows)
            plot_curves(folder, _losses(table, _before(training)), rows)
        now = time.monotonic()
        if stop_after is not None and now - started > 60 * stop_after:
            break
        if now - saved > 60 * save_every:
            training.save(folder)
            saved = now
    training.save(folder)
    if measure_every and not (rows and rows[-1].step == training.step):
        write_rows(folder, [*rows, _grown(training)])
    plot_curves(folder, _losses(table, _before(training)), read_rows(folder))


def _log(training: Training) -> str:
    """Say how far the run is, and return the line of the loss table."""
    loss = float(np.mean(training.recent))
    training.recent = training.recent[-1:] if training.progress >= 1 else []
    log.info(
        "%5.1f%%  step %d  %d images  loss %.4f  %.1f images/s",
        100 * training.progress, training.step, training.images, loss, training.images / training.seconds,
    )  # fmt: skip
    row = (training.step, training.images, f"{training.seconds:.1f}", loss, training.learning_rate)
    return ",".join(map(str, row)) + "\n"


def _grown(training: Training) -> GrowthRow:
    channel, ratio, pck = measure(training.average)
    row = GrowthRow(
        step=training.step,
        images=training.images + _before(training),
        seconds=round(training.seconds, 1),
        loss=round(training.loss, 5),
        channel=channel,
        ratio=round(ratio, 2),
        **{name: round(value, 2) for name, value in pck.items()},
    )
    log.info("        PCK@0.1 of AdaLN %.1f%%, raw %.1f%%; channel %d at %.1f x", row.adaln, row.raw, channel, ratio)
    return row


def _kept_rows(path: Path, step: int) -> str:
    """The loss table up to a step: rows of a leg that was lost are dropped."""
    if not step or not path.is_file():
        return _COLUMNS
    rows = path.read_text().splitlines(keepends=True)[1:]
    return _COLUMNS + "".join(row for row in rows if int(row.split(",")[0]) <= step)


def _before(training: Training) -> int:
    """Pictures that the weights had seen when the run began."""
    return (training.origin or {}).get("images", 0)


def _losses(table: str, before: int = 0) -> list[tuple[int, float]]:
    """(images, loss) of every row, counted over all runs."""
    cells = (row.split(",") for row in table.splitlines()[1:])
    return [(before + int(images), float(loss)) for _, images, _, loss, _ in cells]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    given = {
        field.name: value for field in dataclasses.fields(Recipe) if (value := getattr(options, field.name)) is not None
    }
    try:
        if options.smoke:
            return _smoke()
        if options.out is None:
            raise InputError("out: got nothing, expected --out FOLDER, where the checkpoint and the state go")
        training = _training(options, given)
        if options.pool is not None:
            training.pool = _pool(options.pool, training)
        options.out.mkdir(parents=True, exist_ok=True)
        run(
            training,
            options.out,
            log_every=options.log_every,
            save_every=options.save_every,
            stop_after=options.stop_after,
            measure_every=options.measure_every,
        )
    except (DitfError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; go on with --out {options.out} --resume {options.out}", file=sys.stderr)
        return 130
    return 0


def _smoke() -> int:
    """Train a very small network for a minute, and see its loss fall and its checkpoint load."""
    from ..extractor import FeatureExtractor

    training = Training(Recipe(**RECIPES["smoke"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(training, folder, log_every=25, save_every=60, measure_every=10**9)
        losses = [loss for _, loss in _losses((folder / _LOSSES).read_text())]
        tokens = FeatureExtractor.from_pretrained(name, block=2, timestep=100, ensemble=1, size=32)(
            np.zeros((32, 32, 3), np.uint8)
        ).tokens
    first, last = losses[0], losses[-1]
    print(json.dumps({"images": training.images, "first loss": first, "last loss": last, "tokens": list(tokens.shape)}))
    if last < first / 2:
        return 0
    print(f"error: the loss went from {first:.3f} to {last:.3f}, expected less than half", file=sys.stderr)
    return 1


def _training(options: argparse.Namespace, given: dict[str, Any]) -> Training:
    where = {"device": options.device, "bf16": options.bf16, "compiled": options.compile}
    if options.resume is not None:
        if "images" in given:
            given["minutes"] = None
        elif "minutes" in given:
            given["images"] = None
        return Training.load(options.resume, **where, **given)
    if (options.out / STATE).exists():
        raise InputError(f"out: {options.out} holds a training already; add --resume {options.out} or choose another")
    named = dict(RECIPES[options.recipe]) if options.recipe else {}
    if {"images", "minutes"} & given.keys():
        named = {name: value for name, value in named.items() if name not in ("images", "minutes")}
    training = Training(Recipe(**{**named, **given}), **where)
    if options.init is not None:
        training.start_from(options.init)
    return training


def _pool(folder: Path, training: Training) -> Pool:
    """A pool that fits the recipe, in the device's memory."""
    from .pool import Pool

    pool, largest = Pool.open(folder), max(training.recipe.sizes)
    if pool.size < largest:
        raise InputError.of("pool", pool.size, f"pictures of at least {largest} px, the larger of --sizes")
    return pool.to(training.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ditf.tiny.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the checkpoint and the state")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--smoke", action="store_true", help="train for a minute, to see that everything works")
    start.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    start.add_argument("--init", type=Path, metavar="CHECKPOINT", help="start from these weights")
    parser.add_argument("--recipe", choices=list(RECIPES), help="a named recipe; the flags below change it")
    parser.add_argument("--pool", type=Path, metavar="FOLDER", help="pictures made by python -m ditf.tiny.pool")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; weights stay in float32")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the blocks; needs a C++ compiler on a CPU"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1, which is repeatable)")
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--save-every", type=float, default=2.0, metavar="MINUTES")
    parser.add_argument(
        "--measure-every", type=int, default=20_000, metavar="IMAGES", help="rows of growth.csv; 0: none"
    )
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="end this leg; --resume goes on")
    recipe = parser.add_argument_group("recipe", "what decides the weights; a resumed run keeps its own by default")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "sizes":
            recipe.add_argument(flag, type=int, nargs=2, metavar=("LARGE", "SMALL"))
        elif field.name == "optimiser":
            recipe.add_argument(flag, choices=("adamw", "muon"))
        elif field.name == "qk_norm":
            recipe.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            recipe.add_argument(flag, type=_number_of[field.name], metavar="N")
    return parser


_number_of: dict[str, type] = {
    field.name: float if "float" in str(field.type) else int for field in dataclasses.fields(Recipe)
}

if __name__ == "__main__":
    sys.exit(main())
