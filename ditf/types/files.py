"""Files that a reader never sees half-written."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import StoreError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in its folder, then rename: a reader never sees half of it.

    Raises:
        StoreError: the folder is missing or cannot be written.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from None
