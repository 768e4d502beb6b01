"""Two rendered objects and their defects: an aligned terminal block and a flange that lies at any angle.

Both are height maps built from signed distances, then lit and photographed by :mod:`rcp.synthetic_surface`.
Each defect is a function ``(scene, rng) -> (surface, mask)``. Lengths are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from rcp.synthetic_surface import (
    SIZE, XX, YY, Camera, Flaw, Scene, Surface, blob, box, colour, disc, inside, lift, mix, noise, paint,
    smoothstep, stroke, take_camera, turned, walk,
)

# Seven-segment strokes as ((x0, y0), (x1, y1)) on a 1 x 2 grid, top left at (0, 0).
SEGMENTS = {
    "top": ((0, 0), (1, 0)), "middle": ((0, 1), (1, 1)), "bottom": ((0, 2), (1, 2)),
    "upper left": ((0, 0), (0, 1)), "upper right": ((1, 0), (1, 1)),
    "lower left": ((0, 1), (0, 2)), "lower right": ((1, 1), (1, 2)),
}
DIGITS = {
    1: ("upper right", "lower right"),
    2: ("top", "upper right", "middle", "lower left", "bottom"),
    3: ("top", "upper right", "middle", "lower right", "bottom"),
    4: ("upper left", "upper right", "middle", "lower right"),
    5: ("top", "upper left", "middle", "lower right", "bottom"),
    7: ("top", "upper right", "lower right"),
}


def _digit(x: np.ndarray, y: np.ndarray, digit: int, half_width: float, height: float = 14.0) -> np.ndarray:
    """Signed distance to a digit centred on the origin, drawn with strokes of the given half-width."""
    cell = height / 2
    lines = []
    for name in DIGITS[digit]:
        ends = (np.array(SEGMENTS[name], np.float32) - (0.5, 1.0)) * cell
        lines.append(stroke(x, y, ends, [half_width, half_width]))
    return np.minimum.reduce(lines)


def _under_shadow(
    ground: Surface, camera: Camera, distance_at: Callable[[float, float], np.ndarray], throw: float
) -> Surface:
    """Darken the ground where a part of outline ``distance_at(dx, dy)`` keeps the lamp away."""
    direction = camera.lamp[:2] / np.linalg.norm(camera.lamp[:2])
    cast = smoothstep(throw, -throw * 0.6, distance_at(*(direction * throw)))
    touch = smoothstep(5, -2, distance_at(0.0, 0.0))
    return paint(ground, np.maximum(0.72 * cast, 0.5 * touch), ground.albedo * np.float32(0.12), gloss=0.0)


# --- terminal: a four-pole terminal block in a fixture -------------------------------------------------

POLES = (-63.0, -21.0, 21.0, 63.0)  # x of the poles from the middle of the block
SCREW_Y, LABEL_Y, ENTRY_Y = -24.0, 8.0, 41.0
INK = colour(226, 228, 220)


def terminal(rng: Generator) -> Scene:
    """Return a sound terminal block; its pose varies by a pixel and a degree, its screws stop anywhere."""
    camera = take_camera(rng)
    centre = tuple(float(c) for c in SIZE / 2 + rng.uniform(-1.5, 1.5, 2))
    tilt = rng.uniform(-1.0, 1.0)
    x, y = turned(XX - np.float32(centre[0]), YY - np.float32(centre[1]), tilt)

    body = box(x, y, 94, 72, 7)
    tray = _under_shadow(_tray(rng), camera, lambda dx, dy: box(x + dx, y + dy, 94, 72, 7), 9.0)
    plain = mix(tray, _housing(rng, x, y, body), inside(body))
    digits = np.minimum.reduce([_digit(x - left, y - LABEL_Y, n + 1, 1.1) for n, left in enumerate(POLES)])
    printed = paint(plain, inside(digits, 0.9) * np.float32(rng.uniform(0.78, 0.95)), INK, gloss=0.1)
    spots = {
        "block": [(*centre, tilt)],
        "screw": [(*_to_image(left, SCREW_Y, centre, tilt), tilt) for left in POLES],
        "label": [(*_to_image(left, LABEL_Y, centre, tilt), tilt) for left in POLES],
    }
    return Scene(_screws(rng, printed, x, y), camera, {"printing": plain, "screwing": printed}, spots)


def _plastic(scene: Scene) -> np.ndarray:
    """Signed distance to the bare face of the housing: the block without its screw wells and wire entries."""
    x, y, tilt = scene.spots["block"][0]
    u, v = turned(XX - np.float32(x), YY - np.float32(y), tilt)
    beside = u - _pole_of(u)[1]
    well, entry = disc(beside, v - SCREW_Y, 14.5), box(beside, v - ENTRY_Y, 15, 18, 3)
    return np.maximum.reduce([box(u, v, 93, 71, 7), -well, -entry])


def _pole_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number and middle of the pole nearest to each pixel, so that all four are drawn in one go."""
    poles = np.array(POLES, np.float32)
    number = np.clip(np.rint((x - poles[0]) / (poles[1] - poles[0])), 0, len(POLES) - 1).astype(int)
    return number, poles[number]


def _to_image(x: float, y: float, centre: tuple[float, float], degrees: float) -> tuple[float, float]:
    """Image position of a point given in the frame of a part turned by ``degrees`` about ``centre``."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return float(centre[0] + c * x - s * y), float(centre[1] + s * x + c * y)


def _tray(rng: Generator) -> Surface:
    """The bead-blasted aluminium fixture under the block."""
    grain = noise(rng, 1.7)
    tone = colour(104, 106, 110) * (1 + 0.06 * grain + 0.05 * noise(rng, 50))[..., None]
    return Surface(0.10 * noise(rng, 2.0), tone, np.full((SIZE, SIZE), 0.25, np.float32))


def _housing(rng: Generator, x: np.ndarray, y: np.ndarray, body: np.ndarray) -> Surface:
    """The moulded housing without print and screws: bevel, ribs, wells, wire entries with their clamps."""
    batch = np.array([52, 104, 84]) * rng.uniform(0.97, 1.03) + rng.normal(0, 1, 3)
    tone = colour(*batch) * (1 + 0.025 * noise(rng, 40) + 0.02 * noise(rng, 2.0))[..., None]
    height = 9 * smoothstep(0, -6, body) + 0.07 * noise(rng, 1.8) + 0.25 * noise(rng, 30)
    plastic = Surface(height, tone, np.full((SIZE, SIZE), 0.22, np.float32))
    for middle in (-42.0, 0.0, 42.0):
        plastic = lift(plastic, 3.0 * smoothstep(1.5, -2.0, box(x - np.float32(middle), y, 2.4, 62, 2)))
    foot = smoothstep(1.0, -2.5, box(x, y + 58, 80, 5, 2))
    plastic = lift(plastic, 2.0 * foot)
    x = x - _pole_of(x)[1]
    well = disc(x, y - SCREW_Y, 16)
    plastic = lift(plastic, -7 * smoothstep(1.5, -2.5, well))
    plastic = paint(plastic, 0.35 * inside(well + 1), plastic.albedo * np.float32(0.35))
    entry = box(x, y - ENTRY_Y, 14, 17, 3)
    plastic = lift(plastic, -9 * smoothstep(1.0, -5.0, entry))
    plastic = paint(plastic, 0.85 * smoothstep(0, -5, entry), colour(20, 24, 24), gloss=0.05)
    clamp = box(x, y - ENTRY_Y - 5, 9.5, 5.5, 1)
    teeth = 0.8 * np.sin(x * np.float32(2 * np.pi / 4.2))
    plastic = lift(plastic, 3.0 * smoothstep(0.5, -2, clamp) + teeth * inside(clamp))
    return paint(plastic, inside(clamp), colour(128, 128, 126), gloss=0.7)


def _screws(rng: Generator, surface: Surface, x: np.ndarray, y: np.ndarray) -> Surface:
    """Drive a slotted zinc screw into each well; it stops at any angle and is never quite centred."""
    off_x, off_y = rng.normal(0, 0.35, (2, len(POLES))).astype(np.float32)
    angle = rng.uniform(0, np.pi, len(POLES))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    bright = rng.uniform(0.92, 1.06, len(POLES)).astype(np.float32)
    pole, left = _pole_of(x)
    x, y = x - left + off_x[pole], y - SCREW_Y + off_y[pole]
    head = disc(x, y, 12.2)
    slot = box(cosine[pole] * x + sine[pole] * y, cosine[pole] * y - sine[pole] * x, 11.5, 1.7, 0.5)
    zinc = colour(176, 174, 166) * (bright[pole] * (1 + 0.05 * noise(rng, 2.2)))[..., None]
    rings = 0.10 * np.sin(head * np.float32(2 * np.pi / 2.7))
    driven = lift(surface, 6.0 * smoothstep(0.5, -4.5, head) + rings * inside(head))
    driven = paint(driven, inside(head), zinc, gloss=0.85)
    cut = inside(slot, 0.8) * inside(head + 1)
    return paint(lift(driven, -3.0 * cut), 0.8 * cut, colour(40, 38, 34), gloss=0.1)


def terminal_missing_screw(scene: Scene, rng: Generator) -> Flaw:
    """One screw was never driven: its well is empty, with the bare thread hole at the bottom."""
    x, y, _ = scene.spots["screw"][rng.integers(4)]
    at_x, at_y = XX - np.float32(x), YY - np.float32(y)
    gone = disc(at_x, at_y, 13.2)
    empty = mix(scene.surface, scene.before["screwing"], inside(gone, 0.8))
    thread = smoothstep(1, -2, disc(at_x, at_y, 6.5))
    return paint(lift(empty, -4 * thread), 0.9 * thread, colour(16, 18, 18), gloss=0.1), gone < 0.8


def terminal_misprint(scene: Scene, rng: Generator) -> Flaw:
    """A label that is missing, half printed, smudged, or shows another number."""
    pole, kind = rng.integers(4), rng.choice(["missing", "half", "smudged", "wrong"])
    x, y, tilt = scene.spots["label"][pole]
    u, v = turned(XX - np.float32(x), YY - np.float32(y), tilt)
    lost = _digit(u, v, pole + 1, 1.1) < 1.2
    if kind == "half":
        lost &= turned(u, v, rng.uniform(0, 360))[0] > 0
    surface = mix(scene.surface, scene.before["printing"], lost.astype(np.float32))
    if kind in ("missing", "half"):
        return surface, lost
    if kind == "wrong":
        ink = _digit(u, v, int(rng.choice([5, 7])), 1.1)
    else:  # dragged sideways while wet
        ink = _digit(u * np.float32(rng.uniform(0.5, 0.8)) - 1, v, pole + 1, rng.uniform(1.7, 2.6))
    layer = np.float32(rng.uniform(0.6, 0.95)) * inside(ink, 0.9)
    return paint(surface, layer, INK, gloss=0.1), lost | (ink < 0.8)


def terminal_crack(scene: Scene, rng: Generator) -> Flaw:
    """A hairline crack that runs from a screw well over the housing."""
    x, y, _ = scene.spots["screw"][rng.integers(4)]
    heading = float(rng.choice([rng.uniform(-60, 60), rng.uniform(120, 240)]))
    points = walk(rng, 0, 0, heading, rng.uniform(22, 55), bend=20)
    away = np.array([np.cos(np.deg2rad(heading)), np.sin(np.deg2rad(heading))]) * 15
    points = points - points[0] + (x, y) + away
    line = stroke(XX, YY, points, np.linspace(rng.uniform(0.7, 1.5), 0.3, len(points)))
    line = np.maximum(line, _plastic(scene))
    gap = inside(line, 0.8)
    tone = scene.surface.albedo * np.float32(rng.uniform(0.1, 0.4))
    return paint(lift(scene.surface, -1.2 * gap), gap, tone, gloss=0.0), line < 0.7


def terminal_swarf(scene: Scene, rng: Generator) -> Flaw:
    """A curl of metal swarf that fell on the block."""
    x, y, tilt = scene.spots["block"][0]
    x, y = _to_image(rng.uniform(-75, 75), rng.uniform(-50, 55), (x, y), tilt)
    turns, radius = rng.uniform(0.4, 1.3), rng.uniform(5, 14)
    angle = np.linspace(0, 2 * np.pi * turns, 14) + rng.uniform(0, 2 * np.pi)
    reach = radius * np.linspace(1.0, 0.55, 14)
    points = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1)
    width = rng.uniform(0.8, 1.7)
    curl = stroke(XX, YY, points, np.linspace(width, 0.5 * width, 14))
    shadow = stroke(XX - 2, YY - 2, points, np.full(14, width))
    dark = scene.surface.albedo * np.float32(0.2)
    shaded = paint(scene.surface, 0.5 * inside(shadow, 1.5), dark, gloss=0.0)
    chip = inside(curl, 0.9)
    tone = colour(150, 148, 142) * np.float32(rng.uniform(0.7, 1.3))
    return paint(lift(shaded, 1.6 * chip), chip, tone, gloss=0.8), np.minimum(curl, shadow) < 0.9


# --- flange: a turned cast flange on a conveyor belt, at any angle -------------------------------------

RIM, HUB, BORE = 97.0, 43.0, 29.0  # radii
HOLES, HOLE_RADIUS, HOLE_CIRCLE = 6, 8.5, 71.0


def flange(rng: Generator) -> Scene:
    """Return a sound flange somewhere on the belt, turned by any angle."""
    camera = take_camera(rng)
    centre = tuple(float(c) for c in SIZE / 2 + rng.uniform(-7, 7, 2))
    angle = float(rng.uniform(0, 360))
    at_x, at_y = XX - np.float32(centre[0]), YY - np.float32(centre[1])
    x, y = turned(at_x, at_y, angle)
    outline = disc(at_x, at_y, RIM)

    belt = _under_shadow(_belt(rng), camera, lambda dx, dy: disc(at_x + dx, at_y + dy, RIM), 8.0)
    undrilled = mix(belt, _casting(rng, camera, (x, y), (at_x, at_y)), inside(outline))
    undrilled = _bore(undrilled, belt, x, y)
    turns = 2 * np.pi * np.arange(HOLES) / HOLES
    holes = [(HOLE_CIRCLE * float(np.cos(turn)), HOLE_CIRCLE * float(np.sin(turn))) for turn in turns]
    spots = {
        "flange": [(*centre, angle)],
        "hole": [(*_to_image(hole_x, hole_y, centre, angle), angle) for hole_x, hole_y in holes],
    }
    drilled = _drill(undrilled, np.minimum.reduce([disc(x - a, y - b, HOLE_RADIUS) for a, b in holes]))
    return Scene(drilled, camera, {"drilling": undrilled, "casting": belt}, spots)


def _belt(rng: Generator) -> Surface:
    """A woven rubber belt with dust on it; the weave stands at any phase, for the belt moves."""
    phase_x, phase_y = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    pitch = np.float32(2 * np.pi / 7)
    weave = np.sin(XX * pitch + phase_x) * np.sin(YY * pitch + phase_y)
    dust = np.clip(noise(rng, 3) - 1.6, 0, 2) * 0.10 + 0.05 * noise(rng, 24)
    tone = colour(58, 62, 66) * (1 + 0.10 * noise(rng, 1.8) + 0.12 * weave + dust)[..., None]
    return Surface(0.45 * weave, tone, np.full((SIZE, SIZE), 0.08, np.float32))


def _casting(
    rng: Generator, camera: Camera, own: tuple[np.ndarray, np.ndarray], fixed: tuple[np.ndarray, np.ndarray]
) -> Surface:
    """The flange before boring and drilling: a turned face, a raised hub, a rough cast rim, a stamped number.

    ``own`` are coordinates that turn with the flange, ``fixed`` those that do not; both start at its centre.
    """
    (x, y), radius = own, np.hypot(*own)
    rough, face = smoothstep(88, 91, radius), smoothstep(91, 88, radius)
    feed = np.cumsum(rng.normal(0, 0.015, int(2 * RIM)))  # the lathe's tool wanders a little on its way out
    profile = np.interp(radius, np.arange(len(feed)), feed).astype(np.float32)
    grooves = profile + 0.07 * np.sin(radius * np.float32(2 * np.pi / 3.3) + rng.uniform(0, 6))
    height = 10 * smoothstep(RIM, RIM - 5, radius) + 5 * smoothstep(HUB + 2, HUB - 3, radius)
    height = height - 1.2 * inside(np.abs(radius - 89.5) - 0.8) + face * grooves + 0.05 * noise(rng, 1.8)
    height = height + rough * (0.35 * noise(rng, 2.5) + 0.4 * noise(rng, 6))
    stamp = np.minimum(_digit(x - 58, y - 33, 2, 0.9, 12), _digit(x - 68, y - 33, 7, 0.9, 12))
    height = height - 1.6 * inside(stamp, 1.2)
    # Grooves mirror the lamp where they lie across its direction: the bow tie that turned metal shows.
    to_lamp = np.arctan2(fixed[1], fixed[0]) - np.arctan2(camera.lamp[1], camera.lamp[0])
    bow_tie = 0.16 * np.cos(2 * to_lamp) + 0.07 * np.cos(5 * np.arctan2(y, x))
    bright = 1 + face * (bow_tie + 0.04 * profile / profile.std()) - 0.28 * rough
    tone = colour(136, 136, 134) * (bright * (1 + 0.05 * noise(rng, 2) + 0.04 * noise(rng, 30)))[..., None]
    return Surface(height, tone, 0.55 * face + 0.15 * rough)


def _bore_outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the central bore with its keyway."""
    return np.minimum(disc(x, y, BORE), box(x - 30, y, 7, 5, 1))


def _bore(surface: Surface, belt: Surface, x: np.ndarray, y: np.ndarray) -> Surface:
    """Cut the central bore with its keyway; the belt shows through, in the dark."""
    bore = _bore_outline(x, y)
    surface = lift(surface, -2.0 * smoothstep(3.5, -1, bore))  # chamfer
    ground = paint(belt, np.full((SIZE, SIZE), 0.65, np.float32), belt.albedo * np.float32(0.15))
    return mix(surface, ground, inside(bore))


def _drill(surface: Surface, hole: np.ndarray) -> Surface:
    """Drill countersunk through holes."""
    surface = lift(surface, -2.2 * smoothstep(3.0, -0.5, hole))
    surface = lift(surface, -6 * smoothstep(0.5, -3, hole))
    return paint(surface, smoothstep(0.8, -2.2, hole), colour(22, 22, 24), gloss=0.02)


def _metal(scene: Scene) -> np.ndarray:
    """Signed distance to the flange without its holes and bore."""
    x, y, angle = scene.spots["flange"][0]
    u, v = turned(XX - np.float32(x), YY - np.float32(y), angle)
    holes = [-disc(XX - a, YY - b, HOLE_RADIUS + 0.5) for a, b, _ in scene.spots["hole"]]
    return np.maximum.reduce([disc(u, v, RIM - 1), -_bore_outline(u, v), *holes])


def _on_face(scene: Scene, rng: Generator, low: float, high: float) -> tuple[float, float, float]:
    """A random place on the flange between two radii: x, y and the angle seen from the centre, in degrees."""
    x, y, _ = scene.spots["flange"][0]
    turn, radius = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
    return x + radius * np.cos(turn), y + radius * np.sin(turn), float(np.rad2deg(turn))


def flange_missing_hole(scene: Scene, rng: Generator) -> Flaw:
    """A hole that was not drilled, or only centred."""
    x, y, _ = scene.spots["hole"][rng.integers(HOLES)]
    at_x, at_y = XX - np.float32(x), YY - np.float32(y)
    place = disc(at_x, at_y, HOLE_RADIUS + 3.2)
    surface = mix(scene.surface, scene.before["drilling"], inside(place, 0.6))
    if rng.random() < 0.5:
        surface = _drill(surface, disc(at_x, at_y, rng.uniform(1.5, 4.0)))
    return surface, place < 0.6


def flange_scratch(scene: Scene, rng: Generator) -> Flaw:
    """A scratch across the turned face: a groove with a bright burr."""
    x, y, outward = _on_face(scene, rng, 50, 82)
    points = walk(rng, x, y, outward + rng.uniform(20, 160), rng.uniform(22, 60), bend=6)
    width = rng.uniform(0.6, 1.6)
    line = stroke(XX, YY, points, np.linspace(width, 0.2, len(points)))
    line = np.maximum(line, _metal(scene))
    groove = inside(line, 0.9) * np.float32(rng.uniform(0.6, 1.0))
    tone = scene.surface.albedo * np.float32(rng.choice([0.3, 2.0]))
    return paint(lift(scene.surface, -0.9 * groove), groove, tone), line < 0.8


def flange_nick(scene: Scene, rng: Generator) -> Flaw:
    """A piece broken out of the rim, down to the belt."""
    x, y, _ = _on_face(scene, rng, RIM - 1, RIM + 2)
    cx, cy, _ = scene.spots["flange"][0]
    bite = blob(rng, x, y, rng.uniform(4.5, 11), ragged=0.2)
    bite = np.maximum(bite, disc(XX - cx, YY - cy, RIM + 1))
    edge = lift(scene.surface, -3.0 * smoothstep(3, -1, bite))
    return mix(edge, scene.before["casting"], inside(bite)), bite < 2.5


def flange_rust(scene: Scene, rng: Generator) -> Flaw:
    """A bloom of rust on the metal."""
    x, y, _ = _on_face(scene, rng, 50, 86)
    bloom = blob(rng, x, y, rng.uniform(6, 15), ragged=0.4)
    bloom = np.maximum(bloom, _metal(scene))
    speckle = np.clip(0.75 + 0.3 * noise(rng, 3), 0, 1)
    layer = smoothstep(0.5, -4, bloom) * speckle * np.float32(rng.uniform(0.4, 0.95))
    tone = colour(128, 82, 52) * (1 + 0.15 * noise(rng, 2.5))[..., None]
    return paint(lift(scene.surface, 0.5 * layer * noise(rng, 2)), layer, tone, gloss=0.05), bloom < 0
