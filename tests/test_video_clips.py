"""The clips that know their truth, and how far features carry a mask through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditf import FeatureExtractor, FeatureMap, InputError
from ditf.benchmarks.clips import make_clip, oracle_features, true_tracks
from ditf.benchmarks.propagation import HELD_OUT, PATCHES, TUNING, propagation_table, table_lines
from ditf.benchmarks.rivals import patch_tokens
from ditf.benchmarks.tracking import tracking_table
from ditf.tiny.scenes import HELD_OUT_KINDS, HELD_OUT_STYLES


def test_a_clip_is_the_same_for_its_seed_whatever_its_length() -> None:
    short, long = make_clip(5, 2), make_clip(5, 1000)
    for t in (0, 1):
        assert (short[t].pixels == long[t].pixels).all()
        assert (short[t].mask == long[t].mask).all()
    assert (make_clip(6, 2)[0].pixels != short[0].pixels).mean() > 0.9
    assert (long[999].mask > 0).mean() > 0.02


def test_both_things_are_whole_in_the_first_frame_of_the_clips_in_use() -> None:
    for seed in (*TUNING, *HELD_OUT):
        counts = np.bincount(make_clip(seed)[0].mask.ravel(), minlength=3)
        assert len(counts) == 3
        assert counts[1:].min() > 300


def test_the_place_of_a_pixel_leads_to_the_same_colour_in_another_frame() -> None:
    """Pixels of one thing in frame 9, looked up where frame 0 has the same place: alike, and less so a pixel aside."""
    clip = make_clip(11)
    first, later = clip[0], clip[9]
    for number in (1, 2):
        ys, xs = np.nonzero(first.mask == number)
        known = torch.from_numpy(first.place[ys, xs])
        rows, columns = np.nonzero(later.mask == number)
        errors = []
        for shift in ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0)):
            wanted = torch.from_numpy(later.place[rows, columns]) + torch.tensor(shift)
            apart, nearest = torch.cdist(wanted, known).min(1)
            good = (apart < 0.8).numpy()
            assert good.sum() > 150
            a = first.pixels[ys[nearest[good]], xs[nearest[good]]].astype(float)
            errors.append(np.abs(a - later.pixels[rows[good], columns[good]]).mean())
        assert errors[0] < 0.7 * min(errors[1:])


def test_oracle_features_tell_places_apart() -> None:
    frame = make_clip(11)[0]
    features = oracle_features(frame, (30, 40), channels=2048)
    unit = torch.nn.functional.normalize(features.tokens, dim=-1)
    number = torch.from_numpy(frame.mask[2::4, 2::4].ravel().astype(np.int64))
    place = torch.from_numpy(frame.place[2::4, 2::4].reshape(-1, 2))
    expected = (-0.5 * (torch.cdist(place, place) / 8) ** 2).exp() * (number[:, None] == number)
    assert (unit @ unit.T - expected).abs().max() < 0.15
    assert (unit @ unit.T - expected).abs().mean() < 0.03


def test_features_of_ditf_tiny_carry_a_mask_ten_points_further_than_copying_it() -> None:
    extractor = FeatureExtractor.from_pretrained("ditf-tiny", task="temporal", size=96)
    rows = propagation_table(extractor, HELD_OUT[:1], length=12, patches=(9,))
    scores = {row.method: row.j_and_f for row in rows}
    assert list(scores) == ["first mask copied", "pixel patches, 9 px", "ditf-tiny", "oracle", "ceiling"]
    assert scores["first mask copied"] < 50
    assert scores["oracle"] >= scores["ceiling"] - 1
    assert scores["ditf-tiny"] >= scores["first mask copied"] + 10
    assert len(table_lines(rows)) == 6


def test_true_tracks_keep_to_their_place_and_end_where_it_is_hidden() -> None:
    frames = list(make_clip(3, 40))[::3]
    y, x = np.nonzero(frames[0].mask)
    points = np.stack([x, y], 1)[::97].astype(float)
    tracks = true_tracks(frames, points)
    assert (tracks[0] == points).all()
    hidden = np.isnan(tracks[..., 0])
    assert 0 < hidden.mean() < 0.5
    for t, k in zip(*np.nonzero(~hidden), strict=True):
        (x0, y0), (x1, y1) = points[k].astype(int), tracks[t, k].astype(int)
        assert frames[t].mask[y1, x1] == frames[0].mask[y0, x0]
        assert np.linalg.norm(frames[t].place[y1, x1] - frames[0].place[y0, x0]) < 1
    t, k = np.argwhere(hidden)[0]
    x0, y0 = points[k].astype(int)
    apart = np.linalg.norm(frames[t].place - frames[0].place[y0, x0], axis=-1)
    assert apart[frames[t].mask == frames[0].mask[y0, x0]].min() >= 1


def test_tracks_of_the_oracle_find_most_points_and_those_that_stay_few() -> None:
    def patches(pixels):
        return FeatureMap(patch_tokens(pixels, PATCHES[0], 4), (30, 40), (120, 160))

    rows = {row.method: row for row in tracking_table(patches, HELD_OUT[:1], length=6)}
    assert len(rows) == 10
    assert rows["points that stay"].within < 30
    assert rows["oracle, direct"].within > 80
    assert rows["oracle, direct"].visibility > 90


@pytest.mark.parametrize("style", HELD_OUT_STYLES)
def test_a_clip_of_held_out_kinds_moves_alike_in_every_style(style: str) -> None:
    plain, drawn = (make_clip(3, 9, kinds=tuple(HELD_OUT_KINDS), style=name)[8] for name in ("flat", style))
    assert (plain.mask == drawn.mask).all()
    assert (plain.place == drawn.place).all()
    assert (plain.pixels != drawn.pixels).mean() > 0.5
    assert (plain.mask != make_clip(3, 9)[8].mask).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length": 1}, "length: got 1"),
        ({"size": (8, 99)}, "at least 16 pixels"),
        ({"things": 0}, "things: got 0"),
        ({"kinds": ("dragon",)}, "kinds: got .*dragon"),
        ({"style": "oil"}, "style: got 'oil'"),
    ],
)
def test_clips_that_cannot_be_drawn_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_clip(0, **arguments)
