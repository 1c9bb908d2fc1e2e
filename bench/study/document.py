"""The report as Markdown, from result files alone: what is missing is said to be missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ditf.benchmarks.published import ABLATION, SPAIR
from ditf.benchmarks.synthetic import BEST

from .claims import claims, targets
from .files import PARTS
from .growth import PLATEAU, joined, outlook, variant_rows
from .statistics import Interval, interval, pck_samples
from .verdicts import (
    FAILS,
    FEWEST,
    HOLDS,
    Claim,
    Results,
    difference,
    interval_of,
    nearest_timestep,
    points,
    verdict_of,
)  # fmt: skip

PICTURES = {
    "blocks.png": ("grid", "PCK@0.1 over blocks"),
    "timesteps.png": ("grid", "PCK@0.1 over timesteps"),
    "ensemble.png": ("ensemble", "PCK@0.1 over the number of noises"),
    "massive.png": ("massive", "The leading channel of every block, in units of the median channel"),
    "growth.png": ("growth", "PCK@0.1 and the leading channel over images seen in training"),
    "variants.png": ("variants", "The leading channel and the gain of AdaLN in short training runs"),
}
"""File -> the part it is drawn from, and what it shows."""
VARIANTS = ("raw", "layernorm", "adaln", BEST)
_HOW = {
    "rows": "measure --parts rows",
    "grid": "measure --parts grid",
    "ensemble": "measure --parts ensemble",
    "massive": "measure --parts massive",
    "growth": "measure --growth FOLDER",
    "variants": "measure --variants NAME=FOLDER",
}
_TITLE = {
    "rows": "Accuracy",
    "grid": "Blocks and timesteps",
    "ensemble": "Ensemble",
    "massive": "Massive channels",
    "growth": "Growth",
    "variants": "Variants of the training",
}


def document(results: Results, folder: str = "method") -> str:
    """The whole report; equal results give equal text. ``folder`` holds the pictures."""
    parts = [_head(results), _claims(claims(results))]
    sections = {
        "rows": _rows, "grid": _grid, "ensemble": _ensemble, "massive": _massive, "growth": _growth,
        "variants": _variants,
    }  # fmt: skip
    for part, write in sections.items():
        parts.append(f"## {_TITLE[part]}")
        parts.append(write(results[part]) if part in results else _missing(part))
        if part in results:
            parts += [f"![{about}]({folder}/{name})" for name, (of, about) in PICTURES.items() if of == part]
    parts += ["## What others print", _published(), "## What this was measured with", _cards(results)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    missing = [part for part in PARTS if part not in results]
    text = (
        "# The method, judged on `ditf-tiny`\n\n"
        "DiTF ([arXiv 2505.18584](https://arxiv.org/abs/2505.18584)) says why the features of diffusion transformers "
        "match badly, massive activations, and what to do about it: AdaLN and a discard of channels. Here is what of "
        "that is true of a transformer of a few million parameters, trained on procedural pictures: small enough to "
        "be measured whole, and nothing like FLUX. What holds here may not hold there, and the other way round.\n\n"
        "Written by `make report` from the files in `bench/results/method/`; no number and no verdict below is typed "
        "by hand. Accuracies are PCK in percent: the share of points found within 0.1 or 0.05 of a reference length. "
        "Brackets hold 95% intervals by bootstrap over pairs, pairs that share a picture drawn together; differences "
        "are paired. Beside every accuracy stand the rivals that need no model: the same place, the best constant "
        "shift (which is told the truth), patches of pixels minus their mean."
    )
    text += f"\n\n{_model(results)}" if _models(results) else ""
    if missing:
        text += f"\n\nNot measured: {', '.join(missing)}."
    return text


def _models(results: Results) -> dict[str, list[str]]:
    """Weights by hash -> the parts that were measured on them."""
    found: dict[str, list[str]] = {}
    for part, one in results.items():
        model = one["card"].get("model")
        if isinstance(model, Mapping):
            found.setdefault(str(model.get("sha256", "unknown"))[:12], []).append(part)
    return found


def _model(results: Results) -> str:
    found = _models(results)
    if len(found) > 1:
        told = "; ".join(f"{', '.join(parts)} on {name}" for name, parts in found.items())
        return f"**The parts were measured on different weights**, by SHA-256: {told}. They do not belong together."
    ((digest, parts),) = found.items()
    model = results[parts[0]]["card"]["model"]
    shape = (
        f", {model['double_blocks']} + {model['single_blocks']} blocks of width {model['width']}"
        if "width" in model
        else ""
    )
    bundled = "; [its card](../ditf/tiny/CARD.md)" if model["name"] == "ditf-tiny" else ""
    return f"All parts but the training curves are of `{model['name']}`{shape}, SHA-256 {digest}...{bundled}."


def _missing(part: str) -> str:
    return f"Not measured. `python bench/method.py {_HOW[part]}` measures it."


# --- claims ----------------------------------------------------------------------------------------------------------


def _claims(found: Sequence[Claim]) -> str:
    summary = table(
        ("claim", "here", ""),
        ((one.title, f"**{one.verdict}**", one.numbers.split("\n")[0].split("; ")[0].rstrip(".")) for one in found),
    )
    told = "\n\n".join(
        f"### {number}. {one.title}: {one.verdict}\n\n"
        f"- The paper: {one.published}\n- Here: {one.numbers or 'not measured.'}\n- Rule: {one.rule}"
        for number, one in enumerate(found, 1)
    )
    return (
        "## Claims\n\nA verdict follows from its rule: a difference whose interval lies above 0 holds, one whose "
        f"interval lies below 0 does not hold, all else is undecided.\n\n{summary}\n\n{told}"
    )


# --- accuracy --------------------------------------------------------------------------------------------------------


def _rows(part: Mapping[str, Any]) -> str:
    blocks = []
    for task, found in part["tasks"].items():
        rows = (
            (name, _bracketed(row["pck@0.1"]), _bracketed(row["pck@0.05"]), _median(row["median error"]))
            for name, row in found["rows"].items()
        )
        blocks.append(
            f"### {_title(task)}\n\n{found['about'].rstrip('.')}. {found['pairs']} pairs in "
            f"{_count(found['clusters'], 'cluster')} that share pictures, {found['points']} points. "
            f"{_setting(found['setting'])}.\n\n" + table(("method", "PCK@0.1", "PCK@0.05", "median error"), rows)
        )
        differences = (
            (name, points(interval_of(values)), _above(interval_of(values), found["clusters"]))
            for name, values in found["differences in pck@0.1"].items()
        )
        blocks.append(table(("difference in PCK@0.1", "points", "above 0"), differences))
    asked = table(("asked beforehand, in PCK@0.1", "found", ""), targets({"rows": part}))
    blocks.append(f"### How far it got\n\nReached: by so many points, and an interval above 0.\n\n{asked}")
    return "\n\n".join(blocks)


def _above(difference: Interval, clusters: int) -> str:
    if clusters < FEWEST:
        return "too few pairs"
    return {HOLDS: "yes", FAILS: "no, below 0"}.get(verdict_of(difference), "undecided")


def _grid(part: Mapping[str, Any]) -> str:
    blocks = [
        "On validation pairs, which settings are chosen on: good for comparing blocks, too kind to their best one. "
        "One noise a picture.",
    ]
    for task, found in part["tasks"].items():
        counts = found["counts"]
        at = {(cell["block"], cell["timestep"]): cell["hits"] for cell in found["cells"]}
        discarded = {(cell["block"], cell["timestep"]): cell["discarded"] for cell in found["cells"]}
        depth, timesteps = max(block for block, _ in at) + 1, found["timesteps"]
        best = max(at, key=lambda key: sum(at[key]["adaln"]["0.1"]))
        value = interval(pck_samples(at[best]["adaln"]["0.1"], counts))
        blocks.append(
            f"### {_title(task)}\n\n{found['pairs']} pairs of {found['pictures']} pictures in "
            f"{_count(len(counts), 'cluster')}; {found['setting']['size']} px for the model. "
            f"Best with AdaLN: block {best[0]}, timestep "
            f"{best[1]:g}, {_bracketed(value)}; the preset takes block {found['setting']['block']}, timestep "
            f"{found['setting']['timestep']:g}. Rivals on the same pairs: {_rivals(found)}.\n\n"
            "PCK@0.1 with AdaLN, and in brackets AdaLN - raw; bold where the interval of that difference excludes 0, "
            f"as it would by chance in {0.05 * len(at):.0f} of {len(at)} cells:"
        )
        blocks.append(
            table(
                ("block", *(f"t = {t:g}" for t in timesteps)),
                ([str(b), *(_gain_cell(at[b, t], counts) for t in timesteps)] for b in range(depth)),
            )
        )
        timestep = nearest_timestep(found)
        blocks.append(f"All variants at timestep {timestep:g}:")
        blocks.append(
            table(
                ("block", *VARIANTS, "discarded channel"),
                (
                    [
                        str(b),
                        *(_bracketed(interval(pck_samples(at[b, timestep][v]["0.1"], counts))) for v in VARIANTS),
                        str(discarded[b, timestep]),
                    ]
                    for b in range(depth)
                ),
            )
        )
    return "\n\n".join(blocks)


def _gain_cell(hits: Mapping[str, Mapping[str, Sequence[int]]], counts: Sequence[int]) -> str:
    gain = difference(hits["adaln"]["0.1"], hits["raw"]["0.1"], counts)
    value = float(pck_samples(hits["adaln"]["0.1"], counts)[0])
    told = f"({gain[0]:+.1f})"
    return f"{value:.1f} {told if gain[1] <= 0 <= gain[2] else f'**{told}**'}"


def _ensemble(part: Mapping[str, Any]) -> str:
    rows = []
    for noise, found in part["noises"].items():
        for row in found:
            values = (_bracketed(interval(pck_samples(row["hits"][name]["0.1"], part["counts"]))) for name in VARIANTS)
            rows.append([noise, str(row["ensemble"]), *values])
    return "\n\n".join(
        [
            f"{part['pairs']} validation pairs of parts across instances. {_setting(part['setting'], ensemble=False)}; "
            "tokens averaged over noises before norm and modulation. Independent: each picture has noises of its own, "
            f"as in the extractor's default; shared: all have the same ones. Rivals: {_rivals(part)}.",
            table(("noise", "noises", *VARIANTS), rows),
        ]
    )


# --- channels --------------------------------------------------------------------------------------------------------


def _massive(part: Mapping[str, Any]) -> str:
    definition = part["definition"]
    layers = [one for one in part["layers"] if one["timestep"] == part["setting"]["timestep"]]
    rows = []
    for layer in layers:
        first, second = layer["top"][:2]
        times = layer.get("times the median", {})
        rows.append(
            [
                str(layer["block"]), ", ".join(map(str, layer["massive"])) or "none", str(first["channel"]),
                f"{first['ratio']:.1f}", f"{second['ratio']:.1f}", _percent(first["leads_images"]),
                _percent(first["leads_tokens"]), _percent(first["one_sign"]), _percent(first["energy"]),
                _gain_pair(first["gain"], layer["mean_gain"]),
                _percent(times["gain_rank"]) if "gain_rank" in times else "-",
                _mean_of(times, "layernorm"), _mean_of(times, "adaln"),
            ]
        )  # fmt: skip
    return "\n\n".join(
        [
            f"{part['pictures']} validation pictures at {part['setting']['size']} px, timestep "
            f"{part['setting']['timestep']:g}, tokens entering each block. A channel is massive if its mean |x| is "
            f"{definition['ratio']:g} times the median channel's, it is among the {definition['top']} largest in "
            f"{_percent(definition['images'])} of the pictures and has one sign in {_percent(definition['one_sign'])} "
            "of the tokens.",
            table(
                (
                    "block", "massive", "leading channel", "times the median", "second", "leads pictures",
                    "leads tokens", "one sign", "energy", "AdaLN scale, its / mean", "scale above that of",
                    "after LayerNorm", "after AdaLN",
                ),
                rows,
            ),
            '"AdaLN scale" is |1 + scale| of the leading channel and the mean over channels; "after" is how many times '
            "the median channel it then is.",
        ]
    )  # fmt: skip


def _gain_pair(gain: float | None, mean: float | None) -> str:
    return "-" if gain is None or mean is None else f"{gain:.2f} / {mean:.2f}"


def _mean_of(times: Mapping[str, Sequence[float]], kind: str) -> str:
    return f"{sum(times[kind]) / len(times[kind]):.1f}" if kind in times else "-"


# --- training --------------------------------------------------------------------------------------------------------


def _growth(part: Mapping[str, Any]) -> str:
    curve = joined(part["runs"])
    shown = _thinned(len(curve["images"]), 16)
    rows = ([_curve_cell(name, curve[name][i]) for name in _CURVE] for i in shown)
    return "\n\n".join(
        [
            f"Validation pairs at a fixed setting that is no tuned one; {_count(len(curve['images']), 'point')}"
            + (f", of {len(part['runs'])} runs after each other" if len(part["runs"]) > 1 else "")
            + ". Ratio: the leading channel against the median at five eighths of the depth. Rivals on the same pairs: "
            + f"{_levels(part['rivals'])}. How the runs were made, and what was tried: [training](training.md).",
            table(tuple(_CURVE.values()), rows),
            outlook(curve),
        ]
    )


_CURVE = {
    "images": "images", "loss": "loss", "channel": "leading channel", "ratio": "ratio", "raw": "raw",
    "layernorm": "layernorm", "adaln": "adaln", "adaln_discard": "adaln + discard",
}  # fmt: skip


def _curve_cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return {"images": f"{value:,.0f}", "loss": f"{value:.4f}", "channel": f"{value:.0f}"}.get(name, f"{value:.1f}")


def _thinned(count: int, most: int) -> list[int]:
    """Indices, at most so many, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _variants(part: Mapping[str, Any]) -> str:
    head = ("run", "differs in", "images", f"ratio reaches {PLATEAU:g} at", "ratio at the end", "raw", "adaln", "gain")
    return "\n\n".join(
        [
            "Short runs that differ in one thing. Gain: AdaLN - raw in PCK@0.1, mean over the last third of the curve; "
            "intervals by resampling its points, which are not independent. Rivals on the same pairs: "
            f"{_levels(part['rivals'])}.",
            table(head, variant_rows(part["runs"])),
        ]
    )


# --- the rest --------------------------------------------------------------------------------------------------------


def _published() -> str:
    ablation = [[f"FLUX.1-dev, {name}", f"{value:g}", "DiTF, README"] for name, value in ABLATION.items()]
    rows = [[row.method, f"{row.value:g}", row.source] for row in SPAIR if row.method == "DiTF + DINOv2"]
    return (
        "SPair-71k, PCK@0.1, the mean over categories as far as that is known. Other pictures, another model: not "
        "comparable with anything above but in sign.\n\n" + table(("method", "PCK@0.1", "source"), [*ablation, *rows])
    )


def _cards(results: Results) -> str:
    blocks = []
    for part in PARTS:
        if part in results:
            blocks.append(f"`{part}.json`: `{json.dumps(results[part]['card'], sort_keys=True)}`")
    return "\n\n".join(blocks) if blocks else "Nothing."


def _rivals(found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    return _levels({name: float(pck_samples(hits["0.1"], counts)[0]) for name, hits in found["rivals"].items()})


def _levels(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items())


def _setting(setting: Mapping[str, Any], *, ensemble: bool = True) -> str:
    noises = f", {setting['ensemble']} noises" if ensemble else ""
    return f"Block {setting['block']}, timestep {setting['timestep']:g}{noises}, {setting['size']} px for the model"


def _title(task: str) -> str:
    return task.capitalize().replace("-", " ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _median(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _bracketed(values: Sequence[float | None]) -> str:
    value, low, high = values
    return f"{value:.1f} ({low:.1f} to {high:.1f})" if low is not None and high is not None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
