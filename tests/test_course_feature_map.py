"""Notebook 09: its numbers have slow twins, its figures show what they claim, its checks tell why an answer is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rcp
from rcp import hits, metrics
from rcp.course import feature_checks as check
from rcp.course import feature_map as lesson
from rcp.course import feature_scores as judged
from rcp.positions import positions


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memberships(d: torch.Tensor) -> torch.Tensor:
    return torch.exp(-(d[1:] - d[1]))


GROUPS = torch.arange(4).repeat_interleave(5)
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def found(tiny, category):
    """Two detectors' results on 8x12 patches, with colour limits and a threshold."""
    bank = rcp.BankSettings(coreset=0.1, folds=2)
    views = {}
    for name, seed in (("PatchCore", 0), ("ReConPatch", 1)):
        detector = rcp.PatchCore(tiny, bank=bank, seed=seed).fit(category.train)
        result = rcp.evaluate(detector, category.test, false_alarm_rate=0.2)
        views[name] = (result, detector.colour_limits(), float(result.scores.maps.quantile(0.95)))
    return category.test, views, hits.masks_of(category.test, views["PatchCore"][0])


@pytest.fixture(scope="module")
def crowd():
    coords = random_rows(30, 2).numpy()
    drawn = np.linspace(0, 3, 20)
    return judged.Crowd(coords, drawn, np.arange(20.0)[::-1] + 5, np.arange(20) % 3 == 0)


def touch(explorer, axes: int, x: float, y: float, phase: str = "down") -> None:
    """Touch a panel of an explorer's picture at a place in data coordinates."""
    figure = explorer._figure
    width, height = figure.canvas.get_width_height()
    at = figure.axes[axes].transData.transform((x, y))
    count = explorer.picture.touch.get("count", 0) + 1
    explorer.picture.touch = {"phase": phase, "x": at[0] / width, "y": 1 - at[1] / height, "count": count}


def scatters(axes) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in axes.collections if len(c.get_offsets())]


# Numbers


def test_kept_neighbours_is_a_loop_over_rows_and_1_where_nothing_was_lost():
    rows, drawn = random_rows(20, 6), random_rows(20, 2, seed=1)

    def near(x, i):
        return set(sorted((j for j in range(20) if j != i), key=lambda j: float((x[i] - x[j]).norm()))[:4])

    expected = np.mean([len(near(rows, i) & near(drawn, i)) / 4 for i in range(20)])
    assert lesson.kept_neighbours(rows, drawn, 4) == pytest.approx(expected)
    assert lesson.kept_neighbours(rows, rows * 3 + 1, 4) == 1


def test_parts_are_counted_by_hand():
    line = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.0], [30.0], [31.0]])
    assert [lesson.parts(line, k) for k in (1, 2, 3)] == [7, 3, 1]


def test_the_order_around_a_ring_is_that_of_the_angle():
    angles = torch.randperm(12, generator=torch.Generator().manual_seed(0)).numpy() / 12 * 2 * np.pi - np.pi + 0.1
    ring = np.stack([5 + np.cos(angles), 3 + np.sin(angles)], 1)
    assert np.array_equal(lesson.order_around(ring), np.argsort(angles))


def test_masks_are_those_that_the_evaluation_judged(found):
    _, views, masks = found
    result = views["PatchCore"][0]
    assert masks.shape == result.scores.maps.shape and masks.shape[1] != masks.shape[2]
    assert metrics.pixel_metrics(masks, result.scores.maps.numpy())["pixel_auroc"] == result.metrics["pixel_auroc"]
    assert np.array_equal(masks.any((1, 2)), result.labels == 1)


def test_peaks_and_hits_on_maps_that_are_wider_than_high():
    maps, masks = np.zeros((3, 4, 7)), np.zeros((3, 4, 7), bool)
    maps[0, 3, 6], maps[1, 1, 2], maps[2, 0, 5] = 1, 1, 1
    masks[0, 3, 5:], masks[1, 2, 2] = True, True
    assert hits.peaks(maps).tolist() == [[3, 6], [1, 2], [0, 5]]
    assert hits.peaks_inside(maps, masks) == (1, 2)


# Figures


def test_thick_lines_are_strong_neighbours():
    points = random_rows(30, 2)
    figure = lesson.membership_figure(points, memberships, k=5, chosen=(3, 7))
    left, right = figure.axes
    lines = [c for c in left.collections if hasattr(c, "get_segments") and len(c.get_segments())]
    assert [len(c.get_segments()) for c in lines] == [4, 4]
    d, values = right.lines[0].get_data()
    nearest = (points - points[3]).norm(dim=1).sort().values[1:5]
    assert np.allclose(d, nearest, atol=1e-5) and np.allclose(values, memberships(torch.cat([torch.zeros(1), nearest])))
    widths = lines[0].get_linewidths()
    assert widths[0] == max(widths) and sorted(widths, reverse=True) == list(widths)


def test_every_layout_is_drawn_group_by_group_without_ticks():
    layouts = {f"seed {s}": random_rows(20, 2, seed=s).numpy() for s in range(3)}
    figure = lesson.seeds_figure(layouts, GROUPS, NAMES, "title")
    for axes, (name, coords) in zip(figure.axes, layouts.items(), strict=True):
        assert axes.get_title() == name and not len(axes.get_xticks()) and not len(axes.get_yticks())
        assert np.allclose(np.concatenate(scatters(axes)), coords)
    shapes = {c.get_paths()[0].vertices.tobytes() for c in figure.axes[0].collections}
    assert len(shapes) == 4  # never colour alone
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(NAMES)


def test_the_clouds_are_drawn_to_scale_above_their_layouts():
    rows = random_rows(20, 6)
    figure = lesson.clouds_figure(rows, GROUPS, {"UMAP": rows[:, 2:4].numpy()}, NAMES)
    assert np.allclose(np.concatenate(scatters(figure.axes[0])), rows[:, :2]) and figure.axes[0].get_aspect() == 1


def test_markers_lie_on_their_patches_and_crops_around_them(category, tiny):
    figure = judged.positions_figure(category.train, tiny.geometry, (8, 12), images=(0, 1, 2))
    whole, *crops = figure.axes
    for (row, column), line, axes in zip(positions(8, 12), whole.lines, crops[::3], strict=True):
        x, y = (float(v[0]) for v in line.get_data())
        assert (int((y + 0.5) // 8), int((x + 0.5) // 8)) == (row, column)  # 64x96 pixels: 8 pixels a patch both ways
        assert np.mean(axes.get_xlim()) == pytest.approx(x) and np.mean(axes.get_ylim()) == pytest.approx(y)
        assert np.ptp(axes.get_xlim()) == 24 and axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_strip_shows_the_images_asked_for(category, tiny):
    figure = lesson.strip_figure(category.train, tiny.geometry, (8, 12), (2, 9), (5, 0, 3))
    assert [axes.get_title() for axes in figure.axes] == ["image 5", "image 0", "image 3"]
    assert np.mean(figure.axes[0].get_xlim()) == 9.5 * 8 - 0.5 and np.mean(figure.axes[0].get_ylim()) == 2.5 * 8 - 0.5


def test_scores_are_the_colours_and_the_height(crowd):
    figure = judged.score_figure(crowd, "words")
    layout, diagram = figure.axes[:2]
    memory, good, _ = scatters(layout)
    assert np.allclose(memory, crowd.coords[:10]) and np.allclose(good, crowd.here[~crowd.defective])
    assert np.allclose(layout.collections[2].get_array(), crowd.scores[crowd.defective])
    assert np.allclose(scatters(diagram)[1], np.stack([crowd.drawn, crowd.scores], 1)[crowd.defective])


def test_the_auroc_of_a_dprime_is_that_of_two_normal_distributions():
    scores = torch.cat([random_rows(4000), random_rows(4000, seed=1) + 1.5])
    text = judged.dprime_figure(1.5).axes[0].get_title()
    assert float(text.split("AUROC ")[1].split()[0]) == pytest.approx(
        metrics.auroc(np.repeat([0, 1], 4000), scores), abs=0.01
    )


# Explorers


def changed_by(explorer, name: str, value) -> bool:
    before = explorer.picture.png
    explorer.controls[name].value = value
    return explorer.picture.png != before


def test_k_and_a_click_change_the_memberships():
    points = random_rows(30, 2)
    explorer = lesson.membership_explorer(points, memberships, (0, 20))
    assert changed_by(explorer, "k", 9)
    touch(explorer, 0, *points[5].tolist())
    assert (explorer.state["first"], explorer.state["second"]) == (5, 0)
    touch(explorer, 1, 0.5, 0.5)
    assert explorer.state["first"] == 5


def test_the_slider_of_n_neighbors_shows_the_layouts_of_that_number():
    layouts = {k: {f"seed {s}": random_rows(20, 2, seed=10 * k + s).numpy() for s in range(3)} for k in (3, 15)}
    explorer = lesson.neighbours_explorer(layouts, GROUPS, 15, "rows", NAMES)
    assert np.allclose(np.concatenate(scatters(explorer._figure.axes[1])), layouts[15]["seed 1"])
    assert changed_by(explorer, "k", 3)
    assert np.allclose(np.concatenate(scatters(explorer._figure.axes[1])), layouts[3]["seed 1"])


def test_epochs_move_by_slider_and_click_in_one_window():
    layouts = [random_rows(20, 2, seed=i).numpy() * (1 + i) for i in range(4)]
    curves = {"feature space": [3, 2, 2, 1], "in the picture": [9, 8, 9, 7]}
    button, explorer = lesson.epochs_explorer(layouts[0], layouts, curves, 3.1, GROUPS, NAMES).children
    window = explorer._figure.axes[1].get_xlim()
    assert changed_by(explorer, "epoch", 2) and button.value == 2
    touch(explorer, 2, 2.7, 1)
    assert explorer.controls["epoch"].value == 3
    assert explorer._figure.axes[1].get_xlim() == window and "epoch 3 of 3" in explorer._figure.axes[1].get_title()
    touch(explorer, 0, *layouts[0][0])
    assert explorer.controls["epoch"].value == 3
    shown = np.concatenate([np.concatenate(scatters(axes)) for axes in explorer._figure.axes[:2]])
    (left, right), (low, high) = window, explorer._figure.axes[1].get_ylim()
    assert (left < shown[:, 0]).all() and (shown[:, 0] < right).all() and (low < shown[:, 1]).all()
    assert (shown[:, 1] < high).all()


def test_a_click_on_picture_or_diagram_chooses_that_patch(crowd, found):
    test, views, _ = found
    result = views["PatchCore"][0]
    picked = torch.randperm(len(result.labels) * 96, generator=torch.Generator().manual_seed(0))[:20]
    explorer = judged.score_explorer(crowd, test, result, picked)
    assert changed_by(explorer, "rank", 3)
    order = np.argsort(crowd.scores)
    for panel, places in ((0, crowd.here), (1, crowd.compared)):
        for i in ((4, 11) if panel else (7,)):
            touch(explorer, panel, *places[i])
            assert order[explorer.controls["rank"].value] == i
            image, cell = divmod(int(picked[i]), 96)
            axes = explorer._figure.axes[2]
            assert axes.get_title().startswith(result.defects[image])
            x, y = (np.mean(v[:4]) for v in axes.lines[0].get_data())
            assert (y + 0.5) // 8 == cell // 12 and (x + 0.5) // 8 == cell % 12


def test_contours_follow_image_and_threshold(found):
    test, views, masks = found
    explorer = judged.contour_explorer(test, views, masks)
    assert changed_by(explorer, "factor", 1.25) and changed_by(explorer, "rank", 0)
    first = views["PatchCore"][0]
    assert explorer._figure.axes[0].get_title() == first.defects[int(first.scores.image_scores.argmin())]
    share = float(
        (first.scores.maps[int(first.scores.image_scores.argmin())] >= 1.25 * views["PatchCore"][2]).float().mean()
    )
    assert f"{100 * share:.1f} % flagged" in explorer._figure.axes[1].get_title()


def test_dprime_moves():
    assert changed_by(judged.dprime_explorer(1.5), "value", 4.32)


# Checks


def refused(outcomes) -> None:
    assert all(outcome.right is False for outcome in outcomes)
    assert len({outcome.text for outcome in outcomes}) == len(outcomes)
    assert not any("usual slip" in outcome.text or "differs from what" in outcome.text for outcome in outcomes)


def test_memberships_are_checked():
    def rho(d):
        return d[d > 0].min()

    right = check.check_1(lambda d, s: torch.exp(-(d[1:] - rho(d)).clamp(min=0) / s))
    assert right.right is True and check.check_1(lambda d, s: ...).right is None and check.check_1(...).right is None
    refused([
        check.check_1(lambda d, s: torch.exp(-d[1:] / s)),
        check.check_1(lambda d, s: torch.exp(-(d[1:] - rho(d)) / s)),
        check.check_1(lambda d, s: torch.exp(-(d[1:] - d[1]) / s)),
        check.check_1(lambda d, s: torch.exp(-(((d[1:] - rho(d)).clamp(min=0) / s) ** 2))),
        check.check_1(lambda d, s: torch.exp(-(d - rho(d)).clamp(min=0) / s)),
    ])  # fmt: skip


def test_the_choice_explains_each_answer():
    outcomes = {name: check.check_2(name) for name in "abcd"}
    assert [name for name, outcome in outcomes.items() if outcome.right] == ["c"]
    assert len({outcome.text for outcome in outcomes.values()}) == 4 and check.check_2(...).right is None


def test_agreement_is_checked():
    def share(nearest, groups):
        return (groups[nearest] == groups[:, None]).float().mean()

    def right(d, groups, k):
        return share((d + torch.eye(len(d)) * 1e9).topk(k, largest=False).indices, groups)

    assert check.check_3(right).right is True and check.check_3(lambda d, g, k: ...).right is None
    refused([
        check.check_3(lambda d, g, k: share(d.topk(k, largest=False).indices, g)),
        check.check_3(lambda d, g, k: share(d.topk(k).indices, g)),
        check.check_3(lambda d, g, k: 1 - right(d, g, k)),
        check.check_3(lambda d, g, k: k * right(d, g, k)),
    ])  # fmt: skip


def test_dprime_is_checked():
    n, a = check.DPRIME_NORMAL, check.DPRIME_ABNORMAL
    assert check.check_4(4).right is True and check.check_4(...).right is None
    refused([check.check_4(value) for value in (
        8 / math.sqrt((a.var(ddof=1) + n.var(ddof=1)) / 2), 2.0, 8 / math.sqrt(8), 8 / ((a.std() + n.std()) / 2),
        8 / np.concatenate([n, a]).std(), 8.0, -4.0,
    )])  # fmt: skip
