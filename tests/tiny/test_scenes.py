"""Scenes are what they say they are: repeatable, and true about where things are."""

import numpy as np
import pytest
import torch

from ditf.errors import InputError
from ditf.tiny.kinds import ALL_KINDS, HELD_OUT_KINDS, KINDS
from ditf.tiny.scenes import (
    HELD_OUT_STYLES,
    STYLES,
    apply_homography,
    random_scene,
    sample_scene,
    scene_pair,
    warp_image,
    warped_pair,
)
from ditf.tiny.views import view_pair


@pytest.mark.parametrize("clutter", [False, True])
def test_the_same_seed_is_the_same_scene_and_another_seed_another(clutter):
    first, again, other = (sample_scene(seed, clutter=clutter) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.keypoints == again.keypoints
    assert not np.array_equal(first.pixels, other.pixels)


def test_pixels_stay_what_they_were():
    """A change of the generator changes every number on the card: it must be meant."""
    scenes = [sample_scene(seed, clutter=bool(seed % 2)) for seed in range(4)]
    assert [scene.kind for scene in scenes] == ["car", "bird", "car", "car"]
    assert [float(scene.pixels.mean()) for scene in scenes] == pytest.approx([174.3, 114.2, 68.2, 104.9], abs=0.5)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("clutter", "viewpoint"), [(False, 0.0), (True, 0.0), (True, 1.0)])
def test_keypoints_lie_inside_the_box_and_the_picture(kind, clutter, viewpoint):
    for seed in range(8):
        scene = sample_scene(seed, 64, kind, clutter=clutter, viewpoint=viewpoint)
        x0, y0, x1, y1 = scene.bbox
        assert scene.kind == kind
        assert -0.5 <= x0 < x1 <= 63.5
        assert -0.5 <= y0 < y1 <= 63.5
        for name, (x, y) in scene.keypoints.items():
            assert scene.visible[name] == (0 <= x <= 63 and 0 <= y <= 63)
            assert x0 - 4 <= x <= x1 + 4, f"{name} of {kind} {seed}"
            assert y0 - 4 <= y <= y1 + 4, f"{name} of {kind} {seed}"
        assert sum(scene.visible.values()) >= 0.8 * len(scene.visible)


@pytest.mark.parametrize("kind", ["quad", "bird", "fish"])
@pytest.mark.parametrize("viewpoint", [0.0, 0.8])
def test_eyes_are_dark_where_the_keypoint_says_and_light_around(kind, viewpoint):
    for seed in range(5):
        scene = sample_scene(seed, 256, kind, viewpoint=viewpoint)
        x, y = (round(v) for v in scene.keypoints["eye"])
        around = scene.pixels[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13]
        assert scene.pixels[y, x].max() < 30, f"{kind} {seed}"
        assert around.max() > 170, f"{kind} {seed}"


def test_a_nose_is_near_black_and_a_taillight_red():
    for seed in range(10):
        scene = sample_scene(seed, 256, "quad")
        x, y = (round(v) for v in scene.keypoints["nose"])
        assert scene.pixels[y, x].max() < 40
        scene = sample_scene(seed, 256, "car")
        x, y = (round(v) for v in scene.keypoints["taillight"])
        red, green, blue = scene.pixels[y, x].astype(int)
        assert red > 2 * max(green, blue)


def test_a_person_has_skin_between_hair_and_shirt_and_an_engine_is_dark_inside():
    for seed in range(5):
        scene = sample_scene(seed, 256, "aeroplane")
        x, y = (round(v) for v in scene.keypoints["engine"])
        assert scene.pixels[y, x].max() < 60
        scene = sample_scene(seed, 256, "person")
        x, y = (round(v) for v in scene.keypoints["nose"])
        inward = 4 if scene.flipped else -4
        red, green, blue = scene.pixels[y, x + inward].astype(int)
        assert red > green > blue


def test_held_out_kinds_and_styles_are_apart_from_those_of_training():
    assert len(HELD_OUT_KINDS) >= 3
    assert KINDS.keys().isdisjoint(HELD_OUT_KINDS)
    assert set(KINDS.values()).isdisjoint(HELD_OUT_KINDS.values())
    assert len(HELD_OUT_STYLES) >= 2
    assert set(STYLES).isdisjoint(HELD_OUT_STYLES)
    for seed in range(20):
        assert sample_scene(seed, 8).kind in KINDS
    for kind in HELD_OUT_KINDS:
        assert 9 <= len(sample_scene(0, 8, kind).keypoints) <= 13


@pytest.mark.parametrize("style", STYLES + HELD_OUT_STYLES)
def test_a_style_changes_the_picture_and_moves_nothing(style):
    plain, drawn, again = (
        sample_scene(11, 64, clutter=True, occluders=2, viewpoint=0.5, style=s) for s in ("flat", style, style)
    )
    assert (plain.keypoints, plain.visible, plain.bbox) == (drawn.keypoints, drawn.visible, drawn.bbox)
    assert np.array_equal(drawn.pixels, again.pixels)
    assert np.array_equal(drawn.pixels, plain.pixels) == (style == "flat")
    one, other = (scene_pair(4, 32, style=s)[1].keypoints for s in ("flat", style))
    assert one == other


def test_a_point_is_hidden_just_where_an_occluder_changes_the_picture():
    hidden, seen = 0, 0
    for seed in range(12):
        bare, scene = (sample_scene(seed, 256, occluders=count) for count in (0, 4))
        assert bare.keypoints == scene.keypoints
        changed = np.pad((bare.pixels != scene.pixels).any(2), 3, mode="edge")
        for name, (x, y) in scene.keypoints.items():
            if not bare.visible[name]:
                assert not scene.visible[name]
                continue
            around = changed[round(y) : round(y) + 7, round(x) : round(x) + 7].mean()
            if around in (0, 1):  # not at an occluder's edge
                assert scene.visible[name] == (around == 0), f"{name} {seed}"
                hidden, seen = hidden + (around == 1), seen + (around == 0)
    assert hidden > 10
    assert seen > 10


def test_a_tilted_instance_is_the_one_from_the_front_under_a_true_homography():
    """Four points give the map; all others follow it, and no affine map would do."""
    front, tilted = (
        random_scene(np.random.default_rng(5), "quad", viewpoint=viewpoint).located for viewpoint in (0.0, 1.0)
    )
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (40, 2))
    here, there = front(points), tilted(points)
    ones = np.ones((40, 1))
    rows = [
        row
        for (x, y), (u, v) in zip(here[:4], there[:4], strict=True)
        for row in ([x, y, 1, 0, 0, 0, -u * x, -u * y, -u], [0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    ]
    matrix = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)
    mapped = np.hstack([here, ones]) @ matrix.T
    assert np.allclose(mapped[:, :2] / mapped[:, 2:], there, atol=1e-6)
    affine = np.linalg.lstsq(np.hstack([here, ones]), there, rcond=None)[0]
    assert np.abs(np.hstack([here, ones]) @ affine - there).max() > 0.02


@pytest.mark.parametrize("style", ["flat", "sketch"])
def test_two_views_of_a_scene_agree_where_both_see_it(style):
    for seed in range(3):
        pair = view_pair(seed, 160, style=style)
        moved = warp_image(pair.source, pair.matrix, border="plain").astype(float)
        grid = torch.cartesian_prod(*[torch.arange(160.0)] * 2).flip(1)
        back = apply_homography(torch.linalg.inv(pair.matrix), grid)
        inside = ((back >= 0) & (back <= 159)).all(1).reshape(160, 160).numpy()
        assert inside.mean() > 0.2
        one, other = (picture[inside].astype(float).ravel() for picture in (moved, pair.target))
        assert np.corrcoef(one, other)[0, 1] > 0.9
        shifted = np.corrcoef(np.roll(moved, 6, 1)[inside].ravel(), other)[0, 1]
        assert np.corrcoef(one, other)[0, 1] > shifted + 0.02


def test_the_same_coordinates_are_a_poor_guess_between_two_views():
    right = [
        ((pair.target_points - pair.source_points).norm(dim=1) <= 1.6).float().mean()
        for pair in (view_pair(seed, 16) for seed in range(40))
    ]
    assert float(np.mean(right)) < 0.15


def test_a_scene_does_not_depend_on_its_resolution():
    small, large = sample_scene(3, 64), sample_scene(3, 128)
    halved = large.pixels.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small.pixels).mean() < 2
    for name, (x, y) in small.keypoints.items():
        assert large.keypoints[name] == pytest.approx((2 * x + 0.5, 2 * y + 0.5))


def test_a_flipped_instance_looks_left():
    for seed in range(20):
        scene = sample_scene(seed, kind="fish")
        assert (scene.keypoints["mouth"][0] < scene.keypoints["tail base"][0]) == scene.flipped


def test_a_pair_shows_two_instances_of_one_kind():
    kinds = set()
    for seed in range(12):
        first, second = scene_pair(seed)
        assert first.kind == second.kind
        assert first.keypoints.keys() == second.keypoints.keys()
        assert not np.array_equal(first.pixels, second.pixels)
        kinds.add(first.kind)
    assert kinds == set(KINDS)


@pytest.mark.parametrize(("argument", "call"), [
    ("kind", lambda: sample_scene(0, kind="dragon")),
    ("size", lambda: sample_scene(0, 4)),
    ("style", lambda: sample_scene(0, style="oil")),
    ("occluders", lambda: scene_pair(0, occluders=-1)),
    ("viewpoint", lambda: sample_scene(0, viewpoint=1.5)),
    ("grid", lambda: view_pair(0, grid=0)),
    ("image", lambda: warped_pair(np.zeros((8, 8), np.uint8))),
    ("image", lambda: warped_pair(np.zeros((8, 8, 3)))),
    ("pivot", lambda: warped_pair(np.zeros((8, 8, 3), np.uint8), pivot=(90.0, 90.0))),
])  # fmt: skip
def test_what_cannot_be_drawn_is_named(argument, call):
    with pytest.raises(InputError, match=f"^{argument}"):
        call()


def _centroid(image):
    weight = image.astype(np.float64).sum(2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("border", ["edge", "reflect"])
@pytest.mark.parametrize(("x", "y"), [(30, 20), (70, 45), (50, 61), (101, 40)])
def test_a_dot_lands_where_the_matrix_says(x, y, border):
    dot = np.zeros((90, 130, 3), np.uint8)
    dot[y - 1 : y + 2, x - 1 : x + 2] = 255
    pair = warped_pair(dot, rotation=-24, scale=0.8, pivot=(0.4, 0.5), recolour=False, border=border)
    expected = apply_homography(pair.matrix, torch.tensor([[x, y]], dtype=torch.float64))[0].numpy()
    near = np.zeros_like(dot[..., :1])  # a mirrored border repeats the dot
    column, row = expected.round().astype(int)
    near[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5] = 1
    assert np.abs(_centroid(pair.target * near) - expected).max() < 0.1


def test_a_dot_lands_where_a_perspective_matrix_says():
    dot = np.zeros((100, 120, 3), np.uint8)
    dot[39:42, 59:62] = 255
    matrix = torch.tensor([[1.1, 0.1, -4.0], [-0.05, 0.9, 7.0], [4e-4, -6e-4, 1.0]], dtype=torch.float64)
    expected = apply_homography(matrix, torch.tensor([[60.0, 40.0]], dtype=torch.float64))[0].numpy()
    assert np.abs(_centroid(warp_image(dot, matrix)) - expected).max() < 0.2


def test_no_warp_at_all_changes_nothing():
    picture = sample_scene(1).pixels
    pair = warped_pair(picture, rotation=0.0, scale=1.0, recolour=False)
    assert np.array_equal(pair.target, picture)
    assert torch.equal(pair.source_points, pair.target_points)


def test_a_picture_under_a_warp_shows_the_same_things_at_the_true_points():
    picture = sample_scene(2, 256).pixels
    pair = warped_pair(picture, recolour=False)
    here, there = (points.round().int().numpy() for points in (pair.source_points, pair.target_points))
    differences = np.abs(
        pair.source[here[:, 1], here[:, 0]].astype(int) - pair.target[there[:, 1], there[:, 0]].astype(int)
    )
    assert np.median(differences) <= 4


@pytest.mark.parametrize("seed", range(8))
def test_the_drawn_warps_keep_most_points_inside_and_move_nearly_all_of_them_far(seed):
    picture = np.zeros((100, 150, 3), np.uint8)
    pair = warped_pair(picture, rotation=None, scale=None, pivot=None, seed=seed, grid=30)
    moved = (pair.target_points - pair.source_points).norm(dim=1)
    assert len(pair.source_points) > 0.55 * 600
    assert float((moved <= 15).float().mean()) < 0.1
    assert torch.allclose(apply_homography(pair.matrix, pair.source_points), pair.target_points)


@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee"])
def test_identity_scores_below_ten_percent_on_the_default_warp_of_photographs(name):
    data = pytest.importorskip("skimage.data")
    picture = getattr(data, name)()
    pair = warped_pair(picture, grid=40)
    moved = (pair.target_points - pair.source_points).norm(dim=1)
    assert float((moved <= 0.1 * max(picture.shape)).float().mean()) < 0.1


def test_a_seed_stands_for_a_scene():
    pair = warped_pair(7, size=64)
    assert np.array_equal(pair.source, sample_scene(7, 64).pixels)
    assert pair.target.shape == pair.source.shape
    assert pair.source_points.dtype == torch.float32
    assert pair.matrix.shape == (3, 3)


def test_recolouring_is_part_of_the_seed():
    one, again, other = (warped_pair(7, size=64, seed=seed).target for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
