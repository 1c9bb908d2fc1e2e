"""``ditf match``: points of one picture found in another."""

from __future__ import annotations

import io
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import Clock, ModelOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..types import FeatureMap, Matches

NAME = "match"
EXAMPLE = "Example:  ditf match photo.jpg other.png --point 100,80 --point 40,25 --out matches.png"

_AUTOMATIC = 12
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def command(
    source: Annotated[str, typer.Argument(metavar="A", help="The picture the points are in.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="B", help="The picture to find them in.", show_default=False)],
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="x,y", help="A pixel of A, the first being 0,0; repeatable.", show_default=False),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Points from a CSV (x,y) or JSON file.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE", help="Draw the matches: .png, .jpg or .webp.", show_default=False),
    ] = None,
    json: common.Json = False,
    verbose: common.Verbose = False,
    model: common.Model = "ditf-tiny",
    task: common.Task = "semantic",
    fused: common.Fused = "true",
    device: common.Device = None,
    dtype: common.Dtype = None,
    revision: common.Revision = None,
    local_files_only: common.LocalFilesOnly = False,
    block: common.Block = None,
    timestep: common.Timestep = None,
    ensemble: common.Ensemble = None,
    discard: common.Discard = None,
    size: common.Size = None,
    seed: common.Seed = 0,
    prompt: common.Prompt = None,
    prompt_source: Annotated[
        str | None, typer.Option(help="Text for A alone.", show_default=False, rich_help_panel=common.FEATURES)
    ] = None,
    prompt_target: Annotated[
        str | None, typer.Option(help="Text for B alone.", show_default=False, rich_help_panel=common.FEATURES)
    ] = None,
) -> None:
    """Find points of picture A in picture B.

    Without --point or --points, about twelve of the most distinctive places of A are taken. The cycle error is the
    distance in pixels between a point and its match matched back: small where the two pictures agree.
    """
    common.set_voice(verbose)
    chosen = _chosen_points(point, points)
    prompts = _prompts(prompt, prompt_source, prompt_target)
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, block, timestep, ensemble, discard, size, seed
    )
    options.overrides()
    if out is not None:
        _check_picture(out, (source, target))
    clock = Clock()
    with common.steps(5 if out else 4) as step:
        step("reading the pictures")
        with clock.stage("images"):
            images = _images(source, target, chosen, "--points" if points else "--point")
        step(f"opening {model}")
        with clock.stage("model"):
            extractor = options.load(verbose)
        step("features of both pictures")
        with clock.stage("features"):
            source_features, target_features = extractor(list(images), prompt=prompts)
            features = source_features, target_features
        step("matching")
        with clock.stage("match"):
            matches = _matched(features, chosen)
        if out is not None:
            step("drawing")
            with clock.stage("draw"):
                _draw(matches, features, images, (source, target), model, automatic=not chosen, out=out)
    if json:
        common.print_json(_document(matches, features, (source, target), model, not chosen, out, clock))
    else:
        _print_table(matches, features, model, out, clock)


def _chosen_points(given: list[str] | None, file: Path | None) -> list[tuple[float, float]]:
    """Points of the command line, or none: they will be chosen from the features."""
    from ..errors import InputError
    from .points import parse_point, read_points

    if given and file is not None:
        raise InputError("--points: got --point as well; give one of the two")
    return read_points(file) if file is not None else [parse_point(text) for text in given or []]


def _prompts(both: str | None, source: str | None, target: str | None) -> list[str] | None:
    from ..errors import InputError

    if both is not None and (source is not None or target is not None):
        raise InputError("--prompt: got --prompt-source or --prompt-target as well; give one text or one per picture")
    if (source is None) != (target is None):
        missing = "--prompt-source" if source is None else "--prompt-target"
        raise InputError(f"{missing}: missing; give both, or --prompt for one text")
    if source is not None and target is not None:
        return [source, target]
    return None if both is None else [both, both]


def _check_picture(out: Path, inputs: tuple[str, str]) -> None:
    """Before any work: a picture of a known kind, in a folder that takes it, and none of the inputs."""
    from ..errors import InputError

    if out.suffix.lower() not in _PICTURES:
        raise InputError(f"--out: got {str(out)!r}, expected a name that ends in {', '.join(_PICTURES)}")
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder; give the name of a picture in it")
    if not out.parent.is_dir():
        raise InputError(f"--out: the folder {out.parent} does not exist; create it or choose another")
    if any(Path(name).exists() and out.exists() and out.samefile(name) for name in inputs):
        raise InputError(f"--out: {out} is one of the two pictures; choose another name")
    common.check_writable(out.parent, "--out")


def _images(source: str, target: str, points: list[tuple[float, float]], option: str) -> tuple[Image, Image]:
    from ..images import load_image
    from .points import check_inside

    images = load_image(source), load_image(target)
    check_inside(points, (images[0].height, images[0].width), option, source)
    return images


def _matched(features: tuple[FeatureMap, FeatureMap], points: list[tuple[float, float]]) -> Matches:
    from ..matching import distinctive_points, match_points

    return match_points(*features, points or distinctive_points(features[0], _AUTOMATIC), cycle=True)


def _draw(
    matches: Matches,
    features: tuple[FeatureMap, FeatureMap],
    images: tuple[Image, Image],
    names: tuple[str, str],
    model: str,
    *,
    automatic: bool,
    out: Path,
) -> None:
    """The heat map belongs to the first point, or to the surest of the automatic ones."""
    from ..draw import draw_matches
    from ..matching import similarity_map
    from ..types import write_atomically

    shown = _surest(matches) if automatic else 0
    picture = draw_matches(
        matches,
        *images,
        heat_map=similarity_map(*features, matches.source[shown]),
        heat_point=shown,
        title=f"{PurePath(model).name}, block {features[0].block}, noise level {features[0].timestep:g}",
        captions=(_name(names[0]), _name(names[1])),
    )
    buffer = io.BytesIO()
    picture.save(buffer, _PICTURES[out.suffix.lower()], quality=92)
    write_atomically(out, buffer.getvalue())


def _surest(matches: Matches) -> int:
    """The match that leads back closest to where it came from."""
    if matches.cycle_error is None:
        return int(matches.score.nan_to_num(nan=-1.0).argmax())
    return int(matches.cycle_error.nan_to_num(nan=float("inf")).argmin())


def _document(
    matches: Matches,
    features: tuple[FeatureMap, FeatureMap],
    names: tuple[str, str],
    model: str,
    automatic: bool,
    out: Path | None,
    clock: Clock,
) -> dict[str, Any]:
    return {
        "images": {"source": names[0], "target": names[1]},
        **matches.to_dict(),
        "source_size": list(features[0].image_size),
        "target_size": list(features[1].image_size),
        "automatic_points": automatic,
        "model": model,
        "prompts": {
            side: one.card.get("config", {}).get("prompt")
            for side, one in zip(("source", "target"), features, strict=True)
        },
        "card": dict(features[0].card),
        "out": None if out is None else str(out),
        "seconds": clock.seconds,
    }


def _print_table(
    matches: Matches, features: tuple[FeatureMap, FeatureMap], model: str, out: Path | None, clock: Clock
) -> None:
    from rich.table import Table

    one = features[0]
    table = Table(title=f"{model}, block {one.block}, noise level {one.timestep:g}", title_justify="left")
    table.add_column("point", justify="right", style="bold")
    for name in ("in A (x, y)", "in B (x, y)", "score", "cycle error (px)"):
        table.add_column(name, justify="right")
    values = matches.to_dict()
    rows = zip(values["source"], values["target"], values["score"], values["cycle_error"], strict=True)
    for number, (a, b, score, error) in enumerate(rows, 1):
        if score is None:
            table.add_row(str(number), _pair(a), "no match", "", "")
        else:
            table.add_row(str(number), _pair(a), _pair(b), f"{score:.3f}", "" if error is None else f"{error:.1f}")
    console = common.output_console()
    console.print(table)
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    console.print(spent, style="dim", soft_wrap=True)
    console.print(f"picture: {out}" if out is not None else "(--out matches.png draws them)", soft_wrap=True)


def _pair(point: list[float]) -> str:
    return ", ".join(f"{value:.1f}".removesuffix(".0") for value in point)


def _name(source: str) -> str:
    return PurePath(source.split("?")[0]).name or source
