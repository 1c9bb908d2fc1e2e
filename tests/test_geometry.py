"""Geometry from matches: right where it is determined, and never made up where it is not."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ditf
from ditf import FeatureMap, Homography, InputError, Matches, estimate_homography
from ditf.geometry import FundamentalMatrix, estimate_fundamental, grid_points, sift_points
from ditf.matching import match_points, mutual_matches, token_centres
from ditf.warps import warp_image, warped_copy

TRUE = torch.tensor([[0.9, 0.1, 20.0], [-0.12, 0.8, 35.0], [1e-4, 2e-4, 1.0]], dtype=torch.float64)
SIZE = (240, 320)


def spread(count, seed=0, size=SIZE):
    return np.random.default_rng(seed).uniform(0, (size[1] - 1, size[0] - 1), (count, 2))


def mapped(matrix, points):
    """By the definition, in float64."""
    homogeneous = np.c_[points, np.ones(len(points))] @ np.asarray(matrix).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def as_matches(source, target, **options):
    rows = [torch.as_tensor(np.asarray(v), dtype=torch.float32) for v in (source, target)]
    return Matches(*rows, score=options.pop("score", torch.ones(len(source))), source_size=SIZE, **options)


def noisy(count=120, wrong=0.5, noise=0.5, seed=0):
    random = np.random.default_rng(seed)
    source = spread(count, seed)
    target = mapped(TRUE, source) + random.normal(size=(count, 2)) * noise
    bad = np.arange(count) < wrong * count
    target[bad] = random.uniform(0, 300, (bad.sum(), 2))
    return source, target, bad


# Homographies


@pytest.mark.parametrize("method", ["magsac", "ransac"])
def test_a_homography_is_found_among_wrong_matches(method):
    source, target, bad = noisy(wrong=0.6)
    found = estimate_homography(source, target, method=method)
    assert found.found
    assert found.reason == ""
    assert found.matrix.dtype == torch.float64
    assert float(found.matrix[2, 2]) == pytest.approx(1)
    assert found.corner_error(TRUE, SIZE) < 1.5
    true_inliers = np.linalg.norm(mapped(found.matrix, source) - target, axis=1) <= 3.0
    assert found.inliers.numpy().tolist() == true_inliers.tolist()
    assert true_inliers[~bad].all()


def test_least_median_of_squares_stands_a_third_of_wrong_matches():
    source, target, _ = noisy(wrong=0.33)
    assert estimate_homography(source, target, method="lmeds").corner_error(TRUE, SIZE) < 1.5


@given(seed=st.integers(0, 10_000), tilt=st.floats(-4e-4, 4e-4), far=st.sampled_from([0.0, 3000.0]))
@settings(max_examples=25, deadline=None)
def test_exact_matches_give_the_exact_homography_wherever_the_points_lie(seed, tilt, far):
    random = np.random.default_rng(seed)
    matrix = np.eye(3) + random.normal(size=(3, 3)) * [[0.2, 0.2, 20], [0.2, 0.2, 20], [0, 0, 0]]
    matrix[2] = tilt, -tilt, 1.0
    source = spread(40, seed)
    if abs(np.linalg.det(matrix)) < 0.2 or (np.c_[source, np.ones(40)] @ matrix[2]).min() < 0.3:
        return  # nearly flattened, or the horizon near the picture
    target = mapped(matrix, source) + far
    found = estimate_homography(source, target)
    np.testing.assert_allclose(mapped(found.matrix, source), target, atol=2e-2)
    assert bool(found.inliers.all())


def test_equal_seeds_give_equal_bits():
    source, target, _ = noisy(wrong=0.7, noise=1.0)
    first, second = (estimate_homography(source, target, seed=3, max_iterations=50) for _ in range(2))
    assert torch.equal(first.matrix, second.matrix)
    assert torch.equal(first.inliers, second.inliers)


def test_the_seed_reaches_the_sampler():
    source, target, _ = noisy(wrong=0.85, noise=1.5)
    found = {str(estimate_homography(source, target, seed=s, max_iterations=15).to_dict()) for s in range(12)}
    assert len(found) > 1


def oracle(size, grid, to_source, seed=0):
    """Features that say where a place lies in the source: random Fourier features of its true coordinates."""
    random = np.random.default_rng(seed)
    frame = FeatureMap(torch.zeros(grid[0] * grid[1], 1), grid, size)
    places = mapped(to_source, token_centres(frame).double().numpy())
    waves = places @ (random.normal(size=(2, 256)) / 25.0) + random.uniform(0, 2 * np.pi, 256)
    return FeatureMap(torch.from_numpy(np.cos(waves)).float(), grid, size)


@pytest.mark.parametrize("refine", ["argmax", "window-soft"])
def test_features_of_the_true_coordinates_give_the_homography_to_a_pixel(refine):
    turn = math.radians(22)
    matrix = np.array(
        [[0.8 * math.cos(turn), -0.8 * math.sin(turn), 90], [0.8 * math.sin(turn), 0.8 * math.cos(turn), 10], [0, 0, 1]]
    )
    source, target = (oracle(SIZE, (24, 32), to) for to in (np.eye(3), np.linalg.inv(matrix)))
    points = grid_points(SIZE, 24)
    found = estimate_homography(match_points(source, target, points, cycle=True, refine=refine))
    identity = Homography(torch.eye(3)).corner_error(matrix, SIZE)
    assert identity > 60
    assert found.corner_error(matrix, SIZE) < 1.0


def test_the_bundled_model_comes_far_closer_than_identity_on_warped_photographs():
    data = pytest.importorskip("skimage.data")
    extractor = ditf.FeatureExtractor.from_pretrained("ditf-tiny")
    errors, identities = [], []
    for seed, name in enumerate(("astronaut", "chelsea", "coffee")):
        photograph = Image.fromarray(getattr(data, name)())
        photograph.thumbnail((256, 256))
        pair = warped_copy(np.array(photograph), seed=seed)
        size, found = pair.source.shape[:2], mutual_matches(*extractor([pair.source, pair.target]))
        token = max(size) / 24
        errors.append(estimate_homography(found, threshold=0.75 * token).corner_error(pair.matrix, size))
        identities.append(Homography(torch.eye(3)).corner_error(pair.matrix, size))
    assert min(identities) > 60
    assert np.median(errors) < 0.25 * np.median(identities)


# What takes part


def test_matches_without_a_target_or_a_score_or_that_do_not_lead_back_take_no_part():
    source, target, _ = noisy(wrong=0)
    score, error = torch.ones(120), torch.zeros(120)
    target[:40] = -1.0  # no pixel could be chosen
    score[40:60] = math.nan
    error[60:80] = 50.0  # wrong although they fit
    target[60:80] += 40
    found = estimate_homography(as_matches(source, target, score=score, cycle_error=error))
    assert found.inliers.tolist() == [False] * 80 + [True] * 40
    assert found.corner_error(TRUE, SIZE) < 1.5
    assert estimate_homography(as_matches(source, target, cycle_error=error), cycle_tolerance=math.inf).found
    none_lead_back = estimate_homography(as_matches(source, target, cycle_error=torch.full((120,), math.nan)))
    assert not none_lead_back.found
    assert none_lead_back.reason.startswith("0 usable matches")


def line(count=30, slope=2.0):
    x = np.arange(count, dtype=float) * 5
    return np.c_[x, slope * x + 3]


def with_one_off(points):
    return np.r_[points, [[200.0, 17.0]]]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (spread(0), spread(0), "0 usable"),
        (spread(3), mapped(TRUE, spread(3)), "3 usable"),
        (np.tile(spread(1), (20, 1)), spread(20), "1 distinct source"),
        (spread(20), np.tile(spread(1), (20, 1)), "1 distinct target"),
        (np.tile(spread(3), (7, 1)), np.tile(mapped(TRUE, spread(3)), (7, 1)), "3 distinct"),
        (line(), line() + 7, "line"),
        (line(), line() + np.random.default_rng(0).normal(size=(30, 2)), "line"),
        (spread(30), line(), "line"),
        (with_one_off(line()), with_one_off(line()) + 2, "line"),
        (with_one_off(line(3)), mapped(TRUE, with_one_off(line(3))), "line"),
    ],
)
def test_what_does_not_determine_a_homography_gives_none_and_says_why(source, target, words):
    for found in (estimate_homography(source, target), estimate_homography(as_matches(source, target))):
        assert not found.found
        assert found.matrix is None
        assert words in found.reason
        assert found.inliers.shape == (len(source),)
        assert not found.inliers.any()
        assert found.corner_error(TRUE, SIZE) == math.inf
        with pytest.raises(InputError, match="none was found"):
            found.apply([(1, 2)])


def test_agreeing_points_on_a_line_do_not_hide_behind_wrong_matches():
    source, target = np.r_[line(), spread(25, 1)], np.r_[line() + 7, spread(25, 2)]
    found = estimate_homography(source, target)
    assert not found.found
    assert "line" in found.reason


@pytest.mark.parametrize("seed", range(8))
def test_four_points_in_general_position_are_enough(seed):
    corners = np.array([[10.0, 10], [300, 20], [280, 220], [30, 200]]) + np.random.default_rng(seed).normal(size=(4, 2))
    found = estimate_homography(corners, mapped(TRUE, corners))
    assert found.corner_error(TRUE, SIZE) < 0.05


@pytest.mark.parametrize("wrong", [0, 0.6])
def test_a_mirrored_picture_is_a_homography_too(wrong):
    source = spread(80)
    target = source * [-1, 1] + [319, 0]
    target[: int(80 * wrong)] = spread(int(80 * wrong), 3)
    found = estimate_homography(source, target)
    assert found.corner_error(torch.tensor([[-1.0, 0, 319], [0, 1, 0], [0, 0, 1]]), SIZE) < 1e-2


# Using one


def test_apply_and_inverse_follow_the_definition():
    points = spread(50)
    homography = Homography(TRUE)
    np.testing.assert_allclose(homography.apply(points).numpy(), mapped(TRUE, points.astype(np.float32)), rtol=1e-12)
    back = homography.inverse().apply(homography.apply(points))
    np.testing.assert_allclose(back.numpy(), points, atol=1e-3)


def test_corner_error_is_the_mean_distance_of_the_corner_pixels():
    moved = Homography(torch.tensor([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]]))
    assert moved.corner_error(torch.eye(3), (10, 20)) == pytest.approx(5)
    doubled = Homography(torch.diag(torch.tensor([2.0, 2, 1])))
    diagonal = math.hypot(19, 9)  # the corners are (0, 0), (19, 0), (19, 9), (0, 9)
    assert doubled.corner_error(Homography(torch.eye(3)), (10, 20)) == pytest.approx((0 + 19 + diagonal + 9) / 4)


def test_warp_moves_a_dot_to_where_apply_says():
    y, x = np.mgrid[:120, :160]
    dot = 255 * np.exp(-((x - 40) ** 2 + (y - 70) ** 2) / 18.0)
    image = np.repeat(dot[..., None], 3, axis=2).astype(np.uint8)
    homography = Homography(torch.tensor([[1.3, 0.1, 25.5], [-0.05, 1.2, 30.25], [1e-4, 0, 1]]))
    warped = homography.warp(image, (260, 300))
    assert warped.size == (300, 260)
    values = np.asarray(warped, np.float64)[..., 0]
    v, u = np.mgrid[:260, :300]
    centre = (values * u).sum() / values.sum(), (values * v).sum() / values.sum()
    assert centre == pytest.approx(homography.apply([(40, 70)])[0].tolist(), abs=0.05)
    assert np.asarray(homography.warp(np.full((120, 160, 3), 255, np.uint8)))[0, 0].sum() == 0


def test_a_photograph_is_warped_back_onto_itself():
    image = np.asarray(
        Image.effect_noise((160, 120), 90).resize((160, 120)).convert("RGB").reduce(4).resize((160, 120))
    )
    matrix = torch.tensor([[0.9, 0.1, 5], [-0.1, 0.95, 12], [0, 0, 1]])
    ours = np.asarray(Homography(matrix).warp(image), np.int32)
    theirs = warp_image(image, matrix).astype(np.int32)
    inside = ours.sum(-1) > 0
    assert np.abs(ours - theirs)[inside].mean() < 1.0


# Epipolar geometry


def two_views(count=80, depth=(4, 9), seed=0):
    """Points of a scene in two cameras, and the fundamental matrix between them."""
    random = np.random.default_rng(seed)
    K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    turn = np.radians(8)
    R = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    t = np.array([-1.0, 0.2, 0.1])
    pixels = np.c_[spread(count, seed), np.ones(count)]
    space = (np.linalg.inv(K) @ pixels.T).T * random.uniform(*depth, (count, 1))
    seen = (space @ R.T + t) @ K.T
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(K).T @ cross @ R @ np.linalg.inv(K)
    return pixels[:, :2], seen[:, :2] / seen[:, 2:], F / np.linalg.norm(F)


@pytest.mark.parametrize("method", ["magsac", "ransac", "lmeds"])
def test_the_fundamental_matrix_of_two_cameras_is_found(method):
    source, target, F = two_views()
    random = np.random.default_rng(1)
    target += random.normal(size=target.shape) * 0.1
    target[:20] = random.uniform(0, 300, (20, 2))
    found = estimate_fundamental(source, target, method=method)
    assert found.found
    assert bool(found.inliers[20:].float().mean() > 0.95)
    values = np.linalg.svd(found.matrix.numpy(), compute_uv=False)
    assert values[2] < 1e-12
    clean, goal, _ = two_views(seed=5)
    assert float(found.residuals(clean, goal).median()) < 0.5
    assert float(FundamentalMatrix(torch.from_numpy(F)).residuals(clean, goal).max()) < 1e-9
    again = estimate_fundamental(source, target, method=method)
    assert torch.equal(found.matrix, again.matrix)


def test_what_does_not_determine_a_fundamental_matrix_gives_none_and_says_why():
    source, target, _ = two_views(7)
    assert "7 usable" in estimate_fundamental(source, target).reason
    assert "line" in estimate_fundamental(line(), line() + 3).reason
    plane = spread(60)
    found = estimate_fundamental(plane, mapped(TRUE, plane) + np.random.default_rng(0).normal(size=(60, 2)) * 0.2)
    assert not found.found
    assert "homography" in found.reason
    with pytest.raises(InputError, match="none was found"):
        found.residuals(plane, plane)


# Keypoints


@pytest.mark.parametrize(("size", "spacing", "shape"), [((240, 320), 16, (15, 20)), ((100, 37), 10, (10, 4))])
def test_grid_points_are_the_centres_of_equal_cells(size, spacing, shape):
    points = grid_points(size, spacing)
    assert points.shape == (shape[0] * shape[1], 2)
    high, wide = size[0] / shape[0], size[1] / shape[1]
    assert points[0].tolist() == pytest.approx([wide / 2 - 0.5, high / 2 - 0.5], abs=1e-4)
    assert (points[0] + points[-1]).tolist() == pytest.approx([size[1] - 1, size[0] - 1], abs=1e-3)
    assert float(points[1, 0] - points[0, 0]) == pytest.approx(wide, abs=1e-4)
    assert float(points[shape[1], 1] - points[0, 1]) == pytest.approx(high, abs=1e-4)


def test_sift_points_lie_on_the_centres_of_blobs_strongest_first():
    y, x = np.mgrid[:200, :260]
    blobs = {(80.0, 100.0): 250, (180.5, 60.25): 120}
    grey = sum(v * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 72.0) for (a, b), v in blobs.items())
    points = sift_points(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8), 2)
    np.testing.assert_allclose(points.numpy(), list(blobs), atol=0.1)
    assert len(sift_points(Image.new("RGB", (64, 48)), 10)) == 0


# Refusals

good = spread(10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate_homography(good, good[:9]), "9 points.*10"),
        (lambda: estimate_homography(good), "target"),
        (lambda: estimate_homography(ditf.match_dense(*[oracle(SIZE, (6, 8), np.eye(3))] * 2)), "dense.matches"),
        (lambda: estimate_homography(as_matches(good, good), good), "give one of the two"),
        (lambda: estimate_homography(good[:, :1], good), "shape"),
        (lambda: estimate_homography(np.full((5, 2), math.nan), good[:5]), "source.*finite"),
        (lambda: estimate_homography(good, np.where(good > 200, math.inf, good)), "target.*finite"),
        (lambda: estimate_homography(good, good, method="best"), "magsac"),
        (lambda: estimate_homography(good, good, threshold=0), "threshold"),
        (lambda: estimate_homography(good, good, confidence=1.0), "confidence"),
        (lambda: estimate_homography(good, good, max_iterations=0), "max_iterations"),
        (lambda: estimate_homography(good, good, seed=-1), "seed"),
        (lambda: estimate_homography(good, good, cycle_tolerance=-1), "cycle_tolerance"),
        (lambda: estimate_fundamental(good, good[:9]), "9 points"),
        (lambda: Homography(torch.eye(2)), "matrix"),
        (lambda: Homography(torch.full((3, 3), math.nan)), "matrix"),
        (lambda: Homography(torch.eye(3)).warp(Image.new("RGB", (4, 4)), (0, 4)), "size"),
        (lambda: Homography(torch.eye(3)).corner_error(torch.eye(2), SIZE), "truth"),
        (lambda: Homography(torch.eye(3)).apply([(math.nan, 0)]), "finite"),
        (lambda: grid_points((0, 10), 4), "size"),
        (lambda: grid_points((10, 10), 0.5), "spacing"),
        (lambda: sift_points(Image.new("RGB", (9, 9)), 0), "count"),
    ],
)
def test_what_cannot_be_used_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for call in (lambda: estimate_homography(good, good), lambda: sift_points(Image.new("RGB", (9, 9)), 3)):
        with pytest.raises(InputError, match=r'pip install "ditf\[geometry\]"'):
            call()


def test_results_describe_themselves():
    source, target, _ = noisy()
    found = ditf.estimate_homography(source, target)
    assert "60 of 120" in repr(found) or "61 of 120" in repr(found)
    assert found.to_dict()["matrix"] == found.matrix.tolist()
    assert len(found.to_dict()["inliers"]) == int(found.inliers.sum())
    assert "not found: 3 usable" in repr(estimate_homography(spread(3), spread(3)))
