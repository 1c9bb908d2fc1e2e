"""What DAVIS found, as one document and its tables. Equal runs give equal bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..types import write_atomically
from .davis import VideoSet, settings_for
from .davis_runner import ObjectScore, VideoEvaluation
from .latex import latex_table
from .published import NOT_KNOWN, NOT_STATED, video_rows_for
from .results import FORMAT

__all__ = ["MEASURES", "over_objects", "save_videos", "video_document"]

MEASURES = {"J&F-Mean": "j_and_f", "J-Mean": "j", "J-Recall": "j_recall", "J-Decay": "j_decay", "F-Mean": "f",
            "F-Recall": "f_recall", "F-Decay": "f_decay"}  # fmt: skip
"""Headings of the official tables -> keys of a result."""

_VERSION = 1


def over_objects(scores: Sequence[ObjectScore]) -> dict[str, float]:
    """Means over objects, not over sequences, in percent; J&F is the mean of J and F."""
    names = [key for key in MEASURES.values() if key != "j_and_f"]
    means = {key: 100 * float(np.mean([getattr(one, key) for one in scores])) for key in names}
    return {k: round(v, 4) for k, v in {"j_and_f": (means["j"] + means["f"]) / 2, **means}.items()}


def video_document(
    evaluation: VideoEvaluation, videos: VideoSet, about: Mapping[str, Any], *, name: str, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a run found, as plain JSON values; scores in percent.

    Args:
        about: of the data set: title, source, licence.
        name: of the protocol.
        card: what was run.
    """
    first = next(iter(evaluation.scores.values()))
    return {
        FORMAT: _VERSION,
        "benchmark": "davis",
        "split": videos.split,
        "data": {**about, **videos.facts},
        "protocol": {
            "name": name,
            **evaluation.protocol.to_dict(),
            "exceptions": _exceptions(evaluation, videos, name),
        },
        "card": dict(card),
        "counts": {
            "sequences": len(videos.videos),
            "frames": sum(len(video.frames) for video in videos.videos),
            "objects": len(first),
        },
        "problems": videos.problems.to_dict(),
        "left_out": list(videos.left_out),
        "complete": not videos.left_out,
        "methods": [{"name": row, **over_objects(scores)} for row, scores in evaluation.scores.items()],
        "published": [row.to_dict() for row in video_rows_for(videos.split)],
        "published_elsewhere": NOT_KNOWN["davis"],
        "sequences": [
            {
                "name": video.name,
                "frames": len(video.frames),
                "size": list(video.size),
                "methods": {
                    row: over_objects([one for one in scores if one.sequence == video.name])
                    for row, scores in evaluation.scores.items()
                },
                "objects": [
                    {"object": i, "methods": {r: _of(scores, video.name, i) for r, scores in evaluation.scores.items()}}
                    for i in range(1, video.objects + 1)
                ],
            }
            for video in videos.videos
        ],
    }  # fmt: skip


def _exceptions(evaluation: VideoEvaluation, videos: VideoSet, name: str) -> dict[str, Any]:
    """Sequence -> how many last frames it was given in place of the protocol's."""
    usual = evaluation.protocol
    given = {video.name: settings_for(name, usual, video.name).n_last for video in videos.videos}
    return {sequence: {"n_last": n} for sequence, n in given.items() if n != usual.n_last}


def _of(scores: Sequence[ObjectScore], sequence: str, number: int) -> dict[str, float]:
    [one] = [one for one in scores if (one.sequence, one.object) == (sequence, number)]
    return {k: round(100 * v, 4) for k, v in asdict(one).items() if k not in ("sequence", "object")}


def save_videos(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write OUT (JSON), and beside it .global.csv, .objects.csv, .md and .tex; returns their paths.

    The tables have the headings of DAVIS's own evaluation and, as there, shares of 1.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    stem = out.with_suffix("")
    files = {
        stem.with_name(stem.name + ".global.csv"): _global_csv(document),
        stem.with_name(stem.name + ".objects.csv"): _objects_csv(document),
        stem.with_name(stem.name + ".md"): _markdown(document),
        stem.with_name(stem.name + ".tex"): _latex(document),
        out: json.dumps(document, indent=1, allow_nan=False) + "\n",  # last: where it is, all of them are
    }
    for path, content in files.items():
        write_atomically(path, content.encode())
    return [out, *(path for path in files if path != out)]


def _global_csv(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Method", *MEASURES])
    for method in document["methods"]:
        writer.writerow([method["name"], *(_share(method[key]) for key in MEASURES.values())])
    return text.getvalue()


def _objects_csv(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = [heading for heading in MEASURES if heading != "J&F-Mean"]
    writer.writerow(["Method", "Sequence", *headings])
    for sequence in document["sequences"]:
        for one in sequence["objects"]:
            for row, values in one["methods"].items():
                name = f"{sequence['name']}_{one['object']}"
                writer.writerow([row, name, *(_share(values[MEASURES[heading]]) for heading in headings)])
    return text.getvalue()


def _share(percent: float) -> float:
    return round(percent / 100, 6)


def _latex(document: Mapping[str, Any]) -> str:
    about = f"{document['data']['title']}, {document['split']}, protocol {document['protocol']['name']}, in %"
    rows = ([m["name"], *(f"{m[key]:.1f}" for key in MEASURES.values())] for m in document["methods"])
    return latex_table(f"{about}, over objects", ["method", *MEASURES], rows)


def _markdown(document: Mapping[str, Any]) -> str:
    counts, protocol = document["counts"], document["protocol"]
    keys = MEASURES.values()
    lines = [
        f"### {document['data']['title']}, {document['split']}, protocol {protocol['name']}",
        "",
        *([document["data"]["fewer"], ""] if document["data"]["fewer"] else []),
        f"{counts['sequences']} sequences, {counts['frames']} frames, {counts['objects']} objects; in %, over objects.",
        "",
        "| method | " + " | ".join(MEASURES) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    lines += [f"| {m['name']} | " + " | ".join(f"{m[key]:.1f}" for key in keys) + " |" for m in document["methods"]]
    if document["published"]:
        lines += ["", "Published, not run here:", "", "| method | J&F | J | F | average over | source |"]
        lines.append("|---|---|---|---|---|---|")
        for row in document["published"]:
            note = f"; {row['note']}" if row["note"] else ""
            values = " | ".join("" if row[key] is None else f"{row[key]:g}" for key in ("j_and_f", "j", "f"))
            lines.append(f"| {row['method']} | {values} | {row['average'] or NOT_STATED} | {row['source']}{note} |")
    return "\n".join([*lines, "", document["published_elsewhere"]]) + "\n"
