"""A model's features beside those of DINO (the rows marked with a dagger in DiTF's tables)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..store import weights_digest
from ..types import FeatureMap
from .methods import Method, ModelMethod, Picture
from .protocols import Protocol, model_input

if TYPE_CHECKING:
    from ..dino import DinoExtractor

__all__ = ["FusedMethod", "load_dino"]

SHORT = {"dinov2": "facebook/dinov2-base"}
SIDE_TOKENS = 60  # along the longer side, as GeoAware-SC and sd-dino take DINOv2 at 840 pixels


class FusedMethod:
    """Both features of a picture side by side, each of unit length, on the model's grid.

    DiTF projects the features of the two images of a pair to 1280 channels together (arXiv 2505.18584, appendix,
    Eq. 14). That is a decomposition for every pair, at FLUX's size half a minute and half a GB on one core of a CPU.

    Args:
        name: of its row.
        base: the model; its own row can be filled from the same forward.
        dino: the other backbone.
        protocol: how pictures are brought to both.
        channels: principal components that a pair's features are projected to when they are matched; None: as they
            are. The features in the store are the same.

    Raises:
        InputError: channels below 1.
    """

    def __init__(
        self, name: str, base: ModelMethod, dino: DinoExtractor, protocol: Protocol, channels: int | None = None
    ) -> None:
        if channels is not None and channels < 1:
            raise InputError.of("--fuse-channels", channels, "at least one channel")
        self.name, self.base, self.dino, self.protocol, self.channels = name, base, dino, protocol, channels
        self.device, self.backend = base.device, base.backend
        self._weights: str | None = None
        base.followers.append(self)

    def about(self) -> dict[str, Any]:
        if self._weights is None:
            self._weights = weights_digest(self.dino.model)
        dino = {"model": self.dino.name, "revision": self.dino.revision, "weights": self._weights}
        dino |= {"layer": self.dino.layer, "facet": self.dino.facet, "size": SIDE_TOKENS * self.dino.patch}
        return {"base": self.base.about(), "dino": dino}

    def card(self) -> dict[str, Any]:
        """For a result file."""
        projection = None if self.channels is None else {"channels": self.channels, "of": "both images of a pair"}
        return {**self.base.card(), "fused_with": self.about()["dino"], "projection": projection}

    def about_picture(self, picture: Picture) -> dict[str, Any]:
        return self.base.about_picture(picture)

    def prepare_texts(self, pictures: Sequence[Picture]) -> None:
        self.base.prepare_texts(pictures)

    def extract(self, picture: Picture) -> list[tuple[Method, FeatureMap]]:
        return self.base.extract(picture)  # which asks all that follow it

    def follow(self, picture: Picture, features: FeatureMap) -> FeatureMap:
        """The base's features with those of DINO."""
        seen = model_input(picture.pixels(), self.protocol, SIDE_TOKENS * self.dino.patch, self.dino.patch)
        sized = copy.copy(self.dino)
        sized.config = self.dino.config.replace(resize="stretch", size=(seen.height, seen.width))
        other = dataclasses.replace(sized(seen), image_size=features.image_size)
        return FeatureMap.concat([features, other.to(features.tokens.device)])


def load_dino(name: str, *, device: Any, local_files_only: bool) -> DinoExtractor:
    """A DINO by hub id, folder, or "dinov2".

    Raises:
        ModelError: as :meth:`ditf.dino.DinoExtractor.from_pretrained`.
    """
    from ..dino import DinoExtractor

    return DinoExtractor.from_pretrained(SHORT.get(name, name), device=device, local_files_only=local_files_only)
