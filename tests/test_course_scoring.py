"""Notebook 05: its pictures show what they claim, its widgets answer, its checks tell one mistake from another."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
import torch

import rcp
from rcp import metrics, scoring
from rcp.course import metrics as judging
from rcp.course import scoring as lesson

CURVE = {0: {"pixel_auroc": 0.8, "aupro": 0.7}, 4: {"pixel_auroc": 0.9, "aupro": 0.8}, 12: {"pixel_auroc": 0.85, "aupro": 0.6}}
LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 1])
SCORES = np.array([1.0, 2.0, 2.0, 3.0, 3.5, 5.0, 0.5, 4.0])


@pytest.fixture(scope="module")
def scene(tiny, category):
    extractor = rcp.PatchExtractor(tiny)
    train, test = extractor.extract(category.train), extractor.extract(category.test)
    detector = rcp.PatchCore(tiny, bank=rcp.BankSettings(coreset=0.1, folds=2)).fit(train)
    result = rcp.evaluate(detector, category.test, features=test, false_alarm_rate=0.2)
    n, h, w, _ = test.values.shape
    distance, row = detector.memory.nearest(test.rows)
    home = torch.stack(torch.unravel_index(detector.coreset.indices[row[:, 0]], train.values.shape[:3]), -1)
    return lesson.Scene(category, result, detector.colour_limits(), distance.view(n, h, w), home.view(n, h, w, 3))


def touch(explorer, x, y, phase="down", count=[0]):  # noqa: B006  (a running count, as the browser sends one)
    count[0] += 1
    explorer.picture.touch = {"phase": phase, "x": x, "y": y, "count": count[0]}


def spot(explorer, panel, x, y):
    """Where a point of a panel lies in the picture, in fractions from the upper left."""
    figure = explorer._figure
    inside = figure.axes[panel].transData.transform((x, y))
    width, height = figure.canvas.get_width_height()
    return inside[0] / width, 1 - inside[1] / height


def moves_the_picture(explorer, name, value):
    before = explorer.picture.png
    assert explorer.controls[name].value != value
    explorer.controls[name].value = value
    return explorer.picture.png[:4] == b"\x89PNG" and explorer.picture.png != before


# The nearest normal patch


def test_a_column_shows_the_worst_patch_and_the_home_of_its_nearest_normal_one(scene):
    position = int(scene.ranked[-1])
    figure = lesson.nearest_figure(scene, [position, 0])
    row, column = scene.worst(position)
    assert scene.distance.shape[1:] == (8, 12)
    assert float(scene.distance[position, row, column]) == float(scene.distance[position].max())
    crop, answer, source = figure.axes[2], figure.axes[4], figure.axes[6]
    for axes, (r, c) in ((crop, (row, column)), (answer, scene.home[position, row, column, 1:].tolist())):
        middle = np.mean(axes.get_xlim()), np.mean(axes.get_ylim())
        assert middle == pytest.approx(((c + 0.5) * 8 - 0.5, (r + 0.5) * 8 - 0.5))  # a patch is 8 pixels
    assert answer.get_title() == f"distance {float(scene.distance[position].max()):.1f}"
    assert source.get_title() == f"training image {int(scene.home[position, row, column, 0])}"


def test_the_answer_shows_pixels_of_the_training_image_it_names(scene):
    position = int(scene.ranked[-1])
    train = int(scene.home[position][scene.worst(position)][0])
    shown = lesson.nearest_figure(scene, [position]).axes[2].get_images()[0].get_array()
    path = scene.category.train[train].path
    assert np.array_equal(shown, scene.result.scores.geometry.apply(rcp.images.read_image(path)))


def test_four_defective_images_and_a_good_one_are_chosen(scene):
    chosen = lesson.four_and_one(scene)
    assert [int(scene.result.labels[p]) for p in chosen] == [1, 1, 1, 0]  # there are but three defective ones
    assert len(set(chosen)) == 4


def test_a_click_asks_for_the_patch_under_it_on_image_and_map(scene):
    explorer = lesson.nearest_explorer(scene)
    for panel, (row, column) in ((0, (2, 9)), (1, (7, 1)), (0, (0, 0)), (1, (7, 11))):
        before = explorer.picture.png
        touch(explorer, *spot(explorer, panel, (column + 0.5) * 8 - 0.5, (row + 0.5) * 8 - 0.5))
        assert explorer.state["at"] == (explorer.controls["rank"].value, row, column)
        assert explorer.picture.png != before


def test_a_click_elsewhere_and_a_lifted_finger_change_nothing(scene):
    explorer = lesson.nearest_explorer(scene)
    before = explorer.picture.png
    touch(explorer, *spot(explorer, 3, *np.mean([explorer._figure.axes[3].get_xlim(), explorer._figure.axes[3].get_ylim()], 1)))
    touch(explorer, *spot(explorer, 0, 20, 20), phase="up")
    touch(explorer, 0.999, 0.001)
    assert explorer.picture.png == before and explorer.state["at"] is None


def test_the_slider_goes_to_another_image_and_its_worst_patch(scene):
    explorer = lesson.nearest_explorer(scene)
    touch(explorer, *spot(explorer, 0, 12, 12))
    assert moves_the_picture(explorer, "rank", 0)
    fresh = lesson.nearest_explorer(scene)
    fresh.controls["rank"].value = 0
    assert explorer.picture.png == fresh.picture.png


# Eq. 10, maps, colours


def test_the_histogram_of_eq_10_counts_every_patch_even_where_nothing_was_taken():
    factor = torch.tensor([1.0, 1.0, 1 - 1e-7, 0.99, 0.9])
    scores = torch.tensor([1.0, 2.0, 3.0])
    figure = lesson.reweighting_figure(factor, 9, scores, 0.99 * scores, np.array([0, 1, 1]))
    left, right = figure.axes
    assert sum(bar.get_height() for bar in left.patches) == 5 and left.patches[0].get_height() == 3
    assert left.lines[0].get_xdata()[0] == pytest.approx(100 / 9)
    assert "10 %" in left.get_title() and "60 %" in left.texts[0].get_text()
    assert np.allclose(right.lines[1].get_ydata(), [1.98, 2.97])


def test_smoothing_shows_the_maps_of_the_library_on_one_scale(scene):
    figure = lesson.smoothing_figure(scene, 0, CURVE, sigmas=(0, 4, 12))
    for axes, sigma in zip(figure.axes[2:5], (0.0, 4.0, 12.0), strict=True):
        shown = axes.get_images()[0]
        assert np.allclose(shown.get_array(), scoring.pixel_maps(scene.distance[:1], (64, 96), sigma)[0])
        assert shown.get_clim() == pytest.approx(scene.limits)
    assert list(figure.axes[5].lines[0].get_ydata()) == [0.8, 0.9, 0.85]


def test_sigma_and_rank_change_the_picture(scene):
    explorer = lesson.smoothing_explorer(scene, CURVE)
    assert moves_the_picture(explorer, "sigma", 0) and moves_the_picture(explorer, "sigma", 12) and moves_the_picture(explorer, "rank", 0)
    assert explorer._figure.axes[2].lines[-1].get_xdata()[0] == 12


def test_the_illusion_has_scales_of_their_own_above_one_scale(scene):
    figure = lesson.illusion_figure(scene)
    columns = len(lesson.three_and_two(scene))
    middle, bottom = ([axes.get_images()[0].get_clim() for axes in figure.axes[k * columns : (k + 1) * columns]] for k in (1, 2))
    assert set(bottom) == {scene.limits} and len(set(middle)) > 1
    assert [int(scene.result.labels[p]) for p in lesson.three_and_two(scene)] == [0, 0, 0, 1, 1]


def test_squared_maps_are_drawn_against_their_own_maximum():
    rooted = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 1.0]])
    figure = judging.squared_figure(rooted, rooted.square(), "toy")
    lines = [line.get_ydata() for line in figure.axes[2].lines]
    assert np.allclose(lines[0], [0.25, 0.5, 1]) and np.allclose(lines[1], [0.0625, 0.25, 1])
    shown = [axes.get_images()[0] for axes in figure.axes[:2]]
    assert np.allclose(shown[1].get_array(), rooted.square() / 16) and {image.get_clim() for image in shown} == {(0, 1)}
    assert figure.axes[3].get_ylabel() == "share of the map's maximum"


def test_every_rule_has_a_mark_a_seed_and_its_mean():
    axes = judging.rules_figure({"max": [0.9, 1.0], "mean": [0.5, 0.7]}).axes[0]
    assert [float(np.squeeze(line.get_xdata())) for line in axes.lines] == pytest.approx([0.95, 0.9, 1.0, 0.6, 0.5, 0.7])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["max", "mean"]


def test_the_mean_of_the_top_is_the_loop_over_sorted_patches():
    grids = torch.rand(3, 15, 30, generator=torch.Generator().manual_seed(1))
    slow = [sum(sorted(grid.flatten().tolist())[-4:]) / 4 for grid in grids]  # 1 % of 450, rounded: 4
    assert lesson.mean_of_top(grids).tolist() == pytest.approx(slow)


# ROC


def test_the_drawn_curve_is_the_one_that_a_loop_over_all_limits_finds():
    x, y = judging.roc_curve(LABELS, SCORES)
    limits = sorted(set(SCORES), reverse=True)
    slow = [((SCORES[LABELS == 0] >= t).mean(), (SCORES[LABELS == 1] >= t).mean()) for t in limits]
    assert np.allclose(np.stack([x, y], 1), [(0, 0), *slow])
    assert np.trapezoid(y, x) == pytest.approx(metrics.auroc(LABELS, SCORES))


def test_the_point_and_the_title_follow_the_limit():
    figure = judging.roc_figure(LABELS, SCORES, 3.0)
    point = figure.axes[1].lines[-1].get_xydata()[0]
    assert point.tolist() == [0.25, 0.75] and "3 of 4 defects, 1 false alarms" in figure.axes[0].get_title()


def test_the_limit_moves_by_slider_and_by_click():
    explorer = judging.roc_explorer(LABELS, SCORES, 3.0)
    assert moves_the_picture(explorer, "limit", 4.5)
    before = explorer.picture.png
    touch(explorer, *spot(explorer, 0, 2.5, 0.5))
    assert explorer.controls["limit"].value == pytest.approx(2.5) and explorer.picture.png != before
    touch(explorer, *spot(explorer, 1, 0.5, 0.5))
    assert explorer.controls["limit"].value == pytest.approx(2.5)


def test_the_staircase_is_drawn_as_it_was_walked():
    steps = [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    axes = judging.staircase_figure([1, 0, 1, 0], [4, 3, 2, 1], steps).axes[1]
    assert [tuple(point) for point in axes.lines[0].get_xydata()] == steps
    assert [line.get_marker() for line in axes.lines[1:]] == ["^", "o", "^", "o"] and "0.75" in axes.get_title()


# Regions and masks


def regions():
    mask = np.zeros((6, 9), bool)
    mask[1:3, 1:4] = mask[5, 8] = True
    heat = np.arange(54.0).reshape(6, 9)
    points = [((heat >= t)[~mask].mean(), np.mean([(heat >= t)[1:3, 1:4].mean(), heat[5, 8] >= t])) for t in np.arange(54.0)[::-1]]
    return mask, heat, np.array([(0, 0), *points])


def test_regions_are_judged_one_by_one():
    mask, heat, curve = regions()
    left, right = judging.regions_figure(mask, heat, curve, 19.5).axes
    assert left.get_title() == "found: region 1 33 %, region 2 100 %"
    assert len(left.lines[0].get_xdata()) == int((heat >= 19.5).sum())
    x, y = right.lines[-1].get_xydata()[0]
    assert x == pytest.approx((heat >= 19.5)[~mask].mean()) and y == pytest.approx(2 / 3)
    assert f"{metrics.aupro([mask], [heat]):.3f}" in right.get_title()


def test_the_limit_over_regions_changes_the_picture():
    explorer = judging.regions_explorer(*regions())
    assert moves_the_picture(explorer, "limit", 10.0) and moves_the_picture(explorer, "limit", 50.0)


def test_coarse_curves_carry_their_areas():
    curve = np.array([[0, 0], [0.1, 0.8], [1, 1]])
    axes = judging.coarse_figure({"exact": curve, "200 limits": curve}, {"exact": 0.9, "200 limits": 0.81}).axes[0]
    assert [line.get_label() for line in axes.lines] == ["exact: 0.9000", "200 limits: 0.8100"] and axes.get_xlim()[1] == 0.3


def test_masks_of_any_size_are_shown_at_the_same_place():
    true = np.zeros((40, 80), bool)
    true[8:12, 40:48] = True
    figure = judging.masks_figure({"true mask": [true], "nearest": [true[::4, ::4]]}, [2.0])
    left, right = figure.axes
    assert left.get_xlabel() == "32 pixels" and right.get_xlabel() == "2 pixels, due: 2.0"
    assert np.allclose((np.array(left.get_xlim()) + 0.5) / 80, (np.array(right.get_xlim()) + 0.5) / 20)
    assert np.allclose((np.array(left.get_ylim()) + 0.5) / 40, (np.array(right.get_ylim()) + 0.5) / 10)
    assert np.ptp(left.get_xlim()) / 80 == pytest.approx(np.ptp(left.get_ylim()) / 40)
    assert left.get_xlim()[0] < 40 and left.get_xlim()[1] > 47 and left.get_ylim()[1] < 8 and left.get_ylim()[0] > 11


# The limit


def test_simulated_rates_are_those_of_the_librarys_limits():
    sets = np.random.default_rng(0).standard_exponential((5, 30), dtype=np.float32)
    slow = [np.exp(-scoring.threshold(torch.from_numpy(own), 0.1).value) for own in sets]
    assert judging.simulated_rates(30, 0.1, draws=5).tolist() == pytest.approx(slow)


@pytest.mark.parametrize(("n", "above"), [(20, 1), (64, 3), (500, 25)])
def test_simulated_rates_follow_beta(n, above):
    rates = judging.simulated_rates(n)
    low, high = scoring.threshold(torch.arange(1.0, n + 1), 0.05).interval
    assert rates.mean() == pytest.approx(above / (n + 1), rel=0.06)
    assert ((rates < low) | (rates > high)).mean() == pytest.approx(0.05, abs=0.015)


def test_the_slider_over_held_out_images_changes_the_picture():
    explorer = judging.rates_explorer()
    assert moves_the_picture(explorer, "n", 20) and moves_the_picture(explorer, "n", 1000)
    assert "n = 1000" in explorer._figure.axes[0].get_title()


def test_limit_and_oracle_are_both_drawn_and_named():
    limit = scoring.threshold(torch.arange(1.0, 31), 0.1)
    figure = judging.limits_figure(LABELS, SCORES, np.arange(1.0, 31), limit, 3.5, "L2 distance")
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert "limit for 10 % false alarms" in names and "oracle: best F1 on the test labels" in names
    assert [line.get_xdata()[0] for line in figure.axes[1].lines] == [limit.value, 3.5]


def test_frames_differ_by_line_and_not_by_colour_alone():
    (a, line_a), (b, line_b) = lesson.ASKED, lesson.ANSWER
    assert matplotlib.colors.to_rgb(a) != matplotlib.colors.to_rgb(b) and line_a != line_b


# Checks


def told(check, right, mistakes, stray):
    """The right answer is right, every mistake has its own words, and not those for an answer that nobody expects."""
    assert check(...).right is None and check(right).right is True
    outcomes = [check(mistake) for mistake in mistakes]
    assert all(outcome.right is False for outcome in outcomes)
    assert len({outcome.text for outcome in outcomes}) == len(mistakes)
    assert check(stray).right is False and check(stray).text not in {outcome.text for outcome in outcomes}


def test_check_of_the_top_share():
    def k(g):
        return max(1, round(0.01 * g.shape[1] * g.shape[2]))

    mistakes = [
        lambda g: g.amax((1, 2)),
        lambda g: g.mean((1, 2)),
        lambda g: torch.quantile(g.flatten(1), 0.99, dim=1),
        lambda g: torch.full((len(g),), g.flatten().topk(k(g)).values.mean()),
        lambda g: g.flatten(1).sort(1).values[:, : k(g)].mean(1),
        lambda g: g.flatten(1).sort(1).values[:, -k(g)],
    ]
    told(lesson.check_1, lambda g: g.flatten(1).sort(1).values[:, -k(g) :].mean(1), mistakes, lambda g: g.flatten(1).median(1).values)
    assert lesson.check_1(lambda g: ...).right is None


def test_check_of_the_auroc_with_a_tie():
    told(judging.check_2, 5.5 / 9, [5 / 9, 6 / 9, 3.5 / 9, 5.5, 5.5 / 15], 0.9)


def test_check_of_the_vanishing_defect():
    told(judging.check_3, 7 / 16, [1 / 4, 1 / 16, 9 / 16, 0, 7], 0.9)


def test_check_of_the_rank():
    told(judging.check_4, 206, [205, 204, 205.8, 204.82, 4, 209], 17)
