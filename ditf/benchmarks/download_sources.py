"""Where the archives of the data sets lie: addresses, sizes and checksums, each with the one who gives it.

A checksum stands here only where somebody has published it. Where nobody has, the first download writes the one it
found beside the archive, and later downloads are held to that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import InputError
from .registry import find_benchmark

__all__ = ["SOURCES", "Source", "sources_of"]


@dataclass(frozen=True)
class Source:
    """One file to download.

    Attributes:
        file: its name.
        url: None where it has no address that answers with the file itself.
        given_by: who names the address.
        size: bytes, and None where nobody says.
        sha256, sha256_from: its checksum and who gives it, or None and "".
        into: for a file that is no archive: the folder of the data set it belongs to.
        page: where people can get it, if there is no ``url``.
    """

    file: str
    url: str | None
    given_by: str
    size: int | None = None
    sha256: str | None = None
    sha256_from: str = ""
    into: str | None = None
    page: str = ""


_PROPOSAL_FLOW = "https://www.di.ens.fr/willow/research/proposalflow/dataset"
_LISTS = "http://www.di.ens.fr/willow/research/cnngeometric/other_resources"
_WILLOW = "Proposal Flow's site"
_CNNGEOMETRIC = "CNNGeometric's site, from which NCNet and later work take the pairs"


def _list(file: str, into: str) -> Source:
    return Source(file, f"{_LISTS}/{file}", _CNNGEOMETRIC, into=into)


SOURCES: Mapping[str, tuple[Source, ...]] = MappingProxyType(
    {
        "spair": (
            Source(
                "SPair-71k.tar.gz",
                "https://cvlab.postech.ac.kr/research/SPair-71k/data/SPair-71k.tar.gz",
                "its authors' site",
            ),
        ),
        "ap10k": (
            Source(
                "ap-10k.zip",
                None,
                "its authors' repository",
                page="https://drive.google.com/file/d/1-FNNGcdtAQRehYYkGY1y4wzFNg4iWNad/view",
            ),
        ),
        "pfpascal": (
            Source("PF-dataset-PASCAL.zip", f"{_PROPOSAL_FLOW}/PF-dataset-PASCAL.zip", _WILLOW),
            _list("test_pairs_pf_pascal.csv", "PF-dataset-PASCAL"),
            _list("val_pairs_pf_pascal.csv", "PF-dataset-PASCAL"),
        ),
        "pfwillow": (
            Source("PF-dataset.zip", f"{_PROPOSAL_FLOW}/PF-dataset.zip", _WILLOW),
            _list("test_pairs_pf.csv", "PF-dataset"),
        ),
        "hpatches": (
            Source(
                "hpatches-sequences-release.zip",
                "https://huggingface.co/datasets/vbalnt/hpatches/resolve/main/hpatches-sequences-release.zip",
                "its authors' repository; their first host no longer answers",
                size=1_279_545_572,
                sha256="99cf7e1ca167896eb4ca2fe3d903beff6566243a3c0c8e07a13a2596648ad670",
                sha256_from="the host's own record of the file, as two public projects that use it state it",
            ),
        ),
        "davis": (
            Source(
                "DAVIS-2017-trainval-480p.zip",
                "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
                "davischallenge.org/davis2017/code.html",
            ),
        ),
    }
)


def sources_of(name: str, mirror: str | None = None) -> tuple[Source, ...]:
    """The files of a data set; with ``mirror``, an address under which files of these names lie, from there.

    Raises:
        InputError: unknown data set, or a mirror that is no address.
    """
    sources = SOURCES[find_benchmark(name).name]
    if mirror is None:
        return sources
    if not mirror.startswith(("http://", "https://")):
        raise InputError.of("--mirror", mirror, "an address that begins with http:// or https://")
    given_by = "--mirror"
    return tuple(dataclasses.replace(one, url=f"{mirror.rstrip('/')}/{one.file}", given_by=given_by) for one in sources)
