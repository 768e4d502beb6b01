"""Semantic anomalies: handwritten digits, where what is anomalous is not a defect but another digit.

The 1797 digits of 8x8 pixels that scikit-learn carries stand in for MNIST: nothing is downloaded. Two protocols:

* `one_against_rest`: one digit is normal, all others are anomalies.
* `all_but_one`: one digit is the anomaly, all others are normal, so normal has nine faces.

Each writes a category in the layout of MVTec AD (no masks: the whole picture is the anomaly) and returns it, as "rest-3" and
"one-3"; `python -m rcp.semantic DIR` writes them for all ten digits.

Source: the protocols are those of Zhu & Pang, InCTRL (arXiv 2403.06495), "one-vs-all" and "multi-class", on MNIST and CIFAR-10.
Data: Alpaydin & Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image

from rcp.data import Category, mvtec

VERSION = 1  # raise it when the images change, so that cached ones are not mistaken for new ones
RECIPE = "rcp-digits.json"


def one_against_rest(
    digit: int, *, root: str | Path | None = None, train: int = 64, good: int = 40, bad: int = 45, side: int = 64, seed: int = 0
) -> Category:
    """Return the category in which one digit is normal and the others are anomalies; written on first use.

    Args:
        digit: the normal one, 0 to 9.
        root: folder to hold the category; None: the user's cache.
        train: training images at most: half of a digit's images, some 89, can be trained on.
        good: normal test images at most.
        bad: anomalous test images at most, evenly from all their digits.
        side: of the pictures in pixels; the 8x8 are enlarged bicubically.
        seed: draws which images are for training and which for testing; no image is in both.

    Returns:
        The category; its defects are named after their digits.

    Raises:
        ImportError: if scikit-learn is missing.
        ValueError: for a digit or count that cannot be.
        FileExistsError: if the folder exists and does not hold exactly what would be written.
    """
    return _category(f"rest-{digit}", digit, [digit], root, train, good, bad, side, seed)


def all_but_one(
    digit: int, *, root: str | Path | None = None, train: int = 90, good: int = 45, bad: int = 40, side: int = 64, seed: int = 0
) -> Category:
    """Return the category in which one digit is the anomaly and the nine others are normal; written on first use.

    Args:
        digit: the anomalous one, 0 to 9.
        root, train, good, bad, side, seed: as for `one_against_rest`; normal images are evenly from the nine digits.

    Returns, Raises:
        As `one_against_rest`.
    """
    normal = [other for other in range(10) if other != digit]
    return _category(f"one-{digit}", digit, normal, root, train, good, bad, side, seed)


def write(root: str | Path, *, seed: int = 0) -> Path:
    """Return the folder after writing both protocols of all ten digits into it, at their default sizes.

    Args:
        root: folder to hold the twenty categories.
        seed: of the split.

    Raises:
        As `one_against_rest`.
    """
    for digit in range(10):
        one_against_rest(digit, root=root, seed=seed)
        all_but_one(digit, root=root, seed=seed)
    return Path(root)


def _category(
    name: str, digit: int, normal: list[int], root: str | Path | None, train: int, good: int, bad: int, side: int, seed: int
) -> Category:
    if digit not in range(10):
        raise ValueError(f"digit must be one of 0 to 9, got {digit!r}")
    if min(train, good, bad) < 1 or side < 8:
        raise ValueError(f"train, good and bad must be positive, side at least 8, got {train}, {good}, {bad} and {side}")
    recipe = {"version": VERSION, "train": train, "good": good, "bad": bad, "side": side, "seed": seed, "normal": normal}
    if root is None:
        cache = Path(os.environ.get("RCP_CACHE") or platformdirs.user_cache_dir("rcp"))
        root = cache / f"digits-v{VERSION}-seed{seed}-{train}-{good}-{bad}-{side}"
    folder = Path(root) / name
    if not _is_there(folder, recipe):
        _write(folder, recipe)
    return mvtec(root, name)


def _write(folder: Path, recipe: dict) -> None:
    """Write a category beside its place, then put it there at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        staged = staging / folder.name
        plan = _plan(recipe)
        for place, images in plan.items():
            (staged / place).mkdir(parents=True)
            for number, image in enumerate(images):
                picture = Image.fromarray(image).resize((recipe["side"], recipe["side"]), Image.Resampling.BICUBIC)
                picture.save(staged / place / f"{number:03d}.png", compress_level=1)
        content = recipe | {"images": sum(map(len, plan.values()))}
        (staged / RECIPE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        try:
            os.replace(staged, folder)
        except OSError:  # another process was faster
            if not _is_there(folder, recipe):
                raise
    finally:
        shutil.rmtree(staging)


def _plan(recipe: dict) -> dict[str, list[np.ndarray]]:
    """Folder → its 8x8 images, uint8: the first half of each digit's, in an order drawn from the seed, is for training."""
    images, digits = _digits()
    halves = {}
    for digit in range(10):
        own = np.random.default_rng([recipe["seed"], digit]).permutation(np.flatnonzero(digits == digit))
        halves[digit] = own[: len(own) // 2], own[len(own) // 2 :]
    normal = recipe["normal"]
    anomalous = [digit for digit in range(10) if digit not in normal]
    plan = {
        "train/good": _evenly([halves[digit][0] for digit in normal], recipe["train"]),
        "test/good": _evenly([halves[digit][1] for digit in normal], recipe["good"]),
    }
    taken = _evenly([halves[digit][1] for digit in anomalous], recipe["bad"])
    plan |= {f"test/digit_{digit}": [i for i in taken if digits[i] == digit] for digit in anomalous}
    return {place: [images[i] for i in chosen] for place, chosen in plan.items() if chosen}


def _evenly(groups: list[np.ndarray], count: int) -> list[int]:
    """The first `count` of the groups' members, one of each group in turn."""
    turns = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
    return [int(member) for member in turns[:count]]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8, white on black, and (1797,) what they are."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "rcp[test]", or scikit-learn') from error
    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def _is_there(folder: Path, recipe: dict) -> bool:
    """Whether the category stands there, complete and of this recipe; anything else there is an error."""
    if not os.path.lexists(folder):
        return False
    if not (folder / RECIPE).is_file():
        raise FileExistsError(f"{folder} exists and was not made by rcp.semantic; choose another folder")
    try:
        found = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        wanted = found.pop("images")
    except (ValueError, KeyError) as error:
        raise FileExistsError(f"{folder / RECIPE} is damaged ({error}); delete {folder} to make it anew") from error
    if found != recipe:
        raise FileExistsError(f"{folder} was made with {found}, not {recipe}; choose another folder")
    if (have := sum(1 for _ in folder.rglob("*.png"))) != wanted:
        raise FileExistsError(f"{folder} holds {have} PNG files, not {wanted}; delete it to make it anew")
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m rcp.semantic", description="Write the digits' categories.")
    parser.add_argument("folder", help="to hold them")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    given = parser.parse_args()
    print(write(given.folder, seed=given.seed))
