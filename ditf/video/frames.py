"""Frames in: a video file, an animated picture, a folder or a list of pictures, one frame at a time.

Nothing but the frame at hand is kept, so an hour of video takes the memory of a second.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from ..errors import InputError
from ..images import load_image

if TYPE_CHECKING:
    from ..extractor import FeatureExtractor
    from ..types import FeatureMap

__all__ = ["Frame", "Video", "frame_features", "open_video"]

log = logging.getLogger("ditf")

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_ANIMATED = (".gif", ".webp", ".png", ".apng")
_PICTURE_RATE = Fraction(24)  # frames per second of pictures that say none


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: 0 for the first.
        time: seconds since the start of the video.
        image: RGB, upright.
    """

    index: int
    time: float
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Video:
    """A video that can be iterated over any number of times, each time from its first frame.

    Attributes:
        name: for messages: a path, or "list of 12 images".
        size: (H, W) of every frame, upright, in pixels.
        rate: frames per second; 24 for pictures that do not say.
        count: how many frames there are as far as the container knows, at most ``limit``; or None.
        limit: frames after which to stop, or None.

    Iterating raises:
        InputError: a frame that cannot be decoded or is of another size; names the video and the frame.
    """

    name: str
    size: tuple[int, int]
    rate: Fraction
    count: int | None
    limit: int | None
    _read: Callable[[], Iterator[Frame]]
    _about: float | None = None  # frames by the container's duration, where it does not count them

    def __iter__(self) -> Iterator[Frame]:
        frames = _limited(_checked(self._read(), self.name, self.size), self.limit)
        found = 0
        for frame in frames:
            found = frame.index + 1
            yield frame
        about = 0.95 * self._about - 1 if self._about is not None else 0.0
        if found < (self.count or about):
            log.warning(
                "%s: about %d frames were promised, %d could be read", self.name, self.count or self._about, found
            )


def open_video(source: Any, *, limit: int | None = None) -> Video:
    """A video, checked as far as its second frame.

    Args:
        source: the path of a video file (any format of FFmpeg; needs the extra "video"), of an animated GIF, WebP or
            PNG, or of a folder of pictures, read in natural order (frame2 before frame10); or a sequence of images, as
            :func:`ditf.images.load_image` takes them. A rotation that the file asks for is applied.
        limit: read at most so many frames, 2 or more.

    Raises:
        InputError: nothing there, not decodable, fewer than two frames, frames of different sizes, or the extra is not
            installed.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 2):
        raise InputError.of("limit", limit, "at least 2 frames, or None for all of them")
    if isinstance(source, str | os.PathLike):
        name, read, rate, count, about = _from_path(Path(source).expanduser())
    elif isinstance(source, Sequence) and not isinstance(source, bytes):
        images = list(source)
        name, read, rate = f"list of {len(images)} images", _list_reader(images), _PICTURE_RATE
        count, about = len(images), None
    else:
        raise InputError.of("video", type(source).__name__, "a path, a folder or a list of images")
    start = list(_limited(read(), 2))
    if len(start) < 2:
        found = f"{len(start) or 'no'} frame{'s' if not start else ''}"
        raise InputError(f"video: {name} has {found}, expected at least 2; for two pictures use ditf.match_points")
    size = start[0].image.height, start[0].image.width
    list(_checked(iter(start), name, size))
    if limit is not None:
        count, about = (n if n is None else min(n, limit) for n in (count, about))
    return Video(name, size, rate, None if count is None else int(count), limit, read, about)


def frame_features(
    extractor: FeatureExtractor,
    video: Video | Any,
    *,
    prompt: str | None = None,
    on_frame: Callable[[Frame], None] | None = None,
) -> Iterator[FeatureMap]:
    """Features of one frame after another, as they are asked for.

    Args:
        extractor: see :class:`ditf.FeatureExtractor`; ``task="temporal"`` is the preset for video.
        video: from :func:`open_video`, or anything that it takes.
        prompt: text given to the model.
        on_frame: called with every frame before its features are made, to look at it or to keep it.

    Raises:
        InputError: a frame that cannot be read, and what :func:`open_video` refuses.
    """
    opened = video if isinstance(video, Video) else open_video(video)

    def features() -> Iterator[FeatureMap]:
        for frame in opened:
            if on_frame is not None:
                on_frame(frame)
            yield extractor(frame.image, prompt=prompt)

    return features()


# --- what a path holds -----------------------------------------------------------------------------------------------

_Source = tuple[str, Callable[[], Iterator[Frame]], Fraction, int | None, float | None]


def _from_path(path: Path) -> _Source:
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if _is_picture(f)), key=lambda f: natural_key(f.name))
        if not files:
            raise InputError(f"video: the folder {path} holds no pictures ({', '.join(_PICTURES)}); give another")
        return str(path), _list_reader(files), _PICTURE_RATE, len(files), None
    if not path.exists():
        raise InputError(f"video: no such file: {path}; check the path (now in {Path.cwd()})")
    return _from_animation(path) if path.suffix.lower() in _ANIMATED else _from_container(path)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts frame2 before frame10: runs of digits count as numbers."""
    return [(0, int(run), "") if run.isdecimal() else (1, 0, run) for run in re.split(r"(\d+)", name.casefold()) if run]


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _PICTURES and not path.name.startswith(".")


def _list_reader(images: Sequence[Any]) -> Callable[[], Iterator[Frame]]:
    def read() -> Iterator[Frame]:
        for index, image in enumerate(images):
            try:
                loaded = load_image(image)
            except InputError as error:
                raise InputError(f"video, frame {index}: {error}") from None
            yield Frame(index, float(index / _PICTURE_RATE), loaded)

    return read


# --- animated pictures -----------------------------------------------------------------------------------------------


def _from_animation(path: Path) -> _Source:
    try:
        with Image.open(path) as image:
            count = int(getattr(image, "n_frames", 1))
            first = float(image.info.get("duration", 0)) or 100.0  # milliseconds; what viewers take for 0
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"video: {path} cannot be read ({error}); the file may be damaged") from None

    def read() -> Iterator[Frame]:
        time, index = 0.0, 0
        try:
            with Image.open(path) as image:
                for picture in ImageSequence.Iterator(image):
                    duration = float(picture.info.get("duration", 0)) or 100.0
                    yield Frame(index, time / 1000, load_image(picture))
                    time, index = time + duration, index + 1
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"video: {path}, frame {index} cannot be decoded ({error}); the file may be damaged"
            ) from None

    return str(path), read, Fraction(1000 / first).limit_denominator(1000), count, None


# --- files of FFmpeg -------------------------------------------------------------------------------------------------


def import_av() -> Any:
    """PyAV.

    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise InputError('video files need PyAV, which is not installed: pip install "ditf[video]"') from None
    return av


def _from_container(path: Path) -> _Source:
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"video: {path} holds no video stream; give another file")
            stream = container.streams.video[0]
            rate, count = Fraction(stream.average_rate or stream.guessed_rate or _PICTURE_RATE), stream.frames or None
            about = None if container.duration is None else float(container.duration / 1e6 * rate)
    except av.FFmpegError as error:
        raise InputError(
            f"video: {path} is no video that FFmpeg can open ({_reason(error)}); the file may be damaged or cut short"
        ) from None

    def read() -> Iterator[Frame]:
        index, start = 0, None
        try:
            with av.open(str(path)) as container:
                for frame in container.decode(container.streams.video[0]):
                    time = float(index / rate) if frame.time is None else float(frame.time)
                    start = time if start is None else start
                    yield Frame(index, time - start, _upright(frame))
                    index += 1
                    del frame  # gives its buffer back before the next is decoded
        except av.FFmpegError as error:
            raise InputError(
                f"video: {path}, frame {index} cannot be decoded ({_reason(error)}); the file may be damaged: repair "
                "it, or stop before that frame"
            ) from None

    return str(path), read, rate, count, about


def _upright(frame: Any) -> Image.Image:
    """A decoded frame as the file wants it shown; rotations that are no quarter turns are taken to the nearest."""
    quarters = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    image = frame.to_image()
    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return image.transpose(turns[quarters]) if quarters else image


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


# --- checks ----------------------------------------------------------------------------------------------------------


def _limited(frames: Iterator[Frame], limit: int | None) -> Iterator[Frame]:
    """The first so many; nothing beyond them is decoded."""
    for frame in frames:
        yield frame
        if limit is not None and frame.index + 1 >= limit:
            return


def _checked(frames: Iterator[Frame], name: str, size: tuple[int, int]) -> Iterator[Frame]:
    for frame in frames:
        if (frame.image.height, frame.image.width) != size:
            raise InputError(
                f"video: {name}, frame {frame.index} is {frame.image.width} x {frame.image.height} pixels, expected "
                f"{size[1]} x {size[0]} as the first; cut the video where its size changes"
            )
        yield frame
