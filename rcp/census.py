"""`rcp data check`: what a data folder holds, against what was released, and everything odd about it.

Two kinds of findings. *Problems* spoil numbers or stop a run: unreadable files, missing masks, masks of another size
than their image, test images that are training images. *Oddities* are worth knowing: other counts or another size than
released, unusual picture modes, duplicates, stray files.

Sizes and modes are read from the headers, and every mask is decoded; `deep` decodes every image as well, by the rules of
:mod:`rcp.images`. Without it a PNG or BMP file that was cut off is still found, by its end; a JPEG or TIFF is not.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from rcp import data, official, progress
from rcp.images import DECODE_ERRORS, FORMATS, ImageError, read_image, read_mask

ORIENTATION = 274  # the EXIF tag; 1 is upright, 5 to 8 exchange height and width
COMPANIONS = ("license", "readme", "image_anno", "rcp-synthetic")  # files that belong to a data set, by their start
BLOCK = 65536  # bytes that are compared before whole files are
NAMED = 20  # a finding names this many of its files


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed: `problem` if it spoils numbers; of how many files, and the names of the first ones."""

    problem: bool
    category: str  # "" for the data set as a whole
    what: str
    count: int = 0
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.category}: " if self.category else ""
        shown = self.files if self.problem else self.files[:1]
        more = f" and {self.count - len(shown)} more" if self.count > len(shown) else ""
        return f"{where}{self.what}" + (f" ({', '.join(shown)}{more})" if shown else "")


@dataclass(frozen=True)
class Count:
    """What one category holds: counts, (height, width) and mode of its images by how often; and what was released."""

    name: str
    train: int
    good: int
    defects: dict[str, int]
    masks: int
    sizes: dict[str, int]
    modes: dict[str, int]
    official: official.Facts | None

    def differs(self) -> bool:
        """Whether a count is another than the released one; False where none is known."""
        facts = self.official
        return facts is not None and (self.train, self.good, self.defects) != (facts.train, facts.good, facts.defects)


@dataclass(frozen=True)
class Census:
    """What `check` found; as text, a table and two lists in Markdown.

    Attributes:
        root: the folder.
        layout: "mvtec", "btad", "visa", "folder", or "mixed".
        dataset: the released data set that it is compared with, or "" if it is none of the known ones.
        released: how many categories that data set has.
        missing: those that are not there; none are missed where `root` is a category itself.
        categories: a `Count` each.
        findings: problems and oddities.
        deep: whether every image was decoded.
        files, bytes: images and masks that were looked at.
    """

    root: str
    layout: str
    dataset: str
    released: int
    missing: tuple[str, ...]
    categories: tuple[Count, ...]
    findings: tuple[Finding, ...]
    deep: bool
    files: int
    bytes: int

    @property
    def ok(self) -> bool:
        """Whether there is no problem, oddities or not."""
        return not any(finding.problem for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """Return everything as plain dictionaries and lists, with `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        number = f"{len(self.categories)}{f' of {self.released}' if self.released else ''} categories read"
        known = self.dataset or f"no released data set that is known here (layout {self.layout})"
        title = f"{known}, {number}"
        lines = [f"{self.root}: {title}; {self.files} files, {self.bytes / 1e6:.1f} MB", ""]
        rows = [("category", "train", "test good", "defects", "masks", "height x width", "mode")]
        rows += [_row(count) for count in self.categories]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rows.insert(1, tuple("-" * width for width in widths))
        lines += ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
        for title, problem in (("Problems, which spoil numbers", True), ("Oddities", False)):
            found = [f"- {finding}" for finding in self.findings if finding.problem == problem]
            lines += ["", f"{title}: {len(found) or 'none'}", *found]
        if not self.deep:
            lines += ["", "Images were not decoded: --deep does that, and finds damaged JPEG and TIFF files."]
        return "\n".join(lines)


def check(root: str | Path, *, deep: bool = False, layout: str = "auto") -> Census:
    """Return what a folder of categories, or of one category, holds, and what is odd about it.

    Args:
        root: what one would give to `rcp.find`.
        deep: decode every image as well.
        layout: "mvtec", "btad", "visa" or "folder" to demand that one, "auto" to look.

    Returns:
        The census. What a category's loader refuses becomes a finding of its own, and the others are still read.

    Raises:
        DataError: if `root` is no folder, holds no category, or VisA's table cannot be read.
    """
    root = Path(root).expanduser()
    table = (root / data.VISA_TABLE).is_file() and layout in ("auto", "visa")
    single = root.is_dir() and (root / "train").is_dir()
    names: list[str | None] = [None] if single else list(data.categories(root))
    if not names:
        data.find(root, layout=layout)  # a plain folder of images is a category, too; else this says what is missing
        names = [None]
    findings: list[Finding] = []
    here = [name for name in names if name is None or not table or (root / name).is_dir()]
    read = {name: _load(root, name, layout, findings) for name in here}
    layouts = {category.dataset for category in read.values() if category is not None} or {layout}
    kind = layouts.pop() if len(layouts) == 1 else "mixed"
    titles = {name: name or root.absolute().name for name in here}
    facts = official.dataset(kind, list(titles.values()))
    missing = () if single else tuple(name for name in facts if name not in titles.values())
    if missing:
        findings.append(Finding(False, "", "categories of the data set are not here: " + ", ".join(missing)))
    totals, counts = [0, 0], []
    for name, category in read.items():
        if category is not None:
            counts.append(_examine(category, titles[name], facts.get(titles[name]), deep, findings, totals))
            _find_strays(category, root if name is None else root / name, findings)
    if differing := [count.name for count in counts if count.differs()]:
        findings.append(Finding(False, "", f"other counts than released, see the table: {', '.join(differing)}"))
    if not single:
        _find_strange_entries(root, [name for name in names if name], findings)
    dataset = "" if not facts else "VisA" if "candle" in facts else official.NAMES[kind]
    findings.sort(key=lambda finding: (not finding.problem, finding.category))
    return Census(root.as_posix(), kind, dataset, len(facts), missing, tuple(counts), tuple(findings), deep, *totals)


def _load(root: Path, name: str | None, layout: str, findings: list[Finding]) -> data.Category | None:
    """Read a category; a refusal is a problem, a warning an oddity."""
    title = name or root.absolute().name
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            category = data.find(root, name, layout)
        except data.DataError as error:
            findings.append(Finding(True, title, f"cannot be read as a category: {error}"))
            category = None
    findings += [Finding(False, title, str(warning.message)) for warning in told]
    return category


@dataclass(frozen=True)
class _Header:
    """What the head of a file says: its size as one sees it (height, width), mode, and what is unusual about it."""

    size: tuple[int, int]
    mode: str
    oddity: str = ""
    broken: str = ""


def _examine(category: data.Category, title: str, facts: official.Facts | None, deep: bool, findings: list[Finding],
             totals: list[int]) -> Count:
    """Look at the files of a category; add what is odd to `findings` and (files, bytes) to `totals`."""
    samples = [*category.train, *category.test]
    masked = [sample for sample in samples if sample.mask]
    paths = [*(sample.path for sample in samples), *(sample.mask for sample in masked)]
    totals[0] += len(paths)
    totals[1] += sum(path.stat().st_size for path in paths)
    seen: dict[str, list[Path]] = defaultdict(list)  # oddity -> files
    bad: dict[str, list[Path]] = defaultdict(list)  # problem -> files
    with progress.bar(f"checking {title}", len(paths), "file") as shown:
        heads = dict(zip(paths, _each(_header, paths, shown.update)))
        looks = _each(lambda sample: _look_at_mask(sample, heads), masked, None)
        decoded = _each(_decode, [sample.path for sample in samples], shown.update) if deep else ()
        for sample, (problem, oddity) in zip(masked, looks):
            for where, word in ((bad, problem), (seen, oddity)):
                if word:
                    where[word].append(sample.mask)
    for path, head in heads.items():
        if head.broken:
            bad[head.broken].append(path)
    for sample, error in zip(samples, decoded):
        if error and not heads[sample.path].broken:
            bad["an image cannot be decoded"].append(sample.path)
    images = [heads[sample.path] for sample in samples if not heads[sample.path].broken]
    for sample in samples:
        if heads[sample.path].oddity:
            seen[heads[sample.path].oddity].append(sample.path)
    sizes, modes = Counter(head.size for head in images), Counter(head.mode for head in images)
    _find_duplicates(category, bad, seen)
    if unmasked := [sample.path for sample in category.test if sample.label and not sample.mask]:
        text = "anomalous images have no mask" + ("" if facts else ", so there are image metrics only")
        (bad if facts else seen)[text] += unmasked
    if facts and facts.size and sizes and set(sizes) != {facts.size}:
        text = f"stored at {_listed(_named(sizes))}, released at {_by(facts.size)}: numbers are those of a stand-in"
        seen[text] += [sample.path for sample in samples if heads[sample.path].size != facts.size]
    if len(sizes) > 1:
        seen[f"images of {len(sizes)} sizes, the commonest {_by(sizes.most_common(1)[0][0])}"] += [
            sample.path for sample in samples if heads[sample.path].size != sizes.most_common(1)[0][0]]
    usual = facts.mode if facts else modes.most_common(1)[0][0] if modes else ""
    if others := [s.path for s in samples if not heads[s.path].broken and heads[s.path].mode != usual]:
        seen[f"images of mode {', '.join(sorted(set(modes) - {usual}))} where {usual} is usual"] += others
    for problem, group in ((True, bad), (False, seen)):
        findings += [_about(problem, title, what, files, category.root) for what, files in group.items()]
    defects = category.test.counts()
    good = defects.pop("good", 0)
    return Count(title, len(category.train), good, defects, len(masked), _named(sizes), dict(modes), facts)


def _each(function: Callable, items: Iterable, step: Callable[[int], object] | None) -> list:
    """Results in order, from two threads: Pillow works outside the interpreter's lock."""
    results = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for result in pool.map(function, items):
            results.append(result)
            if step is not None:
                step(1)
    return results


def _header(path: Path) -> _Header:
    """Read the head of a file, and its end where that shows whether the file is whole."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, mode, kind = image.size[::-1], image.mode, image.format
            # Where no EXIF stands in the head, asking a PNG for it would decode the picture.
            turn = image.getexif().get(ORIENTATION, 1) if "exif" in image.info or kind == "TIFF" else 1
            wide = kind in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile)
    except DECODE_ERRORS:
        return _Header((0, 0), "", broken="a file cannot be read as an image")
    size = size[::-1] if turn in (5, 6, 7, 8) else size
    oddity = "an image is turned by its EXIF orientation" if turn != 1 else ""
    if wide or mode.startswith("I"):
        oddity = f"an image has 16 bits a channel, which are brought to 8 (mode {mode})"
    return _Header(size, mode, oddity, "a file is cut off" if _is_cut_off(path, kind) else "")


def _is_cut_off(path: Path, kind: str) -> bool:
    """Whether a PNG lacks its last chunk, or a BMP is shorter than it says."""
    if kind not in ("PNG", "BMP"):
        return False
    with path.open("rb") as file:
        head, length = file.read(6), file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 1024))  # some programs leave bytes behind the last chunk
        return b"IEND" not in file.read() if kind == "PNG" else length < int.from_bytes(head[2:6], "little")


def _decode(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""


def _look_at_mask(sample: data.Sample, heads: dict[Path, _Header]) -> tuple[str, str]:
    """Name the problem and the oddity of a mask, "" where there is none."""
    image, head = heads[sample.path], heads[sample.mask]
    if image.broken or head.broken:
        return "", ""
    try:
        mask = read_mask(sample.mask)
    except ImageError:
        return "a mask cannot be decoded", ""
    if mask.shape != image.size:
        return f"a mask of {_by(mask.shape)} belongs to an image of {_by(image.size)}", ""
    lossy = sample.mask.suffix.lower() in (".jpg", ".jpeg", ".webp")
    text = "" if mask.any() else "a mask of a defective image is all black"
    return "", text or ("a mask is a JPEG or WebP file, whose edges are uncertain" if lossy else "")


def _find_duplicates(category: data.Category, bad: dict[str, list[Path]], seen: dict[str, list[Path]]) -> None:
    """Note images of the same bytes: within a split an oddity, across train and test a problem."""
    train = set(category.train.paths)
    groups: list[list[Path]] = [[*category.train.paths, *category.test.paths]]
    for key in (lambda path: path.stat().st_size, _middle, _digest):  # each looks only at what the last left in doubt
        split: list[list[Path]] = []
        for group in groups:
            by_key = defaultdict(list)
            for path in group:
                by_key[key(path)].append(path)
            split += [paths for paths in by_key.values() if len(paths) > 1]
        groups = split
    for group in groups:
        leaked = [path for path in group if path not in train]
        if leaked and len(leaked) < len(group):
            bad["a test image is, byte by byte, a training image"] += leaked
        else:
            seen["an image is there more than once in one split"] += group[1:]


def _middle(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return hashlib.sha256(file.read(BLOCK)).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_strays(category: data.Category, base: Path, findings: list[Finding]) -> None:
    """Note files below a category's folder that are neither its images, nor masks, nor the usual companions."""
    samples = [*category.train, *category.test]
    used = {sample.path for sample in samples} | {sample.mask for sample in samples if sample.mask}
    strays = sorted(path for path in base.rglob("*") if path.is_file() and path not in used
                    and not path.name.lower().startswith(COMPANIONS) and not _is_mask(path, base))  # fmt: skip
    if strays:
        findings.append(_about(False, category.name, "files that belong to no split are left out", strays, base))


def _find_strange_entries(root: Path, names: list[str], findings: list[Finding]) -> None:
    known = {*names, data.VISA_TABLE.parts[0]}
    strange = sorted(path for path in root.iterdir()
                     if path.name not in known and not path.name.lower().startswith(COMPANIONS))  # fmt: skip
    if strange:
        findings.append(_about(False, "", "entries beside the categories are left out", strange, root))


def _is_mask(path: Path, base: Path) -> bool:
    """Whether a file lies among the masks; the loader tells of those that fit no image."""
    return path.relative_to(base).parts[0] in ("ground_truth", "masks") and path.suffix.lower() in data.IMAGE_SUFFIXES


def _about(problem: bool, category: str, what: str, files: list[Path], root: Path) -> Finding:
    names = tuple((path.relative_to(root) if path.is_relative_to(root) else path).as_posix() for path in files[:NAMED])
    return Finding(problem, category, what, len(files), names)


def _row(count: Count) -> tuple[str, ...]:
    facts = count.official
    expected = {} if facts is None else facts.defects
    names = [*expected, *(name for name in count.defects if name not in expected)]
    defects = ", ".join(f"{name} {_of(count.defects.get(name, 0), expected.get(name, 0) if facts else None)}"
                        for name in names)  # fmt: skip
    return (count.name, _of(count.train, facts and facts.train), _of(count.good, facts and facts.good),
            defects or "none", str(count.masks), _listed(count.sizes), _listed(count.modes))


def _of(found: int, released: int | None) -> str:
    return str(found) if released in (None, found) else f"{found} of {released}"


def _listed(counts: dict[str, int]) -> str:
    common = Counter(counts).most_common(3)
    text = ", ".join(name if len(counts) == 1 else f"{name} ({n})" for name, n in common)
    return text + (f", {len(counts) - 3} more" if len(counts) > 3 else "")


def _named(sizes: dict[tuple[int, ...], int]) -> dict[str, int]:
    return {_by(size): number for size, number in sizes.items()}


def _by(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"

