"""Everything that needs the model: blocks, timesteps, the ensemble, massive channels.

Nothing here is measured on the pairs that accuracies are reported on: blocks, timesteps and ensembles are compared on
validation pairs, on which settings are chosen.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ditf.benchmarks.synthetic import Network, Score, Setting, top_channel, variants
from ditf.benchmarks.synthetic.methods import PixelRows
from ditf.benchmarks.synthetic.sets import PAIR_SETS, Group
from ditf.massive import IMAGES, ONE_SIGN, RATIO, TOP, LayerReport, find_massive_channels
from ditf.matching import match_points
from ditf.types import FeatureMap
from ditf_kernels import adaln

__all__ = ["TIMESTEPS", "Task", "ensemble_of", "grid_of", "massive_of"]

log = logging.getLogger("method")

TIMESTEPS = (20, 50, 100, 200, 300, 500)
ENSEMBLES = (1, 2, 3, 4, 5, 6, 7, 8)

Task = Literal["semantic", "photographs"]
Hits = dict[str, list[int]]
"""alpha -> right points of each cluster of pairs."""
Maps = Mapping[int, FeatureMap]
"""id of a picture -> its tokens."""


# --- blocks and timesteps --------------------------------------------------------------------------------------------


def grid_of(
    checkpoint: str, task: Task, pairs: int, timesteps: Sequence[float], known: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """Every block at every timestep, under one noise.

    Yields the document of the task after each timestep; ``known`` is one to go on from.
    """
    groups = _groups(task, pairs)
    setting = _setting(task)
    document = _document(groups, setting) | {"timesteps": list(timesteps), "cells": list(known.get("cells", []))}
    done = {cell["timestep"] for cell in document["cells"]}
    for timestep in timesteps:
        if timestep not in done:
            log.info("%s, timestep %g", task, timestep)
            document["cells"] += _cells(checkpoint, groups, dataclasses.replace(setting, timestep=timestep))
        yield document


def _cells(checkpoint: str, groups: Sequence[Group], setting: Setting) -> list[dict[str, Any]]:
    network = Network(checkpoint, setting)
    layers = {id(picture): network.raw_of_blocks(picture) for picture in _pictures(groups)}
    cells = []
    for block in range(network.extractor.backbone.num_blocks):
        maps = {key: of_blocks[block] for key, of_blocks in layers.items()}
        top, hits = _hits_of_variants(network, block, maps, groups)
        cells.append({"timestep": setting.timestep, "block": block, "discarded": top, "hits": hits})
    return cells


def _hits_of_variants(network: Network, block: int, maps: Maps, groups: Sequence[Group]) -> tuple[int, dict[str, Hits]]:
    """The channel that was discarded, the largest; and raw, layernorm, adaln, adaln + discard -> hits."""
    modulation, top = network.modulation(block), top_channel(list(maps.values()))
    made = {key: variants(one, modulation, [top]) for key, one in maps.items()}
    cases = [case for group in groups for case in group.cases]
    found = {}
    for name in next(iter(made.values())):
        sources, targets = ([made[id(getattr(case, side))][name] for case in cases] for side in ("source", "target"))
        matches = match_points(sources, targets, [case.points for case in cases])
        found[name] = _hits([one.target for one in matches], groups)
    return top, found


# --- ensemble --------------------------------------------------------------------------------------------------------


def ensemble_of(checkpoint: str, pairs: int) -> dict[str, Any]:
    """PCK over the number of noises, each picture with noises of its own and all with the same ones.

    One pass per noise: member e is the noise of seed e, and tokens are averaged before norm and modulation, as the
    extractor does.
    """
    groups, setting = _groups("semantic", pairs), _setting("semantic")
    document = _document(groups, setting) | {"sizes": list(ENSEMBLES), "noises": {}}
    for noise, shared in (("independent", False), ("shared", True)):
        log.info("ensemble, %s noise", noise)
        network = Network(checkpoint, setting)
        network.extractor = network.extractor.replace(shared_noise=shared)
        document["noises"][noise] = _ensemble(network, groups)
    return document


def _ensemble(network: Network, groups: Sequence[Group]) -> list[dict[str, Any]]:
    members = {id(picture): _means(network, picture) for picture in _pictures(groups)}
    rows = []
    for i, size in enumerate(ENSEMBLES):
        maps = {key: means[i] for key, means in members.items()}
        top, hits = _hits_of_variants(network, network.setting.block, maps, groups)
        rows.append({"ensemble": size, "discarded": top, "hits": hits})
    return rows


def _means(network: Network, picture: Any) -> list[FeatureMap]:
    """Raw tokens averaged over the first 1, 2, 3 ... noises."""
    maps, total = [], torch.zeros(())
    for seed in range(max(ENSEMBLES)):
        one = network.extractor(picture, seed=seed)
        total = total + one.tokens
        maps.append(dataclasses.replace(one, tokens=total / (seed + 1)))
    return [maps[size - 1] for size in ENSEMBLES]


# --- massive channels ------------------------------------------------------------------------------------------------


def massive_of(checkpoint: str, pictures: int, timesteps: Sequence[float]) -> dict[str, Any]:
    """Every block's leading channels at every timestep, and what the block's own AdaLN does to the first of them."""
    setting = _setting("semantic")
    seen = _pictures(_groups("semantic", 2 * pictures))[:pictures]
    network = Network(checkpoint, setting)
    noises = list(dict.fromkeys([setting.timestep, *timesteps]))
    found = find_massive_channels(
        network.extractor, seen, blocks=range(network.extractor.backbone.num_blocks), timesteps=noises
    )
    rows = [_layer_row(layer) for layer in found.layers]
    standing_out = _standing_out(network, seen, {row["block"]: row["top"][0]["channel"] for row in rows})
    for row in rows:
        if row["timestep"] == setting.timestep:
            row["times the median"] = standing_out[row["block"]]
    return {
        "setting": dataclasses.asdict(setting),
        "pictures": len(seen),
        "definition": {"ratio": RATIO, "top": TOP, "images": IMAGES, "one_sign": ONE_SIGN},
        "layers": rows,
    }


def _layer_row(layer: LayerReport) -> dict[str, Any]:
    return {
        "block": layer.block,
        "timestep": layer.timestep,
        "width": len(layer.magnitudes),
        "massive": list(layer.channels),
        "mean_gain": _rounded(layer.mean_gain),
        "overlap": {"images": _rounded(layer.stability.images), "tokens": _rounded(layer.stability.tokens)},
        "top": [
            {
                "channel": one.channel,
                "massive": one.massive,
                "ratio": _rounded(one.ratio),
                "leads_images": _rounded(one.leads_images),
                "leads_tokens": _rounded(one.leads_tokens),
                "top_images": _rounded(one.top_images),
                "one_sign": _rounded(one.one_sign),
                "energy": _rounded(one.energy),
                "gain": _rounded(one.gain),
            }
            for one in layer.top[:5]
        ],
    }


def _standing_out(network: Network, pictures: Sequence[Any], channels: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """block -> how many times the median channel the leading one is: raw, normalised, modulated; of each picture.

    And the share of channels that AdaLN gives a smaller ``|1 + scale|``.
    """
    modulations = {block: network.modulation(block) for block in channels}
    found: dict[int, dict[str, Any]] = {block: {"raw": [], "layernorm": [], "adaln": []} for block in channels}
    for picture in pictures:
        for block, features in network.raw_of_blocks(picture).items():
            x, m = features.tokens[None], modulations[block]
            kinds = {
                "raw": x,
                "layernorm": adaln(x, None, None, eps=m.eps),
                "adaln": adaln(x, m.shift, m.scale, eps=m.eps),
            }
            for name, tokens in kinds.items():
                found[block][name].append(_rounded(_times_the_median(tokens[0], channels[block])))
    for block, channel in channels.items():
        scale = modulations[block].scale
        if scale is not None:
            gain = (1 + scale.detach().float()).abs().flatten(0, -2).mean(0)  # (D,)
            found[block]["gain_rank"] = _rounded(float((gain < gain[channel]).float().mean()))
    return found


def _times_the_median(tokens: Tensor, channel: int) -> float:
    magnitude = tokens.abs().mean(0)
    return float(magnitude[channel] / magnitude.median())


# --- what all parts share --------------------------------------------------------------------------------------------


def _groups(task: Task, pairs: int) -> list[Group]:
    """Validation pairs, about as many as asked for."""
    chosen = PAIR_SETS[task]
    return list(chosen.groups(round(pairs / chosen.share), "validation"))


def _setting(task: Task) -> Setting:
    """Of the preset, under one noise."""
    return dataclasses.replace(Setting.of("semantic" if task == "semantic" else "geometric"), ensemble=1)


def _pictures(groups: Sequence[Group]) -> list[Any]:
    return [picture for group in groups for picture in group.pictures]


def _document(groups: Sequence[Group], setting: Setting) -> dict[str, Any]:
    """What was measured on, and what needs no model beside; the constant shift is told the truth."""
    rivals = PixelRows(setting.size)
    found = [rivals.find(group) for group in groups]
    return {
        "setting": dataclasses.asdict(setting),
        "pairs": sum(len(group.cases) for group in groups),
        "pictures": len(_pictures(groups)),
        "counts": [
            sum(counts) for counts in _by_cluster([len(case.points) for g in groups for case in g.cases], groups)
        ],
        "rivals": {name: _hits([place for one in found for place in one[name]], groups) for name in rivals.names},
    }


def _hits(predicted: Sequence[Tensor], groups: Sequence[Group]) -> Hits:
    """Of the pairs' predictions, in the order of the groups."""
    score = Score()
    for case, places in zip((case for group in groups for case in group.cases), predicted, strict=True):
        score.add(places, case.truth, case.length)
    return {
        alpha: [sum(hits) for hits in _by_cluster([hits[i] for hits in score.hits], groups)]
        for i, alpha in enumerate(("0.1", "0.05"))
    }


def _by_cluster(values: Sequence[int], groups: Sequence[Group]) -> list[list[int]]:
    """Values of pairs that share a picture stand together: intervals draw them together."""
    clusters: dict[str, list[int]] = {}
    for name, value in zip((name for group in groups for name in group.clusters), values, strict=True):
        clusters.setdefault(name, []).append(value)
    return list(clusters.values())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
