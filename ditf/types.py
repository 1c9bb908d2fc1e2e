"""The data that travels between the rooms of the library: frozen dataclasses, nothing that computes features.

Points are (x, y) in pixel-index coordinates, the centre of the top-left pixel being (0, 0). Sizes are (H, W).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ditf_kernels.reference import sample_grid

from .errors import InputError, StoreError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DenseMatches", "ExtractConfig", "FeatureMap", "Fused", "Matches", "Tapped", "Tracks"]

Fused = Literal[True, False, "verify"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "latent": ("mean", "sample"),
    "discard_at": ("input", "output"),
    "normalization": ("adaln", "layernorm", "none"),
    "condition": ("t&c", "t", "c", "none"),
    "activation": ("block", "q", "k", "v", "attention", "mlp"),
    "site": ("attention", "mlp"),
    "resize": ("longest", "shortest", "stretch", "pad"),
    "rounding": ("nearest", "floor"),
    "resample": ("nearest", "bilinear", "bicubic", "lanczos"),
}


@dataclass(frozen=True)
class ExtractConfig:
    """How an image becomes a feature map (DiTF, arXiv 2505.18584).

    Attributes:
        block: global index over all blocks in execution order; the feature is the input of this block's first norm.
        timestep: noise level in [0, 1000], larger is noisier. Flow matching: sigma = timestep / 1000, without
            resolution shift; DDPM: ``alphas_cumprod[round(timestep)]``.
        ensemble: how many noises are averaged (before the discard and the norm, as the reference does).
        latent: the mean of the VAE posterior, or a fresh sample per ensemble member (the reference).
        shared_noise: give every image the same noise. Off by default: shared noise is matched on.
        discard: massive channels to zero: "preset", "none", their indices, or "auto": those found once for this model,
            block and timestep on ditf's own pictures (see :func:`ditf.find_massive_channels` for the definition).
        discard_at: before the norm (the reference code) or after the modulation (the paper's wording).
        topk_per_token: zero each token's k largest ``|x|`` too, on the ensemble mean.
        normalization: the block's own norm and modulation, its norm alone, or the raw tokens.
        condition: what the tapped block's AdaLN makes shift and scale of: timestep and pooled text, one of them, or
            neither (the paper's condition ablation).
        activation: what is tapped: the block's tokens, or what its attention and MLP compute of them; those are
            averaged over the ensemble and neither discarded nor normalised.
        site: the AdaLN before attention or before the MLP.
        resize: how the image meets ``size``; "pad" centres it on a square first.
        size: pixels of the named side, or (H, W) with "stretch".
        multiple: sides become multiples of this many pixels; None takes the model's pixels per token.
        rounding, resample: of the sides, of the pixels.
        prompt: text given to the model; may hold ``{category}``.
        guidance: distilled guidance embedding (FLUX.1-dev: 3.5); None where the model has none.
        seed: of the noise, with the image's own pixels.
    """

    block: int
    timestep: float
    ensemble: int = 1
    latent: Literal["mean", "sample"] = "mean"
    shared_noise: bool = False
    discard: str | tuple[int, ...] = "preset"
    discard_at: Literal["input", "output"] = "input"
    topk_per_token: int = 0
    normalization: Literal["adaln", "layernorm", "none"] = "adaln"
    condition: Literal["t&c", "t", "c", "none"] = "t&c"
    activation: Literal["block", "q", "k", "v", "attention", "mlp"] = "block"
    site: Literal["attention", "mlp"] = "attention"
    resize: Literal["longest", "shortest", "stretch", "pad"] = "longest"
    size: int | tuple[int, int] = 640
    multiple: int | None = None
    rounding: Literal["nearest", "floor"] = "nearest"
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    prompt: str = ""
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError.of(name, getattr(self, name), f"one of {', '.join(choices)}")
        _check_int("block", self.block, 0)
        _check_int("ensemble", self.ensemble, 1)
        _check_int("topk_per_token", self.topk_per_token, 0)
        _check_int("seed", self.seed, 0)
        if not isinstance(self.timestep, int | float) or not 0 <= self.timestep <= 1000:
            raise InputError.of("timestep", self.timestep, "a noise level in 0..1000 (0 is the clean image)")
        if self.multiple is not None:
            _check_int("multiple", self.multiple, 1)
        if self.guidance is not None and not (isinstance(self.guidance, int | float) and math.isfinite(self.guidance)):
            raise InputError.of("guidance", self.guidance, "a finite number or None")
        object.__setattr__(self, "discard", _checked_discard(self.discard))
        object.__setattr__(self, "size", _checked_size(self.size, self.resize))

    def replace(self, **overrides: Any) -> ExtractConfig:
        """A copy with other values; ``longest_side=640`` is shorthand for ``resize="longest", size=640``.

        Raises:
            InputError: an unknown field or a value outside its domain.
        """
        if "longest_side" in overrides:
            overrides = {"resize": "longest", "size": overrides.pop("longest_side"), **overrides}
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(overrides) - known):
            raise InputError.of("overrides", unknown[0], f"a field of ExtractConfig: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **overrides)


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Dense features of one image.

    Attributes:
        tokens: (N, D) float16 or float32, contiguous, in raster order over the grid.
        grid: (h, w) with h * w = N.
        image_size: (H, W) of the original image, in pixels.
        inverse_norm: (N,) float32, 1 / ||token||, or None.
        block, timestep: where the features come from, or None; of a mean over timesteps, the card names them.
        card: model, revision, config and versions, as plain JSON values.
        canvas: (H, W) in original pixels of the area the grid covers; None: the image itself. Larger than the image
            where it was padded.
        offset: (x, y) of the image's top-left pixel on the canvas.
        backend: which kernels match these features: "auto", "triton", "torch" or "verify" (not saved).

    Raises:
        InputError: shapes that do not fit one another.
    """

    tokens: Tensor
    grid: tuple[int, int]
    image_size: tuple[int, int]
    inverse_norm: Tensor | None = None
    block: int | None = None
    timestep: float | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    canvas: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)
    backend: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Tensor) or self.tokens.ndim != 2:
            raise InputError.of("tokens", tuple(getattr(self.tokens, "shape", ())), "a tensor of shape (N, D)")
        if not self.tokens.is_floating_point():
            raise InputError.of("tokens", self.tokens.dtype, "a floating-point dtype")
        grid, size = _pair("grid", self.grid), _pair("image_size", self.image_size)
        if grid[0] * grid[1] != self.tokens.shape[0]:
            raise InputError.of("grid", grid, f"h * w = {self.tokens.shape[0]}, the number of tokens")
        if self.inverse_norm is not None and self.inverse_norm.shape != self.tokens.shape[:1]:
            raise InputError.of("inverse_norm", tuple(self.inverse_norm.shape), f"({self.tokens.shape[0]},)")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "tokens", self.tokens.contiguous())
        if self.canvas is not None:
            object.__setattr__(self, "canvas", _pair("canvas", self.canvas))

    def __repr__(self) -> str:
        where = "" if self.block is None else f", block={self.block}"
        where += "" if self.timestep is None else f", timestep={self.timestep:g}"
        dtype = str(self.tokens.dtype).removeprefix("torch.")
        return (
            f"FeatureMap(tokens=({self.tokens.shape[0]}, {self.tokens.shape[1]}) {dtype} on {self.tokens.device}, "
            f"grid={self.grid}, image_size={self.image_size}{where})"
        )

    @property
    def map(self) -> Tensor:
        """(D, h, w) view of the tokens."""
        return self.tokens.T.unflatten(1, self.grid)

    @property
    def extent(self) -> tuple[int, int]:
        """(H, W) in original pixels of the area the grid covers."""
        return self.canvas or self.image_size

    def to(self, *args: Any, **kwargs: Any) -> FeatureMap:
        """The same features on another device or in another dtype (arguments of ``Tensor.to``)."""
        tokens = self.tokens.to(*args, **kwargs)
        norm = None if self.inverse_norm is None else self.inverse_norm.to(tokens.device)
        return dataclasses.replace(self, tokens=tokens, inverse_norm=norm)

    def sample(self, points: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Tensor:
        """Features at image points, bilinear between tokens (``align_corners=False``), not normalised.

        Args:
            points: (K, 2) float, (x, y) pixels of the original image.

        Returns:
            (K, D) float32.

        Raises:
            InputError: points of another shape, not finite or outside the image.
        """
        points = checked_points("points", points, self.image_size).to(self.tokens.device)
        on_canvas = points + torch.tensor(self.offset, dtype=torch.float32, device=points.device)
        return sample_grid(self.tokens, self.grid, self.extent, on_canvas)

    @overload
    @staticmethod
    def concat(maps: Sequence[FeatureMap], weights: Sequence[float] | None = ..., pca: None = ...) -> FeatureMap: ...
    @overload
    @staticmethod
    def concat(
        maps: Sequence[Sequence[FeatureMap]], weights: Sequence[float] | None = ..., pca: int | None = ...
    ) -> list[FeatureMap]: ...
    @staticmethod
    def concat(maps: Any, weights: Sequence[float] | None = None, pca: int | None = None) -> Any:
        """Features of several backbones beside one another, on the grid of the first.

        Every map is sampled bilinearly at the centres of the first's tokens, its tokens brought to unit length, times
        its weight; the whole token has unit length again. So the cosine of two tokens is the mean of the parts'
        cosines, weighted by the squares of the weights. DiTF's own weights ("+ DINOv2") were not published; ours are
        equal.

        Args:
            maps: of one image, any channels, grids and padding. Or a list of such lists, one per image, the same
                backbones in the same order: all that is to be matched with one another, where ``pca`` is wanted.
            weights: one per map, at least 0; None: equal.
            pca: project the tokens of all the images together to this many principal components (DiTF: 1280, of two
                images); see :func:`ditf.joint_pca`.

        Returns:
            A FeatureMap with the sum of the channels, or a list of them for a list of lists.

        Raises:
            InputError: maps of different images or devices, weights that cannot be used, or ``pca`` with one image.
        """
        from .concat import concat

        return concat(maps, weights, pca)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file (to a temporary name, then renamed); returns its path.

        Raises:
            StoreError: the folder is missing or cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        tensors = {"tokens": self.tokens.detach().cpu()}
        if self.inverse_norm is not None:
            tensors["inverse_norm"] = self.inverse_norm.detach().cpu()
        about = {
            "grid": self.grid,
            "image_size": self.image_size,
            "block": self.block,
            "timestep": self.timestep,
            "canvas": self.canvas,
            "offset": self.offset,
            "card": dict(self.card),
        }
        write_atomically(path, save(tensors, {"ditf": json.dumps(about, sort_keys=True)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureMap:
        """Read what :meth:`save` wrote, on the CPU.

        Raises:
            StoreError: no such file, or not a feature file of ditf.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("ditf", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            raise StoreError(f"{path}: no such file; give a file written by FeatureMap.save") from None
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise StoreError(f"{path}: cannot be read ({error}); give a file written by FeatureMap.save") from None
        if about is None or "tokens" not in tensors:
            raise StoreError(f"{path}: no feature map inside; give a file written by FeatureMap.save")
        return cls(
            tokens=tensors["tokens"],
            inverse_norm=tensors.get("inverse_norm"),
            block=about["block"],
            timestep=about["timestep"],
            grid=tuple(about["grid"]),
            image_size=tuple(about["image_size"]),
            canvas=None if about["canvas"] is None else tuple(about["canvas"]),
            offset=tuple(about["offset"]),
            card=about["card"],
        )


@dataclass(frozen=True, eq=False)
class Tapped:
    """What entered one block, and the feature made of it.

    Attributes:
        raw: (B*E, N, D) image tokens entering the block's first norm; row b*E + e is member e of image b.
        shift, scale: (B, 1|N, D) of the block's own AdaLN, or None where the block has none.
        norm: "layer" or "rms"; None where ``raw`` is an activation that no norm follows.
        eps, weight, bias: of that norm.
        features: (B, N, D).
        grid: (h, w), or (t, h, w) for video.
    """

    raw: Tensor
    shift: Tensor | None
    scale: Tensor | None
    norm: Literal["layer", "rms"] | None
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    features: Tensor
    grid: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Matches:
    """Points of one image found in another.

    Attributes:
        source, target: (K, 2) float32, (x, y) pixels of the source and target image; a target of (-1, -1) says that
            no pixel could be chosen.
        score: (K,) float32 cosine similarity in [-1, 1], NaN without a target.
        topk: None or (K, topk, 3) float32: (x, y, score) of the best target pixels, best first.
        cycle_error: None or (K,) float32: pixels between a source point and its match matched back.
        source_size, target_size: (H, W) of the images.
        mirrored: whether the source was matched mirrored left to right; None where no mirrored features were given.
    """

    source: Tensor
    target: Tensor
    score: Tensor
    topk: Tensor | None = None
    cycle_error: Tensor | None = None
    source_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    mirrored: bool | None = None

    def __len__(self) -> int:
        return int(self.source.shape[0])

    def __repr__(self) -> str:
        return f"Matches({len(self)} points, {self.source_size} -> {self.target_size})"

    def select(self, keep: Tensor) -> Matches:
        """The matches at a boolean mask (K,) or at integer positions, in order."""
        rows = {
            name: value[keep]
            for name in ("source", "target", "score", "topk", "cycle_error")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists under the keys ``source``, ``target``, ``score`` (and ``topk``, ``cycle_error``, ``mirrored`` if
        known); a score or error that is not a number is None."""
        out: dict[str, Any] = {
            "source": self.source.tolist(),
            "target": self.target.tolist(),
            "score": _numbers(self.score),
        }
        if self.topk is not None:
            out["topk"] = [[[x, y, _number(s)] for x, y, s in row] for row in self.topk.tolist()]
        if self.cycle_error is not None:
            out["cycle_error"] = _numbers(self.cycle_error)
        if self.mirrored is not None:
            out["mirrored"] = self.mirrored
        return out

    def draw(self, source: Any, target: Any, **options: Any) -> Image:
        """Both images side by side with numbered, coloured points and lines; see :func:`ditf.draw.draw_matches`."""
        from .draw import draw_matches

        return draw_matches(self, source, target, **options)


@dataclass(frozen=True, eq=False)
class DenseMatches:
    """Every token or pixel of one image found in another; h, w are those of the source's grid or image.

    Attributes:
        source: (h, w, 2) float32, (x, y) pixels of the source image: the centres of its tokens, or its pixels. NaN for
            tokens of padding.
        target: (h, w, 2) float32, (x, y) pixels of the target image; (-1, -1) where none could be chosen.
        score: (h, w) float32 cosine similarity in [-1, 1], NaN without a target.
        mutual: (h, w) bool, where the match of the match is the token or pixel itself; None: not asked for. Pixels of
            the image's border, which share their feature with others, can only be found again at the first of these.
        cycle_error: (h, w) float32 pixels between a position and the match of its match, NaN without; None: not asked.
        resolution: "tokens" or "image".
        source_size, target_size: (H, W) of the images.
    """

    source: Tensor
    target: Tensor
    score: Tensor
    mutual: Tensor | None
    cycle_error: Tensor | None
    resolution: Literal["tokens", "image"]
    source_size: tuple[int, int]
    target_size: tuple[int, int]

    def __repr__(self) -> str:
        h, w = self.score.shape
        both = "" if self.mutual is None else f", {float(self.mutual.float().mean()):.0%} mutual"
        return f"DenseMatches({h} x {w} {self.resolution}, {self.source_size} -> {self.target_size}{both})"

    @property
    def flow(self) -> Tensor:
        """(h, w, 2) float32 displacement in pixels, target minus source; NaN where there is no match."""
        return (self.target - self.source).masked_fill((self.target < 0).any(-1, keepdim=True), math.nan)

    def matches(self, *, max_cycle_error: float | None = None) -> Matches:
        """The matches as points: the mutual ones where that is known, else all.

        Args:
            max_cycle_error: instead of the mutual ones, those matched back to within so many pixels.

        Raises:
            InputError: ``max_cycle_error`` where cycle errors were not asked for.
        """
        keep = (self.target >= 0).all(-1)
        if max_cycle_error is not None:
            if self.cycle_error is None:
                raise InputError.of("max_cycle_error", max_cycle_error, "None, or match_dense(..., mutual=True)")
            keep = keep & (self.cycle_error <= max_cycle_error)  # NaN compares False
        elif self.mutual is not None:
            keep = keep & self.mutual
        error = None if self.cycle_error is None else self.cycle_error[keep]
        sizes = self.source_size, self.target_size
        return Matches(self.source[keep], self.target[keep], self.score[keep], None, error, *sizes)

    def warp(self, image: Any) -> np.ndarray:
        """The target image in the pose of the source: (H, W, 3) uint8 at source size, black where there is no match.

        Each pixel takes the target's pixel that it was matched with; at token resolution the pixels of a token keep
        their places around its centre, and the target is sampled bilinearly.

        Args:
            image: the target image, in any form :class:`ditf.FeatureExtractor` takes.

        Raises:
            InputError: an image of another size.
        """
        from .dense import warp_image_by

        return warp_image_by(self, image)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Points followed through a video.

    Attributes:
        points: (T, K, 2) float32, (x, y) pixels of each frame; the first frame's are those that were asked for.
        visible: (T, K) bool: the match leads back to where it came from.
        score: (T, K) float32 cosine similarity in [-1, 1].
        image_size: (H, W) of the frames, or None.
    """

    points: Tensor
    visible: Tensor
    score: Tensor
    image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return int(self.points.shape[0])

    def __repr__(self) -> str:
        seen = float(self.visible.float().mean())
        return f"Tracks({self.points.shape[1]} points, {len(self)} frames, {seen:.0%} visible)"

    def to_dict(self) -> dict[str, Any]:
        """Plain lists under the keys ``points``, ``visible``, ``score``: per frame, per point."""
        scores = [_numbers(row) for row in self.score]
        return {"points": self.points.tolist(), "visible": self.visible.tolist(), "score": scores}


def backend_of(fused: Any) -> str | None:
    """The kernels' backend that ``fused`` asks for: None leaves the choice to them.

    Raises:
        InputError: neither True, False nor "verify".
    """
    if fused is not True and fused is not False and fused != "verify":
        raise InputError.of("fused", fused, 'True, False or "verify"')
    return "verify" if fused == "verify" else None if fused else "torch"


def checked_points(name: str, points: Any, image_size: tuple[int, int] | None) -> Tensor:
    """Points (K, 2) as float32 on their own device, inside the image when its size is given.

    Raises:
        InputError: another shape, a value that is not finite, or a point outside [0, W - 1] x [0, H - 1].
    """
    try:
        points = torch.as_tensor(points if isinstance(points, Tensor) else np.asarray(points, dtype=np.float64))
        points = points.detach().to(torch.float32)
    except (TypeError, ValueError):
        raise InputError.of(name, points, "numbers of shape (K, 2): (x, y) pixels") from None
    if (points.ndim == 2 and points.shape[1] == 2) or points.numel() == 0:
        points = points.reshape(-1, 2)
    else:
        raise InputError.of(name, f"shape {tuple(points.shape)}", "shape (K, 2): (x, y) pixels")
    if not bool(torch.isfinite(points).all()):
        row = int((~torch.isfinite(points).all(1)).nonzero()[0])
        raise InputError.of(name, points[row].tolist(), f"finite numbers (point {row})")
    if image_size is not None and len(points):
        height, width = image_size
        limit = torch.tensor([width - 1, height - 1], dtype=points.dtype, device=points.device)
        outside = ((points < 0) | (points > limit)).any(1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise InputError.of(
                name, tuple(points[row].tolist()), f"x in 0..{width - 1} and y in 0..{height - 1} (point {row})"
            )
    return points


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


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError.of(name, value, f"an integer of at least {least}")


def _checked_discard(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if value not in ("preset", "auto", "none"):
            raise InputError.of("discard", value, '"preset", "auto", "none" or channel indices')
        return value
    try:
        channels = tuple(int(c) for c in value)
    except (TypeError, ValueError):
        raise InputError.of("discard", value, '"preset", "auto", "none" or channel indices') from None
    if any(c < 0 for c in channels) or len(set(channels)) != len(channels):
        raise InputError.of("discard", channels, "distinct channel indices of at least 0")
    return channels


def _checked_size(value: Any, resize: str) -> int | tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        _check_int("size", value, 1)
        return value
    if resize != "stretch":
        raise InputError.of("size", value, f'an integer number of pixels with resize="{resize}"')
    return _pair("size", value)


def _pair(name: str, value: Any) -> tuple[int, int]:
    try:
        first, second = (int(v) for v in value)
    except (TypeError, ValueError):
        raise InputError.of(name, value, "two integers (height, width)") from None
    if first < 1 or second < 1:
        raise InputError.of(name, (first, second), "two integers of at least 1")
    return first, second


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(v) for v in values.tolist()]
