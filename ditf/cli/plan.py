"""``ditf plan``: what an extraction will read, hold and compute, before anything is downloaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import common

if TYPE_CHECKING:
    from rich.table import Table

    from ..plan import Fit, Part, Plan

NAME = "plan"
EXAMPLE = "Example:  ditf plan black-forest-labs/FLUX.1-dev --image 1024x768 --ensemble 8 --gpu h100"

Image = Annotated[
    str,
    typer.Option(metavar="WIDTHxHEIGHT", help="Of the picture in pixels, before the preset resizes it: width first."),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        metavar="h100|h200|a100|l40s|rtx4090|...",
        help="Hold the plan against this card's data sheet.",
        show_default=False,
    ),
]
Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"],
    typer.Option(help="Of the transformer and text encoders: bfloat16 as on a GPU, float32 as on a CPU."),
]


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or ditf-tiny.", show_default=False)],
    image: Image = "1024x1024",
    gpu: Gpu = None,
    dtype: Dtype = "bfloat16",
    task: common.Task = "semantic",
    block: common.Block = None,
    size: common.Size = None,
    ensemble: common.Ensemble = None,
    revision: common.Revision = None,
    local_files_only: common.LocalFilesOnly = False,
    json: common.Json = False,
    verbose: common.Verbose = False,
) -> None:
    """Say what an extraction will read, hold and compute, without reading a weight.

    Bytes of weights that are read, peak memory of each stage, floating-point operations up to the tapped block, and
    with --gpu whether it fits a card and the least time it can take there.

    Well-known checkpoints need no network: their configs come with ditf.
    """
    import torch

    common.set_voice(verbose)
    width, height = _parsed(image)
    if not verbose:
        common._quiet_loading_bars()
    from ..plan import plan_extraction

    given: dict[str, Any] = {"block": block, "size": size, "ensemble": ensemble}
    plan = plan_extraction(
        model,
        image=(height, width),
        task=task,
        gpu=gpu,
        dtype=getattr(torch, dtype),
        revision=revision,
        local_files_only=local_files_only,
        **{name: value for name, value in given.items() if value is not None},
    )
    if json:
        common.print_json(plan.to_dict())
    else:
        _print(plan)


def _parsed(image: str) -> tuple[int, int]:
    """(width, height).

    Raises:
        InputError: not WIDTHxHEIGHT.
    """
    from ..errors import InputError

    found = re.fullmatch(r"([1-9]\d{0,4})[xX\u00d7]([1-9]\d{0,4})", image.strip())
    if found is None:
        raise InputError(f"--image: got {image!r}, expected WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(found[1]), int(found[2])


def _print(plan: Plan) -> None:
    output = common.output_console()
    image, seen = (f"{w} x {h}" for h, w in (plan.image_size, plan.model_size))
    output.print(f"{plan.model}: block {plan.block} of {plan.num_blocks}, {plan.dtype}", style="bold", soft_wrap=True)
    output.print(
        f"picture {image} (width x height), seen as {seen}: {plan.grid[1]} x {plan.grid[0]} tokens"
        f"{f' and {plan.text_tokens} of text' if plan.text_tokens else ''}, ensemble of {plan.ensemble}",
        soft_wrap=True,
    )
    output.print(f"configs from {plan.configs_from}", style="dim", soft_wrap=True)
    output.print(_weights(plan))
    output.print(_stages(plan))
    output.print(_sentence(plan), soft_wrap=True)
    if plan.fit is not None:
        _print_fit(plan, plan.fit)
    for note in plan.notes:
        output.print(f"note: {note}", style="dim", soft_wrap=True)


def _weights(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(title="weights", title_justify="left")
    for name in ("part", "class", "parameters", "on disk", "read", "in memory", "stored as"):
        table.add_column(name, justify="left" if name in ("part", "class", "stored as") else "right")
    files = any(part.files is not None for part in plan.parts)
    if files:
        table.add_column("files opened", justify="right")
    for part in plan.parts:
        opened = [] if not files else ["" if part.files is None else f"{len(part.files)} of {part.files_in_all}"]
        table.add_row(
            part.name, part.kind, f"{part.parameters:,}", _size(part.bytes_stored), _size(part.bytes_read),
            _size(part.bytes_resident), _stored(part), *opened,
        )  # fmt: skip
    table.add_section()
    table.add_row("all", "", "", _size(plan.bytes_stored), _size(plan.bytes_read), "", "")
    return table


def _stages(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(title="stages, one after the other", title_justify="left")
    table.add_column("stage")
    for name in ("weights", "activations", "peak memory", "TFLOP"):
        table.add_column(name, justify="right")
    if plan.fit is not None:
        table.add_column("at least", justify="right")
        table.add_column("limit")
    for i, stage in enumerate(plan.stages):
        known = stage.activation_bytes is not None
        row = [
            stage.name + (" *" if stage is plan.largest else ""),
            _size(stage.weights_bytes),
            _size(stage.activation_bytes) if stage.activation_bytes is not None else "not known",
            _size(stage.peak_bytes) + ("" if known else " and more"),
            f"{stage.flops / 1e12:,.3g}" if stage.flops is not None else "not known",
        ]
        if plan.fit is not None:
            time = plan.fit.times[i]
            row += [_time(time.seconds), time.limit]
        table.add_row(*row)
    table.caption = "* the largest"
    table.caption_justify = "left"
    return table


def _sentence(plan: Plan) -> str:
    said = f"reads {plan.bytes_read / max(plan.bytes_stored, 1):.0%} of the checkpoint's bytes"
    if plan.flops_saved is not None:
        said += f"; leaving at block {plan.block} saves {plan.flops_saved:.0%} of the whole forward's operations"
    if plan.features_bytes is not None and plan.feature_channels is not None:
        tokens = plan.grid[0] * plan.grid[1]
        said += f"; features ({tokens}, {plan.feature_channels}) take {_size(plan.features_bytes)}"
    unknown = "".join(f"\n{stage.name}: {stage.note}" for stage in plan.stages if stage.flops is None)
    return said + unknown


def _print_fit(plan: Plan, fit: Fit) -> None:
    output, gpu = common.output_console(), fit.gpu
    verdict = "fits" if fit.fits else "does not fit"
    output.print(
        f"{gpu.name}: peak {_size(plan.peak_bytes)} {verdict} {_size(gpu.memory_bytes)}",
        style="bold green" if fit.fits else "bold red",
        soft_wrap=True,
    )
    for sentence in fit.advice:
        output.print(f"  {sentence}", soft_wrap=True)
    total = sum(time.seconds for time in fit.times)
    output.print(
        f"lower bounds by the data sheet ({gpu.source}: {gpu.half_flops / 1e12:g} TFLOP/s bfloat16 dense, "
        f"{gpu.bandwidth / 1e9:g} GB/s), {_time(total)} in all; nothing was measured, and no program reaches them",
        soft_wrap=True,
    )


def _stored(part: Part) -> str:
    return part.stored_as + {"headers": "", "config": " (config)", "assumed": " (assumed)"}[part.stored_from]


def _time(seconds: float) -> str:
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1e3:,.3g} ms"


def _size(count: int) -> str:
    """Bytes in decimal units, as disks and data sheets count."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:,.2f} {unit}" if power == 9 else f"{count / 10**power:,.1f} {unit}"
    return f"{count} B"
