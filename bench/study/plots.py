"""The report's pictures: matplotlib without a display; equal results give equal bytes with one matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ditf.benchmarks.synthetic import BEST

from .growth import PLATEAU, fit, joined
from .statistics import interval, pck_samples
from .verdicts import Results, nearest_timestep

VARIANTS = ("raw", "layernorm", "adaln", BEST)
_COLOUR = {"raw": "#d1495b", "layernorm": "#edae49", "adaln": "#00798c", BEST: "#7b2d8b"}
_MARKER = {"raw": "o", "layernorm": "s", "adaln": "^", BEST: "D"}
_GREY, _INK = "#7d8aa0", "#20242e"


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every picture whose part was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (part, plot) in _PLOTS.items():
        path = folder / name
        if part not in results:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        figure = plot(results[part])
        FigureCanvasAgg(figure)
        figure.savefig(path, metadata={"Software": None})
        written.append(path)
    return written


def _blocks(part: Mapping[str, Any]) -> Figure:
    """Over blocks, at the timestep nearest the preset's."""
    figure, axes = _figure(len(part["tasks"]))
    for one, (task, found) in zip(axes, part["tasks"].items(), strict=True):
        timestep = nearest_timestep(found)
        cells = {cell["block"]: cell["hits"] for cell in found["cells"] if cell["timestep"] == timestep}
        _lines(one, {block: cells[block] for block in sorted(cells)}, found)
        one.set(title=f"{task}, timestep {timestep:g}", xlabel="block", ylabel="PCK@0.1, %")
    axes[0].legend(fontsize=7)
    return figure


def _timesteps(part: Mapping[str, Any]) -> Figure:
    """Over timesteps, at the preset's block."""
    figure, axes = _figure(len(part["tasks"]))
    for one, (task, found) in zip(axes, part["tasks"].items(), strict=True):
        block = found["setting"]["block"]
        cells = {cell["timestep"]: cell["hits"] for cell in found["cells"] if cell["block"] == block}
        _lines(one, {timestep: cells[timestep] for timestep in sorted(cells)}, found)
        one.set(title=f"{task}, block {block}", xlabel="timestep", ylabel="PCK@0.1, %")
    axes[0].legend(fontsize=7)
    return figure


def _ensemble(part: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(len(part["noises"]))
    for one, (noise, rows) in zip(axes, part["noises"].items(), strict=True):
        _lines(one, {row["ensemble"]: row["hits"] for row in rows}, part)
        one.set(title=f"{noise} noise", xlabel="noises", ylabel="PCK@0.1, %")
    axes[0].legend(fontsize=7)
    _share_y(axes)
    return figure


def _lines(axes: Any, hits: Mapping[float, Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    """PCK of the variants with intervals, and the best patch and the identity as levels."""
    for shift, name in enumerate(VARIANTS):
        values = np.array([interval(pck_samples(one[name]["0.1"], found["counts"])) for one in hits.values()])
        x = np.array(list(hits), float)
        step = np.diff(x).min() if len(x) > 1 else 1.0
        label = name
        axes.errorbar(
            x + 0.06 * step * (shift - 1.5), values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T, label=label,
            color=_COLOUR[name], marker=_MARKER[name], markersize=3.5, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
    levels = {name: float(pck_samples(one["0.1"], found["counts"])[0]) for name, one in found["rivals"].items()}
    _levels(axes, levels)
    axes.set_ylim(bottom=0)


def _levels(axes: Any, values: Mapping[str, float]) -> None:
    """The best patch and the identity."""
    patch = max((name for name in values if name.startswith("pixel")), key=lambda name: values[name])
    for name, style in ((patch, "--"), ("identity", ":")):
        axes.axhline(values[name], color=_GREY, linewidth=1, linestyle=style)
        place = axes.get_yaxis_transform()
        axes.text(0.99, values[name], name, ha="right", va="bottom", fontsize=7, color=_GREY, transform=place)


def _massive(part: Mapping[str, Any]) -> Figure:
    """Times the median: over blocks for every timestep, and before and after the block's AdaLN."""
    figure, (left, right) = _figure(2)
    timesteps = sorted({layer["timestep"] for layer in part["layers"]})
    for i, timestep in enumerate(timesteps):
        layers = [layer for layer in part["layers"] if layer["timestep"] == timestep]
        shade = 0.15 + 0.7 * i / max(1, len(timesteps) - 1)
        left.plot(
            [layer["block"] for layer in layers], [layer["top"][0]["ratio"] for layer in layers],
            label=f"t = {timestep:g}", color=(0.82 * shade, 0.29, 0.9 - 0.5 * shade), marker=".", linewidth=1,
        )  # fmt: skip
    left.axhline(part["definition"]["ratio"], color=_INK, linewidth=0.8, linestyle=":")
    left.set(yscale="log", xlabel="block", ylabel="leading channel / median", title="tokens entering the block")
    left.legend(fontsize=7)
    layers = [layer for layer in part["layers"] if "times the median" in layer]
    for name in ("raw", "layernorm", "adaln"):
        values = [float(np.mean(layer["times the median"][name])) for layer in layers]
        right.plot([layer["block"] for layer in layers], values, label=name, color=_COLOUR[name], marker=_MARKER[name])
    right.set(
        yscale="log", xlabel="block", title=f"after norm and modulation, timestep {part['setting']['timestep']:g}"
    )
    right.legend(fontsize=7)
    _share_y((left, right))
    _plain_ticks(figure)
    return figure


def _growth(part: Mapping[str, Any]) -> Figure:
    curve = joined(part["runs"])
    figure, (left, right) = _figure(2)
    for name, column in zip(VARIANTS, ("raw", "layernorm", "adaln", "adaln_discard"), strict=True):
        left.plot(*_known(curve, column), label=name, color=_COLOUR[name],
                  marker=".", linewidth=1)  # fmt: skip
    _levels(left, part["rivals"])
    if (found := fit(curve)) is not None:
        images, samples = found
        x = np.array([images[0], images[-1], 10 * images[-1]])
        y = samples[0, 0] + samples[0, 1] * np.log2(x)
        left.plot(x[:2], y[:2], color=_INK, linewidth=1, label="fitted")
        if interval(samples[:, 1])[1] > 0:  # else nothing sure is bought, and nothing is drawn
            left.plot(x[1:], y[1:], color=_INK, linewidth=1, linestyle="--", label="extrapolated")
    left.set(xscale="log", xlabel="images", ylabel="PCK@0.1, %", title="accuracy on validation pairs")
    left.legend(fontsize=7)
    right.plot(*_known(curve, "ratio"), color=_COLOUR["raw"], marker=".")
    right.axhline(PLATEAU, color=_INK, linewidth=0.8, linestyle=":")
    right.set(xscale="log", yscale="log", xlabel="images", ylabel="leading channel / median", title="leading channel")
    _plain_ticks(figure)
    return figure


def _variants(part: Mapping[str, Any]) -> Figure:
    figure, (left, right) = _figure(2)
    for run in part["runs"]:
        curve = run["curve"]
        left.plot(*_known(curve, "ratio"), label=run["name"], marker=".", linewidth=1)
        gains = {
            "images": curve["images"],
            "gain": [
                None if a is None or b is None else a - b for a, b in zip(curve["adaln"], curve["raw"], strict=True)
            ],
        }
        right.plot(*_known(gains, "gain"), label=run["name"], marker=".", linewidth=1)
    left.axhline(PLATEAU, color=_INK, linewidth=0.8, linestyle=":")
    left.set(yscale="log", xlabel="images", ylabel="leading channel / median", title="leading channel")
    right.axhline(0, color=_INK, linewidth=0.8)
    right.set(xlabel="images", ylabel="points of PCK@0.1", title="AdaLN - raw")
    left.legend(fontsize=7)
    _plain_ticks(figure)
    return figure


def _known(curve: Mapping[str, Any], column: str) -> tuple[list[float], list[float]]:
    """Points that were measured, at 1 image and more: the axis is logarithmic."""
    points = [(x, y) for x, y in zip(curve["images"], curve[column], strict=True) if x and y is not None]
    return [x for x, _ in points], [y for _, y in points]


def _share_y(axes: Any) -> None:
    low, high = (pick(one.get_ylim()[i] for one in axes) for i, pick in enumerate((min, max)))
    for one in axes:
        one.set_ylim(low, high)


def _plain_ticks(figure: Figure) -> None:
    """Logarithmic axes with numbers at 1, 2 and 5 of each decade; numbers of images in short."""
    for one in figure.axes:
        for axis in (one.xaxis, one.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
                axis.set_minor_formatter(NullFormatter())
        if one.get_xlabel() == "images":
            one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _figure(columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6 * columns, 3.4), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_size(10)
    return figure, axes


_PLOTS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "blocks.png": ("grid", _blocks),
    "timesteps.png": ("grid", _timesteps),
    "ensemble.png": ("ensemble", _ensemble),
    "massive.png": ("massive", _massive),
    "growth.png": ("growth", _growth),
    "variants.png": ("variants", _variants),
}
