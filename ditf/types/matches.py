"""What was found where: points, whole images, tracks through a video."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DenseMatches", "Matches", "Tracks"]


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
        from ..draw import draw_matches

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
        from ..dense import warp_image_by

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


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(v) for v in values.tolist()]
