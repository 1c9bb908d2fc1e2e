"""``ditf eval synthetic``: a benchmark that needs no download."""

from __future__ import annotations

import json as _json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from . import common
from .common import Clock, ModelOptions
from .eval_output import bars, print_files, print_problems

_WHAT = "What is evaluated"
NAME = "synthetic"
EXAMPLE = "Example:  ditf eval synthetic --model ditf-tiny --out result.json"


def command(
    out: Annotated[
        Path,
        typer.Option(metavar="FILE.json", help="The result with its card; tables beside it."),
    ] = Path("synthetic.json"),
    full: Annotated[
        bool, typer.Option("--full", help="4,000 pairs and 24 clips in place of 400 and 4.", rich_help_panel=_WHAT)
    ] = False,
    pairs: Annotated[
        int | None,
        typer.Option(help="About so many pairs of all sets.", show_default="400, of --tune 120", rich_help_panel=_WHAT),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(metavar="semantic,photographs,...", help="Only these.", show_default="all", rich_help_panel=_WHAT),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose the model's settings on validation pairs instead.", rich_help_panel=_WHAT),
    ] = False,
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
    seed: common.Seed = 0,
) -> None:
    """Pairs that ditf draws itself, and photographs that come with scikit-image: no data set is needed.

    Parts of instances of kinds and in styles that the bundled model was trained on or never saw, two views of one
    scene, warped photographs, and clips. The method part by part, beside a random network of the same shape, the
    identity, the best constant shift, pixel patches and SIFT, with 95% intervals. Stopped at any moment, the same
    command goes on where it was.
    """
    from ..benchmarks.synthetic.card import card_of
    from ..benchmarks.synthetic.evaluation import evaluate, extractors_of, plan_of
    from ..benchmarks.synthetic.results import save_synthetic, synthetic_document
    from ..benchmarks.synthetic.tune import PAIRS
    from .eval import check_out, write_sidecar

    common.set_voice(verbose)
    options = ModelOptions(
        model, "semantic", fused, device, model_dtype, revision, local_files_only, block, timestep, ensemble, discard,
        size, seed,
    )  # fmt: skip
    overrides = options.overrides()
    started, clock = datetime.now(UTC), Clock()
    if tune and not full:
        pairs = PAIRS if pairs is None else pairs
    plan = plan_of(pairs, full=full, sets=None if sets is None else sets.split(","))
    check_out(out)
    work = out.with_suffix(".work")
    common.make_folder(work, "--out")
    with clock.stage("model"):
        fx = options.load(verbose)
    if tune:
        _tune(fx, overrides, plan, out, json, clock, started)
        return
    extractors = extractors_of(fx, plan.tasks, overrides)
    with clock.stage("evaluate"), bars() as progress:
        evaluation = evaluate(extractors, plan, model=model, folder=work, progress=progress)
    document = synthetic_document(evaluation, card=card_of(extractors, evaluation))
    files = save_synthetic(document, out)
    write_sidecar(out, started, clock)
    if json:
        common.print_json(document)
        return
    _show(document)
    print_problems(document)
    print_files(files, clock, work)


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from ..benchmarks.synthetic.results import interval_text

    output, headline = common.output_console(), document["protocol"]["headline"]
    for name, one in document["sets"].items():
        title = f"{name}: {one['pairs']} pairs, {one['points']} points; PCK in %, {headline.replace('_', ' ')}"
        table = Table(title=title, title_justify="left")
        table.add_column("method")
        for alpha in document["protocol"]["alphas"]:
            table.add_column(f"@{alpha:g}", justify="right")
        table.add_column("median error", justify="right")
        for row, values in one["rows"].items():
            cells = [interval_text(of[headline]) for of in values["pck"].values()]
            median = "" if values["median_error"] is None else f"{values['median_error']:.3f}"
            table.add_row(row, *cells, median, style="bold" if row == one["chosen"] else None)
        output.print(table)
        _print_differences(
            [(d["first"], d["second"], d["pck"]["0.1"][headline]) for d in one["differences"]], "PCK@0.1", output
        )
    if document["temporal"]:
        _show_clips(document["temporal"], output)
    for name, why in document["card"]["unavailable"].items():
        output.print(f"not available: {name} ({why})", soft_wrap=True, style="yellow")


def _show_clips(found: dict[str, Any], output: Any) -> None:
    from rich.table import Table

    table = Table(title=f"temporal: clips: {found['clips']}, frames of each: {found['frames']}", title_justify="left")
    table.add_column("method")
    for heading in found["measures"].values():
        table.add_column(heading, justify="right")
    for row, values in found["rows"].items():
        cells = ("" if values[key] is None else f"{values[key][0]:.1f}" for key in found["measures"])
        table.add_row(row, *cells, style="bold" if row == found["chosen"] else None)
    output.print(table)
    _print_differences([(d["first"], d["second"], d["j_and_f"]) for d in found["differences"]], "J&F", output)


def _print_differences(differences: list[tuple[str, str, Any]], what: str, output: Any) -> None:
    from ..benchmarks.synthetic.results import interval_text

    for one, other, values in differences:
        output.print(f"  {what}  {one} - {other}: {interval_text(values, '+')}", soft_wrap=True, highlight=False)
    output.print()


def _tune(
    fx: Any, overrides: dict[str, Any], plan: Any, out: Path, json: bool, clock: Clock, started: datetime
) -> None:
    """The best setting of each task, and every row that was looked at."""
    from rich.table import Table

    from ..benchmarks.synthetic.tune import save_tuning, tune
    from .eval import write_sidecar

    with clock.stage("tune"), bars() as progress:
        document = tune(fx, plan, overrides=overrides, folder=out.with_suffix(".work"), progress=progress)
    files = save_tuning(document, out)
    write_sidecar(out, started, clock)
    if json:
        common.print_json(document)
        return
    output = common.output_console()
    for task, found in document["tasks"].items():
        table = Table(title=f"{task}: {found['pairs']} validation pairs, PCK@0.1 in %", title_justify="left")
        for heading in found["best"]:
            table.add_column(heading, justify="right")
        for row in found["rows"][: document["shown"]]:
            table.add_row(*(f"{v:.1f}" if isinstance(v, float) and k == "pck" else str(v) for k, v in row.items()))
        output.print(table)
        output.print(f"best: {_json.dumps(found['best'])}\n", soft_wrap=True, highlight=False)
    for path in files:
        output.print(f"wrote {path}", soft_wrap=True)
