"""Build a model from its config and read only the weights of the parts that are kept.

Files (shards) that hold nothing of them are neither downloaded nor opened.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .source import Files, hub_errors
from .stacks import Dropped, architecture_of, block_sites

__all__ = ["drop_after", "drop_decoder", "empty", "holds_pickles", "hollow", "load_module", "pickled"]

log = logging.getLogger("ditf")

PICKLES = ("*.bin", "*.bin.index.json", "*.ckpt", "*.pt", "*.pth")
NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def load_module(
    cls: type[Any],
    config: Mapping[str, Any],
    files: Files,
    folder: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    drop: Callable[[nn.Module], None] | None,
) -> nn.Module:
    """A diffusers model in eval mode, without gradients.

    Args:
        cls: class of the model.
        config: the content of its config.json.
        folder: the checkpoint's folder that holds it, "" for the top.
        drop: removes what is not wanted from the empty model; None keeps all of it.

    Raises:
        ModelError: a weight is missing or has another shape, a file cannot be had or read.
    """
    with torch.inference_mode(False):
        quantised = "quantization_config" in config
        shards = None if quantised else _shards(files, folder)
        model = _load_whole(cls, files, folder, dtype) if shards is None else empty(cls, config, dtype)
        if drop is not None:
            drop(model)
        if shards is not None:
            _fill(model, shards, files, dtype, device)
        if quantised:
            return model.eval()  # where and how its weights are kept is the quantiser's affair
        return model.to(device).eval().requires_grad_(False)


def holds_pickles(files: Files, *folders: str) -> bool:
    """Whether one of a local checkpoint's folders has pickled weights and no safetensors."""
    paths = [files.folder / folder for folder in folders] if files.folder is not None else []
    return any(
        not list(path.glob("*.safetensors*")) and any(True for name in PICKLES for _ in path.glob(name))
        for path in paths
    )


def pickled(where: object) -> str:
    """What to say of a checkpoint without safetensors."""
    return (
        f"{where}: no safetensors weights inside; pickled ones (.bin, .ckpt) can run any code when they are read, so "
        "ditf does not: convert them once with diffusers, DiffusionPipeline.from_pretrained(MODEL, "
        "use_safetensors=False).save_pretrained(FOLDER), and give FOLDER"
    )


def drop_after(block: int) -> Callable[[nn.Module], None]:
    """Leave out the transformer's blocks after ``block`` and its output head; lists keep their lengths."""

    def drop(transformer: nn.Module) -> None:
        for site in block_sites(transformer)[block + 1 :]:
            blocks: Any = transformer.get_submodule(site.stack.path)
            blocks[site.position] = Dropped()
        architecture = architecture_of(transformer)
        _leave_out(transformer, architecture.head if architecture else ())

    return drop


def drop_decoder(vae: nn.Module) -> None:
    """Keep what encodes."""
    _leave_out(vae, ("decoder", "post_quant_conv"))


def _leave_out(model: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        if name in model._parameters:
            model.register_parameter(name, None)
        elif isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, Dropped())


def empty(cls: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The model without memory for what a checkpoint holds; the rest is real, made in ``dtype`` as diffusers does."""
    from accelerate import init_empty_weights

    model = hollow(cls, config, dtype)
    if model is not None and all(_is_saved_whole(module) for module in model.modules()):
        return model
    with _default_dtype(dtype), init_empty_weights(include_buffers=False):
        return cls.from_config(dict(config))


def hollow(cls: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module | None:
    """The model with nothing in memory, not even buffers (SD3.5-medium makes 0.9 GB of positions, in 20 s, for its
    checkpoint to replace them); None where its ``__init__`` computes with real numbers."""
    try:
        with _default_dtype(dtype), torch.device("meta"):
            return cls.from_config(dict(config))
    except (NotImplementedError, RuntimeError, ValueError):
        return None


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_saved_whole(module: nn.Module) -> bool:
    """Whether every tensor of the module itself stands in its state dict."""
    own = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")}
    unsaved = [module._buffers.get(name) for name in module._non_persistent_buffers_set]
    return not _holds_tensors([*unsaved, *own.values()])


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _holds_tensors(list(value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_tensors, value))
    if isinstance(value, Tensor):
        return True
    return not isinstance(value, nn.Module | type) and _holds_tensors(list(getattr(value, "__dict__", {}).values()))


def _load_whole(cls: type[Any], files: Files, folder: str, dtype: torch.dtype) -> nn.Module:
    path = files.folder
    with hub_errors(files.source):
        try:
            return cls.from_pretrained(
                str(path) if path is not None else files.source,
                subfolder=folder or None,
                revision=files.revision,
                token=files.token,
                local_files_only=files.local_files_only,
                dtype=dtype,
                use_safetensors=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            where = f"{files.source}/{folder}" if path is None else path / folder
            if holds_pickles(files, folder) or (path is None and "no file named" in str(error)):
                raise ModelError(pickled(where)) from None
            if path is None and isinstance(error, OSError):
                raise  # the hub's or the network's
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{where}: no {cls.__name__} can be loaded from it ({reason}); give a complete checkpoint"
            ) from error


def _shards(files: Files, folder: str) -> dict[str, str] | None:
    """Weight name -> file name, or None where there are no safetensors. Reads indices and headers, no weights."""
    prefix = f"{folder}/" if folder else ""
    whole = [prefix + name for name in NAMES]
    found = files.find(*(f"{name}.index.json" for name in whole), *whole)
    if found is None:
        return None
    if found.suffix != ".json":
        return dict.fromkeys(_names_in(found), prefix + found.name)
    try:
        weight_map = json.loads(found.read_text(encoding="utf-8"))["weight_map"]
        return {name: prefix + file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{found}: cannot be read ({error!r}); download the checkpoint again") from None


def _fill(model: nn.Module, shards: Mapping[str, str], files: Files, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter and saved buffer of the model its value, opening only the files that hold one."""
    wanted = model.state_dict()
    stored = _stored_names(model, shards)
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise ModelError(f"{files.source}: weight {missing[0]} is missing ({len(missing)} in all); download it again")
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    by_file: dict[str, list[str]] = {}
    for name in wanted:
        by_file.setdefault(shards[stored[name]], []).append(name)
    values: dict[str, Tensor] = {}
    for file, names in sorted(by_file.items()):
        log.info("reading %d tensors of %s", len(names), file)
        with _opened(files.get(file)) as weights:
            for name in names:
                value = cast(Tensor, weights.get_tensor(stored[name]))
                if value.shape != wanted[name].shape:
                    raise ModelError(
                        f"{files.source}: weight {name} has shape {tuple(value.shape)} and its config asks for "
                        f"{tuple(wanted[name].shape)}; download the checkpoint again"
                    )
                kept = torch.float32 if exact.intersection(name.split(".")) else dtype
                # a copy: the bits of a CPU result depend on how weights are aligned, and a mapped file's are not
                values[name] = value.to(device, kept if value.is_floating_point() else value.dtype, copy=True)
    model.load_state_dict(values, strict=True, assign=True)


def _stored_names(model: nn.Module, shards: Mapping[str, str]) -> dict[str, str]:
    """Name in the model -> name in the file; old checkpoints name attention layers otherwise."""
    names = {name: name for name in shards}
    rename = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(names)
    return names


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); download the checkpoint again") from None


def _names_in(path: Path) -> list[str]:
    with _opened(path) as weights:
        return list(weights.keys())
