"""Pictures of videos: masks, tracks and animations."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditf.draw import draw_masks, draw_tracks, plan_panels, save_gif
from ditf.draw.board import label_color
from ditf.errors import InputError, StoreError

GREY = Image.new("RGB", (120, 80), (90, 90, 90))
PANEL = plan_panels([(80, 120)])[0]


def color_at(picture, x, y):
    column, row = PANEL.at(x, y)
    return picture.getpixel((math.floor(column), math.floor(row)))


# Masks


def test_masks_are_blended_and_the_background_stays():
    labels = torch.zeros(80, 120, dtype=torch.long)
    labels[20:60, 10:50] = 1
    labels[20:60, 50:90] = 7
    picture = draw_masks(GREY, labels, opacity=0.5)
    for x, number in ((30, 1), (70, 7)):
        assert color_at(picture, x, 40) == tuple(round(0.5 * 90 + 0.5 * c) for c in label_color(number))
    assert color_at(picture, 105, 40) == (90, 90, 90)
    assert (
        draw_masks(GREY, labels, opacity=0).tobytes() != draw_masks(GREY, labels * 0, opacity=0).tobytes()
    )  # outlines


def test_a_bool_mask_is_one_object_and_an_empty_one_changes_nothing_inside():
    inside = np.zeros((80, 120), bool)
    inside[:40] = True
    assert color_at(draw_masks(GREY, inside, opacity=1.0), 60, 20) == label_color(1)
    plain = draw_masks(GREY, ~np.ones((80, 120), bool))
    assert all(color_at(plain, x, y) == (90, 90, 90) for x in (5, 60, 115) for y in (5, 75))


def test_names_belong_to_the_labels_that_occur():
    labels = np.zeros((80, 120), np.uint8)
    labels[:20] = 3
    named = draw_masks(GREY, labels, names=["a", "b", "third"])
    other = draw_masks(GREY, labels, names=["x", "y", "third"])
    assert named.tobytes() == other.tobytes()
    assert named.tobytes() != draw_masks(GREY, labels, names=["a", "b", "c"]).tobytes()


# Tracks


def moving(frames=6):
    start = np.array([[20.0, 20], [60, 40], [100, 60]])
    return start + np.arange(frames)[:, None, None] * np.array([3.0, 1.0])


def test_points_lie_on_their_pixels_and_colours_go_from_left_to_right():
    points = moving()
    picture = draw_tracks(GREY, points, frame=4)
    for k, color in enumerate([(68, 1, 84), (33, 145, 140), (253, 231, 37)]):  # the ends and the middle of viridis
        assert np.abs(np.subtract(color_at(picture, *points[4, k]), color)).max() <= 3


def test_a_hidden_point_is_hollow_and_has_no_way_where_it_was_not_seen():
    points, visible = moving(), np.ones((6, 3), bool)
    visible[3:, 1] = False
    picture = draw_tracks(GREY, points, visible, frame=5)
    assert color_at(picture, *points[5, 1]) == (90, 90, 90)
    assert color_at(picture, *((points[3, 1] + points[4, 1]) / 2)) == (90, 90, 90)
    assert color_at(picture, *((points[3, 2] + points[4, 2]) / 2)) != (90, 90, 90)
    assert color_at(picture, *((points[1, 1] + points[2, 1]) / 2)) != (90, 90, 90)


def test_the_tail_goes_no_further_back_than_asked():
    points = moving()
    picture = draw_tracks(GREY, torch.from_numpy(points), tail=1)
    assert color_at(picture, *((points[1, 0] + points[2, 0]) / 2)) == (90, 90, 90)
    assert (
        draw_tracks(GREY, points, tail=0).tobytes() == draw_tracks(GREY, points[-1:], caption="frame 6 of 6").tobytes()
    )


def test_whatever_has_points_and_visibility_draws():
    class Followed:
        points, visible = torch.from_numpy(moving()), torch.ones(6, 3, dtype=torch.bool)

    lost = moving()
    lost[2, 1] = math.nan
    assert draw_tracks(GREY, Followed()).tobytes() == draw_tracks(GREY, moving()).tobytes()
    assert draw_tracks(GREY, lost, frame=2).width > 100
    assert draw_tracks(GREY, np.zeros((3, 0, 2))).width > 100


# Animations


def test_a_gif_has_all_frames_in_their_colours_at_its_speed(tmp_path):
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    path = save_gif([Image.new("RGB", (40, 30), c) for c in colors], tmp_path / "a.gif", frames_per_second=4)
    with Image.open(path) as gif:
        assert gif.n_frames == 3
        assert gif.info["loop"] == 0
        for i, color in enumerate(colors):
            gif.seek(i)
            assert gif.info["duration"] == 250
            assert np.abs(np.asarray(gif.convert("RGB"), int) - color).max() <= 4
    again = save_gif(
        [np.asarray(Image.new("RGB", (40, 30), c)) for c in colors], tmp_path / "b.gif", frames_per_second=4
    )
    assert again.read_bytes() == path.read_bytes()
    once = save_gif([GREY, GREY.rotate(180)], tmp_path / "c.gif", loop=False)
    with Image.open(once) as gif:
        assert "loop" not in gif.info


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw_masks(GREY, np.zeros((3, 3), int)), "labels"),
        (lambda: draw_masks(GREY, np.zeros((80, 120))), "argmax"),
        (lambda: draw_masks(GREY, np.full((80, 120), -1)), "at least 0"),
        (lambda: draw_masks(GREY, np.ones((80, 120), int), opacity=-1), "opacity"),
        (lambda: draw_masks(GREY, np.full((80, 120), 2), names=["one"]), "names"),
        (lambda: draw_tracks(GREY, np.zeros((3, 2))), "points"),
        (lambda: draw_tracks(GREY, moving(), np.ones((6, 2), bool)), "visible"),
        (lambda: draw_tracks(GREY, moving(), frame=6), "frame"),
        (lambda: draw_tracks(GREY, moving(), tail=-1), "tail"),
        (lambda: save_gif([], "a.gif"), "frames"),
        (lambda: save_gif([GREY], "a.png"), "gif"),
        (lambda: save_gif([GREY, GREY.resize((9, 9))], "a.gif"), r"frames\[1\]"),
        (lambda: save_gif([GREY], "a.gif", frames_per_second=0), "frames_per_second"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_gif_into_no_folder_is_refused(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        save_gif([GREY], tmp_path / "missing" / "a.gif")
