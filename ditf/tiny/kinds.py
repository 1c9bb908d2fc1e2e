"""The kinds of things that scenes show: each a random drawing of flat parts, with named points on its parts.

A kind is drawn facing right in its own units (about 2 across), x to the right and y down. Parts are listed back to
front. The names of the points are shared by all instances of a kind: that is what "the same part" means here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .held_out_kinds import HELD_OUT_KINDS
from .shapes import Coat, Drawing, Frame, Part, bright, drawing, ellipse, eye_parts, hsv, limb

__all__ = ["ALL_KINDS", "HELD_OUT_KINDS", "KINDS", "Drawing", "Part", "hsv"]


def _quadruped(random: np.random.Generator) -> Drawing:
    """Dog, horse, giraffe: everything on four legs."""
    uniform, coat, accent = random.uniform, Coat(random), bright(random, 0.2, 0.3)
    length, height = uniform(0.45, 0.65), uniform(0.18, 0.29)
    leg, thick = uniform(0.25, 0.55), uniform(0.05, 0.085)
    neck_length, neck_angle = uniform(0.1, 0.6), uniform(0.35, 1.25)
    body = coat.shade()
    neck = np.array([length * 0.78, -height * 0.25])
    head_length = uniform(0.15, 0.22)
    head_radii = head_length, head_length * uniform(0.65, 0.85)
    snout, head_angle = uniform(0.1, 0.22), uniform(-0.15, 0.35)
    along_neck = neck_length * np.array([np.cos(neck_angle), -np.sin(neck_angle)])
    head = Frame(neck + along_neck + [0.1, -0.05], head_radii, head_angle)
    tail_base = np.array([-length * 0.96, -height * 0.25])
    tail_angle, tail_length = uniform(-0.9, 1.0), uniform(0.25, 0.5)
    tail_tip = tail_base - tail_length * np.array([np.cos(tail_angle), np.sin(tail_angle)])
    legs, foot = coat.shade(), hsv(random.random(), uniform(0, 0.4), uniform(0.05, 0.3))
    ear = accent if random.random() < 0.5 else body * uniform(0.5, 0.8)

    parts: list[Part] = []
    for side in (1, -1):  # the far legs, darker
        hip = np.array([side * length * 0.68 + uniform(-0.03, 0.03), height * 0.2])
        paw = np.array([hip[0] + uniform(-0.16, 0.16), height * 0.6 + leg])
        parts.append(Part(limb(hip, paw, thick * 1.2, thick * 0.8), legs * 0.6))
        parts.append(Part(ellipse(paw + [0.02, 0], (thick * 1.1, thick * 0.7)), foot * 0.7))
    parts.append(Part(limb(tail_base, tail_tip, 0.05, 0.03), coat.shade()))
    parts.append(Part(ellipse(tail_tip, (0.06, 0.06)), accent))
    parts.append(Part(limb(neck, head.centre, height * 0.75, head_radii[1] * 0.75), body))
    parts.append(Part(ellipse((0, 0), (length, height)), body, textured=True))
    parts.append(Part(ellipse((0, height * 0.55), (length * 0.7, height * 0.35)), body * 1.25 + 0.08))
    feet = {}
    for side, name in ((1, "front"), (-1, "hind")):  # the near legs
        hip = np.array([side * length * 0.68 + uniform(-0.03, 0.03), height * 0.3])
        paw = np.array([hip[0] + uniform(-0.16, 0.16), height * 0.75 + leg])
        parts.append(Part(limb(hip, paw, thick * 1.3, thick * 0.85), legs))
        parts.append(Part(ellipse(paw + [0.02, 0], (thick * 1.2, thick * 0.8)), foot))
        feet |= {f"{name} foot": paw, f"{name} knee": hip * 0.45 + paw * 0.55}
    ear_tip = head.at(-0.75, -1.0) - [0, uniform(0.08, 0.22)]
    parts.append(Part(np.array([head.at(-0.85, -0.3), head.at(-0.1, -0.75), ear_tip]), ear))
    parts.append(Part(head.outline, body, textured=True))
    nose = head.at(0.8, 0.3) + head.turned(snout, 0)
    muzzle = ellipse((head.at(0.75, 0.25) + nose) / 2, (snout * 0.6 + 0.04, head_radii[1] * 0.5), head.axes)
    parts.append(Part(muzzle, body * 1.2 + 0.05))
    parts.append(Part(ellipse(nose, (0.045, 0.045)), np.array([0.08, 0.05, 0.06])))
    eye = head.at(0.2, -0.25)
    parts += eye_parts(eye, 0.055)
    keypoints = {
        **feet, "eye": eye, "nose": nose, "ear": head.at(-0.6, -1.1), "withers": [length * 0.6, -height * 0.72],
        "back": [0, -height * 0.9], "belly": [0, height * 0.8], "tail base": tail_base, "tail tip": tail_tip,
        "chest": [length * 0.85, height * 0.3],
    }  # fmt: skip
    return drawing(parts, keypoints)


def _bird(random: np.random.Generator) -> Drawing:
    uniform, coat, accent = random.uniform, Coat(random), bright(random, 0.2, 0.3)
    body = Frame((0, 0), (uniform(0.42, 0.55), uniform(0.24, 0.34)), -uniform(0.05, 0.45))
    length, height = body.radii
    plumage = coat.shade()
    head_radius = uniform(0.16, 0.23)
    head = body.at(0.85, -0.55) + [uniform(0, 0.08), -head_radius * uniform(0.4, 1.0)]
    beak_length, beak_drop = uniform(0.14, 0.3), uniform(-0.15, 0.25)
    beak_colour = hsv(uniform(0.02, 0.14), uniform(0.6, 1), uniform(0.7, 1))
    tail_length, tail_width = uniform(0.25, 0.5), uniform(0.06, 0.16)
    tail_base = body.at(-1, 0)
    tail_tip = tail_base + body.turned(-tail_length, uniform(-0.05, 0.1))
    leg_length, leg_colour = uniform(0.25, 0.45), beak_colour * uniform(0.7, 1.0)

    parts: list[Part] = []
    feet = {}
    for x, shade, name in ((0.05, 0.65, "far foot"), (-0.1, 1.0, "near foot")):
        hip = np.array([x + 0.03, height * 0.7])
        foot = np.array([x + uniform(-0.05, 0.12), height + leg_length])
        parts.append(Part(limb(hip, foot, 0.03, 0.025), leg_colour * shade))
        parts.append(Part(limb(foot, foot + [0.13, 0.01], 0.03, 0.02), leg_colour * shade))
        feet[name] = foot
    across = np.array([(tail_tip - tail_base)[1], -(tail_tip - tail_base)[0]]) / np.linalg.norm(tail_tip - tail_base)
    near, far = across * 0.05, across * tail_width
    tail = [tail_base + near, tail_tip + far, tail_tip - far, tail_base - near]
    parts.append(Part(np.array(tail), coat.shade() * 0.8))
    parts.append(Part(limb(body.at(0.55, -0.2), head, height * 0.7, head_radius * 0.8), plumage))
    parts.append(Part(body.outline, plumage, textured=True))
    parts.append(Part(body.ellipse(0.45, 0.35, (length * 0.42, height * 0.5)), plumage * 1.2 + 0.15))
    wing_length = uniform(0.28, 0.4)
    wing_root = body.at(0.35, -0.2)
    wing_tip = wing_root + body.turned(-wing_length * 1.6, uniform(-0.1, 0.15))
    down, middle = body.turned(0, height), (wing_root + wing_tip) / 2
    wing = [wing_root - down * 0.3, wing_root + down * 0.3, middle + down * 0.45, wing_tip, middle - down * 0.25]
    parts.append(Part(np.array(wing), accent, textured=True))
    beak_tip = head + [head_radius * 0.8 + beak_length, beak_length * np.sin(beak_drop)]
    beak = [head + [head_radius * 0.7, -head_radius * 0.4], beak_tip, head + [head_radius * 0.7, head_radius * 0.4]]
    parts.append(Part(np.array(beak), beak_colour))
    head_colour = plumage if random.random() < 0.5 else coat.shade(0.1, 0.2, 0.2)
    parts.append(Part(ellipse(head, (head_radius, head_radius)), head_colour))
    eye = head + [head_radius * 0.3, -head_radius * 0.2]
    parts += eye_parts(eye, 0.06)
    keypoints = {
        **feet, "eye": eye, "beak": beak_tip, "head top": head + [-head_radius * 0.2, -head_radius * 0.85],
        "breast": body.at(0.85, 0.35), "wing root": wing_root, "wing tip": wing_tip, "tail base": tail_base,
        "tail tip": tail_tip, "belly": body.at(0, 0.85),
    }  # fmt: skip
    return drawing(parts, keypoints)


def _fish(random: np.random.Generator) -> Drawing:
    uniform, coat, fin = random.uniform, Coat(random), bright(random, 0.2, 0.3)
    length, height = uniform(0.5, 0.7), uniform(0.2, 0.4)
    body = coat.shade()
    tail_base = np.array([-length * 0.92, 0.0])
    tail_length, tail_height = uniform(0.22, 0.4), uniform(0.18, 0.36)
    tail_up = tail_base + [-tail_length, -tail_height]
    tail_down = tail_base + [-tail_length, tail_height * uniform(0.8, 1.1)]
    notch = tail_base + [-tail_length * 0.5, 0]
    tail = np.array([tail_base + [0.08, -0.06], tail_up, notch, tail_down, tail_base + [0.08, 0.06]])
    dorsal_x, dorsal_height = uniform(-0.1, 0.15), uniform(0.15, 0.32)
    dorsal = np.array([dorsal_x - 0.2, -height - dorsal_height])
    pelvic_x, pelvic_height = uniform(-0.1, 0.1), uniform(0.1, 0.22)
    pelvic = np.array([pelvic_x - 0.15, height + pelvic_height])
    shoulder = np.array([length * 0.2, height * 0.15])
    fin_end = shoulder + [-0.2, 0.06]
    mouth = np.array([length * 0.97, height * 0.12])
    eye = np.array([length * 0.68, -height * 0.25])
    back_edge, belly_edge = -height * 0.75, height * 0.8
    pectoral = [shoulder + [0, -0.06], fin_end + [0, -0.06], fin_end + [0, 0.08], shoulder + [0, 0.06]]
    parts = [
        Part(tail, fin, textured=True),
        Part(np.array([[dorsal_x + 0.25, back_edge], dorsal, [dorsal_x - 0.3, back_edge]]), fin * 0.85),
        Part(np.array([[pelvic_x + 0.15, belly_edge], pelvic, [pelvic_x - 0.12, belly_edge]]), fin * 0.85),
        Part(ellipse((0, 0), (length, height)), body, textured=True),
        Part(ellipse((0, height * 0.55), (length * 0.7, height * 0.35)), body * 1.2 + 0.12),
        Part(ellipse((length * 0.72, 0), (length * 0.28, height * 0.66)), coat.shade(0.05, 0.1, 0.2)),
        Part(np.array(pectoral), fin * 0.7),
        Part(ellipse(mouth, (0.06, 0.05)), hsv(uniform(-0.05, 0.05), uniform(0.5, 0.9), uniform(0.5, 0.9))),
        *eye_parts(eye, 0.07),
    ]
    keypoints = {
        "eye": eye, "mouth": mouth, "dorsal fin": dorsal * 0.9 + np.array([dorsal_x, -height]) * 0.1,
        "pelvic fin": pelvic * 0.85 + np.array([pelvic_x, height]) * 0.15, "tail base": tail_base,
        "upper tail": tail_up * 0.9 + tail_base * 0.1, "lower tail": tail_down * 0.9 + tail_base * 0.1,
        "pectoral fin": (shoulder + fin_end) / 2, "back": [-length * 0.45, -height * 0.7],
        "belly": [length * 0.35, height * 0.75],
    }  # fmt: skip
    return drawing(parts, keypoints)


def _car(random: np.random.Generator) -> Drawing:
    uniform, coat = random.uniform, Coat(random)
    length, half, cabin = uniform(0.65, 0.9), uniform(0.13, 0.2), uniform(0.18, 0.3)
    paint = coat.shade()
    rear, front = -length * uniform(0.45, 0.9), length * uniform(0.2, 0.45)  # of the cabin, at its foot
    roof_rear, roof_front = rear + uniform(0.04, 0.2), front - uniform(0.1, 0.25)
    middle, pillar, top = (roof_rear + roof_front) / 2, 0.035, -half - cabin
    glass = hsv(uniform(0.5, 0.65), uniform(0.1, 0.5), uniform(0.5, 0.95))

    def side(foot: float, roof: float, share: float) -> np.ndarray:
        return np.array([foot + (roof - foot) * share, -half - cabin * share])

    def window(foot: float, roof: float, inward: float) -> np.ndarray:
        edge = middle - inward * pillar / 2
        low, high = side(foot, roof, 0.1) + [inward * pillar, 0], side(foot, roof, 0.85) + [inward * pillar, 0]
        return np.array([low, high, [edge, -half - cabin * 0.85], [edge, -half - cabin * 0.1]])

    rear_window, front_window = window(rear, roof_rear, 1.0), window(front, roof_front, -1.0)
    hull = [[-length, -half], [length * 0.55, -half], [length, -half * 0.4], [length, half], [-length, half]]
    parts = [
        Part(np.array([[rear, -half], [roof_rear, top], [roof_front, top], [front, -half]]), paint * 0.9),
        Part(rear_window, glass),
        Part(front_window, glass),
        Part(np.array(hull), paint, textured=True),
        Part(limb((-length, half * 0.85), (length, half * 0.85), 0.04, 0.04), paint * 0.45),
    ]
    radius = uniform(0.12, 0.18)
    wheels = {"front wheel": length * uniform(0.52, 0.66), "rear wheel": -length * uniform(0.52, 0.66)}
    hub = hsv(random.random(), uniform(0, 0.3), uniform(0.5, 0.95))
    for x in wheels.values():
        parts.append(Part(ellipse((x, half), (radius, radius)), np.array([0.07, 0.07, 0.08])))
        parts.append(Part(ellipse((x, half), (radius * 0.5, radius * 0.5)), hub))
    headlight, taillight = np.array([length * 0.95, -half * 0.1]), np.array([-length * 0.96, -half * 0.5])
    parts.append(Part(ellipse(headlight, (0.055, 0.06)), hsv(uniform(0.12, 0.17), uniform(0.2, 0.7), 1.0)))
    red = hsv(uniform(-0.03, 0.02), uniform(0.8, 1), uniform(0.7, 1))
    parts.append(Part(ellipse(taillight, (0.045, 0.07)), red))
    keypoints = {
        **{name: [x, half] for name, x in wheels.items()}, "headlight": headlight, "taillight": taillight,
        "roof front": [roof_front, top], "roof rear": [roof_rear, top], "front window": front_window.mean(0),
        "rear window": rear_window.mean(0), "hood": [(front + length * 0.8) / 2, -half * 0.75], "door": [middle, 0.0],
        "windscreen base": [front, -half],
    }  # fmt: skip
    return drawing(parts, keypoints)


KINDS: dict[str, Callable[[np.random.Generator], Drawing]] = {
    "quad": _quadruped,
    "bird": _bird,
    "fish": _fish,
    "car": _car,
}
"""Kind -> draws a random instance of it. These are the kinds that training sees."""

ALL_KINDS: dict[str, Callable[[np.random.Generator], Drawing]] = KINDS | HELD_OUT_KINDS
"""The kinds of training and those that it never sees."""
