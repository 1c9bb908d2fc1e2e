"""How well points are followed on procedural clips, beside points that stay where they are and pixel patches (at the
best of several sizes).

    python -m ditf.benchmarks.tracking

Points are drawn on the things of the first frame. "Within a token": the share of true points, where they are to be
seen, that are found within one token (4 px). "Visibility": how often a point is called visible when it is, and hidden
when it is. "Visible and right": of the points that are called visible and are, the share within a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..types import FeatureMap
from ..video import track_points
from .clips import ClipFrame, make_clip, oracle_features, true_tracks
from .propagation import HELD_OUT, LENGTH, PATCHES, STRIDE
from .rivals import patch_tokens

__all__ = ["TrackRow", "main", "table_lines", "tracking_table"]

Mode = Literal["direct", "chained", "window"]
MODES: tuple[Mode, ...] = ("direct", "chained", "window")
POINTS = 12  # of a clip


@dataclass(frozen=True)
class TrackRow:
    """Percent, means over the clips; NaN where a method does not say what is visible."""

    method: str
    within: float
    visibility: float
    right: float


def tracking_table(extractor: Any, seeds: Sequence[int] = HELD_OUT, *, length: int = LENGTH) -> list[TrackRow]:
    """One row per method and mode.

    Args:
        extractor: a :class:`ditf.FeatureExtractor` of 4 pixels per token, at the clips' own size: ditf-tiny.
        seeds: of the clips.
        length: frames of each.
    """
    clips = [list(make_clip(seed, length)) for seed in seeds]
    points = [_points_on_things(frames[0], seed) for frames, seed in zip(clips, seeds, strict=True)]
    truth = [true_tracks(frames, chosen) for frames, chosen in zip(clips, points, strict=True)]
    height, width = _size(clips[0][0])
    grid = height // STRIDE, width // STRIDE

    def patches(size: int) -> Callable[[ClipFrame], FeatureMap]:
        return lambda frame: FeatureMap(patch_tokens(frame.pixels, size, STRIDE), grid, _size(frame))

    def rows_of(name: str, make: Callable[[ClipFrame], FeatureMap]) -> list[TrackRow]:
        features = [[make(frame) for frame in frames] for frames in clips]
        rows = []
        for mode in MODES:
            tracked = [track_points(f, p, mode=mode) for f, p in zip(features, points, strict=True)]
            found = [(a.points.numpy(), a.visible.numpy(), t) for a, t in zip(tracked, truth, strict=True)]
            rows.append(_row(f"{name}, {mode}", found))
        return rows

    rivals = [rows_of(f"pixel patches, {size} px", patches(size)) for size in PATCHES]
    return [
        _row("points that stay", [(np.repeat(t[:1], len(t), 0), None, t) for t in truth]),
        *(max(rows, key=lambda row: row.within) for rows in zip(*rivals, strict=True)),
        *rows_of("ditf-tiny", lambda frame: extractor(frame.pixels)),
        *rows_of("oracle", lambda frame: oracle_features(frame, grid)),
    ]


def table_lines(rows: Iterable[TrackRow]) -> list[str]:
    """The table as text."""
    lines = [f"{'':<30}{'within a token':>16}{'visibility':>12}{'visible and right':>19}"]
    for row in rows:
        numbers = ((row.within, 16), (row.visibility, 12), (row.right, 19))
        lines.append(f"{row.method:<30}" + "".join(f"{v:>{n}.1f}" if v == v else " " * n for v, n in numbers))
    return lines


def _row(method: str, clips: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray]]) -> TrackRow:
    """From (found (T, K, 2), called visible (T, K) or None, truth (T, K, 2)) of each clip; the first frame is given."""
    values = []
    for found, called, truth in clips:
        seen = ~np.isnan(truth[1:, :, 0])
        near = np.linalg.norm(found[1:] - truth[1:], axis=-1) <= STRIDE
        both = None if called is None else seen & called[1:]
        right = np.nan if both is None or not both.any() else near[both].mean()
        agree = np.nan if called is None else (called[1:] == seen).mean()
        values.append((near[seen].mean(), agree, right))
    within, visibility, right = (float(v) for v in 100 * np.mean(values, axis=0))
    return TrackRow(method, within, visibility, right)


def _points_on_things(frame: ClipFrame, seed: int) -> np.ndarray:
    """(POINTS, 2) pixels of things, drawn from the seed."""
    y, x = np.nonzero(frame.mask)
    chosen = np.random.default_rng([seed, 3]).choice(len(y), POINTS, replace=False)
    return np.stack([x[chosen], y[chosen]], -1).astype(np.float64)


def _size(frame: ClipFrame) -> tuple[int, int]:
    return frame.mask.shape[0], frame.mask.shape[1]


def main() -> None:
    """Print the table of the held-out clips."""
    from ..extractor import FeatureExtractor

    rows = tracking_table(FeatureExtractor.from_pretrained("ditf-tiny", task="temporal", size=160))
    print(f"{POINTS} points in each of {len(HELD_OUT)} held-out clips of {LENGTH} frames, 120 x 160 px")
    print("\n".join(table_lines(rows)))


if __name__ == "__main__":
    main()
