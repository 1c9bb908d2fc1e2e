"""Two results on the same pairs: is the difference more than which images happened to be in the data set?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .results import FORMAT
from .scores import AGGREGATES, aggregate

__all__ = ["bootstrap", "compare", "read_result"]

DRAWS = 2000
_SEED = 0


def read_result(path: Path) -> dict[str, Any]:
    """A file that ``ditf eval`` wrote.

    Raises:
        InputError: no such file, or another kind of file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"result: no such file: {path} (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"result: {path} cannot be read ({error}); give a file that ditf eval wrote") from None
    if not isinstance(content, dict) or content.get(FORMAT) != 1:
        raise InputError(f"result: {path} is no result of ditf eval; give the .json file of --out")
    return content


def compare(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    methods: tuple[str | None, str | None] = (None, None),
    alpha: str | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Every average of both on the pairs they share, and the second minus the first with its 95% interval.

    The bootstrap draws target images, category by category, with all of their pairs, the same draws for both: pairs of
    one image succeed and fail together, and pairs drawn one by one would make the interval too narrow.

    Args:
        methods: which row of each; None: its first.
        alpha: threshold; None: the first that both have.

    Returns:
        Plain JSON values: ``averages`` name -> first, second, difference, low, high, p (two-sided).

    Raises:
        InputError: another data set or split, no shared pairs, no such method or threshold.
    """
    for key in ("benchmark", "split"):
        if first[key] != second[key]:
            raise InputError(f"results: {key} {first[key]} and {second[key]}; give two results of one {key}")
    if any("points" not in pair for document in (first, second) for pair in document.get("pairs", [{}])):
        raise InputError(
            f"results: they are of {first['benchmark']}, expected a benchmark of labelled pairs, such as spair"
        )
    names = [_method(document, name) for document, name in zip((first, second), methods, strict=True)]
    alpha = _alpha(first, second, alpha)
    pairs = [{pair["name"]: pair for pair in document["pairs"]} for document in (first, second)]
    shared = [name for name in pairs[0] if name in pairs[1]]
    different = [n for n in shared if pairs[0][n]["points"] != pairs[1][n]["points"]]
    shared = [name for name in shared if pairs[0][name]["points"] == pairs[1][name]["points"]]
    if not shared:
        raise InputError("results: they have no pair in common with as many points; give two results of one data set")
    categories = [pairs[0][name]["category"] for name in shared]
    counts = np.array([pairs[0][name]["points"] for name in shared], np.float64)
    hits = [
        np.array([own[name]["correct"][method][alpha] for name in shared], np.float64)
        for own, method in zip(pairs, names, strict=True)
    ]
    values = [aggregate(categories, one, counts) for one in hits]
    targets = [pairs[0][name]["target"] for name in shared]
    drawn = bootstrap(categories, targets, hits, counts, draws)
    averages = {}
    for kind in AGGREGATES:
        difference = drawn[1][kind] - drawn[0][kind]
        low, high = np.percentile(difference, [2.5, 97.5])
        p = 2 * min(float((difference <= 0).mean()), float((difference >= 0).mean()))
        averages[kind] = {
            "first": round(values[0][kind], 4), "second": round(values[1][kind], 4),
            "difference": round(values[1][kind] - values[0][kind], 4), "low": round(float(low), 4),
            "high": round(float(high), 4), "p": round(min(1.0, max(p, 1 / draws)), 4),
        }  # fmt: skip
    return {
        "benchmark": first["benchmark"],
        "split": first["split"],
        "alpha": alpha,
        "methods": names,
        "protocols": [document["protocol"]["name"] for document in (first, second)],
        "pairs": len(shared),
        "target_images": len(set(zip(categories, targets, strict=True))),
        "only_in_one": sum(map(len, pairs)) - 2 * (len(shared) + len(different)),
        "with_other_points": len(different),
        "intervals": f"95%, {draws} draws of target images within their category",
        "averages": averages,
    }


def _method(document: Mapping[str, Any], name: str | None) -> str:
    known = [method["name"] for method in document["methods"]]
    if name is not None and name not in known:
        raise InputError.of("--method", name, f"one of {', '.join(known)}")
    return known[0] if name is None else name


def _alpha(first: Mapping[str, Any], second: Mapping[str, Any], wanted: str | None) -> str:
    known = [f"{a:g}" for a in first["protocol"]["alphas"] if a in second["protocol"]["alphas"]]
    if not known or (wanted is not None and wanted not in known):
        raise InputError.of("--alpha", wanted, f"one of {', '.join(known) or 'none: they share no threshold'}")
    return known[0] if wanted is None else wanted


def bootstrap(
    categories: Sequence[str], targets: Sequence[str], hits: Sequence[np.ndarray], counts: np.ndarray, draws: int
) -> list[dict[str, np.ndarray]]:
    """Per result: average -> (draws,) values in percent, over the same draws of target images within their category."""
    random, names, images = np.random.default_rng(_SEED), np.asarray(categories), np.asarray(targets)
    sums = []  # per category (draws, 2 + 2 * results): pairs, points, then hits and shares of each result
    for category in sorted(set(categories)):
        here = names == category
        _, cluster = np.unique(images[here], return_inverse=True)
        columns = [np.ones(here.sum()), counts[here]]
        columns += [values[here] if not share else values[here] / counts[here] for values in hits for share in (0, 1)]
        size = int(cluster.max()) + 1
        per_image = np.stack([np.bincount(cluster, weights=c, minlength=size) for c in columns], 1)
        times = random.multinomial(size, np.full(size, 1 / size), size=draws)
        sums.append(times @ per_image)
    total = np.stack(sums)  # (categories, draws, columns)
    pairs, points = total[..., 0], total[..., 1]
    found = []
    for i in range(len(hits)):
        right, shares = total[..., 2 + 2 * i], total[..., 3 + 2 * i]
        found.append(
            {
                "point_micro": 100 * right.sum(0) / points.sum(0),
                "point_macro": 100 * (right / points).mean(0),
                "image_micro": 100 * shares.sum(0) / pairs.sum(0),
                "image_macro": 100 * (shares / pairs).mean(0),
                "point_pairweighted": 100 * (pairs * right / points).sum(0) / pairs.sum(0),
            }
        )
    return found
