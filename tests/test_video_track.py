"""Point tracks against motion known in closed form: a plane of Fourier features that slides under the camera."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

import ditf
from ditf import FeatureMap, InputError, match_points, similarity_map, track_points
from ditf.video import iter_tracks

SIZE, STRIDE = (96, 128), 8
POINTS = [(20.0, 30.0), (60.25, 41.5), (71.0, 70.0)]


def sliding(t: float, velocity=(1.6, -0.7), channels: int = 128, period: float | None = None) -> FeatureMap:
    """The plane moved by velocity * t pixels: what was at p is at p + velocity * t. With a period it repeats in x."""
    h, w = SIZE[0] // STRIDE, SIZE[1] // STRIDE
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([x, y], -1).reshape(-1, 2) * STRIDE + (STRIDE - 1) / 2 - torch.tensor(velocity) * t
    waves = torch.randn(2, channels // 2, generator=torch.Generator().manual_seed(1)) / (2 * STRIDE)
    if period is not None:
        waves[0] = (waves[0] * period / (2 * torch.pi)).round() * 2 * torch.pi / period
    angle = place.float() @ waves
    return FeatureMap(tokens=torch.cat([angle.cos(), angle.sin()], 1), grid=(h, w), image_size=SIZE)


def hidden(features: FeatureMap, columns: slice) -> FeatureMap:
    """Token columns replaced by something else."""
    tokens = features.tokens.clone().unflatten(0, features.grid)
    noise = torch.randn(tokens[:, columns].shape, generator=torch.Generator().manual_seed(2))
    tokens[:, columns] = noise
    return FeatureMap(tokens=tokens.flatten(0, 1), grid=features.grid, image_size=SIZE)


def truth(frames: int, velocity) -> torch.Tensor:
    return torch.tensor(POINTS) + torch.arange(frames)[:, None, None] * torch.tensor(velocity)


@pytest.mark.parametrize("mode", ["direct", "chained", "window"])
def test_points_go_where_the_plane_goes(mode: str) -> None:
    tracks = track_points([sliding(t) for t in range(12)], POINTS, mode=mode)
    assert (tracks.points - truth(12, (1.6, -0.7))).norm(dim=-1).max() < 0.75
    assert tracks.visible.all()
    assert tracks.score.min() > 0.95
    assert (tracks.points[0] == torch.tensor(POINTS)).all()
    assert (len(tracks), tracks.image_size) == (12, SIZE)


def test_slow_motion_is_lost_in_a_chain_of_whole_pixels_alone() -> None:
    """0.3 pixels a frame round to none at every step."""
    frames = [sliding(t, (0.3, 0.0)) for t in range(21)]
    fine = track_points(frames, POINTS, mode="chained")
    whole = track_points(frames, [(20.0, 30.0), (61.0, 41.0)], mode="chained", subpixel=False)
    assert (fine.points[-1] - truth(21, (0.3, 0.0))[-1]).norm(dim=-1).max() < 1.5
    assert (whole.points[-1, :, 0] - whole.points[0, :, 0]).abs().max() < 2.0  # of the true 6


def test_whole_pixels_of_direct_tracks_are_those_of_match_points() -> None:
    frames = [sliding(t) for t in range(4)]
    tracks = track_points(frames, POINTS, subpixel=False, cycle_tolerance=0.2)
    for t in (1, 2, 3):
        matches = match_points(frames[0], frames[t], POINTS, cycle=True)
        assert (tracks.points[t] == matches.target).all()
        assert tracks.score[t].tolist() == pytest.approx(matches.score.tolist(), abs=1e-5)
        assert (tracks.visible[t] == (matches.cycle_error <= 0.2 * STRIDE)).all()


def test_the_window_is_a_masked_argmax_around_the_last_place() -> None:
    rng = torch.Generator().manual_seed(3)
    frames = [
        FeatureMap(tokens=torch.randn(12 * 16, 16, generator=rng), grid=(12, 16), image_size=SIZE) for _ in range(4)
    ]
    tracks = track_points(frames, POINTS, mode="window", radius=1.5, subpixel=False)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    for i, point in enumerate(POINTS):
        here = torch.tensor(point)
        for t in (1, 2, 3):
            near = ((x - here[0]).abs() <= 1.5 * STRIDE) & ((y - here[1]).abs() <= 1.5 * STRIDE)
            best = similarity_map(frames[0], frames[t], point).masked_fill(~near, -2).argmax()
            here = torch.tensor([float(best % SIZE[1]), float(best // SIZE[1])])
            assert (tracks.points[t, i] == here).all()


def test_a_window_keeps_to_its_own_copy_of_a_pattern_that_repeats() -> None:
    """Four copies look alike: anywhere in the frame the first in raster order is as good, near the point it is not."""
    frames = [sliding(t, (1.6, 0.0), period=32.0) for t in range(10)]
    expected = truth(10, (1.6, 0.0))
    near = track_points(frames, POINTS, mode="window", radius=1.5)
    anywhere = track_points(frames, POINTS, mode="direct")
    assert (near.points - expected).norm(dim=-1).max() < 0.75
    assert (anywhere.points - expected).norm(dim=-1).max() > 25


def test_a_hidden_point_is_invisible_and_comes_back_but_not_to_a_chain() -> None:
    frames = [sliding(t, (0.0, 0.0)) for t in range(6)]
    for t in (2, 3):
        frames[t] = hidden(frames[t], slice(6, 9))  # x from 48 to 71: the second point
    direct = track_points(frames, POINTS)
    assert direct.visible[:, 1].tolist() == [True, True, False, False, True, True]
    assert direct.visible[:, 0].all()
    chained = track_points(frames, POINTS, mode="chained")
    assert chained.visible[:, 1].tolist() == [True, True, False, False, False, False]
    assert chained.visible[:, 0].all()


def test_points_may_be_arrays_tensors_or_lists_and_lie_on_the_border() -> None:
    frames = [sliding(t, (0.0, 0.0)) for t in range(2)]
    corners = [(0, 0), (127, 0), (0, 95), (127, 95)]
    for points in (corners, np.array(corners), torch.tensor(corners)):
        found = track_points(frames, points).points[1]
        assert ((found >= 0) & (found <= torch.tensor([127, 95]))).all()
        assert (found - torch.tensor(corners)).norm(dim=-1).max() < STRIDE


def test_many_points_are_worked_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [sliding(t) for t in range(3)]
    whole = track_points(frames, POINTS, mode="window")
    for name in ("_PIXELS_AT_ONCE", "_NUMBERS_AT_ONCE"):
        monkeypatch.setattr(f"ditf.video.track.{name}", 1)
    parts = track_points(frames, POINTS, mode="window")
    assert (parts.points - whole.points).abs().max() < 0.02  # a block rests when its own points do


def test_frames_are_asked_for_one_at_a_time_and_let_go() -> None:
    alive: list[weakref.ref] = []

    def frames():
        for t in range(8):
            features = sliding(t)
            alive.append(weakref.ref(features.tokens))
            yield features
            del features

    for asked, _ in enumerate(iter_tracks(frames(), POINTS, mode="chained"), 1):
        assert len(alive) == asked
        assert sum(ref() is not None for ref in alive) <= 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": []}, r"points: got none, expected at least one"),
        ({"points": [(128, 3)]}, r"points: got \(128.0, 3.0\), expected x in 0..127 and y in 0..95"),
        ({"points": [(-0.5, 3)]}, "expected x in 0..127"),
        ({"points": [(float("nan"), 3)]}, "finite numbers"),
        ({"points": [(1, 2, 3)]}, r"shape \(K, 2\)"),
        ({"mode": "flow"}, '"direct", "chained" or "window"'),
        ({"radius": 0}, "radius: got 0, expected a finite number of tokens above 0"),
        ({"cycle_tolerance": float("inf")}, "cycle_tolerance: got inf"),
        ({"frames": []}, "got no frames"),
        ({"frames": [sliding(0), "b.jpg"]}, "frame 1: got 'str', expected a FeatureMap"),
    ],
)
def test_what_cannot_be_tracked_is_refused(change: dict, words: str) -> None:
    arguments = {"frames": [sliding(0), sliding(1)], "points": POINTS, **change}
    with pytest.raises(InputError, match=words):
        track_points(arguments.pop("frames"), arguments.pop("points"), **arguments)


def test_a_frame_that_does_not_fit_is_named() -> None:
    other = FeatureMap(tokens=torch.zeros(4, 128), grid=(2, 2), image_size=SIZE)
    with pytest.raises(InputError, match="frame 1: got 'grid"):
        track_points([sliding(0), other], POINTS)


def test_tracks_say_what_they_are_and_become_plain_lists() -> None:
    tracks = ditf.Tracks(torch.zeros(2, 1, 2), torch.tensor([[True], [False]]), torch.tensor([[1.0], [torch.nan]]))
    assert repr(tracks) == "Tracks(1 points, 2 frames, 50% visible)"
    assert tracks.to_dict() == {
        "points": [[[0.0, 0.0]], [[0.0, 0.0]]],
        "visible": [[True], [False]],
        "score": [[1.0], [None]],
    }
