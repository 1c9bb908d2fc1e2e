"""DAVIS 2017, the semi-supervised task (Pont-Tuset et al., arXiv 1704.00675): objects of a first mask through a video.

::

    DAVIS/JPEGImages/480p/{sequence}/{00000..}.jpg
          Annotations/480p/{sequence}/{00000..}.png     indexed: 0 the background, 1.. the objects, 255 void
          ImageSets/2017/{val, train}.txt               a sequence per line
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import InputError
from ..video import PROTOCOLS, PropagationProtocol, load_mask
from .pairs import ImageInfo, Problems, check_split, index_images
from .published import fewer

__all__ = ["ABOUT", "Frame", "Video", "VideoSet", "check", "protocols", "read", "read_mask", "root_of", "settings_for"]

SPLITS = ("val", "train")
VOID = 255
LEAST_FRAMES = 3  # the first is given, and the last does not count

_PUBLISHED = {"val": (30, 1999, 61)}  # sequences, frames, objects
_FRAME = re.compile(r"\d{5}")

ABOUT = {
    "ditf": "DiTF's released code: frames at 960, 7 last frames, a window of 12 tokens, 5 votes",
    "dino": "DINO (arXiv 2104.14294): frames at 480, 7 last frames, a window of 12 tokens, 5 votes",
    "dift-sd": "DIFT with Stable Diffusion (arXiv 2306.03881): frames at 480, 28 last frames, window 15, 15 votes",
    "dift-adm": "DIFT with ADM (arXiv 2306.03881): frames at 480, 28 last frames, window 15, 10 votes",
}
protocols: Mapping[str, PropagationProtocol] = MappingProxyType({name: PROTOCOLS[name] for name in ABOUT})

_CAPPED = ("ditf", "dift-sd", "dift-adm")
_CAP = {"shooting": 10}


def settings_for(name: str, protocol: PropagationProtocol, sequence: str) -> PropagationProtocol:
    """DIFT and DiTF look at no more than 10 last frames in "shooting", for want of memory: a part of their protocol."""
    if name in _CAPPED and sequence in _CAP:
        return protocol.replace(n_last=min(protocol.n_last, _CAP[sequence]))
    return protocol


@dataclass(frozen=True)
class Frame:
    """One frame: the name of its files without ending, its picture and its true mask."""

    sequence: str
    name: str
    image: Path
    annotation: Path

    @property
    def index(self) -> int:
        return int(self.name)


@dataclass(frozen=True, eq=False)
class Video:
    """A sequence that is whole.

    Attributes:
        name: of its folders.
        frames: from the first to the last.
        size: (H, W) of all of them.
        objects: highest id of the first mask.
        digests: SHA-256 of every image file and of the ids of every mask, frame by frame.
    """

    name: str
    frames: tuple[Frame, ...]
    size: tuple[int, int]
    objects: int
    digests: tuple[str, ...]

    @property
    def truth(self) -> np.ndarray:
        """(T, H, W) uint8 object ids, void counted as background."""
        return np.stack([read_mask(frame.annotation) for frame in self.frames])


@dataclass(frozen=True, eq=False)
class VideoSet:
    """The sequences of a split in the order of its list, those that cannot be scored, and why."""

    split: str
    folder: Path
    videos: tuple[Video, ...]
    left_out: tuple[str, ...]
    problems: Problems
    facts: dict[str, Any]


def root_of(folder: Path) -> Path:
    """The folder that holds JPEGImages/480p or ImageSets/2017, or DAVIS in it.

    Raises:
        InputError: neither.
    """
    for root in (folder, folder / "DAVIS"):
        if (root / "JPEGImages" / "480p").is_dir() or (root / "ImageSets" / "2017").is_dir():
            return root
    raise InputError(f"--data: {folder} has neither JPEGImages/480p nor ImageSets/2017; give the folder DAVIS")


def read(
    folder: Path, split: str, protocol: Any = None, progress: Callable[[str, int, int], None] | None = None
) -> VideoSet:
    """Every sequence of the list, its frames and masks opened once; one that is not whole is left out and named.

    Raises:
        InputError: no such split, no list, or no sequence that can be scored.
    """
    check_split(split, SPLITS, "davis")
    root, problems, told = root_of(folder), Problems(), progress or (lambda stage, done, total: None)
    names = _listed(root, split)
    frames = {name: _frames(root, name, problems) for name in names}
    images = index_images(
        [frame.image for some in frames.values() for frame in some or ()],
        problems,
        lambda done, total: told("images", done, total),
    )
    videos = []
    for done, name in enumerate(names):
        told("masks", done, len(names))
        video = _video(name, frames[name], images, problems)
        if video is not None:
            videos.append(video)
    told("masks", len(names), len(names))
    if not videos:
        raise InputError(
            f"--data: {root} has no sequence to score ({'; '.join(problems.sentences()) or 'none is listed'})"
        )
    whole = {video.name for video in videos}
    published = _PUBLISHED.get(split, (len(names),))[0]
    facts = {"list": f"ImageSets/2017/{split}.txt", "sequences_listed": len(names)}
    facts["fewer"] = fewer(len(names), published)
    return VideoSet(split, root, tuple(videos), tuple(n for n in names if n not in whole), problems, facts)


def check(folder: Path) -> list[str]:
    """What is missing, one sentence each. Files are looked for, not opened, but for the first masks."""
    root, problems, missing = root_of(folder), Problems(), []
    for split in SPLITS:
        try:
            names = _listed(root, split)
        except InputError as error:
            missing.append(str(error).removeprefix("--data: "))
            continue
        found = {name: _frames(root, name, problems) for name in names}
        counts = len(names), sum(len(some or ()) for some in found.values())
        if split in _PUBLISHED and (whole := _PUBLISHED[split])[:2] != counts:
            said = f"{counts[0]} sequences and {counts[1]} frames"
            missing.append(f"{split}: {said}, the published set has {whole[0]} and {whole[1]}")
    return missing + [said for said in problems.sentences() if not said.startswith(_STRAY)]


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 object ids, void counted as background.

    Raises:
        InputError: not readable, no mask, or ids that no indexed picture holds.
    """
    ids = load_mask(path).numpy()
    if ids.max() > VOID:
        raise InputError.of(str(path), f"id {ids.max()}", f"ids of at most {VOID}")
    return np.where(ids == VOID, 0, ids).astype(np.uint8)


# --- folders ---------------------------------------------------------------------------------------------------------

_STRAY = "neither a frame nor a mask, left aside"


def _listed(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except OSError:
        raise InputError(f"--data: {path} is missing; the archive of DAVIS 2017 has it") from None
    except ValueError:
        raise InputError(f"--data: {path} is no text; the archive of DAVIS 2017 has it, a sequence per line") from None
    return list(dict.fromkeys(lines))


def _frames(root: Path, name: str, problems: Problems) -> list[Frame] | None:
    """From 00000 on without a gap, each with its mask; None where that is not so, which is noted."""
    found: dict[str, set[str]] = {}
    for kind, ending in (("JPEGImages", ".jpg"), ("Annotations", ".png")):
        folder = root / kind / "480p" / name
        found[kind] = set()
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix == ending and _FRAME.fullmatch(path.stem):
                found[kind].add(path.stem)
            else:
                problems.add(_STRAY, f"{kind}/480p/{name}/{path.name}")
    there = found["JPEGImages"] | found["Annotations"]
    names = [f"{i:05d}" for i in range(max(map(int, there), default=-1) + 1)]
    for kind, said, ending in (("JPEGImages", "missing image", "jpg"), ("Annotations", "missing annotation", "png")):
        if not found[kind]:
            problems.add(said, f"{kind}/480p/{name}")
            continue
        for absent in sorted(set(names) - found[kind]):
            problems.add(said, f"{kind}/480p/{name}/{absent}.{ending}")
    if found["JPEGImages"] != set(names) or found["Annotations"] != set(names) or not names:
        return None
    folders = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    return [Frame(name, one, folders[0] / f"{one}.jpg", folders[1] / f"{one}.png") for one in names]


def _video(name: str, frames: list[Frame] | None, images: Mapping[Path, ImageInfo], problems: Problems) -> Video | None:
    """None where the sequence cannot be scored; the reason is noted."""
    if frames is None or any(frame.image not in images for frame in frames):
        return None
    if len(frames) < LEAST_FRAMES:
        problems.add("sequence of fewer than 3 frames", name)
        return None
    size, digests, good, objects = images[frames[0].image].size, [], True, 0
    for frame in frames:
        if images[frame.image].size != size:
            problems.add("frame of another size than the first", f"{name}/{frame.name}.jpg")
            good = False
        mask = _mask(frame, size, problems)
        good = good and mask is not None
        if mask is not None:
            digests += [images[frame.image].digest, hashlib.sha256(mask.tobytes()).hexdigest()]
            objects = int(mask.max()) if frame is frames[0] else objects
    if good and not objects:
        problems.add("first mask without an object", name)
    return Video(name, tuple(frames), size, objects, tuple(digests)) if good and objects else None


def _mask(frame: Frame, size: tuple[int, int], problems: Problems) -> np.ndarray | None:
    name = f"{frame.sequence}/{frame.name}.png"
    try:
        mask = read_mask(frame.annotation)
    except (InputError, OSError, ValueError):
        problems.add("malformed annotation", name)
        return None
    if mask.shape != size:
        problems.add("mask of another size than its frame", name)
        return None
    return mask
