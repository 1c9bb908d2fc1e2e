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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditf_kernels import adaln

from ..backbones import BlockInput
from ..benchmarks.pck import distances
from ..benchmarks.rivals import constant_shift, identity, pixel_patches
from ..errors import DitfError, InputError
from ..extractor import FeatureExtractor
from ..massive import LayerReport, find_massive_channels
from ..matching import match_points, mutual_matches
from ..presets import find_preset
from ..types import FeatureMap, write_atomically
from .scenes import apply_homography, scene_pair, warped_pair

__all__ = ["Case", "Setting", "massive_channels_of_blocks", "photograph_cases", "report", "scene_cases"]

ALPHAS = (0.1, 0.05)
PATCHES = (9, 17, 25)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
_PHOTOGRAPH_SIDE = 384
_SCENE_SIDE = 128
_TUNING, _CARD = 1_000_000, 2_000_000  # first seeds
_BEST = "adaln, top channel discarded"  # DiTF as the paper has it
_WARP_RANGES = "rotation 18 to 30 degrees, scale 0.72 to 0.85, about a point just outside a corner, recoloured"


@dataclass(frozen=True)
class Setting:
    """Where features are taken."""

    block: int
    timestep: float
    ensemble: int
    size: int

    @classmethod
    def of(cls, task: str) -> Setting:
        """The preset of ``ditf-tiny`` for a task."""
        config = find_preset("ditf-tiny", task, num_blocks=8).config
        assert isinstance(config.size, int)
        return cls(config.block, config.timestep, config.ensemble, config.size)


@dataclass(frozen=True, eq=False)
class Case:
    """One pair with the truth.

    Attributes:
        source, target: (H, W, 3) uint8.
        points, truth: (K, 2) float32 pixels of source and target.
        length: an error counts as right up to alpha times this many pixels.
        matrix: (3, 3) map from source to target, where there is one.
    """

    source: np.ndarray
    target: np.ndarray
    points: Tensor
    truth: Tensor
    length: float
    matrix: Tensor | None = None


def scene_cases(count: int, first_seed: int, *, size: int = _SCENE_SIDE, clutter: bool = False) -> list[Case]:
    """Pairs of instances; the kinds take turns. The reference length is the larger side of the target's box."""
    cases = []
    for i in range(count):
        kind = ("quad", "bird", "fish", "car")[i % 4]
        first, second = scene_pair(first_seed + i, size, kind, clutter=clutter)
        names = [name for name in first.keypoints if first.visible[name] and second.visible[name]]
        points, truth = (torch.tensor([scene.keypoints[name] for name in names]) for scene in (first, second))
        x0, y0, x1, y1 = second.bbox
        cases.append(Case(first.pixels, second.pixels, points, truth, max(x1 - x0, y1 - y0)))
    return cases


def photograph_cases(warps: int, first_seed: int, *, side: int = _PHOTOGRAPH_SIDE, grid: int = 14) -> list[Case]:
    """Each photograph under ``warps`` random warps. The reference length is the larger side of the picture.

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise InputError('photographs come with scikit-image; pip install "ditf[demo]"') from None
    cases = []
    for number, name in enumerate(PHOTOGRAPHS):
        photograph = Image.fromarray(getattr(data, name)()[..., :3])
        photograph.thumbnail((side, side), Image.Resampling.LANCZOS)
        for warp in range(warps):
            seed = first_seed + warps * number + warp
            pair = warped_pair(np.array(photograph), rotation=None, scale=None, pivot=None, grid=grid, seed=seed)
            cases.append(
                Case(pair.source, pair.target, pair.source_points, pair.target_points, float(side), pair.matrix)
            )
    return cases


class Network:
    """Raw tokens and modulation of one checkpoint at one setting."""

    def __init__(self, checkpoint: str, setting: Setting) -> None:
        self.setting = setting
        self.extractor = FeatureExtractor.from_pretrained(
            checkpoint, **dataclasses.asdict(setting), normalization="none", discard="none", truncate=False
        )

    def raw(self, picture: np.ndarray) -> FeatureMap:
        """Tokens entering the block, mean over the ensemble."""
        return self.extractor(picture)

    def raw_of_blocks(self, picture: np.ndarray) -> dict[int, FeatureMap]:
        return self.extractor(picture, blocks=range(self.extractor.backbone.num_blocks))

    def modulation(self, block: int) -> BlockInput:
        """The block's shift and scale: without a text they depend on the timestep alone."""
        backbone = self.extractor.backbone
        side = 2 * backbone.pixels_per_token
        latents = torch.zeros(1, 3, side, side)
        inputs = backbone.inputs(latents, self.setting.timestep, [""])
        with torch.inference_mode():
            return backbone.run([block], inputs, backbone.grid(latents))[block]


def variants(raw: FeatureMap, modulation: BlockInput, massive: Sequence[int]) -> dict[str, FeatureMap]:
    """The ablation: raw tokens, normalised, modulated, and modulated after the massive channels were zeroed."""
    x, m = raw.tokens[None], modulation
    discard = tuple(massive)
    return {
        "raw": raw,
        "layernorm": _with_tokens(raw, adaln(x, None, None, eps=m.eps)),
        "adaln": _with_tokens(raw, adaln(x, m.shift, m.scale, eps=m.eps)),
        _BEST: _with_tokens(raw, adaln(x, m.shift, m.scale, eps=m.eps, discard=discard)),
    }


class Score:
    """Hits of one method, pair by pair, so that intervals can be had by resampling pairs."""

    def __init__(self) -> None:
        self.hits: list[list[int]] = []  # pair -> hits per alpha
        self.counts: list[int] = []
        self.errors: list[Tensor] = []  # pair -> distance / length

    def add(self, predicted: Tensor, truth: Tensor, length: float) -> None:
        relative = distances(predicted, truth) / length
        self.hits.append([int((relative <= alpha).sum()) for alpha in ALPHAS])
        self.counts.append(len(truth))
        self.errors.append(relative)

    def samples(self, draws: int = 2000) -> np.ndarray:
        """(1 + draws, alphas) PCK in percent: of all pairs, then of resampled ones, the same draws for every method."""
        n = len(self.counts)
        picks = np.random.default_rng(0).integers(0, n, (draws, n))
        rows = np.concatenate([np.arange(n)[None], picks])
        counts = np.array(self.counts)[rows].sum(1)
        return 100 * np.array(self.hits)[rows].sum(1) / np.maximum(counts, 1)[:, None]

    def row(self) -> dict[str, Any]:
        found = {f"pck@{alpha:g}": _interval(self.samples()[:, i]) for i, alpha in enumerate(ALPHAS)}
        return {**found, "median error": round(float(torch.cat(self.errors).median()), 4)}


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
            "about": f"Parts of one instance found in another of its kind, {_SCENE_SIDE} px, seeds from {_CARD}; "
            "errors relative to the larger side of the target's box",
            **scores["semantic"],
        },
        "photographs": {
            "about": f"The photographs {', '.join(PHOTOGRAPHS)} at {_PHOTOGRAPH_SIDE} px: {_WARP_RANGES}, seeds from "
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
        top = _top_channel([tokens for pair in pairs for tokens in pair])
        for case, (first, second) in zip(cases, pairs, strict=True):
            a, b = variants(first, modulation, [top]), variants(second, modulation, [top])
            for variant in a:
                predicted = match_points(a[variant], b[variant], case.points).target
                scores.setdefault(name + variant, Score()).add(predicted, case.truth, case.length)
            if not name and case.matrix is not None:
                _add_mutual(mutual, a[_BEST], b[_BEST], case)
    rivals = _rivals(setting.size)
    for case in cases:
        for name, rival in rivals.items():
            scores.setdefault(name, Score()).add(rival(case), case.truth, case.length)
    best = max((f"pixel patches {patch} px" for patch in PATCHES), key=lambda name: scores[name].samples()[0, 0])
    compared = [
        ("adaln", "raw"), ("adaln", "layernorm"), (_BEST, "adaln"), (_BEST, f"random network, {_BEST}"), (_BEST, best),
    ]  # fmt: skip
    result = {
        "setting": dataclasses.asdict(setting),
        "pairs": len(cases),
        "points": sum(len(case.points) for case in cases),
        "rows": {name: score.row() for name, score in scores.items()},
        "differences in pck@0.1": {
            f"{one} - {other}": _interval((scores[one].samples() - scores[other].samples())[:, 0])
            for one, other in compared
        },
    }
    if mutual:
        result["mutual matches only"] = {
            "points": sum(mutual[_BEST].counts),
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
        _BEST: matches.target[inside],
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


def massive_channels_of_blocks(checkpoint: str, *, pictures: int = 48) -> list[dict[str, Any]]:
    """Per block: the channel with the largest mean |x|, its ratio to the median, and how constant it is."""
    extractor = Network(checkpoint, Setting(block=0, timestep=100, ensemble=1, size=64)).extractor
    cases = scene_cases(pictures // 2, _CARD + 500_000, size=64)
    seen = [picture for case in cases for picture in (case.source, case.target)]
    found = find_massive_channels(extractor, seen, blocks=range(extractor.backbone.num_blocks))
    return [_massive_row(layer) for layer in found.layers]


def _massive_row(layer: LayerReport) -> dict[str, Any]:
    first, second = layer.top[:2]
    return {
        "block": layer.block,
        "channel": first.channel,
        "ratio to median": round(first.ratio, 1),
        "second, ratio": round(second.ratio, 1),
        "largest in images, %": round(100 * first.leads_images, 1),
        "largest in tokens, %": round(100 * first.leads_tokens, 1),
        "one sign, %": round(100 * first.one_sign, 1),
        "share of energy, %": round(100 * first.energy, 1),
        "adaln gain": None if first.gain is None else round(first.gain, 2),
        "adaln mean gain": None if layer.mean_gain is None else round(layer.mean_gain, 2),
    }


def random_checkpoint(checkpoint: str, folder: Path, seed: int = 0) -> None:
    """A network of the same shape with the random weights that diffusers gives it, as a folder."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    source = Path(__file__).parent if checkpoint == "ditf-tiny" else Path(checkpoint)
    for name in ("config.json", "ditf.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = FluxTransformer2DModel.from_config(json.loads((source / "config.json").read_text()))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


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
        top = _top_channel([layers[block] for pair in pairs for layers in pair])
        scores: dict[str, Score] = {}
        for case, (first, second) in zip(cases, pairs, strict=True):
            a, b = (variants(layers[block], modulation, [top]) for layers in (first, second))
            for variant in a:
                predicted = match_points(a[variant], b[variant], case.points).target
                scores.setdefault(variant, Score()).add(predicted, case.truth, case.length)
        found = {variant: [round(v, 1) for v in score.samples(1)[0].tolist()] for variant, score in scores.items()}
        yield {"task": task, "size": setting.size, "timestep": setting.timestep, "block": block, "top": top, **found}


def _top_channel(maps: Sequence[FeatureMap]) -> int:
    return int(torch.stack([m.tokens.abs().mean(0) for m in maps]).mean(0).argmax())


def _with_tokens(features: FeatureMap, tokens: Tensor) -> FeatureMap:
    return dataclasses.replace(features, tokens=tokens[0], inverse_norm=None)


def _interval(samples: np.ndarray) -> list[float]:
    """[value, lower, upper] of a value and its bootstrap draws."""
    low, high = np.percentile(samples[1:], [2.5, 97.5])
    return [round(float(v), 1) for v in (samples[0], low, high)]


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
