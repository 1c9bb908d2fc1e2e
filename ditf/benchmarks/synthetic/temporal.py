"""The procedural clips: a mask and points of the first frame, carried through the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from typing import Protocol as Interface

import numpy as np

from ...tiny.scenes import TEST_SEED, VALIDATION_SEED
from ...types import FeatureMap
from ...video import iter_labels, track_points
from ..clips import Clip, ClipFrame, make_clip, true_tracks
from ..jf import score_video
from ..rivals import patch_map
from .methods import ModelRows
from .runner import Units

__all__ = ["CLIPS", "MEASURES", "STAYING", "ClipRows", "ModelClips", "PatchClips", "clips", "evaluate_clips"]

CLIPS = {"quick": (4, 8), "full": (24, 16)}
"""Clips and their frames."""

MEASURES = {
    "j_and_f": "J&F",
    "j": "J",
    "f": "F",
    "within": "points within 4 px",
    "median_error": "median error, px",
    "visibility": "visibility right",
}
"""Keys of a result -> headings. Percent but for the error, which is of points where they are to be seen."""

STAYING = "first mask copied, points that stay"
PATCHES = (5, 9, 17)

_FIRST = 600_000  # seeds after the split's first one
_POINTS, _NEAR, _STRIDE, _SIDE = 12, 4.0, 4, 240


class ClipRows(Interface):
    """Rows of the table of clips.

    Attributes:
        names: of the rows.
        stride: pixels of the frame as it is seen per token.
    """

    names: tuple[str, ...]
    stride: int

    def about(self) -> dict[str, Any]: ...

    def maps(self, picture: np.ndarray) -> dict[str, FeatureMap]:
        """Row -> features of a frame."""
        ...


class ModelClips:
    """The ablation of a model, see :class:`ditf.benchmarks.synthetic.methods.ModelRows`."""

    def __init__(self, rows: ModelRows) -> None:
        self.rows, self.names, self.stride = rows, rows.names, rows.fx.backbone.pixels_per_token

    def about(self) -> dict[str, Any]:
        return self.rows.about()

    def maps(self, picture: np.ndarray) -> dict[str, FeatureMap]:
        return self.rows.maps(picture, "animal")


class PatchClips:
    """Pixel patches minus their mean; ``side``: longest side of a frame as the model sees it, 240 px at most here."""

    stride = _STRIDE

    def __init__(self, side: int) -> None:
        self.side = min(side, _SIDE)
        self.names = tuple(f"pixel patches {patch} px" for patch in PATCHES)

    def about(self) -> dict[str, Any]:
        return {"pixels": list(PATCHES), "side": self.side, "stride": _STRIDE}

    def maps(self, picture: np.ndarray) -> dict[str, FeatureMap]:
        sizes = zip(self.names, PATCHES, strict=True)
        return {name: patch_map(picture, patch, self.side, _STRIDE) for name, patch in sizes}


@dataclass(frozen=True, eq=False)
class _Truth:
    """A clip and what is true of it: masks (T, H, W), tracks (T, K, 2), NaN where a point is not to be seen."""

    frames: Sequence[ClipFrame]
    masks: np.ndarray
    tracks: np.ndarray

    @classmethod
    def of(cls, clip: Clip) -> _Truth:
        frames = list(clip)
        y, x = np.nonzero(frames[0].mask)
        chosen = np.random.default_rng([clip.seed, 3]).choice(len(y), min(_POINTS, len(y)), replace=False)
        points = np.stack([x[chosen], y[chosen]], -1).astype(np.float64)
        masks = np.stack([frame.mask for frame in frames])
        return cls(frames, masks, true_tracks(frames, points))

    def digest(self) -> str:
        whole = hashlib.sha256(self.masks.tobytes() + self.tracks.tobytes())
        for frame in self.frames:
            whole.update(frame.pixels.tobytes())
        return whole.hexdigest()


def clips(count: int, length: int, split: Literal["test", "validation"] = "test") -> list[Clip]:
    """Two things of the training kinds in each clip, 120 x 160 px."""
    first = {"test": TEST_SEED, "validation": VALIDATION_SEED}[split] + _FIRST
    return [make_clip(first + i, length) for i in range(count)]


def evaluate_clips(
    some: Iterable[Clip], methods: Sequence[ClipRows], units: Units, told: Callable[[int], None]
) -> dict[str, list[dict[str, float]]]:
    """Row -> per clip, the keys of ``MEASURES``; NaN where a row does not say what is visible."""
    rows: dict[str, list[dict[str, float]]] = {}
    abouts = [method.about() for method in methods]
    for number, clip in enumerate(some, 1):
        truth = _Truth.of(clip)
        seen = truth.digest()
        found = {STAYING: _staying(truth)}
        for method, about in zip(methods, abouts, strict=True):
            found |= units.get({"clip": seen, "method": about}, lambda m=method, t=truth: _measured(m, t))
        for name, values in found.items():
            rows.setdefault(name, []).append({k: np.nan if v is None else v for k, v in values.items()})
        told(number)
    return rows


def _staying(truth: _Truth) -> Mapping[str, float | None]:
    copied = np.broadcast_to(truth.masks[0], truth.masks.shape)
    return _values(truth, copied, np.broadcast_to(truth.tracks[0], truth.tracks.shape), None)


def _measured(method: ClipRows, truth: _Truth) -> dict[str, dict[str, float | None]]:
    maps = [method.maps(frame.pixels) for frame in truth.frames]
    found = {}
    for name in method.names:
        own = [of[name] for of in maps]
        labels = np.stack([one.numpy() for one in iter_labels(own, truth.masks[0], stride=method.stride)])
        tracks = track_points(own, truth.tracks[0])
        found[name] = _values(truth, labels, tracks.points.numpy(), tracks.visible.numpy())
    return found


def _values(
    truth: _Truth, labels: np.ndarray, points: np.ndarray, visible: np.ndarray | None
) -> dict[str, float | None]:
    """The first frame is given and does not count."""
    score = score_video(labels, truth.masks)
    seen = ~np.isnan(truth.tracks[1:, :, 0])
    apart = np.linalg.norm(points[1:] - truth.tracks[1:], axis=-1)[seen]
    return {
        "j_and_f": 100 * score.j_and_f,
        "j": 100 * float(score.j.mean()),
        "f": 100 * float(score.f.mean()),
        "within": 100 * float((apart <= _NEAR).mean()),
        "median_error": float(np.median(apart)),
        "visibility": None if visible is None else 100 * float((visible[1:] == seen).mean()),
    }
