"""A homography from matches, by OpenCV's robust estimators.

Points are (x, y) in pixel-index coordinates, sizes are (H, W); matrices act on columns (x, y, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from ..types import Matches, checked_points
from ..warps import apply_homography
from .robust import Method, Options, Points, correspondences, fit_homography, on_a_line, projected, shift, too_few

__all__ = ["Homography", "estimate_homography"]


@dataclass(frozen=True, eq=False)
class Homography:
    """A projective map from source to target pixels.

    Attributes:
        matrix: (3, 3) float64, or None when none could be determined.
        inliers: (K,) bool, which of the given matches lie within the threshold of it.
        reason: why there is no matrix; empty when there is one.
    """

    matrix: Tensor | None
    inliers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    reason: str = ""

    def __post_init__(self) -> None:
        if self.matrix is not None:
            object.__setattr__(self, "matrix", _checked_matrix("matrix", self.matrix))

    def __repr__(self) -> str:
        if self.matrix is None:
            return f"Homography(not found: {self.reason})"
        return f"Homography({int(self.inliers.sum())} of {len(self.inliers)} matches are inliers)"

    @property
    def found(self) -> bool:
        """There is a matrix."""
        return self.matrix is not None

    def apply(self, points: Points) -> Tensor:
        """(K, 2) float64: source points in the target; infinite or NaN on the line that goes to infinity.

        Raises:
            InputError: no homography was found, or points of another shape or not finite.
        """
        return apply_homography(self._known(), checked_points("points", points, None).double())

    def inverse(self) -> Homography:
        """The map from target to source pixels, with the same inliers.

        Raises:
            InputError: no homography was found.
        """
        return Homography(torch.linalg.inv(self._known()), self.inliers)

    def warp(self, image: Any, size: tuple[int, int] | None = None) -> Image.Image:
        """The source image as the target's camera sees it, bicubic, black where it shows nothing.

        Args:
            image: the source; anything :func:`ditf.images.load_image` reads.
            size: (H, W) of the result: the target's; default the source's.

        Raises:
            InputError: no homography was found, an unreadable image, a size that is none.
        """
        source = load_image(image)
        height, width = (source.height, source.width) if size is None else size
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) >= 1):
            raise InputError.of("size", size, "two integers (height, width) of at least 1")
        # Pillow asks for the source place (pixel 0 covers [0, 1]) of the centre (x + 0.5, y + 0.5) of a target pixel.
        backward = shift(0.5, 0.5) @ torch.linalg.inv(self._known()) @ shift(-0.5, -0.5)
        coefficients = (backward / backward[2, 2]).flatten()[:8].tolist()
        return source.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)

    def corner_error(self, truth: Homography | Tensor | np.ndarray, size: tuple[int, int]) -> float:
        """Mean distance in target pixels between the image's four corners under this and the true homography.

        The measure of HPatches: corners at the centres of the corner pixels, (0, 0) to (W - 1, H - 1).

        Args:
            truth: the true map from source to target.
            size: (H, W) of the source image.

        Returns:
            Pixels; infinite where no homography was found.
        """
        true = truth._known() if isinstance(truth, Homography) else _checked_matrix("truth", truth)
        if self.matrix is None:
            return math.inf
        right, bottom = size[1] - 1.0, size[0] - 1.0
        corners = torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=torch.float64)
        error = (apply_homography(self.matrix, corners) - apply_homography(true, corners)).norm(dim=1).mean()
        return float(error) if math.isfinite(error) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``found``, ``matrix`` (rows, or None), ``inliers`` (positions in the matches), ``reason``."""
        return {
            "found": self.found,
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "inliers": self.inliers.nonzero()[:, 0].tolist(),
            "reason": self.reason,
        }

    def _known(self) -> Tensor:
        if self.matrix is None:
            raise InputError(f"homography: none was found ({self.reason}); look at .found first")
        return self.matrix


def estimate_homography(
    matches: Matches | Points,
    target: Points | None = None,
    *,
    method: Method = "magsac",
    threshold: float = 3.0,
    confidence: float = 0.999,
    max_iterations: int = 10_000,
    seed: int = 0,
    cycle_tolerance: float | None = None,
) -> Homography:
    """The homography from source to target that most matches agree with.

    Of :class:`Matches`, only those with a target and a score take part and, where they know their ``cycle_error``, only
    those that lead back; ``inliers`` has a place for all of them, the others being False. Arrays are taken as they are.

    Args:
        matches: K matches, or source points (K, 2) in pixels.
        target: target points (K, 2), with source points.
        method: "magsac" (MAGSAC++), or OpenCV's "ransac" or "lmeds" as HPatches protocols have them.
        threshold: pixels in the target up to which a match is an inlier. Matches of coarse features are that coarse:
            about three quarters of a token is right where a token covers many pixels.
        confidence, max_iterations: when sampling stops.
        seed: of MAGSAC's samples; "ransac" and "lmeds" always draw the same.
        cycle_tolerance: largest cycle error of a match that leads back, in source pixels; default 5% of the longer
            side of the source; ``math.inf`` takes all.

    Returns:
        A homography; without a matrix, and with the reason, for fewer than 4 usable or distinct matches, for points on
        a line (all, or all but one), and where no four matches agree.

    Raises:
        InputError: shapes that do not fit, points that are not finite, an option outside its domain, OpenCV missing.
    """
    options = Options(method, threshold, confidence, max_iterations, seed)
    source, goal, used = correspondences(matches, target, cycle_tolerance)
    inliers = torch.zeros(len(used), dtype=torch.bool)
    reason = too_few(source, goal, 4, "a homography") or on_a_line(source, goal, threshold)
    if reason:
        return Homography(None, inliers, reason)
    matrix = fit_homography(source, goal, options)
    if matrix is None:
        return Homography(None, inliers, "no four matches agree on a homography")
    close = np.linalg.norm(projected(matrix, source) - goal, axis=1) <= threshold  # NaN compares False
    agreeing = source[close], goal[close]
    depth = np.c_[agreeing[0], np.ones(len(agreeing[0]))] @ matrix[2]
    reason = too_few(*agreeing, 4, "a homography") or on_a_line(*agreeing, threshold)
    if not reason and not ((depth > 0).all() or (depth < 0).all()):
        reason = "the matches that agree lie on both sides of the line that goes to infinity"
    if reason:
        return Homography(None, inliers, f"of the matches that agree: {reason}")
    inliers[used.nonzero()[:, 0][torch.from_numpy(close)]] = True
    scale = matrix[2, 2] if abs(matrix[2, 2]) > 1e-9 * np.abs(matrix).max() else np.linalg.norm(matrix)
    return Homography(torch.from_numpy(matrix / scale), inliers)


def _checked_matrix(name: str, matrix: Any) -> Tensor:
    matrix = torch.as_tensor(matrix).detach().cpu().double()
    if matrix.shape != (3, 3) or not bool(torch.isfinite(matrix).all()):
        raise InputError.of(name, tuple(matrix.shape), "a (3, 3) matrix of finite numbers")
    return matrix
