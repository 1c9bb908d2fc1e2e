"""Which of an object's two poses to match: as it is, or mirrored (GeoAware-SC's test-time adaptive pose alignment).

The source image is matched as it is and mirrored left to right; the pose whose features are nearer to the target's is
kept for all of the pair's points. Its authors take the mean distance to the nearest neighbours over the source's
instance mask, or over mutual nearest neighbours where no mask is at hand; here it is the latter, on the tokens that
show the image. In the mirrored image a point is looked up where its counterpart is. One whose counterpart the source
does not show is looked up in the image as it is: what the authors do there is not known to us.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ..matching.mirror import instance_matching_distance
from ..matching.pairs import Pair as MatchPair
from ..types import FeatureMap
from .protocols import Framed, Protocol
from .rules import MatchDtype, queries_at

__all__ = ["mirrored_is_nearer", "with_mirrored"]


def mirrored_is_nearer(
    source: FeatureMap, mirrored: FeatureMap, target: FeatureMap, protocol: Protocol, backend: str | None
) -> bool:
    """Whether the mirrored source's mean distance to its mutual nearest neighbours in the target is the smaller one."""
    nothing = torch.zeros(0, 2)
    plain, other = (
        instance_matching_distance(
            MatchPair(
                _without_border(one, protocol), _without_border(target, protocol), nothing, nothing, backend=backend
            )
        )
        for one in (source, mirrored)
    )
    return other < plain


def with_mirrored(plain: Tensor, mirrored: FeatureMap, one: Framed, protocol: Protocol, dtype: MatchDtype) -> Tensor:
    """(K, D) the mirrored source's features at the counterparts of a pair's points; ``plain`` where it shows none."""
    if one.mirrored is None:
        return plain
    known = np.asarray(np.isfinite(one.mirrored).all(1))
    places = np.where(known[:, None], one.mirrored, 0.0)
    found = queries_at(mirrored, places, one.source_size, protocol, dtype)
    return torch.where(torch.from_numpy(known).to(plain.device)[:, None], found, plain)


def _without_border(features: FeatureMap, protocol: Protocol) -> FeatureMap:
    """On a square canvas the features know where on it the image is, so that tokens of its border do not count."""
    if protocol.canvas is None:
        return features
    height, width = features.image_size
    side = max(height, width)
    return dataclasses.replace(
        features, canvas=(side, side), offset=((side - width) // 2, (side - height) // 2)
    )  # fmt: skip
