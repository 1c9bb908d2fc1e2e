"""``ditf sweep``: which block, timestep, discard, normalization and ensemble suit a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import Clock, ModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from ..sweep import Interval, Rival, Row, SweepResult

NAME = "sweep"
EXAMPLE = "Example:  ditf sweep photos/*.jpg --blocks 2-6 --timesteps 20,100,260 --ensemble 1,4 --out sweep"

_TRIED = "What is tried"


def command(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGES", help="Pictures, a dozen or more: paths or URLs.", show_default=False),
    ] = None,
    blocks: Annotated[
        str, typer.Option(metavar="all|2-6|0,5,7", help="All from one pass.", rich_help_panel=_TRIED)
    ] = "all",
    timesteps: Annotated[
        str, typer.Option(metavar="20,100,260", help="Noise levels, one pass each.", rich_help_panel=_TRIED)
    ] = "20,100,260",
    discard: Annotated[
        str,
        typer.Option(metavar="none,auto,preset,3+5", help="Massive channels; a list of lists.", rich_help_panel=_TRIED),
    ] = "none,auto,preset",
    normalization: Annotated[
        str, typer.Option(metavar="adaln,layernorm,none", help="Of the tokens.", rich_help_panel=_TRIED)
    ] = "adaln",
    ensemble: Annotated[
        str | None,
        typer.Option(
            metavar="1,4", help="How many noises.", show_default="what the preset says", rich_help_panel=_TRIED
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Score on pairs with keypoints, not on IMAGES and warps.", show_default=False
        ),
    ] = None,
    warps: Annotated[int, typer.Option(help="Of every picture; one half chooses, the other reports.")] = 4,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write result, table, heat map and preset; a sweep that was stopped goes on from here.",
            show_default=False,
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
    size: common.Size = None,
    seed: common.Seed = 0,
    prompt: common.Prompt = None,
) -> None:
    """Find the settings that suit a model, without labels.

    Every picture is matched with rotated, scaled and recoloured copies of itself. That measures how features stand a
    change of view and light; which of them find a cat's ear on another cat, only pairs with keypoints can say.

    --points takes a JSON object whose "pairs" is a list of objects with "source" and "target" (paths, relative to the
    file), "source_points" and "target_points" (lists of x, y) and, if wanted, "length" (pixels of the target that an
    error is measured by; default its larger side) and "category" (for the prompt).
    """
    from ..sweep import sweep

    common.set_voice(verbose)
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, None, None, None, None, size, seed
    )
    options.overrides()
    noises, discards = _numbers(timesteps, "--timesteps", float), _discards(discard)
    ensembles = None if ensemble is None else _numbers(ensemble, "--ensemble", int)
    chosen = None if blocks == "all" else _blocks(blocks)
    _check_sources(images, points)
    if out is not None:
        common.make_folder(out, "--out")
    clock = Clock()
    with clock.stage("model"):
        extractor = options.load(verbose)
        extractor = extractor if prompt is None else extractor.replace(prompt=prompt)
    with clock.stage("sweep"), _bar() as progress:
        result = sweep(
            extractor,
            images or None,
            points=points,
            blocks=chosen,
            timesteps=noises,
            discard=discards,
            normalization=normalization.split(","),
            ensemble=ensembles,
            warps=warps,
            folder=out,
            progress=progress,
        )
    files = [] if out is None else result.save(out)
    if json:
        document = {"model": model, **result.to_dict(), "files": [str(path) for path in files]}
        common.print_json({**document, "seconds": clock.seconds})
    else:
        _print(result, files, clock)


def _check_sources(images: list[str] | None, points: Path | None) -> None:
    """Before the model is opened.

    Raises:
        InputError: neither or both are given, or a file that is not there.
    """
    from ..errors import InputError

    if bool(images) == (points is not None):
        raise InputError("IMAGES: give either pictures or --points, and not both")
    for source in images or []:
        if not source.startswith(("http://", "https://")) and not Path(source).expanduser().is_file():
            raise InputError(f"image: no such file: {source}; check the path (now in {Path.cwd()})")


def _numbers(given: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    from ..errors import InputError

    try:
        return [kind(text) for text in given.split(",")]
    except ValueError:
        raise InputError(f"{option}: got {given!r}, expected numbers such as 1,4") from None


def _blocks(given: str) -> list[int]:
    """Numbers and ranges, both ends included."""
    from ..errors import InputError

    found: list[int] = []
    for part in given.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"--blocks: got {given!r}, expected all, or blocks such as 2-6 or 0,5,7")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _discards(given: str) -> list[str | tuple[int, ...]]:
    from ..errors import InputError

    found: list[str | tuple[int, ...]] = []
    for part in given.split(","):
        if part in ("none", "auto", "preset"):
            found.append(part)
            continue
        try:
            found.append(tuple(int(channel) for channel in part.split("+")))
        except ValueError:
            raise InputError(
                f"--discard: got {part!r}, expected none, auto, preset, or channels joined by + such as 3+5"
            ) from None
    return found


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr with rate and time left, gone when done; only on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as Work
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Work) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} pictures/s")

    console = common.errors_console()
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        work: Any = None

        def told(done: int, total: int) -> None:
            nonlocal work
            if work is None:  # what was there already is not part of the rate
                about = f"{done} were there already" if done else ""
                work = progress.add_task(about, total=total, completed=done)
            else:
                progress.update(work, completed=done)

        yield told


def _print(result: SweepResult, files: list[Path], clock: Clock) -> None:
    output = common.output_console()
    output.print(_score_table(result))
    if ahead := [rival.name for rival in result.rivals if rival.held_out.mean >= result.best.held_out.mean]:
        output.print(f"On the held-out half the best setting is not ahead of: {', '.join(ahead)}.", style="yellow")
    output.print("The best constant shift is told the answers. PCK in %, 95% intervals over pictures.", style="dim")
    if not result.labelled:
        output.print(
            "Scored on warps of the pictures themselves: robustness to view and light, not semantics (--points).",
            style="dim",
        )
    s = result.best.setting
    shown = f"{s.normalization}, discard {s.discard}, ensemble {s.ensemble}"
    output.print(f"(PCK@0.1 + PCK@0.05) / 2 of the choosing half, with {shown}:", soft_wrap=True)
    output.print(_heat_map(result))
    channels = ",".join(map(str, result.best.channels)) or "none"
    output.print(
        f"best: --block {s.block} --timestep {s.timestep:g} --ensemble {s.ensemble} --discard {channels}"
        + ("" if s.normalization == "adaln" else f", normalization {s.normalization}"),
        style="bold",
        soft_wrap=True,
    )
    for path in files:
        output.print(f"wrote {path}", soft_wrap=True)
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    output.print(spent, style="dim", soft_wrap=True)


def _score_table(result: SweepResult) -> Table:
    from rich.table import Table

    title = f"{result.card['model']}: {len(result.rows)} settings, {result.images} pictures, {result.pairs} pairs"
    table = Table(title=f"{title}, {result.points[1]} held-out points", title_justify="left")
    table.add_column("")
    for name in ("PCK@0.1", "PCK@0.05", "median error", "when choosing"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("best setting", *_cells(result.best), style="bold")
    for rival in result.rivals:
        table.add_row(rival.name, *_cells(rival))
    return table


def _cells(row: Row | Rival) -> tuple[str, str, str, str]:
    held = row.held_out
    both = f"{row.choosing.pck_10.value:.1f} / {row.choosing.pck_05.value:.1f}"
    return _interval(held.pck_10), _interval(held.pck_05), f"{held.median_error:.1%}", both


def _interval(one: Interval) -> str:
    return f"{one.value:.1f}" + ("" if one.low is None else f" ({one.low:.1f}..{one.high:.1f})")


def _heat_map(result: SweepResult) -> Table:
    """Colours on a terminal; elsewhere numbers, the best with a star."""
    from rich.table import Table
    from rich.text import Text

    from ..draw import viridis

    values, blocks, timesteps = result.grid()
    best = result.best.setting
    span = max(float(values.max() - values.min()), 1e-9)
    table = Table()
    table.add_column("block", justify="right")
    for timestep in timesteps:
        table.add_column(f"t = {timestep:g}", justify="right")
    for block, line in zip(blocks, values, strict=True):
        cells = []
        for timestep, value in zip(timesteps, line, strict=True):
            share = float(value - values.min()) / span
            star = "*" if (block, timestep) == (best.block, best.timestep) else ""
            ink = "black" if share > 0.5 else "white"
            cells.append(Text(f"{star}{value:.1f}", style=f"{ink} on #{bytes(viridis(share)).hex()}"))
        table.add_row(str(block), *cells)
    return table
