"""Which block, timestep, discard, normalization and ensemble suit a model, measured without labels.

Every picture is matched with rotated, scaled and recoloured copies of itself: where its points went is known. All
blocks of a timestep come from one forward per picture, and every discard, normalization and smaller ensemble from that
forward's tokens. One half of the copies chooses the setting, the other half reports what it is worth.

What is measured is how well features survive a change of view and light. That is not how well they tell a cat's ear
from a dog's: for that, give pairs with keypoints.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from .benchmarks.pck import distances
from .benchmarks.rivals import constant_shift, identity, pixel_patches
from .calibration import CALIBRATION_PROMPT
from .draw import draw_table
from .errors import InputError, StoreError
from .extractor import FeatureExtractor, TappedImage
from .massive import calibrated_channels
from .matching import match_points
from .presets import Preset, save_preset
from .store import model_identity
from .sweep_cases import Case, LabelledPair, Source, Target, labelled_sources, read_pairs, warped_sources
from .types import ExtractConfig, write_atomically

__all__ = ["Interval", "LabelledPair", "Rival", "Row", "Score", "Setting", "SweepResult", "read_pairs", "sweep"]

log = logging.getLogger("ditf")

TIMESTEPS = (20.0, 100.0, 260.0)
"""Noise levels that are tried by default."""
ALPHAS = (0.1, 0.05)
PATCHES = (9, 17, 25)
NORMALIZATIONS = ("adaln", "layernorm", "none")

_DRAWS = 2000  # of the bootstrap
_UNIT = 1  # version of the files in units/
_KEPT_BYTES = 1 << 30  # of tokens of pictures that come again
_AXES = ("block", "timestep", "discard", "normalization", "ensemble")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Setting:
    """Where features are taken. ``discard`` is as asked for: "none", "auto", "preset" or channels such as "3+5"."""

    block: int
    timestep: float
    discard: str
    normalization: str
    ensemble: int


@dataclass(frozen=True)
class Interval:
    """A value and its 95% bootstrap interval over pictures; without one where there is a single picture."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """How many points were found, in percent.

    Attributes:
        pck_10, pck_05: PCK at 0.1 and 0.05 of the reference length, over all points.
        median_error: share of the reference length; infinite where more than half were not found at all.
    """

    pck_10: Interval
    pck_05: Interval
    median_error: float

    @property
    def mean(self) -> float:
        """Of both PCKs: what settings are chosen by."""
        return (self.pck_10.value + self.pck_05.value) / 2


@dataclass(frozen=True)
class Row:
    """One setting. ``channels`` are those it discards."""

    setting: Setting
    channels: tuple[int, ...]
    choosing: Score
    held_out: Score


@dataclass(frozen=True)
class Rival:
    """What needs no model, on the same points."""

    name: str
    choosing: Score
    held_out: Score


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What :func:`sweep` found.

    Attributes:
        best: the setting with the highest ``choosing.mean``; among equals the smaller ensemble, then the first row.
        rows: every setting, by timestep, block, discard, normalization, ensemble.
        rivals: identity, best constant shift (it sees the answers) and patches of pixels.
        labelled: scored on keypoints, not on warps.
        images, pairs: how many pictures had points, and in how many others they were looked for.
        points: how many chose, how many were held out.
        preset: the best setting, ready for ``FeatureExtractor.from_pretrained(model, preset=FILE)``.
        card: model, revision, what was tried, versions.
    """

    best: Row
    rows: tuple[Row, ...]
    rivals: tuple[Rival, ...]
    labelled: bool
    images: int
    pairs: int
    points: tuple[int, int]
    preset: Preset
    card: dict[str, Any]

    def __repr__(self) -> str:
        return f"SweepResult(best={self.best.setting}, {len(self.rows)} settings, {self.images} images)"

    @property
    def beats_rivals(self) -> bool:
        """Whether the best setting is above every rival on the held-out half."""
        return all(self.best.held_out.mean > rival.held_out.mean for rival in self.rivals)

    def grid(self) -> tuple[np.ndarray, list[int], list[float]]:
        """(blocks, timesteps) ``choosing.mean`` at the best setting's other values; the blocks; the timesteps."""
        best = dataclasses.asdict(self.best.setting)
        blocks = list(dict.fromkeys(row.setting.block for row in self.rows))
        timesteps = list(dict.fromkeys(row.setting.timestep for row in self.rows))
        means = {row.setting: row.choosing.mean for row in self.rows}
        values = [[means[Setting(**{**best, "block": b, "timestep": t})] for t in timesteps] for b in blocks]
        return np.array(values), blocks, timesteps

    def plot(self) -> Image:
        """The grid as a heat map."""
        values, blocks, timesteps = self.grid()
        s = self.best.setting
        return draw_table(
            values,
            rows=[str(block) for block in blocks],
            columns=[f"{t:g}" for t in timesteps],
            title=f"{self.card['model']}: mean of PCK@0.1 and @0.05, %",
            about=f"{s.normalization}, discard {s.discard}, ensemble {s.ensemble}",
            row_title="block",
            column_title="timestep",
            mark=(blocks.index(s.block), timesteps.index(s.timestep)),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "best": _row_dict(self.best),
            "beats_rivals": self.beats_rivals,
            "rivals": [{"name": r.name, **_halves(r)} for r in self.rivals],
            "rows": [_row_dict(row) for row in self.rows],
            "labelled": self.labelled,
            "images": self.images,
            "pairs": self.pairs,
            "points": {"choosing": self.points[0], "held_out": self.points[1]},
            "intervals": "95%, bootstrap over images",
            "preset": {"config": dataclasses.asdict(self.preset.config), "source": dict(self.preset.source)},
            "card": self.card,
        }

    def to_csv(self) -> str:
        """One line per setting, then per rival."""
        measured = [f"{half} {name}" for half in ("choosing", "held-out") for name in _MEASURED]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", *_AXES, "channels", *measured])
        for row in self.rows:
            channels = "+".join(map(str, row.channels))
            values = [*_numbers(row.choosing), *_numbers(row.held_out)]
            writer.writerow(["ditf", *dataclasses.astuple(row.setting), channels, *values])
        for rival in self.rivals:
            blank = [""] * (len(_AXES) + 1)
            writer.writerow([rival.name, *blank, *_numbers(rival.choosing), *_numbers(rival.held_out)])
        return text.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write result.json, table.csv, heatmap.png and preset.json into an existing folder; returns their paths.

        Raises:
            StoreError: the folder is missing or cannot be written.
        """
        folder, picture = Path(folder), io.BytesIO()
        self.plot().save(picture, "PNG")
        files = {
            "result.json": (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode(),
            "table.csv": self.to_csv().encode(),
            "heatmap.png": picture.getvalue(),
        }
        for name, content in files.items():
            write_atomically(folder / name, content)
        model, revision = self.card["model"], self.card["revision"]
        preset = save_preset(folder / "preset.json", self.preset, model=model, revision=revision)
        return [*(folder / name for name in files), preset]


def sweep(
    fx: FeatureExtractor,
    images: Iterable[Any] | None = None,
    *,
    points: str | os.PathLike[str] | Sequence[LabelledPair] | None = None,
    blocks: Sequence[int] | None = None,
    timesteps: Sequence[float] = TIMESTEPS,
    discard: Sequence[str | tuple[int, ...]] = ("none", "auto", "preset"),
    normalization: Sequence[str] = ("adaln",),
    ensemble: Sequence[int] | None = None,
    warps: int = 4,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Try every combination and choose the best, on one half of the warps; its worth is measured on the other half.

    One forward per picture and timestep, with the largest ensemble, up to the deepest block; smaller ensembles are its
    first members. The tokens of all blocks of two pictures are held at once.

    Args:
        fx: its other settings hold: size, prompt, latent, seed. Load it with ``truncate=False``, or with ``block=`` the
            deepest one.
        images: pictures to match with warps of themselves, a dozen or more; anything the extractor takes.
        points: pairs with keypoints in place of ``images``: a JSON file (:func:`read_pairs`) or the pairs. Half
            of them are held out.
        blocks: default all.
        timesteps: noise levels in 0..1000.
        discard: "none", "auto", "preset", or channels. "preset" is left out where the preset discards nothing.
        normalization: "adaln", "layernorm" or "none".
        ensemble: how many noises; default the extractor's.
        warps: of every picture; even.
        seed: of the warps.
        folder: where finished units (picture, timestep) are kept, in ``units/``, created if missing. A sweep that was
            stopped, by whatever, goes on from them; changed pictures, model or settings have units of their own.
        progress: called with the units done and their total: once at the start, with those taken from ``folder``, and
            after each.

    Returns:
        A SweepResult; equal sweeps give equal results, stopped or not.

    Raises:
        InputError: nothing to score on, or a value outside its domain.
        ModelError: the model cannot be loaded.
        StoreError: the folder cannot be written.

    Example:
        >>> result = sweep(fx, photographs, timesteps=[20, 100], folder="sweep")
        >>> result.save("sweep")
        >>> fx = ditf.FeatureExtractor.from_pretrained(model, preset="sweep/preset.json")
    """
    if (images is None) == (points is None):
        raise InputError("images: give either images or points, and not both")
    if not isinstance(warps, int) or warps < 2 or warps % 2:
        raise InputError.of("warps", warps, "an even number of at least 2: one half chooses, the other reports")
    plan = _plan(fx, blocks, timesteps, discard, normalization, ensemble)
    side = fx.backbone.pixels_per_token
    if points is None:
        sources = warped_sources(images or (), fx.config, side, warps=warps, seed=seed)
    else:
        pairs = read_pairs(points) if isinstance(points, str | os.PathLike) else list(points)
        sources = labelled_sources(pairs, fx.config, side)
    units = _Units(folder)
    run = _Run(fx, plan, sources, units, progress or (lambda done, total: None))
    run.measure()
    return _result(run, labelled=points is not None, warps=warps, seed=seed)


@dataclass(frozen=True)
class _Plan:
    """What is tried. ``discards``: name -> channels, or None for those that are found per block."""

    blocks: tuple[int, ...]
    timesteps: tuple[float, ...]
    discards: dict[str, tuple[int, ...] | None]
    normalizations: tuple[str, ...]
    ensembles: tuple[int, ...]

    def settings(self, timestep: float) -> list[Setting]:
        """Of one timestep, in the order of the rows of its units."""
        return [
            Setting(block, timestep, discard, normalization, ensemble)
            for block in self.blocks
            for discard in self.discards
            for normalization in self.normalizations
            for ensemble in self.ensembles
        ]


def _plan(
    fx: FeatureExtractor,
    blocks: Sequence[int] | None,
    timesteps: Sequence[float],
    discard: Sequence[str | tuple[int, ...]],
    normalization: Sequence[str],
    ensemble: Sequence[int] | None,
) -> _Plan:
    chosen = range(fx.backbone.num_blocks) if blocks is None else blocks
    plan = _Plan(
        tuple(sorted(_distinct("blocks", chosen))),
        tuple(float(t) for t in _distinct("timesteps", timesteps)),
        _discards(fx, _distinct("discard", discard)),
        tuple(_distinct("normalization", normalization)),
        tuple(sorted(_distinct("ensemble", [fx.config.ensemble] if ensemble is None else ensemble))),
    )
    if plan.blocks[-1] >= fx.backbone.num_blocks:
        raise InputError.of("blocks", plan.blocks[-1], f"indices in 0..{fx.backbone.num_blocks - 1}")
    for t in plan.timesteps:  # every value within its domain, before any work
        for setting in plan.settings(t):
            fx.config.replace(**{**dataclasses.asdict(setting), "discard": "none"})
    return plan


def _distinct(name: str, values: Iterable[Any]) -> list[Any]:
    found = list(values)
    if isinstance(values, str) or not found or len(set(found)) != len(found):
        raise InputError.of(name, values, "a list of distinct values, at least one")
    return found


def _discards(fx: FeatureExtractor, asked: Sequence[str | tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
    found: dict[str, tuple[int, ...] | None] = {}
    for one in asked:
        config = fx.replace(discard=one).config  # checks it; "preset" becomes its channels
        channels = () if isinstance(config.discard, str) else config.discard
        if one == "auto":
            found["auto"] = None
        elif one == "preset" and not channels and len(asked) > 1:
            log.info("discard: the preset of %s discards nothing; left out", fx.backbone.name)
        else:
            found[one if isinstance(one, str) else "+".join(map(str, channels)) or "none"] = channels
    return found


@dataclass(frozen=True, eq=False)
class _Unit:
    """One picture at one timestep, or its rivals.

    Attributes:
        errors: (S, K) float32, distance over reference length of every setting and point.
        target: (K,) int64, which target the point was looked for in.
        channels: discard -> block -> channels.
    """

    errors: Tensor
    target: Tensor
    channels: dict[str, dict[int, tuple[int, ...]]]


class _Units:
    """Finished units by their keys, on disk where there is a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder) / "units"
        self._known: dict[str, _Unit] = {}
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"folder: {folder} cannot be created ({error.strerror}); choose another") from None

    def get(self, key: str) -> _Unit | None:
        if key not in self._known and self.folder is not None:
            unit = _read_unit(self.folder / f"{key}.safetensors")
            if unit is not None:
                self._known[key] = unit
        return self._known.get(key)

    def put(self, key: str, unit: _Unit) -> None:
        from safetensors.torch import save

        self._known[key] = unit
        if self.folder is not None:
            about = {"channels": unit.channels}
            content = save({"errors": unit.errors, "target": unit.target}, {"ditf sweep": json.dumps(about)})
            write_atomically(self.folder / f"{key}.safetensors", content)


def _read_unit(path: Path) -> _Unit | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["ditf sweep"])
            channels = {
                name: {int(block): tuple(found) for block, found in blocks.items()}
                for name, blocks in about["channels"].items()
            }
            return _Unit(file.get_tensor("errors"), file.get_tensor("target"), channels)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s cannot be read (%s); computing it again", path, error)
        return None


class _Run:
    """The work of one sweep: what is missing among the units."""

    def __init__(
        self, fx: FeatureExtractor, plan: _Plan, sources: list[Source], units: _Units, progress: Progress
    ) -> None:
        self.fx, self.plan, self.sources, self.units, self.progress = fx, plan, sources, units, progress
        fx.backbone.truncate_after(max(*plan.blocks, fx.config.block))
        self._model = model_identity(fx)
        self._keys = {(t, source.key): self._key(t, source) for t in (None, *plan.timesteps) for source in sources}

    def unit(self, timestep: float | None, source: Source) -> _Unit:
        """A finished one; of the rivals for no timestep."""
        unit = self.units.get(self._keys[timestep, source.key])
        if unit is None:
            raise AssertionError("measure() comes first")
        return unit

    def measure(self) -> None:
        """Compute what is missing, one unit after the other."""
        missing = {at: key for at, key in self._keys.items() if self.units.get(key) is None}
        total, done = len(self._keys), len(self._keys) - len(missing)
        self.progress(done, total)
        if any(timestep is not None for timestep, _ in missing):
            self._encode_prompts()
        for timestep in (None, *self.plan.timesteps):
            todo = [source for source in self.sources if (timestep, source.key) in missing]
            if not todo:
                continue
            measure = _rivals if timestep is None else _Level(self.fx, self.plan, timestep).measure
            for source in todo:
                self.units.put(missing[timestep, source.key], measure(source))
                done += 1
                self.progress(done, total)

    def _encode_prompts(self) -> None:
        texts = {_prompt(self.fx.config, category) for source in self.sources for category in source.categories}
        calibrating = {CALIBRATION_PROMPT} if None in self.plan.discards.values() else set()
        self.fx.backbone.text(sorted(texts | calibrating))

    def _key(self, timestep: float | None, source: Source) -> str:
        """SHA-256 of all that decides a unit's numbers."""
        from . import __version__

        about: dict[str, Any] = {"version": _UNIT, "ditf": __version__, "source": source.key, "side": source.side}
        if timestep is None:
            about |= {"rivals": PATCHES}
        else:
            config = dataclasses.asdict(self.fx.config) | {"timestep": timestep}
            kept = {name: value for name, value in config.items() if name not in _AXES or name == "timestep"}
            plan = dataclasses.asdict(self.plan) | {"timesteps": timestep}
            prompts = [_prompt(self.fx.config, category) for category in source.categories]
            about |= {"model": self._model, "config": kept, "plan": plan, "prompts": prompts}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class _Level:
    """All settings of one timestep."""

    def __init__(self, fx: FeatureExtractor, plan: _Plan, timestep: float) -> None:
        self.plan, self.timestep = plan, timestep
        self.fx = fx.replace(timestep=timestep, ensemble=plan.ensembles[-1], discard="none")
        self.channels = {
            name: dict.fromkeys(plan.blocks, channels)
            if channels is not None
            else calibrated_channels(self.fx, plan.blocks, timestep)
            for name, channels in plan.discards.items()
        }
        self._kept: OrderedDict[str, TappedImage] = OrderedDict()

    def measure(self, source: Source) -> _Unit:
        case = source.load()
        errors = [self._errors(case, target) for target in case.targets]  # (S, K) each
        return _Unit(torch.cat(errors, 1), _target_of_points(case), self.channels)

    def _errors(self, case: Case, target: Target) -> Tensor:
        first, second = (self._tapped(picture, target.category) for picture in (case.picture, target.picture))
        known: dict[tuple[Any, ...], Tensor] = {}  # two discards may mean the same channels
        rows = []
        for s in self.plan.settings(self.timestep):
            channels = self.channels[s.discard][s.block]
            what = (s.block, channels, s.normalization, s.ensemble)
            if what not in known:
                fx = self.fx.replace(discard=channels, normalization=s.normalization, ensemble=s.ensemble)
                a, b = (fx.features_of(tapped, s.block) for tapped in (first, second))
                known[what] = _relative(match_points(a, b, target.points).target.cpu(), target)
            rows.append(known[what])
        return torch.stack(rows)

    def _tapped(self, picture: np.ndarray, category: str | None) -> TappedImage:
        """One forward, unless the picture's tokens are still there from another pair."""
        prompt = _prompt(self.fx.config, category)
        key = hashlib.sha256(f"{picture.shape}{prompt}".encode() + picture.tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self.fx.tap_image(picture, blocks=self.plan.blocks, prompt=prompt)
        self._kept.move_to_end(key)
        while len(self._kept) > 2 and sum(map(_bytes, self._kept.values())) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


def _bytes(tapped: TappedImage) -> int:
    return sum(tap.tokens.nbytes for tap in tapped.taps.values())


def _prompt(config: ExtractConfig, category: str | None) -> str:
    return config.prompt.replace("{category}", category or "object")


def _relative(predicted: Tensor, target: Target) -> Tensor:
    """(K,) float32 distance over reference length; infinite where nothing was found."""
    return (distances(predicted, target.truth) / target.length).float()


def _target_of_points(case: Case) -> Tensor:
    counts = torch.tensor([len(target.points) for target in case.targets])
    return torch.arange(len(counts)).repeat_interleave(counts)


def _rival_names() -> list[str]:
    return ["identity", "best constant shift", *(f"pixel patches {patch} px" for patch in PATCHES)]


def _rivals(source: Source) -> _Unit:
    """The errors of what needs no model, in the order of their names."""
    case = source.load()
    columns = []
    for target in case.targets:
        sizes = [(picture.shape[0], picture.shape[1]) for picture in (case.picture, target.picture)]
        predicted = [identity(target.points, *sizes), constant_shift(target.points, target.truth)]
        predicted += [
            pixel_patches(case.picture, target.picture, target.points, patch=patch, side=source.side)
            for patch in PATCHES
        ]
        columns.append(torch.stack([_relative(points, target) for points in predicted]))
    return _Unit(torch.cat(columns, 1), _target_of_points(case), {})


def _result(run: _Run, *, labelled: bool, warps: int, seed: int) -> SweepResult:
    plan, fx = run.plan, run.fx
    scores: dict[Setting, tuple[Score, Score]] = {}
    channels: dict[Setting, tuple[int, ...]] = {}
    for t in plan.timesteps:
        units = [run.unit(t, source) for source in run.sources]
        settings = plan.settings(t)
        scores |= dict(zip(settings, _scores(units, run.sources), strict=True))
        channels |= {s: units[0].channels[s.discard][s.block] for s in settings}
    rows = tuple(Row(setting, channels[setting], *pair) for setting, pair in scores.items())
    best = max(rows, key=lambda row: (row.choosing.mean, -row.setting.ensemble))  # the first of equals
    rival_units = [run.unit(None, source) for source in run.sources]
    rivals = zip(_rival_names(), _scores(rival_units, run.sources), strict=True)
    held = [int(_held_out(unit, source).sum()) for unit, source in zip(rival_units, run.sources, strict=True)]
    points = sum(unit.target.numel() for unit in rival_units)
    pairs = sum(len(source.halves) for source in run.sources)
    what = f"{pairs} labelled pairs" if labelled else f"{len(run.sources)} images and {pairs} warps of themselves"
    tried = dataclasses.asdict(plan) | {"discards": list(plan.discards)}
    scored = {"on": what} | ({} if labelled else {"warps": warps, "seed": seed})
    return SweepResult(
        best=best,
        rows=rows,
        rivals=tuple(Rival(name, *pair) for name, pair in rivals),
        labelled=labelled,
        images=len(run.sources),
        pairs=pairs,
        points=(points - sum(held), sum(held)),
        preset=_preset(fx, best, f"ditf sweep of {what}"),
        card={**fx.backbone.card(), "fused": fx.fused, "tried": tried, "scored": scored},
    )


def _preset(fx: FeatureExtractor, best: Row, source: str) -> Preset:
    """The best setting; what was not swept keeps its source, or says that it was given."""
    values: dict[str, Any] = {**dataclasses.asdict(best.setting), "discard": best.channels or "none"}
    config = fx.config.replace(**values)
    before = fx.preset.config
    given = [
        f.name
        for f in dataclasses.fields(config)
        if f.name not in _AXES and getattr(fx.config, f.name) != getattr(before, f.name)
    ]
    sources = {**fx.preset.source, **dict.fromkeys(given, "given to ditf sweep"), **dict.fromkeys(_AXES, source)}
    return Preset(config, sources)


def _held_out(unit: _Unit, source: Source) -> Tensor:
    """(K,) bool."""
    return torch.tensor(source.halves, dtype=torch.bool)[unit.target]


def _scores(units: Sequence[_Unit], sources: Sequence[Source]) -> list[tuple[Score, Score]]:
    """Per row of the units: its score on the choosing and on the held-out half."""
    masks = [_held_out(unit, source) for unit, source in zip(units, sources, strict=True)]
    halves = [[unit.errors[:, mask == held] for unit, mask in zip(units, masks, strict=True)] for held in (0, 1)]
    choosing, held_out = (_half_scores(half) for half in halves)
    return list(zip(choosing, held_out, strict=True))


def _half_scores(errors: Sequence[Tensor]) -> list[Score]:
    """Scores from each picture's (S, K) errors; resampled by picture, the same draws for every row."""
    found = [one for one in errors if one.shape[1]]
    counts = np.array([one.shape[1] for one in found], dtype=np.float64)
    hits = [np.stack([(one <= alpha).sum(1).numpy() for one in found], 1).astype(np.float64) for alpha in ALPHAS]
    picks = np.random.default_rng(0).integers(0, len(found), (_DRAWS, len(found)))
    weights = np.stack([np.bincount(pick, minlength=len(found)) for pick in picks]).astype(np.float64)  # (draws, n)
    columns = []
    for hit in hits:  # (S, n)
        value = 100 * hit.sum(1) / counts.sum()
        drawn = 100 * (weights @ hit.T) / (weights @ counts)[:, None]
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        columns.append([_interval(*v, single=len(found) == 1) for v in zip(value, low, high, strict=True)])
    medians = np.median(torch.cat(list(found), 1).numpy(), axis=1)
    return [Score(ten, five, float(m)) for ten, five, m in zip(columns[0], columns[1], medians, strict=True)]


def _interval(value: float, low: float, high: float, *, single: bool) -> Interval:
    return Interval(float(value), None, None) if single else Interval(float(value), float(low), float(high))


_MEASURED = (
    *("PCK@0.1", "PCK@0.1 low", "PCK@0.1 high"),
    *("PCK@0.05", "PCK@0.05 low", "PCK@0.05 high"),
    "median error",
)


def _numbers(score: Score) -> list[float | None]:
    """In the order of ``_MEASURED``, rounded; None for what there is not."""
    ends = [end for one in (score.pck_10, score.pck_05) for end in (one.value, one.low, one.high)]
    median = round(score.median_error, 4) if math.isfinite(score.median_error) else None
    return [*(None if end is None else round(end, 2) for end in ends), median]


def _halves(row: Row | Rival) -> dict[str, Any]:
    def half(score: Score) -> dict[str, Any]:
        numbers = _numbers(score)
        return {"pck@0.1": numbers[:3], "pck@0.05": numbers[3:6], "median_error": numbers[6]}

    return {"choosing": half(row.choosing), "held_out": half(row.held_out)}


def _row_dict(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row.setting), "channels": list(row.channels), **_halves(row)}
