"""An industrial-inspection dataset made on the spot, in the layout of MVTec AD: nothing is downloaded.

Four products with four kinds of defect each: two textures cut from photographs (``brick``, ``granulate``), an
object that always lies the same way (``terminal``) and one that lies at any angle (``flange``). Training
images are sound; test images are sound or carry one defect whose mask is known exactly, because we drew it::

    ROOT/<category>/train/good/000.png
    ROOT/<category>/test/good/000.png
    ROOT/<category>/test/<defect>/000.png
    ROOT/<category>/ground_truth/<defect>/000_mask.png

Every image has a random stream of its own, named by seed, category, kind and index: any image can be made
alone, in any order, and is the same. The drawing is done in :mod:`rcp.synthetic_textures` and
:mod:`rcp.synthetic_objects`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image

from rcp import synthetic_objects as objects
from rcp import synthetic_textures as textures
from rcp.progress import bar as progress_bar
from rcp.synthetic_surface import Flaw, Scene, photograph

VERSION = 1  # raise it when the images change, so that cached ones are not mistaken for new ones
RECIPE = "rcp-synthetic.json"

_SOUND: dict[str, Callable[[np.random.Generator], Scene]] = {
    "brick": textures.brick,
    "granulate": textures.granulate,
    "terminal": objects.terminal,
    "flange": objects.flange,
}
_FLAWS: dict[str, dict[str, Callable[[Scene, np.random.Generator], Flaw]]] = {
    "brick": {
        "bloom": textures.brick_bloom,
        "chip": textures.brick_chip,
        "crack": textures.brick_crack,
        "paint": textures.brick_paint,
    },
    "granulate": {
        "colour": textures.granulate_colour,
        "dust": textures.granulate_dust,
        "foreign": textures.granulate_foreign,
        "oil": textures.granulate_oil,
    },
    "terminal": {
        "crack": objects.terminal_crack,
        "misprint": objects.terminal_misprint,
        "missing_screw": objects.terminal_missing_screw,
        "swarf": objects.terminal_swarf,
    },
    "flange": {
        "missing_hole": objects.flange_missing_hole,
        "nick": objects.flange_nick,
        "rust": objects.flange_rust,
        "scratch": objects.flange_scratch,
    },
}
CATEGORIES: tuple[str, ...] = tuple(_SOUND)
DEFECTS: dict[str, tuple[str, ...]] = {category: tuple(flaws) for category, flaws in _FLAWS.items()}


def render(
    category: str, split: str, index: int, *, seed: int = 0, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return one photograph and its defect mask.

    Args:
        category: one of ``CATEGORIES``.
        split: ``"train"`` or ``"test"``.
        index: number of the image within its folder, from 0.
        seed: seed of the whole dataset, from 0.
        defect: one of ``DEFECTS[category]``, or None for a sound product. Only test images have one.

    Returns:
        The image, (256, 256, 3) uint8 RGB, and the mask, (256, 256) bool, True where the defect lies. Outside
        the mask the image is, to the last bit, the one that the product would have given without the defect.

    Raises:
        ValueError: for an unknown category, split or defect, or a defect in the training split.
    """
    _, image, mask = _with_and_without(category, split, index, seed, defect)
    return image, mask


def _with_and_without(
    category: str, split: str, index: int, seed: int, defect: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The product without its defect, with it, and the mask; both images share everything but the defect."""
    _check_choice("category", category, CATEGORIES)
    _check_choice("split", split, ("train", "test"))
    stream = [seed, CATEGORIES.index(category), _split_number(category, split, defect), index]
    scene = _SOUND[category](np.random.default_rng(stream))
    sound = photograph(scene.surface, scene.camera)
    if defect is None:
        return sound, sound, np.zeros(sound.shape[:2], bool)
    surface, mask = _FLAWS[category][defect](scene, np.random.default_rng([*stream, 1]))
    # Lens blur would carry a trace of the defect over the edge of its mask: keep the sound pixels there.
    return sound, np.where(mask[..., None], photograph(surface, scene.camera), sound), mask


def _split_number(category: str, split: str, defect: str | None) -> int:
    """0 for training images, 1 for sound test images, 2, 3, ... for the defects."""
    if defect is None:
        return 0 if split == "train" else 1
    _check_choice(f"defect of {category!r}", defect, DEFECTS[category])
    if split == "train":
        raise ValueError(f"training images are sound: defect {defect!r} needs split='test'")
    return 2 + DEFECTS[category].index(defect)


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what}: {value!r}; choose from {', '.join(choices)}")


def write(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    categories: Sequence[str] = CATEGORIES,
    train: int = 64,
    good: int = 20,
    per_defect: int = 9,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the folder ``root`` after writing the dataset into it, one category at a time.

    A category appears complete or not at all. Categories that are there already, made with the same settings,
    are left as they are; nothing that exists is ever overwritten.

    Args:
        root: folder to hold one folder per category; made if need be.
        seed: seed of the dataset, from 0.
        categories: which of ``CATEGORIES`` to write.
        train: number of (sound) training images per category.
        good: number of sound test images per category.
        per_defect: number of test images per kind of defect.
        progress: called with (images done, images to make) after every image.

    Returns:
        ``root`` as a Path.

    Raises:
        ValueError: for an unknown category or a negative count.
        FileExistsError: if a category's folder exists and does not hold exactly what would be written.
    """
    for category in categories:
        _check_choice("category", category, CATEGORIES)
    for name, count in {"train": train, "good": good, "per_defect": per_defect}.items():
        if count < 0:
            raise ValueError(f"{name} must not be negative, but is {count}")
    root = Path(root)
    recipe = {"version": VERSION, "seed": seed, "train": train, "good": good, "per_defect": per_defect}
    missing = [category for category in categories if not _is_there(root / category, recipe)]
    root.mkdir(parents=True, exist_ok=True)
    total = sum(len(_plan(category, recipe)) for category in missing)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for category in missing:
        # The temporary folder stands next to the category, hence on the same disk: the move is one step.
        staging = Path(tempfile.mkdtemp(dir=root, prefix=f".{category}-"))
        try:
            _write_category(staging / category, category, recipe, tick)
            _move(staging / category, root / category, recipe)
        finally:
            shutil.rmtree(staging)
    return root


def cached(seed: int = 0) -> Path:
    """Return the folder of the default dataset in the user's cache, written on first use (some ten seconds).

    The cache is the folder that the environment variable ``RCP_CACHE`` names, else the system's usual place.
    Two processes may call this at the same time: both do the work, one result stays.

    Args:
        seed: seed of the dataset, from 0.

    Returns:
        Folder with one folder per category.

    Raises:
        FileExistsError: if files of the cached folder have been lost; the message names what to delete.
    """
    cache = Path(os.environ.get("RCP_CACHE") or platformdirs.user_cache_dir("rcp"))
    return write_with_bar(cache / f"synthetic-v{VERSION}-seed{seed}", seed=seed)


def write_with_bar(root: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Return what `write` returns for the default dataset, with a progress bar.

    Args:
        root: folder to hold one folder per category.
        seed: seed of the dataset, from 0.
    """
    with progress_bar("embedded data", None, "image") as shown:
        return write(root, seed=seed, progress=lambda done, total: shown.update(1))


def _plan(category: str, recipe: dict[str, int]) -> list[tuple[str, str | None, int]]:
    """The split, defect and index of every image of one category."""
    groups = [("train", None, recipe["train"]), ("test", None, recipe["good"])]
    groups += [("test", defect, recipe["per_defect"]) for defect in DEFECTS[category]]
    return [(split, defect, index) for split, defect, count in groups for index in range(count)]


def _write_category(folder: Path, category: str, recipe: dict[str, int], tick: Callable[[], None]) -> None:
    """Write one category into a new folder; ``tick`` is called after each image."""
    for part in ("train/good", "test/good", *(f"test/{defect}" for defect in DEFECTS[category])):
        (folder / part).mkdir(parents=True)
    for defect in DEFECTS[category]:
        (folder / "ground_truth" / defect).mkdir(parents=True)

    def write_one(job: tuple[str, str | None, int]) -> None:
        split, defect, index = job
        image, mask = render(category, split, index, seed=recipe["seed"], defect=defect)
        path = folder / split / (defect or "good") / f"{index:03d}.png"
        Image.fromarray(image).save(path, compress_level=1)
        if defect is not None:
            target = folder / "ground_truth" / defect / f"{index:03d}_mask.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(target, compress_level=1)

    with ThreadPoolExecutor(max_workers=2) as pool:  # numpy, scipy and zlib let go of the interpreter's lock
        for _ in pool.map(write_one, _plan(category, recipe)):
            tick()
    (folder / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def _is_there(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether the category stands there, complete and of this recipe; anything else there is an error."""
    if not os.path.lexists(folder):
        return False
    if not (folder / RECIPE).is_file():
        raise FileExistsError(f"{folder} exists and was not made by rcp.synthetic; choose another folder")
    try:
        found = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileExistsError(f"{folder / RECIPE} is damaged ({error}); delete {folder} to make it anew") from error
    if found != recipe:
        raise FileExistsError(f"{folder} was made with {found}, not {recipe}; choose another folder")
    masks = len(DEFECTS[folder.name]) * recipe["per_defect"]
    wanted, have = len(_plan(folder.name, recipe)) + masks, sum(1 for _ in folder.rglob("*.png"))
    if have != wanted:
        raise FileExistsError(f"{folder} holds {have} PNG files, not {wanted}; delete it to make it anew")
    return True


def _move(staged: Path, folder: Path, recipe: dict[str, int]) -> None:
    """Put a finished category in its place; if another process was faster with the same one, keep that."""
    try:
        os.replace(staged, folder)
    except OSError:
        if not _is_there(folder, recipe):
            raise
