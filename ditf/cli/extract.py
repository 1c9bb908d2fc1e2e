"""``ditf extract``: one feature file per picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from . import common
from .common import Clock, ModelOptions

NAME = "extract"
EXAMPLE = "Example:  ditf extract photos/*.jpg --out features"

_ENDING = ".safetensors"


def command(
    images: Annotated[list[str], typer.Argument(help="Pictures: paths or URLs.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Created if missing.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace feature files that exist.")] = False,
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
) -> None:
    """Write the features of pictures, one file each.

    They come to FOLDER/<name of the picture>.safetensors; ditf.FeatureMap.load reads them. Pictures of one name get
    the ending or the folder in their file's name. A picture that cannot be read does not stop the others: it is named
    at the end, and the exit code is 1.
    """
    from ..errors import InputError

    common.set_voice(verbose)
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, block, timestep, ensemble, discard, size, seed
    )
    options.overrides()
    sources = _distinct(images)
    for source in sources:
        if not _is_url(source) and not Path(source).expanduser().is_file():
            raise InputError(f"image: no such file: {source}; check the path (now in {Path.cwd()})")
    files = [out / name for name in file_names(sources)]
    _check_folder(out, files, overwrite)
    clock = Clock()
    with clock.stage("model"):
        extractor = options.load(verbose)
    written, failed = [], []
    with common.steps(len(sources)) as step:
        for source, file in zip(sources, files, strict=True):
            step(PurePath(source).name)
            try:
                with clock.stage("features"):
                    features = extractor(source, prompt=prompt)
            except InputError as error:
                failed.append({"image": source, "error": str(error)})
                continue
            with clock.stage("write"):
                features.save(file)
            written.append(
                {
                    "image": source,
                    "file": str(file),
                    "grid": list(features.grid),
                    "channels": features.tokens.shape[1],
                    "image_size": list(features.image_size),
                    "card": dict(features.card),
                }
            )
    _report(written, failed, json, model, out, clock)
    if failed:
        raise typer.Exit(1)


def file_names(sources: list[str]) -> list[str]:
    """One name per picture, the same whatever the order: its stem; if another has it too, the whole file name; if
    that is shared as well, the folder before it; at last a number. Case does not tell names apart."""
    schemes: list[Callable[[PurePath], str]] = [
        lambda path: path.stem,
        lambda path: path.name,
        lambda path: f"{path.parent.name}-{path.name}",
    ]
    paths = [PurePath(source.split("?")[0] if _is_url(source) else Path(source).absolute()) for source in sources]
    names = [schemes[0](path) for path in paths]
    for scheme in schemes[1:]:
        count = Counter(name.casefold() for name in names)
        names = [name if count[name.casefold()] == 1 else scheme(path) for name, path in zip(names, paths, strict=True)]
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i].casefold() in taken:
            number += 1
            names[i] = f"{name}-{number}"
        taken.add(names[i].casefold())
    return [name + _ENDING for name in names]


def _distinct(images: list[str]) -> list[str]:
    """Without pictures given twice, in order."""
    return list({source if _is_url(source) else str(Path(source).resolve()): source for source in images}.values())


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _check_folder(out: Path, files: list[Path], overwrite: bool) -> None:
    """The folder is there, takes files and holds none of those to come; created if need be.

    Raises:
        InputError: what stands in its place, or files that exist.
        StoreError: it cannot be created or written.
    """
    from ..errors import InputError

    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise InputError(
            f"--out: {len(there)} of {len(files)} feature files exist already, first {there[0]}; "
            "give --overwrite or another folder"
        )
    common.make_folder(out, "--out")


def _report(
    written: list[dict[str, Any]], failed: list[dict[str, str]], json: bool, model: str, out: Path, clock: Clock
) -> None:
    console = common.errors_console()
    for one in failed:
        console.print(f"failed: {one['error']}", soft_wrap=True)
    if json:
        common.print_json(
            {"model": model, "out": str(out), "files": written, "failed": failed, "seconds": clock.seconds}
        )
        return
    from rich.table import Table

    table = Table(title=f"{model}: {len(written)} of {len(written) + len(failed)} pictures", title_justify="left")
    for name in ("picture", "file", "grid", "channels"):
        table.add_column(name, overflow="fold", justify="left" if name in ("picture", "file") else "right")
    for one in written[:20]:
        table.add_row(one["image"], one["file"], " x ".join(map(str, one["grid"])), str(one["channels"]))
    if len(written) > 20:
        table.add_row(f"and {len(written) - 20} more", "", "", "")
    output = common.output_console()
    output.print(table)
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    output.print(spent, style="dim", soft_wrap=True)
