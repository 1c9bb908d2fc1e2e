"""Encoded prompts on disk: text encoders are loaded for a new prompt once, not once per run.

One safetensors file per prompt, named by the SHA-256 of all that the embeddings depend on: the model and its commit
(or its folder), the dtype and kind of device, the family, the prompt and its length limit, and the versions of the
libraries that encode. Of a folder on this machine, the files of text encoders and tokenizers are remembered with size
and time of change, and an entry made from others is not used. Nothing is ever removed; the folder may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, StoreError
from ..types import write_atomically

__all__ = ["TextCache", "cache_folder"]

log = logging.getLogger("ditf")

FORMAT = 1
"""Counts up when an entry of before would be read or used wrongly."""

_PLAIN = (bool, int, float, str, type(None))
_DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip

_writing = threading.Lock()


def cache_folder(choice: bool | str | os.PathLike[str]) -> Path | None:
    """Where encoded prompts are kept, or None to keep none.

    Args:
        choice: False for none, a folder, or True for the usual one: ``$DITF_CACHE/prompts``, else
            ``$XDG_CACHE_HOME/ditf/prompts``, else ``~/.cache/ditf/prompts``. An empty ``DITF_CACHE`` means none.

    Raises:
        InputError: something else.
    """
    if isinstance(choice, bool):
        return _usual_folder() if choice else None
    if isinstance(choice, str | os.PathLike) and os.fspath(choice):
        return Path(choice).expanduser()
    raise InputError.of("prompt_cache", choice, "True, False or a folder")


def _usual_folder() -> Path | None:
    chosen = os.environ.get("DITF_CACHE")
    if chosen is not None and not chosen.strip():
        return None
    try:
        if chosen:
            return Path(chosen).expanduser() / "prompts"
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "ditf" / "prompts"
    except RuntimeError as error:  # a user without a home
        log.warning("encoded prompts are not kept on disk (%s); set DITF_CACHE to a folder, or to nothing", error)
        return None


@dataclass(eq=False)
class TextCache:
    """Encoded prompts of one model.

    Attributes:
        folder: of the entries, created when the first is written.
        identity: what embeddings depend on besides the prompt, as plain JSON values.
        checkpoint: the model's folder if it is one on this machine, where files may change.
        parts: its subfolders that encoding a prompt reads.
    """

    folder: Path
    identity: Mapping[str, Any]
    checkpoint: Path | None = None
    parts: Sequence[str] = ()
    _refused: bool = field(default=False, repr=False)

    def load(self, prompt: str | None) -> Any:
        """What was saved for this prompt, on the CPU, or None. A file that cannot be read is said and left aside."""
        from safetensors import SafetensorError, safe_open

        path = self.path(prompt)
        try:
            with torch.inference_mode(False), safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["ditf"])
                tensors = [file.get_tensor(str(i)).clone() for i in range(about["tensors"])]
            if about["digest"] != _digest(about["structure"], tensors):
                raise ValueError("its content is not what was written")
            value = _restored(about["structure"], tensors)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning("%s: cannot be read (%s); its prompt is encoded anew", path, error)
            return None
        if not self._made_from_what_is_here(about.get("files", {})):
            log.info("%s: made from other files than are in %s now", path, self.checkpoint)
            return None
        return value

    def save(self, prompt: str | None, value: Any) -> None:
        """Keep a nest of dicts, lists and tuples of tensors and plain values; a folder that cannot be written is said
        once, and what is not of that form is not kept."""
        from safetensors.torch import save

        tensors: list[Tensor] = []
        try:
            structure = _flattened(value, tensors)
        except _NotPlainError as error:
            log.info("encoded prompts of %s are not kept on disk: they hold a %s", self.identity.get("model"), error)
            return
        about = {
            "structure": structure,
            "tensors": len(tensors),
            "digest": _digest(structure, tensors),
            "key": self._key(prompt),
            "files": self._stamps(),
        }
        content = save({str(i): tensor for i, tensor in enumerate(tensors)}, {"ditf": json.dumps(about)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _writing:  # the temporary name is the process's
                write_atomically(self.path(prompt), content)
        except (OSError, StoreError) as error:
            if not self._refused:
                log.warning(
                    "encoded prompts cannot be kept on disk (%s); set DITF_CACHE to a folder that can be written, or "
                    "to nothing",
                    error,
                )
            self._refused = True

    def path(self, prompt: str | None) -> Path:
        """The file of a prompt; None stands for what all prompts share."""
        name = hashlib.sha256(json.dumps(self._key(prompt), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def _key(self, prompt: str | None) -> dict[str, Any]:
        return {"format": FORMAT, **self.identity, "prompt": prompt}

    def _stamps(self) -> dict[str, list[int]]:
        """Size and time of change of every file that encoding reads, by its name in the checkpoint."""
        if self.checkpoint is None:
            return {}
        inside = [path for part in self.parts for path in (self.checkpoint / part).rglob("*") if path.is_file()]
        index = self.checkpoint / "model_index.json"
        files = [index, *inside] if index.is_file() else inside
        stats = {path.relative_to(self.checkpoint).as_posix(): path.stat() for path in files}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}

    def _made_from_what_is_here(self, files: Mapping[str, list[int]]) -> bool:
        """A text encoder that was deleted since is not missed; one that was added or changed is."""
        return all(files.get(name) == stamp for name, stamp in self._stamps().items())


class _NotPlainError(Exception):
    """A value that no entry can hold; says its type."""


def _flattened(value: Any, tensors: list[Tensor]) -> Any:
    """The value as JSON, its tensors put aside (contiguous, with memory of their own) and named by their position."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.dtype not in _DTYPES:
            raise _NotPlainError(f"{value.dtype} {value.layout} tensor")
        tensors.append(value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format))
        return {"tensor": len(tensors) - 1}
    if type(value) in _PLAIN:
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_flattened(entry, tensors) for entry in value]}
    if type(value) is dict and all(type(name) in _PLAIN for name in value):
        return {"dict": [[name, _flattened(entry, tensors)] for name, entry in value.items()]}
    raise _NotPlainError(type(value).__name__)


def _restored(structure: Any, tensors: Sequence[Tensor]) -> Any:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {name: _restored(entry, tensors) for name, entry in content}
    entries = [_restored(entry, tensors) for entry in content]
    return {"list": list, "tuple": tuple}[kind](entries)


def _digest(structure: Any, tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(structure).encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
