"""Data sets downloaded, checked, unpacked and looked through. Only ever because somebody asked for it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError
from ..types import write_atomically
from .download_http import ResumingDownloader, disk_error, megabytes, remote_size, set_aside, sha256_of
from .download_sources import Source, sources_of
from .download_unpack import Unpacked, is_archive, unpack
from .registry import Benchmark, find_benchmark

__all__ = ["Arrived", "Downloaded", "Plan", "Wanted", "carry_out", "plan_download"]

log = logging.getLogger("ditf")

Progress = Callable[[str, int, int | None], None]

_HEXADECIMAL = set("0123456789abcdef")


@dataclass(frozen=True)
class Wanted:
    """One file as it stands before the download.

    Attributes:
        source: what is known of it.
        path: where it will be.
        size: bytes, or None where neither the server nor anybody else says.
        have: how many of them are there.
        expected, expected_from: its checksum and who gives it, or None and "".
    """

    source: Source
    path: Path
    size: int | None
    have: int
    expected: str | None
    expected_from: str

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def note(self) -> Path:
        """The checksum of the first download, as ``sha256sum -c`` reads it."""
        return self.path.with_name(self.path.name + ".sha256")


@dataclass(frozen=True)
class Plan:
    """What a download will do. ``files`` is empty where the folder is whole already."""

    benchmark: Benchmark
    folder: Path
    files: tuple[Wanted, ...]


@dataclass(frozen=True)
class Arrived:
    """One file after the download; ``first`` if its checksum was not known before."""

    path: Path
    size: int
    sha256: str
    first: bool
    unpacked: Unpacked | None

    def to_dict(self) -> dict[str, Any]:
        found = {"file": str(self.path), "bytes": self.size, "sha256": self.sha256, "first_download": self.first}
        if self.unpacked is None:
            return found
        replaced, aside = list(self.unpacked.replaced), list(self.unpacked.left_aside)
        return {**found, "unpacked": self.unpacked.files, "replaced": replaced, "left_aside": aside}


@dataclass(frozen=True)
class Downloaded:
    """The files, the data set's folder, and what it still lacks, one sentence each."""

    files: tuple[Arrived, ...]
    root: Path
    missing: tuple[str, ...]


def plan_download(name: str, folder: Path, mirror: str | None = None) -> Plan:
    """Look at the folder and ask the server for sizes; nothing is downloaded yet.

    Args:
        folder: where the archive's own folder will be; created if missing.
        mirror: an address under which files of the archives' names lie.

    Raises:
        InputError: unknown data set, one without an address, no pooch, a file in the folder's place.
        StoreError: a folder that takes no files, no network, no such file, too little room.
    """
    benchmark, sources = find_benchmark(name), sources_of(name, mirror)
    _import_pooch()
    if _missing(benchmark, folder) == ():
        return Plan(benchmark, folder, ())
    if folder.is_dir() and _root(benchmark, folder) == folder:
        raise InputError(f"FOLDER: {folder} is the data set's own; give the folder above, {folder.resolve().parent}")
    _make(folder)
    wanted = tuple(_wanted(source, folder, benchmark) for source in sources)
    needed = sum((one.size or 0) - one.have for one in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"{folder}: {benchmark.title} needs {megabytes(needed)} more, {megabytes(free)} are free; "
            "free some space or choose another folder"
        )
    return Plan(benchmark, folder, wanted)


def carry_out(plan: Plan, progress: Progress = lambda stage, done, total: None, *, wait: float = 2.0) -> Downloaded:
    """Download what is not there, check, unpack, and look what is missing.

    Args:
        progress: told a stage (a file's name, or "unpack" and its name), what is done and of how much.
        wait: seconds before a broken connection is tried again.

    Raises:
        StoreError: what :class:`ditf.benchmarks.download_http.ResumingDownloader` and
            :func:`ditf.benchmarks.download_unpack.unpack` raise; a file that is no archive (kept under another name).
    """
    arrived = tuple(_fetch(one, plan, progress, wait) for one in plan.files)
    root = _root(plan.benchmark, plan.folder) or plan.folder / plan.benchmark.folder
    missing = _missing(plan.benchmark, plan.folder)
    if missing is None:
        missing = (f"{root}: the archive did not hold it",)
    return Downloaded(arrived, root, missing)


def _fetch(wanted: Wanted, plan: Plan, progress: Progress, wait: float) -> Arrived:
    name = wanted.source.file
    _set_another_aside(wanted)
    if not wanted.path.is_file():
        _download(wanted, progress, wait)
    found = wanted.expected or sha256_of(wanted.path)  # what was expected has been checked
    _check_kind(wanted, found)
    unpacked = None
    if wanted.source.into is None:
        unpacked = unpack(wanted.path, plan.folder, lambda done, total: progress(f"unpack {name}", done, total))
    else:
        _put(wanted.path, plan.folder / wanted.source.into / name)
    if wanted.expected is None:  # not before it could be unpacked: a damaged archive sets no example
        write_atomically(wanted.note, f"{found}  {name}\n".encode())
    return Arrived(wanted.path, wanted.path.stat().st_size, found, wanted.expected is None, unpacked)


def _set_another_aside(wanted: Wanted) -> None:
    """A file that is there under the right name and is not the right one."""
    if wanted.expected is None or not wanted.path.is_file():
        return
    found = sha256_of(wanted.path)
    if found == wanted.expected:
        return
    said = f"{set_aside(wanted.path, found)}: its SHA-256 is {found}, expected {wanted.expected}"
    if wanted.source.url is None:
        raise StoreError(f"{said}; get {wanted.source.file} again from {wanted.source.page}")
    log.warning("%s; it is set aside, the file is downloaded anew", said)


def _download(wanted: Wanted, progress: Progress, wait: float) -> None:
    """The downloader checks the hash itself: a wrong file is kept, and a right one is in its place at once."""
    pooch, name = _import_pooch(), wanted.source.file
    pooch.get_logger().setLevel(logging.WARNING)  # what it would say is said by ditf
    downloader = ResumingDownloader(
        wanted.part, wanted.expected, wait=wait, progress=lambda done, total: progress(name, done, total)
    )
    pooch.retrieve(wanted.source.url, None, fname=name, path=wanted.path.parent, downloader=downloader)


def _check_kind(wanted: Wanted, found: str) -> None:
    """Servers answer with a page where the file is gone; a page is neither an archive nor a table."""
    with open(wanted.path, "rb") as file:
        start = file.read(64)
    good = is_archive(wanted.path) if wanted.source.into is None else not start.lstrip().startswith(b"<")
    if good:
        return
    kept = set_aside(wanted.path, found)
    what = "archive" if wanted.source.into is None else "table"
    begins = start[:16].decode("ascii", "replace")
    raise StoreError(f"{kept}: no {what}, it begins with {begins!r}; the server's file may have moved, try --mirror")


def _put(file: Path, into: Path) -> None:
    """A table into its place; one of the user's that differs is kept."""
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        if into.is_file() and (other := into.read_bytes()) != content:
            write_atomically(kept := into.with_name(f"{into.name}.before"), other)
            log.warning("%s differed from the one that is downloaded; it is kept as %s", into, kept)
    except OSError as error:
        raise disk_error(into, error, "give the same command again") from None
    write_atomically(into, content)


# --- before the download ---------------------------------------------------------------------------------------------


def _wanted(source: Source, folder: Path, benchmark: Benchmark) -> Wanted:
    path = folder / source.file
    expected, given_by = source.sha256, source.sha256_from
    if expected is None and (noted := _noted(path.with_name(path.name + ".sha256"))):
        expected, given_by = noted, "the first download into this folder"
    if path.is_file():
        size = path.stat().st_size
        return Wanted(source, path, size, size, expected, given_by)
    if source.url is None:
        raise InputError(
            f"{benchmark.name}: its archive has no address that answers with the file; get {source.file} from "
            f"{source.page}, put it into {folder} and give the same command again"
        )
    size = remote_size(source.url) or source.size
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    return Wanted(source, path, size, have if size is None else min(have, size), expected, given_by)


def _noted(note: Path) -> str | None:
    """Raises StoreError for a note that is no checksum: it is never taken as if it were none."""
    try:
        found = note.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{note}: cannot be read ({error}); delete it if the archive may be any") from None
    if not found or len(found[0]) != 64 or not set(found[0]) <= _HEXADECIMAL:
        raise StoreError(f"{note}: holds no SHA-256; delete it if the archive may be any")
    return found[0]


def _missing(benchmark: Benchmark, folder: Path) -> tuple[str, ...] | None:
    """What the data set in the folder lacks; None where there is none yet."""
    return None if _root(benchmark, folder) is None else tuple(benchmark.check(folder))


def _root(benchmark: Benchmark, folder: Path) -> Path | None:
    try:
        return benchmark.root_of(folder) if folder.is_dir() else None
    except InputError:
        return None


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"FOLDER: {folder} is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error, "give the same command again") from None
    trial = folder / f".writable.{os.getpid()}"
    write_atomically(trial, b"")
    trial.unlink()


def _import_pooch() -> Any:
    try:
        import pooch
    except ModuleNotFoundError:
        raise InputError('ditf data download: needs pooch; pip install "ditf[eval]"') from None
    return pooch
