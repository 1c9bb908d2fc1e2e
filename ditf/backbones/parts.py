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
from .weights import drop_after, drop_decoder, load_module

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

    def truncate_after(self, block: int) -> None:
        """Blocks after this one will not be needed; parts that are already whole stay so."""
        return


class CheckpointParts(Parts):
    """Parts read from a checkpoint, in stages; only the VAE encoder and the transformer stay.

    Attributes:
        files: of the checkpoint.
        folders: part -> folder inside the checkpoint; parts that are not there are missing.
        classes: part -> diffusers class.
    """

    def __init__(
        self,
        files: Files,
        classes: Mapping[str, type[Any]],
        configs: Mapping[str, Mapping[str, Any]],
        *,
        absent: tuple[str, ...] = (),
        folders: Mapping[str, str] | None = None,
        dtype: torch.dtype,
        device: torch.device,
        last_block: int | None = None,
    ) -> None:
        self.files, self.classes, self.configs, self.absent = files, classes, configs, absent
        self.folders = folders or {name: name for name in classes}
        self.dtype, self.device = dtype, device
        self.last_block = last_block
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
        pipeline = self._text_parts()
        try:
            device = self._where_it_fits(pipeline)
            pipeline.to(device)
            use(pipeline, device)
        finally:
            del pipeline
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _text_parts(self) -> Any:
        """The pipeline without what encoding a prompt does not need, on the CPU."""
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
                    **dict.fromkeys(self.absent),
                )
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                if folder is None and isinstance(error, OSError):
                    raise  # the hub's or the network's
                raise ModelError(f"{self.files.source}: its text encoders cannot be loaded ({error})") from error

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
        modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        needed = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        free, _ = torch.cuda.mem_get_info(self.device)
        if 1.15 * needed < free:
            return self.device
        log.info("text encoders need %.1f GB and %.1f are free: encoding on the CPU", needed / 1e9, free / 1e9)
        return torch.device("cpu")


class GivenParts(Parts):
    """Parts of a pipeline that is already loaded, or a transformer alone."""

    def __init__(self, transformer: nn.Module, pipeline: Any = None) -> None:
        self._transformer, self.pipeline = transformer, pipeline

    @property
    def transformer(self) -> nn.Module:
        return self._transformer

    @property
    def dtype(self) -> torch.dtype:  # pyright: ignore[reportIncompatibleVariableOverride] (follows the module)
        return next((p.dtype for p in self._transformer.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride] (offloading: not the module's)
        executing = getattr(self.pipeline, "_execution_device", None)
        return torch.device(executing) if executing is not None else next(self._transformer.parameters()).device

    @property
    def vae(self) -> nn.Module:
        vae = getattr(self.pipeline, "vae", None)
        if vae is None:
            raise ModelError(
                f"{type(self._transformer).__name__} was given without a VAE, so images cannot be encoded; give a "
                "whole pipeline, or prepare the transformer's inputs and call ditf.tap"
            )
        return vae

    def use_text(self, use: TextUse) -> None:
        if not hasattr(self.pipeline, "encode_prompt") or getattr(self.pipeline, "text_encoder", None) is None:
            raise ModelError(
                f"{type(self._transformer).__name__} was given without text encoders, so prompts cannot be encoded; "
                "give a whole pipeline, or prepare the transformer's inputs and call ditf.tap"
            )
        use(self.pipeline, self.device)
