"""The paper's claims about massive channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .statistics import interval, mean_samples
from .verdicts import FAILS, HOLDS, MISSING, UNDECIDED, Claim, Results, verdict_of

FEW = 10
"""A layer that has more massive channels than this has not few."""
EVERY_IMAGE, MOST_TOKENS = 0.95, 0.9
HUNDRED = 100
LOWEST = 0.1
"""Share of channels with a smaller scale, up to which one is singled out."""


def claims_of_channels(results: Results) -> list[Claim]:
    """That there are few, that they are constant, that AdaLN singles them out, that it silences them."""
    return [_few(results), _constant(results), _singled_out(results), _silenced(results)]


def layers_at_setting(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Blocks after the first at the timestep of the setting; block 0 sees the projected input, not yet the stream."""
    return [one for one in part["layers"] if one["timestep"] == part["setting"]["timestep"] and one["block"] > 0]


def _with_massive(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [layer for layer in layers_at_setting(part) if layer["massive"]]


def _claim_of_channels(
    results: Results, title: str, published: str, rule: str, judge: Callable[[Mapping[str, Any]], tuple[str, str]]
) -> Claim:
    """One that is about massive channels: undecided where the model has none."""
    part = results.get("massive")
    if part is None:
        return Claim(title, published, rule, MISSING, "")
    if not _with_massive(part):
        text = f"No block has a massive channel; {_largest(part)}."
        return Claim(title, published, rule, UNDECIDED, text)
    return Claim(title, published, rule, *judge(part))


def _few(results: Results) -> Claim:
    title = "A few channels are massive"
    published = (
        "Channels 154 and 1446 of 3072 in FLUX.1-dev (released code); more than 100 times the rest (third-party notes)."
    )
    rule = (
        f"Holds if half of the blocks after the first have 1 to {FEW} channels that are 10 times the median, among the "
        "10 largest in 95% of the pictures and of one sign in 90% of the tokens; does not hold if no block has."
    )
    part = results.get("massive")
    if part is None:
        return Claim(title, published, rule, MISSING, "")
    layers = layers_at_setting(part)
    having = [layer for layer in layers if 1 <= len(layer["massive"]) <= FEW]
    verdict = HOLDS if 2 * len(having) >= len(layers) and having else UNDECIDED if having else FAILS
    names = sorted({channel for layer in having for channel in layer["massive"]})
    found = f"{len(having)} of {len(layers)} blocks have 1 to {FEW}"
    if names:
        found += f": channels {', '.join(map(str, names))}"
    return Claim(title, published, rule, verdict, f"{found}; {_largest(part)} (of {layers[0]['width']} channels).")


def _largest(part: Mapping[str, Any]) -> str:
    layer = max(layers_at_setting(part), key=lambda one: one["top"][0]["ratio"])
    top = layer["top"][0]
    reach = "above" if top["ratio"] > HUNDRED else "below"
    return (
        f"the largest is channel {top['channel']} in block {layer['block']}, {top['ratio']:.1f} times the median, "
        f"{reach} {HUNDRED} times"
    )


def _constant(results: Results) -> Claim:
    def judge(part: Mapping[str, Any]) -> tuple[str, str]:
        layers = _with_massive(part)
        passing = [
            layer
            for layer in layers
            if layer["top"][0]["leads_images"] >= EVERY_IMAGE and layer["top"][0]["leads_tokens"] >= MOST_TOKENS
        ]
        verdict = HOLDS if len(passing) == len(layers) else UNDECIDED if passing else FAILS
        images = min(layer["top"][0]["leads_images"] for layer in layers)
        tokens = min(layer["top"][0]["leads_tokens"] for layer in layers)
        leading = [layer["top"][0]["channel"] for layer in layers]
        common = max(sorted(set(leading)), key=leading.count)
        return verdict, (
            f"{len(passing)} of {len(layers)} blocks that have massive channels; in the least constant one the leading "
            f"channel leads {100 * images:.0f}% of {part['pictures']} pictures, and in the least uniform one "
            f"{100 * tokens:.0f}% of the tokens. Channel {common} leads in {leading.count(common)} of them."
        )

    return _claim_of_channels(
        results,
        "They are the same in all images and all tokens",
        "All image tokens, very few fixed dimensions (paper, as told by third-party notes); the code names them once.",
        f"Holds if in every block that has massive channels the leading one is the largest channel of "
        f"{100 * EVERY_IMAGE:.0f}% of the pictures and of {100 * MOST_TOKENS:.0f}% of the tokens.",
        judge,
    )


def _singled_out(results: Results) -> Claim:
    def judge(part: Mapping[str, Any]) -> tuple[str, str]:
        layers = [one for one in _with_massive(part) if one["top"][0]["gain"] is not None and one["mean_gain"]]
        if not layers:
            return UNDECIDED, "The blocks' scale is not known."
        halvings = [-math.log2(max(one["top"][0]["gain"], 1e-6) / one["mean_gain"]) for one in layers]
        found = interval(mean_samples(halvings))
        lower = sum(value > 0 for value in halvings)
        ranks = [one["times the median"]["gain_rank"] for one in layers if "times the median" in one]
        rank = float(np.median(ranks)) if ranks else 1.0
        scaled = verdict_of(found)
        verdict = UNDECIDED if scaled == HOLDS and rank > LOWEST else scaled
        return verdict, (
            f"Below the mean in {lower} of {len(layers)} blocks; smaller by {2 ** found[0]:.2f} times on the geometric "
            f"mean ({2 ** found[1]:.2f} to {2 ** found[2]:.2f}, over blocks): {scaled}. In the median block "
            f"{100 * rank:.0f}% of the channels have a smaller one."
        )

    return _claim_of_channels(
        results,
        "AdaLN singles them out: it scales them down",
        'Massive activations are "localized by" AdaLN-zero (abstract, v1), "inherently linked to" it (v3); no number.',
        "Holds if |1 + scale| of the leading massive channel is below the mean of all channels: mean of the logarithm "
        "of their ratio over blocks, interval by resampling blocks; and if in the median block no more than a tenth of "
        "the channels have a smaller one. Scaled down like many others it is undecided.",
        judge,
    )


def _silenced(results: Results) -> Claim:
    def judge(part: Mapping[str, Any]) -> tuple[str, str]:
        block = part["setting"]["block"]
        layer = next((one for one in _with_massive(part) if one["block"] == block), _with_massive(part)[-1])
        times = layer["times the median"]
        halvings = np.log2(np.array(times["layernorm"]) / np.maximum(np.array(times["adaln"]), 1e-6))
        found = interval(mean_samples(halvings.tolist()))
        raw, normed, modulated = (float(np.mean(times[kind])) for kind in ("raw", "layernorm", "adaln"))
        others = [
            float(np.mean(one["times the median"]["adaln"]) / np.mean(one["times the median"]["layernorm"]))
            for one in _with_massive(part)
        ]
        return verdict_of(found), (
            f"Block {layer['block']}: {raw:.1f} times the median raw, {normed:.1f} after LayerNorm, {modulated:.1f} "
            f"after AdaLN; smaller than after LayerNorm by {2 ** found[0]:.2f} times ({2 ** found[1]:.2f} to "
            f"{2 ** found[2]:.2f}, over pictures). AdaLN makes it smaller in {sum(o < 1 for o in others)} of "
            f"{len(others)} blocks."
        )

    return _claim_of_channels(
        results,
        "After AdaLN they stand out less",
        "Post-AdaLN features keep weak massive activations only (section 4.3, as quoted by a third-party audit).",
        "Holds if at the block of the setting (else the last block that has any) the leading channel is fewer times "
        "the median channel after AdaLN than after LayerNorm alone, over pictures.",
        judge,
    )
