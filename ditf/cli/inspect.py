"""``ditf inspect``: massive channels of a model, as a table, a report and plots."""

from __future__ import annotations

import io
import json as jsonlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import Clock, ModelOptions

if TYPE_CHECKING:
    from ..extractor import FeatureExtractor
    from ..massive import Channel, LayerReport, MassiveReport

NAME = "inspect"
EXAMPLE = "Example:  ditf inspect photos/*.jpg --blocks all --out massive"

_SHOWN = 3  # channels of a block in the tables


def command(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures, better eight or more: paths or URLs.", show_default="ditf's own 16 pictures"),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="all|0,5,7", help="Many blocks in one pass.", rich_help_panel=common.FEATURES),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="20,100,300", help="Many noise levels.", rich_help_panel=common.FEATURES),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Massive from this many times the median channel on.")] = 10.0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write report.json, report.md and plots.", show_default=False),
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
    size: common.Size = None,
    seed: common.Seed = 0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text given to the model; repeatable: every picture is seen under each.",
            show_default=False,
            rich_help_panel=common.FEATURES,
        ),
    ] = None,
) -> None:
    """Find the massive channels of a model's blocks.

    A channel is massive if its mean magnitude is ten times that of the median channel, it is among the ten largest in
    95% of the pictures, and it has one sign in 90% of the tokens. What --discard auto discards are those found on
    ditf's own pictures.
    """
    from ..massive import find_massive_channels

    common.set_voice(verbose)
    noises = _numbers(timesteps, timestep, "--timesteps")
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, block, timestep, ensemble, None, size, seed
    )
    options.overrides()
    sources = _sources(images)
    if out is not None:
        common.make_folder(out, "--out")
    clock = Clock()
    with clock.stage("model"):
        extractor = options.load(verbose)
        wanted = _blocks(blocks, block, extractor)
    with clock.stage("channels"), common.steps(len(sources)) as step:

        def counted() -> Iterator[Any]:
            for number, source in enumerate(sources, 1):
                step(PurePath(source).name if isinstance(source, str) else f"picture {number}")
                yield source

        report = find_massive_channels(
            extractor, counted(), blocks=wanted, timesteps=noises, prompts=prompt or None, ratio=ratio
        )
    written: list[Path] = []
    if out is not None:
        with clock.stage("write"):
            written = _write(report, model, out)
    if json:
        files = [str(path) for path in written]
        common.print_json({"model": model, **report.to_dict(), "files": files, "seconds": clock.seconds})
    else:
        _print(report, model, written, clock)


def _sources(images: list[str] | None) -> Sequence[Any]:
    """What the user names, or ditf's own pictures.

    Raises:
        InputError: a file that is not there.
    """
    from ..calibration import calibration_pictures
    from ..errors import InputError

    for source in images or []:
        if not source.startswith(("http://", "https://")) and not Path(source).expanduser().is_file():
            raise InputError(f"image: no such file: {source}; check the path (now in {Path.cwd()})")
    return images or calibration_pictures()


def _blocks(given: str | None, one: int | None, extractor: FeatureExtractor) -> list[int] | None:
    """The blocks asked for, and the model read as far as the deepest."""
    if given is None:
        return None
    backbone = extractor.backbone
    if given == "all" and one is None:
        wanted = list(range(backbone.num_blocks))
    else:
        wanted = [int(value) for value in _numbers(given, one, "--blocks", whole=True) or []]
    backbone.truncate_after(max(wanted))
    return wanted


def _numbers(given: str | None, one: float | None, option: str, *, whole: bool = False) -> list[float] | None:
    """The numbers of a list such as 3,5.

    Raises:
        InputError: something else, or the option for a single one as well.
    """
    from ..errors import InputError

    if given is None:
        return None
    if one is not None:
        raise InputError(f"{option}: got {option.removesuffix('s')} as well; give one of the two")
    try:
        return [int(text) if whole else float(text) for text in given.split(",")]
    except ValueError:
        expected = "all, or block numbers such as 0,5,7" if whole else "noise levels such as 20,100,300"
        raise InputError(f"{option}: got {given!r}, expected {expected}") from None


def _write(report: MassiveReport, model: str, out: Path) -> list[Path]:
    """The report for programs and for people, a plot of every layer and, of several, the map."""
    from ..types import write_atomically

    files = {
        "report.json": (jsonlib.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n").encode(),
        "report.md": _markdown(report, model).encode(),
    }
    for name, part in _plots(report).items():
        picture = _picture(part)
        if picture is None:
            break
        files[name] = picture
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]


def _plots(report: MassiveReport) -> dict[str, MassiveReport]:
    several = {"map.png": report} if len(report.layers) > 1 else {}
    return several | {
        f"block-{layer.block:02d}-timestep-{layer.timestep:g}.png": report.at(layer.block, layer.timestep)
        for layer in report.layers
    }


def _picture(report: MassiveReport) -> bytes | None:
    """A PNG; None, with a warning, where matplotlib is not installed."""
    from ..errors import InputError

    buffer = io.BytesIO()
    try:
        report.plot().savefig(buffer, format="png", metadata={"Software": None})
    except InputError as error:
        common.errors_console().print(f"warning: {error}", soft_wrap=True)
        return None
    return buffer.getvalue()


def _channel_rows(report: MassiveReport) -> list[dict[str, str]]:
    """The leading channels of every layer, and massive ones beyond them."""
    return [
        _channel_row(layer, one)
        for layer in report.layers
        for rank, one in enumerate(layer.top)
        if rank < _SHOWN or one.massive
    ]


def _channel_row(layer: LayerReport, one: Channel) -> dict[str, str]:
    gains = "" if one.gain is None or layer.mean_gain is None else f"{one.gain:.2f} / {layer.mean_gain:.2f}"
    return {
        "block": str(layer.block),
        "t": f"{layer.timestep:g}",
        "channel": str(one.channel),
        "massive": "yes" if one.massive else "",
        "ratio": f"{one.ratio:.1f}",
        "mean ± std": f"{one.mean:.2f} ± {one.std:.2f}",
        "one sign": f"{one.one_sign:.0%}",
        "top 10": f"{one.top_images:.0%}",
        "leads": f"{one.leads_tokens:.0%}",
        "energy": f"{one.energy:.0%}",
        "AdaLN": gains,
    }


def _layer_rows(report: MassiveReport) -> list[dict[str, str]]:
    """Every layer: its massive channels, how constant the largest are, and the mean cosine between tokens."""
    rows = []
    for layer in report.layers:
        stable = layer.stability
        rows.append(
            {
                "block": str(layer.block),
                "t": f"{layer.timestep:g}",
                "massive": ", ".join(map(str, layer.channels)) or "none",
                "tokens": f"{stable.tokens:.2f}",
                "images": f"{stable.images:.2f}",
                "prompts": "" if stable.prompts is None else f"{stable.prompts:.2f}",
                "cosine, raw": _before_and_after(layer, "raw"),
                "cosine, AdaLN": _before_and_after(layer, "adaln"),
            }
        )
    return rows


def _before_and_after(layer: LayerReport, kind: str) -> str:
    means = [f"{layer.cosines[name].mean:.2f}" for name in (kind, f"{kind}, discarded") if name in layer.cosines]
    return " -> ".join(means)


def _markdown(report: MassiveReport, model: str) -> str:
    first = report.layers[0]
    return "\n".join(
        [
            f"# Massive channels of {model}\n",
            f"Per block {first.images} images, {first.tokens} tokens.\n",
            _markdown_table(_channel_rows(report)),
            f"{_legend(report)}\n",
            _markdown_table(_layer_rows(report)),
            f"{_LAYER_LEGEND}\n",
        ]
    )


def _markdown_table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _legend(report: MassiveReport) -> str:
    return (
        f"Massive: mean |x| at least {report.threshold:g} times the median channel's (ratio), among the 10 largest in "
        "95% of the images (top 10), one sign in 90% of the tokens. Leads: tokens in which it is the largest. Energy: "
        "its share of the sum of squares. AdaLN: |1 + scale| of the channel / mean of all channels."
    )


_LAYER_LEGEND = (
    "Tokens, images, prompts: Jaccard overlap of their largest channels (as many as are massive) with those of all, 1 "
    "where always the same. Cosine: mean over pairs of tokens of one image, before -> after the discard."
)


def _print(report: MassiveReport, model: str, written: list[Path], clock: Clock) -> None:
    from rich.table import Table

    output = common.output_console()
    images = report.layers[0].images
    tables = (
        (f"{model}: largest channels, {images} images", _channel_rows(report), _legend(report)),
        ("how constant they are, and cosines between tokens", _layer_rows(report), _LAYER_LEGEND),
    )
    for title, rows, legend in tables:
        table = Table(title=title, title_justify="left")
        for name in rows[0]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row.values(), style="bold" if row["massive"] not in ("", "none") else None)
        output.print(table)
        output.print(legend, style="dim")
    for path in written:
        output.print(f"wrote {path}", soft_wrap=True)
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    output.print(spent, style="dim", soft_wrap=True)
