"""The paper's settings by name: what each says, and that its twin says what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rcp import presets
from rcp.backbones import PRESETS as BACKBONES
from rcp.detectors import Ensemble, PatchCore, ReConPatch
from rcp.head import PAPER_ENSEMBLE, PAPER_SINGLE
from rcp.store import MemoryLimit

PAPER = {name: preset for name, preset in presets.PRESETS.items() if not preset.twin}


@pytest.mark.parametrize(
    "name, tags, sizes, form, training, coreset",
    [
        ("single-224", ["wide_resnet50_2.tv_in1k"], (256, 224), (3, (2, 3)), PAPER_SINGLE, 0.01),
        ("single-224-pixel", ["wide_resnet50_2.tv_in1k"], (256, 224), (5, (1, 2, 3)), PAPER_SINGLE, 0.01),
        ("single-480", ["wide_resnet101_2.tv_in1k"], (512, 480), (3, (2, 3)), PAPER_SINGLE, 0.01),
        ("btad", ["wide_resnet101_2.tv_in1k"], (512, 480), (3, (2, 3)), PAPER_SINGLE, 0.01),
        ("ensemble-480", ["wide_resnet101_2.tv_in1k", "resnext101_32x8d.tv_in1k", "densenet201.tv_in1k"], (512, 480), (3, (2, 3)), PAPER_ENSEMBLE, 0.01),
        ("ensemble-320", ["wide_resnet101_2.tv_in1k", "resnext101_32x8d.tv_in1k", "densenet201.tv_in1k"], (366, 320), (3, (2, 3)), PAPER_ENSEMBLE, 0.01),
        ("patchcore-25", ["wide_resnet50_2.tv_in1k"], (256, 224), (3, (2, 3)), None, 0.25),
        ("patchcore-10", ["wide_resnet50_2.tv_in1k"], (256, 224), (3, (2, 3)), None, 0.1),
        ("patchcore-1", ["wide_resnet50_2.tv_in1k"], (256, 224), (3, (2, 3)), None, 0.01),
    ],
)  # fmt: skip
def test_a_preset_is_what_the_paper_states(name, tags, sizes, form, training, coreset):
    preset = presets.get(name)
    assert [BACKBONES[one.backbone].tag for one in preset.features] == tags
    assert all((one.resize, one.crop) == sizes and (one.patch_size, one.levels) == form for one in preset.features)
    assert preset.training == training and preset.bank.coreset == coreset and not preset.twin


def test_the_papers_trainings_are_the_ones_of_the_specification():
    assert (PAPER_SINGLE.dimension, PAPER_SINGLE.epochs, PAPER_SINGLE.learning_rate, PAPER_SINGLE.weight_decay) == (512, 120, 1e-5, 1e-2)
    assert (PAPER_ENSEMBLE.dimension, PAPER_ENSEMBLE.epochs, PAPER_ENSEMBLE.learning_rate) == (384, 60, 1e-6)
    assert (PAPER_SINGLE.k, PAPER_SINGLE.margin, PAPER_SINGLE.alpha, PAPER_SINGLE.steps) == (5, 1.0, 0.5, None)


@pytest.mark.parametrize("name", PAPER)
def test_every_preset_has_a_twin_that_says_so_and_differs_in_nothing_else(name):
    preset, twin = presets.get(name), presets.get(f"{name}-embedded")
    assert twin == presets.twin(preset) and presets.twin(twin) == twin
    assert all(BACKBONES[one.backbone].package for one in twin.features)  # on any machine
    assert "in the place of" in twin.ours and "no number compares" in twin.ours and "in the place of" not in preset.ours
    for ours, theirs in zip(twin.features, preset.features, strict=True):
        assert replace(ours, backbone=theirs.backbone) == theirs
    assert (twin.training, twin.bank, twin.stated) == (preset.training, preset.bank, preset.stated)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_a_preset_says_holds_of_its_settings(name):
    preset = presets.get(name)
    assert preset.name == name and preset.stated and preset.ours
    assert ("float16" in preset.ours) == (preset.features[0].stored == "float16")
    assert f"{preset.size} px" in preset.stated
    if preset.training:
        t = preset.training
        for part in (f"width of g ({t.projection})", f"batch ({t.batch_size} ", f"gamma ({t.momentum})", f"b ({preset.bank.neighbours})"):
            assert part in preset.ours


def test_a_preset_makes_its_detector_without_loading_anything(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("rcp.features.load_backbone", fail)
    assert isinstance(presets.get("patchcore-1").detector(), PatchCore)
    single = presets.get("single-480").detector(seed=3)
    assert isinstance(single, ReConPatch) and single.training == PAPER_SINGLE and single.seed == 3
    ensemble = presets.get("ensemble-320").detector(seed=1)
    assert isinstance(ensemble, Ensemble) and [member.training for member in ensemble.members] == [PAPER_ENSEMBLE] * 3


def test_a_bound_on_memory_reaches_every_detector():
    limit = MemoryLimit(2**33)
    assert presets.get("patchcore-1").detector(limit=limit).limit is limit
    assert presets.get("single-224").detector(limit=limit).limit is limit and presets.get("single-224").detector().limit == MemoryLimit()
    assert all(member.limit is limit for member in presets.get("ensemble-320").detector(limit=limit).members)


def test_other_backbones_and_their_files_take_the_place_of_the_papers():
    found = presets.on_backbones(presets.get("single-480"), ["resnet18"], {"resnet18": "some.pth"})
    assert found.features[0].backbone == "resnet18" and found.features[0].weights == "some.pth" and found.size == 480
    with pytest.raises(ValueError, match="ensemble-480 has 3 backbones, got resnet18"):
        presets.on_backbones(presets.get("ensemble-480"), ["resnet18"])


def test_an_unknown_preset_is_told_with_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'single-225'; there are single-224, "):
        presets.get("single-225")
