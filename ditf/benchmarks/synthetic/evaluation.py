"""A model on all sets: its rows, those of a random network of its shape, and what needs no network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...extractor import FeatureExtractor
from ...presets import TASKS, find_preset
from .methods import RANDOM, ModelRows, PixelRows, Rows, SiftRows, chosen_row, config_dict
from .model import BEST, BUNDLED, random_checkpoint
from .runner import Progress, Units, evaluate_set
from .sets import FULL, PAIR_SETS, QUICK, PairSet, find_sets
from .summary import PairRecord, best_of, clip_values, comparisons, pair_values
from .temporal import CLIPS, MEASURES, STAYING, ModelClips, PatchClips, clips, evaluate_clips

__all__ = [
    "SETS",
    "TEMPORAL",
    "Evaluation",
    "Plan",
    "SetResult",
    "evaluate",
    "extractor_of",
    "extractors_of",
    "is_of_tinys_kind",
    "plan_of",
]

TEMPORAL = "temporal"
SETS = (*PAIR_SETS, TEMPORAL)
"""Names of all sets."""


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        name: "quick", "full", or how many pairs.
        pairs: of all sets of pairs together, about.
        sets: of pairs.
        clips: (clips, frames), or None.
    """

    name: str
    pairs: int
    sets: tuple[PairSet, ...]
    clips: tuple[int, int] | None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Whose presets are needed."""
        wanted = {one.task for one in self.sets} | ({TEMPORAL} if self.clips else set())
        return tuple(task for task in ("semantic", "geometric", TEMPORAL) if task in wanted)


@dataclass(frozen=True, eq=False)
class SetResult:
    """One set of pairs.

    Attributes:
        chosen: the row of the model's own config.
        patches: the best row of pixel patches.
        records: of all pairs.
        values: see :func:`ditf.benchmarks.synthetic.summary.pair_values`.
    """

    of: PairSet
    config: dict[str, Any]
    discard: tuple[tuple[int, ...], str]
    chosen: str
    patches: str
    records: tuple[PairRecord, ...]
    values: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that was found; ``unavailable``: rows that could not be made -> why."""

    plan: Plan
    sets: tuple[SetResult, ...]
    clips: dict[str, Any] | None
    unavailable: Mapping[str, str]


def plan_of(pairs: int | None = None, *, full: bool = False, sets: Sequence[str] | None = None) -> Plan:
    """What is asked for: 400 pairs, 4,000 (``full``) or any number, of all sets or of some.

    Raises:
        InputError: an unknown set, or no pairs.
    """
    for name in sets or ():
        if name not in SETS:
            raise InputError.of("sets", name, f"one or more of {', '.join(SETS)}, joined by commas")
    if pairs is not None and (pairs < 1 or full):
        raise InputError.of("pairs", pairs, "at least 1, and not together with full")
    chosen = tuple(find_sets(None if sets is None else [name for name in sets if name != TEMPORAL]))
    size = "full" if full else "quick"
    moving = CLIPS[size] if pairs is None else (max(1, round(pairs * CLIPS["quick"][0] / QUICK)), 5)
    return Plan(
        name=size if pairs is None else f"about {pairs} pairs",
        pairs=pairs or (FULL if full else QUICK),
        sets=chosen,
        clips=moving if sets is None or TEMPORAL in sets else None,
    )


def extractors_of(
    fx: FeatureExtractor, tasks: Sequence[str], overrides: Mapping[str, Any]
) -> dict[str, FeatureExtractor]:
    """Task -> the same loaded model at the task's setting, see :func:`extractor_of`."""
    every = {task: extractor_of(fx, task, overrides) for task in TASKS}
    # of all tasks, whichever are wanted: what is loaded is part of a model's identity
    fx.backbone.truncate_after(max(one.config.block for one in every.values()))
    return {task: every[task] for task in tasks}


def extractor_of(fx: FeatureExtractor, task: str, overrides: Mapping[str, Any]) -> FeatureExtractor:
    """A loaded model at its preset for a task, but for what was given.

    A checkpoint of ditf-tiny's kind that has no preset is taken at ditf-tiny's, with its own massive channels.
    """
    backbone = fx.backbone
    own = FeatureExtractor(backbone, task=task, fused=fx.fused, **overrides)
    if not own.preset.untuned or not is_of_tinys_kind(backbone.name):
        return own
    bundled = find_preset("ditf-tiny", task, num_blocks=1 << 10).config
    values = {"timestep": bundled.timestep, "size": bundled.size, "ensemble": bundled.ensemble}
    values |= {"normalization": bundled.normalization, "activation": bundled.activation}
    values["discard"] = "none" if bundled.discard in ("none", ()) else "auto"
    if bundled.block < backbone.num_blocks:
        values["block"] = bundled.block
    return FeatureExtractor(backbone, task=task, fused=fx.fused, **{**values, **overrides})


def evaluate(
    extractors: Mapping[str, FeatureExtractor],
    plan: Plan,
    *,
    model: str,
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Evaluation:
    """Every row on every set.

    Args:
        extractors: task -> the model at that task's setting, see :func:`extractors_of`.
        model: as it was loaded: the bundled one, and folders of its kind, get a random network of their shape.
        folder: where finished work is kept; created if missing.
        progress: told of "pairs" and "clips".

    Raises:
        InputError: scikit-image is missing where photographs are asked for.
        ModelError: features that are not finite.
        StoreError: the folder cannot be written.
    """
    told = progress or (lambda stage, done, total: None)
    units, unavailable = Units(folder), {}
    _check_photographs(plan)
    with contextlib.ExitStack() as stack:
        try:
            sift: list[Rows] = [SiftRows()]
        except InputError as error:
            sift, unavailable["SIFT"] = [], str(error)
        random = stack.enter_context(_random_networks(extractors, model))
        if not random:
            unavailable[RANDOM.removesuffix(", ")] = f"{model} is no model of ditf-tiny's kind; its shape is not built"
        rows = {task: _model_rows(fx, random.get(task)) for task, fx in extractors.items()}
        total, done, found = sum(_expected(one, plan.pairs) for one in plan.sets), 0, []
        for one in plan.sets:
            methods = [*rows[one.task], PixelRows(_side(extractors[one.task])), *sift]
            records = evaluate_set(
                one, methods, units, count=plan.pairs, told=lambda n, before=done: told("pairs", before + n, total)
            )
            done += len(records)
            found.append(_set_result(one, rows[one.task][0], records))
        moving = _clips(plan, rows.get(TEMPORAL, []), extractors.get(TEMPORAL), units, told) if plan.clips else None
    return Evaluation(plan, tuple(found), moving, unavailable)


def _set_result(one: PairSet, model: ModelRows, records: list[PairRecord]) -> SetResult:
    names = list(records[0].errors)
    patches = best_of([name for name in names if name.startswith("pixel patches")], records)
    chosen = chosen_row(model.fx.config)
    compared = comparisons(names, chosen, patches, discarded=BEST, random=RANDOM)
    return SetResult(
        of=one,
        config=config_dict(model.fx.config),
        discard=(model.discard, model.discard_from),
        chosen=chosen,
        patches=patches,
        records=tuple(records),
        values=pair_values(records, compared),
    )


def _clips(
    plan: Plan, rows: Sequence[ModelRows], fx: FeatureExtractor | None, units: Units, told: Progress
) -> dict[str, Any]:
    assert plan.clips is not None
    assert fx is not None
    count, frames = plan.clips
    some = clips(count, frames)
    methods = [*(ModelClips(one) for one in rows), PatchClips(_side(fx))]
    found = evaluate_clips(some, methods, units, lambda n: told("clips", n, count))
    chosen = chosen_row(fx.config)
    mean = {name: sum(clip["j_and_f"] for clip in of) for name, of in found.items()}
    patches = max((name for name in found if name.startswith("pixel patches")), key=mean.__getitem__)
    compared = [*comparisons(list(found), chosen, patches, discarded=BEST, random=RANDOM), (chosen, STAYING)]
    return {
        "about": "Two things that move, turn and grow before a panning background: the mask of the first frame and 12 "
        "points of it carried through the others.",
        "clips": count,
        "frames": frames,
        "seeds": [clip.seed for clip in some],
        "config": config_dict(fx.config),
        "discard": list(rows[0].discard),
        "chosen": chosen,
        "best_patches": patches,
        "measures": MEASURES,
        **clip_values(found, compared),
    }


def _model_rows(fx: FeatureExtractor, random: FeatureExtractor | None) -> list[ModelRows]:
    return [ModelRows(fx), *([ModelRows(random, prefix=RANDOM, own_channels=True)] if random else [])]


@contextlib.contextmanager
def _random_networks(extractors: Mapping[str, FeatureExtractor], model: str) -> Iterator[dict[str, FeatureExtractor]]:
    """Task -> a network of the model's shape with random weights at the task's setting; empty where none can be made.

    The folder stays until the end: weights are read when they are needed.
    """
    if not is_of_tinys_kind(model):
        yield {}
        return
    first = next(iter(extractors.values()))
    with tempfile.TemporaryDirectory() as name:
        random_checkpoint(model, Path(name))
        loaded = FeatureExtractor.from_pretrained(
            name, device=first.backbone.device, dtype=first.backbone.dtype, fused=first.fused, block=0, timestep=0
        )
        found = {
            task: FeatureExtractor(loaded.backbone, fused=fx.fused, **dataclasses.asdict(fx.config))
            for task, fx in extractors.items()
        }
        loaded.backbone.truncate_after(max(fx.config.block for fx in extractors.values()))
        yield found


def is_of_tinys_kind(model: str) -> bool:
    """The bundled model, or a folder that ``ditf.tiny.train`` wrote."""
    folder = BUNDLED if model == "ditf-tiny" else Path(model)
    try:
        kind = json.loads((folder / "ditf.json").read_text(encoding="utf-8"))["kind"]
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return kind == "pixel" and shape.get("_class_name") == "FluxTransformer2DModel"


def _check_photographs(plan: Plan) -> None:
    """Before the first forward, not after an hour."""
    from .cases import PHOTOGRAPHS, photograph

    if any(one.name == "photographs" for one in plan.sets):
        for name in PHOTOGRAPHS:
            photograph(name)


def _expected(one: PairSet, pairs: int) -> int:
    return one.pairs * one.count_groups(pairs)


def _side(fx: FeatureExtractor) -> int:
    """Longest side of a picture as the model sees it, about."""
    size = fx.config.size
    return max(size) if isinstance(size, tuple) else size
