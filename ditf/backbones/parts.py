"""The parts of a pipeline, each had when it is first needed: text encoders, VAE encoder, transformer."""

from __future__ import annotations

import gc
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .source import Files, hub_errors
from .stacks import unwrap
from .weights import drop_after, drop_decoder, empty, holds_pickles, load_module, pickled

__all__ = ["CheckpointParts", "GivenParts", "Parts"]

log = logging.getLogger("ditf")

TextUse = Callable[[Any, torch.device], None]


class Parts(ABC):
    """What a backbone runs on."""

    device: torch.device
    dtype: torch.dtype

    @property
    @abstractmethod
    def transformer(self) -> nn.Module:
        """In eval mode, on the device."""

    @property
    @abstractmethod
    def vae(self) -> nn.Module:
        """An autoencoder that encodes, on the device; ModelError where there is none."""

    @abstractmethod
    def use_text(self, use: TextUse) -> None:
        """Hand a pipeline whose ``encode_prompt`` works, and the device of its encoders, to ``use``; then free it."""

    @property
    @abstractmethod
    def pipeline(self) -> Any:
        """A pipeline that can be called up to its transformer when its text is already encoded."""

    def truncate_after(self, block: int) -> None:
        """Blocks after this one will not be needed; parts that are already whole stay so."""
        return


class CheckpointParts(Parts):
    """Parts read from a checkpoint, in stages; only the VAE encoder and the transformer stay.

    Attributes:
        files: of the checkpoint.
        folders: part -> folder inside the checkpoint; parts that are not there are missing.
        classes: part -> diffusers class.
        absent: parts that encoding a prompt does not need.
        text_encoders: parts that only encoding a prompt needs.
        called: the pipeline itself prepares the transformer's inputs, so it is kept, without weights.
    """

    def __init__(
        self,
        files: Files,
        classes: Mapping[str, type[Any]],
        configs: Mapping[str, Mapping[str, Any]],
        *,
        absent: tuple[str, ...] = (),
        text_encoders: tuple[str, ...] = (),
        folders: Mapping[str, str] | None = None,
        dtype: torch.dtype,
        device: torch.device,
        last_block: int | None = None,
        called: bool = False,
    ) -> None:
        self.files, self.classes, self.configs, self.absent = files, classes, configs, absent
        self.text_encoders = text_encoders
        self.folders = folders or {name: name for name in classes}
        self.dtype, self.device = dtype, device
        self.last_block, self.called = last_block, called
        self._pipeline: Any = None
        self._lock = threading.RLock()
        self._loaded: dict[str, nn.Module] = {}
        self._text_loads = 0

    @property
    def transformer(self) -> nn.Module:
        drop = None if self.last_block is None else drop_after(self.last_block)
        return self._part("transformer", self.dtype, drop)

    @property
    def vae(self) -> nn.Module:
        if "vae" not in self.classes:
            raise ModelError(f"{self.files.source} has no VAE, so it encodes no images; prepare inputs for ditf.tap")
        # float32 as the reference: the encoder is small, and some VAEs overflow in half precision
        return self._part("vae", torch.float32, None if self.last_block is None else drop_decoder)

    def truncate_after(self, block: int) -> None:
        with self._lock:
            loaded = self._loaded.get("transformer")
            if loaded is not None and self.last_block != block:
                if self.last_block is None or self.last_block > block:
                    return  # what is there suffices
                del self._loaded["transformer"]
            self.last_block = block

    def use_text(self, use: TextUse) -> None:
        self._text_loads += 1
        if self._text_loads == 3:
            log.warning("text encoders are loaded anew for every new prompt; give all prompts in one call")
        pipeline = self._without_weights(self.absent)
        try:
            device = self._where_it_fits(pipeline)
            for part in _real_modules(pipeline):
                part.to(device)
            use(pipeline, device)
            if self.called:
                self._pipeline = pipeline
        finally:
            for part in _real_modules(pipeline) if self.called else ():
                part.to("meta")
            del pipeline
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def pipeline(self) -> Any:
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._without_weights((*self.absent, *self.text_encoders))
            return self._pipeline

    def _without_weights(self, absent: tuple[str, ...]) -> Any:
        """The pipeline without these parts, on the CPU; if it is called later, with empty ones where it has models."""
        from diffusers import DiffusionPipeline

        folder = self.files.folder
        with hub_errors(self.files.source), torch.inference_mode(False):
            try:
                return DiffusionPipeline.from_pretrained(
                    str(folder) if folder is not None else self.files.source,
                    revision=self.files.revision,
                    token=self.files.token,
                    local_files_only=self.files.local_files_only,
                    dtype=self.dtype,
                    use_safetensors=True,
                    **{**dict.fromkeys(absent), **self._empty_parts()},
                )
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                if holds_pickles(self.files, *self.text_encoders) or "necessary `safetensors` weights" in str(error):
                    raise ModelError(pickled(self.files.source)) from None
                if folder is None and isinstance(error, OSError):
                    raise  # the hub's or the network's
                raise ModelError(f"{self.files.source}: its text encoders cannot be loaded ({error})") from error

    def _empty_parts(self) -> dict[str, nn.Module]:
        """Transformer and VAE without memory: a pipeline that is called asks for their configs."""
        parts = self.classes if self.called else {}
        return {name: empty(cls, self.configs[name], self.dtype) for name, cls in parts.items()}

    def _part(self, name: str, dtype: torch.dtype, drop: Any) -> nn.Module:
        with self._lock:
            if name not in self._loaded:
                cls, config = self.classes[name], self.configs[name]
                self._loaded[name] = load_module(
                    cls, config, self.files, self.folders[name], dtype=dtype, device=self.device, drop=drop
                )
            return self._loaded[name]

    def _where_it_fits(self, pipeline: Any) -> torch.device:
        """The device, or the CPU if the text encoders do not fit beside what is there."""
        if self.device.type != "cuda":
            return self.device
        modules = _real_modules(pipeline)
        needed = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        free, _ = torch.cuda.mem_get_info(self.device)
        if 1.15 * needed < free:
            return self.device
        log.info("text encoders need %.1f GB and %.1f are free: encoding on the CPU", needed / 1e9, free / 1e9)
        return torch.device("cpu")


class GivenParts(Parts):
    """Parts of a pipeline that is already loaded, or a transformer alone."""

    def __init__(self, transformer: nn.Module, pipeline: Any = None) -> None:
        self._transformer, self._pipeline = transformer, pipeline

    @property
    def transformer(self) -> nn.Module:
        return self._transformer

    @property
    def dtype(self) -> torch.dtype:  # pyright: ignore[reportIncompatibleVariableOverride] (follows the module)
        computed: Any = getattr(unwrap(self._transformer), "dtype", None)  # what diffusers computes in
        if isinstance(computed, torch.dtype) and computed.is_floating_point:
            return computed  # weights may be stored in fewer bits
        return next((p.dtype for p in self._transformer.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride] (offloading: not the module's)
        executing = getattr(self._pipeline, "_execution_device", None)
        return torch.device(executing) if executing is not None else next(self._transformer.parameters()).device

    @property
    def vae(self) -> nn.Module:
        vae = getattr(self._pipeline, "vae", None)
        if vae is None:
            raise ModelError(
                f"{type(self._transformer).__name__} was given without a VAE, so images cannot be encoded; give a "
                "whole pipeline, or prepare the transformer's inputs and call ditf.tap"
            )
        return vae

    @property
    def pipeline(self) -> Any:
        return self._pipeline

    def use_text(self, use: TextUse) -> None:
        if not hasattr(self._pipeline, "encode_prompt") or getattr(self._pipeline, "text_encoder", None) is None:
            raise ModelError(
                f"{type(self._transformer).__name__} was given without text encoders, so prompts cannot be encoded; "
                "give a whole pipeline, or prepare the transformer's inputs and call ditf.tap"
            )
        use(self._pipeline, self.device)


def _real_modules(pipeline: Any) -> list[nn.Module]:
    """The pipeline's models that hold weights."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [module for module in modules if not any(p.is_meta for p in module.parameters())]
