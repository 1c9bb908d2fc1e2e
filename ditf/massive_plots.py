"""Figures of massive channels as papers print them: matplotlib (extra ``plots``), no display, no pyplot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import InputError
from .massive import HISTOGRAM_BINS, LayerReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["layer_figure", "map_figure"]

_QUIET, _LOUD, _INK = "#7d8aa0", "#d1495b", "#20242e"
_SURFACE_CHANNELS = 96  # columns of the surface: more cannot be told apart
_MAP_PER_LAYER, _MAP_COLUMNS = 3, 40
_COSINES = {
    "raw": {"color": _LOUD, "linestyle": "-"},
    "raw, discarded": {"color": _LOUD, "linestyle": "--"},
    "adaln": {"color": "#00798c", "linestyle": "-"},
    "adaln, discarded": {"color": "#00798c", "linestyle": "--"},
}


def layer_figure(layer: LayerReport, threshold: float) -> Figure:
    """One block: the magnitude of every channel, tokens x channels of one image, cosines between tokens.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = _figure(15.0, 4.4)
    grid = figure.add_gridspec(1, 3, width_ratios=(1.1, 1.0, 1.0))
    _draw_magnitudes(figure.add_subplot(grid[0]), layer, threshold)
    _draw_surface(figure.add_subplot(grid[1], projection="3d"), layer)
    _draw_cosines(figure.add_subplot(grid[2]), layer)
    found = f"massive: {', '.join(map(str, layer.channels))}" if layer.channels else "no massive channels"
    figure.suptitle(f"{layer.name}: {found} ({layer.images} images, {layer.tokens} tokens)", color=_INK)
    return figure


def map_figure(layers: Sequence[LayerReport], threshold: float) -> Figure:
    """Blocks x channels: how many times the median the leading channels of each block are, massive ones framed.

    Raises:
        InputError: matplotlib is not installed.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    columns = _map_columns(layers)
    ratios = np.array([_ratios(layer)[columns] for layer in layers])  # (layers, columns)
    figure = _figure(3.2 + 0.42 * len(columns), 2.2 + 0.3 * len(layers))
    axes = figure.add_subplot()
    largest = max(2.0 * threshold, float(ratios[np.isfinite(ratios)].max(initial=1.0)))
    norm = LogNorm(1.0, largest, clip=True)
    picture = axes.imshow(ratios, cmap="viridis", norm=norm, aspect="auto", interpolation="nearest")
    for y, layer in enumerate(layers):
        for x, channel in enumerate(columns):
            if channel in layer.channels:
                frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=_LOUD, linewidth=2, clip_on=False)
                axes.add_patch(frame)
    axes.set_xticks(range(len(columns)), [str(channel) for channel in columns], rotation=90)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
    axes.set_xlabel(f"channel, of {len(layers[0].magnitudes)}")
    bar = figure.colorbar(picture, ax=axes, label="mean |x| / median over channels")
    ticks = [tick for decade in (1, 10, 100, 1000) for tick in (decade, 2 * decade, 5 * decade) if tick <= largest]
    bar.set_ticks(ticks, labels=[f"{tick}x" for tick in ticks])
    bar.ax.minorticks_off()
    axes.set_title("leading channels of every block; massive ones framed", color=_INK, fontsize=11)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('plots need matplotlib; pip install "ditf[plots]"') from None
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _draw_magnitudes(axes: Any, layer: LayerReport, threshold: float) -> None:
    values = layer.magnitudes.numpy()
    channels = np.arange(len(values))
    axes.vlines(channels, 0, values, color=_QUIET, linewidth=0.8)
    for one in layer.top:
        if one.massive:
            axes.vlines([one.channel], 0, [one.magnitude], color=_LOUD, linewidth=2)
            text = f"{one.channel}: {one.ratio:.1f}x"
            axes.annotate(text, (one.channel, one.magnitude), ha="center", va="bottom", color=_LOUD, fontsize=9)
    axes.axhline(threshold * layer.median, color=_INK, linewidth=0.8, linestyle=":")
    axes.text(0.99, threshold * layer.median, f"{threshold:g}x the median", ha="right", va="bottom", fontsize=8,
              color=_INK, transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlim(-0.01 * len(values), 1.01 * len(values))
    axes.set_ylim(0, 1.12 * max(float(values.max()), threshold * layer.median))
    axes.set(xlabel="channel", ylabel="mean |x| over tokens")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_surface(axes: Any, layer: LayerReport) -> None:
    """|x| of one image's tokens; where channels are too many, each column is the largest of its neighbours."""
    sample = layer.sample.abs()
    width = sample.shape[1]
    columns = min(width, _SURFACE_CHANNELS)
    edges = torch.linspace(0, width, columns + 1).round().long().tolist()
    heights = torch.stack([sample[:, a:b].amax(1) for a, b in itertools.pairwise(edges)], dim=1).numpy()
    x, y = np.meshgrid(np.array(edges[:-1]), np.arange(len(sample)))
    axes.plot_surface(x, y, heights, cmap="viridis", rstride=1, cstride=1, linewidth=0, antialiased=False)
    axes.set(xlabel="channel", ylabel="token", zlabel="|x|")
    axes.view_init(elev=28, azim=-62)
    axes.tick_params(labelsize=8)
    axes.set_title("tokens of one image", fontsize=10, color=_INK)


def _draw_cosines(axes: Any, layer: LayerReport) -> None:
    edges = np.linspace(-1, 1, HISTOGRAM_BINS + 1)
    for name, cosines in layer.cosines.items():
        counts = np.array(cosines.histogram, dtype=float)
        label = f"{name}: mean {cosines.mean:.2f}"
        axes.stairs(counts / max(1.0, counts.sum()), edges, label=label, linewidth=1.4, **_COSINES[name])
    axes.set(xlim=(-1, 1), xlabel="cosine between two tokens of one image", ylabel="share of pairs")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _map_columns(layers: Sequence[LayerReport]) -> list[int]:
    """Massive channels of any layer, then the leading ones of each as far as there is room, in order."""
    massive = [channel for layer in layers for channel in layer.channels]
    leading = [layer.top[rank].channel for rank in range(_MAP_PER_LAYER) for layer in layers if rank < len(layer.top)]
    return sorted(list(dict.fromkeys(massive + leading))[:_MAP_COLUMNS])


def _ratios(layer: LayerReport) -> np.ndarray:
    return (layer.magnitudes / layer.median).numpy()
