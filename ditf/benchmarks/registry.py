"""The data sets by name: where they come from, how they are read, which protocols they have.

One module per data set, named as on the command line. Those of labelled pairs share the runner and the results; a data
set of another kind has ``check`` and ``root_of`` all the same, its own runner on the same store and problems, and a
command of its own in ``ditf/cli/eval.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError

__all__ = ["BENCHMARKS", "Benchmark", "benchmark_of_folder", "find_benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """A data set. Its module has ``SPLITS``, ``protocols``, ``read``, ``check`` and ``root_of``.

    Attributes:
        name: on the command line, and of its module.
        title, source, licence: as a result names them.
        folder: what its archive unpacks to.
        protocol: by default.
        kind: "pairs" of points; "planes" and "video" are read into what their modules say, by protocols of theirs.
        named_points: whether its points have ids, so that ``read`` takes a :class:`ditf.benchmarks.symmetry.Symmetry`.
    """

    name: str
    title: str
    source: str
    licence: str
    folder: str
    protocol: str
    kind: Literal["pairs", "planes", "video"] = "pairs"
    named_points: bool = False

    @property
    def about(self) -> dict[str, str]:
        return {"title": self.title, "source": self.source, "licence": self.licence}

    @property
    def splits(self) -> tuple[str, ...]:
        return self._module.SPLITS

    @property
    def protocols(self) -> Mapping[str, Any]:
        return self._module.protocols

    def read(self, folder: Path, split: str, protocol: Any, **options: Any) -> Any:
        """A split: a :class:`ditf.benchmarks.pairs.PairSet` where ``kind`` is "pairs"; see the module."""
        return self._module.read(_folder(folder), split, protocol, **options)

    def check(self, folder: Path) -> list[str]:
        """What the folder lacks, one sentence each."""
        try:
            self.root_of(_folder(folder))
        except InputError as error:  # not even its first folders
            return [str(error).removeprefix("--data: ")]
        return self._module.check(folder)

    @property
    def root_of(self) -> Callable[[Path], Path]:
        return self._module.root_of

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"{__package__}.{self.name}")


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark(
            "spair",
            "SPair-71k",
            "https://cvlab.postech.ac.kr/research/SPair-71k (Min et al., arXiv 1908.10543)",
            "images from PASCAL VOC 2012 and PASCAL 3D+ (Flickr's terms of use); for research",
            "SPair-71k",
            "ditf-code",
            named_points=True,
        ),
        Benchmark(
            "ap10k",
            "AP-10K",
            "https://github.com/AlexTheBad/AP-10K (Yu et al., arXiv 2108.12617); pairs as GeoAware-SC makes them "
            "(arXiv 2311.17034)",
            "CC BY 4.0, as its repository says; the images belong to their owners",
            "ap-10k",
            "geoaware",
            named_points=True,
        ),
        Benchmark(
            "pfpascal",
            "PF-PASCAL",
            "https://www.di.ens.fr/willow/research/proposalflow (Ham et al., arXiv 1703.07144)",
            "images from PASCAL VOC 2012 (Flickr's terms of use); for research",
            "PF-dataset-PASCAL",
            "ditf-code",
        ),
        Benchmark(
            "pfwillow",
            "PF-WILLOW",
            "https://www.di.ens.fr/willow/research/proposalflow (Ham et al., arXiv 1511.05065)",
            "no licence is stated; for research",
            "PF-dataset",
            "hpf",
        ),
        Benchmark(
            "hpatches",
            "HPatches",
            "https://github.com/hpatches/hpatches-dataset (Balntas et al., arXiv 1704.05939)",
            "as its repository says; the images belong to their owners",
            "hpatches-sequences-release",
            "ditf",
            "planes",
        ),
        Benchmark(
            "davis",
            "DAVIS-2017",
            "https://davischallenge.org (Pont-Tuset et al., arXiv 1704.00675)",
            "as its site says; for research",
            "DAVIS",
            "ditf",
            "video",
        ),
    )
}


def find_benchmark(name: str) -> Benchmark:
    """Raises InputError for an unknown name."""
    if name not in BENCHMARKS:
        raise InputError.of("BENCHMARK", name, f"one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_of_folder(folder: Path) -> Benchmark:
    """Which data set a folder holds, by its layout; by its name where that is not there yet.

    Raises:
        InputError: none of them.
    """
    folder = _folder(folder)
    for benchmark in BENCHMARKS.values():
        try:
            benchmark.root_of(folder)
        except InputError:
            continue
        return benchmark
    for benchmark in BENCHMARKS.values():
        if folder.resolve().name == benchmark.folder or (folder / benchmark.folder).is_dir():
            return benchmark
    titles = ", ".join(b.title for b in BENCHMARKS.values())
    raise InputError(f"FOLDER: {folder} looks like none of {titles}; give the folder that its archive unpacks to")


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"--data: no such folder: {folder} (now in {Path.cwd()}); give the unpacked data set")
    return folder
