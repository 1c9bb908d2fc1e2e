"""Features on disk: one safetensors file per image, under a name made of all that decides its content.

The name is the SHA-256 of the image file's bytes, the model and its revision, the config and the prompt: a changed
picture, model or setting has a file of its own, and nothing that is stored can be stale. Files are written under a
temporary name and renamed, so that a run that was killed leaves whole files only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import InputError, StoreError
from .types import FeatureMap

if TYPE_CHECKING:
    from .extractor import FeatureExtractor

__all__ = ["FeatureStore", "digest", "model_identity", "weights_digest"]

log = logging.getLogger("ditf")

_ENDING = ".safetensors"
_ABANDONED_S = 3600.0  # a temporary file this old has lost its writer


class FeatureStore:
    """A folder of feature maps, found by key; the least recently used give way when it grows past a limit.

    Args:
        folder: created if missing.
        limit: bytes on disk; None: no limit. Files that were asked to be kept (:meth:`keep`) never give way.

    Raises:
        InputError: a limit below one byte.
        StoreError: the folder cannot be created or written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise InputError.of("limit", limit, "a number of bytes of at least 1, or None")
        self.folder, self.limit = Path(folder), limit
        self._kept: dict[str, frozenset[str]] = {}  # by owner
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files = self._scan()
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be used as a store ({error.strerror}); choose a writable folder"
            ) from None

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def bytes(self) -> int:
        """On disk, of finished files."""
        return sum(self._files.values())

    def get(self, key: str) -> FeatureMap | None:
        """What was put under a key, on the CPU; None if it is not there. A damaged file is removed, and said."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            features = FeatureMap.load(path)
        except StoreError as error:
            log.warning("%s; computing it again", error)
            path.unlink(missing_ok=True)
            self._files.pop(key, None)
            return None
        self._touch(key, path)
        return features

    def put(self, key: str, features: FeatureMap) -> None:
        """Write one file; older files give way where the limit asks for it.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be created ({error.strerror}); choose a writable folder") from None
        features.save(path)
        self._touch(key, path)
        self._make_room()

    def keep(self, keys: Iterable[str], owner: str = "") -> None:
        """These files, and of this owner only these, do not give way from now on.

        Args:
            owner: who needs them; what one asks for does not release what another does.
        """
        self._kept[owner] = frozenset(keys)
        self._make_room()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + _ENDING)

    def _touch(self, key: str, path: Path) -> None:
        """Note the file as the most recently used one, here and for later runs."""
        try:
            os.utime(path)
            self._files.pop(key, None)
            self._files[key] = path.stat().st_size
        except OSError as error:
            log.info("%s: its time cannot be noted (%s)", path, error)

    def _make_room(self) -> None:
        if self.limit is None:
            return
        excess = self.bytes - self.limit
        kept = frozenset().union(*self._kept.values())
        for key in [key for key in self._files if key not in kept]:
            if excess <= 0:
                return
            excess -= self._files.pop(key)
            self._path(key).unlink(missing_ok=True)
        if excess > 0 and not self._warned:
            self._warned = True
            log.warning(
                "%s: the features that are needed together take %.2f GB, more than the limit of %.2f GB",
                self.folder, self.bytes / 1e9, self.limit / 1e9,
            )  # fmt: skip

    def _scan(self) -> dict[str, int]:
        """Key -> bytes, the least recently used first; what a killed run left half-written goes."""
        found = []
        for path in self.folder.glob("??/*"):
            about = path.stat()
            if path.name.endswith(".tmp") and time.time() - about.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
            elif path.suffix == _ENDING and not path.name.startswith("."):
                found.append((about.st_mtime_ns, path.stem, about.st_size))
        return {key: size for _, key, size in sorted(found)}


def digest(about: Any) -> str:
    """SHA-256 of plain JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode()).hexdigest()


def model_identity(fx: FeatureExtractor) -> dict[str, Any]:
    """Which model it is: its commit, or a sample of its weights, so that another of the same name is another.

    The sample is of the blocks that are loaded: without a commit, a model loaded whole and up to a block counts as two.

    Raises:
        ModelError: weights that cannot be loaded.
    """
    backbone = fx.backbone
    about: Mapping[str, Any] = {**backbone.card(), "fused": fx.fused}
    if backbone.revision is not None and len(backbone.revision) == 40:
        return dict(about)
    return {**about, "weights": weights_digest(backbone.transformer)}


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 of every parameter's name and shape and of some 64 of its values."""
    sample = hashlib.sha256()
    for name, weights in sorted(module.named_parameters()):
        sample.update(f"{name}{tuple(weights.shape)}".encode())
        if not weights.is_meta:
            some = weights.detach().flatten()[:: max(1, weights.numel() // 64)]
            sample.update(some.to("cpu", torch.float32).numpy().tobytes())
    return sample.hexdigest()
