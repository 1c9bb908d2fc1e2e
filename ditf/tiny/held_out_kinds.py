"""Kinds that training never sees: what a model does with them, it has not learned by heart.

Drawn as those of ``ditf.tiny.kinds`` are, from the same polygons and ellipses, but nothing of an instance is shared: no
eyes, no paws, no wheels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shapes import Coat, Drawing, Frame, Part, bright, drawing, ellipse, hsv, limb

__all__ = ["HELD_OUT_KINDS"]


def _chair(random: np.random.Generator) -> Drawing:
    """Seen from the side and a little from above; one sits on it looking right."""
    uniform, coat, cushion = random.uniform, Coat(random), bright(random, 0.2, 0.3)
    depth, height, back = uniform(0.32, 0.45), uniform(0.4, 0.65), uniform(0.5, 0.85)  # depth: half of the seat's
    slant = np.array([uniform(0.1, 0.2), -uniform(0.1, 0.18)])  # from the near side to the far side
    lean, splay, thick = uniform(0.02, 0.24), uniform(-0.02, 0.12), uniform(0.028, 0.05)
    wood, slab = coat.shade(), uniform(0.035, 0.065)
    front, rear = np.array([depth, 0.0]), np.array([-depth, 0.0])
    front_foot, hind_foot = front + [splay, height], rear + [-splay, height]
    top = rear + [-lean, -back]
    arm_height, arm_length = back * uniform(0.3, 0.45), depth * uniform(1.1, 1.6)
    arm_rear = rear + (top - rear) * (arm_height / back)
    arm_front = arm_rear + [arm_length, uniform(-0.02, 0.03)]

    parts = [
        Part(limb(foot + slant, knee + slant, thick * 0.8, thick), wood * 0.6)
        for foot, knee in ((front_foot, front), (hind_foot, rear))
    ]
    stretcher = uniform(0.45, 0.7)
    rails = [knee + (foot - knee) * stretcher for foot, knee in ((front_foot, front), (hind_foot, rear))]
    panel = np.array([top, top + slant, rear + slant * 0.9, rear])
    if random.random() < 0.5:  # slats, or a padded back
        for share in np.linspace(0, 1, int(random.integers(3, 6))):
            parts.append(Part(limb(rear + slant * share, top + slant * share, 0.022, 0.022), wood * 0.8))
    else:
        parts.append(Part(panel, cushion * 0.85, textured=True))
    far_front, far_rear = front + slant, rear + slant
    parts.append(Part(limb(arm_rear + slant, arm_front + slant, 0.025, 0.025), wood * 0.65))
    parts.append(Part(np.array([rear, far_rear, far_front + [0.02, 0], front + [0.03, 0]]), cushion, textured=True))
    down = np.array([0, 2 * slab])
    parts.append(Part(np.array([rear, front + [0.03, 0], front + [0.03, 0] + down, rear + down]), wood))
    edge = np.array([front + [0.03, 0], far_front + [0.02, 0], far_front + [0.02, 0] + down, front + [0.03, 0] + down])
    parts.append(Part(edge, wood * 0.75))
    parts.append(Part(limb(rails[1], rails[0], 0.02, 0.02), wood * 0.8))
    for foot, knee in ((front_foot, front), (hind_foot, rear)):
        parts.append(Part(limb(knee, foot, thick * 1.1, thick * 0.8), wood))
    parts.append(Part(limb(rear + down / 2, top, thick, thick * 0.9), wood))
    parts.append(Part(limb(top + slant * 1.06, top - slant * 0.06, 0.05, 0.05), wood * 1.15 + 0.05))
    post = front + (arm_front - front) * [0.85, 0]
    parts.append(Part(limb(post, arm_front - [0.04, 0], 0.025, 0.025), wood * 0.9))
    parts.append(Part(limb(arm_rear, arm_front, 0.032, 0.032), wood * 1.1 + 0.03))
    keypoints = {
        "back top": top, "far back top": top + slant, "back middle": (top + slant + rear) / 2 + slant * 0.1,
        "arm front": arm_front, "arm rear": arm_rear, "seat front": front + slab, "seat middle": slant / 2,
        "far seat corner": far_front, "front foot": front_foot, "hind foot": hind_foot,
        "far front foot": front_foot + slant, "stretcher": (rails[0] + rails[1]) / 2,
    }  # fmt: skip
    return drawing(parts, keypoints)


def _aeroplane(random: np.random.Generator) -> Drawing:
    """From the side, a little from above: the near wing hangs down, the far one sticks up."""
    uniform, coat, stripe = random.uniform, Coat(random), bright(random, 0.3, 0.3)
    length, height = uniform(0.75, 0.95), uniform(0.1, 0.16)
    hull, glass = coat.shade(), hsv(uniform(0.5, 0.65), uniform(0.2, 0.6), uniform(0.2, 0.5))
    nose, tail = np.array([length, height * 0.25]), np.array([-length, -height * uniform(0.3, 0.8)])
    roof = np.array([[length * 0.75, -height * 0.75], [length * 0.5, -height], [-length * 0.55, -height]])
    floor = np.array([[-length * 0.45, height], [length * 0.6, height], [length * 0.9, height * 0.7]])
    fin_height, sweep = uniform(0.25, 0.42), uniform(0.08, 0.25)
    fin_root = np.array([-length * 0.8, -height * 0.8])
    fin_top = fin_root + [-sweep - 0.06, -fin_height]
    root_x, chord = uniform(-0.02, 0.14), uniform(0.2, 0.3)
    wing_root = np.array([root_x, height * 0.35])
    wing_tip = wing_root + [-uniform(0.2, 0.42), uniform(0.32, 0.52)]
    far_tip = np.array([root_x - uniform(0.12, 0.28), -height - uniform(0.16, 0.3)])
    plane_root = np.array([-length * 0.84, -height * 0.2])
    plane_tip = plane_root + [-uniform(0.1, 0.2), uniform(0.12, 0.22)]
    engine = wing_root + (wing_tip - wing_root) * uniform(0.35, 0.5) + [chord * 0.2, 0.05]
    engine_radii = uniform(0.09, 0.13), uniform(0.045, 0.065)

    parts = [
        Part(np.array([[root_x + chord * 0.5, -height * 0.5], far_tip + [0.06, 0], far_tip - [0.04, 0],
                       [root_x - chord * 0.5, -height * 0.5]]), hull * 0.65),
        Part(np.array([fin_root + [0.2, 0], fin_top + [0.12, 0], fin_top, fin_root + [-0.1, 0.02]]), stripe, True),
        Part(np.vstack([nose, roof, tail, floor]), hull, textured=True),
        Part(limb((-length * 0.75, height * 0.2), (length * 0.86, height * 0.2), 0.015, 0.03), stripe),
    ]  # fmt: skip
    for x in np.linspace(-length * 0.55, length * 0.5, int(random.integers(5, 10))):
        parts.append(Part(ellipse((x, -height * 0.35), (0.022, 0.03)), glass))
    cockpit = np.array([length * 0.76, -height * 0.38])
    window = [cockpit + [-0.05, -0.04], cockpit + [0.03, -0.02], cockpit + [0.1, 0.05], cockpit + [-0.05, 0.05]]
    parts.append(Part(np.array(window), glass))
    parts.append(Part(ellipse(nose - [0.03, 0], (0.05, height * 0.32)), hull * 0.55))
    tailplane = [plane_root + [0.12, 0], plane_tip + [0.05, 0], plane_tip - [0.03, 0], plane_root - [0.04, 0]]
    parts.append(Part(np.array(tailplane), hull * 0.85))
    near_wing = [wing_root + [chord * 0.6, 0], wing_tip + [0.07, 0], wing_tip - [0.06, 0], wing_root - [chord * 0.5, 0]]
    parts.append(Part(np.array(near_wing), hull * 0.8, textured=True))
    parts.append(Part(ellipse(engine, engine_radii), stripe * 0.8))
    intake = engine + [engine_radii[0] * 0.8, 0]
    parts.append(Part(ellipse(intake, (0.02, engine_radii[1] * 0.8)), np.full(3, 0.12)))
    keypoints = {
        "nose": nose, "cockpit": cockpit, "roof": [length * 0.1, -height * 0.9], "belly": [length * 0.55, height * 0.9],
        "wing root": wing_root, "wing tip": wing_tip, "far wing tip": far_tip, "engine": intake,
        "fin top": fin_top + [0.05, 0.03], "fin root": fin_root + [0.17, 0.0], "tail": tail,
        "tailplane tip": plane_tip,
    }  # fmt: skip
    return drawing(parts, keypoints)


def _butterfly(random: np.random.Generator) -> Drawing:
    """From above, flying right: its left wings are the upper ones."""
    uniform, coat, accent = random.uniform, Coat(random), bright(random, 0.2, 0.3)
    wing, hind, rim = coat.shade(), coat.shade(0.08, 0.15, 0.15), hsv(random.random(), uniform(0, 0.5), uniform(0, 0.3))
    span, hind_span = uniform(0.6, 0.95), uniform(0.4, 0.65)
    fore_angle, hind_angle = uniform(0.9, 1.35), uniform(1.9, 2.35)  # from the head's direction
    fore_width, hind_width = uniform(0.24, 0.36), uniform(0.2, 0.32)
    length, thick, droop = uniform(0.3, 0.42), uniform(0.045, 0.075), uniform(0.85, 1.0)
    spot, reach, spread = uniform(0.06, 0.11), uniform(0.25, 0.4), uniform(0.25, 0.6)
    body, dotted = hsv(random.random(), uniform(0, 0.4), uniform(0.08, 0.3)), random.random() < 0.6

    parts: list[Part] = []
    keypoints: dict[str, np.ndarray] = {}
    for side, name, share in ((-1, "left", 1.0), (1, "right", droop)):
        mirror = np.array([1.0, side])

        def ray(angle: float, distance: float, mirror: np.ndarray = mirror) -> np.ndarray:
            return np.array([np.cos(angle), np.sin(angle)]) * distance * mirror

        for root, angle, extent, width, colour, wings in (
            (-0.05, hind_angle, hind_span * share, hind_width, hind, "hind wing"),
            (0.06, fore_angle, span * share, fore_width, wing, "fore wing"),
        ):
            middle = Frame((root, 0), (1, 1), side * angle)
            middle = Frame(middle.centre + middle.turned(extent / 2, 0), (extent / 2, width), side * angle)
            parts.append(Part(middle.outline, rim))
            inner = Frame(middle.centre - middle.turned(extent * 0.04, 0), middle.radii * [0.86, 0.8], side * angle)
            parts.append(Part(inner.outline, colour, textured=True))
            eyespot = middle.at(0.35, 0)
            parts.append(Part(ellipse(eyespot, (spot, spot)), accent))
            if dotted:
                parts.append(Part(ellipse(eyespot, (spot / 2, spot / 2)), rim))
            keypoints |= {f"{name} {wings} tip": middle.at(0.93, 0), f"{name} {wings} spot": eyespot}
        feeler = np.array([length + 0.04, 0]) + ray(spread, reach)
        parts.append(Part(limb((length * 0.8, 0), feeler, 0.012, 0.01), body))
        parts.append(Part(ellipse(feeler, (0.028, 0.028)), body))
        keypoints[f"{name} feeler"] = feeler
    parts.append(Part(limb((0.1, 0), (-length * 1.2, 0), thick, thick * 0.5), body * 1.3 + 0.05))
    parts.append(Part(ellipse((0.1, 0), (length * 0.45, thick * 1.25)), body))
    head = np.array([length * 0.75, 0.0])
    parts.append(Part(ellipse(head, (thick * 1.2, thick * 1.2)), body * 1.2 + 0.1))
    return drawing(parts, keypoints | {"head": head, "thorax": np.array([0.1, 0.0]), "tail": np.array([-length, 0.0])})


def _person(random: np.random.Generator) -> Drawing:
    """From the side, walking right."""
    uniform, shirt, trousers = random.uniform, Coat(random), bright(random, 0.1, 0.2)
    skin = hsv(uniform(0.03, 0.1), uniform(0.2, 0.65), uniform(0.35, 0.95))
    hair, shoe = hsv(uniform(0, 0.15), uniform(0, 0.8), uniform(0.05, 0.8)), bright(random, 0.0, 0.1)
    torso, leg, arm = uniform(0.42, 0.55), uniform(0.62, 0.8), uniform(0.5, 0.6)
    chest, waist, head_radius = uniform(0.11, 0.17), uniform(0.09, 0.16), uniform(0.1, 0.135)
    lean = uniform(-0.05, 0.12)
    hip = np.array([0.0, 0.0])
    neck = np.array([lean, -torso])
    head = neck + [lean * 0.3 + 0.02, -head_radius * 1.25]
    shoulder = neck + [0, 0.09]
    cloth = shirt.shade()
    sleeve = cloth * uniform(0.75, 1.0) if random.random() < 0.6 else skin

    def bent(start: np.ndarray, length: float, upper: float, lower: float) -> tuple[np.ndarray, np.ndarray]:
        """Joint and end of a limb; angles from straight down, forwards positive."""
        joint = start + length * 0.5 * np.array([np.sin(upper), np.cos(upper)])
        return joint, joint + length * 0.5 * np.array([np.sin(lower), np.cos(lower)])

    stride, swing = uniform(0.15, 0.5), uniform(0.15, 0.6)
    near_knee, near_foot = bent(hip, leg, stride, stride * uniform(-0.2, 0.8))
    far_knee, far_foot = bent(hip, leg, -stride * 0.7, -stride - uniform(0.0, 0.4))
    near_elbow, near_hand = bent(shoulder, arm, -swing, -swing + uniform(0.1, 0.9))
    far_elbow, far_hand = bent(shoulder, arm, swing, swing + uniform(0.2, 1.0))

    def limbs(joints: tuple[np.ndarray, ...], widths: tuple[float, ...], colours: tuple[np.ndarray, ...]) -> list[Part]:
        bones = [
            Part(limb(joints[i], joints[i + 1], widths[i], widths[i + 1]), colours[i]) for i in range(len(colours))
        ]
        return [*bones, Part(ellipse(joints[1], (widths[1], widths[1])), colours[0])]

    def shoes(foot: np.ndarray, shade: float) -> Part:
        sole = [foot + [-0.05, -0.04], foot + [0.06, -0.04], foot + [0.15, 0.04], foot + [-0.06, 0.04]]
        return Part(np.array(sole), shoe * shade)

    legs, arms = (0.085, 0.065, 0.045), (0.05, 0.042, 0.03)
    parts = [
        *limbs((shoulder, far_elbow, far_hand), arms, (sleeve * 0.6, skin * 0.65)),
        Part(ellipse(far_hand, (0.042, 0.042)), skin * 0.7),
        *limbs((hip, far_knee, far_foot), legs, (trousers * 0.6, trousers * 0.6)),
        shoes(far_foot, 0.6),
        *limbs((hip, near_knee, near_foot), legs, (trousers, trousers)),
        shoes(near_foot, 1.0),
        Part(limb(neck + [0, 0.05], head, 0.05, 0.05), skin * 0.85),
        Part(np.array([neck + [-chest * 0.8, 0.03], neck + [chest * 0.7, 0.03], neck + [chest * 1.1, 0.16],
                       hip + [waist, 0.02], hip + [-waist, 0.02], neck + [-chest, 0.14]]), cloth, textured=True),
        Part(limb(hip + [-waist, 0.0], hip + [waist, 0.0], 0.03, 0.03), trousers * 0.5),
        Part(ellipse(head + [-0.02, -0.025], (head_radius * 1.08, head_radius * 1.1)), hair),
        Part(ellipse(head + [0.025, 0.015], (head_radius * 0.86, head_radius)), skin),
    ]  # fmt: skip
    nose = head + [head_radius * 1.05, 0.03]
    parts.append(Part(np.array([nose, head + [head_radius * 0.75, -0.03], head + [head_radius * 0.75, 0.05]]), skin))
    parts += limbs((shoulder, near_elbow, near_hand), arms, (sleeve * 1.1 + 0.03, skin))
    parts.append(Part(ellipse(near_hand, (0.045, 0.045)), skin))
    keypoints = {
        "head top": head + [-0.02, -head_radius], "nose": nose, "neck": neck + [0, -0.02], "shoulder": shoulder,
        "elbow": near_elbow, "hand": near_hand, "far hand": far_hand, "hip": hip, "knee": near_knee, "foot": near_foot,
        "far knee": far_knee, "far foot": far_foot,
    }  # fmt: skip
    return drawing(parts, keypoints)


HELD_OUT_KINDS: dict[str, Callable[[np.random.Generator], Drawing]] = {
    "chair": _chair,
    "aeroplane": _aeroplane,
    "butterfly": _butterfly,
    "person": _person,
}
"""Kind -> draws a random instance of it."""
