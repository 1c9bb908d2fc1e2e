"""A plan: plain numbers, all in bytes, floating-point operations and seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .gpus import Gpu

__all__ = ["Fit", "Part", "Plan", "Stage", "StageTime"]


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint: what of it is read, and what it is in memory.

    Attributes:
        name: of its folder, "transformer", "vae", "text_encoder", ...
        kind: its class.
        parameters, parameters_read: of all of it, and of what is read.
        bytes_stored: all its tensors on disk.
        bytes_read: those that are read: exactly what loading reads, where ``stored_from`` is "headers".
        bytes_resident: its weights and buffers once loaded.
        stored_as: dtypes on disk.
        stored_from: who says so: the headers of its files, its config, or nobody ("assumed": the dtype asked for).
        files: the weight files that are opened, relative to the checkpoint; None where they are not on this machine.
        files_in_all: how many weight files it has.
    """

    name: str
    kind: str
    parameters: int
    parameters_read: int
    bytes_stored: int
    bytes_read: int
    bytes_resident: int
    stored_as: str
    stored_from: Literal["headers", "config", "assumed"]
    files: tuple[str, ...] | None
    files_in_all: int | None


@dataclass(frozen=True)
class Stage:
    """One step of an extraction; stages follow each other.

    Attributes:
        name: "encode text", "encode image" or "transformer forward".
        weights_bytes: resident on the device meanwhile.
        traffic_bytes: weights that this stage itself reads from memory, each at least once.
        activation_bytes: the most that its tensors take at one time; None where it could not be counted.
        flops: one multiplication and one addition are two; None where they could not be counted.
        dtype: of its matrix products.
        note: what was counted, or why nothing was.
    """

    name: str
    weights_bytes: int
    traffic_bytes: int
    activation_bytes: int | None
    flops: int | None
    dtype: str
    note: str

    @property
    def peak_bytes(self) -> int:
        """Weights and activations; the weights alone where the activations are not known."""
        return self.weights_bytes + (self.activation_bytes or 0)


@dataclass(frozen=True)
class StageTime:
    """A lower bound on a stage's time on one card: the longer of computing and reading the weights once.

    Attributes:
        stage: its name.
        compute_s: flops at the data sheet's rate, or None where they are not known.
        memory_s: weights at the data sheet's bandwidth.
    """

    stage: str
    compute_s: float | None
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s or 0.0, self.memory_s)

    @property
    def limit(self) -> Literal["compute", "bandwidth"]:
        return "compute" if (self.compute_s or 0.0) >= self.memory_s else "bandwidth"


@dataclass(frozen=True)
class Fit:
    """A plan on one card.

    Attributes:
        gpu: the card.
        times: lower bounds, from the data sheet; nothing was measured.
        fits: whether every stage's peak is below the card's memory.
        advice: what to do where it does not.
    """

    gpu: Gpu
    times: tuple[StageTime, ...]
    fits: bool
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What an extraction reads, holds and computes.

    Attributes:
        model: as asked for.
        configs_from: where its configs were found.
        family: how the transformer is fed.
        block, num_blocks: the tapped block, and how many there are.
        dtype: of the transformer and the text encoders; the VAE runs in float32.
        image_size: (H, W) of the image.
        model_size: (H, W) of what the model sees.
        grid: (h, w) of the image's tokens.
        text_tokens: tokens of a text of the greatest length; 0 without text.
        ensemble: rows of the one forward.
        parts: of the checkpoint.
        stages: in order.
        feature_channels: D, or None where the forward could not be run.
        features_bytes: of one feature map.
        flops_whole: of a forward through all blocks and the output head on the same inputs, or None.
        fit: on the card asked for, or None.
        notes: what the reader should know.
    """

    model: str
    configs_from: str
    family: str
    block: int
    num_blocks: int
    dtype: str
    image_size: tuple[int, int]
    model_size: tuple[int, int]
    grid: tuple[int, int]
    text_tokens: int
    ensemble: int
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    feature_channels: int | None
    features_bytes: int | None
    flops_whole: int | None
    fit: Fit | None
    notes: tuple[str, ...]

    @property
    def bytes_read(self) -> int:
        return sum(part.bytes_read for part in self.parts)

    @property
    def bytes_stored(self) -> int:
        return sum(part.bytes_stored for part in self.parts)

    @property
    def largest(self) -> Stage:
        """The stage of the greatest peak."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.largest.peak_bytes

    @property
    def flops_forward(self) -> int | None:
        """Of the transformer up to the tapped block."""
        return self.stages[-1].flops

    @property
    def flops_saved(self) -> float | None:
        """The share of the whole forward that is not run, or None where it is not known."""
        if not self.flops_whole or self.flops_forward is None:
            return None
        return 1 - self.flops_forward / self.flops_whole

    def part(self, name: str) -> Part:
        """The part of a name.

        Raises:
            KeyError: the checkpoint has none.
        """
        return {part.name: part for part in self.parts}[name]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, the derived figures included."""
        plain = dataclasses.asdict(self)
        for stage, described in zip(self.stages, plain["stages"], strict=True):
            described["peak_bytes"] = stage.peak_bytes
        if self.fit is not None:
            for time, described in zip(self.fit.times, plain["fit"]["times"], strict=True):
                described |= {"seconds": time.seconds, "limit": time.limit}
        return plain | {
            "bytes_read": self.bytes_read,
            "bytes_stored": self.bytes_stored,
            "peak_bytes": self.peak_bytes,
            "largest_stage": self.largest.name,
            "flops_forward": self.flops_forward,
            "flops_saved": self.flops_saved,
        }
