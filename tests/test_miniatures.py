"""Miniatures of the public data sets: the exact layout, masks that fit, and a path that works on each of them."""

import csv
import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rcp
from rcp import data, miniatures, official, synthetic
from rcp.images import read_mask

pytestmark = pytest.mark.filterwarnings("error::rcp.data.DataWarning")
LOADERS = {"mvtec": data.mvtec, "btad": data.btad, "visa": data.visa}
SMALL = {"mvtec": {"train": 1, "good": 1, "per_defect": 1}, "btad": {"train": 2, "good": 1, "bad": 5},
         "visa": {"train": 1, "good": 1, "bad": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("miniatures")
    return {name: getattr(miniatures, name)(base / name, scale=16, **counts) for name, counts in SMALL.items()}


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_official_counts_add_up_to_the_totals_of_the_papers():
    def total(table):
        return (sum(f.train for f in table.values()), sum(f.good for f in table.values()),
                sum(sum(f.defects.values()) for f in table.values()))  # fmt: skip

    assert total(official.MVTEC) == (3629, 467, 1258) and len(official.MVTEC) == 15
    assert sum(len(facts.defects) for facts in official.MVTEC.values()) == 73
    assert total(official.BTAD) == (1799, 451, 290) and total(official.VISA) == (8659, 962, 1200)
    assert sum(total(official.VISA)) == 10821 and len(official.VISA) == 12
    assert official.VISA["pcb4"].train == 904, "half a picture is rounded up"


def test_the_data_set_is_known_by_its_layout_and_its_categories():
    assert official.dataset("mvtec", ["pill", "mine"]) is official.MVTEC
    assert official.dataset("mvtec", ["candle"])["candle"].defects == {"bad": 100}
    assert official.dataset("visa", ["candle"]) is official.VISA and official.dataset("btad", ["02"]) is official.BTAD
    assert official.dataset("mvtec", ["brick"]) == {} and official.dataset("folder", ["bottle"]) == {}


@pytest.mark.parametrize("layout", LOADERS)
def test_every_category_is_found_with_its_counts_and_masks(roots, layout):
    known, counts = getattr(official, layout.upper()), SMALL[layout]
    assert data.categories(roots[layout]) == sorted(known)
    bad = counts.get("bad", counts.get("per_defect"))
    for name, facts in known.items():
        category = data.find(roots[layout], name)
        assert category == LOADERS[layout](roots[layout], name)
        assert category.dataset == layout and len(category.train) == counts["train"]
        assert category.test.counts() == {"good": counts["good"], **dict.fromkeys(facts.defects, bad)}
        assert category.test.has_masks
        for sample in category.test:
            if sample.label:
                assert sample.mask.stem.removesuffix("_mask") == sample.path.stem
                with Image.open(sample.path) as image:
                    assert read_mask(sample.mask, image.size[::-1]).any(), sample.mask


def test_mvtec_has_its_names_and_grey_categories(roots):
    names = set(files(roots["mvtec"]))
    assert {"license.txt", "readme.txt", "bottle/train/good/000.png", "pill/test/pill_type/000.png",
            "zipper/ground_truth/split_teeth/000_mask.png"} <= names  # fmt: skip
    for name, facts in official.MVTEC.items():
        with Image.open(roots["mvtec"] / name / "train" / "good" / "000.png") as image:
            assert (image.mode, image.size) == (facts.mode, (facts.size[0] // 16, facts.size[1] // 16))
    assert [name for name, facts in official.MVTEC.items() if facts.mode == "L"] == ["grid", "screw", "zipper"]


def test_btad_has_its_file_types_and_shapes(roots):
    types = {"01": (".bmp", ".png", (100, 100)), "02": (".png", ".png", (37, 37)), "03": (".bmp", ".bmp", (50, 37))}
    for name, (image_type, mask_type, size) in types.items():
        category = data.find(roots["btad"], name)
        assert {path.suffix for path in [*category.train.paths, *category.test.paths]} == {image_type}
        assert {sample.mask.suffix for sample in category.test if sample.mask} == {mask_type}
        assert category.train[0].path.name == f"0000{image_type}"
        with Image.open(category.train[0].path) as image:
            assert (image.size, image.format) == (size, image_type[1:].upper())


def test_visa_has_its_tables_and_numbered_masks(roots):
    root = roots["visa"]
    with (root / "split_csv" / "1cls.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["object", "split", "label", "image", "mask"] and len(rows) == 12 * 4
    assert rows != sorted(rows, key=lambda row: row["image"]), "the released table is in no order"
    listed = {row[key] for row in rows for key in ("image", "mask")} - {""}
    assert listed == {name for name in files(root) if "/Data/" in name}
    assert (root / "candle/Data/Images/Normal/0000.JPG").is_file() and (root / "LICENSE-DATASET").is_file()
    assert (root / "cashew/Data/Images/Normal/000.JPG").is_file()
    values = [set(np.unique(np.asarray(Image.open(root / f"fryum/Data/Masks/Anomaly/{i:03}.png")))) for i in (0, 1)]
    assert values == [{0, 1}, {0, 2}]
    lines = (root / "pcb1" / "image_anno.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "image,label,mask" and len(lines) == 5


def test_no_two_pictures_are_the_same(roots):
    for root in roots.values():
        images = [pixels for name, pixels in files(root).items() if "_mask" not in name and "asks/" not in name
                  and "ground_truth" not in name and Path(name).suffix in (".png", ".bmp", ".JPG")]  # fmt: skip
        assert len(images) == len(set(images)) > 20


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    for name in ("a", "b"):
        miniatures.mvtec(tmp_path / name, categories=("tile",), train=1, good=1, scale=16)
    miniatures.mvtec(tmp_path / "c", seed=1, categories=("tile",), train=1, good=1, scale=16)
    first = files(tmp_path / "a")
    assert first == files(tmp_path / "b")
    assert all(first[name] != pixels for name, pixels in files(tmp_path / "c").items()
               if "_mask" not in name and name.endswith(".png"))  # fmt: skip
    alone = miniatures.Job("tile", "train", None, 0, "x.png", None, (52, 52))
    assert np.array_equal(miniatures.draw(alone, 0)[0], np.asarray(Image.open(tmp_path / "a/tile/train/good/000.png")))


@pytest.mark.parametrize(("category", "size"), [("capsule", (100, 100)), ("03", (75, 100)), ("pcb1", (66, 87))])
def test_outside_its_mask_a_picture_is_that_of_the_sound_product(monkeypatch, category, size):
    job = miniatures.Job(category, "test", 1, 0, "x.png", "y.png", size)
    picture, mask = miniatures.draw(job, 0)

    def without(product, split, index, *, seed, defect):
        sound, _, mask = synthetic._with_and_without(product, split, index, seed, defect)
        return sound, mask

    monkeypatch.setattr(synthetic, "render", without)
    sound, _ = miniatures.draw(job, 0)
    assert picture.shape == (*size, 3) and mask.shape == size and 0 < mask.mean() < 0.3
    differs = (picture != sound).any(axis=2)
    assert not differs[~mask].any() and differs[mask].mean() > 0.3


@pytest.mark.filterwarnings("ignore:no verdict")  # six held-out pictures cannot support a false-alarm rate
@pytest.mark.parametrize(("layout", "category"), [("mvtec", "cable"), ("btad", "03"), ("visa", "candle")])
def test_patchcore_finds_the_defects_of_each_layout(tmp_path, tiny, layout, category):
    bad = {"per_defect": 1} if layout == "mvtec" else {"bad": 5}
    root = getattr(miniatures, layout)(tmp_path / layout, categories=(category,), train=6, good=5, **bad)
    found = rcp.find(root, category)
    settings = dataclasses.replace(tiny, resize=(72, 108))  # 64x96 of it: H is not W, whatever the pictures are
    bank = rcp.BankSettings(coreset=0.25, folds=2)
    detector = rcp.PatchCore(settings, bank=bank, seed=0).fit(found.train)
    for protocol in ("crop", "original"):
        metrics = rcp.evaluate(detector, found.test, protocol=protocol).metrics
        assert all(0 <= value <= 1 for value in metrics.values()), metrics
        assert metrics["pixel_auroc"] > 0.55, metrics


def test_a_miniature_that_is_there_is_kept_and_all_else_is_refused(tmp_path):
    def make(**changes):
        given = {"categories": ("02",), "train": 1, "good": 1, "bad": 1, "scale": 16, **changes}
        return miniatures.btad(tmp_path / "small", **given)

    (tmp_path / "small").mkdir()
    root = make()
    image = root / "02" / "train" / "ok" / "0000.png"
    before = image.stat().st_mtime_ns
    assert make() == root and image.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing temporary is left"
    with pytest.raises(FileExistsError, match="small holds something else than this miniature: choose another"):
        make(seed=1)
    image.unlink()
    with pytest.raises(FileExistsError, match="small has lost 02/train/ok/0000.png: delete the folder"):
        make()
    shutil.rmtree(root)
    root.mkdir()
    (root / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds something else"):
        make()
    assert (root / "mine.txt").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(miniatures, "draw", lambda job, seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        miniatures.visa(tmp_path / "small", categories=("candle",))
    assert not list(tmp_path.iterdir())


def test_a_slower_process_keeps_what_a_faster_one_made(tmp_path, monkeypatch):
    given = {"categories": ("02",), "train": 1, "good": 1, "bad": 1, "scale": 16}
    other, write = miniatures.btad(tmp_path / "other", **given), miniatures._write
    one_by_one = threading.Lock()  # images are written by two threads

    def meanwhile(job, base, seed):
        with one_by_one:
            if not (tmp_path / "small").exists():
                shutil.copytree(other, tmp_path / "small")
        write(job, base, seed)

    monkeypatch.setattr(miniatures, "_write", meanwhile)
    miniatures.btad(tmp_path / "small", **{**given, "train": 1})
    assert files(tmp_path / "small") == files(other)


def test_progress_and_the_note_tell_what_was_made(tmp_path):
    steps = []
    root = miniatures.mvtec(tmp_path / "m", categories=("toothbrush",), train=2, good=1, scale=32,
                            progress=lambda: steps.append(1))  # fmt: skip
    assert len(steps) == 4
    note = (root / "readme.txt").read_text(encoding="utf-8").splitlines()
    assert "made by rcp.miniatures" in note[0] and json.loads(note[1])["counts"] == [2, 1, 1]


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown category 'botle': choose from bottle, cable"):
        miniatures.mvtec(tmp_path / "m", categories=("botle",))
    for wrong in ({"train": 0}, {"scale": 0}, {"scale": 33}, {"categories": ()}, {"good": 10000}):
        with pytest.raises(ValueError, match="must be from 1 to 9,999 and scale .* from 1 to 32"):
            miniatures.mvtec(tmp_path / "m", **wrong)
    assert not list(tmp_path.iterdir())
