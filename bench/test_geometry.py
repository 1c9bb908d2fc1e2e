"""How accurate geometry from matches is, beside what needs no model: two tables of errors in pixels, no times.

*Homographies*: 20 seeded warps of scikit-image's photographs, 384 px on the longer side, that leave the corners 60 px
or more from where they were. Each method matches, OpenCV's MAGSAC estimates, the error is the mean over the four
corners, as HPatches has it. Inliers lie within three quarters of a token, 12 px, where matches are that coarse, and
within 3 px for SIFT.

*Stereo*: Middlebury's motorcycle (in scikit-image's package), 741 x 500 px. Points on a grid of the left picture are
searched in all of the right one, as a flow method without knowledge of the rig would; the error is their distance from
the ground truth where it is known and visible: (x - disparity, y), for so the two pictures agree to 8 grey levels, the
other way round to 16. Disparities are 7 to 60 px.

Rivals: SIFT, patches of pixels (centred, cosine), the best constant disparity (which sees the answer), identity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ditf
from ditf.benchmarks.rivals import identity, pixel_patches
from ditf.geometry import Homography, estimate_homography, grid_points, sift_points
from ditf.matching import match_points, mutual_matches
from ditf.warps import WarpedPair, apply_homography, warped_copy

data = pytest.importorskip("skimage.data")
cv2 = pytest.importorskip("cv2")

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
PAIRS, SIDE, LEAST_IDENTITY = 20, 384, 60.0
TOKEN = SIDE / 24
COARSE, FINE = 0.75 * TOKEN, 3.0
MODEL = "ditf-tiny"

Method = Callable[[WarpedPair], Homography]


def photograph(name: str) -> np.ndarray:
    picture = Image.fromarray(getattr(data, name)()[..., :3])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.array(picture)


def warped_pairs() -> list[WarpedPair]:
    """The first 20 seeds whose warp moves the corners far enough; the photographs take turns."""
    pairs, seed = [], 0
    while len(pairs) < PAIRS:
        pair = warped_copy(photograph(PHOTOGRAPHS[seed % len(PHOTOGRAPHS)]), seed=seed)
        if same(pair).corner_error(pair.matrix, size_of(pair)) >= LEAST_IDENTITY:
            pairs.append(pair)
        seed += 1
    return pairs


def size_of(pair: WarpedPair) -> tuple[int, int]:
    return pair.source.shape[0], pair.source.shape[1]


def same(pair: WarpedPair) -> Homography:
    return Homography(torch.eye(3))


def sift(pair: WarpedPair) -> Homography:
    """Lowe's ratio test at 0.8 and mutual nearest neighbours."""
    detector = cv2.SIFT_create(enable_precise_upscale=True)
    (first, a), (second, b) = (detector.detectAndCompute(image, None) for image in (pair.source, pair.target))
    pairs = cv2.BFMatcher().knnMatch(a, b, k=2)
    back = {m.queryIdx: m.trainIdx for m in cv2.BFMatcher().match(b, a)}
    kept = [m for m, other in pairs if m.distance < 0.8 * other.distance and back[m.trainIdx] == m.queryIdx]
    source, target = [first[m.queryIdx].pt for m in kept], [second[m.trainIdx].pt for m in kept]
    return estimate_homography(source, target, threshold=FINE)


def patches(patch: int, side: int) -> Method:
    """Patches around the same grid of points, those that lead back within a token."""

    def method(pair: WarpedPair) -> Homography:
        points = grid_points(size_of(pair), TOKEN)
        there = pixel_patches(pair.source, pair.target, points, patch=patch, side=side)
        back = pixel_patches(pair.target, pair.source, there, patch=patch, side=side)
        kept = (back - points).norm(dim=1) <= TOKEN
        return estimate_homography(points[kept], there[kept], threshold=COARSE)

    return method


def features(extractor: ditf.FeatureExtractor, how: str) -> Method:
    def method(pair: WarpedPair) -> Homography:
        source, target = extractor([pair.source, pair.target])
        if how == "mutual":
            matches = mutual_matches(source, target)
        elif how == "dense":
            matches = ditf.match_dense(source, target).matches()
        else:
            points = sift_points(pair.source, 500) if how == "sift" else grid_points(size_of(pair), TOKEN)
            refine = "argmax" if how == "sift" else "window-soft"
            matches = match_points(source, target, points, cycle=True, refine=refine)
        return estimate_homography(matches, threshold=COARSE)

    return method


def oracle(pair: WarpedPair) -> Homography:
    """Random Fourier features of the true coordinates: what the matcher and the estimator themselves lose."""
    grid = (round(pair.source.shape[0] / TOKEN), round(pair.source.shape[1] / TOKEN))
    frame = ditf.FeatureMap(torch.zeros(grid[0] * grid[1], 1), grid, size_of(pair))
    centres = ditf.matching.token_centres(frame).double()
    random = torch.Generator().manual_seed(0)
    waves = torch.randn(2, 256, generator=random, dtype=torch.float64) / 40
    phase = 6.2832 * torch.rand(256, generator=random, dtype=torch.float64)
    maps = []
    for places in (centres, apply_homography(torch.linalg.inv(pair.matrix), centres)):
        maps.append(ditf.FeatureMap((places @ waves + phase).cos().float(), grid, size_of(pair)))
    points = grid_points(size_of(pair), TOKEN)
    return estimate_homography(match_points(*maps, points, cycle=True), threshold=FINE)


def test_homographies_of_warped_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    extractor = ditf.FeatureExtractor.from_pretrained(MODEL)
    methods: dict[str, Method] = {
        "true coordinates as features": oracle,
        "SIFT, ratio and mutual": sift,
        f"{MODEL}, mutual token centres": features(extractor, "mutual"),
        f"{MODEL}, match_dense on tokens, mutual": features(extractor, "dense"),
        f"{MODEL}, token grid, window-soft, cycle": features(extractor, "grid"),
        f"{MODEL}, SIFT keypoints, cycle": features(extractor, "sift"),
        "pixel patches 17 x 17 at 96 px": patches(17, 96),
        "pixel patches 25 x 25 at 96 px": patches(25, 96),
        "pixel patches 33 x 33 at 192 px": patches(33, 192),
        "identity": same,
    }
    pairs = warped_pairs()
    errors = {
        name: np.array([method(pair).corner_error(pair.matrix, size_of(pair)) for pair in pairs])
        for name, method in methods.items()
    }
    lines = [f"homographies of {len(pairs)} warped photographs: corner error in px (infinite: none was found)"]
    lines += [f"  {'method':<46}{'median':>9}{'<= 5 px':>9}{'<= 20 px':>10}{'none':>6}"]
    for name, error in sorted(errors.items(), key=lambda row: float(np.median(row[1]))):
        shares = f"{(error <= 5).sum():>6}/{len(error)}{(error <= 20).sum():>7}/{len(error)}"
        lines.append(f"  {name:<46}{np.median(error):>9.2f}{shares}{np.isinf(error).sum():>6}")
    with capsys.disabled():
        print("\n\n" + "\n".join(lines))
    assert errors["identity"].min() >= LEAST_IDENTITY
    assert np.median(errors["true coordinates as features"]) < 1.0


def test_end_point_error_of_stereo(capsys: pytest.CaptureFixture[str]) -> None:
    left, right, disparity = data.stereo_motorcycle()
    size = left.shape[:2]
    points = grid_points(size, 12).round()
    shift = torch.from_numpy(disparity)[points[:, 1].long(), points[:, 0].long()]
    truth = torch.stack([points[:, 0] - shift, points[:, 1]], 1)
    known = torch.isfinite(shift) & (truth[:, 0] >= 0)
    points, truth, shift = points[known], truth[known], shift[known]
    found: dict[str, Tensor] = {
        "zero disparity": identity(points, size, size),
        "best constant disparity": points - torch.stack([shift.median(), torch.tensor(0.0)]),
    }
    for patch, side in ((9, 371), (17, 371), (25, 371)):
        found[f"pixel patches {patch} x {patch} at {side} px"] = pixel_patches(
            left, right, points, patch=patch, side=side
        )
    for longest in (96, 192):
        extractor = ditf.FeatureExtractor.from_pretrained(MODEL, longest_side=longest)
        source, target = extractor([left, right])
        for refine in ("argmax", "window-soft"):
            name = f"{MODEL} at {longest} px, {refine}"
            found[name] = match_points(source, target, points, refine=refine).target
    lines = [f"stereo, motorcycle, {len(points)} points of the left picture: end-point error in px"]
    lines += [f"  {'method':<46}{'median':>9}{'mean':>9}{'<= 5 px':>9}"]
    errors = {name: (place - truth).norm(dim=1) for name, place in found.items()}
    for name, error in sorted(errors.items(), key=lambda row: float(row[1].median())):
        lines.append(f"  {name:<46}{error.median():>9.2f}{error.mean():>9.2f}{(error <= 5).float().mean():>9.0%}")
    with capsys.disabled():
        print("\n\n" + "\n".join(lines))
    assert errors["best constant disparity"].median() < errors["zero disparity"].median()
