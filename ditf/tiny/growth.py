"""How a network in training does: its massive channel, and how well its tokens match, as a table and a picture.

A row holds PCK@0.1 of raw tokens, LayerNorm, AdaLN and AdaLN without the top channel, on pairs of scenes kept for
validation, and how far the top channel stands above the median. The setting is the same in every run, so that rows of
different runs can be compared; it is no tuned one.
"""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditf_kernels import adaln

from ..types import FeatureMap, Tapped, write_atomically

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["GROWTH", "GrowthRow", "measure", "plot_curves", "read_rows", "write_rows"]

GROWTH = "growth.csv"

_SIZE, _SIGMA, _PAIRS, _ENSEMBLE = 96, 0.1, 48, 2


@dataclass(frozen=True)
class GrowthRow:
    """One line of ``growth.csv``.

    Attributes:
        step, images, seconds: how long the run has lasted; over all runs this one started from for ``images``.
        loss: mean since the last row of the loss table.
        channel, ratio: the channel with the largest mean |x| entering the block, and that over the median's.
        raw, layernorm, adaln, adaln_discard: PCK@0.1 in percent.
    """

    step: int
    images: int
    seconds: float
    loss: float
    channel: int
    ratio: float
    raw: float
    layernorm: float
    adaln: float
    adaln_discard: float


def block_of(model: FluxTransformer2DModel) -> int:
    """The block whose input is measured: five eighths down."""
    return round(5 / 8 * (len(model.transformer_blocks) + len(model.single_transformer_blocks)))


@torch.no_grad()
def measure(model: FluxTransformer2DModel, *, pairs: int = _PAIRS) -> tuple[int, float, dict[str, float]]:
    """The top channel, its ratio to the median, and PCK@0.1 in percent of the four variants.

    Args:
        model: of any size, in float32.
        pairs: of scenes, the same for every model.
    """
    from ..benchmarks.synthetic import Score, scene_cases
    from ..matching import match_points
    from .scenes import VALIDATION_SEED

    cases = scene_cases(pairs, VALIDATION_SEED + 700_000, size=_SIZE)
    tapped = [
        (_tapped(model, case.source, 2 * i), _tapped(model, case.target, 2 * i + 1)) for i, case in enumerate(cases)
    ]
    magnitude = torch.stack([one.raw.abs().mean((0, 1)) for pair in tapped for one in pair]).mean(0)  # (D,)
    channel = int(magnitude.argmax())
    scores: dict[str, Score] = {}
    for case, (source, target) in zip(cases, tapped, strict=True):
        for name, (a, b) in _variants(source, target, channel).items():
            found = match_points(a, b, case.points).target
            scores.setdefault(name, Score()).add(found, case.truth, case.length)
    pck = {name: float(score.samples(1)[0, 0]) for name, score in scores.items()}
    return channel, float(magnitude[channel] / magnitude.median()), pck


def read_rows(folder: Path, step: int | None = None) -> list[GrowthRow]:
    """Rows of a folder's table, up to a step; none where there is no table."""
    path = folder / GROWTH
    if not path.is_file():
        return []
    number: dict[str, Any] = {field.name: int if field.type == "int" else float for field in fields(GrowthRow)}
    with path.open(newline="") as file:
        rows = [GrowthRow(**{name: number[name](cell) for name, cell in row.items()}) for row in csv.DictReader(file)]
    return [row for row in rows if step is None or row.step <= step]


def write_rows(folder: Path, rows: list[GrowthRow]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(GrowthRow))
    writer.writerows(astuple(row) for row in rows)
    write_atomically(folder / GROWTH, text.getvalue().encode())


def plot_curves(folder: Path, losses: list[tuple[int, float]], rows: list[GrowthRow]) -> None:
    """``curves.png``: loss, PCK@0.1 and the top channel's ratio over images seen; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, pck, ratio = figure.subplots(1, 3)
    loss.plot(*zip(*losses, strict=True) if losses else ((), ()), linewidth=0.8)
    images = [row.images for row in rows]
    for name in ("raw", "layernorm", "adaln", "adaln_discard"):
        pck.plot(images, [getattr(row, name) for row in rows], label=name.replace("_", " + "), marker=".")
    ratio.plot(images, [row.ratio for row in rows], marker=".")
    for axes, title in ((loss, "loss"), (pck, "PCK@0.1, %"), (ratio, "top channel / median")):
        axes.set(title=title, xlabel="images")
    pck.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
    write_atomically(folder / "curves.png", picture.getvalue())


def _tapped(model: FluxTransformer2DModel, picture: object, seed: int) -> Tapped:
    """What enters the block for one (H, W, 3) uint8 picture."""
    from ..backbones import tap
    from .network import flow_inputs, patch_of

    device = next(model.parameters()).device
    pixels = torch.as_tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    noise = torch.randn(_ENSEMBLE, *pixels.shape[1:], generator=torch.Generator().manual_seed(seed))
    patch = patch_of(model)
    inputs = flow_inputs(pixels.expand_as(noise), noise, torch.full((_ENSEMBLE,), _SIGMA), patch)
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return tap(model, block_of(model), inputs, grid=grid, ensemble=_ENSEMBLE)


def _variants(source: Tapped, target: Tapped, channel: int) -> dict[str, tuple[FeatureMap, FeatureMap]]:
    def maps(normalise: bool, modulate: bool, discard: tuple[int, ...] = ()) -> tuple[FeatureMap, FeatureMap]:
        return _map(source, normalise, modulate, discard), _map(target, normalise, modulate, discard)

    return {
        "raw": maps(False, False),
        "layernorm": maps(True, False),
        "adaln": maps(True, True),
        "adaln_discard": maps(True, True, (channel,)),
    }


def _map(one: Tapped, normalise: bool, modulate: bool, discard: tuple[int, ...]) -> FeatureMap:
    raw = one.raw
    tokens: Tensor = raw.mean(0)  # (N, D)
    if normalise:
        shift, scale = (one.shift, one.scale) if modulate else (None, None)
        tokens = adaln(raw, shift, scale, eps=one.eps, ensemble=len(raw), discard=discard)[0]
    h, w = one.grid
    return FeatureMap(tokens=tokens.cpu(), grid=(h, w), image_size=(_SIZE, _SIZE))
