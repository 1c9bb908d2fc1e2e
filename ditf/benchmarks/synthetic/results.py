"""What was found, as one document and its tables. Equal runs give equal bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...types import write_atomically
from ..results import FORMAT, to_json
from ..scores import AGGREGATES
from .evaluation import Evaluation, SetResult
from .summary import ALPHAS, DRAWS, HEADLINE, PairRecord

__all__ = ["interval_text", "save_synthetic", "synthetic_document", "to_markdown"]

_VERSION = 1


def synthetic_document(evaluation: Evaluation, *, card: Mapping[str, Any], pairs: bool = True) -> dict[str, Any]:
    """Everything a run found, as plain JSON values.

    Args:
        card: what was run: model, settings, versions.
        pairs: also every pair with its errors.
    """
    records = [(one.of.name, record) for one in evaluation.sets for record in one.records]
    rows = [name for name in _rows(evaluation) if all(name in record.errors for _, record in records)]
    document = {
        FORMAT: _VERSION,
        "benchmark": "synthetic",
        "split": evaluation.plan.name,
        "data": {
            "title": "Synthetic pairs",
            "source": "drawn by ditf from fixed seeds; photographs that lie in scikit-image's package",
            "licence": "none needed; scikit-image names those of its photographs",
        },
        "protocol": {
            "name": "synthetic",
            "alphas": list(ALPHAS),
            "operator": "<=",
            "length": "larger side of the target's box for parts of instances, of the picture for one thing seen twice",
            "headline": HEADLINE,
            "intervals": f"95%, {DRAWS} draws of clusters (pairs that share pictures) within their category; of "
            "photographs, of their copies: the photographs themselves stay",
        },
        "card": dict(card),
        "counts": {
            "pairs": len(records),
            "points": sum(record.points for _, record in records),
            "images": len({name for _, record in records for name in (record.source, record.target)}),
            "clips": evaluation.clips["clips"] if evaluation.clips else 0,
        },
        "problems": {},
        "complete": True,
        "averages": AGGREGATES,
        "methods": [{"name": name} for name in rows],
        "sets": {one.of.name: _set(one) for one in evaluation.sets},
        "temporal": evaluation.clips,
    }
    return document | ({"pairs": [_pair(name, record) for name, record in records]} if pairs else {})


def _rows(evaluation: Evaluation) -> list[str]:
    """Those of the model's own setting first."""
    chosen = [one.chosen for one in evaluation.sets]
    every = [name for one in evaluation.sets for name in one.values["rows"]]
    return list(dict.fromkeys([*chosen, *every]))


def _set(one: SetResult) -> dict[str, Any]:
    records = one.records
    return {
        "about": one.of.about,
        "task": one.of.task,
        "config": one.config,
        "discard": {"channels": list(one.discard[0]), "from": one.discard[1]},
        "chosen": one.chosen,
        "best_patches": one.patches,
        "pairs": len(records),
        "points": sum(record.points for record in records),
        "images": len({name for record in records for name in (record.source, record.target)}),
        "clusters": len({(record.category, record.cluster) for record in records}),
        "categories": {
            name: sum(record.category == name for record in records)
            for name in sorted({record.category for record in records})
        },
        **one.values,
    }


def _pair(name: str, record: PairRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "set": name,
        "category": f"{name}: {record.category}",
        "cluster": record.cluster,
        "source": record.source,
        "target": record.target,
        "points": record.points,
        "length": round(record.length, 6),
        "correct": {
            row: {f"{alpha:g}": int((errors <= alpha).sum()) for alpha in ALPHAS}
            for row, errors in record.errors.items()
        },
        "errors": {
            row: [round(float(e) * record.length, 3) if math.isfinite(e) else None for e in errors]
            for row, errors in record.errors.items()
        },
    }


# --- files -----------------------------------------------------------------------------------------------------------


def save_synthetic(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write OUT (JSON), and beside it .summary.csv, .pairs.csv and .md; returns their paths.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    stem = out.with_suffix("")
    files = {
        stem.with_name(stem.name + ".summary.csv"): _summary_csv(document),
        stem.with_name(stem.name + ".pairs.csv"): _pairs_csv(document),
        stem.with_name(stem.name + ".md"): to_markdown(document),
        out: to_json(document),  # last: where it is, all of them are
    }
    for path, content in files.items():
        write_atomically(path, content.encode())
    return [out, *(path for path in files if path != out)]


def _summary_csv(document: Mapping[str, Any]) -> str:
    """One line per set, row or difference, measure and average."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "row", "minus", "measure", "average", "value", "lower", "upper"])
    for name, one in document["sets"].items():
        for row, minus, found in _rows_and_differences(one):
            for alpha, averages in found["pck"].items():
                for kind, values in averages.items():
                    writer.writerow([name, row, minus, f"PCK@{alpha}", kind, *values])
    if document["temporal"]:
        for row, minus, found in _rows_and_differences(document["temporal"]):
            for key in document["temporal"]["measures"]:
                if found[key] is not None:
                    writer.writerow(["temporal", row, minus, key, "clips", *found[key]])
    return text.getvalue()


def _rows_and_differences(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    rows = [(name, "", values) for name, values in found["rows"].items()]
    return rows + [(one["first"], one["second"], one) for one in found["differences"]]


def _pairs_csv(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    alphas = [f"{alpha:g}" for alpha in ALPHAS]
    writer.writerow(["set", "pair", "category", "method", "points", *(f"correct@{a}" for a in alphas), "median error"])
    for pair in document["pairs"]:
        for row, correct in pair["correct"].items():
            errors = [math.inf if e is None else e for e in pair["errors"][row]]
            median = float(np.median(errors))
            values = [*(correct[a] for a in alphas), round(median, 3) if math.isfinite(median) else ""]
            category = pair["category"].split(": ", 1)[1]
            writer.writerow([pair["set"], pair["name"], category, row, pair["points"], *values])
    return text.getvalue()


def to_markdown(document: Mapping[str, Any]) -> str:
    """Tables for people, a section per set. Also of a document without its pairs."""
    counts = document["counts"]
    lines = [
        f"### Synthetic pairs, {document['split']}",
        "",
        f"{counts['pairs']} pairs, {counts['points']} points, {counts['images']} images, {counts['clips']} clips. PCK "
        f"in percent ({HEADLINE.replace('_', ' ')} with its interval), intervals: {document['protocol']['intervals']}.",
    ]
    for name, one in document["sets"].items():
        lines += ["", f"#### {name}", "", *_set_lines(one)]
    if document["temporal"]:
        lines += ["", "#### temporal", "", *_clip_lines(document["temporal"])]
    for what, why in document["card"].get("unavailable", {}).items():
        lines += ["", f"Not available: {what} ({why})."]
    return "\n".join(lines) + "\n"


def _set_lines(one: Mapping[str, Any]) -> list[str]:
    others = [kind for kind in AGGREGATES if kind != HEADLINE]
    rows = [
        [
            _marked(name, one["chosen"]),
            *(interval_text(row["pck"][f"{alpha:g}"][HEADLINE]) for alpha in ALPHAS),
            *(f"{row['pck'][f'{ALPHAS[0]:g}'][kind][0]:.1f}" for kind in others),
            "" if row["median_error"] is None else f"{row['median_error']:.3f}",
        ]
        for name, row in one["rows"].items()
    ]
    headings = ["method", *(f"PCK@{a:g}" for a in ALPHAS), *(f"@{ALPHAS[0]:g} {k.replace('_', ' ')}" for k in others)]
    differences = [
        [f"{d['first']} - {d['second']}", *(interval_text(d["pck"][f"{a:g}"][HEADLINE], "+") for a in ALPHAS)]
        for d in one["differences"]
    ]
    return [
        f"{one['about']} {one['pairs']} pairs of {one['images']} images, {one['points']} points, {one['clusters']} "
        f"clusters. {_setting(one['config'])}; discarded: {_channels(one['discard']['channels'])}, "
        f"{one['discard']['from']}.",
        "",
        *_table([*headings, "median error"], rows),
        "",
        *_table(["difference", *(f"PCK@{a:g}" for a in ALPHAS)], differences),
    ]


def _clip_lines(found: Mapping[str, Any]) -> list[str]:
    measures = found["measures"]

    def cells(row: Mapping[str, Any], sign: str = "") -> list[str]:
        return [
            "" if row[key] is None else interval_text(row[key], sign, 2 if "error" in key else 1) for key in measures
        ]

    return [
        f"{found['about']} {found['clips']} clips of {found['frames']} frames. {_setting(found['config'])}; discarded: "
        f"{_channels(found['discard'])}.",
        "",
        *_table(
            ["method", *measures.values()], ([_marked(n, found["chosen"]), *cells(r)] for n, r in found["rows"].items())
        ),
        "",
        *_table(
            ["difference", *measures.values()],
            ([f"{d['first']} - {d['second']}", *cells(d, "+")] for d in found["differences"]),
        ),
    ]


def _setting(config: Mapping[str, Any]) -> str:
    tapped = "" if config["activation"] == "block" else f", activation {config['activation']}"
    return (
        f"Block {config['block']}, timestep {config['timestep']:g}, {config['ensemble']} noises, "
        f"{config['size']} px for the model{tapped}"
    )


def _channels(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels)) or "none"


def _marked(name: str, chosen: str) -> str:
    return f"**{name}**" if name == chosen else name


def interval_text(values: Sequence[float | None], sign: str = "", digits: int = 1) -> str:
    """Such as "31.4 (29.0 to 33.9)"; no brackets where there are no bounds."""
    value, low, high = (None if v is None else f"{v:{sign}.{digits}f}" for v in values)
    return f"{value}" if low is None or high is None else f"{value} ({low} to {high})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
