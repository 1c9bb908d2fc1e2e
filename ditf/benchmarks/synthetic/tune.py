"""Settings chosen on validation pairs: other seeds, other photographs than those a model is judged on, and no kind or
style that is held out.

One after another: size and timestep with every block and every part of the method; then, at the best of them, other
activations than the block's input; then how many noises.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...backbones.activations import Activation
from ...errors import InputError, ModelError
from ...extractor import FeatureExtractor
from ...store import model_identity
from ...types import FeatureMap, write_atomically
from ..pck import distances
from .evaluation import Plan, extractor_of
from .methods import config_dict, heads, matched
from .model import BEST, top_channel
from .runner import Progress, Units, digest_of
from .sets import Group

__all__ = ["ENSEMBLES", "PAIRS", "SIZES", "TIMESTEPS", "save_tuning", "tune"]

TIMESTEPS = (20.0, 60.0, 100.0, 200.0, 300.0)
SIZES = (2 / 3, 1.0, 4 / 3, 2.0)
"""Times the preset's size."""
ENSEMBLES = (1, 2, 4, 8)
PAIRS = 120
"""By default; every setting takes them all."""

ACTIVATIONS: tuple[str, ...] = get_args(Activation)

_ALPHA = 0.1
_SHOWN = 12  # rows of a printed table
_FIRST_ENSEMBLE = 2
_FORMAT = "ditf tuning"

Row = dict[str, Any]


def tune(
    fx: FeatureExtractor,
    plan: Plan,
    *,
    overrides: Mapping[str, Any],
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
    timesteps: Sequence[float] = TIMESTEPS,
    sizes: Sequence[float] = SIZES,
    ensembles: Sequence[int] = ENSEMBLES,
) -> dict[str, Any]:
    """The best block, part of the method, timestep, size, activation and ensemble for the tasks of the plan's sets.

    Args:
        fx: the loaded model.
        plan: its sets and its number of pairs.
        overrides: config fields that were given; those among the six are tried as all others.
        folder: where finished work is kept.

    Returns:
        Task -> pairs, best, and all rows, the best first; "pck" is the mean over sets of PCK@0.1 over points.

    Raises:
        InputError: a plan of clips and held-out sets alone.
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.
    """
    fx.backbone.truncate_after(fx.backbone.num_blocks - 1)
    units = Units(folder)
    tasks = {}
    for task in plan.tasks:
        sets = [one for one in plan.sets if one.task == task and not one.name.startswith("held-out")]
        groups = [group for one in sets for group in one.groups(plan.pairs, "validation")]
        if not groups:
            continue
        base = extractor_of(fx, task, overrides)
        search = _Search(base, groups, units, _counter(progress, f"{task} settings", timesteps, sizes, ensembles))
        rows = search.all(timesteps, sizes, ensembles)
        tasks[task] = {"pairs": sum(len(group.cases) for group in groups), "best": rows[0], "rows": rows}
    if not tasks:
        raise InputError.of("sets", "none to tune on", "semantic, geometric or photographs")
    return {_FORMAT: 1, "model": model_identity(fx), "tasks": tasks, "shown": _SHOWN}


class _Search:
    """One task."""

    def __init__(self, fx: FeatureExtractor, groups: Sequence[Group], units: Units, told: Callable[[], None]) -> None:
        self.fx, self.groups, self.units, self.told = fx, groups, units, told
        self.model, self.pictures = model_identity(fx), [digest_of(group) for group in groups]

    def all(self, timesteps: Sequence[float], sizes: Sequence[float], ensembles: Sequence[int]) -> list[Row]:
        """Every row that was looked at, the best first."""
        few = min(_FIRST_ENSEMBLE, max(ensembles))
        rows: list[Row] = []
        for size in _sizes(self.fx, sizes):
            for timestep in timesteps:
                rows += self.at(size=size, timestep=timestep, ensemble=few, activation="block")
        best = max(rows, key=lambda row: row["pck"])
        place = {"size": best["size"], "timestep": best["timestep"]}
        for activation in (name for name in ACTIVATIONS if name != "block"):
            rows += self.at(**place, ensemble=few, activation=activation)
        best = max(rows, key=lambda row: row["pck"])
        place |= {"activation": best["activation"]}
        for ensemble in ensembles:
            if ensemble != few:
                rows += self.at(**place, ensemble=ensemble, only=best["block"])
        return sorted(rows, key=lambda row: (-row["pck"], row["ensemble"]))

    def at(self, *, only: int | None = None, **setting: Any) -> list[Row]:
        """Rows of one setting: every block, or one, and every part of the method."""
        fx = self.fx.replace(**setting)
        blocks = list(range(1, fx.backbone.num_blocks)) if only is None else [only]
        if fx.config.activation != "block":
            blocks = [block for block in blocks if self._has(fx, block)]
        about = {"tune": config_dict(fx.config), "blocks": blocks, "model": self.model, "pictures": self.pictures}
        rows = self.units.get(about, lambda: list(self._rows(fx, blocks)))
        self.told()
        return rows

    def _rows(self, fx: FeatureExtractor, blocks: list[int]) -> Iterator[Row]:
        channels = self._leading(fx, blocks) if fx.config.activation == "block" else {}
        hits: dict[tuple[int, str], dict[str, list[int]]] = {}
        for group in self.groups:
            maps = {id(one): _maps(fx, one, group.word, blocks, channels) for one in group.pictures}
            for key in next(iter(maps.values())):
                found = matched({picture: of[key] for picture, of in maps.items()}, group.cases)
                name = group.name.split("/")[0]
                for place, case in zip(found, group.cases, strict=True):
                    right = int((distances(place, case.truth) <= _ALPHA * case.length).sum())
                    hits.setdefault(key, {}).setdefault(name, []).append(right)
        points: dict[str, int] = {}
        for group in self.groups:
            name = group.name.split("/")[0]
            points[name] = points.get(name, 0) + sum(len(case.points) for case in group.cases)
        for (block, row), per_set in hits.items():
            pck = float(np.mean([100 * sum(of) / points[name] for name, of in per_set.items()]))
            top = channels.get(block, [])
            config = {name: getattr(fx.config, name) for name in ("timestep", "size", "activation", "ensemble")}
            yield {"pck": round(pck, 3), "block": block, "row": row, **config, "discard": top if row == BEST else []}

    def _has(self, fx: FeatureExtractor, block: int) -> bool:
        """Whether a block has what is to be tapped: some have no feed-forward network of their own."""
        group = self.groups[0]
        try:
            fx(group.pictures[0], category=group.word, blocks=[block])
        except InputError as error:
            if not str(error).startswith("activation"):
                raise
            return False
        return True

    def _leading(self, fx: FeatureExtractor, blocks: list[int]) -> dict[int, list[int]]:
        """Block -> the largest channel, on the first pictures."""
        raw = fx.replace(normalization="none", discard="none")
        seen = [raw(one, category=self.groups[0].word, blocks=blocks) for one in self.groups[0].pictures]
        return {block: [top_channel([of[block] for of in seen])] for block in blocks}


def _maps(
    fx: FeatureExtractor, picture: np.ndarray, word: str, blocks: list[int], channels: Mapping[int, list[int]]
) -> dict[tuple[int, str], FeatureMap]:
    """(block, part of the method) -> features of a picture, from one forward."""
    if fx.config.activation != "block":
        found = {
            (b, f"activation {fx.config.activation}"): m for b, m in fx(picture, category=word, blocks=blocks).items()
        }
    else:
        tapped = heads(fx, ())["raw"].tap_image(picture, blocks=blocks, category=word)
        found = {
            (block, name): head.features_of(tapped, block)
            for block in blocks
            for name, head in heads(fx, channels[block]).items()
        }
    for (block, name), one in found.items():
        if not bool(np.isfinite(one.tokens.float().cpu().numpy()).all()):
            raise ModelError(f"the features of block {block}, {name}, are not finite; try another --model-dtype")
    return found


def _sizes(fx: FeatureExtractor, shares: Sequence[float]) -> list[Any]:
    """The preset's size times each share, a multiple of the model's token; a size of two sides stays as it is."""
    size, step = fx.config.size, fx.backbone.pixels_per_token
    if isinstance(size, tuple):
        return [size]
    return sorted({max(step, round(size * share / step) * step) for share in shares})


def _counter(
    progress: Progress | None, stage: str, timesteps: Sequence[float], sizes: Sequence[float], ensembles: Sequence[int]
) -> Callable[[], None]:
    done, total = 0, len(timesteps) * len(sizes) + len(ACTIVATIONS) - 1 + len(ensembles) - 1

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(stage, min(done, total), total)

    return told


def save_tuning(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write OUT (JSON) and beside it .csv, every row that was looked at; returns their paths.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (task, found) in enumerate(document["tasks"].items()):
        if not number:
            writer.writerow(["task", *found["best"]])
        for row in found["rows"]:
            writer.writerow([task, *(" ".join(map(str, v)) if isinstance(v, list) else v for v in row.values())])
    table = out.with_suffix(".csv")
    write_atomically(table, text.getvalue().encode())
    write_atomically(out, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return [out, table]
