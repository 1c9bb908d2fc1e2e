"""The parts of the method taken away one by one: normalization, channel discard, what AdaLN is conditioned on.

Rows that differ in what follows the forward alone share one forward per picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .methods import ModelMethod, share_forwards
from .published import ABLATION

if TYPE_CHECKING:
    from ..extractor import FeatureExtractor

__all__ = ["AXES", "ablation_methods", "ablation_summary"]

AXES = ("normalization", "discard", "condition")
FULL = "AdaLN + discard"
_ORDER = ("raw", "LayerNorm", "AdaLN", FULL, "AdaLN, condition t", "AdaLN, condition c", "AdaLN, condition none")


def ablation_methods(
    fx: FeatureExtractor, axes: Sequence[str], make: Callable[[str, FeatureExtractor], ModelMethod]
) -> tuple[list[ModelMethod], dict[str, str]]:
    """The rows that a model can give, the fullest first; and the others, with the reason.

    Args:
        axes: of :data:`AXES`.
        make: a method from its name and extractor.

    Raises:
        InputError: an unknown axis.
    """
    if unknown := sorted(set(axes) - set(AXES)):
        raise InputError.of("--ablate", unknown[0], f"one or more of {', '.join(AXES)}, joined by commas")
    wanted: dict[str, dict[str, Any]] = {"AdaLN": {"normalization": "adaln", "discard": "none"}}
    unavailable: dict[str, str] = {}
    if "normalization" in axes:
        wanted["LayerNorm"] = {"normalization": "layernorm", "discard": "none"}
        wanted["raw"] = {"normalization": "none", "discard": "none"}
    if "discard" in axes:
        discard = fx.config.discard if fx.config.discard != "none" else "auto"
        wanted = {FULL: {"normalization": "adaln", "discard": discard}, **wanted}
    if "condition" in axes:
        for condition in ("t", "c", "none"):
            name = f"AdaLN, condition {condition}"
            why = _why_not(fx, condition)
            if why is None:
                wanted[name] = {"normalization": "adaln", "discard": "none", "condition": condition}
            else:
                unavailable[name] = why
    methods = [make(name, fx.replace(**values)) for name, values in wanted.items()]
    share_forwards(methods)
    return methods, unavailable


def _why_not(fx: FeatureExtractor, condition: Any) -> str | None:
    from ..backbones.conditions import observed

    try:
        with observed(fx.backbone.transformer, condition):
            return None
    except InputError as error:
        return str(error)


def ablation_summary(document: dict[str, Any], model: str) -> dict[str, Any]:
    """The rows in the order of the paper's table, at the first threshold and the protocol's own average.

    The reference's figures stand beside them where the model, the data set and the average are theirs.
    """
    alpha, average = f"{document['protocol']['alphas'][0]:g}", "point_macro"
    theirs = (
        ABLATION
        if model.rsplit("/", 1)[-1].lower() == "flux.1-dev" and document["benchmark"] == "spair"
        and document["split"] == "test"
        else {}
    )  # fmt: skip
    found = {method["name"]: method["pck"][alpha][average] for method in document["methods"]}
    rows = [{"name": n, "pck": found[n], "reference": theirs.get(n)} for n in _ORDER if n in found]
    return {"alpha": alpha, "average": average, "reference": "DiTF, README" if theirs else None, "rows": rows}
