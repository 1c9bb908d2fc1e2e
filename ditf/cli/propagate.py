"""``ditf propagate``: the objects of a first mask in every frame of a video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import common
from .common import Clock, ModelOptions
from .videos import VIDEO, Work, check_frames, check_overlay, overlay_writer, print_spent, timed, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..video import PropagationProtocol, Video

NAME = "propagate"
EXAMPLE = "Example:  ditf propagate clip.mp4 --mask first.png --out masks --overlay masks.mp4"

_PROTOCOL = "Propagation (default: what the protocol says)"
_CARD = "propagation.json"
_MASK = re.compile(r"\d{5,}\.png")


def command(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO, show_default=False)],
    mask: Annotated[
        Path,
        typer.Option(metavar="PICTURE", help="Objects of the first frame: indexed or grey PNG.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Created if missing.", show_default=False)],
    overlay: Annotated[
        Path | None, typer.Option(metavar="MP4", help="Also a video with the objects tinted.", show_default=False)
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Stop after so many frames.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks that exist.")] = False,
    json: common.Json = False,
    verbose: common.Verbose = False,
    protocol: Annotated[
        Literal["ditf", "dino", "dift-sd", "dift-adm", "crw"],
        typer.Option("--preset-protocol", help="Whose published settings.", rich_help_panel=_PROTOCOL),
    ] = "ditf",
    protocol_size: Annotated[
        bool,
        typer.Option(
            "--protocol-size",
            help="Resize frames as published, to 960 or 480 pixels, not as the model's preset says.",
            rich_help_panel=_PROTOCOL,
        ),
    ] = False,
    n_last: Annotated[
        int | None,
        typer.Option(help="Last frames looked at, besides the first.", show_default=False, rich_help_panel=_PROTOCOL),
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(help="Tokens to each side that a token looks at.", show_default=False, rich_help_panel=_PROTOCOL),
    ] = None,
    topk: Annotated[
        int | None, typer.Option(help="Tokens that vote.", show_default=False, rich_help_panel=_PROTOCOL)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of their weights.", show_default=False, rich_help_panel=_PROTOCOL)
    ] = None,
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
    """Carry the objects of a first mask through a video.

    FOLDER gets one indexed PNG per frame, 00000.png being the first mask itself, and propagation.json, which says how
    they were made. The pixel values of the mask are the objects' numbers, 0 the background. Frames are worked one at a
    time: memory does not grow with the video.
    """
    from ..errors import InputError
    from ..video import load_mask, open_video

    common.set_voice(verbose)
    options = ModelOptions(
        model, task, fused, device, dtype, revision, local_files_only, block, timestep, ensemble, discard, size, seed
    )
    options.overrides()
    settings = _settings(protocol, n_last, radius, topk, temperature)
    if protocol_size and size is not None:
        raise InputError("--protocol-size: got --size as well; give one of the two")
    check_frames(frames)
    check_overlay(overlay, video)
    clock = Clock()
    with clock.stage("video"):
        opened, first = open_video(video, limit=frames), load_mask(mask)
        _check_mask(first, opened, mask)
        resize = settings.extract_overrides(opened.size) if protocol_size else {}
    _check_folder(out, video, mask, overwrite)
    with clock.stage("model"):
        extractor = options.load(verbose)
        extractor = extractor.replace(**resize) if resize else extractor
    settings = settings.replace(stride=extractor.backbone.pixels_per_token)
    work = Work(extractor, opened, prompt, clock)
    count = _run(work, opened, first, settings, out, overlay, clock)
    _warn_of_stale(out, count)
    document = {
        "video": video,
        "mask": str(mask),
        "frames": count,
        "objects": [i for i in first.unique().tolist() if i],
        "size": list(opened.size),
        "protocol": {"name": protocol, **_used(settings.to_dict(), sizes=protocol_size)},
        "card": work.card,
    }
    write_json(out / _CARD, document)
    if json:
        where = {"out": str(out), "overlay": None if overlay is None else str(overlay)}
        common.print_json({**document, **where, "seconds": clock.seconds})
    else:
        _report(document, out, overlay, clock)


def _settings(name: str, n_last: Any, radius: Any, topk: Any, temperature: Any) -> PropagationProtocol:
    from ..errors import InputError
    from ..video import find_protocol

    given = {"n_last": n_last, "radius": radius, "topk": topk, "temperature": temperature}
    try:
        return find_protocol(name).replace(**given)
    except InputError as error:
        option = str(error).partition(":")[0]
        raise InputError(f"--{option.replace('_', '-')}{str(error).removeprefix(option)}") from None


def _check_mask(mask: Tensor, video: Video, name: Path) -> None:
    from ..errors import InputError
    from ..video.masks import LARGEST_ID

    height, width = mask.shape
    if (height, width) != video.size:
        raise InputError(
            f"--mask: {name} is {width} x {height} pixels, expected {video.size[1]} x {video.size[0]} as the video"
        )
    if not mask.any():
        raise InputError(f"--mask: {name} holds no object (all values are 0); paint at least one value above 0")
    if int(mask.max()) > LARGEST_ID:
        raise InputError(
            f"--mask: {name} holds the value {int(mask.max())}, expected at most {LARGEST_ID}: masks are written as "
            "indexed PNG"
        )


def _check_folder(out: Path, video: str, mask: Path, overwrite: bool) -> None:
    """The folder is there, takes files, is not the video's own, and holds no masks unless they may go."""
    from ..errors import InputError

    if out.is_dir() and Path(video).expanduser().is_dir() and out.samefile(Path(video).expanduser()):
        raise InputError(f"--out: {out} is the folder of the frames; choose another")
    if out.is_dir() and mask.exists() and out.samefile(mask.parent) and _MASK.fullmatch(mask.name):
        raise InputError(f"--out: {out} holds the first mask itself, {mask.name}; choose another folder")
    there = _masks(out)
    if there and not overwrite:
        raise InputError(
            f"--out: {out} holds {len(there)} masks already, first {there[0].name}; give --overwrite or another folder"
        )
    common.make_folder(out, "--out")


def _masks(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _MASK.fullmatch(p.name)) if folder.is_dir() else []


def _warn_of_stale(out: Path, count: int) -> None:
    stale = [path for path in _masks(out) if int(path.stem) >= count]
    if stale:
        common.errors_console().print(
            f"warning: {out} still holds {len(stale)} masks of an earlier, longer run, from {stale[0].name} on",
            soft_wrap=True,
        )


def _run(
    work: Work,
    video: Video,
    first: Tensor,
    settings: PropagationProtocol,
    out: Path,
    overlay: Path | None,
    clock: Clock,
) -> int:
    """Frames worked."""
    from ..video import draw_labels, iter_labels, save_mask

    count = 0
    with overlay_writer(overlay, video) as add, common.steps(video.count) as step:
        labels = iter_labels(work.features(), first, preset=settings)
        step("frame 0")
        for one in timed(clock, "propagation", labels, without="features"):
            with clock.stage("write"):
                save_mask(out / f"{count:05d}.png", one)
                add(lambda labels=one: draw_labels(work.frame.image, labels))
            count += 1
            step(f"frame {count}")
    return count


def _used(settings: dict[str, Any], *, sizes: bool) -> dict[str, Any]:
    """Without how frames are resized, where the model's own preset decided that."""
    unused = () if sizes else ("side", "multiple")
    source = {name: who for name, who in settings["source"].items() if name not in unused}
    return {name: value for name, value in settings.items() if name not in unused} | {"source": source}


def _report(document: dict[str, Any], out: Path, overlay: Path | None, clock: Clock) -> None:
    console = common.output_console()
    objects = document["objects"]
    named = ", ".join(map(str, objects[:10])) + (", ..." if len(objects) > 10 else "")
    console.print(f"{document['frames']} frames, {len(objects)} object{'s' * (len(objects) != 1)} ({named})")
    console.print(f"masks: {out}" + ("" if overlay is None else f", video: {overlay}"), soft_wrap=True)
    print_spent(console, clock)
