"""Pose alignment: the mirrored source where it is nearer, each point at its counterpart; answers in closed form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ditf import FeatureMap, InputError
from ditf.benchmarks import ap10k, spair
from ditf.benchmarks.methods import PatchMethod, Picture
from ditf.benchmarks.pairs import Pair, PairSet, Problems, index_images
from ditf.benchmarks.poses import mirrored_is_nearer
from ditf.benchmarks.protocols import PROTOCOLS, frame_pair
from ditf.benchmarks.results import result_document
from ditf.benchmarks.runner import evaluate

from .minis import STRIDE, Oracle, fourier, make_spair, texture, write_image

CODE = PROTOCOLS["ditf-code"]
POSED = CODE.with_pose()
SIZE = (120, 160)
LEFT_EAR, RIGHT_EAR, NOSE, PAW = (40, 40), (104, 40), (72, 64), (56, 80)
NOWHERE = (np.nan, np.nan)


class Facing(Oracle):
    """Features of an animal that faces left or right: where on it a cell is, and by which side it is seen.

    Args:
        left: stems of the images in which it faces left.
    """

    def __init__(self, left: set[str]) -> None:
        super().__init__({})
        self.left = left

    def extract(self, picture):
        self.seen.append(picture.path)
        flipped = (picture.path.stem in self.left) != picture.mirrored
        height, width = picture.info.size
        x, y = (torch.arange(n // STRIDE, dtype=torch.float64) * STRIDE + (STRIDE - 1) / 2 for n in (width, height))
        x = width - 1 - x if flipped else x
        grid = (len(y), len(x))
        places = torch.stack([x.expand(grid), y[:, None].expand(grid)], -1).flatten(0, 1)
        side = torch.full((len(places), 1), -0.3 if flipped else 0.3)
        tokens = torch.cat([fourier(places).float(), side], 1)
        return [(self, FeatureMap(tokens=tokens, grid=grid, image_size=picture.info.size))]


def animal(folder: Path, name: str, points, counterparts, truth) -> Pair:
    paths = [folder / f"{name}-{side}.png" for side in ("source", "target")]
    for i, path in enumerate(paths):
        write_image(path, texture(*SIZE, seed=len(name) + i))
    at, other, to = (np.array(values, float) for values in (points, counterparts, truth))
    return Pair(name, "cat", *paths, None, None, at, to, {"box": 100.0}, "cat", "cat", None, None, other)


@pytest.fixture
def pairs(tmp_path: Path) -> PairSet:
    """ "turned" faces left in the source and right in the target, "same" right in both. Where the target's left ear is,
    the mirrored source has its right one; of the paw's counterpart nothing is seen."""
    mirrored = [(SIZE[1] - 1 - x, y) for x, y in (RIGHT_EAR, LEFT_EAR, NOSE, PAW)]
    turned = animal(
        tmp_path, "turned", [LEFT_EAR, RIGHT_EAR, NOSE, PAW], [RIGHT_EAR, LEFT_EAR, NOSE, NOWHERE],
        [*mirrored[:3], (mirrored[3][0] + 3, mirrored[3][1] + 4)],
    )  # fmt: skip
    same = animal(tmp_path, "same", [LEFT_EAR, RIGHT_EAR], [RIGHT_EAR, LEFT_EAR], [LEFT_EAR, RIGHT_EAR])
    return PairSet("spair", "test", tmp_path, (turned, same), Problems())


def test_the_mirrored_source_is_matched_where_it_is_nearer_and_each_point_by_its_counterpart(pairs, tmp_path) -> None:
    oracle = Facing({"turned-source"})
    plain = evaluate([oracle], pairs, CODE, folder=tmp_path / "plain")
    # Features that tell sides only faintly find the other ear, 64 pixels away; the paw as its feature has it.
    assert [one.errors.tolist() for one in plain.found["oracle"]] == [[64, 64, 0, 5], [0, 0]]
    assert [one.mirrored for one in plain.found["oracle"]] == [None, None]
    aligned = evaluate([oracle], pairs, POSED, folder=tmp_path / "aligned")
    assert [one.mirrored for one in aligned.found["oracle"]] == [True, False]
    assert [one.errors.tolist() for one in aligned.found["oracle"]] == [[0, 0, 0, 5], [0, 0]]
    document = result_document(aligned, pairs, {}, card={})
    assert [row.get("mirrored_pairs") for row in document["methods"]] == [1, None]  # the identity has no choice
    assert [pair["mirrored"] for pair in document["pairs"]] == [{"oracle": True}, {"oracle": False}]
    assert document["protocol"]["name"] == "ditf-code+pose"


def test_a_run_that_goes_on_knows_the_poses_and_extracts_each_picture_and_its_mirror_image_once(
    pairs, tmp_path
) -> None:
    oracle = Facing({"turned-source"})
    told: list[tuple[str, int, int]] = []
    first = evaluate([oracle], pairs, POSED, folder=tmp_path / "work", progress=lambda *one: told.append(one))
    assert [(done, of) for stage, done, of in told if stage == "poses"] == [(1, 2), (2, 2)]
    assert sorted(path.stem for path in oracle.seen) == [
        "same-source", "same-source", "same-target", "turned-source", "turned-source", "turned-target",
    ]  # fmt: skip
    again = evaluate([oracle], pairs, POSED, folder=tmp_path / "work")
    assert len(oracle.seen) == 6
    for a, b in zip(first.found["oracle"], again.found["oracle"], strict=True):
        assert (a.predicted.tolist(), a.mirrored) == (b.predicted.tolist(), b.mirrored)
    evaluate([oracle], pairs, CODE, folder=tmp_path / "work")
    assert len(oracle.seen) == 6  # without alignment: the same features


def test_a_mirrored_picture_is_the_picture_with_left_and_right_exchanged(pairs) -> None:
    path = pairs.pairs[0].source
    plain = Picture(path, index_images([path], Problems())[path], "cat")
    mirrored = dataclasses.replace(plain, mirrored=True)
    assert (np.asarray(mirrored.pixels()) == np.asarray(plain.pixels())[:, ::-1]).all()
    method = PatchMethod(CODE)
    [(_, a)], [(_, b)] = method.extract(plain), method.extract(mirrored)
    assert not torch.allclose(a.tokens, b.tokens, atol=0.1)


def test_the_border_of_a_square_canvas_has_no_say_in_the_pose() -> None:
    """A 40 x 20 image on 4 x 4 tokens: rows 1 and 2 are the image. There the mirrored source is nearer; its border, of
    which a model may make anything, is not."""
    unit = torch.eye(32)
    target = unit[:16]

    def leaning(rows: list[int], by: float) -> FeatureMap:
        tokens = target.clone()
        tokens[rows] += by * unit[16:][rows]
        return FeatureMap(tokens=tokens, grid=(4, 4), image_size=(20, 40))

    border, image = [*range(4), *range(12, 16)], list(range(4, 12))
    plain, mirrored, whole = leaning(image, 0.2), leaning(border, 2.0), leaning([], 0.0)
    assert mirrored_is_nearer(plain, mirrored, whole, PROTOCOLS["geoaware"], None)
    assert not mirrored_is_nearer(plain, mirrored, whole, CODE, None)


def test_counterparts_go_to_the_canvas_with_their_mirrored_image(tmp_path) -> None:
    """840 / 160 is 5.25, and 105 rows are left above; the outermost pixel of one side is that of the other."""
    pair = animal(tmp_path, "one", [(0, 0), (10, 20)], [(0, 0), NOWHERE], [(0, 0), (10, 20)])
    framed = frame_pair(pair, PROTOCOLS["geoaware"].with_pose(), (SIZE, SIZE))
    assert framed.mirrored is not None
    assert framed.mirrored[0].tolist() == [159 * 5.25, 105]
    assert np.isnan(framed.mirrored[1]).all()
    dropped = frame_pair(
        dataclasses.replace(pair, points=np.array([(-5.0, 0.0), (10.0, 20.0)])), POSED, (SIZE, SIZE), "drop"
    )
    assert dropped.mirrored is not None
    assert np.isnan(dropped.mirrored).all(1).tolist() == [True]


def test_poses_cannot_be_aligned_without_counterparts_or_where_coordinates_are_altered(tmp_path) -> None:
    pairs = spair.read(make_spair(tmp_path), "test", POSED)
    with pytest.raises(InputError, match="give --symmetry FILE.json"):
        evaluate([Facing(set())], pairs, POSED, folder=tmp_path / "work")
    with pytest.raises(InputError, match="geoaware-released halves coordinates"):
        ap10k.protocols["geoaware-released"].with_pose()
