"""``ditf match``: points of one picture found in another."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import common
from .common import Clock, ModelOptions
from .match_outputs import Outputs, Result, check_outputs, document, draw, export, print_table, warp

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..types import DenseMatches, FeatureMap, Matches

NAME = "match"
EXAMPLE = "Example:  ditf match photo.jpg other.png --point 100,80 --point 40,25 --out matches.png"

_AUTOMATIC, _SIFT = 12, 1000
_CYCLE_SHARE = 0.05  # of the longer side of A: a match that leads back
_GEOMETRY, _FILES = "Matching and geometry", "Files for other programs"

Refine = Literal["argmax", "soft", "window-soft"]
Keypoints = Literal["distinctive", "mutual", "grid", "sift"]
Resolution = Literal["tokens", "image"]


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
    keypoints: Annotated[
        Keypoints | None,
        typer.Option(
            help="Which points without --point: about twelve distinctive ones, token centres that match both ways, "
            "all token centres, or SIFT's.",
            show_default="mutual for a homography and reconstruction, else distinctive",
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    topk: Annotated[
        int, typer.Option(min=1, help="Also report this many best pixels per point.", rich_help_panel=_GEOMETRY)
    ] = 1,
    refine: Annotated[
        Refine, typer.Option(help="Whole pixels, or a soft argmax below them.", rich_help_panel=_GEOMETRY)
    ] = "argmax",
    cycle: Annotated[
        bool,
        typer.Option(
            "--cycle",
            help="Keep only points whose match leads back, within 5% of A's longer side.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = False,
    homography: Annotated[
        bool,
        typer.Option("--homography", help="What most matches agree with (MAGSAC).", rich_help_panel=_GEOMETRY),
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="All of A, not points; --out draws the flow.", rich_help_panel=_GEOMETRY)
    ] = False,
    resolution: Annotated[
        Resolution | None,
        typer.Option(
            help="Of --dense: every token of A, or every pixel, exactly (seconds on a CPU).",
            show_default="tokens",
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    warped: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="With --homography, A as B sees it; with --dense, B brought to A.",
            show_default=False,
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    export_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--export",
            metavar="FILE",
            help="The matches as .json, .csv, .npz or .h5; repeatable.",
            show_default=False,
            rich_help_panel=_FILES,
        ),
    ] = None,
    export_colmap: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For COLMAP's feature_importer and matches_importer (raw).",
            show_default=False,
            rich_help_panel=_FILES,
        ),
    ] = None,
    export_hloc: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For hloc: features.h5, matches.h5, pairs.txt.",
            show_default=False,
            rich_help_panel=_FILES,
        ),
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
    outputs = Outputs(out, warped, export_files or [], export_colmap, export_hloc)
    asked = _Asked(chosen, keypoints, topk, refine, cycle, homography, dense, resolution, export_colmap or export_hloc)
    asked.check(warped)
    check_outputs(outputs, (source, target))
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
            result = _matched(asked, features, images, (source, target), model)
        if out is not None:
            step("drawing")
            with clock.stage("draw"):
                draw(result, images, out)
        if warped is not None and not warp(result, images, warped):
            warped = None
        written = export(result, outputs)
    if json:
        common.print_json(document(result, out, warped, written, clock))
    else:
        print_table(result, out, warped, written, clock)


@dataclass(frozen=True)
class _Asked:
    """What to match and what to make of it."""

    points: list[tuple[float, float]]
    keypoints: Keypoints | None
    topk: int
    refine: Refine
    cycle: bool
    homography: bool
    dense: bool
    resolution: Resolution | None
    reconstruction: object

    @property
    def kind(self) -> Keypoints:
        return self.keypoints or ("mutual" if self.homography or self.reconstruction else "distinctive")

    def check(self, warped: Path | None) -> None:
        """Options that exclude one another.

        Raises:
            InputError: the first pair that does.
        """
        from ..errors import InputError

        if self.points and self.keypoints:
            raise InputError("--keypoints: got points as well; give one of the two")
        others = {
            "--point": self.points,
            "--keypoints": self.keypoints,
            "--topk": self.topk > 1,
            "--refine": self.refine != "argmax",
        }
        for name in (name for name, given in others.items() if given and self.dense):
            raise InputError(f"{name}: does not go with --dense, which matches all of A once; leave one out")
        if self.resolution and not self.dense:
            raise InputError("--resolution: needs --dense; add it, or leave it out")
        if warped is not None and not (self.homography or self.dense):
            raise InputError("--warped: needs --homography or --dense, which say how; add one")
        if self.homography or self.kind == "sift":
            from ..geometry.keypoints import opencv

            opencv("--homography" if self.homography else "--keypoints sift")


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


def _images(source: str, target: str, points: list[tuple[float, float]], option: str) -> tuple[Image, Image]:
    from ..images import load_image
    from .points import check_inside

    images = load_image(source), load_image(target)
    check_inside(points, (images[0].height, images[0].width), option, source)
    return images


def _matched(
    asked: _Asked,
    features: tuple[FeatureMap, FeatureMap],
    images: tuple[Image, Image],
    names: tuple[str, str],
    model: str,
) -> Result:
    """The matches, and what was asked for beside them."""
    from ..geometry import estimate_homography
    from ..matching import match_points, mutual_matches

    source, target = features
    dense, dropped, found = None, None, None
    if asked.dense:
        dense, matches = _dense(source, target, asked.resolution or "tokens", asked.cycle)
    elif asked.kind == "mutual" and not asked.points and asked.topk == 1 and asked.refine == "argmax":
        matches = mutual_matches(source, target)
    else:
        points = asked.points or _keypoints(asked.kind, features, images[0])
        matches = match_points(source, target, points, topk=asked.topk, refine=asked.refine, cycle=True)
    if asked.cycle and matches.cycle_error is not None:
        back = matches.cycle_error <= _CYCLE_SHARE * max(source.image_size)  # NaN compares False
        matches, dropped = matches.select(back), int((~back).sum())
    if asked.homography:
        token = max(target.extent[0] / target.grid[0], target.extent[1] / target.grid[1])
        found = estimate_homography(matches, threshold=max(3.0, 0.75 * token))
    return Result(matches, features, names, model, not asked.points, dropped, found, dense)


def _keypoints(kind: Keypoints, features: tuple[FeatureMap, FeatureMap], image: Image) -> Tensor:
    from ..geometry import sift_points
    from ..matching import distinctive_points, mutual_matches, token_centres

    if kind == "distinctive":
        return distinctive_points(features[0], _AUTOMATIC)
    if kind == "mutual":
        return mutual_matches(*features).source
    return sift_points(image, _SIFT) if kind == "sift" else token_centres(features[0])


def _dense(source: FeatureMap, target: FeatureMap, resolution: Resolution, cycle: bool) -> tuple[DenseMatches, Matches]:
    """Every token or pixel of the source, and the same as points; with ``cycle``, none where it does not lead back."""
    from ..dense import match_dense
    from ..types import Matches

    dense = match_dense(source, target, resolution=resolution, mutual=cycle)
    if cycle and dense.cycle_error is not None:
        astray = ~(dense.cycle_error <= _CYCLE_SHARE * max(source.image_size))  # NaN compares False
        lost = dense.target.masked_fill(astray[..., None], -1.0), dense.score.masked_fill(astray, math.nan)
        dense = dataclasses.replace(dense, target=lost[0], score=lost[1])
    error = None if dense.cycle_error is None else dense.cycle_error.flatten()
    sizes = source.image_size, target.image_size
    cells = Matches(
        dense.source.reshape(-1, 2), dense.target.reshape(-1, 2), dense.score.flatten(), None, error, *sizes
    )
    return dense, cells.select(cells.source.isfinite().all(1))  # without padding
