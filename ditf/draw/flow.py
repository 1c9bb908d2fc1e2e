"""Optical flow as colours: the direction is the hue, the length the saturation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from .colors import PAPER, SOFT_INK, UNMATCHED
from .layout import MARGIN, canvas_size, plan_panels, resized
from .overlay import FINE, Overlay

__all__ = ["draw_flow", "flow_colors"]

_WHEEL = 132  # pixels across
_SHARE = 0.95  # of the displacements, inside the wheel: a few wrong ones would pale all others
# Steps of the wheel between red, yellow, green, cyan, blue and magenta: fewer where the eye tells less apart.
_STEPS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0))


def draw_flow(
    flow: Any,
    *,
    image: Any = None,
    limit: float | None = None,
    title: str | None = None,
    captions: tuple[str, str] = ("source", "flow to the target"),
    height: int = 440,
) -> Image.Image:
    """A flow field in the colours of the Middlebury benchmark, beside its wheel.

    Args:
        flow: (h, w, 2) displacements (x, y) in pixels, or anything that has them as ``.flow``; what is not finite is
            grey.
        image: the image that flows, shown beside it; (h, w) may be coarser than its pixels.
        limit: the length in pixels of full saturation; longer ones are darkened. Default: 95% are not longer.
        title: a line above everything.
        captions: above the image and the flow.
        height: of the images in the picture.

    Raises:
        InputError: a flow of another shape, a limit that is none.
    """
    field = _checked_flow(getattr(flow, "flow", flow))
    limit = _checked_limit(limit, field)
    shown = Image.fromarray(np.rint(flow_colors(field, limit)).astype(np.uint8))
    images = [shown] if image is None else [load_image(image), shown]
    sizes = [(images[0].height, images[0].width)] * len(images)  # the flow is of the image, however coarse
    panels = plan_panels(sizes, height=height, title=title is not None)
    width, tall = canvas_size(panels)
    canvas = Image.new("RGB", (width + _WHEEL + MARGIN, tall), PAPER)
    overlay = Overlay(canvas.size)
    for one, panel, caption in zip(images, panels, captions[-len(images) :], strict=True):
        exact = one.resize((panel.width, panel.height), Image.Resampling.NEAREST) if one is shown else None
        canvas.paste(exact or resized(one, panel), (panel.left, panel.top))
        overlay.frame(panel)
        overlay.caption(panel, caption)
    if title is not None:
        overlay.title(title)
    middle = width + _WHEEL / 2, (panels[0].box[1] + panels[0].box[3]) / 2
    overlay.image.paste(_wheel(), (round((middle[0] - _WHEEL / 2) * FINE), round((middle[1] - _WHEEL / 2) * FINE)))
    overlay.text((middle[0], middle[1] + _WHEEL / 2 + 14), f"rim: {limit:.3g} px", 13, SOFT_INK, "mm")
    if bool((np.hypot(field[..., 0], field[..., 1]) > limit).any()):
        overlay.text((middle[0], middle[1] + _WHEEL / 2 + 32), "longer: darker", 13, SOFT_INK, "mm")
    return overlay.over(canvas)


def flow_colors(flow: np.ndarray, limit: float) -> np.ndarray:
    """(h, w, 3) float colours 0..255 of displacements (h, w, 2), after the Middlebury benchmark.

    No motion is white, ``limit`` pixels to the right are red, down yellow-green, left cyan-blue, up violet; between
    the centre and the rim colours mix with white, beyond the rim they are darkened to three quarters. Baker et al., "A
    Database and Evaluation Methodology for Optical Flow", IJCV 2011.
    """
    finite = np.isfinite(flow).all(-1, keepdims=True)  # (h, w, 1)
    x, y = np.where(finite, flow, 0.0).astype(np.float64).transpose(2, 0, 1) / limit
    radius = np.hypot(x, y)[..., None]
    corners = np.cumsum((0, *_STEPS)) / sum(_STEPS)
    turn = np.arctan2(y, x) / (2 * math.pi) % 1.0  # clockwise on the screen, from the right
    hue = np.stack([np.interp(turn, corners, [c[i] for c in _CORNERS]) for i in range(3)], axis=-1)
    inside = 255.0 - np.minimum(radius, 1.0) * (255.0 - hue)
    colors = np.where(radius <= 1.0 + 1e-9, inside, 0.75 * hue)
    return np.where(finite, colors, np.array(UNMATCHED, np.float64))


def _wheel() -> Image.Image:
    """All directions and lengths up to the rim, transparent outside."""
    side = _WHEEL * FINE
    y, x = (np.mgrid[:side, :side] + 0.5) * (2 / side) - 1.0
    flow = np.stack([x, y], -1)
    inside = np.hypot(x, y) <= 1.0
    colors = np.rint(flow_colors(flow, 1.0)).astype(np.uint8)
    return Image.fromarray(np.dstack([colors, np.where(inside, 255, 0).astype(np.uint8)]), "RGBA")


def _checked_flow(flow: Any) -> np.ndarray:
    values = flow.detach().cpu().float().numpy() if isinstance(flow, Tensor) else np.asarray(flow, np.float32)
    if values.ndim != 3 or values.shape[2] != 2 or 0 in values.shape:
        raise InputError.of("flow", f"shape {values.shape}", "shape (h, w, 2): displacements (x, y) in pixels")
    return values


def _checked_limit(limit: float | None, flow: np.ndarray) -> float:
    if limit is not None and not 0 < limit < math.inf:
        raise InputError.of("limit", limit, "a number of pixels above 0, or None")
    if limit is not None:
        return float(limit)
    lengths = np.hypot(flow[..., 0], flow[..., 1])
    finite = lengths[np.isfinite(lengths)]
    return (float(np.quantile(finite, _SHARE)) or float(finite.max())) or 1.0 if finite.size else 1.0
