"""``ditf eval davis``: the objects of a first mask carried through videos."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import common
from .common import Clock, ModelOptions
from .eval_output import bars, print_files, print_problems

_PROTOCOL = "Protocol"
NAME = "davis"
EXAMPLE = "Example:  ditf eval davis --data DAVIS --model ditf-tiny --protocol ditf --out result.json"


def command(
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The unpacked data set.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.json", help="The result; tables, masks and a picture beside it.", show_default=False
        ),
    ],
    protocol: Annotated[
        Literal["ditf", "dino", "dift-sd", "dift-adm"],
        typer.Option(help="Whose propagation and size of frames.", rich_help_panel=_PROTOCOL),
    ] = "ditf",
    split: Annotated[
        Literal["val", "train"], typer.Option(help="Of ImageSets/2017.", rich_help_panel=_PROTOCOL)
    ] = "val",
    ties: Annotated[
        Literal["exact", "kept"],
        typer.Option(
            help="As many votes as said, or also those that tie, as published code.", rich_help_panel=_PROTOCOL
        ),
    ] = "exact",
    affinity_dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="bfloat16 is DiTF's arithmetic; it goes with --ties kept.", rich_help_panel=_PROTOCOL),
    ] = "float32",
    masks: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Indexed PNG, a folder per row.", show_default="OUT's name with .masks"),
    ] = None,
    json: common.Json = False,
    verbose: common.Verbose = False,
    model: common.Model = "ditf-tiny",
    fused: common.Fused = "true",
    device: common.Device = None,
    model_dtype: common.Dtype = None,
    revision: common.Revision = None,
    local_files_only: common.LocalFilesOnly = False,
    block: common.Block = None,
    timestep: common.Timestep = None,
    ensemble: common.Ensemble = None,
    discard: common.Discard = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="A frame's shorter side as the model sees it, in pixels.",
            show_default="the protocol's",
            rich_help_panel=common.FEATURES,
        ),
    ] = None,
    prompt: common.Prompt = None,
    seed: common.Seed = 0,
) -> None:
    """DAVIS-2017: the objects of a first mask carried through videos, J and F.

    Pixel patches and the copied first mask beside. Masks are written in the layout of DAVIS's own evaluation. Stopped
    at any moment, the same command goes on with the next sequence. The exit code is 1 where sequences could not be
    scored.
    """
    from ..benchmarks import davis
    from ..benchmarks.davis_methods import ModelVideo, PatchVideo
    from ..benchmarks.davis_pictures import draw_objects
    from ..benchmarks.davis_results import save_videos, video_document
    from ..benchmarks.davis_runner import evaluate_videos
    from ..benchmarks.registry import find_benchmark
    from ..benchmarks.sheets import save_picture
    from .eval import check_out, write_sidecar

    common.set_voice(verbose)
    options = ModelOptions(
        model, "temporal", fused, device, model_dtype, revision, local_files_only, block, timestep, ensemble, discard,
        None, seed,
    )  # fmt: skip
    options.overrides()
    started, clock = datetime.now(UTC), Clock()
    benchmark = find_benchmark(NAME)
    rules = davis.protocols[protocol].replace(ties=ties, affinity_dtype=affinity_dtype)
    check_out(out)
    work, into = out.with_suffix(".work"), masks or out.with_suffix(".masks")
    for folder, option in ((work, "--out"), (into, "--masks")):
        common.make_folder(folder, option)
    with clock.stage("read"), bars() as progress:
        videos = benchmark.read(data, split, rules, progress=progress)
    if not json:
        _introduce(benchmark, protocol, videos)
    with clock.stage("model"):
        fx = options.load(verbose)
        method = ModelVideo(fx.backbone.name, fx, rules, side=size, prompt=prompt)
        methods = [method, PatchVideo()]
    with clock.stage("evaluate"), bars() as progress:
        evaluation = evaluate_videos(methods, videos, rules, name=protocol, folder=work, masks=into, progress=progress)
    document = video_document(evaluation, videos, benchmark.about, name=protocol, card=_card(methods))
    files = save_videos(document, out)
    with clock.stage("picture"):
        files.append(save_picture(draw_objects(evaluation, videos, into, method.name), out.with_suffix(".png")))
    write_sidecar(out, started, clock)
    if json:
        common.print_json(document)
    else:
        _show(document)
        print_problems(document)
        common.output_console().print(f"masks: {into}", soft_wrap=True)
        print_files(files, clock, work)
    if videos.left_out:
        raise typer.Exit(1)


def _introduce(benchmark: Any, protocol: str, videos: Any) -> None:
    from ..benchmarks.davis import ABOUT

    console = common.errors_console()
    console.print(f"{benchmark.title}: {benchmark.source}", soft_wrap=True)
    console.print(f"licence: {benchmark.licence}", soft_wrap=True, style="dim")
    console.print(f"protocol {protocol}: {ABOUT[protocol]}", soft_wrap=True)
    frames = sum(len(video.frames) for video in videos.videos)
    console.print(f"{len(videos.videos)} sequences of {frames} frames to score", soft_wrap=True)


def _card(methods: list[Any]) -> dict[str, Any]:
    from .. import __version__

    model, patches = methods
    return {"ditf": __version__, "methods": {model.name: model.card(), patches.name: patches.about()}}


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from ..benchmarks.davis_results import MEASURES

    output, counts = common.output_console(), document["counts"]
    title = f"{document['data']['title']} {document['split']}, protocol {document['protocol']['name']}"
    title += f": {counts['sequences']} sequences, {counts['objects']} objects"
    table = Table(title=title, title_justify="left")
    table.add_column("in %, over objects")
    for heading in MEASURES:
        table.add_column(heading, justify="right")
    for i, method in enumerate(document["methods"]):
        values = (f"{method[key]:.1f}" for key in MEASURES.values())
        table.add_row(method["name"], *values, style="bold" if i == 0 else None)
    output.print(table)
    if document["data"]["fewer"]:
        output.print(document["data"]["fewer"], style="yellow")
    _show_published(document, output)


def _show_published(document: dict[str, Any], output: Any) -> None:
    from rich.table import Table

    from ..benchmarks.published import NOT_STATED, OVER_OBJECTS

    ours = document["methods"][0]
    table = Table(title="Published, not run here, beside the same average of this run", title_justify="left")
    for name in ("method", "J&F", "J", "F", "average over", f"{ours['name']} J&F", "source"):
        table.add_column(name, justify="left" if name in ("method", "average over", "source") else "right",
                         overflow="fold")  # fmt: skip
    for row in document["published"]:
        values = ("" if row[key] is None else f"{row[key]:g}" for key in ("j_and_f", "j", "f"))
        same = f"{ours['j_and_f']:.1f}" if row["average"] == OVER_OBJECTS else ""
        source = row["source"] + (f"; {row['note']}" if row["note"] else "")
        table.add_row(row["method"], *values, row["average"] or NOT_STATED, same, source)
    if document["published"]:
        output.print(table)
    output.print(document["published_elsewhere"], style="dim", soft_wrap=True)
