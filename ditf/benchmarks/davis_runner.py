"""Masks carried through every video and scored; stopped at any moment, it goes on with the next sequence.

Frames are read one at a time. Masks are written as indexed PNG in the layout that DAVIS's own evaluation reads,
``{row}/{sequence}/{00000}.png``, the first being the one that was given. A sequence is finished when all of its masks
are scored; they are taken as they are by a later run of equal settings whose frames, true masks and written masks are
all unchanged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ModelError, StoreError
from ..store import digest
from ..types import FeatureMap, write_atomically
from ..video import PropagationProtocol, iter_labels, save_mask
from .davis import Video, VideoSet, settings_for
from .davis_methods import VideoMethod
from .jf import VideoScore, score_video

__all__ = ["COPY", "ObjectScore", "VideoEvaluation", "evaluate_videos", "folder_name", "object_scores"]

log = logging.getLogger("ditf")

COPY = "first mask copied"
_UNIT = 1  # version of the files

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object, 0..1: means over frames, the share of frames above 0.5, first quarter less last."""

    sequence: str
    object: int
    j: float
    j_recall: float
    j_decay: float
    f: float
    f_recall: float
    f_decay: float


@dataclass(frozen=True, eq=False)
class VideoEvaluation:
    """Scores of every object by row, the copied first mask among them."""

    protocol: PropagationProtocol
    scores: Mapping[str, tuple[ObjectScore, ...]]


def evaluate_videos(
    methods: Sequence[VideoMethod],
    videos: VideoSet,
    protocol: PropagationProtocol,
    *,
    name: str,
    folder: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    progress: Progress | None = None,
) -> VideoEvaluation:
    """Propagate and score all sequences by all methods, and by copying the first mask.

    Args:
        methods: of distinct names.
        protocol: its stride gives way to each method's own.
        name: of the protocol: some have exceptions for a sequence.
        folder: where finished sequences are kept; created if missing.
        masks: where masks are written; created if missing.

    Raises:
        InputError: methods of one name, features that do not fit.
        ModelError: features that are not finite.
        StoreError: a folder that cannot be written.
    """
    rows = [folder_name(method.name) for method in methods]
    if len(set(rows)) != len(rows) or COPY in [method.name for method in methods]:
        raise InputError.of("methods", [m.name for m in methods], f"distinct names, none of them {COPY!r}")
    units = Path(folder) / "units"
    for path in (units, Path(masks)):
        _make(path)
    told = progress or (lambda stage, done, total: None)
    total, done = sum(len(video.frames) for video in videos.videos) * len(methods), 0
    scores: dict[str, list[ObjectScore]] = {method.name: [] for method in methods} | {COPY: []}
    for video in videos.videos:
        work = _Work(video, units)
        scores[COPY] += work.copied()
        for method, row in zip(methods, rows, strict=True):
            settings = settings_for(name, protocol, video.name).replace(stride=method.stride)
            into, before = Path(masks) / row / video.name, done
            scores[method.name] += work.propagated(
                method, settings, into, lambda frame, before=before: told("frames", before + frame, total)
            )
            done += len(video.frames)
            told("frames", done, total)
    return VideoEvaluation(protocol, {row: tuple(some) for row, some in scores.items()})


def object_scores(sequence: str, predicted: np.ndarray, truth: np.ndarray) -> list[ObjectScore]:
    """Of every object of the first true mask; (T, H, W) ids each, see :func:`ditf.benchmarks.jf.score_video`."""
    whole = score_video(predicted, truth)
    found = []
    for i, (j, f) in enumerate(zip(whole.j, whole.f, strict=True), 1):
        one = VideoScore(j[None], f[None])
        (j_recall, f_recall), (j_decay, f_decay) = one.recall(), one.decay()
        found.append(ObjectScore(sequence, i, float(j.mean()), j_recall, j_decay, float(f.mean()), f_recall, f_decay))
    return found


class _Work:
    """One sequence: from disk what is finished, the rest from its frames."""

    def __init__(self, video: Video, units: Path) -> None:
        self.video, self.units = video, units
        self._truth: np.ndarray | None = None

    @property
    def truth(self) -> np.ndarray:
        if self._truth is None:
            self._truth = self.video.truth
        return self._truth

    def copied(self) -> list[ObjectScore]:
        key = digest({"version": _UNIT, "method": COPY, **self._about()})
        known = self._read(key, None)
        if known is None:
            known = object_scores(self.video.name, np.broadcast_to(self.truth[0], self.truth.shape), self.truth)
            self._write(key, known, "")
        return known

    def propagated(
        self, method: VideoMethod, settings: PropagationProtocol, into: Path, told: Callable[[int], None]
    ) -> list[ObjectScore]:
        rule = {k: v for k, v in settings.to_dict().items() if k not in ("source", "side", "multiple")}
        key = digest({"version": _UNIT, "method": method.about(), "rule": rule, **self._about()})
        known = self._read(key, into)
        if known is not None:
            return known
        _make(into)
        predicted = []
        labels = iter_labels(self._features(method), self.truth[0], preset=settings)
        for frame, one in zip(self.video.frames, labels, strict=True):
            save_mask(into / f"{frame.name}.png", one)
            predicted.append(one.to(torch.uint8).numpy())
            told(len(predicted))
        found = object_scores(self.video.name, np.stack(predicted), self.truth)
        self._write(key, found, self._written(into))
        return found

    def _features(self, method: VideoMethod) -> Iterator[FeatureMap]:
        for frame in self.video.frames:
            features = method.features(frame)
            if not bool(torch.isfinite(features.tokens).all()):
                raise ModelError(
                    f"{frame.image}: the features of {method.name} are not finite; try another --model-dtype"
                )
            yield features

    # --- on disk

    def _about(self) -> dict[str, Any]:
        return {"sequence": self.video.name, "frames": list(self.video.digests)}

    def _written(self, into: Path) -> str:
        """SHA-256 of all masks, or of nothing where one is missing."""
        whole = hashlib.sha256()
        for frame in self.video.frames:
            path = into / f"{frame.name}.png"
            if not path.is_file():
                return ""
            whole.update(path.read_bytes())
        return whole.hexdigest()

    def _write(self, key: str, scores: list[ObjectScore], written: str) -> None:
        content = {"masks": written, "objects": [asdict(one) for one in scores]}
        write_atomically(self.units / f"{key}.json", json.dumps(content, allow_nan=False).encode())

    def _read(self, key: str, into: Path | None) -> list[ObjectScore] | None:
        path = self.units / f"{key}.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores, written = [ObjectScore(**one) for one in content["objects"]], content["masks"]
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s is damaged; computing it again", path)
            return None
        return scores if into is None or (written and written == self._written(into)) else None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be created ({error.strerror}); choose another folder") from None
    write_atomically(folder / ".writable", b"")  # before the first forward, not after the last
    (folder / ".writable").unlink()


def folder_name(name: str) -> str:
    """Of a row: where its masks lie."""
    return re.sub(r"[^\w.+-]+", "-", name.rsplit("/", 1)[-1])
