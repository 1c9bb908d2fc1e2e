"""The leading channel of every block, on procedural pictures."""

from __future__ import annotations

from typing import Any

from ...massive import LayerReport, find_massive_channels
from .cases import scene_cases
from .model import Network, Setting

__all__ = ["massive_channels_of_blocks"]

_FIRST_SEED = 2_500_000


def massive_channels_of_blocks(checkpoint: str, *, pictures: int = 48) -> list[dict[str, Any]]:
    """Per block: the channel with the largest mean |x|, its ratio to the median, and how constant it is."""
    extractor = Network(checkpoint, Setting(block=0, timestep=100, ensemble=1, size=64)).extractor
    cases = scene_cases(pictures // 2, _FIRST_SEED, size=64)
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
