"""Worse pictures: the warp against a loop and against Pillow, masks that move along, draws of one's own, kills."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

import rcp
from rcp import miniatures
from rcp import quality as room
from rcp.data import Category, Split
from rcp.files import read_json
from rcp.images import read_image, read_mask
from rcp.quality import (
    ALL,
    BLUR,
    LIGHT,
    NONE,
    QUALITIES,
    ROTATION,
    TRANSLATION,
    Quality,
    degrade,
    degrade_pixels,
    missing,
)

MAGNITUDES = ("degrees", "shift", "brightness", "contrast", "blur")


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    """A smooth picture without extreme values: nothing is clipped unless light is strong."""
    coarse = np.random.default_rng(seed).integers(80, 160, (4, 6, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((w, h)))


def drawn(seed: int, quality: Quality, size: tuple[int, int], count: int = 1) -> tuple[float, float, np.ndarray]:
    """The brightness, contrast and movement that an image gets, read off the generator."""
    generator = np.random.default_rng(seed)
    brightness, contrast = generator.uniform(-1, 1, 2) * (quality.brightness, quality.contrast)
    generator.uniform()
    magnitudes = (quality.degrees, quality.shift * size[0], quality.shift * size[1])
    return brightness, contrast, [generator.uniform(-1, 1, 3) * magnitudes for _ in range(count)][-1]


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*")) if path.is_file()}


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}


# The pixels


def test_zero_magnitudes_change_no_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    mask = np.random.default_rng(1).random((23, 31)) > 0.5
    out, moved = degrade_pixels(pixels, mask, NONE, np.random.default_rng(2))
    assert np.array_equal(out, pixels) and np.array_equal(moved, mask)
    assert out is not pixels and degrade_pixels(pixels, None, NONE, np.random.default_rng(2))[1] is None


def slow_warp(pixels: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Pixel by pixel: where does this one come from? The four neighbours there, the picture mirrored at its edges."""
    h, w, _ = pixels.shape
    angle, cy, cx = np.deg2rad(move[0]), (h - 1) / 2, (w - 1) / 2

    def at(row: int, column: int) -> np.ndarray:
        fold = [i % (2 * n) for i, n in ((row, h), (column, w))]
        return pixels[tuple(i if i < n else 2 * n - 1 - i for i, n in zip(fold, (h, w)))].astype(float)

    out = np.zeros(pixels.shape)
    for row in range(h):
        for column in range(w):
            y, x = row - cy - move[1], column - cx - move[2]
            y, x = y * np.cos(angle) + x * np.sin(angle) + cy, -y * np.sin(angle) + x * np.cos(angle) + cx
            top, left = int(np.floor(y)), int(np.floor(x))
            for i, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    out[row, column] += share_y * share_x * at(i, j)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_the_warp_is_that_of_a_loop_over_pixels_with_mirrored_edges(seed):
    quality, pixels = dataclasses.replace(NONE, degrees=40, shift=0.3), picture(11, 17, seed)
    out, _ = degrade_pixels(pixels, None, quality, np.random.default_rng(seed))
    expected = slow_warp(pixels, drawn(seed, quality, (11, 17))[2])
    assert np.abs(out - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(60, 110), (110, 60)])
def test_a_rotation_is_pillows_so_that_a_wide_picture_is_not_sheared(size):
    quality, pixels = dataclasses.replace(NONE, degrees=30, shift=0.1), picture(*size)
    out, _ = degrade_pixels(pixels, None, quality, np.random.default_rng(5))
    angle, down, right = drawn(5, quality, size)[2]
    other = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR, translate=(right, down))
    inside = np.asarray(Image.new("L", size[::-1], 255).rotate(angle, translate=(right, down))) > 0
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert inside.mean() > 0.3
    assert np.abs(out.astype(int) - np.asarray(other))[inside].max() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 60), st.integers(30, 60), st.floats(0, 20), st.floats(0, 0.08), st.integers(0, 999))
@example(31, 58, 20.0, 0.08, 3)
def test_the_mask_moves_with_what_it_marks(h, w, degrees, shift, seed):
    mask = np.zeros((h, w), bool)
    mask[h // 3 : h // 2, w // 3 : w // 2 + 2] = True  # far enough inside that nothing of it is mirrored
    pixels = np.where(mask[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    quality = dataclasses.replace(NONE, degrees=degrees, shift=shift)
    out, moved = degrade_pixels(pixels, mask, quality, np.random.default_rng(seed))
    border = ndimage.binary_dilation(moved) & ~ndimage.binary_erosion(moved)
    assert moved.any() and np.array_equal((out[..., 0] > out[..., 2])[~border], moved[~border])


def test_what_comes_from_outside_the_picture_is_no_defect():
    quality, pixels, mask = dataclasses.replace(NONE, shift=0.2), picture(40, 50), np.ones((40, 50), bool)
    _, moved = degrade_pixels(pixels, mask, quality, np.random.default_rng(0))
    _, _, (_, down, right) = drawn(0, quality, (40, 50))
    rows, columns = np.indices(mask.shape)
    inside = [(-0.5 <= at) & (at <= n - 0.5) for at, n in ((rows - down, 40), (columns - right, 50))]
    assert np.array_equal(moved, inside[0] & inside[1]) and not moved.all()


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(0, 180), st.floats(0, 0.5), st.integers(0, 999), st.data())
def test_a_defect_is_never_pushed_out_of_the_picture(h, w, degrees, shift, seed, data):
    mask = np.zeros((h, w), bool)
    row, column = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    mask[row : row + 2, column : column + 2] = True
    quality = dataclasses.replace(ALL, degrees=degrees, shift=shift)
    _, moved = degrade_pixels(picture(h, w), mask, quality, np.random.default_rng(seed))
    assert moved.sum() >= room.KEPT * mask.sum()


def test_a_movement_that_hides_the_defect_is_drawn_again():
    quality, mask = dataclasses.replace(NONE, shift=0.4), np.zeros((40, 60), bool)
    mask[:3] = True  # at the top: to be moved down
    seed = next(seed for seed in range(50) if drawn(seed, quality, mask.shape)[2][1] < -3
                and drawn(seed, quality, mask.shape, 2)[2][1] > 0)
    out, _ = degrade_pixels(picture(40, 60), mask, quality, np.random.default_rng(seed))
    again = slow_warp(picture(40, 60), drawn(seed, quality, mask.shape, 2)[2])
    assert np.abs(out - again).max() <= 0.5 + 1e-3


def test_if_no_draw_keeps_the_defect_the_last_one_is_halved_until_it_does():
    quality, mask = dataclasses.replace(NONE, shift=0.4), np.zeros((40, 60), bool)
    mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # every shift of a pixel each way hides three of four
    seed = next(seed for seed in range(50) if all(
        np.abs(drawn(seed, quality, mask.shape, n)[2][1:]).min() > 1 for n in range(1, room.TRIES + 1)))
    out, moved = degrade_pixels(picture(40, 60), mask, quality, np.random.default_rng(seed))
    last, halved = drawn(seed, quality, mask.shape, room.TRIES)[2], 0
    while (np.abs(last) / 2**halved)[1:].min() > 0.5:
        halved += 1
    assert halved > 0 and moved.sum() >= 2
    assert np.abs(out - slow_warp(picture(40, 60), last / 2**halved)).max() <= 0.5 + 1e-3


def test_an_empty_mask_is_no_reason_to_draw_again():
    pixels, empty = picture(40, 60), np.zeros((40, 60), bool)
    with_mask = degrade_pixels(pixels, empty, ALL, np.random.default_rng(4))
    assert not with_mask[1].any()
    assert np.array_equal(with_mask[0], degrade_pixels(pixels, None, ALL, np.random.default_rng(4))[0])


def test_light_is_contrast_about_the_mean_then_brightness_and_moves_nothing():
    pixels, mask = picture(30, 50), np.random.default_rng(0).random((30, 50)) > 0.7
    out, moved = degrade_pixels(pixels, mask, LIGHT, np.random.default_rng(3))
    brightness, contrast, _ = drawn(3, LIGHT, (30, 50))
    expected = (1 + brightness) * (pixels.mean() + (1 + contrast) * (pixels - pixels.mean()))
    assert np.array_equal(moved, mask) and np.abs(out - expected).max() <= 0.5 + 1e-3
    assert abs(brightness) > 0.01 and abs(contrast) > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_contrast_alone_keeps_the_mean_and_brightness_alone_keeps_the_ratio(seed):
    pixels = picture(30, 50)
    contrast = degrade_pixels(pixels, None, dataclasses.replace(NONE, contrast=0.3), np.random.default_rng(seed))[0]
    assert abs(contrast.mean() - pixels.mean()) < 0.1 and not np.array_equal(contrast, pixels)
    bright = degrade_pixels(pixels, None, dataclasses.replace(NONE, brightness=0.3), np.random.default_rng(seed))[0]
    assert np.ptp(bright / pixels) < 0.02 and not np.array_equal(bright, pixels)


def test_values_are_clipped_and_do_not_wrap_around():
    pixels = np.repeat(np.uint8([[0, 128, 255]]), 3, axis=0)[..., None].repeat(3, axis=2)
    for seed in range(8):
        strong = Quality(degrees=0, shift=0, brightness=1.0, contrast=1.0, blur=0)
        out, _ = degrade_pixels(pixels, None, strong, np.random.default_rng(seed))
        assert (np.diff(out[0, :, 0].astype(int)) >= 0).all()


def test_blur_keeps_the_place_and_the_mean_and_means_the_same_at_any_size():
    quality, spread = dataclasses.replace(NONE, blur=8.0), {}
    for scale in (1, 2):
        h, w = 128 * scale, 192 * scale
        pixels = np.zeros((h, w, 3), np.uint8)
        pixels[:, : w // 2] = 200, 100, 0  # an edge at half the width
        out, _ = degrade_pixels(pixels, None, quality, np.random.default_rng(1))
        assert np.abs(out.mean(axis=(0, 1)) - (100, 50, 0)).max() < 0.5 and np.array_equal(out, out[:1].repeat(h, axis=0))
        fall = -np.diff(out[0, :, 0].astype(float))
        centre = (fall * np.arange(w - 1)).sum() / fall.sum()
        assert abs(centre - (w / 2 - 1)) < 0.1
        spread[scale] = np.sqrt((fall * (np.arange(w - 1) - centre) ** 2).sum() / fall.sum()) / h
    generator = np.random.default_rng(1)
    generator.uniform(size=2)
    assert spread[1] == pytest.approx(spread[2], rel=0.05) == pytest.approx(generator.uniform() * 8 / 256, rel=0.05)


def test_each_single_moves_or_shades_alone():
    pixels, mask = np.random.default_rng(0).integers(0, 256, (128, 160, 3), np.uint8), np.zeros((128, 160), bool)
    mask[10:110, 30:130] = True
    for name, moves in {"rotation": True, "translation": True, "light": False, "blur": False, "all": True}.items():
        out, moved = degrade_pixels(pixels, mask, QUALITIES[name], np.random.default_rng(5))
        assert not np.array_equal(out, pixels) and np.array_equal(moved, mask) is not moves
    assert {name: [m for m in MAGNITUDES if getattr(QUALITIES[name], m)] for name in QUALITIES} == {
        "rotation": ["degrees"], "translation": ["shift"], "light": ["brightness", "contrast"], "blur": ["blur"],
        "all": list(MAGNITUDES)}


def test_an_image_is_turned_in_all_as_in_rotation_alone():
    mask = np.zeros((61, 91), bool)
    mask[5:55, 5:85] = True
    together = dataclasses.replace(ALL, shift=0)
    moved = [degrade_pixels(picture(61, 91), mask, q, np.random.default_rng(0))[1] for q in (ROTATION, together)]
    assert np.array_equal(*moved) and not np.array_equal(moved[0], mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 180), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1),
       st.floats(0, 32), st.integers(0, 99))
def test_any_magnitudes_give_a_picture_of_the_same_size_and_the_same_one_twice(h, w, degrees, shift, b, c, blur, seed):
    pixels, mask = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8), np.ones((h, w), bool)
    quality = Quality(degrees, shift, b, c, blur)
    out, moved = degrade_pixels(pixels, mask, quality, np.random.default_rng(seed))
    assert (out.shape, out.dtype, moved.shape, moved.dtype) == ((h, w, 3), np.uint8, (h, w), bool)
    again = degrade_pixels(pixels, mask, quality, np.random.default_rng(seed))
    assert np.array_equal(out, again[0]) and np.array_equal(moved, again[1])


@pytest.mark.parametrize("bad", [-0.1, 1000.0, float("nan"), "5", True, None])
@pytest.mark.parametrize("name", MAGNITUDES)
def test_a_magnitude_out_of_range_is_named(name, bad):
    with pytest.raises(ValueError, match=f"^{name} must be a number from 0 to .*, not {bad!r}$"):
        Quality(**{name: bad})


@pytest.mark.parametrize("bad", [-1, 0.5, True])
def test_a_seed_that_is_none_is_named(bad):
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0, not {bad}"):
        Quality(seed=bad)


def test_pixels_and_masks_of_another_kind_are_refused():
    pixels, generator = picture(8, 9), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"pixels must be uint8 \(H, W, 3\), not float64 \(8, 9, 3\)"):
        degrade_pixels(pixels / 255, None, ALL, generator)
    with pytest.raises(ValueError, match=r"pixels must be uint8 \(H, W, 3\), not uint8 \(8, 9\)"):
        degrade_pixels(pixels[..., 0], None, ALL, generator)
    with pytest.raises(ValueError, match=r"mask must be bool \(8, 9\), as its image, not bool \(9, 8\)"):
        degrade_pixels(pixels, np.zeros((9, 8), bool), ALL, generator)
    with pytest.raises(ValueError, match=r"mask must be bool .* not uint8"):
        degrade_pixels(pixels, np.zeros((8, 9), np.uint8), ALL, generator)


# The folder


@pytest.fixture(scope="module")
def both(category, tmp_path_factory) -> tuple[Category, Path]:
    folder = tmp_path_factory.mktemp("worse")
    return degrade(category, folder, ALL, "both"), folder


def test_both_sides_are_read_by_the_loader_as_what_was_returned(category, both):
    worse, folder = both
    assert worse == rcp.mvtec(folder, "thing")
    assert worse.test.counts() == category.test.counts() and len(worse.train) == len(category.train)
    for before, after in zip((*category.train, *category.test), (*worse.train, *worse.test)):
        pixels = read_image(after.path)
        assert after.path.stem == before.path.stem and not np.array_equal(pixels, read_image(before.path))
        assert pixels.shape == read_image(before.path).shape
        assert after.mask is None or read_mask(after.mask, pixels.shape[:2]).any()


def test_the_files_hold_what_degrade_pixels_makes_of_each_image(category, both):
    before, after = category.test[-1], both[0].test[-1]
    generator = room._generator(0, category.test, before)
    pixels, mask = degrade_pixels(read_image(before.path), read_mask(before.mask), ALL, generator)
    assert np.array_equal(read_image(after.path), pixels) and np.array_equal(read_mask(after.mask), mask)


@pytest.mark.parametrize("side, other", [("train", "test"), ("test", "train")])
def test_the_other_side_is_left_where_it_lies(category, both, tmp_path, side, other):
    worse = degrade(category, tmp_path, ALL, side)
    assert getattr(worse, other) is getattr(category, other)
    assert getattr(worse, side).fingerprint() == getattr(both[0], side).fingerprint()
    assert not (tmp_path / "thing" / other).exists() and worse.root == tmp_path / "thing"


def test_the_source_is_left_as_it_was(category, tmp_path):
    before = files(category.root)
    degrade(category, tmp_path, LIGHT, "both")
    assert files(category.root) == before


def test_an_image_is_the_same_in_any_subset_and_order(category, both, tmp_path):
    some = Split("test", category.test.root, tuple(reversed(category.test.samples[1::2])))
    worse = degrade(dataclasses.replace(category, test=some), tmp_path, ALL)
    assert len(worse.test) == 3 and worse.test.paths == sorted(worse.test.paths)
    for sample in worse.test:
        same = both[0].root / sample.path.relative_to(worse.root)
        assert sample.path.read_bytes() == same.read_bytes()


def test_images_draw_for_themselves_and_seeds_split_and_path_tell_them_apart(category):
    test, train = category.test, category.train
    draws = [room._generator(seed, split, sample).random() for seed, split, sample in
             ((0, test, test[0]), (1, test, test[0]), (0, test, test[1]), (0, train, train[0]), (0, train, train[1]))]
    assert len(set(draws)) == len(draws) and draws[0] == room._generator(0, test, test[0]).random()


def test_the_draw_does_not_depend_on_where_the_data_lie(category, both, tmp_path):
    shutil.copytree(category.root, tmp_path / "moved" / "thing")
    worse = degrade(rcp.mvtec(tmp_path / "moved", "thing"), tmp_path / "out", ALL, "both")
    assert worse.test.fingerprint() == both[0].test.fingerprint()
    assert worse.train.fingerprint() == both[0].train.fingerprint()


def test_a_complete_folder_is_used_as_it_is(category, tmp_path):
    worse = degrade(category, tmp_path, ALL)
    before = times(tmp_path)
    assert degrade(category, tmp_path, ALL) == worse and times(tmp_path) == before


@pytest.mark.parametrize("damage", ["missing image", "changed mask", "no end", "only the mark's temporary file"])
def test_a_half_written_or_damaged_folder_is_written_anew(category, tmp_path, damage):
    worse = degrade(category, tmp_path, ALL)
    whole, recipe = files(tmp_path), worse.root / room.RECIPE
    if damage == "missing image":
        worse.test[0].path.unlink()
    elif damage == "changed mask":
        worse.test[-1].mask.write_bytes(worse.test[-2].mask.read_bytes())
    elif damage == "no end":
        shutil.rmtree(worse.root / "ground_truth")
        recipe.write_text(json.dumps({**read_json(recipe), "made": None}), encoding="utf-8")
    else:
        shutil.rmtree(worse.root)
        worse.root.mkdir()
        (worse.root / f".{room.RECIPE}.abc.json").touch()
        whole[f"thing/.{room.RECIPE}.abc.json"] = b""
    assert degrade(category, tmp_path, ALL) == worse and files(tmp_path) == whole


KILLED = """
import os, signal, sys, types
from pathlib import Path
sys.modules["rcp"] = types.ModuleType("rcp")  # only the rooms that are needed: the others take seconds to import
sys.modules["rcp"].__path__ = [sys.argv[3]]
from rcp import data, quality

whole, names, quality.WORKERS = quality.write_atomically, [], 1  # a second thread would write on while this one is killed

def killed_in_the_fifth(path, write):
    names.append(path)
    def half(temporary):
        write(temporary)
        temporary.write_bytes(temporary.read_bytes()[:99])
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return whole(path, half if len(names) == 5 else write)

quality.write_atomically = killed_in_the_fifth
quality.degrade(data.mvtec(sys.argv[1], "thing"), sys.argv[2], quality.ALL, "both")
"""


def test_a_run_killed_while_it_writes_a_file_is_made_whole_by_the_next(category, both, tmp_path):
    command = [sys.executable, "-c", KILLED, str(category.root.parent), str(tmp_path), str(Path(rcp.__file__).parent)]
    assert subprocess.run(command, check=False).returncode != 0
    written = files(tmp_path)
    assert read_json(tmp_path / "thing" / room.RECIPE)["made"] is None
    whole = [name for name in written if name.endswith(".png") and "/." not in name]
    assert len(whole) == 4 and len(written) == 4 + 1 + 1  # the mark, and half a file under another name
    worse = degrade(category, tmp_path, ALL, "both")
    assert rcp.mvtec(tmp_path, "thing") == worse
    assert worse.train.fingerprint() == both[0].train.fingerprint()
    assert worse.test.fingerprint() == both[0].test.fingerprint()


@pytest.mark.parametrize("layout", ["mvtec", "btad", "visa"])
def test_what_is_missing_is_counted_and_its_bytes_are_about_right_and_not_too_few(tmp_path, layout):
    names = {"mvtec": ("bottle", "zipper"), "btad": ("01", "02"), "visa": ("candle",)}[layout]  # zipper is grey
    root = getattr(miniatures, layout)(tmp_path / "source", categories=names, train=2, good=1)
    for name in names:
        source = rcp.find(root, name)
        for sides, count in (("test", len(source.test)), ("train", 2), ("both", len(source.test) + 2)):
            found, most = missing(source, tmp_path / sides, sides)
            assert found == count
            worse = degrade(source, tmp_path / sides, ALL, sides)
            splits = [getattr(worse, side) for side in room.SIDES[sides]]
            real = sum(path.stat().st_size for split in splits for sample in split for path in (sample.path, sample.mask) if path)
            assert real <= most <= 2.5 * real, (name, sides)
            assert missing(source, tmp_path / sides, sides) == (0, 0)
        mark = tmp_path / "both" / name / room.RECIPE
        kept = mark.read_text(encoding="utf-8")
        mark.write_text(json.dumps(json.loads(kept) | {"made": None}), encoding="utf-8")  # killed: all are written anew
        assert missing(source, tmp_path / "both", "both")[0] == count
        mark.write_text(kept, encoding="utf-8")
        lost = splits[0][0].path.stat().st_size
        splits[0][0].path.unlink()
        again, more = missing(source, tmp_path / "both", "both")
        images = sum(sample.path.stat().st_size for split in splits for sample in split if sample.path.is_file())
        assert again == count and more == max(0, most - images) < most and lost > 0  # what is there is replaced


def test_a_disk_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(room.Path, "exists", lambda path: False)
    with pytest.raises(OSError, match="there is no such disk; name another folder"):
        room.check_room(tmp_path, 1)


def test_a_disk_without_room_is_told_before_anything_is_written(category, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    needed = missing(category, tmp_path / "new", "both")[1]
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1) if path == tmp_path else usage)
    with pytest.raises(OSError, match=r"need about 0 MB below .*new, and 0 MB are free there: free some, or name another folder"):
        degrade(category, tmp_path / "new", ALL, "both")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    degrade(category, tmp_path / "new", ALL, "both")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=0))
    degrade(category, tmp_path / "new", ALL, "both")  # complete: nothing is needed


@pytest.mark.parametrize("quality, sides, differs", [
    (dataclasses.replace(ALL, seed=1), "test", "quality"), (TRANSLATION, "test", "quality"),
    (ALL, "both", "sides and source")])
def test_a_folder_of_another_recipe_is_left_alone_and_named(category, tmp_path, quality, sides, differs):
    degrade(category, tmp_path, ALL)
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=rf"thing was made with another {differs} \(see .*choose another folder"):
        degrade(category, tmp_path, quality, sides)
    assert files(tmp_path) == before


def test_a_source_that_changed_is_told(category, tmp_path):
    degrade(category, tmp_path, ALL)
    with pytest.raises(FileExistsError, match="made with another source"):
        degrade(dataclasses.replace(category, test=category.test[1:]), tmp_path, ALL)


def test_the_source_is_never_written_into(category):
    before = files(category.root)
    with pytest.raises(FileExistsError, match="thing exists and was not made by rcp.quality: choose another folder"):
        degrade(category, category.root.parent, ALL)
    assert files(category.root) == before


def test_sides_names_and_empty_sides_are_checked(category, tmp_path):
    with pytest.raises(ValueError, match="sides must be one of train, test, both, not 'left'"):
        degrade(category, tmp_path, ALL, "left")
    with pytest.raises(ValueError, match="'a/b' cannot be the name of a folder"):
        degrade(dataclasses.replace(category, name="a/b"), tmp_path, ALL)
    with pytest.raises(ValueError, match="category 'thing' has no test images to degrade"):
        degrade(dataclasses.replace(category, test=category.test[:0]), tmp_path, ALL, "both")
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_stem_are_named(tmp_path):
    for name in ("0.bmp", "0.png"):
        (tmp_path / "source").mkdir(exist_ok=True)
        Image.fromarray(picture(8, 9)).save(tmp_path / "source" / name)
    with pytest.raises(ValueError, match=r"0\.bmp and .*0\.png would both become .*0\.png: rename one"):
        degrade(rcp.find(tmp_path / "source"), tmp_path / "out", ALL, "train")


def test_a_mask_of_another_size_is_named_and_leaves_a_folder_that_can_be_made_anew(category, tmp_path):
    shutil.copytree(category.root, tmp_path / "source" / "thing")
    copy = rcp.mvtec(tmp_path / "source", "thing")
    good = copy.test[-1].mask.read_bytes()
    Image.new("L", (5, 6)).save(copy.test[-1].mask)
    with pytest.raises(rcp.images.ImageError, match=f"{copy.test[-1].mask.name}: the mask is 6x5 pixels"):
        degrade(copy, tmp_path / "out", ALL)
    assert read_json(tmp_path / "out" / "thing" / room.RECIPE)["made"] is None
    shutil.rmtree(tmp_path / "out")
    copy.test[-1].mask.write_bytes(good)
    assert degrade(copy, tmp_path / "out", ALL).test.has_masks


def test_btad_and_visa_become_mvtec(tmp_path):
    base, grey = tmp_path / "btad" / "01", Image.fromarray(picture(20, 30)[..., 0])
    mask = Image.fromarray(np.uint8(np.indices((20, 30))[0] // 8 == 1) * 255)
    for place, name, image in (("train/ok", "0.bmp", grey), ("train/ok", "1.jpg", grey), ("test/ok", "2.bmp", grey),
                               ("test/ko", "3.jpg", grey), ("ground_truth/ko", "3.bmp", mask)):
        (base / place).mkdir(parents=True, exist_ok=True)
        image.save(base / place / name)
    worse = degrade(rcp.btad(tmp_path / "btad", "01"), tmp_path / "a", ALL, "both")
    assert worse == rcp.mvtec(tmp_path / "a", "01") and worse.test.counts() == {"good": 1, "ko": 1}
    assert sorted(files(worse.root)) == ["ground_truth/ko/3_mask.png", room.RECIPE, "test/good/2.png",
                                         "test/ko/3.png", "train/good/0.png", "train/good/1.png"]

    root, rows = tmp_path / "visa", ["object,split,label,image,mask"]
    for split, label, image in (("train", "normal", "0.JPG"), ("test", "normal", "1.JPG"), ("test", "anomaly", "0.JPG")):
        place = Path("pcb1", "Data", "Images", label.title(), image)
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        grey.convert("RGB").save(root / place)
        truth = "pcb1/Data/Masks/Anomaly/0.png" if label == "anomaly" else ""
        rows.append(f"pcb1,{split},{label},{place.as_posix()},{truth}")
    (root / "pcb1/Data/Masks/Anomaly").mkdir(parents=True)
    mask.point(lambda value: value // 255).save(root / truth)  # VisA's masks hold small numbers
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows), encoding="utf-8")
    worse = degrade(rcp.visa(root, "pcb1"), tmp_path / "v", BLUR, "both")
    assert worse == rcp.mvtec(tmp_path / "v", "pcb1") and worse.test.counts() == {"anomaly": 1, "good": 1}
    assert read_mask(worse.test[0].mask).sum() == 8 * 30 and len(read_image(worse.train[0].path)) == 20
