"""Pictures of features: joint components and joint parts, against NumPy and planted clusters."""

import numpy as np
import pytest
import torch
from PIL import Image

from ditf import FeatureMap
from ditf.draw import draw_parts, draw_pca
from ditf.draw.components import pca_colors
from ditf.draw.parts import part_labels
from ditf.errors import InputError


def random_maps(channels=24, seed=0):
    random = np.random.default_rng(seed)
    mix = random.normal(size=(channels, channels))
    return [
        FeatureMap(torch.from_numpy(random.normal(size=(h * w, channels)) @ mix + 3.0).float(), (h, w), (h * 8, w * 8))
        for h, w in ((6, 9), (5, 7))
    ]


@pytest.mark.parametrize("channels", [24, 200])  # fewer and more channels than tokens
def test_colours_are_the_joint_principal_components_by_the_definition(channels):
    maps = random_maps(channels)
    tokens = np.concatenate([one.tokens.double().numpy() for one in maps])
    centred = tokens - tokens.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    projected = centred @ axes.T
    low, high = np.percentile(projected, (1, 99), axis=0)
    expected = np.clip((projected - low) / (high - low), 0, 1)
    found = pca_colors(maps)
    assert [one.shape for one in found] == [(6, 9, 3), (5, 7, 3)]
    np.testing.assert_allclose(np.concatenate([one.reshape(-1, 3) for one in found]), expected, atol=1e-6)


@pytest.mark.parametrize("decay", [0.8, 1.0])  # 1: eigenvalues all alike, where iterating does not converge
def test_many_channels_give_the_same_components_as_the_full_decomposition(decay):
    random = np.random.default_rng(0)
    scales = np.maximum(decay ** np.arange(520), 1e-3)
    tokens = random.normal(size=(560, 520)) * scales @ np.linalg.qr(random.normal(size=(520, 520)))[0]
    centred = tokens - tokens.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    projected = centred @ axes.T
    low, high = np.percentile(projected, (1, 99), axis=0)
    found = pca_colors([torch.from_numpy(tokens).T.reshape(520, 20, 28)])[0].reshape(-1, 3)
    np.testing.assert_allclose(found, np.clip((projected - low) / (high - low), 0, 1), atol=1e-6)


def test_the_colours_of_a_map_depend_on_its_company_and_not_on_the_order():
    first, second = random_maps()
    np.testing.assert_allclose(pca_colors([first, second])[0], pca_colors([second, first])[1], atol=1e-9)
    assert np.abs(pca_colors([first, second])[0] - pca_colors([first])[0]).max() > 0.05


def with_object(seed=0):
    """A square object in the middle of a background, well apart in features."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(12, 12, 16)) * 0.3
    inside = np.zeros((12, 12), bool)
    inside[3:9, 4:9] = True
    values[inside] += 4.0
    return torch.from_numpy(values).permute(2, 0, 1), inside


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_what_keeps_from_the_border_whichever_its_sign(sign):
    values, inside = with_object()
    colors = pca_colors([sign * values], foreground=True)[0]
    assert (np.isfinite(colors).all(-1) == inside).all()


def test_constant_features_are_mid_grey():
    assert (pca_colors([torch.ones(8, 3, 4)])[0] == 0.5).all()
    assert (pca_colors([torch.ones(2, 1, 1)])[0] == 0.5).all()


def test_planted_clusters_are_found_whatever_the_seed():
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(20, 20)))[0][:3]
    truth = [np.repeat([[0], [0], [0], [1]], 8, 1), np.repeat([[0], [1], [2], [2], [0]], 6, 1)]
    maps = [torch.from_numpy(centres[t] + random.normal(size=(*t.shape, 20)) * 0.05).permute(2, 0, 1) for t in truth]
    sizes = np.bincount(np.concatenate([t.ravel() for t in truth]))
    order = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    for seed in range(4):
        found = part_labels(maps, 3, seed=seed)
        for one, t in zip(found, truth, strict=True):
            assert (one.numpy() == order[t]).all()


def test_equal_seeds_give_equal_parts_even_of_noise_or_copies():
    maps = random_maps()
    assert all(torch.equal(a, b) for a, b in zip(part_labels(maps, 7), part_labels(maps, 7), strict=True))
    assert len(torch.cat([p.flatten() for p in part_labels(maps, 7)]).unique()) == 7
    copies = part_labels([torch.ones(5, 3, 3)], 4)[0]
    assert copies.shape == (3, 3)


def test_padded_features_show_the_image_alone():
    tokens = torch.tensor([4.0, -1, 0, 0]).repeat(64, 1)
    tokens[24:40] = torch.tensor([1.0, 2, 3, 4])  # the two middle rows of the canvas
    padded = FeatureMap(tokens, (8, 8), (20, 80), canvas=(80, 80), offset=(0, 30))
    picture = draw_parts(padded, images=[Image.new("RGB", (80, 20))], parts=2, opacity=1.0)
    assert picture.width > 200
    shown = {color for _, color in picture.crop((60, 60, 400, 130)).getcolors(10_000)}
    assert (86, 180, 233) in shown  # the smaller part lies where the image is
    assert (230, 159, 0) not in shown


def test_pictures_repeat_themselves_and_take_images_or_none():
    maps = random_maps()
    images = [Image.new("RGB", (w, h)) for h, w in (one.image_size for one in maps)]
    for draw in (draw_pca, draw_parts):
        first, second = (draw(maps, images=images, title="one", captions=("a", "b")) for _ in range(2))
        assert first.tobytes() == second.tobytes()
        assert draw(maps[0]).width > 100
        assert draw(torch.rand(4, 3, 5)).mode == "RGB"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: draw_pca([]), "features"),
        (lambda m: draw_pca([m[0], torch.rand(3, 4, 4)]), r"features\[1\].*24"),
        (lambda m: draw_pca(torch.full((3, 2, 2), torch.nan)), "finite"),
        (lambda m: draw_pca([torch.rand(4, 4)]), "features"),
        (lambda m: draw_pca(m, images=[Image.new("RGB", (4, 4))]), "images"),
        (lambda m: draw_pca(m, captions=["one"]), "captions"),
        (lambda m: draw_parts(m, parts=0), "parts"),
        (lambda m: draw_parts(torch.rand(3, 1, 2), parts=3), "parts"),
        (lambda m: draw_parts(m, opacity=2), "opacity"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(random_maps())
