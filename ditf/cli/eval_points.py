"""What ``ditf eval`` makes of its options on the benchmarks of points: pairs, rows, the card and the picture."""

from __future__ import annotations

import json as _json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..benchmarks.methods import Method, ModelMethod
    from ..benchmarks.pairs import PairSet
    from ..benchmarks.protocols import Protocol
    from ..benchmarks.registry import Benchmark
    from ..benchmarks.runner import Evaluation
    from ..extractor import FeatureExtractor

__all__ = ["Wish", "make_card", "make_methods", "read_captions", "read_pairs", "save_pictures"]


@dataclass(frozen=True)
class Wish:
    """What was asked for besides the model."""

    data: Path
    out: Path
    split: str
    protocol: str
    dtype: Literal["float32", "float16"]
    outside: Literal["clip", "drop", "error"]
    prompt: str | None
    captions: Path | None
    size: int | None
    ablate: str | None
    fuse: str | None
    fuse_channels: int | None
    sample: int | None
    symmetry: Path | None
    align_pose: bool
    store: Path | None
    store_gb: float
    local_files_only: bool
    json: bool
    verbose: bool


def read_pairs(benchmark: Benchmark, protocol: Protocol, wish: Wish) -> PairSet:
    """What is scored.

    Raises:
        InputError: symmetry of points that have no ids, or pose alignment without it.
    """
    from ..benchmarks.sampling import sample_pairs
    from ..benchmarks.symmetry import read_symmetry
    from ..errors import InputError

    options = {}
    if (wish.symmetry is not None or protocol.align_pose) and not benchmark.named_points:
        name = "--align-pose" if wish.symmetry is None else "--symmetry"
        raise InputError(f"{name}: the points of {benchmark.title} have no ids; only spair and ap10k take it")
    if wish.symmetry is not None:
        options["symmetry"] = read_symmetry(wish.symmetry)
    pairs = benchmark.read(wish.data, wish.split, protocol, **options)
    if protocol.align_pose and any(pair.counterparts is None for pair in pairs.pairs):
        raise InputError("--align-pose: which points change places in a mirror is not known; give --symmetry FILE.json")
    return pairs if wish.sample is None else sample_pairs(pairs, wish.sample)


def read_captions(path: Path | None) -> dict[str, str]:
    from ..errors import InputError

    if path is None:
        return {}
    try:
        content = _json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--captions: no such file: {path} (now in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--captions: {path} cannot be read ({error}); give a JSON object of texts") from None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise InputError(f"--captions: {path} is no JSON object of texts; keys are category/image.jpg")
    return content


def make_methods(
    fx: FeatureExtractor, protocol: Protocol, wish: Wish, captions: dict[str, str]
) -> tuple[list[Method], dict[str, str]]:
    """The rows to be, and those that the model cannot give, with the reason."""
    from ..benchmarks.ablations import ablation_methods
    from ..benchmarks.fusion import FusedMethod, load_dino
    from ..benchmarks.methods import ModelMethod, PatchMethod

    def make(name: str, extractor: FeatureExtractor) -> ModelMethod:
        return ModelMethod(name, extractor, protocol, size=wish.size, prompt=wish.prompt, captions=captions)

    rows, unavailable = [make(fx.backbone.name, fx)], {}
    if wish.ablate is not None:
        rows, unavailable = ablation_methods(fx, wish.ablate.split(","), make)
    methods: list[Method] = list(rows)
    if wish.fuse is not None:
        dino = load_dino(wish.fuse, device=fx.backbone.device, local_files_only=wish.local_files_only)
        name = f"{rows[0].name} + DINO" + ("" if wish.fuse_channels is None else f", {wish.fuse_channels} channels")
        methods.append(FusedMethod(name, rows[0], dino, protocol, wish.fuse_channels))
    return [*methods, PatchMethod(protocol)], unavailable


def make_card(methods: list[Method], wish: Wish, captions: dict[str, str], evaluation: Evaluation) -> dict[str, Any]:
    from .. import __version__
    from ..benchmarks.fusion import FusedMethod
    from ..benchmarks.methods import ModelMethod, caption_of

    card: dict[str, Any] = {"ditf": __version__, "match_dtype": wish.dtype, "outside": wish.outside}
    card["methods"] = {m.name: m.card() if isinstance(m, ModelMethod | FusedMethod) else m.about() for m in methods}
    if captions:
        sides = {
            side
            for one in evaluation.pairs
            for side in ((one.pair.source_prompt, one.pair.source.name), (one.pair.target_prompt, one.pair.target.name))
        }
        missing = sum(caption_of(captions, *side) is None for side in sides)
        card["captions"] = {"found": len(sides) - missing, "template_instead": missing}
    return card


def save_pictures(evaluation: Evaluation, out: Path) -> list[Path]:
    """The worst and best pairs of the first method."""
    import io

    from ..benchmarks.pictures import draw_extremes
    from ..types import write_atomically

    content, path = io.BytesIO(), out.with_suffix(".png")
    draw_extremes(evaluation, next(iter(evaluation.found))).save(content, "PNG")
    write_atomically(path, content.getvalue())
    return [path]
