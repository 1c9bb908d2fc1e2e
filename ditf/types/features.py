"""Features of one image on the grid of its tokens, and what they were made of."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ditf_kernels.reference import sample_grid

from ..errors import InputError, StoreError
from .checks import checked_points, pair
from .files import write_atomically

__all__ = ["FeatureMap", "Tapped"]


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
        grid, size = pair("grid", self.grid), pair("image_size", self.image_size)
        if grid[0] * grid[1] != self.tokens.shape[0]:
            raise InputError.of("grid", grid, f"h * w = {self.tokens.shape[0]}, the number of tokens")
        if self.inverse_norm is not None and self.inverse_norm.shape != self.tokens.shape[:1]:
            raise InputError.of("inverse_norm", tuple(self.inverse_norm.shape), f"({self.tokens.shape[0]},)")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "tokens", self.tokens.contiguous())
        if self.canvas is not None:
            object.__setattr__(self, "canvas", pair("canvas", self.canvas))

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
        from ..concat import concat

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
