"""A result that can be compared and printed: every average, every category, every pair, and what they were made with.

Equal runs give equal bytes: times and dates are in a file of their own.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..types import write_atomically
from .latex import latex_table
from .pairs import PairSet
from .protocols import Framed, Protocol
from .published import rows_for
from .runner import Evaluation, Found
from .scores import AGGREGATES, aggregate, per_category, within

__all__ = ["FORMAT", "hits_of", "result_document", "save_result", "to_csv", "to_json", "to_latex", "to_markdown"]

FORMAT = "ditf result"
_VERSION = 1


def hits_of(
    found: Sequence[Found], pairs: Sequence[Framed], protocol: Protocol, alpha: float,
    subset: Sequence[np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """(P,) correct points of each pair; of a subset, those of its points (K,) bool of each pair."""
    right = [
        within(one.errors, pair.length, alpha, protocol.operator, protocol.arithmetic)
        for one, pair in zip(found, pairs, strict=True)
    ]
    if subset is not None:
        right = [one[own] for one, own in zip(right, subset, strict=True)]
    return np.array([one.sum() for one in right], np.int64)


def result_document(
    evaluation: Evaluation, pairs: PairSet, about: Mapping[str, Any], *, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a run found, as plain JSON values.

    Args:
        about: of the data set: title, source, licence, citation.
        card: what was run: model, config, versions, and more that the caller knows.
    """
    protocol, framed = evaluation.protocol, evaluation.pairs
    counts = np.array([len(one.truth) for one in framed])
    categories = [one.pair.category for one in framed]
    hits = {
        name: {alpha: hits_of(found, framed, protocol, alpha) for alpha in protocol.alphas}
        for name, found in evaluation.found.items()
    }
    return {
        FORMAT: _VERSION,
        "benchmark": pairs.benchmark,
        "split": pairs.split,
        "data": {**about, **pairs.facts, "list_sha256": pairs.list_hash},
        "protocol": protocol.to_dict(),
        "card": dict(card),
        "counts": {
            "pairs": len(framed),
            "points": int(counts.sum()),
            "images": evaluation.images,
            "categories": len(set(categories)),
            "source_points_clipped": sum(one.clipped for one in framed),
        },
        "problems": evaluation.problems.to_dict(),
        "complete": not evaluation.problems.damage,
        "averages": AGGREGATES,
        "methods": [
            {
                "name": name,
                "pck": {_key(alpha): _rounded(aggregate(categories, of[alpha], counts)) for alpha in protocol.alphas},
                "categories": _categories(categories, of, counts, protocol),
                **_poses(evaluation.found[name]),
            }
            for name, of in hits.items()
        ],
        **_geometry_aware(evaluation),
        "published": [row.to_dict() for row in rows_for(pairs.benchmark, pairs.split)],
        "pairs": [
            {
                "name": one.pair.name,
                "category": one.pair.category,
                "source": one.pair.source.name,
                "target": one.pair.target.name,
                "points": len(one.truth),
                "length": round(one.length, 6),
                "correct": {
                    name: {_key(alpha): int(of[alpha][i]) for alpha in protocol.alphas} for name, of in hits.items()
                },
                "errors": {name: [_number(e) for e in found[i].errors] for name, found in evaluation.found.items()},
                "predicted": {
                    name: [[_number(v) for v in place] for place in found[i].predicted]
                    for name, found in evaluation.found.items()
                    if name != "identity"
                },
                **({} if one.geometry is None else {"geometry_aware": np.flatnonzero(one.geometry).tolist()}),
                **(
                    {"mirrored": {n: f[i].mirrored for n, f in evaluation.found.items() if n != "identity"}}
                    if protocol.align_pose
                    else {}
                ),
            }
            for i, one in enumerate(framed)
        ],
    }


def _geometry_aware(evaluation: Evaluation) -> dict[str, Any]:
    """The averages over the points that have company of their own kind in the target, where the data set tells."""
    protocol = evaluation.protocol
    marks = [one.geometry if one.geometry is not None else np.zeros(len(one.truth), bool) for one in evaluation.pairs]
    if all(one.geometry is None for one in evaluation.pairs):
        return {}
    some = [i for i, own in enumerate(marks) if own.any()]
    pairs, subset = [evaluation.pairs[i] for i in some], [marks[i] for i in some]
    counts, categories = np.array([own.sum() for own in subset]), [one.pair.category for one in pairs]
    methods = []
    for name, found in evaluation.found.items() if some else ():
        own = [found[i] for i in some]
        pck = {
            _key(a): _rounded(aggregate(categories, hits_of(own, pairs, protocol, a, subset), counts))
            for a in protocol.alphas
        }
        methods.append({"name": name, "pck": pck})
    about = "points of whose kind the target shows two or more, such as both ears"
    return {
        "geometry_aware": {
            "about": about, "pairs": len(some), "points": int(counts.sum()), "of_points": sum(map(len, marks)),
            "methods": methods,
        }
    }  # fmt: skip


def _poses(found: Sequence[Found]) -> dict[str, Any]:
    """How many pairs were matched from the mirrored source, where there was a choice."""
    chosen = [one.mirrored for one in found if one.mirrored is not None]
    return {"mirrored_pairs": sum(chosen)} if chosen else {}


def _categories(
    categories: Sequence[str], hits: Mapping[float, np.ndarray], counts: np.ndarray, protocol: Protocol
) -> list[dict[str, Any]]:
    rows = {alpha: per_category(categories, hits[alpha], counts) for alpha in protocol.alphas}
    first = rows[protocol.alphas[0]]
    return [
        {
            "name": name,
            "pairs": first[name]["pairs"],
            "points": first[name]["points"],
            "pck": {_key(a): _rounded({k: rows[a][name][k] for k in ("point", "image")}) for a in protocol.alphas},
        }
        for name in sorted(first)
    ]


def _key(alpha: float) -> str:
    return f"{alpha:g}"


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _number(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


# --- files -----------------------------------------------------------------------------------------------------------


def save_result(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write OUT (JSON), and beside it the tables: .categories.csv, .pairs.csv, .md, .tex; returns their paths.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    stem = out.with_suffix("") if out.suffix == ".json" else out
    files = {
        stem.with_name(stem.name + ".categories.csv"): to_csv(document),
        stem.with_name(stem.name + ".pairs.csv"): _pairs_csv(document),
        stem.with_name(stem.name + ".md"): to_markdown(document),
        stem.with_name(stem.name + ".tex"): to_latex(document),
        out: to_json(document),  # last: where it is, all of them are
    }
    for path, content in files.items():
        write_atomically(path, content.encode())
    return [out, *(path for path in files if path != out)]


def to_json(document: Mapping[str, Any]) -> str:
    """Indented for people, but for the pairs: a line each."""
    head = json.dumps({k: v for k, v in document.items() if k != "pairs"}, indent=1, allow_nan=False)
    pairs = ",\n".join(f"  {json.dumps(pair, allow_nan=False)}" for pair in document["pairs"])
    return f'{head[:-2]},\n "pairs": [\n{pairs}\n ]\n}}\n'


def to_csv(document: Mapping[str, Any]) -> str:
    """One line per method and category, then per method its averages."""
    alphas = [_key(a) for a in document["protocol"]["alphas"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "category", "pairs", "points", *(f"{k} PCK@{a}" for a in alphas for k in ("point", "image"))]
    )
    for method in document["methods"]:
        for row in method["categories"]:
            values = [row["pck"][a][k] for a in alphas for k in ("point", "image")]
            writer.writerow([method["name"], row["name"], row["pairs"], row["points"], *values])
        for kind in ("micro", "macro"):
            values = [method["pck"][a][f"{k}_{kind}"] for a in alphas for k in ("point", "image")]
            counts = document["counts"]
            writer.writerow([method["name"], f"all, {kind}", counts["pairs"], counts["points"], *values])
        aware = {one["name"]: one for one in document.get("geometry_aware", {}).get("methods", [])}
        if (one := aware.get(method["name"])) is not None:
            about = document["geometry_aware"]
            for kind in ("micro", "macro"):
                values = [one["pck"][a][f"{k}_{kind}"] for a in alphas for k in ("point", "image")]
                writer.writerow([one["name"], f"geometry-aware, {kind}", about["pairs"], about["points"], *values])
        weighted = [v for a in alphas for v in (method["pck"][a]["point_pairweighted"], "")]
        writer.writerow([method["name"], "all, by pairs", counts["pairs"], counts["points"], *weighted])
    return text.getvalue()


def _pairs_csv(document: Mapping[str, Any]) -> str:
    alphas = [_key(a) for a in document["protocol"]["alphas"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", "category", "method", "points", *(f"correct@{a}" for a in alphas), "mean error", "length"])
    for pair in document["pairs"]:
        for name, correct in pair["correct"].items():
            errors = [e for e in pair["errors"][name] if e is not None]
            mean = round(sum(errors) / len(errors), 3) if errors else ""
            row = [pair["name"], pair["category"], name, pair["points"], *(correct[a] for a in alphas), mean]
            writer.writerow([*row, pair["length"]])
    return text.getvalue()


def to_markdown(document: Mapping[str, Any]) -> str:
    """Tables for a README: the averages, the categories, and what others report, with their averages named."""
    alphas = [_key(a) for a in document["protocol"]["alphas"]]
    counts, protocol = document["counts"], document["protocol"]
    lines = [
        f"### {document['data']['title']}, {document['split']}, protocol {protocol['name']}",
        "",
        f"{counts['pairs']} pairs, {counts['points']} points, {counts['images']} images. Reference length: "
        f"{protocol['length']}; a point is right if its error is {protocol['operator']} alpha times that."
        + _sampled(document),
        "",
        "| method | alpha | " + " | ".join(AGGREGATES) + " |",
        "|---|---|" + "---|" * len(AGGREGATES),
    ]
    lines += _rows(document["methods"], alphas)
    if (aware := document.get("geometry_aware")) is not None:
        lines += [
            "",
            f"Geometry-aware subset, {aware['points']} points of {aware['pairs']} pairs: {aware['about']}.",
            "",
        ]
        lines += ["| method | alpha | " + " | ".join(AGGREGATES) + " |", "|---|---|" + "---|" * len(AGGREGATES)]
        lines += _rows(aware["methods"], alphas)
    first = document["methods"][0]
    lines += ["", f"PCK@{alphas[0]} of {first['name']} by category:", "", "| category | pairs | point | image |"]
    lines.append("|---|---|---|---|")
    for row in first["categories"]:
        at = row["pck"][alphas[0]]
        lines.append(f"| {row['name']} | {row['pairs']} | {at['point']:.2f} | {at['image']:.2f} |")
    if document["published"]:
        lines += [
            "",
            "Published, not run here:",
            "",
            "| method | alpha | PCK | average | source |",
            "|---|---|---|---|---|",
        ]
        for row in document["published"]:
            note = f"; {row['note']}" if row["note"] else ""
            average = row["average"] or "not said"
            lines.append(
                f"| {row['method']} | {row['alpha']:g} | {row['value']:g} | {average} | {row['source']}{note} |"
            )
    return "\n".join(lines) + "\n"


def _sampled(document: Mapping[str, Any]) -> str:
    sample = document["data"].get("sample")
    return (
        ""
        if sample is None
        else f" A sample: {sample['pairs_of_a_category']} pairs of every category, with replacement."
    )


def _rows(methods: Sequence[Mapping[str, Any]], alphas: Sequence[str]) -> list[str]:
    return [
        f"| {method['name']} | {a} | " + " | ".join(f"{method['pck'][a][k]:.2f}" for k in AGGREGATES) + " |"
        for method in methods
        for a in alphas
    ]


def to_latex(document: Mapping[str, Any]) -> str:
    """A row per method: its categories and their mean over points at the first threshold, then the pooled share."""
    alpha = _key(document["protocol"]["alphas"][0])
    names = [row["name"] for row in document["methods"][0]["categories"]]
    rows = []
    for method in document["methods"]:
        values = [row["pck"][alpha]["point"] for row in method["categories"]]
        values += [method["pck"][alpha][kind] for kind in ("point_macro", "point_micro")]
        rows.append([method["name"], *(f"{v:.1f}" for v in values)])
    about = f"{document['data']['title']}, {document['split']}, protocol {document['protocol']['name']}, PCK@{alpha}"
    return latex_table(about, ["method", *names, "point macro", "point micro"], rows)
