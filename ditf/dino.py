"""Features of DINOv2 and DINOv3, to stand beside those of diffusion transformers (see ``FeatureMap.concat``)."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from .backbones.source import Files, hub_errors
from .errors import InputError, ModelError
from .images import Prepared, prepare
from .types import ExtractConfig, FeatureMap

if TYPE_CHECKING:
    from .extractor import ImageLike

__all__ = ["DinoExtractor"]

Facet = Literal["token", "key", "query", "value"]

MODELS = {  # model_type of the config -> class in transformers
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
PROJECTIONS = {"key": ("k_proj", "key"), "query": ("q_proj", "query"), "value": ("v_proj", "value")}  # new, old names
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoExtractor:
    """Dense features of images from a DINOv2 or DINOv3 vision transformer, without its CLS and register tokens.

    Layers are counted from 0 over the transformer's blocks: ``layer=11`` is the twelfth, the last of a base model.
    "token" is what leaves that block, without the model's final norm (``hidden_states[layer + 1]`` of transformers);
    "key", "query" and "value" are what its attention projects (before the rotary embedding of DINOv3), heads side by
    side. sd-dino, GeoAware-SC and DiTF fuse with layer 11, facet "token", of DINOv2; for DINOv2-base that is the last.

    Args:
        model: a loaded ``Dinov2Model``, ``Dinov2WithRegistersModel`` or ``DINOv3ViTModel`` of transformers, or a
            model that holds one.
        layer, facet: what is taken.
        resize, size, rounding, resample: how an image meets the model, as in :class:`ExtractConfig`; sides become
            multiples of the patch. The default gives the 60 tokens of GeoAware-SC along the longer side for a patch of
            14 px (840 px, Lanczos); it pads to a square too, which ``resize="pad"`` does.
        mean, std: of the pixels per channel, in [0, 1]; ImageNet's, as both families were trained with.
        batch_images: how many same-sized images share one forward.
        device, dtype: move the model there; None leaves it as it is.

    Raises:
        ModelError: no DINOv2 or DINOv3.
        InputError: a layer that the model lacks, or a value outside its domain.
    """

    def __init__(
        self,
        model: Any,
        *,
        layer: int = 11,
        facet: Facet = "token",
        resize: Literal["longest", "shortest", "stretch", "pad"] = "longest",
        size: int | tuple[int, int] = 840,
        rounding: Literal["nearest", "half-even", "floor"] = "nearest",
        resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "lanczos",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        batch_images: int = 1,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if facet not in ("token", *PROJECTIONS):
            raise InputError.of("facet", facet, '"token", "key", "query" or "value"')
        if not isinstance(batch_images, int) or batch_images < 1:
            raise InputError.of("batch_images", batch_images, "an integer of at least 1")
        core = _core(model)
        _check_layer(layer, core.config.num_hidden_layers)
        values = {"device": device, "dtype": dtype}
        self.model: Any = core.to(**{k: v for k, v in values.items() if v is not None}).eval()
        self.layer, self.facet, self.batch_images = layer, facet, batch_images
        self.config = ExtractConfig(
            block=layer, timestep=0.0, resize=resize, size=size, rounding=rounding, resample=resample
        )
        self.mean, self.std = _per_channel("mean", mean), _per_channel("std", std)
        self.name = getattr(core.config, "_name_or_path", "") or type(core).__name__
        self.revision = getattr(core.config, "_commit_hash", None)
        self._tapped = _tapped_module(core, layer, facet)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        layer: int = 11,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> DinoExtractor:
        """Load a model by hub id ("facebook/dinov2-base") or local folder; the blocks after ``layer`` are not kept.

        Mean and standard deviation of the pixels come from its ``preprocessor_config.json``, where there is one.

        Args:
            device: default cuda, else mps, else cpu.
            dtype: float32 by default: these models are small.
            revision, token, local_files_only: as in ``huggingface_hub``.
            **options: the other arguments of the constructor.

        Raises:
            ModelError: unknown, gated, offline, or no DINOv2 or DINOv3; says what to try.
            InputError: as the constructor.
        """
        import transformers

        source = os.fspath(model)
        files = Files(source, revision, token, local_files_only)
        if files.folder is None and _looks_like_path(source):
            raise ModelError(f"{source}: no such folder; give a DINOv2 or DINOv3 folder of transformers or a hub id")
        if files.folder is not None and not (files.folder / "config.json").is_file():
            raise ModelError(f"{source}: no config.json inside; give a DINOv2 or DINOv3 folder of transformers")
        about = files.json("config.json")
        kind = about.get("model_type")
        if kind not in MODELS:
            raise ModelError(f"{source}: got model_type {kind!r}, expected one of {', '.join(MODELS)}")
        _check_layer(layer, about.get("num_hidden_layers", 12))
        if (processor := files.find("preprocessor_config.json")) is not None:
            values = files.json(processor.name)
            options = {"mean": values.get("image_mean", IMAGENET_MEAN), **options}
            options = {"std": values.get("image_std", IMAGENET_STD), **options}
        hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
        kept = {"num_hidden_layers": layer + 1, "attn_implementation": "sdpa", "dtype": dtype}
        with _quiet(transformers), hub_errors(source):
            loaded, info = getattr(transformers, MODELS[kind]).from_pretrained(
                files.folder or source, output_loading_info=True, **kept, **hub
            )
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{source}: its files lack {len(missing)} weights ({missing[0]}, ...); download it again")
        return cls(loaded, layer=layer, device=_default_device() if device is None else device, **options)

    def __repr__(self) -> str:
        return f"DinoExtractor({self.name}, layer={self.layer}, facet={self.facet})"

    @property
    def patch(self) -> int:
        """Pixels per token."""
        patch = self.model.config.patch_size
        return patch if isinstance(patch, int) else int(patch[0])

    @overload
    def __call__(self, images: ImageLike) -> FeatureMap: ...
    @overload
    def __call__(self, images: Sequence[Any]) -> list[FeatureMap]: ...

    def __call__(self, images: Any) -> Any:
        """Features of one image, or of a list of them.

        Args:
            images: a PIL image, path, URL, (H, W, 3) uint8 array or (3, H, W) tensor in [0, 1]; or a list of them.

        Returns:
            FeatureMap with float32 tokens of the model's width, or a list of them.

        Raises:
            InputError: an unreadable image.
        """
        many = isinstance(images, Sequence) and not isinstance(images, str)
        prepared = [prepare(image, self.config, self.patch) for image in (images if many else [images])]
        found: dict[int, FeatureMap] = {}
        for pack in _packs(prepared, self.batch_images):
            found |= zip(pack, self._features([prepared[i] for i in pack]), strict=True)
        return [found[i] for i in range(len(prepared))] if many else found[0]

    @torch.no_grad()
    def _features(self, images: list[Prepared]) -> list[FeatureMap]:
        """Of images of one size, in one forward."""
        height, width = images[0].pixels.shape[:2]
        grid = height // self.patch, width // self.patch
        tokens = self._tap(torch.stack([self._pixels(image) for image in images]))  # (B, 1 + registers + N, D)
        tokens = tokens[:, tokens.shape[1] - grid[0] * grid[1] :].to(torch.float32)
        return [
            FeatureMap(
                tokens=own.clone(),
                grid=grid,
                image_size=image.image_size,
                block=self.layer,
                card=self.card(),
                canvas=image.canvas,
                offset=image.offset,
            )
            for own, image in zip(tokens, images, strict=True)
        ]

    def _pixels(self, image: Prepared) -> Tensor:
        """(3, H', W') normalised, in the model's dtype and on its device."""
        pixels = torch.from_numpy(image.pixels).permute(2, 0, 1).to(torch.float32) / 255.0
        return ((pixels - self.mean) / self.std).to(self.model.device, self.model.dtype)

    def _tap(self, pixels: Tensor) -> Tensor:
        """What the tapped module puts out; nothing after it is run."""

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        handle = self._tapped.register_forward_hook(leave)
        try:
            self.model(pixel_values=pixels)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise ModelError(f"{self.name}: its forward never reached layer {self.layer}; use a model of transformers")

    def card(self) -> dict[str, Any]:
        """Where features come from, as plain JSON values."""
        c = self.config
        size = list(c.size) if isinstance(c.size, tuple) else c.size
        config = {"layer": self.layer, "facet": self.facet, "resize": c.resize, "size": size}
        config |= {"rounding": c.rounding, "resample": c.resample, "multiple": self.patch}
        config |= {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {
            "model": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "config": config,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        }


class _Reached(Exception):  # noqa: N818 (leaves the forward; no error)
    """Carries the output of the tapped module out of the model's forward."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _core(model: Any) -> Any:
    """The vision transformer inside a model.

    Raises:
        ModelError: there is none.
    """
    classes = set(MODELS.values())
    modules = model.modules() if isinstance(model, nn.Module) else ()
    for module in modules:
        if classes & {c.__name__ for c in type(module).__mro__}:
            return module
    raise ModelError(
        f"{type(model).__name__}: no {', '.join(sorted(classes))} of transformers inside; give one of them"
    )


def _tapped_module(core: Any, layer: int, facet: str) -> nn.Module:
    """The block, or its projection."""
    layers = [m for m in core.modules() if isinstance(m, nn.ModuleList) and len(m) == core.config.num_hidden_layers]
    if not layers:
        raise ModelError(f"{type(core).__name__}: no list of {core.config.num_hidden_layers} blocks inside")
    block = layers[0][layer]
    if facet == "token":
        return block
    for name, module in block.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS[facet] and isinstance(module, nn.Linear):
            return module
    raise ModelError(f"{type(core).__name__}: block {layer} has no {facet} projection of its own; use facet='token'")


def _check_layer(layer: Any, count: int) -> None:
    if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < count:
        raise InputError.of("layer", layer, f"an index in 0..{count - 1}, the model's blocks")


def _per_channel(name: str, values: Sequence[float]) -> Tensor:
    numbers = torch.tensor([float(v) for v in values])
    if numbers.shape != (3,) or (name == "std" and not bool((numbers > 0).all())):
        raise InputError.of(name, list(values), "three numbers, one per colour" + (", above 0" * (name == "std")))
    return numbers[:, None, None]


def _packs(images: Sequence[Prepared], most: int) -> Iterator[list[int]]:
    """Positions of same-sized images, at most so many together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        alike.setdefault(image.pixels.shape, []).append(i)
    for group in alike.values():
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without a bar, and without the list of the weights that are left unread: that is asked for."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
