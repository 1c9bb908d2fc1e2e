"""What HPatches found, as one document and its tables. Equal runs give equal bytes."""

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
from .hpatches import SequenceSet
from .hpatches_runner import PIXELS, PairScore, PlaneEvaluation
from .latex import latex_table
from .published import NOT_KNOWN, NOT_STATED, plane_rows_for
from .results import FORMAT

__all__ = ["GROUPS", "plane_document", "save_planes", "summary"]

GROUPS = ("all", "illumination", "viewpoint")
_VERSION = 1
_SHOWN = ("1", "3", "5")  # pixels of the mean matching accuracy in the tables


def summary(scores: Sequence[PairScore], alphas: Sequence[float]) -> dict[str, Any]:
    """Means over pairs, in percent.

    Accuracy counts a pair without a homography as wrong; the mean matching accuracy of a pair without a match is 0.
    The median corner error is None where half of the pairs have no homography.
    """
    errors = np.array([one.error for one in scores])
    matching = np.mean([one.accuracy for one in scores], 0)
    median = float(np.median(errors)) if np.isfinite(np.median(errors)) else None
    return {
        "pairs": len(scores),
        "accuracy": {f"{a:g}": round(100 * float((errors <= a).mean()), 4) for a in alphas},
        "matching_accuracy": {str(t): round(100 * float(v), 4) for t, v in zip(PIXELS, matching, strict=True)},
        "median_corner_error": None if median is None else round(median, 4),
        "without_homography": int(np.isinf(errors).sum()),
        "mean_matches": round(float(np.mean([one.matches for one in scores])), 2),
        "mean_keypoints": round(float(np.mean([one.features for one in scores])), 2),
    }


def plane_document(
    evaluation: PlaneEvaluation, planes: SequenceSet, about: Mapping[str, Any], *, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a run found, as plain JSON values.

    Args:
        about: of the data set: title, source, licence.
        card: what was run.
    """
    alphas, first = evaluation.protocol.alphas, next(iter(evaluation.scores.values()))
    return {
        FORMAT: _VERSION,
        "benchmark": "hpatches",
        "split": planes.split,
        "data": {**about, **planes.facts},
        "protocol": evaluation.protocol.to_dict(),
        "card": dict(card),
        "counts": {
            "pairs": len(first),
            "sequences": len({one.sequence for one in first}),
            "images": evaluation.images,
        },
        "problems": evaluation.problems.to_dict(),
        "complete": not evaluation.problems.damage,
        "methods": [
            {
                "name": name,
                "groups": {
                    group: summary(some, alphas)
                    for group in GROUPS
                    if (some := [one for one in scores if _in(one, group)])
                },
            }
            for name, scores in evaluation.scores.items()
        ],
        "published": [row.to_dict() for row in plane_rows_for(planes.split)],
        "published_elsewhere": NOT_KNOWN["hpatches"],
        "pairs": [
            {
                "sequence": one.sequence,
                "pair": f"1-{one.number}",
                "methods": {name: _pair(scores[i]) for name, scores in evaluation.scores.items()},
            }
            for i, one in enumerate(first)
        ],
    }


def _in(one: PairScore, group: str) -> bool:
    return group == "all" or one.sequence.startswith({"illumination": "i_", "viewpoint": "v_"}[group])


def _pair(one: PairScore) -> dict[str, Any]:
    error = round(one.error, 4) if math.isfinite(one.error) else None
    found = {"corner_error": error, "matches": one.matches, "keypoints": list(one.features)}
    return {**found, "within": list(one.within), **({"reason": one.reason} if one.reason else {})}


def save_planes(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write OUT (JSON), and beside it .summary.csv, .pairs.csv, .md and .tex; returns their paths.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    stem = out.with_suffix("")
    files = {
        stem.with_name(stem.name + ".summary.csv"): _summary_csv(document),
        stem.with_name(stem.name + ".pairs.csv"): _pairs_csv(document),
        stem.with_name(stem.name + ".md"): _markdown(document),
        stem.with_name(stem.name + ".tex"): _latex(document),
        out: json.dumps(document, indent=1, allow_nan=False) + "\n",  # last: where it is, all of them are
    }
    for path, content in files.items():
        write_atomically(path, content.encode())
    return [out, *(path for path in files if path != out)]


def _summary_csv(document: Mapping[str, Any]) -> str:
    alphas = [f"{a:g}" for a in document["protocol"]["alphas"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = [*(f"accuracy@{a}px" for a in alphas), *(f"MMA@{t}px" for t in PIXELS)]
    writer.writerow(["method", "group", "pairs", *headings, "matches", "keypoints", "without homography"])
    for method in document["methods"]:
        for group, row in method["groups"].items():
            values = [*row["accuracy"].values(), *row["matching_accuracy"].values()]
            counts = [row["mean_matches"], row["mean_keypoints"], row["without_homography"]]
            writer.writerow([method["name"], group, row["pairs"], *values, *counts])
    return text.getvalue()


def _pairs_csv(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sequence", "pair", "method", "corner error", "matches", *(f"within {t}px" for t in PIXELS)])
    for pair in document["pairs"]:
        for name, one in pair["methods"].items():
            error = "" if one["corner_error"] is None else one["corner_error"]
            writer.writerow([pair["sequence"], pair["pair"], name, error, one["matches"], *one["within"]])
    return text.getvalue()


def _latex(document: Mapping[str, Any]) -> str:
    alphas = [f"{alpha:g}" for alpha in document["protocol"]["alphas"]]
    about = f"{document['data']['title']}, {document['split']}, protocol {document['protocol']['name']}, in %"
    headings = ["method", "group", *(f"accuracy {a} px" for a in alphas), *(f"MMA {t} px" for t in _SHOWN)]
    rows = (
        [method["name"], group, *(f"{v:.1f}" for v in _values(row))]
        for method in document["methods"]
        for group, row in method["groups"].items()
    )
    return latex_table(about, headings, rows, names=2)


def _values(row: Mapping[str, Any]) -> list[float]:
    return [*row["accuracy"].values(), *(row["matching_accuracy"][t] for t in _SHOWN)]


def _markdown(document: Mapping[str, Any]) -> str:
    protocol, counts = document["protocol"], document["counts"]
    alphas = [f"{a:g}" for a in protocol["alphas"]]
    lines = [
        f"### {document['data']['title']}, {document['split']}, protocol {protocol['name']}",
        "",
        *([document["data"]["fewer"], ""] if document["data"]["fewer"] else []),
        f"{counts['sequences']} sequences, {counts['pairs']} pairs. Keypoints: {document['card']['keypoints']}. "
        f"Accuracy: share of homographies ({protocol['estimator']}) whose mean corner error is at most so many pixels. "
        "MMA: share of matches within so many pixels, mean over pairs.",
        "",
        "| method | group | " + " | ".join(f"accuracy {a} px" for a in alphas) + " | MMA 1 px | MMA 3 px | MMA 5 px |",
        "|---|---|" + "---|" * (len(alphas) + 3),
    ]
    for method in document["methods"]:
        for group, row in method["groups"].items():
            lines.append(f"| {method['name']} | {group} | " + " | ".join(f"{v:.1f}" for v in _values(row)) + " |")
    if document["published"]:
        headings = " | ".join(f"accuracy {a} px" for a in alphas)
        lines += ["", "Published, not run here:", "", f"| method | group | {headings} | average | source |"]
        lines.append("|---|---|" + "---|" * (len(alphas) + 2))
        for row in document["published"]:
            values = " | ".join(f"{row['accuracy'][a]:g}" if a in row["accuracy"] else "" for a in alphas)
            source = f"{row['average'] or NOT_STATED} | {row['source']}; {row['note']}"
            lines.append(f"| {row['method']} | {row['group']} | {values} | {source} |")
    return "\n".join([*lines, "", document["published_elsewhere"]]) + "\n"
