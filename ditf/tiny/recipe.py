"""What decides the weights of a training run, and three runs worth having by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        width, heads, double_blocks, single_blocks, patch: of the network.
        qk_norm: whether queries and keys are normalised, as in FLUX. Without, the checkpoint loads nowhere else.
        sizes: sides of the pictures, large and small; a batch has one.
        large: share of batches with large pictures before the decay; then it is one minus this.
        clutter, occluded, viewpoint, styled: share of batches with busy backgrounds and smaller instances, with a shape
            in front of the instance, with the instance tilted in depth, and not drawn flat but shaded or rough.
        curriculum: share of the run in which those four grow from none to what they are.
        batch: pictures per step.
        images, minutes: the length of the run; exactly one is given. Only ``images`` makes runs repeatable.
        optimiser: "adamw", or "muon" for the matrices of the blocks (torch.optim.Muon) and AdamW for the rest.
        learning_rate: after ``warmup`` steps, until the last ``decay`` of the run takes it down to a fiftieth.
        average: of the exponential moving average of the weights, which is what a checkpoint holds.
        sigma_mean, sigma_spread: noise levels are the sigmoid of a normal variable.
        seed: of the weights, the scenes and the noise.

    Raises:
        InputError: a field outside its domain.
    """

    width: int = 128
    heads: int = 4
    double_blocks: int = 2
    single_blocks: int = 6
    patch: int = 4
    qk_norm: bool = True
    sizes: tuple[int, int] = (64, 40)
    large: float = 0.3
    clutter: float = 0.0
    occluded: float = 0.0
    viewpoint: float = 0.0
    styled: float = 0.0
    curriculum: float = 0.0
    batch: int = 8
    images: int | None = None
    minutes: float | None = None
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup: int = 100
    decay: float = 0.25
    average: float = 0.999
    sigma_mean: float = 0.1
    sigma_spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if (self.images is None) == (self.minutes is None):
            raise InputError(f"images, minutes: got {self.images} and {self.minutes}, expected exactly one of them")
        length = self.images if self.images is not None else self.minutes
        if length is None or not length > 0:
            raise InputError.of("images" if self.minutes is None else "minutes", length, "more than 0")
        if self.batch < 1:
            raise InputError.of("batch", self.batch, "at least 1")
        if any(size % self.patch for size in self.sizes):
            raise InputError.of("sizes", self.sizes, f"multiples of the patch, {self.patch}")
        if self.optimiser not in ("adamw", "muon"):
            raise InputError.of("optimiser", self.optimiser, '"adamw" or "muon"')
        for name in ("large", "clutter", "occluded", "viewpoint", "styled", "curriculum", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError.of(name, getattr(self, name), "a share in 0 .. 1")

    @property
    def shape(self) -> dict[str, Any]:
        """Arguments of :func:`ditf.tiny.network.build`."""
        return {name: getattr(self, name) for name in _SHAPE}


_SHAPE = ("width", "heads", "double_blocks", "single_blocks", "patch", "qk_norm")

RECIPES: dict[str, Mapping[str, Any]] = {
    "smoke": {
        "width": 64, "double_blocks": 1, "single_blocks": 2, "sizes": (32, 24), "batch": 8, "images": 4800,
        "learning_rate": 3e-3, "warmup": 20, "average": 0.99,
    },
    "cpu": {
        "batch": 16, "minutes": 120.0, "clutter": 0.3, "occluded": 0.1, "viewpoint": 0.1, "styled": 0.3,
        "curriculum": 0.3,
    },
    "gpu": {
        "width": 192, "heads": 6, "batch": 256, "images": 6_000_000, "learning_rate": 1e-3, "warmup": 500,
        "average": 0.9995, "clutter": 0.4, "occluded": 0.2, "viewpoint": 0.3, "styled": 0.6,
        "curriculum": 0.4,
    },
}  # fmt: skip
"""By name: two minutes on a CPU to see the loss fall; hours on a CPU; legs of minutes on one GPU (with ``--bf16``)."""
