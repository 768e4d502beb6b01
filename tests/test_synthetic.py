"""The embedded dataset: repeatable, exact masks, written whole or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from rcp import synthetic

ALL = [(category, defect) for category in synthetic.CATEGORIES for defect in synthetic.DEFECTS[category]]
SMALL = {"train": 2, "good": 1, "per_defect": 1}


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("synthetic") / "data", **SMALL)


def test_the_room_itself_needs_no_torch():
    # The package's front door imports torch; step around it and open this room alone.
    code = f"""
import sys, types
package = types.ModuleType("rcp")
package.__path__ = [{str(Path(synthetic.__file__).parent)!r}]
sys.modules["rcp"] = package
import rcp.synthetic
sys.exit("torch imported" if "torch" in sys.modules else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- images and masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_an_image_is_a_function_of_its_arguments(category):
    image, mask = synthetic.render(category, "train", 3)
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8
    assert mask.shape == (256, 256) and mask.dtype == bool and not mask.any()
    np.testing.assert_array_equal(image, synthetic.render(category, "train", 3)[0])
    others = [
        synthetic.render(category, "train", 3, seed=1), synthetic.render(category, "train", 4),
        synthetic.render(category, "test", 3),
        synthetic.render(category, "test", 3, defect=synthetic.DEFECTS[category][0]),
    ]
    for other, _ in others:  # another product, light and noise: hardly a pixel in common
        assert np.mean(np.any(image != other, axis=2)) > 0.8


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_images_are_well_exposed(category):
    image, _ = synthetic.render(category, "train", 0)
    assert 40 < image.mean() < 200 and image.std() > 8
    assert np.mean(image == 0) < 0.01 and np.mean(image == 255) < 0.01


@pytest.mark.parametrize("category, defect", ALL)
def test_the_mask_is_exactly_where_the_defect_is(category, defect):
    for index in range(5):
        sound, image, mask = synthetic._with_and_without(category, "test", index, 0, defect)
        change = np.abs(image.astype(int) - sound).max(axis=2)
        assert not change[~mask].any(), "a pixel outside the mask changed"
        assert 20 <= mask.sum() < 0.15 * mask.size
        assert change[mask].mean() > 4, "the defect cannot be seen within its mask"
        assert np.mean(change[mask] > 0) > 0.6, "the mask is far larger than the defect"
        central = mask[16:240, 16:240]
        assert central.sum() > 0.8 * mask.sum(), "the defect lies outside the central 224 pixels"


@pytest.mark.parametrize("category, defect", ALL)
def test_the_mask_cuts_off_no_more_than_the_blur(category, defect):
    scene = synthetic._SOUND[category](np.random.default_rng(0))
    for seed in range(3):
        surface, mask = synthetic._FLAWS[category][defect](scene, np.random.default_rng(seed))
        image, sound = (synthetic.photograph(s, scene.camera).astype(int) for s in (surface, scene.surface))
        beyond = ~binary_dilation(mask, iterations=2)
        assert np.abs(image - sound)[beyond].max() <= 8, "the defect reaches more than 2 pixels past its mask"


@pytest.mark.parametrize("category, defect", ALL)
def test_defects_vary_in_size_and_place(category, defect):
    masks = [synthetic.render(category, "test", index, defect=defect)[1] for index in range(4)]
    assert len({mask.tobytes() for mask in masks}) == 4


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="'bottle'.*brick, granulate, terminal, flange"):
        synthetic.render("bottle", "train", 0)
    with pytest.raises(ValueError, match="'dent'.*bloom, chip, crack, paint"):
        synthetic.render("brick", "test", 0, defect="dent")
    with pytest.raises(ValueError, match="'val'.*train, test"):
        synthetic.render("brick", "val", 0)
    with pytest.raises(ValueError, match="training images are sound"):
        synthetic.render("brick", "train", 0, defect="crack")


# --- the folder -----------------------------------------------------------------------------------------


def test_layout_is_that_of_mvtec_ad(dataset):
    expected = set()
    for category in synthetic.CATEGORIES:
        expected |= {f"{category}/{synthetic.RECIPE}", f"{category}/test/good/000.png"}
        expected |= {f"{category}/train/good/{index:03d}.png" for index in range(2)}
        for defect in synthetic.DEFECTS[category]:
            expected.add(f"{category}/test/{defect}/000.png")
            expected.add(f"{category}/ground_truth/{defect}/000_mask.png")
    assert set(files(dataset)) == expected
    assert {p.name for p in dataset.iterdir()} == set(synthetic.CATEGORIES), "no temporary folder is left"


@pytest.mark.parametrize("category, defect", [(c, d[-1]) for c, d in synthetic.DEFECTS.items()])
def test_one_image_alone_equals_that_of_the_dataset(dataset, category, defect):
    image, mask = synthetic.render(category, "test", 0, defect=defect)
    stored = Image.open(dataset / category / "test" / defect / "000.png")
    truth = Image.open(dataset / category / "ground_truth" / defect / "000_mask.png")
    assert (stored.mode, truth.mode) == ("RGB", "L")
    np.testing.assert_array_equal(np.asarray(stored), image)
    np.testing.assert_array_equal(np.asarray(truth), mask * np.uint8(255))
    train = Image.open(dataset / category / "train" / "good" / "001.png")
    np.testing.assert_array_equal(np.asarray(train), synthetic.render(category, "train", 1)[0])


def test_same_seed_same_bytes_other_seed_other_images(dataset, tmp_path):
    again = files(synthetic.write(tmp_path / "same", categories=("flange",), **SMALL))
    assert again == {name: data for name, data in files(dataset).items() if name.startswith("flange/")}
    other = files(synthetic.write(tmp_path / "other", categories=("flange",), seed=7, **SMALL))
    assert other.keys() == again.keys()
    assert not any(other[name] == again[name] for name in again if "/t" in name)


def test_a_finished_category_is_left_alone(dataset, monkeypatch):
    before = files(dataset)
    monkeypatch.setattr(synthetic, "render", None)  # any drawing would now fail
    assert synthetic.write(dataset, **SMALL) == dataset
    assert files(dataset) == before


def test_progress_counts_every_image_to_be_made(tmp_path):
    seen = []
    synthetic.write(tmp_path, categories=("brick", "granulate"), train=1, good=1, per_defect=0,
                    progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupted_write_leaves_no_half_category(tmp_path, monkeypatch):
    render = synthetic.render

    def failing(category, split, index, **options):
        if (category, split) == ("granulate", "test"):
            raise RuntimeError("power cut")
        return render(category, split, index, **options)

    monkeypatch.setattr(synthetic, "render", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        synthetic.write(tmp_path, categories=("brick", "granulate"), **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["brick"]
    monkeypatch.undo()
    synthetic.write(tmp_path, categories=("brick", "granulate"), **SMALL)  # a second try completes it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brick", "granulate"]


def test_what_others_made_is_not_touched(tmp_path):
    (tmp_path / "brick").mkdir()
    (tmp_path / "brick" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="brick exists and was not made by"):
        synthetic.write(tmp_path, **SMALL)
    assert set(files(tmp_path)) == {"brick/mine.txt"}, "nothing is written before the check"


def test_another_recipe_or_a_lost_image_is_an_error(tmp_path):
    counts = {"train": 1, "good": 1, "per_defect": 0}
    synthetic.write(tmp_path, categories=("brick",), **counts)
    with pytest.raises(FileExistsError, match="'seed': 0.*'seed': 1"):
        synthetic.write(tmp_path, categories=("brick",), seed=1, **counts)
    (tmp_path / "brick/train/good/000.png").unlink()
    with pytest.raises(FileExistsError, match="1 PNG files, not 2"):
        synthetic.write(tmp_path, categories=("brick",), **counts)
    with pytest.raises(ValueError, match="train must not be negative, but is -1"):
        synthetic.write(tmp_path, train=-1)
    with pytest.raises(ValueError, match="unknown category: 'bottle'"):
        synthetic.write(tmp_path, categories=("bottle",))


def test_cached_lives_where_rcp_cache_says_and_is_made_once(dataset, tmp_path, monkeypatch):
    write, calls = synthetic.write, []

    def small_write(root, *, seed, progress):
        calls.append(root)
        return write(root, seed=seed, categories=("brick",), train=1, good=1, per_defect=1, progress=progress)

    monkeypatch.setenv("RCP_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "write", small_write)
    folder = synthetic.cached(seed=2)
    assert folder == tmp_path / f"synthetic-v{synthetic.VERSION}-seed2" == calls[0]
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert synthetic.cached(seed=2) == folder
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_two_writers_at_once_both_succeed(dataset, tmp_path, monkeypatch):
    replace = synthetic.os.replace

    def slower(source, target):  # just before we move ours, another process has put its own there
        shutil.copytree(dataset / "brick", target)
        replace(source, target)

    monkeypatch.setattr(synthetic.os, "replace", slower)
    synthetic.write(tmp_path, categories=("brick",), **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["brick"]
    assert files(tmp_path) == {n: data for n, data in files(dataset).items() if n.startswith("brick/")}
