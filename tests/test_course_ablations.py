"""The effects, tables, pictures and checks of notebook 07, on made-up rows of the grids that come along."""

import hashlib
import itertools
import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from lessons import changes, touched, verdicts

from rcp import plots_grids, synthetic
from rcp.course import ablations as lesson
from rcp.course import ablations_figures as pictures
from rcp.course import ablations_paper as paper
from rcp.course import ablations_words as said
from rcp.experiments.collection import Row
from rcp.experiments.command import GRIDS
from rcp.experiments.grid import Cell
from rcp.experiments.gridfile import read_grid
from rcp.experiments.summary import Interval


def cells_of(name: str) -> list[Cell]:
    return read_grid(GRIDS / f"{name}.toml").cells(lambda data: synthetic.CATEGORIES)


def noise(*what) -> float:
    """In [-1, 1], another number for other settings, the same for the same."""
    text = json.dumps(what, sort_keys=True, default=str)
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 0x7FFFFF - 1


def made(cell: Cell, epoch: int | None, last: bool) -> Row:
    """A row of known effects: α = 1 costs 2 points, width 64 gives 3; degraded images cost PatchCore 5, ReConPatch 3, f 4."""
    trained = cell.training is not None and epoch != 0
    settings = cell.settings() | {"snapshots": 0}
    value = 0.9 + 0.01 * cell.seed + 0.02 * (cell.category == "brick") + 0.001 * noise(settings, cell.category, epoch, cell.data.label)
    if trained:
        value += -0.02 * (cell.training.alpha == 1) + 0.03 * (cell.training.dimension == 64)
    if cell.data.quality:
        value -= 0.05 if cell.training is None else 0.03 if trained else 0.04
    metrics = {"image_auroc": value, "pixel_auroc": value, "aupro": value - 0.1, "d_prime": 2 * value}
    names = cell.names()
    return Row(**names, epoch=epoch, metrics=metrics, probes={"position_share": 0.2 + 0.05 * noise(settings, epoch)}, last=last)


def rows_of(name: str) -> list[Row]:
    found = []
    for cell in cells_of(name):
        end = cell.training.epochs if cell.training else None
        found += [made(cell, epoch, False) for epoch in cell.snapshots] + [made(cell, end, True)]
    return found


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of("ablations")


@pytest.fixture(scope="module")
def quality_rows() -> list[Row]:
    return rows_of("quality")


@pytest.fixture(scope="module")
def choices(rows) -> dict[str, lesson.Choice]:
    return lesson.measured(rows)


@pytest.fixture(scope="module")
def found(rows, choices) -> list[lesson.Effect]:
    return lesson.effects(rows, choices, "image_auroc", lesson.spread(rows, choices.values(), "image_auroc"))


# What is compared with what


@pytest.mark.parametrize("kind", [lesson.CHOICES, lesson.CONTROLS])
def test_the_grid_that_comes_along_measures_every_level(rows, kind):
    assert lesson.measured(rows, kind) == kind


def test_the_other_grid_measures_every_fault(quality_rows):
    assert lesson.measured(quality_rows, {"quality": lesson.QUALITY}) == {"quality": lesson.QUALITY}


def test_every_choice_differs_from_the_one_default():
    """The reference of every choice is the same fit; the coreset's is 1024 wide and differs in that alone."""
    def settings(level: lesson.Level) -> dict:
        own = [c for c in cells_of("ablations") if c.method == level.method and dict(c.varied) == dict(level.varied)]
        return own[0].settings() | {"snapshots": []}

    usual = settings(lesson.DEFAULT)
    for name, one in lesson.CHOICES.items():
        other = settings(one.reference)
        if name == "coreset":
            other["training"] = other["training"] | {"dimension": usual["training"]["dimension"]}
        assert other == usual, name


def test_no_method_of_the_grid_is_forgotten():
    shown = {level.method for one in (*lesson.CHOICES.values(), *lesson.CONTROLS.values()) for level in one.levels}
    assert shown == {cell.method for cell in cells_of("ablations")}


def test_what_was_not_measured_is_left_out(rows):
    some = [row for row in rows if row.method in ("epochs", "not normalised", "k") and row.varied.get("training.k") != 20]
    left = lesson.measured(some)
    assert set(left) == {"normalised", "k", "epochs"} and [level.label for level in left["k"].levels] == ["2", "3", "5", "10"]
    assert lesson.values(some, lesson.Level("x", "labels"), "aupro") == {}


# Effects


def test_effects_by_hand(rows, found):
    effect = next(e for e in found if e.name == "α: 1")
    def value(method, varied, category, seed):
        own = [r for r in rows if r.method == method and r.varied == varied and (r.category, r.seed) == (category, seed) and r.last]
        return 100 * own[0].metrics["image_auroc"]

    by_seed = []
    for seed in (0, 1, 2):
        by_category = []
        for category in ("brick", "terminal"):
            name = "alpha (0: contextual alone, 1: pairwise alone)"
            by_category.append(value(name, {"training.alpha": 1.0}, category, seed) - value("epochs", {}, category, seed))
        by_seed.append(sum(by_category) / 2)
    assert effect.change.mean == pytest.approx(statistics.fmean(by_seed)) and effect.change.n == 3
    assert effect.change.mean == pytest.approx(-2, abs=0.3) and effect.change.clear
    half = 4.302653 * statistics.stdev(by_seed) / math.sqrt(3)
    assert effect.change.high - effect.change.mean == pytest.approx(half, rel=1e-5)


def test_the_spread_counts_the_default_once(rows, choices):
    one = lesson.spread(rows, [choices["alpha"]], "image_auroc")
    by_hand = []
    for level in choices["alpha"].levels:
        means = lesson.seed_means(lesson.values(rows, level, "image_auroc"))
        by_hand.append(np.var(list(means.values()), ddof=1))
    assert one == pytest.approx(math.sqrt(np.mean(by_hand)))
    assert lesson.spread(rows, [choices["alpha"], choices["alpha"]], "image_auroc") == one
    with pytest.raises(ValueError, match="two seeds"):
        lesson.spread([row for row in rows if row.seed == 0], [choices["alpha"]], "image_auroc")


def test_a_seed_without_all_categories_does_not_count():
    key = ("embedded", "brick", "Lite0", 0)
    values = {key: 1.0, ("embedded", "flange", "Lite0", 0): 3.0, ("embedded", "brick", "Lite0", 1): 100.0}
    assert lesson.seed_means(values) == {0: 2.0} and lesson.seed_means({}) == {}


def test_the_league_is_sorted(found):
    groups = lesson.league(found)
    assert sum(map(len, groups)) == len(found) and {len({e.choice.title for e in group}) for group in groups} == {1}
    tops = [abs(group[0].size) for group in groups]
    assert tops == sorted(tops, reverse=True)
    assert all(abs(group[0].size) >= abs(e.size) for group in groups for e in group)
    assert {groups[0][0].name, groups[1][0].name} == {"α: 1", "width of f: 64"}


def test_the_largest_by_chance():
    middle, high = lesson.largest_by_chance(1, 3, draws=40_000)  # |difference of two means of three|
    assert middle == pytest.approx(0.6745 * math.sqrt(2 / 3), rel=0.03) and high == pytest.approx(1.96 * math.sqrt(2 / 3), rel=0.03)
    assert lesson.largest_by_chance(40)[0] > 2 * middle and lesson.largest_by_chance(40) == lesson.largest_by_chance(40)


def test_words_say_what_the_interval_says(found):
    assert "not told apart" in said.words(Interval(0.1, -1, 1.2, 3)) and "one seed" in said.words(Interval(0.1, math.nan, math.nan, 1))
    assert said.words(Interval(-2, -3, -1, 3)).endswith("less") and said.words(Interval(2, 1, 3, 3)).endswith("more")
    text = said.summary(found, 1.0)
    assert f"Of **{len(found)} changes**" in text and f"{0.05 * len(found):.1f} would" in text
    assert f"{sum(e.change.clear for e in found)} of the {len(found)}" in text


def test_a_change_is_clear_by_its_interval_not_by_its_size(found):
    """A large mean with a wide interval is not clear; a small one with a narrow interval is."""
    one = found[0]
    made = [replace(one, change=Interval(9.0, -1.0, 19.0, 3)), replace(one, change=Interval(0.2, 0.1, 0.3, 3)), replace(one, change=Interval(-3, -9, 3, 3))]
    text = said.moved(made, 2.0)
    assert "more than **9.00 points**" in text and "1 of 3 changes are clear" in text and "alone 0.2 would" in text
    assert f"{sum(e.change.clear for e in found)} of {len(found)} changes are clear" in said.moved(found, 1.0)


@pytest.mark.parametrize("name, kinds", [
    ("ablations", {**lesson.CHOICES, **lesson.CONTROLS}), ("quality", {"quality": lesson.QUALITY})])
def test_the_committed_results_hold_every_level(name, kinds):
    try:
        found = lesson.read(name)
    except FileNotFoundError:
        pytest.skip("not measured yet")
    assert lesson.measured(found, kinds) == kinds


def test_a_collection_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="rcp experiments ablations"):
        lesson.read("ablations", tmp_path)


# The paper's tables


def test_the_papers_numbers_stand_beside_ours(rows):
    lines = [line.split(" | ") for line in paper.markdown(rows, 2).split("\n") if line.startswith("| 512")]
    means = lesson.seed_means(lesson.values(rows, paper.level(paper.SHEETS[2].columns[0], "512"), "image_auroc"))
    assert lines[0][1:3] == ["99.56", "98.66"] and lines[0][3].startswith(f"{statistics.fmean(means.values()):.2f} ±")
    assert "*Trouble:*" in paper.markdown(rows, 2) and "–" in next(line for line in paper.markdown(rows, 2).split("\n") if "| 1024" in line)
    assert "99.24" in paper.markdown(rows, 1) and "s = 5, levels 1+2+3 | 98.70" in paper.markdown(rows, 3)


def test_directions(rows):
    found = {(one.column.name, one.label): one for one in paper.directions(rows, 2)}
    wide = found["ReConPatch", "64"]
    assert wide.paper == pytest.approx(99.14 - 99.49) and wide.ours.mean == pytest.approx(3, abs=0.3) and wide.agrees is False
    assert found["untrained f", "64"].paper is None and found["untrained f", "64"].agrees is None
    assert ("PatchCore, PCA", "512") not in found and ("PatchCore, PCA", "128") in found
    for n in (1, 3):
        assert [one.label for one in paper.directions(rows, n) if one.paper is not None] == list(paper.SHEETS[n].labels[1:])
    text = paper.said(list(found.values()))
    assert "Of 8 published changes" in text and "**opposite direction**" in text and text.count("* Table 2") == 8


def test_who_loses_less(quality_rows):
    lost = paper.losses(quality_rows)
    assert list(lost) == list(lesson.DEGRADED)
    for by_method in lost.values():
        assert [round(by_method[name].mean) for name in ("PatchCore", "untrained f", "ReConPatch")] == [-5, -4, -3]
    assert paper.advantage(quality_rows, "all on both", "PatchCore").mean == pytest.approx(2, abs=0.3)
    assert "-4.31" in paper.quality_markdown(quality_rows) and paper.quality_said(quality_rows).count("it loses less") >= 3


# Pictures


def test_the_toy_says_what_one_at_a_time_predicts():
    assert pictures.toy_figure().axes[1].get_title() == "interaction +5.0"
    assert "parallel" in pictures.toy_figure(90.0).axes[1].get_title()


def test_figures_show_the_rows(rows, quality_rows, choices, found):
    figure = pictures.multiples_figure(rows, choices)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [one.title for one in choices.values()]
    assert len({axes.get_ylim() for axes in shown}) == 1  # one scale
    means = shown[list(choices).index("alpha")].containers[0][0].get_ydata()
    own = [statistics.fmean(lesson.seed_means(lesson.values(rows, level, "image_auroc")).values()) for level in choices["alpha"].levels]
    assert np.allclose(means, own)
    assert pictures.choice_figure(rows, choices["alpha"]).axes[1].get_title().startswith("1: -1.9")
    league = pictures.league_figure(found).axes[0]
    assert [label.get_text() for label in league.get_yticklabels()] == [group[0].choice.title for group in lesson.league(found)]
    directions = [one for n in (1, 2, 3) for one in paper.directions(rows, n)]
    drawn = pictures.directions_figure(directions).axes
    assert len(drawn) == 4 and np.allclose(drawn[0].lines[1].get_ydata(), [0.03, 0.25])
    lines = pictures.width_figure(rows).axes[0].containers
    assert [len(line[0].get_xdata()) for line in lines] == [5, 5, 5, 3]
    assert max(lines[3][0].get_xdata()) < 2  # all of PCA's components are 152, not 512
    assert len(plots_grids.robustness(quality_rows).axes[0].containers) >= 3


def test_labels_of_levels_do_not_run_into_each_other(rows, choices):
    figure = pictures.multiples_figure(rows, choices)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()] if axes.get_visible() else []
        assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(boxes)), axes.get_title()


def test_sides_come_in_the_order_train_test_both(quality_rows):
    sides = [name.removeprefix("all on ") for name in lesson.DEGRADED if name.startswith("all")]
    text = paper.quality_said(quality_rows)
    assert sides == ["train", "test", "both"] == sorted(sides, key=lambda side: text.index(f"*all on {side}*"))
    assert [line.split(" on ")[1].split(" |")[0] for line in paper.quality_markdown(quality_rows).splitlines() if "measured: all" in line] == sides


def test_the_outline_moves_with_the_picture(category):
    figure = pictures.degraded_figure(category.test)
    assert [axes.get_title() for axes in figure.axes] == ["clean", "rotation", "translation", "light", "blur", "all"]
    shape = np.array(figure.axes[0].images[0].get_array()).shape
    assert shape[0] != shape[1] and all(axes.images[0].get_array().shape == shape for axes in figure.axes)


def test_every_control_and_touch_changes_the_picture(rows, choices):
    toy = pictures.toy_explorer()
    changes(toy, both=90.0)
    touched(toy, 0.7, 0.5)
    explorer = pictures.explorer(rows, choices)
    changes(explorer, choice="sigma", quantity="position_share", level=3)
    touched(explorer, 0.1, 0.5)
    assert explorer.controls["level"].value == 1
    for name in ("width", "normalised"):  # fewer levels than the slider has
        explorer.controls["level"].value = 5
        explorer.controls["choice"].value = name


# Checks


def test_checks():
    verdicts(lesson.check_1, 390, [300, 900, 990, 78, 130, 195, 2])
    verdicts(lambda given: lesson.check_3(given, 46), 2.3, [0.95 * 46, 0.025 * 46, 1 - 0.95**46, 0.05, 0, 5])


def test_check_of_pairing():
    def right(a, b):
        return (a - b).std(ddof=1), math.sqrt(a.var(ddof=1) + b.var(ddof=1))

    wrong = [
        lambda a, b: ((a - b).std(), math.sqrt(a.var() + b.var())),
        lambda a, b: (right(a, b)[0], a.std(ddof=1) + b.std(ddof=1)),
        lambda a, b: right(a, b)[::-1],
        lambda a, b: (abs(a - b).std(ddof=1), right(a, b)[1]),
        lambda a, b: tuple(x / math.sqrt(len(a)) for x in right(a, b)),
    ]  # fmt: skip
    verdicts(lesson.check_2, right, wrong)


def test_a_live_grid_knows_its_data(category):
    grid, roots = lesson.live_grid(category, [0.0, 1.0], [0, 1], {"epochs": 1})
    assert roots == {category.dataset: category.root.parent} and grid.data[0].categories == (category.name,)
    assert len(grid.cells(lambda data: [])) == 4
