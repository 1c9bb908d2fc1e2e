"""Published settings of label propagation, with the source of each value.

All of them run one algorithm (see :mod:`ditf.video.propagate`), that of DINO's evaluation on DAVIS, and change its
constants. CRW alone lets every token look at the whole first frame.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch

from ..errors import InputError

__all__ = ["PROTOCOLS", "PropagationProtocol", "find_protocol"]

Ties = Literal["exact", "kept"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # exp(1 / T) overflows float16


@dataclass(frozen=True)
class PropagationProtocol:
    """Settings of label propagation.

    Attributes:
        n_last: how many of the last frames a frame looks at, besides the first.
        radius: tokens in rows and in columns that a token looks around itself.
        topk: how many tokens, over all frames together, vote for a token's label.
        temperature: of the softmax over their cosines.
        mask_first: the window holds on the first frame too; False lets a token look at all of it.
        stride: pixels per token at which label maps are upsampled before each pixel is decided.
        ties: "exact" keeps ``topk`` tokens, the first among equals; "kept" keeps all that are not less similar than
            the ``topk``-th, as the published code does.
        affinity_dtype: "float32" or "bfloat16": of the cosines and their exponentials. In bfloat16 many are equal, so
            it goes with ``ties="kept"``.
        side: pixels of the frame's shorter side as the model sees it, or None: not published.
        multiple: the longer side is rounded down to a multiple of so many pixels.
        source: per field, who says so.
    """

    n_last: int
    radius: int
    topk: int
    temperature: float
    mask_first: bool = True
    stride: int = 16
    ties: Ties = "exact"
    affinity_dtype: str = "float32"
    side: int | None = None
    multiple: int = 32
    source: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("n_last", 0), ("radius", 0), ("topk", 1), ("stride", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError.of(name, value, f"an integer of at least {least}")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < math.inf:
            raise InputError.of("temperature", self.temperature, "a finite number above 0")
        if not isinstance(self.mask_first, bool):
            raise InputError.of("mask_first", self.mask_first, "True or False")
        if self.ties not in ("exact", "kept"):
            raise InputError.of("ties", self.ties, '"exact" or "kept"')
        object.__setattr__(self, "affinity_dtype", str(self.affinity_dtype).removeprefix("torch."))
        if self.affinity_dtype not in _DTYPES:
            raise InputError.of("affinity_dtype", self.affinity_dtype, f"one of {', '.join(_DTYPES)}")
        if self.affinity_dtype != "float32" and self.ties != "kept":
            raise InputError.of("affinity_dtype", self.affinity_dtype, 'float32, or ties="kept" as well')

    @property
    def dtype(self) -> torch.dtype:
        """``affinity_dtype`` as torch names it."""
        return _DTYPES[self.affinity_dtype]

    def replace(self, **changes: Any) -> PropagationProtocol:
        """A copy with other values; None leaves a value as it is, and the caller's are named in ``source``."""
        given = {name: value for name, value in changes.items() if value is not None}
        source = {**self.source, **{name: "given" for name in given if given[name] != getattr(self, name)}}
        return dataclasses.replace(self, **given, source=source)

    def extract_overrides(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Fields of :class:`ditf.ExtractConfig` that resize a frame (H, W) as the protocol does.

        The shorter side becomes ``side``, the longer one keeps the aspect, rounded down to a multiple. Pillow's
        bilinear filter averages where a frame shrinks; the published code uses OpenCV's, which does not.

        Raises:
            InputError: the protocol publishes no size.
        """
        if self.side is None:
            raise InputError("preset: this protocol publishes no size of frames; choose resize= and size= yourself")
        height, width = image_size
        longer = int((self.side * max(image_size) / min(image_size)) // self.multiple * self.multiple)
        size = (longer, self.side) if height > width else (self.side, longer)
        return {"resize": "stretch", "size": size, "resample": "bilinear"}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "source"}
        return {**values, "source": dict(self.source)}


def find_protocol(preset: str | PropagationProtocol) -> PropagationProtocol:
    """A protocol by its name: "ditf", "dino", "dift-sd", "dift-adm" or "crw".

    Raises:
        InputError: an unknown name.
    """
    if isinstance(preset, PropagationProtocol):
        return preset
    if preset not in PROTOCOLS:
        raise InputError.of("preset", preset, f"one of {', '.join(PROTOCOLS)}, or a PropagationProtocol")
    return PROTOCOLS[preset]


_DINO = "DINO (arXiv 2104.14294), evaluation code for DAVIS 2017"
_DIFT = "DIFT (arXiv 2306.03881), README for DAVIS 2017"
_DITF = "DiTF reference code (github.com/ganchaofan0000/DiTF, November 2025), README for DAVIS 2017"
_CRW = "CRW (arXiv 2006.14613), evaluation code for DAVIS 2017"
_OURS = "ditf: exactly topk, in float32; the published code keeps ties"


def _protocol(who: str, *, others: Mapping[str, str] | None = None, **values: Any) -> PropagationProtocol:
    source = {f.name: who for f in dataclasses.fields(PropagationProtocol) if f.name != "source"}
    source |= {"ties": _OURS, "affinity_dtype": _OURS, **(others or {})}
    return PropagationProtocol(**values, source=MappingProxyType(source))


PROTOCOLS: Mapping[str, PropagationProtocol] = MappingProxyType(
    {
        "ditf": _protocol(_DITF, n_last=7, radius=12, topk=5, temperature=0.1, stride=16, side=960, multiple=32),
        "dino": _protocol(
            _DINO,
            others={"stride": f"{_DINO}: patches of 8 pixels; 16 with the larger ones"},
            n_last=7, radius=12, topk=5, temperature=0.1, stride=8, side=480, multiple=64,
        ),
        "dift-sd": _protocol(_DIFT, n_last=28, radius=15, topk=15, temperature=0.2, stride=8, side=480, multiple=32),
        "dift-adm": _protocol(_DIFT, n_last=28, radius=15, topk=10, temperature=0.1, stride=8, side=480, multiple=32),
        "crw": _protocol(
            _CRW,
            others={"side": "not published", "multiple": "not published"},
            n_last=20, radius=12, topk=10, temperature=0.05, mask_first=False, stride=8,
        ),
    }
)  # fmt: skip
"""DIFT and DiTF take at most 10 last frames for the sequence "shooting" of DAVIS, for want of memory: ``n_last=10``."""
