"""Points on their way through a video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..images import load_image
from .colors import PAPER, SOFT_INK, Color, viridis
from .layout import MARGIN, canvas_size, plan_panels, resized
from .overlay import Overlay

__all__ = ["draw_tracks"]


def draw_tracks(
    image: Any,
    points: Any,
    visible: Tensor | np.ndarray | None = None,
    *,
    frame: int = -1,
    tail: int = 12,
    caption: str | None = None,
    title: str | None = None,
    height: int = 440,
) -> Image.Image:
    """One frame with the points that are followed, and where they came from.

    A point that is not visible is a hollow ring, and its way is not drawn there. A point's colour says how far left or
    right it started, so that neighbours stay alike.

    Args:
        image: the frame's image.
        points: (T, K, 2) float (x, y) pixels, or what ``track_points`` gives.
        visible: (T, K) bool; default what the tracks say, else all.
        frame: which of the T frames the image is; -1 is the last.
        tail: how many frames back a point's way is drawn.
        caption: above the image; default "frame t of T".
        title: a line above everything.
        height: of the image in the picture.

    Raises:
        InputError: points or visibilities of another shape, a frame that is none of the T, a tail below 0.
    """
    shown = load_image(image)
    where, seen = _checked_tracks(points, visible)
    count = len(where)
    if not isinstance(frame, int) or not -count <= frame < count:
        raise InputError.of("frame", frame, f"one of the {count} frames, 0..{count - 1}, or -1 for the last")
    if not isinstance(tail, int) or tail < 0:
        raise InputError.of("tail", tail, "a number of frames of at least 0")
    now = frame % count
    panel = plan_panels([(shown.height, shown.width)], height=height, title=title is not None)[0]
    canvas = Image.new("RGB", canvas_size([panel]), PAPER)
    canvas.paste(resized(shown, panel), (panel.left, panel.top))
    overlay = Overlay(canvas.size)
    overlay.frame(panel)
    overlay.caption(panel, f"frame {now + 1} of {count}" if caption is None else caption)
    if title is not None:
        overlay.title(title)
    colors = _colors(where)
    for k, color in enumerate(colors):
        _draw_way(overlay, [panel.at(*p) for p in where[max(0, now - tail) : now + 1, k]], seen[:, k], now, color)
    radius = 4.5 if len(colors) <= 60 else 3.0
    for k, color in enumerate(colors):
        if np.isfinite(where[now, k]).all():
            (overlay.marker if seen[now, k] else overlay.ring)(panel.at(*where[now, k]), color, radius)
    hidden = int((~seen[now]).sum())
    note = f"{len(colors)} points" + (f", {hidden} not visible (rings)" if hidden else "")
    overlay.text((MARGIN, panel.box[3] + 16), note, 13, SOFT_INK, "lm", limit=canvas.width - 2 * MARGIN)
    return overlay.over(canvas)


def _draw_way(overlay: Overlay, places: list[tuple[float, float]], seen: np.ndarray, now: int, color: Color) -> None:
    """Fainter the longer ago; nothing where either end was not visible."""
    first = now - len(places) + 1
    for i in range(len(places) - 1):
        if seen[first + i] and seen[first + i + 1]:
            alpha = round(60 + 170 * (i + 1) / (len(places) - 1))
            overlay.stroke([places[i], places[i + 1]], color, 3.0, alpha)


def _colors(where: np.ndarray) -> list[Color]:
    start = where[0, :, 0]
    finite = start[np.isfinite(start)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    shares = np.nan_to_num((start - low) / max(high - low, 1e-9), nan=0.0)
    return [viridis(float(np.clip(share, 0.0, 1.0))) for share in shares]


def _checked_tracks(points: Any, visible: Any) -> tuple[np.ndarray, np.ndarray]:
    if hasattr(points, "points"):
        points, visible = points.points, points.visible if visible is None else visible
    where = torch.as_tensor(points).detach().cpu().double().numpy()
    if where.ndim != 3 or where.shape[2] != 2 or not len(where):
        raise InputError.of("points", f"shape {where.shape}", "shape (T, K, 2), at least one frame")
    finite = np.asarray(np.isfinite(where).all(-1))
    if visible is None:
        return where, finite
    seen = torch.as_tensor(visible).detach().cpu().numpy().astype(bool)
    if seen.shape != where.shape[:2]:
        raise InputError.of("visible", f"shape {seen.shape}", f"(T, K) of the points, {where.shape[:2]}")
    return where, seen & finite
