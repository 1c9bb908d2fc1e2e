"""``ditf track``: points of a video's first frame in all its frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import common
from .common import Clock, ModelOptions
from .videos import VIDEO, Work, check_frames, check_overlay, overlay_writer, print_spent, timed, write_json

if TYPE_CHECKING:
    from ..types import Tracks
    from ..video import Video

NAME = "track"
EXAMPLE = "Example:  ditf track clip.mp4 --point 100,80 --point 40,25 --out tracks --overlay tracks.mp4"

_TRACKING = "Tracking"
_FILES = ("tracks.csv", "tracks.npz", "tracks.json")


def command(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO, show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Created if missing.", show_default=False)],
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="x,y", help="A pixel of the first frame; repeatable.", show_default=False),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Points from a CSV (x,y) or JSON file.", show_default=False),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(metavar="MP4", help="Also a video with the points drawn.", show_default=False)
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Stop after so many frames.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tracks that exist.")] = False,
    json: common.Json = False,
    verbose: common.Verbose = False,
    mode: Annotated[
        Literal["direct", "chained", "window"],
        typer.Option(
            help="First frame to each, anywhere; frame to frame; or first to each, near the last place.",
            rich_help_panel=_TRACKING,
        ),
    ] = "direct",
    radius: Annotated[
        float, typer.Option(help="Of --mode window, in tokens to each side.", rich_help_panel=_TRACKING)
    ] = 8.0,
    cycle_tolerance: Annotated[
        float,
        typer.Option(
            help="A point is visible if its match leads back to within so many tokens.", rich_help_panel=_TRACKING
        ),
    ] = 1.5,
    model: common.Model = "ditf-tiny",
    task: common.Task = "temporal",
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
    """Follow points of the first frame through a video.

    FOLDER gets tracks.csv (frame, time, point, x, y, visible, score), tracks.npz (arrays points (T, K, 2), visible and
    score (T, K)) and tracks.json, which says how they were made. Frames are worked one at a time; only the numbers of
    the tracks themselves grow with the video.
    """
    from ..video import open_video

    common.set_voice(verbose)
    chosen = _chosen_points(point, points)
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, block, timestep, ensemble, discard, size, seed
    )
    options.overrides()
    _check_tracking(radius, cycle_tolerance)
    check_frames(frames)
    check_overlay(overlay, video)
    clock = Clock()
    with clock.stage("video"):
        opened = open_video(video, limit=frames)
        _check_points(chosen, opened, "--points" if points else "--point")
    _check_folder(out, overwrite)
    with clock.stage("model"):
        extractor = options.load(verbose)
    work = Work(extractor, opened, prompt, clock)
    settings = {"mode": mode, "radius": radius, "cycle_tolerance": cycle_tolerance}
    tracks = _run(work, opened, chosen, settings, out, overlay, clock)
    document = {
        "video": video,
        "frames": len(tracks),
        "size": list(opened.size),
        "points": [list(one) for one in chosen],
        "visible": tracks.visible.float().mean(0).tolist(),
        "tracking": settings,
        "card": work.card,
    }
    write_json(out / _FILES[2], document)
    if json:
        where = {"out": str(out), "overlay": None if overlay is None else str(overlay)}
        common.print_json({**document, "tracks": tracks.to_dict(), **where, "seconds": clock.seconds})
    else:
        _report(tracks, chosen, out, overlay, clock)


def _chosen_points(given: list[str] | None, file: Path | None) -> list[tuple[float, float]]:
    from ..errors import InputError
    from .points import parse_point, read_points

    if given and file is not None:
        raise InputError("--points: got --point as well; give one of the two")
    if not given and file is None:
        raise InputError("--point: missing; give --point x,y (repeatable) or --points FILE")
    return read_points(file) if file is not None else [parse_point(text) for text in given or []]


def _check_points(points: list[tuple[float, float]], video: Video, option: str) -> None:
    from .points import check_inside

    check_inside(points, video.size, option, video.name)


def _check_tracking(radius: float, cycle_tolerance: float) -> None:
    from ..errors import InputError

    for option, value in (("--radius", radius), ("--cycle-tolerance", cycle_tolerance)):
        if not 0 < value < float("inf"):
            raise InputError(f"{option}: got {value:g}, expected a finite number of tokens above 0")


def _check_folder(out: Path, overwrite: bool) -> None:
    from ..errors import InputError

    there = [name for name in _FILES if (out / name).exists()]
    if there and not overwrite:
        raise InputError(f"--out: {out} holds {there[0]} already; give --overwrite or another folder")
    common.make_folder(out, "--out")


def _run(
    work: Work,
    video: Video,
    points: list[tuple[float, float]],
    settings: dict[str, Any],
    out: Path,
    overlay: Path | None,
    clock: Clock,
) -> Tracks:
    import torch

    from ..types import Tracks
    from ..video import TrackPainter, iter_tracks, save_tracks, write_tracks_csv

    found, painter = [], TrackPainter()
    with (
        overlay_writer(overlay, video) as add,
        common.steps(video.count) as step,
        write_tracks_csv(out / _FILES[0]) as row,
    ):
        step("frame 0")
        tracked = iter_tracks(work.features(), points, **settings)
        for one in timed(clock, "tracking", tracked, without="features"):
            with clock.stage("write"):
                row(len(found), work.frame.time, one)
                add(lambda step=one: painter.draw(work.frame.image, step))
            found.append(one)
            step(f"frame {len(found)}")
    places, visible, score = (torch.stack([getattr(one, n) for one in found]) for n in ("points", "visible", "score"))
    tracks = Tracks(places, visible, score, video.size)
    save_tracks(out / _FILES[1], tracks)
    return tracks


def _report(tracks: Tracks, points: list[tuple[float, float]], out: Path, overlay: Path | None, clock: Clock) -> None:
    from rich.table import Table

    table = Table(title=f"{len(points)} points in {len(tracks)} frames", title_justify="left")
    for name in ("point", "in the first frame", "in the last frame", "visible", "mean score"):
        table.add_column(name, justify="right")
    for i, (x, y) in enumerate(points[:20]):
        last = ", ".join(f"{v:.1f}" for v in tracks.points[-1, i].tolist())
        seen, score = float(tracks.visible[:, i].float().mean()), float(tracks.score[:, i].mean())
        table.add_row(str(i), f"{x:g}, {y:g}", last, f"{seen:.0%}", f"{score:.3f}")
    if len(points) > 20:
        table.add_row("...", f"and {len(points) - 20} more", "", "", "")
    console = common.output_console()
    console.print(table)
    console.print(
        f"tracks: {out / _FILES[0]}, {out / _FILES[1]}" + ("" if overlay is None else f", video: {overlay}"),
        soft_wrap=True,
    )
    print_spent(console, clock)
