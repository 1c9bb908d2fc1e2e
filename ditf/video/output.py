"""Videos and tables out. Everything is written under a temporary name and renamed when it is whole."""

from __future__ import annotations

import colorsys
import contextlib
import csv
import io
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..errors import InputError, StoreError
from ..types import Tracks, write_atomically
from .frames import import_av
from .track import TrackStep

__all__ = ["TrackPainter", "VideoWriter", "load_tracks", "save_tracks", "write_tracks_csv"]

_CODECS = ("libx264", "mpeg4")  # the first that this FFmpeg has
_FINE = 3  # markers are drawn so many times larger and averaged down
_TRAIL = 12  # frames


class VideoWriter:
    """An MP4 that any player shows: H.264 (MPEG-4 where FFmpeg has no x264), yuv420p, even sides.

    A context manager; the file has its name once all frames are in, at least one, and is not there if anything went
    wrong.

    Args:
        path: ends in .mp4.
        rate: frames per second.

    Raises:
        InputError: another ending, or the extra "video" is not installed.
        StoreError: the folder is missing or cannot be written, or the video cannot be encoded.
    """

    def __init__(self, path: str | os.PathLike[str], rate: Fraction | float) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"video: got {str(path)!r}, expected a name that ends in .mp4")
        if not self.path.parent.is_dir():
            raise StoreError(f"{path}: the folder {self.path.parent} does not exist; create it or choose another")
        self._av = import_av()
        self._rate = Fraction(rate).limit_denominator(1001)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        try:
            self._container = self._av.open(str(self._part), "w", format="mp4")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror}); choose a writable folder") from None
        return self

    def write(self, image: Image.Image) -> None:
        """The next frame; a last row or column is repeated where a side is odd."""
        if self._stream is None:
            self._stream = self._open_stream(image.width + image.width % 2, image.height + image.height % 2)
        pixels = np.asarray(image.convert("RGB"))
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        if pixels.shape[:2] != (self._stream.height, self._stream.width):
            raise InputError.of("image", pixels.shape[:2], f"{(self._stream.height, self._stream.width)}, as the first")
        self._encode(self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None and self._stream is not None:
                self._encode(None)
            self._container.close()
            if kind is None and self._stream is not None:
                os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)
        if kind is None and self._stream is None:
            raise InputError(f"video: got no frames for {self.path}, expected at least one")

    def _open_stream(self, width: int, height: int) -> Any:
        codec = next((name for name in _CODECS if name in self._av.codecs_available), None)
        if codec is None:
            raise StoreError(f"{self.path}: this FFmpeg has none of {', '.join(_CODECS)}; install the wheel of av")
        stream = self._container.add_stream(codec, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"} if codec == "libx264" else {"qscale": "3"}
        return stream

    def _encode(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (self._av.FFmpegError, OSError) as error:
            raise StoreError(f"{self.path}: cannot be encoded ({error}); is the disk full?") from None


class TrackPainter:
    """Draws points over frames: a disc with a trail of where it was, hollow while it is not visible."""

    def __init__(self) -> None:
        self._trail: list[np.ndarray] = []  # (K, 2) of the last frames, NaN where not visible

    def draw(self, image: Image.Image, step: TrackStep) -> Image.Image:
        """The next frame with its points."""
        points, visible = step.points.numpy(), step.visible.numpy()
        self._trail = [*self._trail[-_TRAIL:], np.where(visible[:, None], points, np.nan)]
        layer = Image.new("RGBA", (image.width * _FINE, image.height * _FINE), (255, 255, 255, 0))
        draw = ImageDraw.Draw(layer)
        radius = max(2.5, min(image.size) / 110) * _FINE
        for i, (point, seen) in enumerate(zip(points, visible, strict=True)):
            color = _hue(i)
            places = [(float(x), float(y)) for x, y in (np.stack([t[i] for t in self._trail]) + 0.5) * _FINE]
            for before, after in itertools.pairwise(places):
                if np.isfinite([*before, *after]).all():
                    draw.line([before, after], (*color, 190), max(1, round(radius * 0.6)))
            x, y = ((float(v) + 0.5) * _FINE for v in point)
            _disc(draw, x, y, radius, color if seen else None, color)
        shown = layer.resize(image.size, Image.Resampling.BOX)
        return Image.alpha_composite(image.convert("RGBA"), shown).convert("RGB")


def _hue(index: int) -> tuple[int, int, int]:
    """A bright colour, far from those of the indices before it: hues a golden section apart."""
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(0.618034 * index % 1.0, 0.85, 1.0))
    return red, green, blue


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, ...] | None, rim: tuple[int, ...]
) -> None:
    outer = radius + _FINE
    if fill is None:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), None, (*rim, 255), _FINE)
        return
    draw.ellipse((x - outer, y - outer, x + outer, y + outer), (255, 255, 255, 255))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), (*fill, 255))


@contextlib.contextmanager
def write_tracks_csv(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Gives a function (index, time, step) that adds the rows of one frame; the file has its name at the end.

    Columns: frame, time (seconds, or empty), point (from 0), x, y (pixels), visible (0 or 1), score.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("frame", "time", "point", "x", "y", "visible", "score"))

            def add(index: int, time: float | None, step: TrackStep) -> None:
                writer.writerows(_rows(index, time, step))

            yield add
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from None
    finally:
        part.unlink(missing_ok=True)


def save_tracks(path: str | os.PathLike[str], tracks: Tracks) -> Path:
    """Write tracks as .csv (see :func:`write_tracks_csv`) or .npz (points, visible, score, image_size; no pickle).

    Raises:
        InputError: another ending.
        StoreError: the folder is missing or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        with write_tracks_csv(path) as add:
            for index in range(len(tracks)):
                add(index, None, TrackStep(tracks.points[index], tracks.visible[index], tracks.score[index]))
    elif path.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        arrays = {name: getattr(tracks, name).cpu().numpy() for name in ("points", "visible", "score")}
        size = np.array(tracks.image_size or (0, 0), np.int64)
        np.savez_compressed(buffer, allow_pickle=False, **arrays, image_size=size)
        write_atomically(path, buffer.getvalue())
    else:
        raise InputError(f"tracks: got {str(path)!r}, expected a name that ends in .csv or .npz")
    return path


def load_tracks(path: str | os.PathLike[str]) -> Tracks:
    """Read the .npz that :func:`save_tracks` wrote.

    Raises:
        StoreError: no such file, or no tracks inside.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            points, visible, score = (torch.from_numpy(file[name]) for name in ("points", "visible", "score"))
            height, width = (int(v) for v in file["image_size"])
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; give a file written by save_tracks") from None
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); give an .npz written by save_tracks") from None
    return Tracks(points, visible, score, (height, width) if height else None)


def _rows(index: int, time: float | None, step: TrackStep) -> list[tuple[Any, ...]]:
    at = "" if time is None else f"{time:.6f}"
    values = zip(step.points.tolist(), step.visible.tolist(), step.score.tolist(), strict=True)
    return [
        (index, at, point, f"{x:.3f}", f"{y:.3f}", int(seen), f"{score:.5f}")
        for point, ((x, y), seen, score) in enumerate(values)
    ]
