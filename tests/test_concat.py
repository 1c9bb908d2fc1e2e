"""Concatenated features mean what the sum of their cosines says, and their joint projection is an exact PCA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ditf
from ditf import FeatureMap, InputError

from .feature_maps import make


def cosines(features: FeatureMap) -> Tensor:
    """(N, N) float64."""
    unit = F.normalize(features.tokens.double(), dim=1)
    return unit @ unit.T


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [0.0, 3.0, 1.0]])
def test_the_cosine_is_the_mean_of_the_cosines_weighted_by_the_squares(weights) -> None:
    maps = [make((3, 4), (30, 40), seed, channels) for seed, channels in ((1, 5), (2, 16), (3, 7))]
    maps[1] = FeatureMap(tokens=maps[1].tokens * 100, grid=(3, 4), image_size=(30, 40))  # lengths do not count
    joined = FeatureMap.concat(maps, weights)
    assert joined.tokens.shape == (12, 28)
    squares = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64) ** 2
    expected = sum(w * cosines(m) for w, m in zip(squares, maps, strict=True)) / squares.sum()
    torch.testing.assert_close(cosines(joined), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(joined.tokens.norm(dim=1), torch.ones(12), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(6, 8), (2, 3), (5, 4), (1, 1)])
def test_every_map_is_resampled_to_the_grid_of_the_first(grid) -> None:
    first, other = make((3, 4), (30, 40), 1, 5), make(grid, (30, 40), 2, 7)
    resampled = F.interpolate(other.map[None].double(), (3, 4), mode="bilinear", align_corners=False)[0]
    expected = F.normalize(resampled.flatten(1).T, dim=1) / 2**0.5
    joined = FeatureMap.concat([first, other])
    assert (joined.grid, joined.image_size) == ((3, 4), (30, 40))
    torch.testing.assert_close(joined.tokens[:, 5:].double(), expected, rtol=0, atol=1e-6)


def test_padding_is_undone_between_maps() -> None:
    """The same linear ramp of the image, seen with and without padding, is the same part on every token."""
    size = (20, 40)

    def ramp_map(grid, extent, offset) -> FeatureMap:
        y = (torch.arange(grid[0]) + 0.5) * extent[0] / grid[0] - 0.5 - offset[1]
        x = (torch.arange(grid[1]) + 0.5) * extent[1] / grid[1] - 0.5 - offset[0]
        tokens = torch.stack([x.expand(grid), y[:, None].expand(grid), torch.full(grid, 10.0)], -1).reshape(-1, 3)
        canvas = None if extent == size else extent
        return FeatureMap(tokens=tokens, grid=grid, image_size=size, canvas=canvas, offset=offset)

    plain, padded = ramp_map((4, 8), size, (0, 0)), ramp_map((16, 16), (40, 40), (0, 10))
    joined = FeatureMap.concat([plain, padded])
    torch.testing.assert_close(joined.tokens[:, :3], joined.tokens[:, 3:], rtol=0, atol=1e-5)
    joined = FeatureMap.concat([padded, plain])
    assert (joined.canvas, joined.offset) == ((40, 40), (0, 10))
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[5:11, 1:15] = True  # beyond the plain map's outer centres there is nothing to interpolate
    own = joined.tokens[inside.flatten()]
    torch.testing.assert_close(own[:, :3], own[:, 3:], rtol=0, atol=1e-5)


def test_a_token_that_is_zero_in_one_part_has_nothing_of_it() -> None:
    a, b = make((2, 2), (8, 8), 1, 3), make((2, 2), (8, 8), 2, 4)
    tokens = b.tokens.clone()
    tokens[1] = 0
    joined = FeatureMap.concat([a, FeatureMap(tokens=tokens, grid=(2, 2), image_size=(8, 8))])
    assert joined.tokens[1, 3:].eq(0).all()
    assert float(joined.tokens[1].norm()) == pytest.approx(0.5**0.5, abs=1e-6)


def test_the_card_names_the_parts_and_common_facts_stay() -> None:
    parts = [
        make((2, 2), (8, 8), 1, block=28, timestep=260.0, card={"model": "a"}),
        make((2, 2), (8, 8), 2, block=11, card={"model": "b"}).to(torch.float16),
    ]
    joined = FeatureMap.concat(parts, [2.0, 1.0])
    assert joined.card["concat"] == [{"model": "a"}, {"model": "b"}]
    assert joined.card["weights"] == pytest.approx([0.8, 0.2])
    assert (joined.block, joined.timestep) == (None, None)
    assert joined.tokens.dtype == torch.float32
    assert FeatureMap.concat([parts[1], parts[1]]).tokens.dtype == torch.float16
    assert FeatureMap.concat([parts[0], parts[0]]).block == 28


def test_concatenated_maps_match() -> None:
    a, b = make((4, 5), (32, 40), 1, 8), make((7, 9), (32, 40), 2, 8)
    joined = FeatureMap.concat([a, b])
    matches = ditf.match_points(joined, joined, [(10, 12), (25, 19)])
    assert torch.equal(matches.target, matches.source)


# --- joint PCA -------------------------------------------------------------------------------------------------------


def centred(maps: list[FeatureMap]) -> Tensor:
    tokens = torch.cat([m.tokens for m in maps]).double()
    return tokens - tokens.mean(0)


def gram(rows: Tensor) -> Tensor:
    """Signs and the order of equal components do not show in it."""
    return rows.double() @ rows.double().T


@pytest.mark.parametrize("channels", [6, 60])  # fewer than the 32 tokens, and more
@pytest.mark.parametrize("components", [1, 3, 6])
def test_the_projection_is_that_of_the_singular_vectors(channels, components) -> None:
    maps = [make((3, 4), (30, 40), 1, channels), make((4, 5), (32, 40), 2, channels)]
    u, s, _ = torch.linalg.svd(centred(maps), full_matrices=False)
    projected = ditf.joint_pca(maps, components)
    assert [m.tokens.shape for m in projected] == [(12, components), (20, components)]
    assert [m.grid for m in projected] == [(3, 4), (4, 5)]
    found = torch.cat([m.tokens for m in projected])
    torch.testing.assert_close(gram(found), gram(u[:, :components] * s[:components]), rtol=0, atol=1e-4)
    variance = found.double().square().sum(0)
    torch.testing.assert_close(variance, s[:components].square(), rtol=1e-5, atol=1e-5)  # each in its place
    assert found.gather(0, found.abs().argmax(0, keepdim=True)).gt(0).all()


@pytest.mark.parametrize("channels", [6, 60])
def test_as_many_components_as_the_rank_keep_all_distances(channels) -> None:
    maps = [make((3, 4), (30, 40), 1, channels), make((4, 5), (32, 40), 2, channels)]
    projected = ditf.joint_pca(maps, min(channels, 31))
    tokens = [torch.cat([m.tokens for m in own]).double() for own in (maps, projected)]
    torch.testing.assert_close(torch.cdist(tokens[1], tokens[1]), torch.cdist(tokens[0], tokens[0]), rtol=0, atol=1e-5)


def test_components_beyond_the_rank_are_zero() -> None:
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)) @ few
    (projected,) = ditf.joint_pca([FeatureMap(tokens=tokens, grid=(4, 4), image_size=(8, 8))], 9)
    assert float(projected.tokens[:, 5:].abs().max()) < 1e-5
    assert float(projected.tokens[:, 4].abs().max()) > 0.1


def test_concat_of_several_images_projects_them_together() -> None:
    a, b = (
        [make((3, 4), size, seed, 6), make((5, 5), size, seed + 9, 9)] for seed, size in ((1, (30, 40)), (2, (9, 9)))
    )
    joined = FeatureMap.concat([a, b], [1.0, 0.5])
    apart = [FeatureMap.concat(own, [1.0, 0.5]) for own in (a, b)]
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(joined, apart, strict=True))
    projected = FeatureMap.concat([a, b], [1.0, 0.5], pca=4)
    expected = ditf.joint_pca(apart, 4)
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(projected, expected, strict=True))
    assert projected[0].card["pca"] == {"components": 4, "images": 2}
    assert projected[0].card["weights"] == pytest.approx([0.8, 0.2])


A, B = make((2, 2), (8, 8)), make((2, 2), (8, 9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMap.concat([A, B]), r"maps\[1\]: got 'an image of \(8, 9\)', expected .*as in maps\[0\]"),
        (lambda: FeatureMap.concat([]), "maps: got 'list', expected a list of at least one"),
        (lambda: FeatureMap.concat(A), "maps: got 'FeatureMap', expected a list"),
        (lambda: FeatureMap.concat([A, 3]), r"maps\[0\]: got 'FeatureMap', expected a list"),
        (lambda: FeatureMap.concat([A, A], [1.0]), r"weights: got \[1.0\], expected 2 numbers"),
        (lambda: FeatureMap.concat([A, A], [1.0, -1.0]), "weights: got .* at least 0, not all 0"),
        (lambda: FeatureMap.concat([A, A], [0, 0]), "weights: got"),
        (lambda: FeatureMap.concat([A, A], ["a", 1]), "weights: got .* expected numbers"),
        (lambda: FeatureMap.concat([A, A], pca=4), "pca: got 4, expected None for one image"),
        (lambda: FeatureMap.concat([[A, A], [A]], pca=4), r"maps: got \[2, 1\], expected as many maps of every image"),
        (lambda: ditf.joint_pca([A, A], 0), r"components: got 0, expected an integer in 1\.\.7"),
        (lambda: ditf.joint_pca([A, A], 8), "components: got 8"),
        (lambda: ditf.joint_pca([A, make((2, 2), (8, 8), channels=5)], 2), r"maps\[1\]: got '5 channels', expected"),
        (lambda: ditf.joint_pca([A, "b"], 2), r"maps\[1\]: got 'str', expected a FeatureMap"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_features_on_two_devices_or_not_finite_are_refused() -> None:
    elsewhere = FeatureMap(tokens=torch.empty(4, 16, device="meta"), grid=(2, 2), image_size=(8, 8))
    with pytest.raises(InputError, match=r"maps\[1\]: got 'features on meta', expected .*cpu as maps\[0\]; move them"):
        FeatureMap.concat([A, elsewhere])
    broken = FeatureMap(tokens=A.tokens.clone().fill_(torch.nan), grid=(2, 2), image_size=(8, 8))
    with pytest.raises(InputError, match="maps: got tokens that are not finite"):
        ditf.joint_pca([A, broken], 2)
