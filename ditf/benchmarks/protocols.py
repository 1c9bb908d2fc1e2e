"""Named evaluation protocols: everything that moves a score and is not the model.

Published numbers differ in resize, matching grid, argmax, comparison, reference length, prompt and averaging. A
protocol fixes all of them, and every result names the one it was made with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import InputError
from .pairs import Pair
from .scores import Arithmetic, Operator

__all__ = ["PROTOCOLS", "Framed", "Outside", "Protocol", "find_protocol", "frame_pair", "model_input"]

Outside = Literal["clip", "drop", "error"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Protocol:
    """One way of scoring correspondences.

    Attributes:
        name, about: what it is called, whose it is.
        resize: how an image becomes the model's input: "longest" side to ``size``, each side rounded half to even to
            the model's multiple; "stretch" to ``size`` x ``size``; "square": the longest side to ``size``, centred on
            a black square.
        size: pixels; a model that was measured at a size of its own (ditf-tiny) keeps that.
        resample: filter of that resize.
        match: "pixels": the first best pixel of the target in raster order, features upsampled bilinearly and then
            normalised (DIFT, DiTF). "patches": the first best token. "window": that, then the expectation under a
            softmax over all tokens of the similarity multiplied by a box mask (GeoAware-SC). "window-strict": the same
            with nothing outside the box. "softmax": the expectation under a softmax over all tokens, "kernel-softmax":
            the same of the similarity times a Gaussian around the best token; both stretch the image to ``compare``,
            whose corners are the centres of the corner tokens (SD4Match).
        canvas: side of the square on which points are compared, or None: the original image.
        hit: where in its cell, of 14 pixels on the published canvas, a patch says it found the point.
        window: cells on each side of the best one that the box mask keeps.
        lookup: whether the source's feature is taken at the point's integer part or at the point itself.
        compare: (width, height) to which errors are scaled per axis before they are measured, or None.
        operator, arithmetic: see :func:`ditf.benchmarks.scores.within`.
        alphas: thresholds, the one its authors quote first.
        length: which reference length: "image" (larger side of the target), "compare" (larger side of ``compare``),
            "compare box" (larger side of the target's box, of its points on PF-WILLOW, scaled like the errors), or one
            that the data set's annotations give.
        prompt: template given to the model, or None: the model's own.
        headline: the average its authors print, of :data:`ditf.benchmarks.scores.AGGREGATES`.
        annotations: "pairs": the pair files' points; "images": those that both image files have (GeoAware-SC).
        visible: least value of an AP-10K point's flag that counts; GeoAware-SC's own code takes 1 as well, and then
            halves that point's coordinates.
        align_pose: match the mirrored source instead wherever that is nearer to the target (GeoAware-SC's adaptive pose
            alignment), each point by its counterpart; see :mod:`ditf.benchmarks.poses`.
    """

    name: str
    about: str
    resize: Literal["longest", "stretch", "square"]
    size: int
    resample: Literal["bicubic", "lanczos"] = "bicubic"
    match: Literal["pixels", "patches", "window", "window-strict", "softmax", "kernel-softmax"] = "pixels"
    canvas: int | None = None
    hit: float = 7.0
    window: int = 5
    lookup: Literal["integer", "exact"] = "integer"
    compare: tuple[int, int] | None = None
    operator: Operator = "<="
    arithmetic: Arithmetic = "ratio"
    alphas: tuple[float, ...] = (0.1, 0.05, 0.01)
    length: str = "box"
    prompt: str | None = "a photo of a {category}"
    headline: str = "point_micro"
    annotations: Literal["pairs", "images"] = "pairs"
    visible: int = 2
    align_pose: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def with_pose(self) -> Protocol:
        """This protocol with pose alignment.

        Raises:
            InputError: it alters the coordinates of single points, of which a counterpart knows nothing.
        """
        if self.visible < 2:
            raise InputError(f"--align-pose: protocol {self.name} halves coordinates of some points; give geoaware")
        return dataclasses.replace(
            self, name=f"{self.name}+pose", about=f"{self.about}; the mirrored source where it matches better",
            align_pose=True,
        )  # fmt: skip


_GEOAWARE = Protocol(
    "geoaware",
    "GeoAware-SC: 840 canvas, best of 60 x 60 patches (its SOFT_EVAL switched off), scored per image",
    resize="square", size=960, resample="lanczos", match="patches", canvas=840, operator="<", arithmetic="alpha32",
    headline="image_micro", annotations="images",
)  # fmt: skip

_SD4MATCH = Protocol(
    "sd4match",
    "SD4Match: 768 x 768, soft-argmax over all tokens under a Gaussian around the best one, scored per image",
    resize="stretch", size=768, match="kernel-softmax", lookup="exact", arithmetic="float32", compare=(768, 768),
    alphas=(0.1, 0.05, 0.15), length="compare box", headline="image_micro",
)  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "ditf-code",
            "DiTF's released code: longest side 640, best pixel; its 67.1 is, by its row, the mean over categories",
            resize="longest", size=640, headline="point_macro",
        ),
        Protocol(
            "ditf-paper",
            "DiTF as the paper has it: longest side 960 (appendix, as quoted by a third-party audit), template prompt",
            resize="longest", size=960, headline="point_macro",
        ),
        Protocol(
            "dift",
            "DIFT: image stretched to 768 x 768, best pixel of the original image, pooled over points",
            resize="stretch", size=768,
        ),
        Protocol(
            "hpf",
            "hpf, CATs: errors and box stretched to a square, mean over pairs; the place is the best pixel of the "
            "image, not their own soft-argmax",
            resize="stretch", size=768, lookup="exact", arithmetic="float32", compare=(768, 768),
            length="compare box", headline="image_micro",
        ),
        _SD4MATCH,
        dataclasses.replace(
            _SD4MATCH, name="sd4match-softmax", match="softmax",
            about="SD4Match: 768 x 768, soft-argmax over all tokens, scored per image",
        ),
        _GEOAWARE,
        dataclasses.replace(
            _GEOAWARE, name="geoaware-window",
            about="GeoAware-SC with its window soft-argmax (5 cells, as its zero-shot runs)", match="window",
        ),
        dataclasses.replace(
            _GEOAWARE, name="geoaware-window-strict",
            about="GeoAware-SC's window soft-argmax with cells outside left out instead of set to similarity 0",
            match="window-strict",
        ),
        dataclasses.replace(
            _GEOAWARE, name="sd-dino",
            about="A Tale of Two Features: 840 canvas, best of 60 x 60 patches, categories weighted by their pairs",
            hit=6.5, headline="point_pairweighted", annotations="pairs", prompt="a photo of {category}",
        ),
    )
}  # fmt: skip
"""What the semantic benchmarks share; a data set may change the reference length and its arithmetic."""


def find_protocol(known: Mapping[str, Protocol], name: str, benchmark: str) -> Protocol:
    """Raises InputError for a protocol that the data set does not have."""
    if name not in known:
        raise InputError.of("--protocol", name, f"one of {', '.join(known)} for {benchmark}")
    return known[name]


# --- images ----------------------------------------------------------------------------------------------------------


def model_input(image: Image.Image, protocol: Protocol, size: int, multiple: int) -> Image.Image:
    """The pixels that a model sees.

    Args:
        image: RGB, as stored (annotations know nothing of EXIF).
        size: of the protocol, or of a model that has its own.
        multiple: pixels per token; on a square canvas ``size`` is rounded to it.
    """
    kind = _FILTERS[protocol.resample]
    if protocol.resize == "stretch":
        side = _rounded(size, multiple)
        return image.resize((side, side), kind)
    if protocol.resize == "square":
        return _on_square(image, _rounded(size, multiple), kind)
    scale = size / max(image.size)
    width, height = (_rounded(side * scale, multiple) for side in image.size)
    return image.resize((width, height), kind)


def _rounded(side: float, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple  # half to even, as Python and numpy round


def _on_square(image: Image.Image, side: int, kind: Image.Resampling) -> Image.Image:
    width, height, left, top = _content(image.size, side)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image.resize((width, height), kind), (left, top))
    return canvas


def _content(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """(width, height, left, top) of an image of (W, H) on a square canvas."""
    width, height = size
    if height < width:
        short = max(1, round(side * height / width))
        return side, short, 0, (side - short) // 2
    if width < height:
        short = max(1, round(side * width / height))
        return short, side, (side - short) // 2, 0
    return side, side, 0, 0


# --- points ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Framed:
    """A pair in the frame in which its protocol compares.

    Attributes:
        pair: as read.
        source_size, target_size: (H, W) of the images, or of the canvas.
        lookup: (K, 2) float64 where the source's features are taken, inside the frame.
        points, truth: (K, 2) float64 source points, and where they should be found.
        length: reference length in this frame.
        clipped: how many source points were moved to the border.
        geometry: (K,) bool, as :class:`ditf.benchmarks.pairs.Pair` has it.
        mirrored: (K, 2) float64 where the features of the mirrored source are taken, NaN where the source does not show
            a point's counterpart; None unless the protocol aligns poses.
    """

    pair: Pair
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    lookup: np.ndarray
    points: np.ndarray
    truth: np.ndarray
    length: float
    clipped: int
    geometry: np.ndarray | None = None
    mirrored: np.ndarray | None = None


def frame_pair(
    pair: Pair, protocol: Protocol, sizes: tuple[tuple[int, int], tuple[int, int]], outside: Outside = "clip"
) -> Framed:
    """The pair in its protocol's frame.

    Args:
        sizes: real (H, W) of source and target image.
        outside: what becomes of source points outside their image: moved to its border, left out, or an error.

    Raises:
        InputError: a point outside with ``outside="error"``, or a reference length that the data set does not have.
    """
    points, truth, length = pair.points, pair.truth, _length(pair, protocol, sizes[1])
    source_size, target_size = sizes
    if protocol.canvas is not None:
        points, truth = (_to_canvas(p, s, protocol.canvas) for p, s in ((points, source_size), (truth, target_size)))
        length = length * protocol.canvas / max(target_size)
        if pair.factors is not None:
            points, truth = points * pair.factors[0][:, None], truth * pair.factors[1][:, None]
        source_size = target_size = (protocol.canvas, protocol.canvas)
    clipped, bad = _inside(points, protocol, source_size)
    if outside == "error" and bad.any():
        where = pair.points[bad][0].tolist()
        raise InputError(f"{pair.name}: point {where} is outside its image; give --outside clip or drop")
    geometry, mirrored = pair.geometry, _mirrored(pair, protocol, sizes[0], source_size)
    if outside == "drop":
        keep = ~bad
        clipped, points, truth, bad = clipped[keep], points[keep], truth[keep], bad[keep]
        geometry, mirrored = (None if marks is None else marks[keep] for marks in (geometry, mirrored))
    return Framed(
        pair, source_size, target_size, clipped, points, truth, length, int(bad.sum()), geometry, mirrored
    )  # fmt: skip


def _inside(points: np.ndarray, protocol: Protocol, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) where features are taken, moved into the frame (H, W), and (K,) bool which ones were moved."""
    lookup = np.trunc(points) if protocol.lookup == "integer" and protocol.canvas is None else points
    clipped = np.clip(lookup, 0, np.array(size[::-1]) - 1)
    # On the canvas a point is looked up by the patch it is in, so all of [0, side) is inside.
    beyond = np.asarray((lookup < 0) | (lookup >= np.array(size[::-1])))
    if protocol.canvas is not None:
        clipped = np.where(beyond, clipped, lookup)
    return clipped, np.asarray(beyond.any(1))


def _mirrored(pair: Pair, protocol: Protocol, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    """(K, 2) the counterparts' places in the mirrored image, in its frame; x becomes W - 1 - x."""
    if not protocol.align_pose:
        return None
    if pair.counterparts is None:
        raise InputError(
            f"--align-pose: {pair.name} does not say which points change places in a mirror; give --symmetry FILE.json"
        )
    places = pair.counterparts
    if protocol.lookup == "integer" and protocol.canvas is None:
        places = np.trunc(places)
    places = np.stack([image_size[1] - 1 - places[:, 0], places[:, 1]], 1)
    if protocol.canvas is not None:
        places = _to_canvas(places, image_size, protocol.canvas)
    return _inside(places, protocol, size)[0]


def _length(pair: Pair, protocol: Protocol, target_size: tuple[int, int]) -> float:
    """Reference length in pixels of the target image, or of the size that errors are scaled to."""
    if protocol.length == "image":
        return float(max(target_size))
    if protocol.length == "compare" and protocol.compare is not None:
        return float(max(protocol.compare))
    if protocol.length == "compare box" and protocol.compare is not None and "box width" in pair.lengths:
        sides = zip(("box width", "box height"), protocol.compare, target_size[::-1], strict=True)
        return max(pair.lengths[side] * to / size for side, to, size in sides)
    if protocol.length not in pair.lengths:
        raise InputError.of("length", protocol.length, f"one of {', '.join(['image', *pair.lengths])}")
    return pair.lengths[protocol.length]


def _to_canvas(points: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    height, width = size
    _, _, left, top = _content((width, height), side)
    return points * (side / max(size)) + np.array([left, top], np.float64)


def errors_in_frame(predicted: np.ndarray, framed: Framed, protocol: Protocol) -> np.ndarray:
    """(K,) float64 distance between prediction and truth; infinite where nothing was predicted (NaN, (-1, -1))."""
    found = np.isfinite(predicted).all(1) & (predicted >= 0).all(1)
    apart = predicted - framed.truth
    if protocol.compare is not None:
        height, width = framed.target_size
        apart = apart * (np.array(protocol.compare, np.float64) / np.array([width, height], np.float64))
    return np.where(found, np.hypot(apart[:, 0], apart[:, 1]), np.inf)
