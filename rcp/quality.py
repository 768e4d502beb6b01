"""Worse pictures of the same parts, for the image-quality ablation of the ReConPatch paper (Table 4).

The paper names what it does to the images (rotation, translation, brightness and contrast jitter, Gaussian blur) but
not how strongly. The magnitudes here are ours, and so every result has to state them: see `Quality`.

An image's random numbers depend on the seed, its split and its path below the split's root, and on nothing else: any
image can be made alone, in any order, and is the same. They are drawn before they are scaled by the magnitudes, so
that an image is turned by the same angle in "rotation" as in "all" (unless its draw had to be repeated, see `KEPT`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from rcp.data import Category, Sample, Split
from rcp.files import read_json, write_atomically, write_json
from rcp.images import read_image, read_mask
from rcp.progress import bar

VERSION = 1  # raise it when the pictures change, so that old folders are not mistaken for new ones
RECIPE = "rcp-quality.json"
SIDES = {"train": ("train",), "test": ("test",), "both": ("train", "test")}
# An image labelled anomalous must show its defect: a movement is drawn again, up to TRIES draws in all, until this
# share of the mask's pixels is still in the picture. Then the last movement is halved as often as it takes.
KEPT, TRIES = 0.5, 8
SHORT_SIDE = 256  # pixels that `Quality.blur` refers to
LIMITS = {"degrees": 180.0, "shift": 0.5, "brightness": 1.0, "contrast": 1.0, "blur": 32.0}
WORKERS = 2  # Pillow and scipy let go of the interpreter's lock
# How much larger a copy is than its file at most, by type: bottle and pill of MVTec AD 0.9, miniatures of BTAD (BMP) 0.5, of
# VisA (JPEG) 4.6. Copies are RGB: of a grey PNG, 1.5.
GROWTH = {".png": 1.0, ".bmp": 0.6, ".jpg": 5.0, ".jpeg": 5.0}
GREY_GROWTH = 1.6


@dataclass(frozen=True)
class Quality:
    """How strongly images are degraded; each is the largest change, drawn evenly for each image.

    The paper states no magnitudes. These are ours, chosen beforehand as faults that a line may have for a while
    before someone notices: a camera or a stop that is mounted badly (rotation, translation), a lamp that ages or
    daylight that comes in (brightness, contrast), a lens out of focus (blur). Each can be set alone, the others at 0,
    to tell them apart: see `QUALITIES`.

    Args:
        degrees: rotation about the picture's centre, from -degrees to degrees; at most 180.
        shift: translation down and to the right, each from -shift to shift, as a share of the height and of the
            width; at most 0.5.
        brightness: relative change of all values, from -brightness to brightness; at most 1.
        contrast: relative change of the distance from the picture's mean, from -contrast to contrast; at most 1.
        blur: standard deviation of the Gaussian, from 0 to blur, in pixels for each 256 pixels of the short side,
            so that it means the same whatever size an image is stored at; at most 32.
        seed: of all draws, a whole number from 0.

    Raises:
        ValueError: a magnitude that is negative, too large or no number, or a seed that is no whole number.
    """

    degrees: float = 5.0
    shift: float = 0.03
    brightness: float = 0.2
    contrast: float = 0.2
    blur: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            # The comparison is false for nan, too.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= limit:
                raise ValueError(f"{name} must be a number from 0 to {limit:g}, not {value!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {self.seed!r}")


NONE = Quality(degrees=0, shift=0, brightness=0, contrast=0, blur=0)
ALL = Quality()
ROTATION = dataclasses.replace(NONE, degrees=ALL.degrees)
TRANSLATION = dataclasses.replace(NONE, shift=ALL.shift)
LIGHT = dataclasses.replace(NONE, brightness=ALL.brightness, contrast=ALL.contrast)
BLUR = dataclasses.replace(NONE, blur=ALL.blur)
QUALITIES = {"rotation": ROTATION, "translation": TRANSLATION, "light": LIGHT, "blur": BLUR, "all": ALL}


def missing(category: Category, folder: str | Path, sides: str = "test") -> tuple[int, int]:
    """Return how many images `degrade` would write, and about how many bytes they would take, by the files' sizes.

    Args:
        category, folder, sides: as for `degrade`; nothing is read but names, sizes, its mark, and the head of one image a split.

    Returns:
        None or all of them, as what was killed on the way is written anew; bytes besides those of files that are there.
    """
    root = Path(folder) / category.name
    plans = [_plan(getattr(category, side), root) for side in SIDES[sides]]
    mark = read_json(root / RECIPE) if (root / RECIPE).is_file() else None
    if isinstance(mark, dict) and mark.get("made") and all(after.path.is_file() for plan in plans for after in plan.values()):
        return 0, 0
    there = sum(after.path.stat().st_size for plan in plans for after in plan.values() if after.path.is_file())  # are replaced
    return sum(map(len, plans)), max(0, sum(_about_bytes(list(plan)) for plan in plans) - there)


def _about_bytes(samples: list[Sample]) -> int:
    """What the copies of some images of one split will take, about."""
    if not samples:
        return 0
    with Image.open(samples[0].path) as image:
        grey = image.mode in ("L", "1")
    total = 0.0
    for sample in samples:
        suffix = sample.path.suffix.lower()
        total += sample.path.stat().st_size * (GREY_GROWTH if grey and suffix == ".png" else GROWTH.get(suffix, 5.0))
        total += sample.mask.stat().st_size if sample.mask else 0
    return int(total)


def check_room(folder: str | Path, needed: int) -> None:
    """Raise an OSError, before anything is written, if a disk has no room for copies.

    Args:
        folder: where they will lie; it need not exist yet.
        needed: bytes.
    """
    folder = Path(folder).absolute()
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is None:
        raise OSError(f"degraded copies of images cannot be written into {folder}: there is no such disk; name another folder")
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"degraded copies of images need about {needed / 1e6:,.0f} MB below {folder}, and {free / 1e6:,.0f} MB are free there: "
            "free some, or name another folder"
        )


def degrade(category: Category, folder: str | Path, quality: Quality, sides: str = "test") -> Category:
    """Return the category with one side or both degraded, after writing the degraded images and masks.

    They are written in the layout of MVTec AD, images as PNG: `folder`/<name>/train/good/<stem>.png,
    test/<defect>/<stem>.png and ground_truth/<defect>/<stem>_mask.png. The other side is not copied but left where
    it lies: its fingerprint stays, so that features that were computed of it can be shared. A folder of both sides
    can be read by `rcp.mvtec`, too.

    A folder that is complete, of the same quality, sides and source, is used as it is. One that a kill left
    half-written, or that has lost or changed files, is written anew. Two processes may write the same one at the same
    time: every file appears whole, with the same content from both.

    Args:
        category: of any layout; images keep their size.
        folder: gets a folder named as the category, with a recipe in it; made if need be.
        quality: how strongly, and the seed.
        sides: "test", "train" or "both".

    Returns:
        The category; each degraded split is sorted by its new paths, which can be another order than before
        (BTAD's "ok" is "good" now): pair by stem, not by position.

    Raises:
        ValueError: unknown sides, a side without images, or two images of one defect and stem.
        FileExistsError: the category's folder holds something else: other files, or another quality or source.
        ImageError: an unreadable image or mask, or a mask that has not the size of its image.
        OSError: the disk has no room for the copies; nothing is written then.

    Source:
        Hyun et al., ReConPatch, Table 4; magnitudes are ours.
    """
    if sides not in SIDES:
        raise ValueError(f"sides must be one of {', '.join(SIDES)}, not {sides!r}")
    if category.name in ("", ".", "..") or Path(category.name).name != category.name:
        raise ValueError(f"{category.name!r} cannot be the name of a folder: give the category another name")
    root = Path(folder) / category.name
    source = {side: getattr(category, side) for side in SIDES[sides]}
    for side, split in source.items():
        if not split:
            raise ValueError(f"category {category.name!r} has no {side} images to degrade: choose other sides")
    plans = {side: _plan(split, root) for side, split in source.items()}
    recipe = {"version": VERSION, "quality": dataclasses.asdict(quality), "sides": sides,
              "source": {side: split.fingerprint() for side, split in source.items()}}
    made = {side: Split(side, root / side, tuple(sorted(plan.values(), key=lambda sample: sample.path.as_posix())))
            for side, plan in plans.items()}
    if not _is_complete(root, recipe, made):
        check_room(folder, missing(category, folder, sides)[1])
        # The mark comes first, so that a half-written folder is known as ours and may be written anew.
        write_json(root / RECIPE, {**recipe, "made": None})
        _write(plans, source, quality)
        write_json(root / RECIPE, {**recipe, "made": {side: split.fingerprint() for side, split in made.items()}})
    return Category("mvtec", category.name, root, made.get("train", category.train), made.get("test", category.test))


def degrade_pixels(pixels: np.ndarray, mask: np.ndarray | None, quality: Quality,
                   generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a degraded image and its mask, moved along.

    In this order: rotation about the centre and translation, in one bilinear resampling, where the picture is
    continued by its mirror image; contrast about the mean of all values; brightness; blur. Values are rounded and
    clipped once, at the end. The mask is moved by the same transform, each pixel taken from its nearest one, and
    pixels that come from outside the picture are no defect, even where the mirror image repeats one.

    A movement that leaves less than half of the mask's pixels in the picture is drawn again, at most eight times in
    all; then the last one is halved until it does. Light and blur are not drawn again.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        mask: bool (H, W), True where the pixel is anomalous, or None if there is none; then nothing is drawn again.
        quality: the magnitudes; its seed is not used.
        generator: gives the random numbers.

    Returns:
        uint8 (H, W, 3), and bool (H, W) or None.

    Raises:
        ValueError: pixels or a mask of another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    if mask is not None and (mask.dtype != bool or mask.shape != pixels.shape[:2]):
        raise ValueError(f"mask must be bool {pixels.shape[:2]}, as its image, not {mask.dtype} {mask.shape}")
    h, w = pixels.shape[:2]
    # Light and blur are drawn first: how often the movement is drawn does not change them.
    brightness, contrast = generator.uniform(-1, 1, 2) * (quality.brightness, quality.contrast)
    sigma = generator.uniform() * quality.blur * min(h, w) / SHORT_SIDE
    for move in _moves((quality.degrees, quality.shift * h, quality.shift * w), generator):
        moved = None if mask is None else _move(mask, move, order=0, mode="grid-constant")
        if mask is None or moved.sum() >= KEPT * mask.sum():
            break
    values = np.empty(pixels.shape, np.float32)  # (H, W, 3)
    for channel in range(3):
        values[..., channel] = _move(pixels[..., channel], move, order=1, mode="reflect")
    # (1 + b) * (mean + (1 + c) * (x - mean)), written so that it is exactly x if b = c = 0.
    mean = float(values.mean(dtype=np.float64))
    values = values * np.float32((1 + brightness) * (1 + contrast)) - np.float32((1 + brightness) * contrast * mean)
    if sigma > 0:
        values = ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="reflect")
    return np.clip(np.rint(values), 0, 255).astype(np.uint8), moved


def _moves(magnitudes: tuple[float, float, float], generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield (degrees, rows down, columns right): `TRIES` draws, then the last one halved again and again."""
    for _ in range(TRIES):
        move = generator.uniform(-1, 1, 3) * magnitudes
        yield move
    while True:  # ends with the caller: a move of far less than a pixel leaves every mask as it is
        move = move / 2
        yield move


def _move(plane: np.ndarray, move: np.ndarray, *, order: int, mode: str) -> np.ndarray:
    """Return one (H, W) plane turned counter-clockwise about its centre, then shifted.

    Angles are in pixels, not in normalised coordinates: these would shear a picture with H != W.

    Returns:
        float32 if order is 1 (bilinear), the plane's own type if it is 0 (nearest).
    """
    if not move.any():
        return plane
    angle, shift = np.deg2rad(move[0]), move[1:]
    centre = (np.array(plane.shape) - 1) / 2
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # from output to input
    return ndimage.affine_transform(plane, back, centre - back @ (centre + shift), order=order, mode=mode,
                                    output=np.float32 if order else plane.dtype)


def _generator(seed: int, split: Split, sample: Sample) -> np.random.Generator:
    """Return the random numbers of one image, known by its split and its path below the split's root."""
    place = f"{split.name}/{sample.path.relative_to(split.root).as_posix()}"
    return np.random.default_rng([seed, *np.frombuffer(hashlib.sha256(place.encode()).digest(), "<u4").tolist()])


def _plan(split: Split, root: Path) -> dict[Sample, Sample]:
    """Return {sample: what it becomes} below `root`."""
    plan, taken = {}, {}
    for sample in split:
        path = root / split.name / sample.defect / f"{sample.path.stem}.png"
        mask = root / "ground_truth" / sample.defect / f"{sample.path.stem}_mask.png" if sample.mask else None
        if path in taken:
            raise ValueError(f"{taken[path]} and {sample.path} would both become {path}: rename one of them")
        taken[path], plan[sample] = sample.path, Sample(path, sample.defect, mask)
    return plan


def _is_complete(root: Path, recipe: dict, made: dict[str, Split]) -> bool:
    """Whether `root` holds what the recipe makes, whole; anything else than that or a part of it is an error."""
    names = [path.name for path in root.iterdir()] if root.exists() else []
    if all(name.startswith(f".{RECIPE}.") for name in names):
        return False  # nothing there, or killed while it wrote its mark
    if RECIPE not in names:
        raise FileExistsError(f"{root} exists and was not made by rcp.quality: choose another folder")
    found = read_json(root / RECIPE)  # written atomically: never half of it
    fingerprints = found.pop("made", None) if isinstance(found, dict) else None
    if found != recipe:
        differs = [key for key in recipe if not isinstance(found, dict) or found.get(key) != recipe[key]]
        raise FileExistsError(f"{root} was made with another {' and '.join(differs) or 'recipe'} (see {RECIPE} in it): "
                              "choose another folder, or delete this one")
    files = [path for split in made.values() for sample in split for path in (sample.path, sample.mask) if path]
    return (fingerprints is not None and all(path.is_file() for path in files)
            and fingerprints == {side: split.fingerprint() for side, split in made.items()})


def _write(plans: dict[str, dict[Sample, Sample]], source: dict[str, Split], quality: Quality) -> None:
    """Write every image and mask of the plans."""
    jobs = [(source[side], before, after) for side, plan in plans.items() for before, after in plan.items()]

    def write_one(job: tuple[Split, Sample, Sample]) -> None:
        split, before, after = job
        pixels = read_image(before.path)
        mask = read_mask(before.mask, pixels.shape[:2]) if before.mask else None
        pixels, mask = degrade_pixels(pixels, mask, quality, _generator(quality.seed, split, before))
        _save(after.path, pixels)
        if after.mask:
            _save(after.mask, mask.astype(np.uint8) * 255)

    with bar("worse images", len(jobs), "image") as shown, ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(write_one, jobs):
            shown.update(1)


def _save(path: Path, values: np.ndarray) -> None:
    """Write a PNG atomically; weakly compressed, which takes a fraction of the time."""
    write_atomically(path, lambda temporary: Image.fromarray(values).save(temporary, format="PNG", compress_level=1))
