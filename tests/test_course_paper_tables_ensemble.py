"""Notebook 08's section on ensembles: paired with what they join, and honest about the best member."""

import pytest

from rcp.course import paper_tables as lesson
from rcp.course import paper_tables_ensemble as together
from rcp.course import paper_tables_figures as pictures
from rcp.course import paper_tables_words as words
from rcp.experiments import read_grid
from rcp.experiments.collection import Row
from rcp.experiments.command import GRIDS
from rcp.experiments.summary import over_both, over_seeds

LITES, JOINED = ("Lite0", "Lite1", "Lite2"), "Lite0+Lite1+Lite2"
PLACES = (("embedded", "brick"), ("embedded", "terminal"), ("mvtec", "pill"))


def row(place, backbone: str, method: str, seed: int, level: float) -> Row:
    metrics = {name: level for name in ("image_auroc", "pixel_auroc", "aupro")} | {"d_prime": level}
    return Row(*place, backbone, method, {}, seed, None, metrics, {})


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Members at 0.80, 0.82 and 0.87 (which is best goes round with the seed); joined 0.85, untrained 0.84, trained 0.86 or so."""
    found = []
    for i, place in enumerate(PLACES):
        for seed in range(3):
            shift = -0.01 * seed
            for j, name in enumerate(LITES):
                found.append(row(place, name, "PatchCore", seed, (0.80, 0.82, 0.87)[(j + seed) % 3] + shift))
            worth = 0.02 + 0.001 * seed + 0.002 * i
            levels = {"PatchCore": 0.85, "untrained f": 0.84, "ReConPatch": 0.84 + worth, "ReConPatch, rate x 10": 0.84 + 2 * worth}
            found += [row(place, JOINED, f"ensemble of {name}", seed, level + shift) for name, level in levels.items()]
    return found


def test_ensembles_are_paired_with_each_other_and_with_what_they_join(rows):
    found = together.comparisons(rows, "image_auroc")
    assert list(found) == [*together.PAIRS, *together.ALONE] and all(len(own) == 9 for own in found.values())
    key = ("mvtec", "pill", JOINED, 2)
    values = {name: own[key] for name, own in found.items()}
    assert values == pytest.approx({
        "ReConPatch − untrained f": 2.6, "ReConPatch − PatchCore": 1.6, "ReConPatch, rate x 10 − untrained f": 5.2,
        "ReConPatch, rate x 10 − PatchCore": 4.2,
        "PatchCore − mean of its members": 85 - 83, "PatchCore − best of its members": -2.0,
    })  # fmt: skip
    assert together.comparisons(rows, "d_prime")["PatchCore − best of its members"][key] == pytest.approx(-0.02)


def test_members_are_those_that_the_ensemble_names(rows):
    stranger = [row(place, "Lite9", "PatchCore", seed, 0.99) for place in PLACES for seed in range(3)]
    assert together.members([*rows, *stranger], "aupro", max) == together.members(rows, "aupro", max)
    lacking = [r for r in rows if (r.backbone, r.category, r.seed) != ("Lite1", "pill", 0)]
    assert len(together.members(lacking, "aupro", max)) == 8  # an ensemble is not compared with some of its members


def test_what_is_not_measured_is_said(rows):
    assert together.comparisons([], "aupro") == {} and together.ensemble_table([]) == "" and "not measured yet" in together.said([])
    some = [r for r in rows if r.method in ("PatchCore", "ensemble of PatchCore")]
    assert list(together.comparisons(some, "aupro")) == list(together.ALONE) and "not measured yet" in together.said(some)
    assert pictures.ensemble_figure([]).axes[0].texts[0].get_text() == "not measured yet"


def test_the_table_and_the_words_go_by_the_interval_over_both(rows):
    found = together.comparisons(rows, "image_auroc")
    text = together.ensemble_table(rows).splitlines()
    assert len(text) == 2 + 6
    for name, own in found.items():
        line = next(line for line in text if line.startswith(f"| {name} |"))
        one = over_both(own)
        assert (f"| **{lesson.shown(one)}** |" if one.clear else f"| {lesson.shown(one)} ") in line
    said = together.said(rows)
    for name in (together.TRAINING, together.JOINING, together.BEST):
        assert f"{lesson.shown(over_both(found[name]))}, {lesson.verdict(over_both(found[name]))}" in said
    study = lesson.Measured("ensemble", tuple(rows), 45, 0)
    last = words.question(lesson.Measured("study", (), 0, 0), study, study).splitlines()[-1]
    assert "In an ensemble" in last and lesson.shown(over_both(found[together.TRAINING])) in last


def test_the_figure_draws_the_comparisons_with_a_mark_a_category(rows):
    axes = pictures.ensemble_figure(rows).axes[0]
    found = together.comparisons(rows, "image_auroc")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found)
    bars = {c.get_label(): c.get_segments() for c in axes.collections}
    for i, own in enumerate(found.values()):
        assert bars["95 % over both"][i][:, 0] == pytest.approx([over_both(own).low, over_both(own).high])
        assert bars["95 % over seeds alone"][i][:, 0] == pytest.approx([over_seeds(own).low, over_seeds(own).high])
    marks = [line for line in axes.lines if line.get_label().startswith("mean, ")]
    assert [line.get_label() for line in marks] == ["mean, brick", "mean, terminal", "mean, pill"]
    assert len({line.get_marker() for line in marks}) == 3


def test_the_grid_that_comes_along_has_every_ensemble():
    cells = read_grid(GRIDS / "ensemble.toml").cells(lambda data: data.categories)
    assert set(lesson.ENSEMBLES) == {cell.method for cell in cells if "+" in cell.backbone}
    assert {cell.backbone for cell in cells} == {*LITES, JOINED}
    training = next(cell.training for cell in cells if cell.method == "ensemble of ReConPatch")
    assert (training.epochs * training.steps, training.learning_rate) == (960, 1e-6)  # of which the notebook speaks
