"""What a generalist learns from: every labelled category but the one that it is tested on."""

from __future__ import annotations

import shutil

import pytest

import rcp
from rcp.auxiliary import auxiliary


@pytest.fixture
def root(category, tmp_path):
    """Three categories; the last has no anomalous test image."""
    for name in ("thing", "other", "sound"):
        shutil.copytree(category.root, tmp_path / name)
    shutil.rmtree(tmp_path / "sound" / "test" / "scratch")
    return tmp_path


def test_the_tested_category_and_those_without_both_kinds_are_left_out(root):
    assert [one.name for one in auxiliary(rcp.mvtec(root, "thing"), root)] == ["other"]
    assert [one.name for one in auxiliary(rcp.mvtec(root, "sound"), root)] == ["other", "thing"]


def test_one_of_the_same_name_elsewhere_is_left_out_too(root, category):
    assert [one.name for one in auxiliary(category, root)] == ["other"]


def test_without_a_folder_it_is_the_embedded_data(monkeypatch, root, category):
    monkeypatch.setattr("rcp.auxiliary.synthetic.cached", lambda: root)
    assert [one.name for one in auxiliary(category)] == ["other"]


def test_nothing_to_learn_from_is_told_in_one_sentence(root):
    shutil.rmtree(root / "other")
    with pytest.raises(ValueError, match="no category besides thing with normal and anomalous test images"):
        auxiliary(rcp.mvtec(root, "thing"), root)
