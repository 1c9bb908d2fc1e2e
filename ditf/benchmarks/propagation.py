"""How far features carry a mask: J&F on procedural clips, beside what needs no features and what knows the truth.

    python -m ditf.benchmarks.propagation

Rows: the first mask copied; pixel patches, at the best of several sizes; ditf-tiny; features that know where on its
thing each pixel lies ("oracle"); and the true masks brought to the token grid and back ("ceiling"). All go through the
same propagation, with the published constants. The temporal preset of ditf-tiny was chosen on the clips of ``TUNING``;
the tables are of ``HELD_OUT``, which nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..types import FeatureMap
from ..video import iter_labels
from .clips import Clip, ClipFrame, make_clip, oracle_features
from .jf import score_video
from .rivals import patch_tokens

__all__ = ["HELD_OUT", "SIZES", "TUNING", "Row", "main", "propagation_table", "table_lines"]

TUNING = (100, 101)
HELD_OUT = (10, 11, 12)
LENGTH = 16  # frames
PATCHES = (5, 9, 17)  # pixels, of the frame as the model sees it
STRIDE = 4  # pixels per token of ditf-tiny
SIZES = 160, 240  # pixels of the longer side, for the model and for the patches

Featurizer = Callable[[ClipFrame], FeatureMap]


@dataclass(frozen=True)
class Row:
    """J&F, J and F of one method in percent, means over the clips."""

    method: str
    j_and_f: float
    j: float
    f: float


def propagation_table(
    extractor: Any, seeds: Sequence[int] = HELD_OUT, *, length: int = LENGTH, patches: Sequence[int] = PATCHES
) -> list[Row]:
    """One row per method, see above.

    Args:
        extractor: a :class:`ditf.FeatureExtractor` of 4 pixels per token: ditf-tiny.
        seeds: of the clips.
        length: frames of each.
        patches: sides of the patches in pixels, odd; the best is reported.
    """
    clips = [make_clip(seed, length) for seed in seeds]
    grid = extractor(clips[0][0].pixels).grid
    side = grid[1] * STRIDE, grid[0] * STRIDE

    def patches_of(size: int) -> Featurizer:
        def make(frame: ClipFrame) -> FeatureMap:
            seen = np.asarray(Image.fromarray(frame.pixels).resize(side, Image.Resampling.BICUBIC))
            return FeatureMap(patch_tokens(seen, size, STRIDE), grid, (frame.mask.shape[0], frame.mask.shape[1]))

        return make

    rivals = [_row(f"pixel patches, {size} px", clips, _propagated(patches_of(size))) for size in patches]
    return [
        _row("first mask copied", clips, lambda clip: (clip[0].mask for _ in clip)),
        max(rivals, key=lambda row: row.j_and_f),
        _row("ditf-tiny", clips, _propagated(lambda frame: extractor(frame.pixels))),
        _row("oracle", clips, _propagated(lambda frame: oracle_features(frame, grid))),
        _row("ceiling", clips, lambda clip: (_there_and_back(frame, grid) for frame in clip)),
    ]


def table_lines(rows: Iterable[Row]) -> list[str]:
    """The table as text."""
    lines = [f"{'':<24}{'J&F':>7}{'J':>7}{'F':>7}"]
    return lines + [f"{row.method:<24}{row.j_and_f:>7.1f}{row.j:>7.1f}{row.f:>7.1f}" for row in rows]


def _row(method: str, clips: Sequence[Clip], predict: Callable[[Clip], Iterator[np.ndarray]]) -> Row:
    scores = [score_video(np.stack(list(predict(clip))), clip.masks) for clip in clips]
    j, f = (100 * float(np.mean([getattr(score, name).mean() for score in scores])) for name in ("j", "f"))
    return Row(method, (j + f) / 2, j, f)


def _propagated(features: Featurizer) -> Callable[[Clip], Iterator[np.ndarray]]:
    def predict(clip: Clip) -> Iterator[np.ndarray]:
        for labels in iter_labels((features(frame) for frame in clip), clip[0].mask, stride=STRIDE):
            yield labels.numpy()

    return predict


def _there_and_back(frame: ClipFrame, grid: tuple[int, int]) -> np.ndarray:
    """The true mask as the best features would give it: each token keeps its own label."""
    same = oracle_features(frame, grid)
    return list(iter_labels([same, same], frame.mask, radius=0, topk=1, stride=STRIDE))[1].numpy()


def main() -> None:
    """Print the tables of the held-out clips, one per size of frames."""
    from ..extractor import FeatureExtractor

    extractor = FeatureExtractor.from_pretrained("ditf-tiny", task="temporal")
    for size in SIZES:
        rows = propagation_table(extractor.replace(size=size))
        print(f"{len(HELD_OUT)} held-out clips of {LENGTH} frames, 120 x 160 px, seen at {size} px")
        print("\n".join(table_lines(rows)) + "\n")


if __name__ == "__main__":
    main()
