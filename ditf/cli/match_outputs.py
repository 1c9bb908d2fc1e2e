"""What ``ditf match`` writes: pictures, one JSON document, a table, files for other programs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from . import common
from .common import Clock

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..geometry import Homography
    from ..types import DenseMatches, FeatureMap, Matches

__all__ = ["PICTURES", "Outputs", "Result", "check_outputs", "document", "draw", "export", "print_table", "warp"]

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_ROWS = 40  # of the table on the terminal


@dataclass(frozen=True)
class Outputs:
    """Where to write; None or empty: nowhere."""

    out: Path | None
    warped: Path | None
    files: Sequence[Path]
    colmap: Path | None
    hloc: Path | None


@dataclass(frozen=True, eq=False)
class Result:
    """What was found.

    Attributes:
        matches: the points and their places.
        features: of source and target.
        names: of the pictures, as given.
        model: as given.
        automatic: the points were chosen by ditf.
        dropped: matches left out because they do not lead back, or None where all were kept.
        homography: where asked for.
        dense: where asked for; ``matches`` are then its cells.
    """

    matches: Matches
    features: tuple[FeatureMap, FeatureMap]
    names: tuple[str, str]
    model: str
    automatic: bool
    dropped: int | None = None
    homography: Homography | None = None
    dense: DenseMatches | None = None


def check_outputs(outputs: Outputs, inputs: tuple[str, str]) -> None:
    """Before any work: known endings, folders that take files, modules that write them, and no input overwritten.

    Raises:
        InputError: what cannot be used as asked.
        StoreError: a folder that takes no files.
    """
    from ..errors import InputError
    from ..exports import image_names
    from ..exports.files import ENDINGS, h5py_or_error

    for path, option in ((outputs.out, "--out"), (outputs.warped, "--warped")):
        if path is not None:
            _check_file(path, option, tuple(PICTURES), inputs, "picture")
    for path in outputs.files:
        _check_file(path, "--export", ENDINGS, inputs, "file")
        if path.suffix.lower() in (".h5", ".hdf5"):
            h5py_or_error("--export")
    if outputs.hloc is not None:
        h5py_or_error("--export-hloc")
    for folder, option in ((outputs.colmap, "--export-colmap"), (outputs.hloc, "--export-hloc")):
        if folder is not None:
            for name in image_names(*inputs):
                if name.split() != [name]:
                    raise InputError(
                        f"{option}: the name {name!r} holds blanks, which its files cannot; rename the picture"
                    )
            common.make_folder(folder, option)


def _check_file(path: Path, option: str, endings: tuple[str, ...], inputs: tuple[str, str], what: str) -> None:
    from ..errors import InputError

    if path.suffix.lower() not in endings:
        raise InputError(f"{option}: got {str(path)!r}, expected a name that ends in {', '.join(endings)}")
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; give the name of a {what} in it")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist; create it or choose another")
    if any(Path(name).exists() and path.exists() and path.samefile(name) for name in inputs):
        raise InputError(f"{option}: {path} is one of the two pictures; choose another name")
    common.check_writable(path.parent, option)


def draw(result: Result, images: tuple[Image, Image], path: Path) -> None:
    """The flow, the inliers of the homography, or the matches with the heat map of one.

    The heat map belongs to the first point, or to the surest of the automatic ones.
    """
    from ..draw import draw_flow, draw_matches
    from ..matching import similarity_map

    matches, features, homography = result.matches, result.features, result.homography
    title = f"{PurePath(result.model).name}, block {features[0].block}, noise level {features[0].timestep:g}"
    captions = (_name(result.names[0]), _name(result.names[1]))
    if result.dense is not None:
        _save(draw_flow(result.dense, image=images[0], title=title, captions=(captions[0], f"to {captions[1]}")), path)
        return
    options: dict[str, Any] = {}
    if homography is not None:
        matches = matches.select(homography.inliers) if homography.found else matches
        title += f"; homography: {_verdict(homography)}"
    elif len(matches):
        shown = _surest(matches) if result.automatic else 0
        options = {"heat_map": similarity_map(*features, matches.source[shown]), "heat_point": shown}
    _save(draw_matches(matches, *images, title=title, captions=captions, **options), path)


def warp(result: Result, images: tuple[Image, Image], path: Path) -> bool:
    """With a homography, picture A as B sees it; with dense matches, B brought to A. False where there is none."""
    from ..images import load_image

    if result.homography is not None and result.homography.found:
        _save(result.homography.warp(images[0], (images[1].height, images[1].width)), path)
    elif result.homography is None and result.dense is not None:
        _save(load_image(result.dense.warp(images[1])), path)
    else:
        return False
    return True


def export(result: Result, outputs: Outputs) -> list[Path]:
    """Write the files for other programs; returns their paths."""
    from ..exports import export_colmap, export_hloc, image_names, save_matches

    card = dict(result.features[0].card)
    written = [
        save_matches(path, result.matches, images=result.names, homography=result.homography, card=card)
        for path in outputs.files
    ]
    if outputs.colmap is not None:
        written += export_colmap(outputs.colmap, result.matches, image_names(*result.names))
    if outputs.hloc is not None:
        written += export_hloc(outputs.hloc, result.matches, image_names(*result.names))
    return written


def document(
    result: Result, out: Path | None, warped: Path | None, written: list[Path], clock: Clock
) -> dict[str, Any]:
    """Everything, as plain values."""
    features = result.features
    found: dict[str, Any] = {
        "images": {"source": result.names[0], "target": result.names[1]},
        **result.matches.to_dict(),
        "source_size": list(features[0].image_size),
        "target_size": list(features[1].image_size),
        "automatic_points": result.automatic,
        "model": result.model,
        "prompts": {
            side: one.card.get("config", {}).get("prompt")
            for side, one in zip(("source", "target"), features, strict=True)
        },
        "card": dict(features[0].card),
        "out": None if out is None else str(out),
        "seconds": clock.seconds,
    }
    if result.dropped is not None:
        found["dropped"] = result.dropped
    if result.dense is not None:
        found["resolution"] = result.dense.resolution
        found["grid"] = list(result.dense.target.shape[:2])
    if result.homography is not None:
        found["homography"] = result.homography.to_dict()
    if warped is not None:
        found["warped"] = str(warped)
    if written:
        found["exported"] = [str(path) for path in written]
    return found


def print_table(result: Result, out: Path | None, warped: Path | None, written: list[Path], clock: Clock) -> None:
    """For people, on stdout."""
    from rich.table import Table

    one = result.features[0]
    table = Table(title=f"{result.model}, block {one.block}, noise level {one.timestep:g}", title_justify="left")
    table.add_column("point", justify="right", style="bold")
    for name in ("in A (x, y)", "in B (x, y)", "score", "cycle error (px)"):
        table.add_column(name, justify="right")
    values = result.matches.to_dict()
    errors = values.get("cycle_error", [None] * len(values["score"]))
    rows = list(zip(values["source"], values["target"], values["score"], errors, strict=True))
    for number, (a, b, score, error) in enumerate(rows[:_ROWS], 1):
        if score is None:
            table.add_row(str(number), _pair(a), "no match", "", "")
        else:
            table.add_row(str(number), _pair(a), _pair(b), f"{score:.3f}", "" if error is None else f"{error:.1f}")
    console = common.output_console()
    console.print(table)
    if len(rows) > _ROWS:
        console.print(f"and {len(rows) - _ROWS} more (--json or --export has all)")
    if result.dropped is not None:
        console.print(f"{result.dropped} points left out: their match does not lead back")
    if result.homography is not None:
        console.print(f"homography: {_verdict(result.homography)}", soft_wrap=True)
        if result.homography.matrix is not None:
            for row in result.homography.matrix.tolist():
                console.print("  " + "".join(f"{value:>14.6g}" for value in row))
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    console.print(spent, style="dim", soft_wrap=True)
    if warped is not None:
        console.print(f"warped: {warped}", soft_wrap=True)
    for path in written:
        console.print(f"exported: {path}", soft_wrap=True)
    console.print(f"picture: {out}" if out is not None else "(--out matches.png draws them)", soft_wrap=True)


def _verdict(homography: Homography) -> str:
    if not homography.found:
        return f"none ({homography.reason})"
    return f"{int(homography.inliers.sum())} of {len(homography.inliers)} matches agree"


def _save(picture: Image, path: Path) -> None:
    from ..types import write_atomically

    buffer = io.BytesIO()
    picture.save(buffer, PICTURES[path.suffix.lower()], quality=92)
    write_atomically(path, buffer.getvalue())


def _surest(matches: Matches) -> int:
    """The match that leads back closest to where it came from."""
    if matches.cycle_error is None:
        return int(matches.score.nan_to_num(nan=-1.0).argmax())
    return int(matches.cycle_error.nan_to_num(nan=float("inf")).argmin())


def _pair(point: list[float]) -> str:
    return ", ".join(f"{value:.1f}".removesuffix(".0") for value in point)


def _name(source: str) -> str:
    return PurePath(source.split("?")[0]).name or source
