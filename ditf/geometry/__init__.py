"""Geometry from matches: the homography or the fundamental matrix that most of them agree with, and keypoints.

Estimation is OpenCV's: MAGSAC++ (Barath et al., CVPR 2020) by default. What cannot be determined is never made up: too
few or degenerate points give a result without a matrix that says why.
"""

from .fundamental import FundamentalMatrix, estimate_fundamental
from .homography import Homography, estimate_homography
from .keypoints import grid_points, sift_points

__all__ = [
    "FundamentalMatrix",
    "Homography",
    "estimate_fundamental",
    "estimate_homography",
    "grid_points",
    "sift_points",
]
