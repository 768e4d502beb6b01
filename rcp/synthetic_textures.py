"""Two textures cut from CC0 photographs that scikit-image carries in its wheel, and their defects.

``brick`` is a cladding panel cut from ``skimage.data.brick()``, with the photograph's perspective taken out;
``granulate`` is a slab of bound stones cut from ``skimage.data.gravel()``. The photographs are grey: both are
tinted. Each defect is a function ``(scene, rng) -> (surface, mask)``; see :mod:`rcp.synthetic_surface`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import skimage.data
from numpy.random import Generator
from scipy import ndimage

from rcp.synthetic_surface import (
    SIZE, XX, YY, Flaw, Scene, Surface, blob, box, colour, disc, inside, lift, noise, paint, smoothstep,
    stroke, take_camera, turned, walk,
)

# Defects are centred at least this far from the border, so that they survive a 224-pixel centre crop.
MARGIN = 50


@lru_cache(maxsize=2)
def _photo(name: str) -> np.ndarray:
    """The (512, 512) grey photograph ``name`` of scikit-image, float32 in [0, 1]."""
    return getattr(skimage.data, name)().astype(np.float32) / 255


def _crop(rng: Generator, *, tilt: float, zoom: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates, in pixels of the photograph around 0, of a flipped, zoomed and slightly turned crop."""
    scale = rng.uniform(*zoom)
    u, v = turned(XX - SIZE / 2, YY - SIZE / 2, rng.uniform(-tilt, tilt))
    flip_u, flip_v = rng.choice([-1, 1], 2)
    return u * np.float32(scale * flip_u), v * np.float32(scale * flip_v)


def _shifted(rng: Generator, axis: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move coordinates by a random amount that keeps them all within ``low`` .. ``high``."""
    return axis + np.float32(rng.uniform(low - axis.min(), high - axis.max()))


def _somewhere(rng: Generator) -> tuple[float, float]:
    x, y = rng.uniform(MARGIN, SIZE - MARGIN, 2)
    return float(x), float(y)


# --- brick ---------------------------------------------------------------------------------------------


def brick(rng: Generator) -> Scene:
    """Return a sound brick panel."""
    camera = take_camera(rng)
    along, across = _crop(rng, tilt=1.0, zoom=(0.86, 0.92))
    # The photograph is rectified so that courses are parallel: its scale grows linearly from top to bottom.
    depth, column = _shifted(rng, along, 2, 468), _shifted(rng, across, 38, 464)
    growth = 1 / (1 - 0.17 * (depth - 256) / 256)
    rows, columns = 256 + 256 / 0.17 * (growth - 1), 215 + (column - 215) * growth
    grey = ndimage.map_coordinates(_photo("brick"), [rows, columns], order=1, mode="nearest")
    mortar = smoothstep(0.44, 0.60, grey)
    burnt = 1 + 0.025 * noise(rng, 60) + 0.02 * noise(rng, 2)
    batch = np.array([156, 94, 76]) + rng.normal(0, 1.5, 3)
    clay = colour(*batch) * ((grey / 0.39) ** 2.6 * burnt)[..., None]
    joint = colour(196, 186, 170) * ((grey / 0.64) ** 2 * (1 + 0.05 * noise(rng, 3)))[..., None]
    albedo = clay + mortar[..., None] * (joint - clay)
    height = 0.9 * (1 - mortar) + 0.06 * noise(rng, 2.2)
    flat = np.full_like(grey, 0.04)
    return Scene(Surface(height, albedo, flat), camera, {}, {})


def brick_crack(scene: Scene, rng: Generator) -> Flaw:
    """A thin, dark, branching crack."""
    x, y = _somewhere(rng)
    length, heading = rng.uniform(30, 90), rng.uniform(0, 360)
    trunk = walk(rng, x, y, heading, length)
    width = rng.uniform(0.4, 1.1)
    line = stroke(XX, YY, trunk, np.linspace(width, 0.3, len(trunk)))
    if rng.random() < 0.5:
        fork = trunk[len(trunk) // 2]
        twig = walk(rng, 0, 0, heading + rng.choice([-50, 50]), length * 0.4)
        branch = stroke(XX, YY, twig - twig[0] + fork, np.linspace(width * 0.7, 0.2, len(twig)))
        line = np.minimum(line, branch)
    gap = inside(line, 0.9)
    tone = scene.surface.albedo * np.float32(rng.uniform(0.3, 0.7))
    return lift(paint(scene.surface, gap, tone), -0.6 * gap), line < 0.8


def brick_chip(scene: Scene, rng: Generator) -> Flaw:
    """A broken-out flake: rough, fresh clay below the face."""
    x, y = _somewhere(rng)
    flake = blob(rng, x, y, rng.uniform(4.5, 14), ragged=0.35)
    hole = inside(flake, 1.2)
    fresh = colour(178, 104, 80) * np.float32(rng.uniform(0.75, 1.25)) * (1 + 0.12 * noise(rng, 3))[..., None]
    rough = rng.uniform(0.6, 2.5) + 0.5 * noise(rng, 4)
    broken = paint(scene.surface, hole * np.float32(rng.uniform(0.3, 0.8)), fresh)
    return lift(broken, -hole * rough), flake < 1.5


def brick_bloom(scene: Scene, rng: Generator) -> Flaw:
    """A whitish haze of salt that has come through the wall."""
    x, y = _somewhere(rng)
    cloud = blob(rng, x, y, rng.uniform(12, 32), ragged=0.4)
    haze = smoothstep(1, -9, cloud) * np.clip(0.7 + 0.35 * noise(rng, 5), 0, 1)
    return paint(scene.surface, haze * np.float32(rng.uniform(0.1, 0.4)), colour(214, 210, 204)), cloud < 0


def brick_paint(scene: Scene, rng: Generator) -> Flaw:
    """A splash of paint with a run below it."""
    x, y = _somewhere(rng)
    radius = rng.uniform(3, 9)
    splash = blob(rng, x, y, radius)
    end = (x + rng.normal(0, 1), y + rng.uniform(1, 3) * radius)
    spot = np.minimum(splash, stroke(XX, YY, np.array([(x, y), end]), [radius * 0.4, 1.2]))
    tones = [(58, 74, 104), (212, 206, 190), (54, 50, 48), (120, 60, 44), (96, 104, 82)]
    tone = colour(*tones[rng.integers(len(tones))])
    layer = inside(spot) * np.float32(rng.uniform(0.5, 1.0))
    return paint(lift(scene.surface, 0.4 * layer), layer, tone, gloss=0.3), spot < 0.8


# --- granulate -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _fine_gravel() -> np.ndarray:
    """The gravel photograph, smoothed because the crops shrink it (no aliasing)."""
    return ndimage.gaussian_filter(_photo("gravel"), 0.7)


@lru_cache(maxsize=1)
def _stone_hue() -> np.ndarray:
    """How warm (or, negative, cool) each spot of the gravel photograph is tinted, (512, 512), deviation 1.

    It belongs to the photograph, not to the crop: a stone has the same colour in every image that shows it.
    """
    photo = _photo("gravel")
    hue = ndimage.gaussian_filter(photo, 4) - ndimage.gaussian_filter(photo, 9)
    return hue / hue.std()


def granulate(rng: Generator) -> Scene:
    """Return a sound slab of stones."""
    camera = take_camera(rng)
    u, v = _crop(rng, tilt=1, zoom=(1.74, 1.88))
    rows, columns = _shifted(rng, v, 2, 509), _shifted(rng, u, 2, 509)
    grey = ndimage.map_coordinates(_fine_gravel(), [rows, columns], order=1, mode="nearest")
    deep, mid, bright = colour(72, 70, 67), colour(112, 106, 98), colour(155, 147, 136)
    tone = np.stack([np.interp(grey, [0.05, 0.5, 0.85], stops) for stops in zip(deep, mid, bright)], axis=2)
    hue = ndimage.map_coordinates(_stone_hue(), [rows, columns], order=1, mode="nearest")[..., None]
    warm = 1 + hue * np.array([0.05, 0.0, -0.06], np.float32)
    albedo = (tone * warm * (1 + 0.02 * noise(rng, 70))[..., None]).astype(np.float32)
    gloss = np.full_like(grey, 0.05)
    return Scene(Surface(0.8 * grey + 0.05 * noise(rng, 2.2), albedo, gloss), camera, {}, {})


def granulate_oil(scene: Scene, rng: Generator) -> Flaw:
    """A patch wetted by oil: darker, browner, shinier."""
    x, y = _somewhere(rng)
    pool = blob(rng, x, y, rng.uniform(14, 36), ragged=0.35)
    wet = smoothstep(1.5, -5, pool) * np.float32(rng.uniform(0.45, 0.9))
    tone = scene.surface.albedo ** np.float32(1.25) * np.array([0.42, 0.34, 0.26], np.float32)
    return paint(scene.surface, wet, tone, gloss=0.5), pool < 0.5


def granulate_foreign(scene: Scene, rng: Generator) -> Flaw:
    """A foreign body: a bolt shank, a plastic pellet or a washer among the stones."""
    x, y = _somewhere(rng)
    u, v = turned(XX - np.float32(x), YY - np.float32(y), rng.uniform(0, 360))
    kind, size = rng.choice(["bolt", "pellet", "washer"]), rng.uniform(3.5, 8.0)
    if kind == "bolt":
        body, tone, gloss = box(u, v, size * 2.2, size * 0.5, size * 0.4), colour(120, 122, 126), 0.7
    elif kind == "pellet":
        body, tone, gloss = disc(u, v * np.float32(1.25), size), colour(70, 86, 120), 0.35
    else:
        ring = np.abs(disc(u, v, size * 1.1)) - np.float32(size * 0.35)
        body, tone, gloss = ring, colour(134, 126, 112), 0.6
    solid = inside(body)
    shadow = smoothstep(5, -2, body) * np.float32(0.45)
    shaded = paint(scene.surface, shadow, scene.surface.albedo * np.float32(0.3))
    dome = 3.5 * smoothstep(0, -0.9 * size, body) - scene.surface.height
    skin = tone * (1 + 0.06 * noise(rng, 2.5))[..., None]
    return paint(lift(shaded, solid * dome), solid, skin, gloss), body < 4


def granulate_dust(scene: Scene, rng: Generator) -> Flaw:
    """Crushed fines that fill the gaps: the stones lose their contrast."""
    x, y = _somewhere(rng)
    heap = blob(rng, x, y, rng.uniform(10, 30), ragged=0.35)
    cover = smoothstep(1, -5, heap) * np.clip(0.8 + 0.2 * noise(rng, 4), 0, 1)
    powder = colour(160, 150, 136) * (1 + 0.10 * noise(rng, 1.6) + 0.06 * noise(rng, 9))[..., None]
    return paint(scene.surface, cover * np.float32(rng.uniform(0.4, 0.85)), powder), heap < 0


def granulate_colour(scene: Scene, rng: Generator) -> Flaw:
    """A nest of stones from the wrong batch, of another colour."""
    x, y = _somewhere(rng)
    nest = blob(rng, x, y, rng.uniform(11, 30), ragged=0.35)
    casts = np.array([[1.5, 0.8, 0.5], [0.65, 0.95, 1.4], [0.70, 1.1, 0.70], [1.35, 1.0, 0.45]], np.float32)
    tone = scene.surface.albedo * casts[rng.integers(len(casts))]
    return paint(scene.surface, smoothstep(1, -3, nest) * np.float32(rng.uniform(0.4, 0.9)), tone), nest < 0.5
