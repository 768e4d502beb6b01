"""Folders in, samples out: which files are normal, which are anomalous, and which mask belongs to which.

Nothing is decoded. Four layouts are read: MVTec AD, BTAD, VisA, plain folders. Except in VisA's table, the
mask of <stem>.* is <stem>.* or <stem>_mask.*, of any suffix: paired by stem, never by position.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
NORMAL_NAMES = ("good", "ok", "normal")
# Layout -> folders below train/ that may hold its images; "" is train/ itself.
TRAIN_PLACES = {"mvtec": ("good",), "btad": ("ok",), "folder": ("", *NORMAL_NAMES)}
VISA_TABLE = Path("split_csv", "1cls.csv")


class DataError(ValueError):
    """A folder that cannot be read as a data set; the message says what is wrong, where, and what to do."""


class DataWarning(UserWarning):
    """Files that were left out."""


@dataclass(frozen=True)
class Sample:
    """One image file, its defect ("good" for a normal image) and its mask file, if it has one."""

    path: Path
    defect: str
    mask: Path | None = None

    @property
    def label(self) -> int:
        """0 for a normal image, 1 for an anomalous one."""
        return int(self.defect != "good")


@dataclass(frozen=True)
class Split(Sequence[Sample]):
    """The samples of "train" or "test", sorted by path; `root` is the folder that all of them lie under."""

    name: str
    root: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | slice) -> Sample | Split:
        if isinstance(index, slice):
            return Split(self.name, self.root, self.samples[index])
        return self.samples[index]

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,): 0 normal, 1 anomalous."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def defects(self) -> list[str]:
        """The defect name of each sample, "good" for normal ones."""
        return [sample.defect for sample in self.samples]

    @property
    def paths(self) -> list[Path]:
        """The image file of each sample."""
        return [sample.path for sample in self.samples]

    @property
    def has_masks(self) -> bool:
        """True if there is an anomalous sample and every anomalous sample has a mask."""
        masks = [sample.mask for sample in self.samples if sample.label]
        return bool(masks) and None not in masks

    def counts(self) -> dict[str, int]:
        """Return how many samples each defect has, by name."""
        return dict(sorted(Counter(self.defects).items()))

    def fingerprint(self) -> str:
        """Return a sha256 hex digest that changes with any image's relative path, defect, content or mask."""
        lines = [f"{sample.path.relative_to(self.root).as_posix()}\0{sample.defect}\0{_sha256(sample.path)}\0"
                 f"{_sha256(sample.mask) if sample.mask else 'no mask'}\n" for sample in self.samples]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@dataclass(frozen=True)
class Category:
    """One object or texture of a data set: normal images to train on, and a test split (possibly empty)."""

    dataset: str  # the layout: "mvtec", "btad", "visa" or "folder"
    name: str
    root: Path  # the folder of the category; for VisA the folder of the table, whose paths start there
    train: Split
    test: Split


def mvtec(root: str | Path, category: str) -> Category:
    """Return a category of MVTec AD: train/good, test/<defect>, ground_truth/<defect>; see `find`."""
    return _read_tree(_category_folder(root, category), "mvtec")


def btad(root: str | Path, category: str) -> Category:
    """Return a category of BTAD: train/ok, test/ok, test/ko, ground_truth/ko; see `find`."""
    return _read_tree(_category_folder(root, category), "btad")


def visa(root: str | Path, category: str) -> Category:
    """Return a category as VisA's ROOT/split_csv/1cls.csv lists it, of one defect, "anomaly"; see `find`."""
    root = _folder(root)
    table, samples = root / VISA_TABLE, {"train": [], "test": []}
    for line, row in enumerate(_visa_rows(root), start=2):  # line 1 holds the column names
        if row["object"] == category:
            sample = _visa_sample(root, row, f"{table}, line {line}")
            samples[row["split"]].append(sample)
    if not samples["train"]:
        raise DataError(f"no category {category!r} in {table}: it has {', '.join(categories(root))}")
    _check_masks(samples["test"], table)
    return Category("visa", category, root, *(_split(name, root, found) for name, found in samples.items()))


def folder(train: str | Path, test: str | Path | None = None, masks: str | Path | None = None,
           name: str | None = None) -> Category:
    """Return a category from folders of any place and name.

    Args:
        train: normal images, directly in it or in one subfolder good, ok or normal.
        test: subfolders of images; good, ok and normal hold normal ones, any other is named as its defect.
        masks: masks/<defect>/<stem>.*, masks/<defect>/<stem>_mask.*, or the same without <defect>.
        name: what to call the category; else it is called as `train`, or as the parent of a "train".

    Returns:
        The category; its test split is empty if `test` is None.

    Raises:
        DataError: a folder, the training images or some masks are missing, or a pairing is ambiguous.
    """
    train, test, masks = (None if path is None else _folder(path) for path in (train, test, masks))
    root = train.parent if train.name == "train" else train
    return _read("folder", name or root.absolute().name, root, train, test, masks)


def find(root: str | Path, category: str | None = None, layout: str = "auto") -> Category:
    """Return the category at ROOT/CATEGORY, or at ROOT if it is one itself, finding out its layout.

    Args:
        root: a folder of categories, or of one: train/, maybe test/, ground_truth/ or masks/; or images.
        category: a name that `categories` lists; None if `root` is the category.
        layout: "mvtec", "btad", "visa" or "folder" to demand that one, "auto" to look.

    Returns:
        The category; its test split is empty if there is no test folder.

    Raises:
        DataError: no such category or layout, missing training images or masks, or an ambiguous pairing.
    """
    root = _folder(root)
    if layout not in ("auto", "visa", *TRAIN_PLACES):
        raise DataError(f"unknown layout {layout!r}: choose auto, visa, {', '.join(TRAIN_PLACES)}")
    if category is None and not (root / "train").is_dir() and (names := categories(root)):
        raise DataError(f"{root} holds the categories {', '.join(names)}: name one of them")
    if layout == "visa" or (layout == "auto" and (root / VISA_TABLE).is_file()):
        return visa(root, category)
    base = root if category is None else _category_folder(root, category)
    if layout == "auto":
        signs = [name for name in ("mvtec", "btad") if (base / "train" / TRAIN_PLACES[name][0]).is_dir()]
        layout = signs[0] if signs and not (base / "masks").is_dir() else "folder"
    return _read_tree(base, layout)


def categories(root: str | Path) -> list[str]:
    """Return the sorted names of the categories in `root`: folders that hold train/, or VisA's table."""
    root = _folder(root)
    if (root / VISA_TABLE).is_file():
        return sorted({row["object"] for row in _visa_rows(root)})
    return [path.name for path in _subfolders(root) if (path / "train").is_dir()]


def _category_folder(root: str | Path, category: str) -> Path:
    root = _folder(root)
    if category and (root / category).is_dir():
        return root / category
    if (root / "train").is_dir():
        raise DataError(f"{root} is itself a category (it holds train/): pass its parent as the root")
    raise DataError(f"no category {category!r} in {root}: found "
                    f"{', '.join(categories(root)) or 'no folder that holds train/'}")


def _read_tree(base: Path, layout: str) -> Category:
    """Read train/, test/ and masks below `base`; a plain folder without train/ is the training folder."""
    train = base if layout == "folder" and not (base / "train").is_dir() else base / "train"
    test, *masks = (base / d if (base / d).is_dir() else None for d in ("test", "ground_truth", "masks"))
    if all(masks):
        raise DataError(f"{base} holds both ground_truth/ and masks/: keep one of them")
    return _read(layout, base.absolute().name, base, train, test, masks[0] or masks[1])


def _read(layout: str, name: str, root: Path, train: Path, test: Path | None, masks: Path | None) -> Category:
    normal = [Sample(path, "good") for path in _training_images(train, TRAIN_PLACES[layout])]
    samples = _test_samples(test, masks) if test else []
    return Category(layout, name, root, _split("train", train, normal), _split("test", test or root, samples))


def _split(name: str, root: Path, samples: list[Sample]) -> Split:
    return Split(name, root, tuple(sorted(samples, key=lambda sample: sample.path.as_posix())))


def _training_images(train: Path, places: tuple[str, ...]) -> list[Path]:
    found = {place: _images(place) for place in (train, *_subfolders(train)) if _images(place)}
    normal = [place for place in found if ("" if place == train else place.name.lower()) in places]
    if len(found) != 1 or not normal:
        looked = " or ".join(str(train / place) for place in places)
        problem = "training images in several folders" if normal else "no training images"
        raise DataError(f"{problem}: looked in {looked}, found in {', '.join(map(str, found)) or 'none'}; "
                        "one folder must hold them all, only normal ones (move others to the test folder)")
    return found[normal[0]]


def _test_samples(test: Path, masks: Path | None) -> list[Sample]:
    found = {place: _images(place) for place in _subfolders(test)}
    if _images(test) or not any(found.values()):
        raise DataError(f"test images must lie in subfolders of {test}, good/ or named as a defect: found "
                        f"{len(_images(test))} directly in it, {sum(map(len, found.values()))} in subfolders")
    samples = []
    for place, images in found.items():
        if not images:
            warnings.warn(f"{place} holds no images and is left out", DataWarning)
        defect = "good" if place.name.lower() in NORMAL_NAMES else place.name
        pairs = {} if masks is None or defect == "good" else _pair(images, _mask_folder(masks, defect))
        samples += [Sample(path, defect, pairs.get(path)) for path in images]
    if masks is not None:
        _check_masks(samples, masks)
    return samples


def _mask_folder(masks: Path, defect: str) -> Path:
    return masks / defect if (masks / defect).is_dir() else masks


def _pair(images: list[Path], place: Path) -> dict[Path, Path]:
    """Return {image: mask} for those images that have a mask in this folder."""
    by_stem = defaultdict(list)
    for mask in _images(place):
        by_stem[mask.stem].append(mask)
    found = {image: by_stem[image.stem] + by_stem[f"{image.stem}_mask"] for image in images}
    for image, masks in found.items():
        if len(masks) > 1:
            raise DataError(f"{image} has two masks, {masks[0]} and {masks[1]}: remove one")
    return {image: masks[0] for image, masks in found.items() if masks}


def _check_masks(samples: list[Sample], masks: Path) -> None:
    """Raise if two images share a mask or only some anomalous ones have one; warn of masks without image."""
    bare, used = [sample for sample in samples if sample.label and not sample.mask], {}
    for sample in (sample for sample in samples if sample.mask):
        if sample.mask in used:
            raise DataError(f"{used[sample.mask]} and {sample.path} have one stem and so one mask, "
                            f"{sample.mask}: rename images and masks so that each image has its own")
        used[sample.mask] = sample.path
    if used and bare:
        path, place = bare[0].path, _mask_folder(masks, bare[0].defect)
        there = ", ".join(mask.name for mask in _images(place)[:3]) or "none"
        raise DataError(f"{len(bare)} of {len(bare) + len(used)} anomalous images have no mask: for {path} "
                        f"looked for {path.stem}.* and {path.stem}_mask.* in {place}, found {there}; "
                        "add the masks, or take all away to use image metrics only")
    normal = {sample.path.stem for sample in samples if not sample.label}  # may have all-black flat masks
    places = [masks, *(place for place in _subfolders(masks) if place.name.lower() not in NORMAL_NAMES)]
    unused = [mask for place in places for mask in _images(place) if mask not in used
              and not (place == masks and mask.stem.removesuffix("_mask") in normal)]
    if unused:
        warnings.warn(f"{len(unused)} masks fit no test image and are unused, like {unused[0]}", DataWarning)


def _visa_rows(root: Path) -> list[dict[str, str]]:
    table = root / VISA_TABLE
    if not table.is_file():
        advice = f"pass {root.parent}" if (root.parent / VISA_TABLE).is_file() else "unpack split_csv/ there"
        raise DataError(f"no table {table}: VisA's root holds it beside the categories; {advice}")
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, restval="")
        if missing := {"object", "split", "label", "image", "mask"} - set(rows.fieldnames or ()):
            raise DataError(f"{table} lacks the columns {', '.join(sorted(missing))}: restore the original")
        return list(rows)


def _visa_sample(root: Path, row: dict[str, str], where: str) -> Sample:
    kind = row["split"], row["label"]
    if kind not in (("train", "normal"), ("test", "normal"), ("test", "anomaly")):
        raise DataError(f"{where}: split and label are {kind}: train takes normal, test normal or anomaly")
    defect = "good" if row["label"] == "normal" else "anomaly"
    image, mask = root / row["image"], root / row["mask"] if defect == "anomaly" and row["mask"] else None
    for path in filter(None, (image, mask)):
        if not (path.is_file() and path.is_relative_to(root)):
            raise DataError(f"{where}: no file {path}: unpack the category beside split_csv/")
    return Sample(image, defect, mask)


def _folder(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: check the path (an archive must be unpacked)")
    return path


def _images(place: Path) -> list[Path]:
    return [path for path in _visible(place) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _subfolders(place: Path) -> list[Path]:
    return [path for path in _visible(place) if path.is_dir()]


def _visible(place: Path) -> list[Path]:
    paths = place.iterdir() if place.is_dir() else ()
    return sorted((path for path in paths if not path.name.startswith(".")), key=Path.as_posix)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
