"""Archives unpacked with care: nothing outside the folder, no half-written file, nothing replaced without a word."""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import StoreError
from .download_http import disk_error, megabytes

__all__ = ["Unpacked", "is_archive", "unpack"]

_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
)  # fmt: skip
_CLUTTER = ("__MACOSX", ".DS_Store")
_AGAIN = "give the same command again"


@dataclass(frozen=True)
class Unpacked:
    """What became of an archive.

    Attributes:
        files: how many it holds for us.
        replaced: those that were there already with other content, by their paths in the archive.
        left_aside: links, devices and what macOS adds.
    """

    files: int
    replaced: tuple[str, ...]
    left_aside: tuple[str, ...]


@dataclass(frozen=True)
class _Member:
    name: PurePosixPath
    size: int
    wanted: bool
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """A zip or a tar, compressed or not."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Unpacked:
    """Unpack into ``folder``. Every file is written under another name, then renamed; equal ones stay as they are.

    Args:
        progress: told how many bytes are done, of how many.

    Raises:
        StoreError: a damaged archive or one with a path out of the folder (then nothing of it is unpacked), or a disk
            that is full or takes no files.
    """
    replaced, aside, files = [], [], 0
    try:
        with closing(_opened(archive)) as opened:
            members = list(_members(opened, archive))  # all names are looked at before anything is written
            _check_room(members, folder)
            done, total = 0, sum(member.size for member in members)
            for member in members:
                progress(done, total)
                done += member.size
                if not member.wanted:
                    aside.append(str(member.name))
                    continue
                files += 1
                if _write(member, folder):
                    replaced.append(str(member.name))
            progress(done, total)
    except _DAMAGE as error:
        raise StoreError(
            f"{archive}: a damaged archive ({error}); delete it and {_AGAIN} to download it anew"
        ) from None
    return Unpacked(files, tuple(replaced), tuple(aside))


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive)


def _members(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    """Everything but folders, which come with their files."""
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            name = _inside(info.filename, archive)
            if not info.is_dir():
                link = (info.external_attr >> 28) == 0xA  # the type in Unix modes
                yield _Member(name, info.file_size, not link and _ours(name), lambda i=info: opened.open(i))
        return
    for info in opened.getmembers():
        name = _inside(info.name, archive)
        if not info.isdir():
            yield _Member(name, info.size, info.isfile() and _ours(name), lambda i=info: opened.extractfile(i))


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name)
    if leaves or (os.name == "nt" and ":" in name):
        raise StoreError(f"{archive}: holds {name!r}, a path that leaves the folder; nothing of it was unpacked")
    return path


def _ours(name: PurePosixPath) -> bool:
    return bool(name.parts) and not any(part in _CLUTTER or part.startswith("._") for part in name.parts)


def _check_room(members: list[_Member], folder: Path) -> None:
    """Files that are there in full need no room."""
    needed = sum(one.size for one in members if one.wanted and not _same_size(folder / one.name, one.size))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: unpacking needs {megabytes(needed)}, {megabytes(free)} are free; free some space, then {_AGAIN}"
        )


def _same_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _write(member: _Member, folder: Path) -> bool:
    """True if a file of other content was there."""
    path = folder / member.name
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        if source is None:
            raise tarfile.TarError(f"{member.name} cannot be read")
        with source, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        there = path.is_file()
        if there and filecmp.cmp(path, temporary, shallow=False):
            return False
        os.replace(temporary, path)
        return there
    except _DAMAGE:
        raise
    except OSError as error:
        raise disk_error(path, error, _AGAIN) from None
    finally:
        with contextlib.suppress(OSError):  # renamed, or never there
            temporary.unlink()
