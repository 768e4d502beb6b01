"""`rcp reproduce` in a second: the paper's presets on the smallest networks that timm has, with weights drawn at random."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rcp import presets
from rcp.presets import Preset
from rcp.reproduce import command

SIZES = {224: (72, 64), 480: (72, 64), 320: (60, 48)}  # crop → short side and crop in small; both are looked up by it
NETWORKS = {"resnext101": "test_efficientnet", "densenet201": "test_byobnet"}  # all others: test_resnet
QUICK = {"epochs": 1, "steps": 1, "batch_size": 32}


def shrink(preset: Preset) -> Preset:
    """Return a preset on small networks and small pictures."""
    features = []
    for one in preset.features:
        resize, crop = SIZES[one.crop]
        features.append(replace(one, backbone=NETWORKS.get(one.backbone, "test_resnet"), pretrained=False, resize=resize, crop=crop))
    return replace(preset, features=tuple(features), training=preset.training and replace(preset.training, dimension=32))


def make_small(monkeypatch) -> None:
    """Put the small presets, and a training of one step, in the place of the paper's, until the test ends."""
    monkeypatch.setattr(presets, "PRESETS", {name: shrink(preset) for name, preset in presets.PRESETS.items()})
    monkeypatch.setattr("rcp.reproduce.setup.QUICK", QUICK)


def parsed(*arguments: str) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_options(parser)
    return parser.parse_args(arguments)
