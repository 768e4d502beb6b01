"""Folders to samples: every layout as a miniature, every error by its words, pairing by stem."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from rcp import data
from rcp.data import DataError, DataWarning, Sample, Split

pytestmark = pytest.mark.filterwarnings("error::rcp.data.DataWarning")


def write(*paths: Path) -> None:
    """Write files whose content is their name: nothing is decoded by the code under test."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


@pytest.fixture
def mvtec_root(tmp_path: Path) -> Path:
    base = tmp_path / "bottle"
    write(*(base / "train" / "good" / f"{i:03}.png" for i in range(3)))
    for i in range(2):
        write(*(base / "test" / defect / f"{i:03}.png" for defect in ("good", "hole", "scratch")))
        write(*(base / "ground_truth" / defect / f"{i:03}_mask.png" for defect in ("hole", "scratch")))
    for ignored in ("train/good/Thumbs.db", "train/good/._000.png", "test/.DS_Store",
                    "test/.ipynb_checkpoints/000.png", "license.txt"):
        write(base / ignored)
    return tmp_path


@pytest.fixture
def btad_root(tmp_path: Path) -> Path:
    base = tmp_path / "01"
    write(*(base / "train" / "ok" / name for name in ("0001.bmp", "0000.PNG", "2.jpg")))
    write(*(base / "test" / "ok" / name for name in ("0000.bmp", "0001.png")))
    write(*(base / "test" / "ko" / name for name in ("0000.bmp", "0001.png", "0002.jpg")))
    write(*(base / "ground_truth" / "ko" / name for name in ("0002.png", "0000.png", "0001.bmp")))
    return tmp_path


VISA = """object,split,label,image,mask
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
candle,train,normal,candle/Data/Images/Normal/0001.JPG,
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,normal,candle/Data/Images/Normal/0002.JPG,
pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,
"""


@pytest.fixture
def visa_root(tmp_path: Path) -> Path:
    for line in VISA.splitlines()[1:]:
        write(*(tmp_path / name for name in line.split(",")[3:] if name))
    rewrite(tmp_path, VISA)
    return tmp_path


def rewrite(root: Path, text: str) -> None:
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text(text, encoding="utf-8-sig")


def pairs(split: Split) -> dict[str, str]:
    return {sample.path.name: sample.mask.name for sample in split if sample.mask}


def test_mvtec(mvtec_root):
    category = data.mvtec(mvtec_root, "bottle")
    assert (category.dataset, category.name, category.root) == ("mvtec", "bottle", mvtec_root / "bottle")
    assert [path.name for path in category.train.paths] == ["000.png", "001.png", "002.png"]
    assert category.train.counts() == {"good": 3} and not category.train.has_masks
    assert category.test.counts() == {"good": 2, "hole": 2, "scratch": 2} and category.test.has_masks
    assert category.test.labels.tolist() == [0, 0, 1, 1, 1, 1] and category.test.labels.dtype == np.int64
    for sample in category.test:
        expected = mvtec_root / "bottle" / "ground_truth" / sample.defect / f"{sample.path.stem}_mask.png"
        assert sample.mask == (expected if sample.label else None)


def test_btad_pairs_mixed_suffixes_by_stem(btad_root):
    category = data.btad(btad_root, "01")
    assert category.dataset == "btad" and category.train.counts() == {"good": 3}
    assert category.test.counts() == {"good": 2, "ko": 3}
    assert pairs(category.test) == {"0000.bmp": "0000.png", "0001.png": "0001.bmp", "0002.jpg": "0002.png"}


def test_visa(visa_root):
    category = data.visa(visa_root, "candle")
    assert category.dataset == "visa" and data.categories(visa_root) == ["candle", "pcb1"]
    assert [path.name for path in category.train.paths] == ["0000.JPG", "0001.JPG"]
    assert category.test.counts() == {"anomaly": 1, "good": 1}
    assert pairs(category.test) == {"000.JPG": "000.png"}
    assert len(category.test.fingerprint()) == 64
    assert len(data.visa(visa_root, "pcb1").test) == 0


def test_split_is_a_sequence(mvtec_root):
    test = data.mvtec(mvtec_root, "bottle").test
    assert isinstance(test[0], Sample) and test[-1] is test.samples[-1]
    assert test[np.int64(1)] is test.samples[1]
    assert isinstance(test[1:3], Split) and list(test[1:3]) == list(test.samples[1:3])
    assert test[::2].name == "test" and test[::2].root == test.root and len(test[:0]) == 0
    assert test[0] in test and test.defects == [sample.defect for sample in test]
    assert Split("test", mvtec_root, ()).labels.shape == (0,) and not test[:2].has_masks


def test_fingerprint_sees_content_name_defect_and_mask_but_not_the_place(mvtec_root, tmp_path_factory):
    before = data.mvtec(mvtec_root, "bottle").test.fingerprint()
    twin = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(mvtec_root, twin)
    test = twin / "bottle" / "test"

    def now() -> str:
        return data.mvtec(twin, "bottle").test.fingerprint()

    assert now() == before
    split = data.mvtec(twin, "bottle").test
    assert split[::-1].fingerprint() == before and split[1:].fingerprint() != before
    (twin / "bottle" / "ground_truth" / "hole" / "000_mask.png").write_bytes(b"other")
    changed = now()
    assert changed != before
    (test / "good" / "000.png").write_bytes(b"other")
    assert now() not in (before, changed)
    changed = now()
    (test / "good" / "000.png").rename(test / "good" / "009.png")
    assert now() != changed
    split = data.mvtec(twin, "bottle").test
    as_normal = Split("test", split.root, tuple(Sample(s.path, "good", s.mask) for s in split))
    assert as_normal.fingerprint() != split.fingerprint()


@pytest.mark.parametrize("below", ["", "good", "OK", "normal"])
def test_folder_train(tmp_path, below):
    write(*(tmp_path / "parts" / below / name for name in ("b.TIF", "a.webp", "x.txt")))
    category = data.folder(tmp_path / "parts")
    assert category.name == "parts" and category.dataset == "folder" and len(category.test) == 0
    assert [path.name for path in category.train.paths] == ["a.webp", "b.TIF"]
    assert data.folder(str(tmp_path / "parts"), name="gear").name == "gear"
    assert data.find(tmp_path / "parts") == category


@pytest.mark.parametrize("mask", ["dent/7.bmp", "dent/7_mask.png", "7.png", "7_mask.TIFF"])
def test_folder_masks(tmp_path, mask):
    write(*(tmp_path / name for name in ("train/0.png", "test/normal/1.png", "test/dent/7.jpg")))
    write(tmp_path / "masks" / mask, tmp_path / "masks" / "good" / "1.png")
    category = data.folder(tmp_path / "train", tmp_path / "test", tmp_path / "masks")
    assert category.test.has_masks and category.test[0].mask == tmp_path / "masks" / mask
    assert category.name == tmp_path.name and category.train.root == tmp_path / "train"
    assert category.test.counts() == {"dent": 1, "good": 1}
    assert data.find(tmp_path) == category


def test_flat_masks_of_normal_images_are_no_surprise(tmp_path):
    write(*(tmp_path / name for name in ("train/0.png", "test/good/1.png", "test/dent/7.jpg")))
    write(tmp_path / "masks" / "1.png", tmp_path / "masks" / "7.png")
    assert pairs(data.find(tmp_path).test) == {"7.jpg": "7.png"}


def test_find_sees_every_layout(mvtec_root, tmp_path_factory):
    assert data.find(mvtec_root, "bottle") == data.mvtec(mvtec_root, "bottle")
    assert data.find(mvtec_root / "bottle") == data.mvtec(mvtec_root, "bottle")
    assert data.find(mvtec_root, "bottle", layout="folder").dataset == "folder"
    assert data.categories(mvtec_root) == ["bottle"]
    (mvtec_root / "bottle" / "ground_truth").rename(mvtec_root / "bottle" / "masks")
    plain = data.find(mvtec_root, "bottle")
    assert plain.dataset == "folder" and plain.test.has_masks
    shutil.rmtree(mvtec_root / "bottle" / "test")
    assert len(data.mvtec(mvtec_root, "bottle").test) == 0


def test_find_btad(btad_root):
    assert data.find(btad_root, "01") == data.btad(btad_root, "01")


def test_find_visa(visa_root):
    assert data.find(visa_root, "candle") == data.visa(visa_root, "candle")
    with pytest.raises(DataError, match="holds the categories candle, pcb1: name one"):
        data.find(visa_root)


def test_find_in_the_working_directory(mvtec_root, monkeypatch):
    monkeypatch.chdir(mvtec_root / "bottle")
    assert data.find(".").name == "bottle" and data.find(".").test.has_masks


def test_pairing_does_not_depend_on_the_order_of_the_listing(mvtec_root, monkeypatch):
    expected, listing = data.mvtec(mvtec_root, "bottle"), Path.iterdir
    for seed in range(5):
        def shuffled(folder, seed=seed):
            paths = list(listing(folder))
            random.Random(seed).shuffle(paths)
            return iter(paths)
        monkeypatch.setattr(Path, "iterdir", shuffled)
        assert data.mvtec(mvtec_root, "bottle") == expected


def test_no_masks_at_all_is_fine(mvtec_root):
    shutil.rmtree(mvtec_root / "bottle" / "ground_truth")
    test = data.mvtec(mvtec_root, "bottle").test
    assert not test.has_masks and test.counts()["hole"] == 2 and all(sample.mask is None for sample in test)


def test_some_masks_missing(mvtec_root):
    (mvtec_root / "bottle" / "ground_truth" / "hole" / "001_mask.png").unlink()
    with pytest.raises(DataError) as error:
        data.mvtec(mvtec_root, "bottle")
    words = str(error.value)
    assert "1 of 4 anomalous images have no mask" in words and str(Path("hole", "001.png")) in words
    assert "looked for 001.* and 001_mask.* in" in words and "found 000_mask.png" in words
    assert "add the masks" in words


def test_masks_of_one_defect_missing(mvtec_root):
    shutil.rmtree(mvtec_root / "bottle" / "ground_truth" / "hole")
    with pytest.raises(DataError, match="2 of 4 anomalous .* found none"):
        data.mvtec(mvtec_root, "bottle")


def test_mask_without_image_warns(mvtec_root):
    write(mvtec_root / "bottle" / "ground_truth" / "hole" / "077_mask.png",
          mvtec_root / "bottle" / "ground_truth" / "melted" / "000_mask.png")
    with pytest.warns(DataWarning, match="^2 masks fit no test image.*077_mask.png"):
        assert data.mvtec(mvtec_root, "bottle").test.has_masks


def test_masks_that_all_miss_warn_and_leave_image_metrics(mvtec_root):
    for mask in (mvtec_root / "bottle" / "ground_truth").rglob("*.png"):
        mask.rename(mask.with_name(f"gt_{mask.name}"))
    with pytest.warns(DataWarning, match="^4 masks"):
        assert not data.mvtec(mvtec_root, "bottle").test.has_masks


def test_two_masks_for_one_image(mvtec_root):
    write(mvtec_root / "bottle" / "ground_truth" / "hole" / "000_mask.bmp")
    with pytest.raises(DataError, match="hole.000.png has two masks, .*bmp and .*000_mask.png: remove one"):
        data.mvtec(mvtec_root, "bottle")


def test_two_images_of_one_stem(mvtec_root):
    write(mvtec_root / "bottle" / "test" / "hole" / "000.jpg")
    with pytest.raises(DataError, match="000.jpg and .*000.png have one stem and so one mask.*rename"):
        data.mvtec(mvtec_root, "bottle")
    shutil.rmtree(mvtec_root / "bottle" / "ground_truth")
    assert data.mvtec(mvtec_root, "bottle").test.counts()["hole"] == 3


def test_flat_masks_cannot_serve_two_defects(tmp_path):
    write(tmp_path / "train" / "0.png", tmp_path / "test" / "a" / "1.png", tmp_path / "test" / "b" / "1.png")
    write(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match="one stem and so one mask"):
        data.find(tmp_path)


def test_misspelt_category_lists_what_is_there(mvtec_root):
    for read in (data.mvtec, data.btad, data.find):
        with pytest.raises(DataError, match="no category 'botle' in .*: found bottle"):
            read(mvtec_root, "botle")
    with pytest.raises(DataError, match="no category '' in"):
        data.mvtec(mvtec_root, "")
    with pytest.raises(DataError, match="found no folder that holds train/"):
        data.mvtec(mvtec_root / "bottle" / "test", "bottle")
    with pytest.raises(DataError, match="holds the categories bottle: name one"):
        data.find(mvtec_root)


def test_root_is_the_category(mvtec_root):
    with pytest.raises(DataError, match="bottle is itself a category .*pass its parent"):
        data.mvtec(mvtec_root / "bottle", "bottle")


@pytest.mark.parametrize("root", ["nowhere", "archive.tar.xz"])
def test_root_is_no_folder(tmp_path, root):
    write(tmp_path / "archive.tar.xz")
    for read in (data.mvtec, data.visa, data.find):
        with pytest.raises(DataError, match=f"{root} is not a folder: check the path"):
            read(tmp_path / root, "bottle")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        data.folder(tmp_path, masks=tmp_path / "nowhere")


def test_unknown_layout(mvtec_root):
    with pytest.raises(DataError, match="unknown layout 'mvtek': choose auto, visa, mvtec, btad, folder"):
        data.find(mvtec_root, "bottle", layout="mvtek")


def test_no_training_images(btad_root):
    with pytest.raises(DataError, match="no training images: looked in .*train.good, found in .*train.ok"):
        data.mvtec(btad_root, "01")
    shutil.rmtree(btad_root / "01" / "train")
    with pytest.raises(DataError, match="no training images: looked in .*train.ok, found in none"):
        data.btad(btad_root, "01")


@pytest.mark.parametrize("stray", ["scratch/1.png", "ok/1.png", "1.png"])
def test_training_folder_must_hold_one_kind(mvtec_root, stray):
    write(mvtec_root / "bottle" / "train" / stray)
    with pytest.raises(DataError, match="training images in several folders.*train.*only normal ones .move"):
        data.mvtec(mvtec_root, "bottle")
    with pytest.raises(DataError, match="training images in several folders"):
        data.folder(mvtec_root / "bottle" / "train")


def test_images_directly_in_test(mvtec_root):
    write(mvtec_root / "bottle" / "test" / "1.png")
    with pytest.raises(DataError, match="must lie in subfolders of .*test, .*found 1 directly in it, 6 in"):
        data.mvtec(mvtec_root, "bottle")


def test_empty_test(tmp_path):
    write(tmp_path / "train" / "1.png", tmp_path / "test" / "dent" / "nested" / "1.png")
    with pytest.raises(DataError, match="found 0 directly in it, 0 in subfolders"):
        data.find(tmp_path)
    write(tmp_path / "test" / "good" / "1.png")
    with pytest.warns(DataWarning, match="dent holds no images"):
        assert data.find(tmp_path).test.counts() == {"good": 1}


def test_both_kinds_of_mask_folders(mvtec_root):
    write(mvtec_root / "bottle" / "masks" / "hole" / "000.png")
    with pytest.raises(DataError, match="holds both ground_truth/ and masks/: keep one"):
        data.find(mvtec_root, "bottle")


def test_visa_table_errors(visa_root):
    with pytest.raises(DataError, match="no category 'candel' in .*1cls.csv: it has candle, pcb1"):
        data.visa(visa_root, "candel")
    with pytest.raises(DataError, match=f"no table .*1cls.csv.*pass {visa_root}"):
        data.visa(visa_root / "candle", "candle")
    for before, after, words in [
        ("normal,candle/Data/Images/Normal/0001", "anomaly,candle/Data/Images/Normal/0001",
         r"1cls.csv, line 3: split and label are \('train', 'anomaly'\)"),
        ("candle,test,normal", "candle,val,normal", r"line 5: split and label are \('val', 'normal'\)"),
        ("Normal/0002", "Normal/0099", "line 5: no file .*0099.JPG: unpack"),
        ("Masks/Anomaly/000", "Masks/Anomaly/099", "line 2: no file .*099.png"),
        ("candle/Data/Images/Normal/0002.JPG", str(Path(__file__)), "line 5: no file"),
        ("label,image", "kind,image", "1cls.csv lacks the columns label: restore"),
    ]:
        assert before in VISA
        rewrite(visa_root, VISA.replace(before, after))
        with pytest.raises(DataError, match=words):
            data.visa(visa_root, "candle")


def test_visa_masks_all_or_none(visa_root):
    row = "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,"
    write(visa_root / "candle" / "Data" / "Images" / "Anomaly" / "001.JPG")
    rewrite(visa_root, VISA + row + "\n")
    with pytest.raises(DataError, match="1 of 2 anomalous images have no mask: for .*001.JPG .*1cls.csv"):
        data.visa(visa_root, "candle")
    rewrite(visa_root, VISA.replace("candle/Data/Masks/Anomaly/000.png", "") + row + "\n")
    assert not data.visa(visa_root, "candle").test.has_masks
    rewrite(visa_root, VISA + row + "candle/Data/Masks/Anomaly/000.png\n")
    with pytest.raises(DataError, match="one mask"):
        data.visa(visa_root, "candle")
    shutil.rmtree(visa_root / "split_csv")
    with pytest.raises(DataError, match="no table .*unpack split_csv"):
        data.visa(visa_root, "candle")
