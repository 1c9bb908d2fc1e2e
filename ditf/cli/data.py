"""``ditf data``: a benchmark's folder downloaded, looked through, and its pairs made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import common
from .eval_output import bars

if TYPE_CHECKING:
    from ..benchmarks.download import Arrived, Downloaded, Plan
    from ..benchmarks.registry import Benchmark

NAME = "data"

app = typer.Typer(
    name=NAME,
    no_args_is_help=True,
    help="Look after the folders of benchmarks. Only [bold]download[/bold] downloads.",
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
        _print_about(benchmark)
        _print_missing(missing)
    if missing:
        raise typer.Exit(1)


@app.command(epilog="Example:  ditf data download hpatches data")
def download(
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK", help="spair, pfpascal, pfwillow, hpatches, davis, ap10k.", show_default=False
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The archive's own folder will be in it.", show_default=False)
    ],
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Take files of the same names from there.", show_default="the authors' host"),
    ] = None,
    json: common.Json = False,
) -> None:
    """Download a data set, check it, unpack it and say what it lacks.

    Source, licence and size are printed first. A download that broke off goes on where it was when the same command is
    given again. Files are held to their published SHA-256; where nobody publishes one, it is printed and written beside
    the archive, and the next download is held to it. The exit code is 1 where something is missing.
    """
    from ..benchmarks.download import carry_out, plan_download
    from ..benchmarks.registry import find_benchmark

    _print_about(find_benchmark(benchmark), errors=json)
    plan = plan_download(benchmark, folder, mirror)
    _print_plan(plan, errors=json)
    with _transfer_bars() as told:
        found = carry_out(plan, told)
    if json:
        common.print_json(
            {"benchmark": benchmark, "folder": str(found.root), "files": [one.to_dict() for one in found.files],
             "missing": list(found.missing), "whole": not found.missing}
        )  # fmt: skip
    else:
        _print_arrived(found)
        _print_missing(found.missing)
        if not found.missing:
            common.output_console().print(f"now: ditf eval {benchmark} --data {found.root} --out result.json",
                                          soft_wrap=True)  # fmt: skip
    if found.missing:
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


def _print_about(benchmark: Benchmark, *, errors: bool = False) -> None:
    output = common.errors_console() if errors else common.output_console()
    output.print(f"{benchmark.title}: {benchmark.source}", soft_wrap=True)
    output.print(f"licence: {benchmark.licence}", soft_wrap=True, style="dim")


def _print_missing(missing: tuple[str, ...] | list[str]) -> None:
    output = common.output_console()
    for sentence in missing:
        output.print(f"missing: {sentence}", soft_wrap=True, style="yellow")
    if not missing:
        output.print("whole: nothing is missing")


def _print_plan(plan: Plan, *, errors: bool) -> None:
    from ..benchmarks.download_http import megabytes

    output = common.errors_console() if errors else common.output_console()
    for one in plan.files:
        size = "size not said by the server" if one.size is None else megabytes(one.size)
        if one.path.is_file():
            output.print(f"there: {one.path} ({size})", soft_wrap=True)
        else:
            there = f", {megabytes(one.have)} of it are there" if one.have else ""
            output.print(f"download: {one.source.url} ({size}{there}), named by {one.source.given_by}", soft_wrap=True)
        held = f"SHA-256 {one.expected}, from {one.expected_from}" if one.expected else "no SHA-256 is published"
        output.print(f"  {held}", soft_wrap=True, style="dim")


def _print_arrived(found: Downloaded) -> None:
    output = common.output_console()
    for one in found.files:
        output.print(f"{one.path}: SHA-256 {one.sha256}{_first(one)}", soft_wrap=True)
        if one.unpacked is None:
            continue
        output.print(f"unpacked {one.unpacked.files} files; {one.path.name} may be deleted", soft_wrap=True)
        for said, names in (
            ("replaced, as they differed", one.unpacked.replaced),
            ("left aside", one.unpacked.left_aside),
        ):
            if names:
                output.print(f"{said}: {len(names)}, first {names[0]}", soft_wrap=True, style="yellow")


def _first(one: Arrived) -> str:
    return f" (written to {one.path.name}.sha256; the next download is held to it)" if one.first else ""


@contextlib.contextmanager
def _transfer_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Bars in bytes; only on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = common.errors_console()
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        works = {}

        def told(stage: str, done: int, total: int | None) -> None:
            if stage not in works:
                works[stage] = progress.add_task(stage, total=total, completed=done)
            else:
                progress.update(works[stage], completed=done, total=total)

        yield told
