"""Dense matches equal brute force on upsampled features; identity, shift and flip have closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ditf
from ditf import FeatureMap, InputError
from ditf_kernels.backend import verification_counts


def make(grid, size, seed=0, channels=24, **values) -> FeatureMap:
    tokens = torch.randn(grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(seed))
    return FeatureMap(tokens=tokens, grid=grid, image_size=size, **values)


def changed(features: FeatureMap, change, **values) -> FeatureMap:
    """The same map (h, w, D) after a change."""
    tokens = change(features.tokens.unflatten(0, features.grid))
    return FeatureMap(tokens=tokens.flatten(0, 1), grid=tokens.shape[:2], image_size=features.image_size, **values)


def upsampled(features: FeatureMap) -> Tensor:
    """(H, W, D) float64 over the image alone, each pixel normalised."""
    whole = F.normalize(F.interpolate(features.map[None].double(), features.extent, mode="bilinear")[0], dim=0)
    (x, y), (height, width) = features.offset, features.image_size
    return whole[:, y : y + height, x : x + width].permute(1, 2, 0)


def pixel_grid(height: int, width: int) -> Tensor:
    """(H, W, 2): the position of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).float()


def best_score(src: FeatureMap, tgt: FeatureMap) -> Tensor:
    """(Hq*Wq, Hk*Wk) float64."""
    return upsampled(src).flatten(0, 1) @ upsampled(tgt).flatten(0, 1).T


def assert_best(dense, src, tgt) -> None:
    scores = best_score(src, tgt)
    x, y = dense.target.long().flatten(0, 1).unbind(1)
    chosen = scores.gather(1, (y * tgt.image_size[1] + x)[:, None])[:, 0]
    assert (scores.max(1).values - chosen).max() < 1e-6
    torch.testing.assert_close(dense.score.flatten().double(), scores.max(1).values, atol=2e-6, rtol=0)


# --- every pixel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((3, 5), (31, 47)), ((4, 3), (20, 18))),
        (((7, 2), (5, 40)), ((4, 4), (4, 4))),
        (((1, 1), (6, 7)), ((2, 3), (9, 8))),
    ],
)
def test_every_pixel_finds_the_best_pixel(first, second) -> None:
    src, tgt = make(*first, seed=1), make(*second, seed=2)
    dense = ditf.match_dense(src, tgt, resolution="image")
    assert dense.target.shape == (*first[1], 2)
    assert dense.target.dtype == dense.score.dtype == torch.float32
    assert dense.mutual is None
    assert dense.cycle_error is None
    assert torch.equal(dense.source, pixel_grid(*first[1]))
    assert_best(dense, src, tgt)


def test_it_agrees_with_match_points() -> None:
    src, tgt = make((4, 5), (21, 26), 1), make((5, 4), (30, 22), 2)
    dense = ditf.match_dense(src, tgt, resolution="image")
    points = [(0, 0), (7, 3), (25, 20), (12, 11)]
    matches = ditf.match_points(src, tgt, points)
    for (x, y), target, score in zip(points, matches.target, matches.score, strict=True):
        assert torch.equal(dense.target[y, x], target)
        assert float((dense.score[y, x] - score).abs()) < 1e-6


def test_an_image_matches_itself_pixel_by_pixel() -> None:
    features = make((5, 6), (40, 48))  # 8 pixels a token: 4 pixels of border share its feature
    dense = ditf.match_dense(features, features, resolution="image", mutual=True)
    inner = slice(4, -4), slice(4, -4)
    assert (dense.flow[inner] == 0).all()
    assert dense.mutual[inner].all()
    assert (dense.cycle_error[inner] == 0).all()
    assert (dense.score > 0.9999).all()
    assert dense.target[0, 0].tolist() == dense.target[3, 3].tolist() == [0, 0]  # the first of the border
    assert dense.mutual[0, 0]
    assert not dense.mutual[3, 3]
    assert dense.cycle_error[3, 3] == pytest.approx(18**0.5)


def test_a_flipped_image_matches_flipped() -> None:
    src = make((4, 5), (32, 40))
    dense = ditf.match_dense(src, changed(src, lambda t: t.flip(1)), resolution="image")
    expected = pixel_grid(32, 40)
    expected[..., 0] = 39 - expected[..., 0]
    assert torch.equal(dense.target[4:-4, 4:-4], expected[4:-4, 4:-4])


def test_a_shifted_image_has_constant_flow() -> None:
    src = make((5, 6), (40, 48))
    dense = ditf.match_dense(src, changed(src, lambda t: t.roll(1, 1)), resolution="image")
    assert (dense.flow[4:-4, 4:-12] == torch.tensor([8.0, 0.0])).all()


def test_mutual_means_that_the_match_of_the_match_is_the_pixel() -> None:
    src, tgt = make((3, 4), (13, 17), 1), make((4, 3), (16, 12), 2)
    dense = ditf.match_dense(src, tgt, resolution="image", mutual=True)
    back = ditf.match_dense(tgt, src, resolution="image").target
    x, y = dense.target.long().unbind(-1)
    error = (back[y, x] - pixel_grid(13, 17)).norm(dim=-1)
    torch.testing.assert_close(dense.cycle_error, error)
    assert torch.equal(dense.mutual, error == 0)
    assert dense.mutual.any()
    assert not dense.mutual.all()


def test_padding_of_either_side_is_never_matched() -> None:
    src = make((4, 4), (12, 20), 1, canvas=(20, 20), offset=(0, 4))
    tgt = make((3, 3), (15, 9), 2, canvas=(15, 15), offset=(3, 0))
    dense = ditf.match_dense(src, tgt, resolution="image")
    assert dense.target.shape == (12, 20, 2)
    assert (dense.target >= 0).all()
    assert (dense.target <= torch.tensor([8.0, 14.0])).all()
    assert_best(dense, src, tgt)


def test_a_mask_restricts_the_choice_and_an_empty_one_gives_nothing() -> None:
    src, tgt = make((3, 3), (9, 9), 1), make((3, 4), (12, 16), 2)
    mask = np.zeros((12, 16), bool)
    mask[4:9, 3:7] = True
    dense = ditf.match_dense(src, tgt, resolution="image", target_mask=mask)
    expected = best_score(src, tgt)[:, torch.from_numpy(mask).flatten()].max(1).values
    torch.testing.assert_close(dense.score.flatten().double(), expected, atol=2e-6, rtol=0)
    x, y = dense.target.long().unbind(-1)
    assert mask[y, x].all()
    for resolution in ("tokens", "image"):
        nothing = ditf.match_dense(src, tgt, resolution=resolution, mutual=True, target_mask=mask & False)
        assert (nothing.target == -1).all()
        assert nothing.score.isnan().all()
        assert nothing.flow.isnan().all()
        assert nothing.cycle_error.isnan().all()
        assert not nothing.mutual.any()
        assert len(nothing.matches()) == 0


# --- every token -----------------------------------------------------------------------------------------------------


def test_tokens_find_the_best_token_and_point_to_its_centre() -> None:
    src, tgt = make((4, 3), (20, 18), 1), make((3, 5), (30, 50), 2)
    dense = ditf.match_dense(src, tgt)
    scores = F.normalize(src.tokens.double(), dim=1) @ F.normalize(tgt.tokens.double(), dim=1).T
    best, index = scores.max(1)
    expected = torch.stack([index % 5, index // 5], 1) * 10 + 4.5
    assert torch.equal(dense.target.flatten(0, 1).double(), expected.double())
    torch.testing.assert_close(dense.score.flatten().double(), best, atol=1e-6, rtol=0)
    assert torch.equal(dense.mutual.flatten(), scores.max(0).indices[index] == torch.arange(12))
    assert dense.source[1, 2].tolist() == [14.5, 7.0]
    errors = dense.cycle_error[dense.mutual]
    assert (errors == 0).all()
    assert (dense.cycle_error[~dense.mutual] > 0).all()


def test_tokens_of_a_shifted_image_have_constant_flow() -> None:
    src = make((5, 6), (40, 48))
    dense = ditf.match_dense(src, changed(src, lambda t: t.roll((1, 2), (0, 1))))
    assert (dense.flow[:-1, :-2] == torch.tensor([16.0, 8.0])).all()
    assert dense.mutual.all()


def test_tokens_of_padding_have_no_match() -> None:
    src = make((4, 4), (8, 16), 1, canvas=(16, 16), offset=(0, 4))  # rows 0 and 3 are padding
    dense = ditf.match_dense(src, changed(src, lambda t: t, canvas=(16, 16), offset=(0, 4)))
    assert (dense.target[[0, 3]] == -1).all()
    assert dense.score[[0, 3]].isnan().all()
    assert not dense.mutual[[0, 3]].any()
    assert (dense.flow[1:3] == 0).all()
    assert len(dense.matches()) == 8


# --- what comes of them ----------------------------------------------------------------------------------------------


def test_matches_are_the_mutual_ones_or_those_close_enough() -> None:
    src, tgt = make((3, 4), (13, 17), 1), make((4, 3), (16, 12), 2)
    dense = ditf.match_dense(src, tgt, resolution="image", mutual=True)
    matches = dense.matches()
    assert len(matches) == int(dense.mutual.sum())
    assert (matches.cycle_error == 0).all()
    assert (matches.source_size, matches.target_size) == ((13, 17), (16, 12))
    loose = dense.matches(max_cycle_error=3.0)
    assert len(loose) == int((dense.cycle_error <= 3).sum()) > len(matches)
    plain = ditf.match_dense(src, tgt, resolution="image")
    assert len(plain.matches()) == 13 * 17
    with pytest.raises(InputError, match=r"max_cycle_error: got 1.0, expected None, or match_dense\(.*mutual=True"):
        plain.matches(max_cycle_error=1.0)
    assert repr(dense).startswith("DenseMatches(13 x 17 image, (13, 17) -> (16, 12), ")


@pytest.mark.parametrize("resolution", ["tokens", "image"])
def test_dense_matches_give_a_homography(resolution) -> None:
    src = make((6, 7), (48, 56))
    dense = ditf.match_dense(src, changed(src, lambda t: t.flip((0, 1))), resolution=resolution, mutual=True)
    found = ditf.estimate_homography(dense.matches()).matrix
    expected = torch.tensor([[-1.0, 0, 55], [0, -1, 47], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, atol=0.05, rtol=1e-3)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resolution", ["tokens", "image"])
def test_the_target_is_warped_into_the_pose_of_the_source(resolution) -> None:
    src, image = make((5, 6), (40, 48)), picture(40, 48)
    dense = ditf.match_dense(src, changed(src, lambda t: t.roll(1, 1)), resolution=resolution)
    warped = dense.warp(image)
    assert warped.shape == (40, 48, 3)
    assert warped.dtype == np.uint8
    assert np.array_equal(warped[4:-4, 4:-12], image[4:-4, 12:-4])


def test_where_there_is_no_match_the_warp_is_black() -> None:
    src = make((4, 4), (8, 16), 1, canvas=(16, 16), offset=(0, 4))
    src = FeatureMap(
        tokens=src.tokens.index_fill(0, torch.tensor([4]), torch.nan), grid=src.grid, image_size=(8, 16),
        canvas=(16, 16), offset=(0, 4),
    )  # fmt: skip
    white = np.full((8, 16, 3), 255, np.uint8)
    for resolution in ("tokens", "image"):
        warped = ditf.match_dense(src, src, resolution=resolution).warp(white)
        assert (warped[:4, :4] == 0).all()
        assert (warped[4:, 8:] == 255).all()


@pytest.mark.verify
def test_both_resolutions_verify() -> None:
    src, tgt = make((2, 2), (3, 4), 1, 8), make((2, 3), (4, 5), 2, 8)
    before = verification_counts()
    ditf.match_dense(src, tgt, backend="verify")
    ditf.match_dense(src, tgt, resolution="image", mutual=True, backend="verify")
    after = verification_counts()
    assert after["mutual_nearest"] == before.get("mutual_nearest", 0) + 1
    assert after["upsampled_nearest"] == before.get("upsampled_nearest", 0) + 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution": "pixels"}, 'resolution: got .pixels., expected "tokens" or "image"'),
        ({"mutual": 1}, "mutual: got 1, expected True or False"),
        ({"target_mask": np.ones((9, 9), bool)}, r"target_mask: got \(9, 9\), expected \(20, 18\)"),
        ({"backend": "cuda"}, "cuda"),
        ({"tgt": make((2, 2), (4, 4), channels=5)}, "5 channels"),
        ({"src": "a.jpg"}, "src: got .str., expected a FeatureMap"),
    ],
)
def test_bad_arguments_are_named(values, message) -> None:
    features = make((4, 3), (20, 18))
    with pytest.raises(InputError, match=message):
        ditf.match_dense(**{"src": features, "tgt": features, **values})


def test_a_picture_of_another_size_cannot_be_warped() -> None:
    features = make((4, 3), (20, 18))
    with pytest.raises(InputError, match=r"image: got \(18, 20\), expected \(20, 18\), the size of the target image"):
        ditf.match_dense(features, features).warp(picture(18, 20))
