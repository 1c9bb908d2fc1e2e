"""What others report on these data sets, each number with the averaging it was made with, as far as that is known.

A number is worth comparing only with one of the same average, threshold and reference length: the row says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "ABLATION", "DAVIS", "HPATCHES", "NOT_KNOWN", "NOT_STATED", "OVER_OBJECTS", "PUBLISHED", "PlaneRow", "Row",
    "VideoRow", "fewer", "plane_rows_for", "rows_for", "video_rows_for",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published number.

    Attributes:
        average: of :data:`ditf.benchmarks.scores.AGGREGATES`, or None where no source says which.
        note: how the average is known, or what else differs.
    """

    method: str
    split: str
    alpha: float
    value: float
    average: str | None
    source: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method, "split": self.split, "alpha": self.alpha, "value": self.value,
            "average": self.average, "source": self.source, "note": self.note,
        }  # fmt: skip


def _spair(method: str, value: float, average: str | None, source: str, note: str = "", alpha: float = 0.1) -> Row:
    return Row(method, "test", alpha, value, average, source, note)


def _triple(method: str, values: tuple[float, float, float]) -> list[Row]:
    source = "arXiv 2605.30093, table 1"
    return [_spair(method, v, "image_micro", source, alpha=a) for a, v in zip((0.01, 0.05, 0.1), values, strict=True)]


_TABLES = "GeoAware-SC and DiTF, tables"
_CLEANDIFT = "CleanDIFT (arXiv 2412.03439), table 1"
_DTM = "arXiv 2609.15357, table 1"
_READ_OFF = "by the mean of its printed categories"

SPAIR = [
    _spair("DiTF FLUX.1-dev", 67.1, "point_macro", "DiTF (arXiv 2505.18584)", f"{_READ_OFF}, 67.04"),
    _spair("DiTF FLUX.1-dev, without channel discard", 65.3, "point_macro", "DiTF, README", "inferred"),
    _spair("FLUX.1-dev, raw features", 29.9, "point_macro", "DiTF, README", "inferred"),
    _spair("DiTF FLUX.1-dev, re-run by others", 67.56, "point_micro", "third-party run of the released code", "640 px"),
    _spair("DiTF SD3.5", 64.6, "point_macro", "third-party notes on DiTF", "inferred"),
    _spair("DiTF + DINOv2", 72.2, None, "DiTF, as quoted by a third-party audit"),
    _spair("DiTF FLUX.1-dev at 960", 61.1, "image_micro", _DTM),
    _spair("DIFT (SD2.1)", 59.5, "point_micro", "DIFT (arXiv 2306.03881)", "re-runs: 59.57, 59.41"),
    _spair("DIFT (SD2.1)", 57.7, "point_macro", _TABLES, f"{_READ_OFF}, 57.67"),
    *_triple("DIFT (SD2.1)", (7.2, 39.7, 52.9)),
    _spair("DINOv2-B, nearest neighbour", 55.6, "point_micro", _TABLES, "most likely; its categories' mean is 56.24"),
    *_triple("DINOv2-B, nearest neighbour", (6.3, 38.4, 53.9)),
    _spair("SD+DINO", 64.0, "point_micro", _TABLES, "most likely; a re-run gives 63.73"),
    *_triple("SD+DINO", (7.9, 44.7, 59.9)),
    _spair("GeoAware-SC, zero-shot", 68.64, "point_micro", _CLEANDIFT, "re-run; 69.6 reported"),
    _spair("GeoAware-SC, supervised", 85.6, "image_micro", "GeoAware-SC, README"),
    _spair("CleanDIFT (SD2.1)", 61.43, "point_micro", _CLEANDIFT),
    _spair("SD+DINO with CleanDIFT", 64.81, "point_micro", _CLEANDIFT),
    _spair("GeoAware-SC with CleanDIFT", 69.99, "point_micro", _CLEANDIFT),
    _spair("DHF (Hyperfeatures)", 64.5, "point_micro", _CLEANDIFT, "re-run"),
]

_SETTINGS = ("test", "test_cross_species", "test_cross_family")


def _ap10k(method: str, values: tuple[float, float, float], source: str) -> list[Row]:
    return [Row(method, s, 0.1, v, "image_micro", source) for s, v in zip(_SETTINGS, values, strict=True)]


AP10K = [
    Row("DiTF + DINOv2", "test_cross_species", 0.1, 69.4, None, "DiTF, as quoted by a third-party audit"),
    *_ap10k("FLUX.1-dev features of DiTF", (62.2, 61.7, 48.9), _DTM),
    *_ap10k("DINOv2-B", (60.9, 57.3, 47.4), "arXiv 2605.30093, table 1"),
    *_ap10k("DIFT (SD2.1)", (50.3, 46.0, 35.0), "arXiv 2605.30093, table 1"),
    *_ap10k("SD+DINO", (62.9, 59.3, 48.3), "arXiv 2605.30093, table 1"),
]

_DENSE = "DenseMatching, README"
PFPASCAL = [
    Row("WarpC-SemanticGLU-Net (trained)", "test", 0.05, 62.1, "image_micro", _DENSE, "length: image, into the source"),
    Row("WarpC-SemanticGLU-Net (trained)", "test", 0.1, 81.7, "image_micro", _DENSE, "length: image, into the source"),
]
PFWILLOW = [
    Row("WarpC-SemanticGLU-Net (trained)", "test", 0.05, 49.0, "image_micro", _DENSE, "extent of the source's points"),
    Row("WarpC-SemanticGLU-Net (trained)", "test", 0.1, 75.1, "image_micro", _DENSE, "extent of the source's points"),
]

PUBLISHED: dict[str, list[Row]] = {"spair": SPAIR, "ap10k": AP10K, "pfpascal": PFPASCAL, "pfwillow": PFWILLOW}

ABLATION = {"raw": 29.9, "AdaLN": 65.3, "AdaLN + discard": 67.1}
"""SPair-71k PCK@0.1 of FLUX.1-dev in DiTF's README, by inference the mean over categories."""


def rows_for(benchmark: str, split: str) -> list[Row]:
    """Published rows of a split, by threshold as they are listed."""
    return [row for row in PUBLISHED.get(benchmark, []) if row.split == split]


def fewer(found: int, published: int) -> str | None:
    """A sentence where a folder holds fewer sequences than were published, as a half-unpacked archive does."""
    if found >= published:
        return None
    return f"{found} of the {published} published sequences are here: no score of the whole data set."


NOT_STATED = "convention not stated"

NOT_KNOWN = {
    "hpatches": "DiTF (its table 8) and DIFT report HPatches too; their numbers could not be checked and are left out.",
    "davis": "DiTF and DIFT report DAVIS-2017 too; their numbers could not be checked and are left out.",
}
"""What others have published that is missing here, in a sentence."""


@dataclass(frozen=True)
class VideoRow:
    """J&F, J and F of DAVIS 2017 in percent; None where no source gives it.

    Attributes:
        average: over what, or None where no source says.
        note: whose propagation, where it is not the source's own.
    """

    method: str
    split: str
    j_and_f: float
    j: float | None
    f: float | None
    average: str | None
    source: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method, "split": self.split, "j_and_f": self.j_and_f, "j": self.j, "f": self.f,
            "average": self.average, "source": self.source, "note": self.note,
        }  # fmt: skip


OVER_OBJECTS = "objects"
"""As davis2017-evaluation has it, and as ours are."""


def _dino(backbone: str, j_and_f: float, j: float, f: float) -> VideoRow:
    source, note = "DINO (arXiv 2104.14294), table 5", "protocol dino; scored by davis2017-evaluation"
    return VideoRow(f"DINO {backbone}", "val", j_and_f, j, f, OVER_OBJECTS, source, note)


DAVIS = [
    _dino("ViT-S/16", 61.8, 60.2, 63.4),
    _dino("ViT-B/16", 62.3, 60.7, 63.9),
    _dino("ViT-S/8", 69.9, 66.6, 73.1),
    _dino("ViT-B/8", 71.4, 67.9, 74.9),
    VideoRow(
        "CRW", "val", 67.6, 64.6, 70.6, OVER_OBJECTS, "CRW, README",
        "20 last frames, all of the first frame seen; scored by davis2017-evaluation",
    ),
]  # fmt: skip


def video_rows_for(split: str) -> list[VideoRow]:
    """Published rows of a split of DAVIS 2017."""
    return [row for row in DAVIS if row.split == split]


@dataclass(frozen=True)
class PlaneRow:
    """Share of right homographies of HPatches in percent.

    Attributes:
        group: "all", "illumination" or "viewpoint".
        accuracy: pixels of mean corner error -> percent.
        average: over what, or None where no source says.
        note: what differs from every protocol here.
    """

    method: str
    group: str
    accuracy: tuple[tuple[int, float], ...]
    average: str | None
    source: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method, "group": self.group, "accuracy": {str(t): v for t, v in self.accuracy},
            "average": self.average, "source": self.source, "note": self.note,
        }  # fmt: skip


def _superpoint(method: str, every: tuple[float, float, float], light: float, view: float) -> list[PlaneRow]:
    """Of the evaluation that SuperPoint's line of work uses."""
    source = "rpautrat/SuperPoint, README"
    note = "another protocol: 480 x 640 px, the best 1000 points that both images see, RANSAC"
    return [
        PlaneRow(method, group, accuracy, None, source, note)
        for group, accuracy in (
            ("all", tuple(zip((1, 3, 5), every, strict=True))),
            ("illumination", ((3, light),)),
            ("viewpoint", ((3, view),)),
        )
    ]


HPATCHES = [
    *_superpoint("SuperPoint (MagicLeap's weights)", (43.8, 83.3, 91.4), 92.3, 74.2),
    *_superpoint("SuperPoint (retrained)", (48.3, 83.6, 91.0), 96.5, 71.2),
    *_superpoint("SIFT", (49.8, 78.6, 78.6), 80.7, 76.6),
    *_superpoint("ORB", (16.2, 46.7, 56.4), 52.3, 41.4),
]


def plane_rows_for(split: str) -> list[PlaneRow]:
    """Published rows of HPatches: of every group where the split is "all", else of that group."""
    return [row for row in HPATCHES if split in ("all", row.group)]
