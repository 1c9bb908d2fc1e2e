"""What ``ditf eval`` says to people."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common
from .common import Clock

if TYPE_CHECKING:
    from ..benchmarks.registry import Benchmark


def introduce(benchmark: Benchmark, protocol: Any, amount: str) -> None:
    """Before the work: ``protocol`` has a name and says what it is about."""
    console = common.errors_console()
    console.print(f"{benchmark.title}: {benchmark.source}", soft_wrap=True)
    console.print(f"licence: {benchmark.licence}", soft_wrap=True, style="dim")
    console.print(f"protocol {protocol.name}: {protocol.about}", soft_wrap=True)
    console.print(f"{amount} to score", soft_wrap=True)


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr with rate and time left, gone when done; only on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as Work
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Work) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    console = common.errors_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        works: dict[str, Any] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in works:  # what was there already is not part of the rate
                works[stage] = progress.add_task(stage, total=total, completed=done)
            else:
                progress.update(works[stage], completed=done, total=total)

        yield told


def show_result(document: dict[str, Any], files: list[Path], clock: Clock, work: Path) -> None:
    from rich.table import Table

    output = common.output_console()
    counts, protocol = document["counts"], document["protocol"]
    title = (
        f"{document['data']['title']} {document['split']}, protocol {protocol['name']}: {counts['pairs']} pairs, "
        f"{counts['points']} points"
    )
    if (sample := document["data"].get("sample")) is not None:
        title += f", a sample of {sample['pairs_of_a_category']} pairs a category"
    table = Table(title=title, title_justify="left")
    for name in ("PCK in %", "alpha"):
        table.add_column(name)
    for name in document["averages"]:
        mark = " *" if name == protocol["headline"] else ""
        table.add_column(name.replace("_", " ") + mark, justify="right")
    for i, method in enumerate(document["methods"]):
        for alpha, values in method["pck"].items():
            style = "bold" if i == 0 else None
            table.add_row(method["name"], alpha, *(f"{values[k]:.2f}" for k in document["averages"]), style=style)
    output.print(table)
    output.print(f"* the average that {protocol['name']} prints", style="dim")
    for method in document["methods"]:
        if "mirrored_pairs" in method:
            output.print(f"{method['name']}: {method['mirrored_pairs']} of {counts['pairs']} pairs matched mirrored")
    if "geometry_aware" in document:
        _print_geometry_aware(document, output)
    if "ablation" in document:
        _print_ablation(document["ablation"], output)
    _print_published(document, output)
    for name, why in document["card"]["unavailable"].items():
        output.print(f"not available: {name} ({why})", soft_wrap=True, style="yellow")
    print_problems(document)
    print_files(files, clock, work)


def print_problems(document: dict[str, Any]) -> None:
    console = common.errors_console()
    for kind, found in document["problems"].items():
        console.print(
            f"{kind}: {found['count']}, first {', '.join(found['first'][:3])}", soft_wrap=True, style="yellow"
        )


def print_files(files: list[Path], clock: Clock, work: Path) -> None:
    output = common.output_console()
    for path in files:
        output.print(f"wrote {path}", soft_wrap=True)
    output.print(f"features and unfinished work are in {work}; it may be deleted", soft_wrap=True, style="dim")
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    output.print(spent, style="dim", soft_wrap=True)


def _print_ablation(ablation: dict[str, Any], output: Any) -> None:
    from rich.table import Table

    table = Table(title=f"PCK@{ablation['alpha']}, {ablation['average'].replace('_', ' ')}", title_justify="left")
    for name in ("row", "here", "reference"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in ablation["rows"]:
        table.add_row(row["name"], f"{row['pck']:.2f}", "" if row["reference"] is None else f"{row['reference']:g}")
    output.print(table)


def _print_geometry_aware(document: dict[str, Any], output: Any) -> None:
    """The subset's averages, all points beside them."""
    from rich.table import Table

    aware, headline = document["geometry_aware"], document["protocol"]["headline"]
    table = Table(title=f"Geometry-aware points: {aware['points']} of {aware['of_points']}", title_justify="left")
    average = headline.replace("_", " ")
    for name in ("method", "alpha", f"{average}, these", f"{average}, all", "point micro, these"):
        table.add_column(name, justify="left" if name in ("method", "alpha") else "right")
    everything = {method["name"]: method["pck"] for method in document["methods"]}
    for method in aware["methods"]:
        for alpha, values in method["pck"].items():
            whole = everything[method["name"]][alpha][headline]
            cells = (values[headline], whole, values["point_micro"])
            table.add_row(method["name"], alpha, *(f"{value:.2f}" for value in cells))
    output.print(table)


def _print_published(document: dict[str, Any], output: Any) -> None:
    from rich.table import Table

    if not document["published"]:
        output.print("No published number of this split is known with its average.", style="dim")
        return
    ours = document["methods"][0]
    run = "this run" if "sample" not in document["data"] else "this sample; theirs are of all pairs"
    table = Table(title=f"Published, beside the same average of {run}", title_justify="left")
    for name in ("method", "alpha", "published", "average", f"{ours['name']}", "source"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("alpha", "published", ours["name"]) else "left"
        )
    for row in document["published"]:
        same = ours["pck"].get(f"{row['alpha']:g}", {}).get(row["average"])
        source = row["source"] + (f"; {row['note']}" if row["note"] else "")
        table.add_row(
            row["method"], f"{row['alpha']:g}", f"{row['value']:g}", row["average"] or "not said",
            "" if same is None else f"{same:.2f}", source,
        )  # fmt: skip
    output.print(table)


def show_comparison(found: dict[str, Any]) -> None:
    """The table of ``ditf eval compare``."""
    from rich.table import Table

    output = common.output_console()
    title = f"{found['benchmark']} {found['split']}, PCK@{found['alpha']}: {found['pairs']} pairs"
    table = Table(title=title, title_justify="left")
    for name in ("average", *found["methods"], "difference", "95%", "p"):
        table.add_column(name, justify="left" if name == "average" else "right")
    for name, one in found["averages"].items():
        table.add_row(
            name.replace("_", " "), f"{one['first']:.2f}", f"{one['second']:.2f}", f"{one['difference']:+.2f}",
            f"{one['low']:+.2f}..{one['high']:+.2f}", f"{one['p']:.3f}",
        )  # fmt: skip
    output.print(table)
    output.print(f"intervals: {found['intervals']}", style="dim")
    if found["protocols"][0] != found["protocols"][1]:
        output.print(f"two protocols: {' and '.join(found['protocols'])}", style="yellow")
    for key, said in (
        ("only_in_one", "pairs are in one result only"),
        ("with_other_points", "pairs have other points"),
    ):
        if found[key]:
            output.print(f"left out: {found[key]} {said}", style="yellow")
