"""Pictures of flow: the colours are those of the wheel, by formula."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditf.draw import draw_flow, plan_panels
from ditf.draw.flow import flow_colors
from ditf.errors import InputError

# Corners of the wheel of 55 steps, clockwise on the screen from the right.
CORNERS = {0: (255, 0, 0), 15: (255, 255, 0), 21: (0, 255, 0), 25: (0, 255, 255), 36: (0, 0, 255), 49: (255, 0, 255)}


def direction(step, length=1.0):
    angle = 2 * math.pi * step / 55
    return np.array([[[length * math.cos(angle), length * math.sin(angle)]]])


@pytest.mark.parametrize(("step", "color"), CORNERS.items())
def test_the_corners_of_the_wheel_have_pure_colours(step, color):
    np.testing.assert_allclose(flow_colors(direction(step), 1.0)[0, 0], color, atol=1e-6)


@pytest.mark.parametrize("step", [0, 7.5, 23, 40])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shorter_displacements_are_paler_in_proportion(step, share):
    rim = flow_colors(direction(step), 1.0)[0, 0]
    np.testing.assert_allclose(flow_colors(direction(step, 8 * share), 8.0)[0, 0], 255 - share * (255 - rim), atol=1e-6)


def test_between_corners_the_hue_is_a_straight_line():
    np.testing.assert_allclose(flow_colors(direction(30.5), 1.0)[0, 0], (0, 127.5, 255), atol=1e-6)


def test_longer_than_the_limit_is_darkened_and_not_finite_is_grey():
    np.testing.assert_allclose(flow_colors(direction(0, 3.0), 1.0)[0, 0], (191.25, 0, 0), atol=1e-6)
    assert flow_colors(np.full((1, 1, 2), math.nan), 1.0)[0, 0].tolist() == [150, 152, 158]


def test_a_coarse_flow_lies_over_its_image():
    flow = torch.zeros(2, 4, 2)
    flow[0, 3] = torch.tensor([5.0, 0.0])  # the top right cell moves right
    image = Image.new("RGB", (80, 40), (90, 90, 90))
    picture = draw_flow(flow, image=image, limit=5.0)
    panels = plan_panels([(40, 80)] * 2)
    for (x, y), color in {(70, 5): (255, 0, 0), (55, 5): (255, 255, 255), (70, 30): (255, 255, 255)}.items():
        column, row = panels[1].at(x, y)
        assert picture.getpixel((int(column), int(row))) == color
    assert picture.getpixel((int(panels[0].at(5, 5)[0]), int(panels[0].at(5, 5)[1]))) == (90, 90, 90)


def test_by_default_a_few_wild_displacements_do_not_pale_the_rest():
    flow = np.zeros((10, 10, 2))
    flow[..., 0] = 4.0
    flow[0, 0] = 400.0
    picture = draw_flow(flow)
    panel = plan_panels([(10, 10)])[0]
    x, y = panel.at(5, 5)
    assert picture.getpixel((int(x), int(y))) == (255, 0, 0)


def test_anything_with_a_flow_draws_and_equal_flows_give_equal_pixels():
    class Dense:
        flow = torch.rand(3, 5, 2)

    assert draw_flow(Dense()).tobytes() == draw_flow(Dense.flow.numpy(), title=None).tobytes()
    for fill in (0.0, math.nan):
        assert draw_flow(np.full((4, 4, 2), fill), title="still").width > 200


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw_flow(np.zeros((4, 4))), "flow"),
        (lambda: draw_flow(np.zeros((4, 4, 3))), "flow"),
        (lambda: draw_flow(np.zeros((4, 4, 2)), limit=0), "limit"),
        (lambda: draw_flow(np.zeros((4, 4, 2)), limit=math.inf), "limit"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
