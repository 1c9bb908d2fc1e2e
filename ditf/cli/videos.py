"""What the commands on video share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import common
from .common import Clock

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..extractor import FeatureExtractor
    from ..types import FeatureMap
    from ..video import Frame, Video

VIDEO = "A video file, an animated GIF, or a folder of pictures in natural order."

T = TypeVar("T")


class Work:
    """Features of a video's frames as they are asked for, with the frame at hand, the card, and the clock running."""

    def __init__(self, extractor: FeatureExtractor, video: Video, prompt: str | None, clock: Clock) -> None:
        from ..video import frame_features

        self._clock = clock
        self._source = frame_features(extractor, video, prompt=prompt, on_frame=self._see)
        self._frame: Frame | None = None
        self.card: dict[str, Any] = {}

    @property
    def frame(self) -> Frame:
        """The one whose features were asked for last."""
        assert self._frame is not None  # only asked for inside the loop over frames
        return self._frame

    def features(self) -> Iterator[FeatureMap]:
        for one in timed(self._clock, "features", self._source):
            self.card = self.card or dict(one.card)
            yield one

    def _see(self, frame: Frame) -> None:
        self._frame = frame


def timed(clock: Clock, name: str, items: Iterable[T], *, without: str | None = None) -> Iterator[T]:
    """The items, the time that each takes to come added to a stage, less what another stage takes meanwhile."""
    source = iter(items)
    while True:
        inner = clock.seconds.get(without or "", 0.0)
        with clock.stage(name):
            one = next(source, None)
        if without is not None:
            clock.seconds[name] = round(clock.seconds[name] - clock.seconds.get(without, 0.0) + inner, 4)
        if one is None:
            return
        yield one


@contextlib.contextmanager
def overlay_writer(path: Path | None, video: Video) -> Iterator[Callable[[Callable[[], Image]], None]]:
    """Gives a function that draws a frame and adds it to the MP4; without a path it draws nothing."""
    from ..video import VideoWriter

    if path is None:
        yield lambda draw: None
        return
    with VideoWriter(path, video.rate) as writer:
        yield lambda draw: writer.write(draw())


def check_frames(frames: int | None) -> None:
    """Before any work.

    Raises:
        InputError: fewer than two.
    """
    from ..errors import InputError

    if frames is not None and frames < 2:
        raise InputError(f"--frames: got {frames}, expected at least 2")


def check_overlay(overlay: Path | None, video: str) -> None:
    """Before any work: an MP4, in a folder that takes it, and not the video itself.

    Raises:
        InputError, StoreError: otherwise, or where the extra "video" is not installed.
    """
    from ..errors import InputError
    from ..video.frames import import_av

    if overlay is None:
        return
    if overlay.suffix.lower() != ".mp4":
        raise InputError(f"--overlay: got {str(overlay)!r}, expected a name that ends in .mp4")
    if overlay.is_dir():
        raise InputError(f"--overlay: {overlay} is a folder; give the name of a file in it")
    if overlay.exists() and overlay.samefile(Path(video).expanduser()):
        raise InputError(f"--overlay: {overlay} is the video itself; choose another name")
    import_av()
    common.make_folder(overlay.absolute().parent, "--overlay")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """A card beside the results.

    Raises:
        StoreError: the folder cannot be written.
    """
    from ..types import write_atomically

    write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def print_spent(console: Any, clock: Clock) -> None:
    spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in clock.seconds.items())
    console.print(spent, style="dim", soft_wrap=True)
