"""What every table has to say of itself: what was measured, and why it may differ from what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rcp import data as datasets
from rcp import presets
from rcp.backbones import PRESETS as BACKBONES
from rcp.data import Category
from rcp.miniatures import NOTES
from rcp.official import Facts
from rcp.presets import Preset
from rcp.reproduce.setup import DATA, QUICK, TITLES, Setup
from rcp.reproduce.sheet import Sheet

PROTOCOL = {"crop": "pixels judged on the crop that the network sees, masks resized to nearest"}


def is_miniature(root: str | Path) -> bool:
    """Return whether a folder was drawn by `rcp.miniatures`."""
    notes = [Path(root) / name for name in NOTES.values()]
    return any(
        note.is_file() and note.read_text(encoding="utf-8", errors="replace").startswith("A miniature made by rcp.miniatures")
        for note in notes
    )


def caption(sheet: Sheet, setup: Setup, *, miniature: bool) -> str:
    """Return the lines above the table: data, backbones, training, seeds, protocol.

    Args:
        sheet, setup: what was asked for.
        miniature: whether the pictures are drawn by `rcp.miniatures`.
    """
    every, own = len(setup.released), len(setup.categories)
    title = TITLES[setup.data]
    if miniature and setup.data != "synthetic":
        title = f"a drawn miniature of {title}"
    some = f"{own} of {every} categories ({', '.join(setup.categories)})"
    categories = some if setup.missing else f"all {every} categories"
    seeds = setup.seeds
    spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"one seed, {seeds[0]}"
    trained = _trainings(sheet)
    quick = "--quick: a few steps only, to try the path; no number below is a result of the method. " * setup.quick
    drawn = "The pictures are drawn: a difference from a published number says nothing but that the path works. " * miniature
    models = "; ".join(_models(sheet))
    return (
        f"{quick}{drawn}Measured on {title}, {categories}, with {models}. ReConPatch {trained}; {spread}; protocol "
        f"{sheet.grid.protocol} ({PROTOCOL[sheet.grid.protocol]}). All in %; difference is measured less published."
    )


def reasons(sheet: Sheet, setup: Setup, root: str | Path, *, miniature: bool) -> list[str]:
    """Return the sentences that tell why the whole table differs from the paper's, as far as it is known.

    Args:
        sheet, setup: what was asked for.
        root: the data; the first image of each category is looked at for its size.
        miniature: whether the pictures are drawn.
    """
    found = [*sheet.remarks]
    for ours, paper in zip(sheet.presets, sheet.paper, strict=True):
        if ours.backbones != paper.backbones:
            own, theirs = " + ".join(ours.backbones), " + ".join(paper.backbones)
            found.append(f"Another backbone: {own} where the paper has {theirs} ({paper.size} px).")
        files = [f"{one.backbone} from {Path(one.weights).name}" for one in ours.features if one.weights]
        if files:
            found.append(f"Weights from a local file: {', '.join(files)}.")
        if ours.features[0].stored != "float32":
            kept = f"kept as {ours.features[0].stored}; all that is computed from them is float32."
            found.append(f"Features at {ours.size} px{_form(ours)} are {kept}")
    if setup.quick:
        few = "{epochs} epochs of {steps} steps of {batch_size} patches".format(**QUICK)
        found.append(f"--quick: {few}, where the paper has {_epochs(sheet.paper)} over all patches.")
    if miniature:
        found.append("The pictures are drawn, small, and few: the layout is that of the data set, the pictures are not.")
    else:
        found += _stored(setup, root)
    found.append(
        "The paper states neither seeds, batch, sigma, gamma, b nor the width of g: those here are ours (`rcp.presets` names each)."
    )
    return list(dict.fromkeys(found))


def _trainings(sheet: Sheet) -> str:
    training = sheet.grid.training
    steps = f" of {training['steps']} steps of {training['batch_size']} patches" if "steps" in training else " over all patches"
    return f"after {training['epochs']} epochs{steps}, learning rate {training['learning_rate']:g}"


def _models(sheet: Sheet) -> list[str]:
    """The backbones of the grid, those with one geometry together."""
    found: dict[str, list[str]] = {}
    for one in sheet.grid.backbones.values():
        levels = "+".join(map(str, one.levels))
        form = f"s={one.patch_size}, levels {levels}, short side {one.resize}, crop {one.crop}"
        tag = BACKBONES[one.backbone].tag if one.backbone in BACKBONES else one.backbone
        found.setdefault(form, []).append(f"{presets.NAMES.get(one.backbone, one.backbone)} ({tag})")
    return [f"{' + '.join(names)}, {form}" for form, names in found.items()]


def _form(preset: Preset) -> str:
    first = preset.features[0]
    usual = (first.patch_size, first.levels) == (3, (2, 3))
    return "" if usual else f" with s={first.patch_size}, levels {'+'.join(map(str, first.levels))}"


def _epochs(paper: Sequence[Preset]) -> str:
    return " or ".join(sorted({f"{preset.training.epochs} epochs" for preset in paper if preset.training}))


def _stored(setup: Setup, root: str | Path) -> list[str]:
    """What the files themselves tell: another size than released, or another number of images."""
    sizes: dict[str, list[str]] = {}
    counts = []
    for name in setup.categories:
        category, facts = datasets.find(root, name), DATA[setup.data][name]
        with Image.open(category.train.paths[0]) as image:
            size = image.size[::-1]
        if facts.size and size != facts.size:
            sizes.setdefault(f"{size[0]}x{size[1]}", []).append(f"{name} {facts.size[0]}x{facts.size[1]}")
        if difference := _counted(category, facts):
            counts.append(f"{name} {difference}")
    found = [
        f"Images are stored at {size} pixels, released at (height x width): {', '.join(names)}." for size, names in sizes.items()
    ]
    if counts:
        found.append(f"Other numbers of images than released (training, good, defective): {'; '.join(counts)}.")
    return found


def _counted(category: Category, facts: Facts) -> str:
    good = category.test.counts().get("good", 0)
    own = (len(category.train), good, len(category.test) - good)
    released = (facts.train, facts.good, sum(facts.defects.values()))
    return "" if own == released else f"{'/'.join(map(str, own))} instead of {'/'.join(map(str, released))}"
