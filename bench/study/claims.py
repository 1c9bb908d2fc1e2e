"""What the paper claims, and what the result files say of it: verdicts are computed, never written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditf.benchmarks.published import ABLATION
from ditf.benchmarks.synthetic import BEST

from .statistics import Interval, interval, mean_samples, pck_samples, slope_samples

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not measured"
FEW = 10
"""A layer that has more massive channels than this has not few."""
EVERY_IMAGE, MOST_TOKENS = 0.95, 0.9
HUNDRED = 100
FEWEST = 12
"""Clusters of pairs; fewer make intervals that are too narrow."""

_README = "DiTF's README, SPair-71k PCK@0.1 of FLUX.1-dev"
Numbers = Sequence[int] | np.ndarray
Results = Mapping[str, Mapping[str, Any]]
"""part -> its result file; parts that were not measured are not there."""


@dataclass(frozen=True)
class Claim:
    """One statement and its fate.

    Attributes:
        published: what the paper or its authors print, with the source.
        rule: when it holds.
        numbers: what was found, in one or more sentences.
    """

    title: str
    published: str
    rule: str
    verdict: str
    numbers: str


def claims(results: Results) -> list[Claim]:
    """All of them, in the paper's order; the last one is this project's own."""
    return [
        _few(results), _constant(results), _singled_out(results), _silenced(results), _modulation(results),
        _discard(results), _ensemble(results), _middle(results), _grows(results),
    ]  # fmt: skip


def verdict_of(found: Interval) -> str:
    """Whether a difference that ought to be positive is."""
    _, low, high = found
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def interval_of(values: Sequence[float | None]) -> Interval:
    """As a file has it: bounds are missing where there were too few pairs for them."""
    value, low, high = values
    return float(value or 0.0), -math.inf if low is None else low, math.inf if high is None else high


def points(found: Interval, unit: str = "points") -> str:
    """ "+1.0 points (+0.2 to +1.8)"."""
    value, low, high = found
    bounds = f"{low:+.1f} to {high:+.1f}" if math.isfinite(low) else "no interval"
    return f"{value:+.1f} {unit} ({bounds})"


# --- massive channels ------------------------------------------------------------------------------------------------


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
    found = f"{len(having)} of {len(layers)} blocks, channels {', '.join(map(str, names))}" if having else "No block"
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
        rank = f"; it lies above {100 * np.median(ranks):.0f}% of the channels' in the median block" if ranks else ""
        return verdict_of(found), (
            f"Below the mean in {lower} of {len(layers)} blocks; smaller by {2 ** found[0]:.2f} times on the geometric "
            f"mean ({2 ** found[1]:.2f} to {2 ** found[2]:.2f}, over blocks){rank}."
        )

    return _claim_of_channels(
        results,
        "AdaLN singles them out: it scales them down",
        'Massive activations are "localized by" AdaLN-zero (abstract, v1), "inherently linked to" it (v3); no number.',
        "Holds if |1 + scale| of the leading massive channel is below the mean of all channels: mean of the logarithm "
        "of their ratio over blocks, interval by resampling blocks.",
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


# --- accuracy --------------------------------------------------------------------------------------------------------


def _claim_of_difference(
    results: Results, title: str, published: str, rule: str, pairs: Sequence[tuple[str, str]]
) -> Claim:
    """The first pair of methods on the first task decides; all others are told."""
    part = results.get("rows")
    if part is None:
        return Claim(title, published, rule, MISSING, "")
    sentences, verdicts = [], []
    for task, found in part["tasks"].items():
        for one, other in pairs:
            difference = found["differences in pck@0.1"].get(f"{one} - {other}")
            if difference is None:
                continue
            verdict = UNDECIDED if _too_few(found["clusters"]) else verdict_of(interval_of(difference))
            verdicts.append(verdict)
            sentences.append(f"\n  - {task}, {one} - {other}: {points(interval_of(difference))}: {verdict}")
    if not verdicts:
        return Claim(title, published, rule, MISSING, "The result file has no such difference.")
    return Claim(title, published, rule, verdicts[0], "".join(sentences))


def _modulation(results: Results) -> Claim:
    return _claim_of_difference(
        results,
        "Modulation helps",
        f"{ABLATION['raw']} raw to {ABLATION['AdaLN']} with AdaLN ({_README}).",
        "Holds if AdaLN - raw in PCK@0.1 on the semantic pairs is above 0, paired bootstrap.",
        [("adaln", "raw"), ("adaln", "layernorm")],
    )


def _discard(results: Results) -> Claim:
    return _claim_of_difference(
        results,
        "Discarding what is left helps",
        f"{ABLATION['AdaLN']} to {ABLATION['AdaLN + discard']} ({_README}).",
        "Holds if (AdaLN with the top channel discarded) - AdaLN in PCK@0.1 on the semantic pairs is above 0.",
        [(BEST, "adaln")],
    )


def difference(hits: Numbers, other: Numbers, counts: Numbers) -> Interval:
    """Of two methods' PCK on the same pairs, in points."""
    return interval(pck_samples(hits, counts) - pck_samples(other, counts))


def _too_few(clusters: int) -> str:
    return "" if clusters >= FEWEST else f"{clusters} clusters of pairs are too few for an interval; expected {FEWEST}."


def targets(results: Results) -> list[tuple[str, str, str]]:
    """What was asked of the model beforehand: the target, what was found, whether it was reached."""
    rows = []
    for task, rival, asked in _TARGETS:
        text = f"{task}: {asked} points above {rival}"
        found = _chosen_minus(results, task, rival)
        if found is None:
            rows.append((text, "-", MISSING))
            continue
        name, difference = found
        reached = "reached" if difference[0] >= asked and difference[1] > 0 else "not reached"
        rows.append((text, f"{name}: {points(difference)}", reached))
    return rows


_TARGETS = (
    ("held-out-kinds", "the best pixel patches", 15),
    ("held-out-kinds", "the random network", 15),
    ("photographs", "the best pixel patches", 10),
)
_RIVAL = {"the best pixel patches": "pixel patches", "the random network": "random network"}


def _chosen_minus(results: Results, task: str, rival: str) -> tuple[str, Interval] | None:
    """The difference of the preset's own row and a rival, by name."""
    found = results.get("rows", {}).get("tasks", {}).get(task)
    if found is None:
        return None
    start = f"{found['setting']['row']} - {_RIVAL[rival]}"
    return next(
        (
            (name, interval_of(value))
            for name, value in found["differences in pck@0.1"].items()
            if name.startswith(start)
        ),
        None,
    )


def _ensemble(results: Results) -> Claim:
    title = "An ensemble of noises helps"
    published = "8 noises on SPair-71k in the released code, 1 on DAVIS; no sweep published."
    rule = "Holds if 8 noises - 1 noise in PCK@0.1 on validation pairs is above 0, noises of each image's own, AdaLN."
    part = results.get("ensemble")
    if part is None:
        return Claim(title, published, rule, MISSING, "")

    def hits(noise: str, size: int, variant: str = "adaln") -> list[int]:
        row = next(one for one in part["noises"][noise] if one["ensemble"] == size)
        return row["hits"][variant]["0.1"]

    if few := _too_few(len(part["counts"])):
        return Claim(title, published, rule, UNDECIDED, few)
    largest = max(part["sizes"])
    found = difference(hits("independent", largest), hits("independent", 1), part["counts"])
    raw = difference(hits("independent", largest, "raw"), hits("independent", 1, "raw"), part["counts"])
    shared = difference(hits("shared", largest), hits("independent", largest), part["counts"])
    text = (
        f"AdaLN, {largest} - 1 noises: {points(found)}; raw tokens: {points(raw)}. The same {largest} noises in both "
        f"images instead of their own: {points(shared)}."
    )
    return Claim(title, published, rule, verdict_of(found), text)


def _middle(results: Results) -> Claim:
    title = "Middle blocks are the best"
    published = "Block 28 of 57 (49% of the depth) in FLUX.1-dev (released code); no sweep published."
    rule = (
        "Holds if the best block of the middle third beats the best of the first and of the last third in PCK@0.1 with "
        "AdaLN at the timestep of the setting; each third's best is chosen on half of the validation pairs and "
        "compared on the other half. Does not hold if it loses to one of them."
    )
    part = results.get("grid")
    if part is None or "semantic" not in part["tasks"]:
        return Claim(title, published, rule, MISSING, "")
    task = part["tasks"]["semantic"]
    timestep = nearest_timestep(task)
    cells = {one["block"]: one["hits"]["adaln"]["0.1"] for one in task["cells"] if one["timestep"] == timestep}
    counts, depth = np.array(task["counts"]), max(cells, default=0) + 1
    if few := _too_few(len(counts)) or ("Fewer than 3 blocks." if depth < 3 else ""):
        return Claim(title, published, rule, UNDECIDED, few)
    hits = {block: np.array(of) for block, of in cells.items()}
    order = np.random.default_rng(0).permutation(len(counts))
    here, there = order[::2], order[1::2]  # where each third's best is chosen, and where it is compared
    chosen: list[int] = []
    for third in range(3):
        blocks = [block for block in cells if min(2, 3 * block // depth) == third]
        chosen.append(max(blocks, key=lambda block: hits[block][here].sum()))
    others = {
        name: difference(hits[chosen[1]][there], hits[chosen[i]][there], counts[there])
        for name, i in (("first", 0), ("last", 2))
    }
    verdicts = [verdict_of(one) for one in others.values()]
    verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNDECIDED
    best = max(cells, key=lambda block: sum(cells[block]))
    told = "; ".join(
        f"block {chosen[1]} - block {chosen[i]} ({name} third): {points(others[name])}"
        for name, i in (("first", 0), ("last", 2))
    )
    return Claim(
        title, published, rule, verdict, f"Timestep {timestep:g}, blocks 0 to {depth - 1}: {told}. Best: block {best}."
    )


def nearest_timestep(task: Mapping[str, Any]) -> float:
    """The grid's timestep nearest to that of the setting."""
    return min(task["timesteps"], key=lambda timestep: abs(timestep - task["setting"]["timestep"]))


# --- training --------------------------------------------------------------------------------------------------------


def gains_of(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(n, 3) log2 of images, log2 of the top channel's ratio, and AdaLN - raw in points, where a curve has all."""
    rows = [
        (math.log2(images), math.log2(ratio), modulated - raw)
        for run in runs
        for images, ratio, raw, modulated in zip(
            *(run["curve"][name] for name in ("images", "ratio", "raw", "adaln")), strict=True
        )
        if images and ratio and raw is not None and modulated is not None
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def _grows(results: Results) -> Claim:
    title = "AdaLN's gain grows with the massive channel"
    published = "No such curve is published; this is the mechanism the paper implies."
    rule = (
        "Holds if AdaLN - raw in PCK@0.1 rises with the logarithm of the top channel's ratio at an equal number of "
        "images, over the points of all training curves: slope between what a line over log images leaves of both, "
        "interval by resampling points. Points of one run are not independent, so the interval is too narrow."
    )
    runs = _distinct([run for part in ("growth", "variants") if part in results for run in results[part]["runs"]])
    found = gains_of(runs)
    if len(found) < FEWEST:
        text = f"{len(found)} points are too few; expected {FEWEST}." if runs else ""
        return Claim(title, published, rule, UNDECIDED if runs else MISSING, text)
    images, ratio, gain = found.T
    if not np.ptp(ratio) or not np.ptp(images):
        return Claim(title, published, rule, UNDECIDED, "All points have the same ratio, or number of images.")
    plain = interval(slope_samples(ratio, gain)[:, 1])
    left = _without_line(images, ratio), _without_line(images, gain)
    if np.abs(left[0]).max() < 1e-6:
        return Claim(title, published, rule, UNDECIDED, "The ratio follows the number of images exactly.")
    equal = interval(slope_samples(*left)[:, 1])
    text = (
        f"Per doubling of the ratio {points(equal)} at an equal number of images, {points(plain)} without regard to "
        f"it, over {len(found)} points of {len(runs)} runs; ratios {2 ** ratio.min():.1f} to {2 ** ratio.max():.1f}, "
        f"gains {gain.min():+.1f} to {gain.max():+.1f} points."
    )
    return Claim(title, published, rule, verdict_of(equal), text)


def _distinct(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A run that stands in two parts counts once."""
    kept: list[Mapping[str, Any]] = []
    for run in runs:
        if all(run["curve"] != other["curve"] for other in kept):
            kept.append(run)
    return kept


def _without_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the least-squares line over x leaves of y."""
    intercept, slope = slope_samples(x, y)[0]
    return y - intercept - slope * x
