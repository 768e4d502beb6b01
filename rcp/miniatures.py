"""MVTec AD, BTAD and VisA in small: their exact folders, names and file types, with pictures that we draw.

For trying the whole path (loaders, `rcp data check`, `rcp reproduce`) on a machine that has none of them. The
pictures are those of :mod:`rcp.synthetic`, one product a category, told apart by turning, mirroring and tinting, and
brought to the shape of the original at a fraction of its size. A number measured on them says that the path works, and
nothing about the real data: with six training pictures, and defects of a few pixels, detectors find many of the defective
places, and rank whole pictures badly.

The layouts::

    mvtec  <category>/train/good/000.png       btad  01/train/ok/0000.bmp
           <category>/test/good/000.png              01/test/ok/0000.bmp
           <category>/test/<defect>/000.png          01/test/ko/0000.bmp
           <category>/ground_truth/<defect>/000_mask.png   01/ground_truth/ko/0000.png
           license.txt, readme.txt             (02: png with png masks; 03: bmp with bmp masks)

    visa   split_csv/1cls.csv                  (columns object, split, label, image, mask; in no order)
           <object>/image_anno.csv             (columns image, label, mask; the label names the defect)
           <object>/Data/Images/Normal/000.JPG, Images/Anomaly/000.JPG, Masks/Anomaly/000.png

VisA's masks hold small numbers, one a kind of defect, and so look black in a viewer; four digits name the normal
images of objects that have a thousand, three all others. BTAD's masks are 0 and 255. Where each fact is from:
:mod:`rcp.official`, and for the masks of VisA the README and the issues of its release. Not known to us: how many
digits name the files of BTAD beyond the ones seen (four), and whether real BTAD has files of further types.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rcp import official, synthetic

VERSION = 1  # raise it when the pictures change
NOTES = {"mvtec": "readme.txt", "btad": "README.txt", "visa": "LICENSE-DATASET"}  # every release has this file
TEXTURES = ("carpet", "grid", "leather", "tile", "wood", "02", "03", "cashew", "chewinggum", "fryum", "pipe_fryum")
# The real VisA objects whose sizes users report; (height, width). The others are drawn in 2:3, too.
VISA_SIZES = {"candle": (1168, 1284), "pcb1": (1070, 1404), "pcb4": (1104, 1358)}
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Job:
    """One picture to draw: of which category, for which split, and where it and its mask go, below the root."""

    category: str
    split: str  # "train" or "test"
    defect: int | None  # its number within the category, None for a normal picture
    index: int
    image: str
    mask: str | None
    size: tuple[int, int]  # (height, width)
    grey: bool = False
    value: int = 255  # what the mask holds inside the defect


def mvtec(root: str | Path, *, seed: int = 0, categories: Sequence[str] = tuple(official.MVTEC), train: int = 6,
          good: int = 3, per_defect: int = 1, scale: int = 8, progress: Callable[[], object] | None = None) -> Path:
    """Return `root` after writing a miniature of MVTec AD there: its names, defects, grey and colour categories.

    Args:
        root: a folder that does not exist yet, or is empty, or holds this very miniature (which is then kept).
        seed: of the pictures, from 0; the same seed gives the same pixels.
        categories: which of the 15.
        train, good, per_defect: pictures per category, and per kind of defect.
        scale: by how much smaller than the original; 8 makes them 87 to 128 pixels wide, 4 at most 256.
        progress: called after every picture.

    Returns:
        The root. It appears complete or not at all.

    Raises:
        ValueError: an unknown category, or a count below one.
        FileExistsError: if `root` holds anything else.
    """
    return _make("mvtec", root, seed, categories, (train, good, per_defect), scale, progress)


def btad(root: str | Path, *, seed: int = 0, categories: Sequence[str] = tuple(official.BTAD), train: int = 6,
         good: int = 3, bad: int = 3, scale: int = 8, progress: Callable[[], object] | None = None) -> Path:
    """Return `root` after writing a miniature of BTAD there: 01, 02, 03 with their file types and shapes.

    Args and errors are those of `mvtec`; `bad` counts the defective pictures (ko).
    """
    return _make("btad", root, seed, categories, (train, good, bad), scale, progress)


def visa(root: str | Path, *, seed: int = 0, categories: Sequence[str] = tuple(official.VISA), train: int = 6,
         good: int = 3, bad: int = 3, scale: int = 8, progress: Callable[[], object] | None = None) -> Path:
    """Return `root` after writing a miniature of VisA there: 12 objects, JPEG pictures, tables, numbered masks.

    Args and errors are those of `mvtec`; `bad` counts the anomalous pictures of an object.
    """
    return _make("visa", root, seed, categories, (train, good, bad), scale, progress)


def draw(job: Job, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture, uint8 (H, W, 3) RGB or (H, W) grey, and its mask, bool (H, W).

    A mask pixel is True if any of the pixels that were averaged into it is defective. So outside the mask the
    picture is, to the last bit, that of the sound product (before JPEG, where the miniature is one of VisA).

    Args:
        job: what to draw.
        seed: of the data set.
    """
    names = [*official.MVTEC, *official.BTAD, *official.VISA]
    number = names.index(job.category)
    products = ("brick", "granulate") if job.category in TEXTURES else ("terminal", "flange")
    product = products[number % 2]
    defect = None if job.defect is None else synthetic.DEFECTS[product][job.defect % 4]
    # Every folder counts on from its own start, so that no two categories or defects share a picture.
    start = 1_000_000 * number + 10_000 * (0 if job.defect is None else job.defect)
    pixels, mask = synthetic.render(product, job.split, start + job.index, seed=seed, defect=defect)
    turned = [np.rot90(array, number // 2 % 4) for array in (pixels, mask)]
    if number // 8 % 2:
        turned = [array[:, ::-1] for array in turned]
    shape = job.size[::-1]  # Pillow says (width, height)
    picture = Image.fromarray(np.ascontiguousarray(turned[0])).resize(shape, Image.Resampling.BOX)
    share = Image.fromarray(turned[1].astype(np.float32)).resize(shape, Image.Resampling.BOX)
    if job.grey:
        return np.array(picture.convert("L")), np.array(share) > 0
    tint = np.random.default_rng([number, 7]).uniform(0.7, 1.0, 3)
    return np.rint(np.asarray(picture) * tint).astype(np.uint8), np.array(share) > 0


def _make(layout: str, root: str | Path, seed: int, categories: Sequence[str], counts: tuple[int, int, int],
          scale: int, progress: Callable[[], object] | None) -> Path:
    known = {"mvtec": official.MVTEC, "btad": official.BTAD, "visa": official.VISA}[layout]
    if unknown := set(categories) - set(known):
        raise ValueError(f"unknown category {min(unknown)!r}: choose from {', '.join(known)}")
    if not categories or not all(1 <= count <= 9999 for count in counts) or not 1 <= scale <= 32:
        raise ValueError(f"counts {counts} must be from 1 to 9,999 and scale {scale} from 1 to 32, with some category")
    root = Path(root)
    recipe = {"version": VERSION, "layout": layout, "seed": seed, "categories": list(categories),
              "counts": list(counts), "scale": scale}  # fmt: skip
    note = ("A miniature made by rcp.miniatures: the layout is that of the real data set, the pictures are drawn.\n"
            f"{json.dumps(recipe)}\n")  # fmt: skip
    jobs = [job for name in categories for job in _JOBS[layout](name, counts, scale)]
    if _is_there(root, layout, note, jobs):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
    try:
        base = staging / "data"
        for place in {Path(name).parent for job in jobs for name in (job.image, job.mask) if name}:
            (base / place).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=2) as pool:  # numpy and Pillow let go of the interpreter's lock
            for _ in pool.map(lambda job: _write(job, base, seed), jobs):
                if progress is not None:
                    progress()
        (base / NOTES[layout]).write_text(note, encoding="utf-8")
        if layout == "mvtec":
            (base / "license.txt").write_text("Drawn pictures: no rights of MVTec Software GmbH.\n", encoding="utf-8")
        if layout == "visa":
            _write_tables(base, jobs, seed)
        _move(base, root, layout, note, jobs)
    finally:
        shutil.rmtree(staging)
    return root


def _is_there(root: Path, layout: str, note: str, jobs: list[Job]) -> bool:
    """Whether this very miniature stands there, complete; anything else that does is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = root / NOTES[layout]
    if not found.is_file() or found.read_text(encoding="utf-8", errors="replace") != note:
        raise FileExistsError(f"{root} holds something else than this miniature: choose another folder")
    lost = next((name for job in jobs for name in (job.image, job.mask) if name and not (root / name).is_file()), None)
    if lost:
        raise FileExistsError(f"{root} has lost {lost}: delete the folder to make it anew")
    return True


def _move(base: Path, root: Path, layout: str, note: str, jobs: list[Job]) -> None:
    """Put the finished miniature in its place; if another process was faster with the same one, keep that."""
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()  # some systems do not move a folder onto an empty one
    try:
        os.replace(base, root)
    except OSError:
        if not _is_there(root, layout, note, jobs):
            raise


def _write(job: Job, base: Path, seed: int) -> None:
    pixels, mask = draw(job, seed)
    options = {".JPG": {"quality": JPEG_QUALITY}, ".png": {"compress_level": 1}}.get(Path(job.image).suffix, {})
    Image.fromarray(pixels).save(base / job.image, **options)
    if job.mask:
        Image.fromarray(mask.astype(np.uint8) * np.uint8(job.value)).save(base / job.mask)


def _folders(counts: tuple[int, int, int], defects: int) -> Iterator[tuple[str, int | None, int]]:
    """Split, number of the defect and index of every picture of a category."""
    train, good, bad = counts
    yield from (("train", None, i) for i in range(train))
    yield from (("test", None, i) for i in range(good))
    yield from (("test", defect, i) for defect in range(defects) for i in range(bad))


def _tree_jobs(name: str, counts: tuple[int, int, int], scale: int, facts: official.Facts, normal: str,
               digits: int, mask_end: str) -> list[Job]:
    size, jobs = tuple(side // scale for side in facts.size), []
    image_type, mask_type = facts.suffixes
    for split, defect, index in _folders(counts, len(facts.defects)):
        folder = normal if defect is None else list(facts.defects)[defect]
        mask = None if defect is None else f"{name}/ground_truth/{folder}/{index:0{digits}}{mask_end}{mask_type}"
        image = f"{name}/{split}/{folder}/{index:0{digits}}{image_type}"
        kind = index if defect is not None and len(facts.defects) == 1 else defect  # one folder holds all kinds
        jobs.append(Job(name, split, kind, index, image, mask, size, facts.mode == "L"))
    return jobs


def _mvtec_jobs(name: str, counts: tuple[int, int, int], scale: int) -> list[Job]:
    return _tree_jobs(name, counts, scale, official.MVTEC[name], "good", 3, "_mask")


def _btad_jobs(name: str, counts: tuple[int, int, int], scale: int) -> list[Job]:
    return _tree_jobs(name, counts, scale, official.BTAD[name], "ok", 4, "")


def _visa_jobs(name: str, counts: tuple[int, int, int], scale: int) -> list[Job]:
    facts, base = official.VISA[name], f"{name}/Data"
    size = tuple(side // scale for side in VISA_SIZES.get(name, (1000, 1500)))
    digits = 4 if facts.train + facts.good >= 1000 else 3
    jobs = []
    for split, defect, index in _folders(counts, 1):
        if defect is None:
            number = index + (counts[0] if split == "test" else 0)  # one folder holds both splits
            jobs.append(Job(name, split, None, index, f"{base}/Images/Normal/{number:0{digits}}.JPG", None, size))
        else:
            mask = f"{base}/Masks/Anomaly/{index:03}.png"
            kind = index % 4
            jobs.append(Job(name, split, kind, index, f"{base}/Images/Anomaly/{index:03}.JPG", mask, size, False,
                            kind + 1))
    return jobs


_JOBS: dict[str, Callable[[str, tuple[int, int, int], int], list[Job]]] = {
    "mvtec": _mvtec_jobs, "btad": _btad_jobs, "visa": _visa_jobs,
}  # fmt: skip


def _write_tables(base: Path, jobs: list[Job], seed: int) -> None:
    """VisA's tables: the split of all objects, shuffled as in the release, and the annotation of each object."""
    (base / "split_csv").mkdir()
    order = np.random.default_rng([seed, 1]).permutation(len(jobs))
    rows = [(j.category, j.split, "normal" if j.mask is None else "anomaly", j.image, j.mask or "")
            for j in (jobs[i] for i in order)]  # fmt: skip
    _write_csv(base / "split_csv" / "1cls.csv", ("object", "split", "label", "image", "mask"), rows)
    for name in dict.fromkeys(job.category for job in jobs):
        rows = [(j.image, "normal" if j.mask is None else f"kind {j.value}", j.mask or "")
                for j in jobs if j.category == name]  # fmt: skip
        _write_csv(base / name / "image_anno.csv", ("image", "label", "mask"), rows)


def _write_csv(path: Path, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
