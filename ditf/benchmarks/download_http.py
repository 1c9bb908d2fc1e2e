"""A file over HTTP that goes on where it broke off, as a downloader for pooch.

``NAME.part`` holds what has arrived and ``NAME.part.json`` what the server said of it. The rest is asked for by Range,
with If-Range where the server gave a validator: parts of two versions of a file are never put together.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import StoreError

__all__ = ["ResumingDownloader", "disk_error", "megabytes", "remote_size", "set_aside", "sha256_of"]

log = logging.getLogger("ditf")

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 16  # what is lost at most when the connection breaks
_TIMEOUT = (20.0, 60.0)  # seconds to connect, and between two packets
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _BrokenOffError(Exception):
    """The connection ended early or the server is busy: worth another try."""


@dataclass
class ResumingDownloader:
    """Called by pooch with an address and the file to write.

    Attributes:
        part: where bytes are kept until all are there.
        expected: SHA-256, or None.
        attempts: how often in a row nothing may arrive.
        wait: seconds between attempts.
        progress: told bytes and, where known, how many there will be.
    """

    part: Path
    expected: str | None
    attempts: int = 5
    wait: float = 2.0
    progress: Progress = lambda done, total: None

    def __call__(self, url: str, output_file: str, pooch: Any = None) -> None:
        """Download, check and move to ``output_file``.

        Raises:
            StoreError: no network, refused by the server, broken off, another checksum than expected (the file is kept
                under another name), disk full.
        """
        self._arrive(url)
        found = sha256_of(self.part)
        if self.expected is not None and found != self.expected:
            kept = set_aside(self.part, found)
            self._note.unlink(missing_ok=True)
            raise StoreError(
                f"{url}: its SHA-256 is {found}, expected {self.expected}; what came is kept as {kept}: it is another "
                "version, or was damaged on the way; give the same command again, or a copy's address with --mirror"
            )
        os.replace(self.part, output_file)
        self._note.unlink(missing_ok=True)

    def _arrive(self, url: str) -> None:
        from requests import RequestException, Session
        from urllib3.exceptions import HTTPError

        failures = 0
        with Session() as session:
            while True:
                before = _size(self.part)
                try:
                    return self._attempt(session, url)
                except (_BrokenOffError, RequestException, HTTPError) as error:
                    failures = 1 if _size(self.part) > before else failures + 1
                    if failures >= self.attempts:
                        raise StoreError(
                            f"{url}: broken off ({_why(error)}); {megabytes(_size(self.part))} are kept in "
                            f"{self.part}, give the same command to go on"
                        ) from None
                time.sleep(self.wait)

    def _attempt(self, session: Any, url: str) -> None:
        have, known = _size(self.part), self._known()
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known.get("validator"):
                headers["If-Range"] = known["validator"]
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:  # nothing after what is there: all of it, or of another file
                whole = response.headers.get("Content-Range", "").rpartition("/")[2]
                if have and whole == str(have):
                    return
                self.part.unlink(missing_ok=True)
                raise _BrokenOffError("the server's file is shorter than what was there")
            start, total = _extent(response, url)
            validator = _validator(response)
            if start and (start != have or known.get("total") not in (None, total) or _differ(known, validator)):
                self.part.unlink(missing_ok=True)
                raise _BrokenOffError("the server's file has changed")
            self._keep(response, start, total, validator)

    def _keep(self, response: Any, start: int, total: int | None, validator: str | None) -> None:
        done = start
        try:
            self._note.write_text(json.dumps({"total": total, "validator": validator}), encoding="utf-8")
            with open(self.part, "ab") as file:
                _lock(file, self.part)
                there = os.fstat(file.fileno()).st_size
                if start and there != start:
                    raise _BrokenOffError("another process has written to it")
                if there != start:
                    file.truncate(0)
                self.progress(done, total)
                for chunk in response.raw.stream(_CHUNK, decode_content=False):  # bytes as they are stored there
                    file.write(chunk)
                    done += len(chunk)
                    self.progress(done, total)
        except OSError as error:
            raise disk_error(self.part, error, "give the same command to go on") from None
        if total is not None and done < total:
            raise _BrokenOffError(f"{done} of {total} bytes")

    @property
    def _note(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    def _known(self) -> dict[str, Any]:
        try:
            content = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def remote_size(url: str) -> int | None:
    """How many bytes the server says the file has; None where it does not say.

    Raises:
        StoreError: it cannot be reached, or has no such file.
    """
    from requests import RequestException, head

    try:
        with head(url, headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=_TIMEOUT) as response:
            status, length = response.status_code, response.headers.get("Content-Length", "")
    except RequestException as error:
        raise StoreError(
            f"{url}: cannot be reached ({_why(error)}); try again with a network, or a copy's address with --mirror"
        ) from None
    if status in (404, 410):
        raise StoreError(f"{url}: no such file on the server ({status}); give the address of a copy with --mirror")
    return int(length) if status == 200 and length.isdigit() else None


def sha256_of(path: Path) -> str:
    """Hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path, digest: str) -> Path:
    """Rename what is not the wanted file, so that nothing takes it for that; returns its new path."""
    kept = path.with_name(f"{path.name.removesuffix('.part')}.rejected-{digest[:8]}")
    os.replace(path, kept)
    return kept


def disk_error(path: Path, error: OSError, then: str) -> StoreError:
    """The sentence for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{path}: the disk is full; free some space, then {then}")
    return StoreError(f"{path}: cannot be written ({error.strerror or error}); choose a writable folder, then {then}")


def megabytes(size: int) -> str:
    """As people read it."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _lock(file: IO[bytes], path: Path) -> None:
    """Two downloads into one folder would spoil each other's bytes; held until the file is closed."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{path}: another process is downloading it; wait for that one") from None
    except OSError:  # a file system without locks
        log.debug("%s cannot be locked", path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _extent(response: Any, url: str) -> tuple[int, int | None]:
    """First byte of the answer, and how many the whole file has."""
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None:
            raise StoreError(
                f"{url}: the server answers a part without saying which; give a copy's address with --mirror"
            )
        return int(found[1]), None if found[2] == "*" else int(found[2])
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _BrokenOffError(f"{response.status_code} {response.reason}")
    raise StoreError(
        f"{url}: the server refuses ({response.status_code} {response.reason}); give a copy's address with --mirror"
    )


def _validator(response: Any) -> str | None:
    """What If-Range takes: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _differ(known: dict[str, Any], validator: str | None) -> bool:
    return bool(known.get("validator") and validator) and known["validator"] != validator


def _why(error: Exception) -> str:
    from requests import Timeout
    from requests.exceptions import SSLError

    if isinstance(error, Timeout):
        return "no answer in time"
    if isinstance(error, SSLError):
        return "its certificate is not trusted"
    if isinstance(error, _BrokenOffError):
        return str(error)
    text = str(error)
    for sign, said in (
        ("NameResolution", "its name is not known: no network?"),
        ("getaddrinfo", "its name is not known: no network?"),
        ("refused", "connection refused"),
        ("unreachable", "no network"),
        ("ProxyError", "the proxy does not let it through"),
        ("Invalid", "no valid address"),
    ):
        if sign in text:
            return said
    return "the connection ended early"
