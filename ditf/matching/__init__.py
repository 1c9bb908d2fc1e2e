"""Points of one image found in another, at the resolution of the pixels and without upsampled features.

The similarity of a query with every pixel of the target image is the interpolation of its similarities with the four
tokens around the pixel, divided by the norm of the interpolated token: both come from the (h, w) grid alone, exactly.
"""

from .maps import distinctive_points, mutual_matches, similarity_map, token_centres
from .points import match_points

__all__ = ["distinctive_points", "match_points", "mutual_matches", "similarity_map", "token_centres"]
