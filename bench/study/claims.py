"""What the paper claims, and what the result files say of it: verdicts are computed, never written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditf.benchmarks.published import ABLATION
from ditf.benchmarks.synthetic import BEST

from .channels import claims_of_channels
from .statistics import Interval, interval, slope_samples
from .verdicts import (
    FAILS,
    FEWEST,
    HOLDS,
    MISSING,
    UNDECIDED,
    Claim,
    Results,
    difference,
    interval_of,
    nearest_timestep,
    points,
    too_few,
    verdict_of,
)

_README = "DiTF's README, SPair-71k PCK@0.1 of FLUX.1-dev"


def claims(results: Results) -> list[Claim]:
    """All of them, in the paper's order; the last one is this project's own."""
    return [
        *claims_of_channels(results), _modulation(results), _discard(results), _ensemble(results), _middle(results),
        _grows(results),
    ]  # fmt: skip


# --- accuracy --------------------------------------------------------------------------------------------------------


def _claim_of_difference(
    results: Results, title: str, published: str, rule: str, pairs: Sequence[tuple[str, str]]
) -> Claim:
    """The first pair of methods on the first task decides; all others are told."""
    part = results.get("rows")
    if part is None:
        return Claim(title, published, rule, MISSING, "")
    sentences, verdicts, told = [], [], {HOLDS: [], FAILS: [], UNDECIDED: []}
    for task, found in part["tasks"].items():
        for one, other in pairs:
            difference = found["differences in pck@0.1"].get(f"{one} - {other}")
            if difference is None:
                continue
            verdict = UNDECIDED if too_few(found["clusters"]) else verdict_of(interval_of(difference))
            verdicts.append(verdict)
            if (one, other) == pairs[0]:
                told[verdict].append(task)
            sentences.append(f"\n  - {task}, {one} - {other}: {points(interval_of(difference))}: {verdict}")
    if not verdicts:
        return Claim(title, published, rule, MISSING, "The result file has no such difference.")
    one, other = pairs[0]
    where = {verdict: ", ".join(tasks) or "no set" for verdict, tasks in told.items()}
    text = f"{one} - {other} is above 0 on {where[HOLDS]}, below 0 on {where[FAILS]}."
    return Claim(title, published, rule, verdicts[0], text + "".join(sentences))


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

    if few := too_few(len(part["counts"])):
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
    if few := too_few(len(counts)) or ("Fewer than 3 blocks." if depth < 3 else ""):
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
