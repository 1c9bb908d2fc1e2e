"""``ditf data``: is a benchmark's folder whole, and can its pairs be made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common
from .eval_output import bars

NAME = "data"

app = typer.Typer(
    name=NAME,
    no_args_is_help=True,
    help="Look after the folders of benchmarks. Nothing is downloaded.",
    epilog="Example:  ditf data check SPair-71k",
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The unpacked data set.", show_default=False)]


@app.command(epilog="Example:  ditf data check SPair-71k")
def check(folder: Folder, json: common.Json = False) -> None:
    """Say which data set a folder holds and what it lacks. The exit code is 1 where something is missing."""
    from ..benchmarks.registry import benchmark_of_folder

    benchmark = benchmark_of_folder(folder)
    missing = benchmark.check(folder)
    if json:
        common.print_json(
            {"folder": str(folder), "benchmark": benchmark.name, **benchmark.about, "missing": missing,
             "whole": not missing}
        )  # fmt: skip
    else:
        output = common.output_console()
        output.print(f"{benchmark.title}: {benchmark.source}", soft_wrap=True)
        output.print(f"licence: {benchmark.licence}", soft_wrap=True, style="dim")
        for sentence in missing:
            output.print(f"missing: {sentence}", soft_wrap=True, style="yellow")
        if not missing:
            output.print("whole: nothing is missing")
    if missing:
        raise typer.Exit(1)


@app.command(epilog="Example:  ditf data prepare ap10k ap-10k --crowd ap-10k_is_crowd.txt")
def prepare(
    benchmark: Annotated[str, typer.Argument(metavar="ap10k", help="Which data set.", show_default=False)],
    folder: Folder,
    crowd: Annotated[
        Path | None,
        typer.Option(metavar="FILE.txt", help="Image ids to leave out, one a line.", show_default=False),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Training pairs too: some 260,000 small files.")] = False,
    json: common.Json = False,
) -> None:
    """Make the pairs of AP-10K from its original archive, in sorted order.

    The published lists depend on the file system they were made on and exist as no file; a folder that was prepared by
    GeoAware-SC's own notebook is taken by ditf eval as it is.
    """
    from ..benchmarks.ap10k_prepare import prepare as make
    from ..errors import InputError

    if benchmark != "ap10k":
        raise InputError(f"BENCHMARK: got {benchmark!r}, expected ap10k; the others need no preparation")
    root = folder if (folder / "annotations").is_dir() else folder / "ap-10k"
    with bars() as told:
        about = make(root, crowd=crowd, train=train, progress=lambda done, total: told("files", done, total))
    if json:
        common.print_json({"folder": str(root), **about})
        return
    output = common.output_console()
    output.print(f"{about['species']} species, {about['images']} images; {about['order']}")
    for split, one in about["lists"].items():
        output.print(f"{split}: {one['pairs']} pairs, sha256 {one['sha256'][:16]}")
    absent = about["images_without_file"]
    if absent["count"]:
        output.print(
            f"left out, no file in data/: {absent['count']}, first {absent['first'][0]}", style="yellow", soft_wrap=True
        )
