"""Which weights are read, from where, and what they are once loaded; counted on models without memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones import weights as backbone_weights
from ..backbones.source import Files
from ..backbones.weights import _shards, _stored_names
from ..errors import ModelError
from .types import Part

__all__ = ["as_loaded", "denoising_part", "encoder_part", "hollow", "hollow_encoder", "model_class"]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
"""Names of dtypes in safetensors headers."""


@dataclass(frozen=True)
class _Stored:
    """A tensor on disk."""

    file: str
    dtype: str
    size: int


def hollow(cls: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A diffusers model of which nothing is in memory."""
    model = backbone_weights.hollow(cls, config, dtype)
    return backbone_weights.empty(cls, config, dtype).to("meta") if model is None else model


def model_class(entry: Sequence[str | None]) -> type[nn.Module] | None:
    """The model class that an entry of ``model_index.json`` names, or None for what holds no weights."""
    import diffusers
    import transformers

    library = {"transformers": transformers, "diffusers": diffusers}.get(entry[0] or "")
    found = getattr(library, entry[1] or "", None) if library is not None else None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def hollow_encoder(cls: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A text encoder of transformers, or another model of diffusers, without memory, as loading leaves it."""
    if hasattr(cls, "from_config") and not hasattr(cls, "config_class"):
        return as_loaded(hollow(cls, config, dtype), dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = cls(cls.config_class.from_dict(dict(config)))
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters() if kept else ():
        if kept.intersection(name.split(".")):
            parameter.data = parameter.data.to(torch.float32)
    return model.eval()


def as_loaded(model: nn.Module, dtype: torch.dtype, drop: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """The model after ``drop``, its saved tensors in the dtypes that loading gives them."""
    if drop is not None:
        drop(model)
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ())

    def loaded(name: str, value: Tensor) -> Tensor:
        kept = torch.float32 if exact.intersection(name.split(".")) else dtype
        return torch.empty_like(value, dtype=kept if value.is_floating_point() else value.dtype, device=value.device)

    values = {name: loaded(name, value) for name, value in model.state_dict().items()}
    model.load_state_dict(values, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def denoising_part(
    name: str, whole: nn.Module, kept: nn.Module, files: Files, folder: str, *, quantised: bool, assumed: str | None
) -> Part:
    """The transformer or the VAE: ``kept`` is what is read of ``whole``.

    Raises:
        ModelError: a weight is missing from the files that are here, or they cannot be read.
    """
    part = _counted(name, whole, kept)
    stored = _stored(files, folder)
    if stored is None:
        return _assumed(part, whole, kept, assumed)
    if quantised:  # its tensors have names and shapes of the quantiser's own; all are read
        return replace(_described(part, stored, stored.values()), bytes_resident=_sum(stored.values()))
    names = _stored_names(kept, {name: one.file for name, one in stored.items()})
    wanted = list(kept.state_dict())
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ModelError(f"{files.source}: weight {missing[0]} is missing ({len(missing)} in all); download it again")
    return _described(part, stored, [stored[names[name]] for name in wanted])


def encoder_part(name: str, model: nn.Module, files: Files, folder: str, *, assumed: str | None) -> Part:
    """A model that is read whole.

    Raises:
        ModelError: its files are here and cannot be read.
    """
    part, stored = _counted(name, model, model), _stored(files, folder)
    return _assumed(part, model, model, assumed) if stored is None else _described(part, stored, stored.values())


def _counted(name: str, whole: nn.Module, kept: nn.Module) -> Part:
    total, read = (sum(p.numel() for p in model.parameters()) for model in (whole, kept))
    resident = sum(t.nbytes for t in (*kept.parameters(), *kept.buffers()))
    return Part(name, type(whole).__name__, total, read, 0, 0, resident, "", "assumed", None, None)


def _assumed(part: Part, whole: nn.Module, kept: nn.Module, dtype: str | None) -> Part:
    """Sizes on disk where no file is at hand: every tensor once, in one dtype; None takes the model's own."""

    def size(model: nn.Module) -> int:
        saved = {id(value): value for value in model.state_dict(keep_vars=True).values()}
        return sum(_size(value, dtype) for value in saved.values())

    own = next((str(p.dtype).removeprefix("torch.") for p in kept.parameters()), "float32")
    origin: Literal["config", "assumed"] = "assumed" if dtype is None else "config"
    return replace(
        part, bytes_stored=size(whole), bytes_read=size(kept), stored_as=dtype or own, stored_from=origin
    )  # fmt: skip


def _size(value: Tensor, dtype: str | None) -> int:
    if dtype is None or not value.is_floating_point():
        return value.nbytes
    return value.numel() * getattr(torch, dtype).itemsize


def _described(part: Part, stored: Mapping[str, _Stored], read: Iterable[_Stored]) -> Part:
    read = list(read)
    dtypes = sorted({one.dtype for one in read}, key=lambda kind: -_sum(one for one in read if one.dtype == kind))
    return replace(
        part,
        bytes_stored=_sum(stored.values()),
        bytes_read=_sum(read),
        stored_as=" + ".join(dtypes),
        stored_from="headers",
        files=tuple(sorted({one.file for one in read})),
        files_in_all=len({one.file for one in stored.values()}),
    )


def _sum(tensors: Iterable[_Stored]) -> int:
    return sum(one.size for one in tensors)


def _stored(files: Files, folder: str) -> dict[str, _Stored] | None:
    """Every tensor of a part as the headers of its files say, or None where they are not on this machine."""
    local = replace(files, local_files_only=True)
    try:
        shards = _shards(local, folder)
        if shards is None:
            return None
        headers = {file: _header(local.get(file)) for file in sorted(set(shards.values()))}
    except ModelError:
        if files.folder is None:  # a hub's checkpoint that is not, or not wholly, in the cache
            return None
        raise
    try:
        return {name: _tensor(file, headers[file][name]) for name, file in shards.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{files.source}/{folder}: its weight index does not fit its files ({error!r})") from None


def _tensor(file: str, entry: Mapping[str, Any]) -> _Stored:
    start, end = entry["data_offsets"]
    return _Stored(file, _DTYPES.get(entry["dtype"], str(entry["dtype"])), end - start)


def _header(path: Path) -> dict[str, Any]:
    """A safetensors file's header: 8 bytes of its length, then JSON.

    Raises:
        ModelError: no such header.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= min(100 * 2**20, path.stat().st_size - 8):
                raise ValueError("no header")
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{path}: cannot be read ({error}); download the checkpoint again") from None
    declared = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size - 8 - length < declared:
        raise ModelError(f"{path}: is cut short; download the checkpoint again")
    return header
