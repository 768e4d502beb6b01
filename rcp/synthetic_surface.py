"""A tiny renderer: height maps, colours and gloss go in, photographs come out.

This is the workbench behind :mod:`rcp.synthetic`. A :class:`Surface` holds what the camera looks down on; it
is built from signed distances (negative inside a shape, in pixels) and seen by :func:`photograph` with one
lamp (Lambert and Blinn-Phong), a lens (mild blur) and a sensor (noise). All arrays are (256, 256) float32;
x points right, y points down, z points at the camera. Chance comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from scipy import ndimage

SIZE = 256
YY, XX = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE, 0:SIZE])
GAMMA = 2.2


@dataclass(frozen=True)
class Surface:
    """What the camera sees: height (H, W) in pixels, linear albedo (H, W, 3) and gloss (H, W) in [0, 1]."""

    height: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray


@dataclass(frozen=True)
class Camera:
    """Everything about one exposure that is not the part: the lamp, the lens and the sensor's noise."""

    lamp: np.ndarray  # (3,) unit vector from the surface to the lamp
    power: float  # lamp strength, about 1
    falloff: np.ndarray  # (H, W) light over the field, about 1
    blur: float  # sigma of the lens in pixels
    noise: np.ndarray  # (H, W, 3) standard normal


def take_camera(rng: Generator) -> Camera:
    """Draw the lamp (it hangs at the upper left), the lens and the sensor noise of one exposure."""
    around, above = np.deg2rad(rng.uniform(215, 235)), np.deg2rad(rng.uniform(46, 56))
    across = np.cos(above)
    lamp = np.array([across * np.cos(around), across * np.sin(around), np.sin(above)], np.float32)
    slope_x, slope_y = rng.uniform(-0.06, 0.06, 2)
    x, y = XX / SIZE - 0.5, YY / SIZE - 0.5
    falloff = 1 + slope_x * x + slope_y * y - rng.uniform(0.10, 0.22) * (x**2 + y**2)
    power, blur = rng.uniform(0.92, 1.08), rng.uniform(0.45, 0.75)
    noise = rng.standard_normal((SIZE, SIZE, 3), np.float32)
    return Camera(lamp, power, falloff.astype(np.float32), blur, noise)


def photograph(surface: Surface, camera: Camera) -> np.ndarray:
    """Return the (256, 256, 3) uint8 photograph of a surface.

    The noise is added pixel by pixel after the lens, so two surfaces photographed with the same camera differ
    only where the surfaces, seen through the blur, differ.
    """
    light = _shade(surface, camera)
    light = ndimage.gaussian_filter(light, (camera.blur, camera.blur, 0), truncate=3.0)
    light += camera.noise * (0.0014 + 0.01 * np.sqrt(np.clip(light, 0, 1)))  # read noise and shot noise
    return np.rint(255 * np.clip(light, 0, 1) ** np.float32(1 / GAMMA)).astype(np.uint8)


def _shade(surface: Surface, camera: Camera) -> np.ndarray:
    """Linear light (H, W, 3): ambient with occlusion, Lambert, and a highlight that grows with gloss."""
    slope_y, slope_x = np.gradient(surface.height)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    lamp = camera.lamp
    lambert = np.clip(up * (lamp[2] - slope_x * lamp[0] - slope_y * lamp[1]), 0, None) / lamp[2]
    half = (lamp + np.array([0, 0, 1], np.float32)) / np.linalg.norm(lamp + np.array([0, 0, 1], np.float32))
    facing = np.clip(up * (half[2] - slope_x * half[0] - slope_y * half[1]), 0, 1)
    highlight = 0.55 * surface.gloss * facing**24 * (0.25 + surface.albedo.mean(axis=2))
    # A point lower than its surroundings sees less of the sky: the cheap form of ambient occlusion.
    hollow = np.clip(ndimage.uniform_filter(surface.height, 13) - surface.height, 0, 20)
    ambient = 0.30 * np.exp(-0.10 * hollow)
    direct = camera.power * camera.falloff
    return surface.albedo * ((ambient + 0.70 * lambert) * direct)[..., None] + (highlight * direct)[..., None]


# --- colours and blending ------------------------------------------------------------------------------


def colour(red: float, green: float, blue: float) -> np.ndarray:
    """Return an sRGB colour (0-255 each) as a (3,) float32 vector of linear light."""
    return (np.array([red, green, blue], np.float32) / 255) ** np.float32(GAMMA)


def paint(surface: Surface, alpha: np.ndarray, tone: np.ndarray, gloss: float | None = None) -> Surface:
    """Lay a colour, (3,) or (H, W, 3), over a surface with opacity ``alpha`` (H, W); gloss too if given."""
    albedo = surface.albedo + alpha[..., None] * (tone - surface.albedo)
    shine = surface.gloss if gloss is None else surface.gloss + alpha * (np.float32(gloss) - surface.gloss)
    return replace(surface, albedo=albedo, gloss=shine)


def lift(surface: Surface, by: np.ndarray) -> Surface:
    """Raise (or, negative, press in) a surface by ``by`` (H, W) pixels."""
    return replace(surface, height=surface.height + by)


def mix(under: Surface, over: Surface, alpha: np.ndarray) -> Surface:
    """Blend from one surface to another: ``alpha`` 0 shows ``under``, 1 shows ``over``."""
    return Surface(
        under.height + alpha * (over.height - under.height),
        under.albedo + alpha[..., None] * (over.albedo - under.albedo),
        under.gloss + alpha * (over.gloss - under.gloss),
    )


# --- shapes: signed distances in pixels, negative inside -----------------------------------------------


def smoothstep(start: float, stop: float, value: np.ndarray) -> np.ndarray:
    """Return 0 before ``start``, 1 after ``stop`` and a smooth ramp between; falls if ``start > stop``."""
    t = np.clip((value - np.float32(start)) / np.float32(stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def inside(distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
    """Return the coverage of a shape: 1 within, 0 outside, smooth over ``soft`` pixels on either side."""
    return smoothstep(soft, -soft, distance)


def disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance to a disc around the origin of the coordinates."""
    return np.hypot(x, y) - np.float32(radius)


def box(
    x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, corner: float = 0.0
) -> np.ndarray:
    """Return the signed distance to a box around the origin with rounded corners."""
    dx = np.abs(x) - np.float32(half_width - corner)
    dy = np.abs(y) - np.float32(half_height - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def stroke(x: np.ndarray, y: np.ndarray, points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the signed distance to a line through ``points`` (n, 2) with half-widths ``widths`` (n,)."""
    nearest = np.full(x.shape, np.inf, np.float32)
    points = np.asarray(points, np.float32)
    for (x0, y0), (x1, y1), w0, w1 in zip(points[:-1], points[1:], widths[:-1], widths[1:]):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, np.float32(1e-6)), 0, 1)
        gap = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
        nearest = np.minimum(nearest, gap - np.float32(w0) - along * np.float32(w1 - w0))
    return nearest


def turned(x: np.ndarray, y: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in a frame turned by ``degrees`` (clockwise on the screen, since y points down)."""
    c, s = np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))
    return c * x + s * y, c * y - s * x


# --- chance: noise, blobs and wandering lines ----------------------------------------------------------


@lru_cache(maxsize=32)
def _spline(cell: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """First knot (SIZE,) and four cubic B-spline weights (SIZE,) of every pixel, for knots ``cell`` apart."""
    at = np.arange(SIZE) / cell
    knot = np.floor(at).astype(int)
    t = (at - knot).astype(np.float32)
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return knot, [w / 6 for w in weights]


def noise(rng: Generator, cell: float) -> np.ndarray:
    """Return smooth noise (256, 256), mean 0 and standard deviation 1, with bumps about ``cell`` pixels wide.

    Written without a matrix product: BLAS may round differently from one thread to the next.
    """
    knot, weights = _spline(cell)
    grid = rng.standard_normal((knot[-1] + 4, knot[-1] + 4), np.float32)
    rows = sum(w[:, None] * grid[knot + k] for k, w in enumerate(weights))
    field = sum(w[None, :] * rows[:, knot + k] for k, w in enumerate(weights))
    return (field - field.mean()) / field.std()


def blob(rng: Generator, x: float, y: float, radius: float, *, ragged: float = 0.25) -> np.ndarray:
    """Return the signed distance to an irregular spot around (x, y): an ellipse with a wobbling edge."""
    stretch = rng.uniform(0.7, 1.0)
    u, v = turned(XX - np.float32(x), YY - np.float32(y), rng.uniform(0, 180))
    edge = disc(u * np.float32(stretch), v / np.float32(stretch), radius)
    return edge + np.float32(ragged * radius) * np.clip(noise(rng, max(3.0, radius * 0.5)), -1.5, 1.5)


def walk(
    rng: Generator, x: float, y: float, heading: float, length: float, *, bend: float = 25.0
) -> np.ndarray:
    """Return (n, 2) points of a wandering line, ``length`` pixels long and centred on (x, y); degrees."""
    steps = max(3, round(length / 8))
    drift, shake = np.cumsum(rng.normal(0, bend / 2, steps)), rng.normal(0, bend / 2, steps)
    angles = np.deg2rad(heading + drift + shake)
    moves = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / steps)
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return points - points.mean(axis=0) + (x, y)


# --- what a category hands over ------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One sound product in front of its camera, with what a defect needs to know about it.

    ``before`` holds the surface as it was before a production step (for example before drilling), so that a
    forgotten step can be shown by blending back; ``spots`` holds (x, y, degrees) of named features in pixels.
    """

    surface: Surface
    camera: Camera
    before: dict[str, Surface]
    spots: dict[str, list[tuple[float, float, float]]]


Flaw = tuple[Surface, np.ndarray]  # the surface with the defect on it, and its mask (H, W) bool
