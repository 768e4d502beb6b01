"""Digits as semantic anomalies: what is normal, what is not, and that no image is on both sides."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from rcp import semantic
from rcp.data import mvtec

SMALL = {"train": 12, "good": 9, "bad": 9, "side": 16}


def pictures(split) -> list[bytes]:
    return [np.asarray(Image.open(path)).tobytes() for path in split.paths]


def twin(picture: bytes) -> int:
    """Which digit of scikit-learn's a picture is, found by looking at them all."""
    images, digits = semantic._digits()
    enlarged = [np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BICUBIC)).tobytes() for one in images]
    return int(digits[enlarged.index(picture)])


def test_one_digit_is_normal_and_the_nine_others_are_anomalies(tmp_path):
    category = semantic.one_against_rest(3, root=tmp_path, **SMALL)
    assert category.name == "rest-3" and category.dataset == "mvtec"
    assert category.train.counts() == {"good": 12} and not category.test.has_masks
    assert category.test.counts() == {"good": 9} | {f"digit_{d}": 1 for d in range(10) if d != 3}
    assert {twin(p) for p in pictures(category.train)} == {3}
    for sample, picture in zip(category.test, pictures(category.test), strict=True):
        assert twin(picture) == (3 if sample.defect == "good" else int(sample.defect[-1]))


def test_nine_digits_are_normal_and_one_is_the_anomaly(tmp_path):
    category = semantic.all_but_one(3, root=tmp_path, **SMALL)
    assert category.name == "one-3" and category.test.counts() == {"good": 9, "digit_3": 9}
    normal = [twin(p) for p in pictures(category.train)]
    assert set(normal) == set(range(10)) - {3} and max(map(normal.count, normal)) == 2


def test_no_image_is_for_training_and_testing_and_half_of_a_digit_is_for_each(tmp_path):
    category = semantic.one_against_rest(7, root=tmp_path, train=500, good=500, bad=2000, side=16)
    train, test = set(pictures(category.train)), set(pictures(category.test))
    assert not train & test
    assert len(category.train) == 89 and category.test.counts()["good"] == 90 and len(category.test) - 90 == 811


def test_the_seed_decides_the_split_and_a_second_call_writes_nothing(tmp_path):
    first = semantic.one_against_rest(0, root=tmp_path / "a", **SMALL)
    times = [path.stat().st_mtime_ns for path in first.test.paths]
    again = semantic.one_against_rest(0, root=tmp_path / "a", **SMALL)
    assert [path.stat().st_mtime_ns for path in again.test.paths] == times
    assert first.test.fingerprint() == semantic.one_against_rest(0, root=tmp_path / "b", **SMALL).test.fingerprint()
    assert first.test.fingerprint() != semantic.one_against_rest(0, root=tmp_path / "c", seed=1, **SMALL).test.fingerprint()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["rest-0"]  # nothing half-written is left


def test_without_a_root_it_lies_in_the_cache_apart_from_other_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_CACHE", str(tmp_path))
    small = semantic.one_against_rest(1, **SMALL)
    large = semantic.one_against_rest(1, **SMALL | {"side": 32})
    assert small.root.is_relative_to(tmp_path) and small.root.parent != large.root.parent
    assert Image.open(large.train.paths[0]).size == (32, 32)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert semantic.one_against_rest(1, **SMALL) == small  # what is written needs no scikit-learn
    with pytest.raises(ImportError, match="the digits come with scikit-learn: pip install"):
        semantic.one_against_rest(2, **SMALL)


def test_what_stands_there_already_is_never_overwritten(tmp_path):
    category = semantic.one_against_rest(1, root=tmp_path, **SMALL)
    with pytest.raises(FileExistsError, match="was made with"):
        semantic.one_against_rest(1, root=tmp_path, **SMALL | {"side": 32})
    category.train.paths[0].unlink()
    with pytest.raises(FileExistsError, match="holds 29 PNG files, not 30; delete it"):
        semantic.one_against_rest(1, root=tmp_path, **SMALL)
    (category.root / semantic.RECIPE).write_text("{}")
    with pytest.raises(FileExistsError, match="is damaged"):
        semantic.one_against_rest(1, root=tmp_path, **SMALL)
    (category.root / semantic.RECIPE).unlink()
    with pytest.raises(FileExistsError, match="was not made by rcp.semantic"):
        semantic.one_against_rest(1, root=tmp_path, **SMALL)
    assert mvtec(tmp_path, category.name).train.counts() == {"good": 11}


def test_the_faster_of_two_processes_wins(tmp_path):
    category = semantic.all_but_one(1, root=tmp_path, **SMALL)
    before = category.test.fingerprint()
    recipe = {"version": semantic.VERSION, **SMALL, "seed": 0, "normal": [0, *range(2, 10)]}
    semantic._write(category.root, recipe)
    assert mvtec(tmp_path, category.name).test.fingerprint() == before


@pytest.mark.parametrize("protocol", [semantic.one_against_rest, semantic.all_but_one])
def test_digits_and_counts_that_cannot_be_are_refused(tmp_path, protocol):
    with pytest.raises(ValueError, match="digit must be one of 0 to 9, got 10"):
        protocol(10, root=tmp_path)
    for wrong in ({"train": 0}, {"good": 0}, {"bad": 0}, {"side": 7}):
        with pytest.raises(ValueError, match="train, good and bad must be positive, side at least 8"):
            protocol(1, root=tmp_path, **wrong)


def test_the_command_writes_both_protocols_of_all_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rcp.semantic", str(tmp_path)])
    with pytest.warns(RuntimeWarning, match="found in sys.modules"):  # as it was imported above
        runpy.run_module("rcp.semantic", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(f"{start}-{d}" for start in ("one", "rest") for d in range(10))
    assert len(mvtec(tmp_path, "rest-4").test) == 40 + 45 and len(mvtec(tmp_path, "one-4").train) == 90
