"""``ditf eval hpatches``: homographies between images of planes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import common
from .common import Clock, ModelOptions
from .eval_output import bars, introduce, print_files, print_problems

_PROTOCOL = "Protocol"
NAME = "hpatches"
EXAMPLE = "Example:  ditf eval hpatches --data hpatches-sequences-release --model ditf-tiny --out result.json"


def command(
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The unpacked data set.", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="The result; tables and a picture beside it.", show_default=False)
    ],
    protocol: Annotated[
        Literal["ditf", "dift-sd", "dift-adm", "ditf-116"],
        typer.Option(help="What fixes all that is not the model.", rich_help_panel=_PROTOCOL),
    ] = "ditf",
    split: Annotated[
        Literal["all", "illumination", "viewpoint"], typer.Option(help="Which sequences.", rich_help_panel=_PROTOCOL)
    ] = "all",
    keypoints: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="One file per image, such as SuperPoint's: SEQUENCE-K.kp (rows of x y) or .npz (keypoints).",
            show_default="SIFT's strongest 1000",
            rich_help_panel=_PROTOCOL,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Features; may be shared.", show_default="OUT's name with .work, in features/"
        ),
    ] = None,
    store_gb: Annotated[
        float, typer.Option(help="Features on disk before those of finished sequences give way; 0: no limit.")
    ] = 2.0,
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
    size: common.Size = None,
    prompt: common.Prompt = None,
    seed: common.Seed = 0,
) -> None:
    """HPatches: keypoints of planes matched, homographies estimated.

    Accuracy at 1, 3 and 5 pixels of mean corner error and mean matching accuracy, over changes of light, of viewpoint
    and all; SIFT, pixel patches and the identity beside. Stopped at any moment, the same command goes on where it was.
    The exit code is 1 where pairs of the data set could not be scored.
    """
    from ..benchmarks.hpatches import protocols
    from ..benchmarks.hpatches_methods import MapDescriber, PatchDescriber, SiftDescriber
    from ..benchmarks.hpatches_pictures import draw_planes
    from ..benchmarks.hpatches_results import plane_document, save_planes
    from ..benchmarks.hpatches_runner import evaluate_planes
    from ..benchmarks.methods import ModelMethod
    from ..benchmarks.registry import find_benchmark
    from ..benchmarks.sheets import save_picture
    from ..errors import InputError
    from ..store import FeatureStore
    from .eval import check_out, write_sidecar

    common.set_voice(verbose)
    options = ModelOptions(
        model, "geometric", fused, device, model_dtype, revision, local_files_only, block, timestep, ensemble, discard,
        None, seed,
    )  # fmt: skip
    options.overrides()
    started, clock = datetime.now(UTC), Clock()
    benchmark, rules = find_benchmark(NAME), protocols[protocol]
    check_out(out)
    if keypoints is not None and not keypoints.is_dir():
        raise InputError(f"--keypoints: no such folder: {keypoints} (now in {Path.cwd()})")
    with clock.stage("read"):
        planes = benchmark.read(data, split, rules)
    work = out.with_suffix(".work")
    common.make_folder(work, "--out")
    features = FeatureStore(store or work / "features", limit=None if store_gb <= 0 else int(store_gb * 1e9))
    if not json:
        introduce(benchmark, rules, f"{len(planes.sequences)} sequences")
    with clock.stage("model"):
        fx = options.load(verbose)
        method = ModelMethod(fx.backbone.name, fx, rules.picture, size=size, prompt=prompt)
        describers = [MapDescriber(method, rules, features), SiftDescriber(rules.keypoints), PatchDescriber()]
    with clock.stage("evaluate"), bars() as progress:
        evaluation = evaluate_planes(
            describers, planes, rules, folder=work, keypoints=keypoints, seed=seed, progress=progress
        )
    card = _card(method, describers, keypoints, rules.keypoints, seed)
    document = plane_document(evaluation, planes, benchmark.about, card=card)
    files = save_planes(document, out)
    with clock.stage("picture"):
        files.append(save_picture(draw_planes(evaluation, planes, method.name), out.with_suffix(".png")))
    write_sidecar(out, started, clock)
    if json:
        common.print_json(document)
    else:
        _show(document)
        print_problems(document)
        print_files(files, clock, work)
    if evaluation.problems.damage:
        raise typer.Exit(1)


def _card(method: Any, describers: list[Any], keypoints: Path | None, count: int, seed: int) -> dict[str, Any]:
    import cv2

    from .. import __version__

    rows = {one.name: one.about() for one in describers[1:]}
    return {
        "ditf": __version__,
        "opencv": cv2.__version__,
        "keypoints": f"SIFT, the strongest {count}" if keypoints is None else "from files",
        "estimator_seed": seed,
        "methods": {method.name: method.card(), **rows},
    }


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    output = common.output_console()
    counts, protocol = document["counts"], document["protocol"]
    title = f"{document['data']['title']} {document['split']}, protocol {protocol['name']}"
    title += f": {counts['sequences']} sequences, {counts['pairs']} pairs"
    table = Table(title=title, title_justify="left")
    table.add_column("in %")
    table.add_column("group")
    for alpha in protocol["alphas"]:
        table.add_column(f"accuracy {alpha:g} px", justify="right")
    for name in ("MMA 1 px", "MMA 3 px", "MMA 5 px", "matches"):
        table.add_column(name, justify="right")
    for i, method in enumerate(document["methods"]):
        for group, row in method["groups"].items():
            values = [*row["accuracy"].values(), *(row["matching_accuracy"][t] for t in "135"), row["mean_matches"]]
            style = "bold" if i == 0 else None
            table.add_row(method["name"], group, *(f"{v:.1f}" for v in values), style=style)
    output.print(table)
    if document["data"]["fewer"]:
        output.print(document["data"]["fewer"], style="yellow")
    output.print(f"keypoints: {document['card']['keypoints']}; homographies: {protocol['estimator']}", style="dim")
    if left_out := document["data"]["left_out_by_convention"]:
        output.print(f"left out by convention: {', '.join(left_out)}", style="dim", soft_wrap=True)
    _show_published(document, output)


def _show_published(document: dict[str, Any], output: Any) -> None:
    from rich.table import Table

    from ..benchmarks.published import NOT_STATED

    ours, alphas = document["methods"][0], [f"{alpha:g}" for alpha in document["protocol"]["alphas"]]
    table = Table(title=f"Published, not run here; in brackets {ours['name']}", title_justify="left")
    for name in ("method", "group", *(f"{alpha} px" for alpha in alphas), "average", "source"):
        table.add_column(name, justify="right" if name.endswith(" px") else "left", overflow="fold")
    for row in document["published"]:
        same = ours["groups"].get(row["group"], {}).get("accuracy", {})
        values = (_beside(row["accuracy"].get(alpha), same.get(alpha)) for alpha in alphas)
        table.add_row(
            row["method"], row["group"], *values, row["average"] or NOT_STATED, f"{row['source']}; {row['note']}"
        )
    if document["published"]:
        output.print(table)
    output.print(document["published_elsewhere"], style="dim", soft_wrap=True)


def _beside(published: float | None, ours: float | None) -> str:
    if published is None:
        return ""
    return f"{published:g}" + ("" if ours is None else f" ({ours:.1f})")
