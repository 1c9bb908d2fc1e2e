"""A source that matches better mirrored is matched mirrored, by the instance matching distance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ditf
from ditf import FeatureMap, InputError
from ditf.matching.mirror import instance_matching_distance
from ditf.matching.pairs import make_pairs

from .feature_maps import from_map, make, mirror_image

POINTS = [(x, y) for x in (4, 11, 30, 42) for y in (4, 22, 35)]  # inside 48 x 40 px on cells of 8 px


def scene(seed: int, left: int, right: int, mirrored: bool = False) -> FeatureMap:
    """Two ears on a ground that tells left from right: a left ear looks like a left ear wherever it is.

    Cells of 8 px on a grid of 3 x 8, the ears in the middle row at those columns.
    """
    generator = torch.Generator().manual_seed(seed)
    ground = torch.zeros(32, 3, 8)
    ground[torch.arange(24), torch.arange(24) // 8, torch.arange(24) % 8] = 1.0  # every cell is one of its own
    if mirrored:
        ground = ground.flip(2)
    ground[24, 1, left] = ground[25, 1, right] = 4.0
    return from_map(ground + 0.01 * torch.randn(32, 3, 8, generator=generator), (24, 64))


def at(column: int) -> tuple[float, float]:
    """The pixel left of the centre of a cell of the middle row."""
    return column * 8 + 3, 11


def test_a_mirrored_picture_is_matched_mirrored() -> None:
    src = make((5, 6), (40, 48), 1, 32)
    matches = ditf.match_points(
        src, lean(mirror_image(src)), POINTS, flipped_source=lean(mirror_image(src)), counterparts="self", cycle=True
    )
    assert matches.mirrored is True
    assert torch.equal(matches.source, torch.tensor(POINTS).float())
    assert torch.equal(matches.target[:, 0], 47 - matches.source[:, 0])
    assert torch.equal(matches.target[:, 1], matches.source[:, 1])
    assert not matches.cycle_error.any()
    assert matches.to_dict()["mirrored"] is True


def lean(features: FeatureMap) -> FeatureMap:
    """With a channel for the pose, so that an image and its mirror image are told apart."""
    tokens = torch.cat([features.tokens, torch.full((len(features.tokens), 1), 3.0)], 1)[:, 1:]
    return FeatureMap(tokens=tokens, grid=features.grid, image_size=features.image_size)


def test_a_picture_that_matches_as_it_is_stays_as_it_is() -> None:
    src = make((5, 6), (40, 48), 1, 32)
    matches = ditf.match_points(
        src, src, POINTS, flipped_source=lean(mirror_image(src)), counterparts="self", cycle=True
    )
    assert matches.mirrored is False
    assert torch.equal(matches.target, matches.source)
    plain = ditf.match_points(src, src, POINTS)
    assert plain.mirrored is None
    assert "mirrored" not in plain.to_dict()


def test_a_left_ear_stays_a_left_ear() -> None:
    src = scene(0, left=1, right=4)
    flipped = scene(1, left=7 - 4, right=7 - 1, mirrored=True)  # mirrored, the right ear looks like a left one
    tgt = scene(2, left=3, right=6, mirrored=True)
    points = [at(1), at(4)]
    matches = ditf.match_points(src, tgt, points, flipped_source=flipped, counterparts=[1, 0])
    assert matches.mirrored is True
    expected = torch.tensor([at(3), at(6)])
    assert float((matches.target - expected).abs().max()) <= 4  # within its cell
    swapped = ditf.match_points(src, tgt, points, flipped_source=flipped, counterparts="self")
    assert float((swapped.target - expected.flip(0)).abs().max()) <= 4  # the same places of the picture, mirrored


@pytest.mark.parametrize("masked", [(), ("source",), ("target",), ("source", "target")])
def test_the_distance_is_the_published_one(masked) -> None:
    src, tgt = make((4, 5), (32, 40), 1), make((3, 6), (24, 48), 2)
    boxes = {"source": (8, 0, 23, 31), "target": (0, 8, 47, 15)}
    regions = {f"{side}_box": [boxes[side]] if side in masked else None for side in boxes}
    (pair,) = make_pairs(
        [src], [tgt], [[(1, 1)]], names=False, backend=None, source_mask=None, target_mask=None, **regions
    )
    inside = torch.tensor([row * 5 + column for row in range(4) for column in (1, 2)])
    source_rows = inside if "source" in masked else torch.arange(20)
    target_rows = torch.arange(6, 12) if "target" in masked else torch.arange(18)
    a, b = (F.normalize(m.tokens.double(), dim=1) for m in (src, tgt))
    distance = torch.cdist(a[source_rows], b[target_rows])
    nearest, rows = distance.min(1)
    if "source" not in masked:
        nearest = nearest[distance.argmin(0)[rows] == torch.arange(20)]
        assert 0 < len(nearest) < 20
    assert instance_matching_distance(pair) == pytest.approx(float(nearest.mean()), abs=1e-6)


def test_equal_distances_leave_the_source_as_it_is() -> None:
    src = make((5, 6), (40, 48), 1)
    matches = ditf.match_points(src, make((5, 6), (40, 48), 2), POINTS, flipped_source=src, counterparts="self")
    assert matches.mirrored is False


def test_the_source_region_is_mirrored_with_the_source() -> None:
    src = make((5, 6), (40, 48), 1, 32)
    flipped = lean(mirror_image(src))
    box = (0, 0, 23, 39)  # the left half, which is the right half of the mirrored image
    matches = ditf.match_points(
        src, flipped, POINTS, flipped_source=flipped, counterparts="self", source_box=box, cycle=True
    )
    inside = matches.source[:, 0] <= 23
    assert matches.mirrored is True
    assert torch.equal(matches.target[inside, 0], 47 - matches.source[inside, 0])
    assert matches.target[~inside].eq(-1).all()
    assert not matches.cycle_error[inside].any()
    assert matches.cycle_error[~inside].isnan().all()


def test_each_pair_of_a_list_chooses_for_itself() -> None:
    src = make((5, 6), (40, 48), 1, 32)
    flipped = lean(mirror_image(src))
    many = ditf.match_points(
        [src] * 3,
        [flipped, src, src],
        [POINTS] * 3,
        flipped_source=[flipped, flipped, None],
        counterparts=["self", "self", None],
    )
    assert [m.mirrored for m in many] == [True, False, None]
    assert torch.equal(many[0].target[:, 0], 47 - many[0].source[:, 0])
    assert torch.equal(many[1].target, many[1].source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "counterparts: got None, expected for each of the 3 points the index"),
        ({"counterparts": [1, 0]}, r"counterparts: got \[1, 0\], expected for each of the 3"),
        ({"counterparts": [1.0, 0.0, 2.0]}, "counterparts: got"),
        ({"counterparts": [1, 0, 3]}, r"counterparts: got \[1, 0, 3\], expected indices in 0\.\.2"),
        ({"counterparts": [1, 2, 0]}, "expected mutual counterparts, but point 0 has 1, which has 2"),
        ({"counterparts": "self", "flipped_source": make((5, 6), (48, 40))}, r"flipped_source: got 'an image of \(48"),
        ({"counterparts": "self", "flipped_source": make((5, 6), (40, 48), channels=3)}, "got '3 channels on cpu'"),
        ({"counterparts": "self", "flipped_source": "mirror.png"}, "flipped_source: got 'str', expected a FeatureMap"),
        ({"counterparts": "self", "flipped_source": None}, "counterparts: got 'self', expected none without"),
    ],
)
def test_what_cannot_be_a_mirror_image_is_refused(options, message) -> None:
    src = make((5, 6), (40, 48))
    with pytest.raises(InputError, match=message):
        ditf.match_points(src, src, POINTS[:3], **{"flipped_source": mirror_image(src), **options})
