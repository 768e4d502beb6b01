"""`rcp data check`: what is there, against what was released, and every oddity found once planted."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcp import census, data, files, miniatures


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    base, counts = tmp_path_factory.mktemp("made"), {"train": 3, "good": 2, "scale": 16}
    return {
        "mvtec": miniatures.mvtec(base / "mvtec", categories=("bottle", "grid"), **counts),
        "btad": miniatures.btad(base / "btad", categories=("01", "03"), bad=2, **counts),
        "visa": miniatures.visa(base / "visa", categories=("candle", "pcb1"), bad=2, **counts),
    }


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of MVTec AD in small, bottle and grid, to be spoiled."""
    return shutil.copytree(made["mvtec"], tmp_path / "mvtec")


def lines(root: Path, **options) -> tuple[list[str], list[str]]:
    """The problems and the oddities, without those that every miniature has."""
    found = census.check(root, **options).findings
    told = [f for f in found if not any(word in f.what for word in ("stand-in", "not here", "other counts"))]
    return [str(f) for f in told if f.problem], [str(f) for f in told if not f.problem]


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (56, 56), **options) -> None:
    rng = np.random.default_rng(5)
    wide = mode == "I;16"
    pixels = rng.integers(0, 60000 if wide else 200, (size[1], size[0]), dtype=np.uint16 if wide else np.uint8)
    image = Image.fromarray(pixels)
    (image if wide else image.convert(mode)).save(path, **options)


def test_a_sound_miniature_has_no_problem_and_tells_what_it_is(made):
    for name, deep in (("mvtec", False), ("btad", True), ("visa", True)):
        found = census.check(made[name], deep=deep)
        assert found.ok and lines(made[name]) == ([], []) and found.layout == name, found
        assert ("--deep" in str(found)) != deep
    found = census.check(made["mvtec"])
    assert found.dataset == "MVTec AD" and found.released == 15 and len(found.missing) == 13
    bottle, grid = found.categories
    assert (bottle.train, bottle.good, bottle.masks) == (3, 2, 3) and bottle.differs()
    assert bottle.defects == {"broken_large": 1, "broken_small": 1, "contamination": 1}
    assert bottle.sizes == {"56x56": 8} and grid.modes == {"L": 10} and found.files == 8 + 3 + 10 + 5
    assert found.bytes == sum(path.stat().st_size for path in made["mvtec"].rglob("*.png"))
    text = str(found)
    assert "MVTec AD, 2 of 15 categories read" in text and "3 of 209" in text and "broken_small 1 of 22" in text
    assert "bottle: stored at 56x56, released at 900x900: numbers are those of a stand-in" in text
    assert "not here: cable, capsule" in text and "Problems, which spoil numbers: none" in text
    assert "other counts than released, see the table: bottle, grid" in text


def test_sizes_are_height_by_width(made):
    third = census.check(made["btad"]).categories[1]
    assert third.sizes == {"37x50": 7} and third.official.size == (600, 800)


def test_the_released_counts_are_no_oddity(made, monkeypatch):
    facts = dataclasses.replace(census.official.MVTEC["bottle"], train=3, good=2, size=(56, 56),
                                defects={"broken_large": 1, "broken_small": 1, "contamination": 1})  # fmt: skip
    monkeypatch.setitem(census.official.MVTEC, "bottle", facts)
    found = census.check(made["mvtec"] / "bottle")
    assert found.findings == () and not found.categories[0].differs() and found.missing == ()
    assert "broken_large 1," in str(found) and " of 15 categories" in str(found)


def test_as_json_can_be_written_and_read(made, tmp_path):
    found = census.check(made["visa"])
    path = files.write_json(tmp_path / "census.json", found.as_json())
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["ok"] is True and read["dataset"] == "VisA" and read["categories"][0]["name"] == "candle"
    assert read["categories"][0]["official"]["train"] == 900


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def blank(path: Path) -> None:
    Image.new("L", (56, 56)).save(path)


PROBLEMS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "text": ("bottle/train/good/001.png", lambda p: p.write_text("no image", encoding="utf-8"),
             "bottle: a file cannot be read as an image (train/good/001.png)"),
    "empty": ("bottle/test/good/001.png", lambda p: p.write_bytes(b""),
              "bottle: a file cannot be read as an image (test/good/001.png)"),
    "cut png": ("bottle/train/good/001.png", cut, "bottle: a file is cut off (train/good/001.png)"),
    "cut mask": ("bottle/ground_truth/contamination/000_mask.png", lambda p: p.write_bytes(p.read_bytes()[:60]),
                 "bottle: a file is cut off (ground_truth/contamination/000_mask.png)"),
    "mask size": ("grid/ground_truth/bent/000_mask.png", lambda p: save(p, "L", (60, 50)),
                  "grid: a mask of 50x60 belongs to an image of 64x64 (ground_truth/bent/000_mask.png)"),
    "leak": ("bottle/test/good/001.png", lambda p: shutil.copy(p.parents[2] / "train/good/002.png", p),
             "bottle: a test image is, byte by byte, a training image (test/good/001.png)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROBLEMS)
def test_what_spoils_numbers_is_a_problem_and_named(root, kind):
    name, spoil, line = PROBLEMS[kind]
    spoil(root / name)
    assert line in lines(root)[0] and not census.check(root).ok
    assert line in lines(root, deep=True)[0]


ODDITIES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "grey": ("bottle/train/good/001.png", lambda p: save(p, "L"),
             "bottle: images of mode L where RGB is usual (train/good/001.png)"),
    "alpha": ("bottle/train/good/001.png", lambda p: save(p, "RGBA"),
              "bottle: images of mode RGBA where RGB is usual (train/good/001.png)"),
    "16 bit": ("grid/test/good/001.png", lambda p: save(p, "I;16", (64, 64)),
               "grid: an image has 16 bits a channel, which are brought to 8 (mode I;16) (test/good/001.png)"),
    "turned": ("bottle/train/good/001.png", lambda p: save(p, exif=turned()),
               "bottle: an image is turned by its EXIF orientation (train/good/001.png)"),
    "sizes": ("bottle/train/good/001.png", lambda p: save(p, "RGB", (70, 40)),
              "bottle: images of 2 sizes, the commonest 56x56 (train/good/001.png)"),
    "black mask": ("bottle/ground_truth/contamination/000_mask.png", blank,
                   "bottle: a mask of a defective image is all black (ground_truth/contamination/000_mask.png)"),
    "twice": ("bottle/train/good/001.png", lambda p: shutil.copy(p.with_name("002.png"), p),
              "bottle: an image is there more than once in one split (train/good/002.png)"),
    "stray": ("bottle/train/good/notes.txt", lambda p: p.write_text("x", encoding="utf-8"),
              "bottle: files that belong to no split are left out (train/good/notes.txt)"),
    "entry": ("extra.zip", lambda p: p.write_text("x", encoding="utf-8"),
              "entries beside the categories are left out (extra.zip)"),
}  # fmt: skip


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[census.ORIENTATION] = 6
    return exif


@pytest.mark.parametrize("kind", ODDITIES)
def test_what_is_merely_odd_is_told_and_is_no_problem(root, kind):
    name, spoil, line = ODDITIES[kind]
    spoil(root / name)
    problems, oddities = lines(root)
    assert line in oddities and problems == [] and census.check(root).ok


def test_a_picture_on_its_side_has_the_size_one_sees(root):
    save(root / "bottle/train/good/001.png", "RGB", (70, 40), exif=turned())
    assert census.check(root).categories[0].sizes == {"56x56": 7, "70x40": 1}


def test_sixteen_bits_of_colour_are_seen_though_the_mode_is_that_of_eight(root):
    raw = np.random.default_rng(0).integers(0, 256, (56, 56 * 6), dtype=np.uint8)
    path = root / "bottle/train/good/001.png"
    write_png_of_16_bit_colour(path, raw)
    assert Image.open(path).mode == "RGB"
    assert any("16 bits a channel" in line and "001.png" in line for line in lines(root)[1])


def write_png_of_16_bit_colour(path: Path, rows: np.ndarray) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", rows.shape[1] // 6, rows.shape[0], 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def test_a_damaged_picture_whose_end_is_whole_takes_the_deep_look(root):
    path = root / "bottle/train/good/001.png"
    pixels = bytearray(path.read_bytes())
    pixels[len(pixels) // 2 : len(pixels) // 2 + 300] = bytes(300)
    path.write_bytes(pixels)
    assert lines(root) == ([], [])
    assert lines(root, deep=True)[0] == ["bottle: an image cannot be decoded (train/good/001.png)"]


def test_a_cut_jpeg_takes_the_deep_look_and_a_cut_bitmap_does_not(made, tmp_path):
    visa, btad = (shutil.copytree(made[name], tmp_path / name) for name in ("visa", "btad"))
    cut(visa / "candle/Data/Images/Normal/0001.JPG")
    cut(btad / "03/train/ok/0001.bmp")
    assert lines(visa)[0] == []
    assert lines(visa, deep=True)[0] == ["candle: an image cannot be decoded (candle/Data/Images/Normal/0001.JPG)"]
    assert lines(btad)[0] == ["03: a file is cut off (train/ok/0001.bmp)"]


def test_missing_masks_are_a_problem_where_the_release_has_them(root, tmp_path):
    (root / "grid/ground_truth/bent/000_mask.png").unlink()
    shutil.rmtree(root / "bottle" / "ground_truth")
    problems, _ = lines(root)
    assert problems[0].startswith("bottle: anomalous images have no mask (test/broken_large/000.png, ")
    assert problems[1].startswith("grid: cannot be read as a category: 1 of 5 anomalous images have no mask")
    assert [count.name for count in census.check(root).categories] == ["bottle"]
    (root / "bottle").rename(tmp_path / "mine")
    problems, oddities = lines(tmp_path / "mine")
    assert problems == [] and "so there are image metrics only" in oddities[0]


def test_a_mask_without_image_is_told_once(root):
    place = root / "grid" / "ground_truth" / "bent"
    shutil.copy(place / "000_mask.png", place / "077_mask.png")
    problems, oddities = lines(root)
    assert problems == [] and len(oddities) == 1 and "077_mask.png" in oddities[0]


def test_an_object_that_the_table_lists_but_nobody_unpacked_is_missing_and_no_problem(made, tmp_path):
    root = shutil.copytree(made["visa"], tmp_path / "visa")
    shutil.rmtree(root / "pcb1")
    found = census.check(root)
    assert found.ok and "pcb1" in found.missing and [count.name for count in found.categories] == ["candle"]
    (root / "candle/Data/Images/Normal/0001.JPG").unlink()
    problems, _ = lines(root)
    assert "candle: cannot be read as a category" in problems[0] and "0001.JPG" in problems[0]


def test_data_of_ones_own_have_no_official_counts(category, tmp_path):
    found = census.check(category.root.parent)
    assert found.ok and found.dataset == "" and found.released == 0 and found.categories[0].official is None
    assert "no released data set that is known here (layout mvtec), 1 categories read" in str(found)
    assert any("images of 4 sizes" in finding.what for finding in found.findings)
    for i in range(3):
        save(tmp_path / f"{i}.png", size=(20 + i, 30))
    found = census.check(tmp_path)
    assert found.layout == "folder" and found.categories[0].train == 3 and found.categories[0].defects == {}


def test_long_lists_are_cut_and_counted(root):
    for i in range(30):
        (root / "bottle" / f"{i:02}.txt").write_text("x", encoding="utf-8")
    finding = next(f for f in census.check(root).findings if "no split" in f.what)
    assert finding.count == 30 and len(finding.files) == census.NAMED and "(00.txt and 29 more)" in str(finding)
    assert "2 more" in str(census.Finding(True, "", "broken", 3, ("a",)))


def test_what_is_no_data_folder_is_refused(tmp_path):
    with pytest.raises(data.DataError, match="nowhere is not a folder"):
        census.check(tmp_path / "nowhere")
    with pytest.raises(data.DataError, match="no training images"):
        census.check(tmp_path)
