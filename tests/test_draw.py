"""Pictures: the points lie where they should, whatever the images' shapes."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditf.draw import draw_heat_map, draw_matches, plan_panels
from ditf.draw.colors import HUES, UNMATCHED
from ditf.errors import InputError
from ditf.types import Matches


def plain(width, height, color=(90, 90, 90)):
    return Image.new("RGB", (width, height), color)


def make(source, target, score=None, **options):
    score = [0.5] * len(source) if score is None else score
    rows = (torch.tensor(v, dtype=torch.float32) for v in (source, target, score))
    return Matches(*(row.reshape(-1, 2) if i < 2 else row for i, row in enumerate(rows)), **options)


def color_at(picture, panel, x, y):
    column, row = panel.at(x, y)
    return picture.getpixel((math.floor(column), math.floor(row)))


def drawn_panels(*images, **options):
    return plan_panels([(image.height, image.width) for image in images], **options)


def test_markers_lie_on_their_pixels_in_their_colours():
    a, b = plain(200, 100), plain(150, 180)
    source, target = [(20, 10), (150, 80), (199, 0)], [(140, 30), (40, 160), (0, 179)]
    picture = draw_matches(make(source, target), a, b)
    panels = drawn_panels(a, b)
    for i in range(3):
        assert color_at(picture, panels[0], *source[i]) == HUES[i]
        assert color_at(picture, panels[1], *target[i]) == HUES[i]


def test_marker_is_centred_to_half_a_pixel_of_the_picture():
    image = plain(100, 100)
    picture = np.asarray(draw_matches(make([(30, 60)], [(70, 20)]), image, image), np.int32)
    panel = drawn_panels(image, image)[0]
    x, y = panel.at(30, 60)
    near = (np.abs(picture - np.array(HUES[0])).sum(-1) < 12)[: int(y) + 12, : int(x) + 12]
    rows, columns = np.nonzero(near[int(y) - 5 :, int(x) - 5 :])  # the line and the tag have other shades or places
    assert abs(columns.mean() + int(x) - 5 + 0.5 - x) < 0.75
    assert abs(rows.mean() + int(y) - 5 + 0.5 - y) < 0.75


def test_pixel_centres_map_to_the_centre_of_their_area():
    panel = plan_panels([(10, 10)], height=400)[0]
    assert panel.at(0, 0) == (panel.left + panel.width / 20, panel.top + panel.height / 20)
    assert panel.at(9.5, 9.5) == (panel.left + panel.width, panel.top + panel.height)


def test_a_line_joins_the_two_points():
    image = plain(100, 100)
    picture = draw_matches(make([(90, 50)], [(10, 50)]), image, image)
    first, second = drawn_panels(image, image)
    middle = ((first.at(90, 50)[0] + second.at(10, 50)[0]) / 2, first.at(90, 50)[1])
    red, green, blue = picture.getpixel((round(middle[0]), math.floor(middle[1])))
    assert red > green > blue
    assert red - blue > 80  # the first hue is orange


def test_a_match_that_does_not_lead_back_has_a_faint_line():
    image = plain(100, 100)
    found = make([(90, 30), (90, 60)], [(10, 30), (10, 60)])
    matches = Matches(found.source, found.target, found.score, cycle_error=torch.tensor([1.0, 40.0]))
    panels = drawn_panels(image, image)
    picture = np.asarray(draw_matches(matches, image, image), np.int32)
    between = round((panels[0].box[2] + panels[1].left) / 2)  # white paper
    ink = [(255 - picture[round(panels[0].at(0, y)[1]) - 4 :, between][:8]).sum() for y in (30, 60)]
    assert ink[0] > 3 * ink[1] > 0
    certain = draw_matches(matches, image, image, cycle_tolerance=50)
    assert certain.tobytes() != draw_matches(matches, image, image).tobytes()


def test_equal_inputs_give_equal_pixels():
    image = plain(64, 48)
    heat = torch.linspace(0, 1, 64 * 48).view(48, 64)
    pictures = [draw_matches(make([(5, 5)], [(60, 40)]), image, image, heat_map=heat) for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (2, 3000), (20000, 2), (30, 400)])
@pytest.mark.parametrize("heat", [False, True])
def test_any_shape_gives_a_readable_picture(size, heat):
    image, other = plain(*size), plain(120, 90)
    corner = (size[0] - 1, size[1] - 1)
    for source, target, a, b in (((0, 0), corner, other, image), (corner, (0, 0), image, other)):
        values = torch.rand(b.height, b.width) if heat else None
        picture = draw_matches(make([source], [target]), a, b, heat_map=values)
        assert 200 <= picture.width <= 1700
        assert 200 <= picture.height <= 560
        panels = drawn_panels(a, b, *([b] if heat else []))
        assert color_at(picture, panels[0], *source) == HUES[0]
        assert all(panel.width >= 40 and panel.height >= 40 for panel in panels)


def test_panels_do_not_overlap_and_share_a_height():
    panels = plan_panels([(375, 500), (500, 375), (375, 500)], title=True)
    assert len({panel.height for panel in panels}) == 1
    assert all(a.left + a.width < b.left for a, b in itertools.pairwise(panels))


def test_a_point_without_a_match_is_grey_and_has_no_line():
    image = plain(100, 100)
    picture = draw_matches(make([(20, 50)], [(-1, -1)], [math.nan]), image, image)
    first, second = drawn_panels(image, image)
    assert color_at(picture, first, 20, 50) == UNMATCHED
    assert color_at(picture, first, 60, 50) == (90, 90, 90)
    inside = picture.crop([round(v) for v in (second.left + 2, second.top + 2, *(e - 2 for e in second.box[2:]))])
    assert inside.getcolors() == [(inside.width * inside.height, (90, 90, 90))]


def test_a_score_that_is_not_a_number_does_not_disturb_the_colour_bar():
    image = plain(100, 100)
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 99, (20, 2)).tolist()
    scores = [math.nan, *np.linspace(0.2, 0.9, 19).tolist()]
    picture = draw_matches(make(points, points, scores), image, image)
    panel = drawn_panels(image, image)[0]
    assert color_at(picture, panel, *points[19]) == (253, 231, 37)  # the best score is the last colour of viridis


def test_no_points_at_all_still_draw():
    image = plain(50, 40)
    assert (
        draw_matches(make([], [], []), image, image).size == draw_matches(make([(1, 1)], [(1, 1)]), image, image).size
    )


@pytest.mark.parametrize("count", [1, 12, 40, 300])
def test_tags_leave_most_of_the_picture_visible(count):
    image = plain(300, 200)
    rng = np.random.default_rng(count)
    points = rng.uniform(0, [299, 199], (count, 2)).tolist()
    picture = draw_matches(make(points, points), image, image, color_by="point")
    panel = drawn_panels(image, image)[0]
    inside = np.asarray(picture.crop([round(v) for v in panel.box]))
    untouched = (np.abs(inside.astype(int) - 90).max(-1) == 0).mean()
    assert untouched > (0.5 if count <= 40 else 0.4)


def test_the_heat_map_is_brightest_at_its_largest_value():
    image = plain(80, 60)
    heat = torch.full((60, 80), 0.1)
    heat[40:44, 20:24] = 0.9
    picture = draw_matches(make([(5, 5)], [(70, 10)]), image, image, heat_map=heat)
    panel = drawn_panels(image, image, image)[2]
    assert sum(color_at(picture, panel, 22, 42)) > 400 > 200 > sum(color_at(picture, panel, 50, 20))


def test_a_heat_map_keeps_undefined_pixels_grey_and_marks_its_point():
    image = plain(80, 60, (200, 30, 30))
    heat = torch.rand(60, 80)
    heat[:30] = math.nan
    picture = draw_heat_map(image, heat, point=(40, 50))
    panel = drawn_panels(image)[0]
    red, green, blue = color_at(picture, panel, 40, 10)
    assert red == green == blue
    assert color_at(picture, panel, 40, 50) == HUES[1]


@pytest.mark.parametrize("fill", [0.3, math.nan])
def test_a_constant_or_undefined_heat_map_draws(fill):
    assert draw_heat_map(plain(40, 30), torch.full((30, 40), fill)).width > 100


def test_numpy_heat_maps_and_other_letters_in_captions_draw():
    image = plain(40, 30)
    draw_matches(
        make([(1, 1)], [(2, 2)]), image, image, heat_map=np.zeros((30, 40)), captions=("été", "猫"), title="→" * 500
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, a, b: draw_matches(m, b, a), "matched"),
        (lambda m, a, b: draw_matches(m, a, b, heat_map=torch.zeros(3, 3)), "heat_map"),
        (lambda m, a, b: draw_matches(m, a, b, heat_map=torch.zeros(30, 50), heat_point=1), "heat_point"),
        (lambda m, a, b: draw_matches(m, a, b, color_by="hue"), "color_by"),
        (lambda m, a, b: draw_matches(m, a, b, height=0), "height"),
        (lambda m, a, b: draw_matches(make([(50, 1)], [(1, 1)]), a, b), "source point 1"),
        (lambda m, a, b: draw_matches(make([(1, 1)], [(1, 30)]), a, b), "target point 1"),
        (lambda m, a, b: draw_heat_map(a, torch.zeros(40, 30), point=(0, 99)), "point"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, words):
    a, b = plain(30, 40), plain(50, 30)
    matches = make([(1, 1)], [(1, 1)], source_size=(40, 30), target_size=(30, 50))
    with pytest.raises(InputError, match=words):
        call(matches, a, b)


def test_matches_draw_themselves():
    image = plain(30, 40)
    matches = make([(1, 1)], [(1, 1)])
    assert (
        matches.draw(image, image, title="one").tobytes() == draw_matches(matches, image, image, title="one").tobytes()
    )
