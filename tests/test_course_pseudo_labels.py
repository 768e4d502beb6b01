"""Notebook 02's figures, playground and checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcp.course import pseudo_labels as lesson
from rcp.similarity import contextual_similarity, pairwise_similarity, pseudo_labels

GRID = (3, 5)  # H ≠ W


def bars(figure) -> list[float]:
    return [round(bar.get_height(), 6) for bar in figure.axes[2].patches]


def test_both_pairs_are_one_apart_and_only_one_shares_its_neighbourhood():
    points = lesson.TWELVE
    inside, across = lesson.PAIRS.values()
    assert len(points) == 12
    assert float((points[inside[0]] - points[inside[1]]).norm()) == pytest.approx(1)
    assert float((points[across[0]] - points[across[1]]).norm()) == pytest.approx(1)
    contextual = contextual_similarity(points, 5)
    assert float(contextual[inside]) == 1 and float(contextual[across]) == pytest.approx(0.2)


@pytest.mark.parametrize(("k", "sigma", "alpha"), [(5, 1.0, 0.5), (3, 0.3, 0.8), (10, 2.0, 0.0)])
def test_the_bars_are_the_library_s_numbers(k, sigma, alpha):
    drawn = bars(lesson.context_figure(k=k, sigma=sigma, alpha=alpha))
    tables = [
        pairwise_similarity(lesson.TWELVE, sigma),
        contextual_similarity(lesson.TWELVE, k),
        pseudo_labels(lesson.TWELVE, alpha, sigma, k, normalize=False),
    ]
    assert drawn == pytest.approx([float(table[pair]) for pair in lesson.PAIRS.values() for table in tables], abs=1e-5)


def test_the_matrices_share_one_scale_from_0_to_1():
    figure = lesson.matrices_figure()
    assert [axes.images[0].get_clim() for axes in figure.axes[:3]] == [(0, 1)] * 3


def test_every_slider_and_a_drag_change_the_playground():
    shown = lesson.context_explorer()
    for name, value in (("k", 7), ("sigma", 0.4), ("alpha", 0.9)):
        before = shown.picture.png
        shown.controls[name].value = value
        assert shown.picture.png != before
    figure, before = shown._figure, shown.picture.png
    width, height = figure.canvas.get_width_height()

    def fraction(x, y):
        at = figure.axes[1].transData.transform((x, y))
        return {"x": at[0] / width, "y": 1 - at[1] / height}

    shown.picture.touch = {"phase": "down", **fraction(1.0, 0.0), "count": 1}
    assert shown.state["held"] == 4
    shown.picture.touch = {"phase": "move", **fraction(0.3, 1.0), "count": 2}
    shown.picture.touch = {"phase": "up", **fraction(0.2, 1.1), "count": 3}
    assert shown.state["held"] is None and shown.picture.png != before
    assert shown.state["places"][4].tolist() == pytest.approx([0.2, 1.1], abs=0.02)
    assert torch.equal(lesson.TWELVE[4], torch.tensor([1.0, 0.0]))  # the notebook's points stay


def test_a_touch_beside_all_points_moves_none():
    shown = lesson.context_explorer()
    figure = shown._figure
    width, height = figure.canvas.get_width_height()
    x, y = figure.axes[0].transData.transform((3.3, 1.5))
    for count, phase in enumerate(("down", "move", "up")):
        shown.picture.touch = {"phase": phase, "x": x / width, "y": 1 - y / height, "count": count}
    assert torch.equal(shown.state["places"], lesson.TWELVE)


def test_sigma_collapses_long_rows_and_spares_unit_ones():
    z = 40 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    titles = [axes.get_title() for axes in lesson.sigma_figure(z).axes]
    assert "0.000" in titles[0] and "0.000" not in titles[1]
    shown = lesson.sigma_explorer(z)
    before = shown.picture.png
    shown.controls["power"].value = 3.0
    assert shown.picture.png != before


@pytest.fixture
def same():
    generator = torch.Generator().manual_seed(1)
    pictures = [np.full((60, 100, 3), 40 * i, np.uint8) for i in range(2)]
    return lesson.SameAs(pictures, torch.randn(2 * GRID[0] * GRID[1], 6, generator=generator), GRID)


def test_every_pixel_belongs_to_the_patch_around_it(same):
    for patch in range(len(same.z)):
        image, row, column = same._where(patch)
        assert (image * GRID[0] + row) * GRID[1] + column == patch
        y, x = same._centre(patch)
        assert same.patch_at(image, y, x) == patch
        assert same.patch_at(image, y + 9.4, x - 9.4) == patch and same.patch_at(image, y - 9.4, x + 9.4) == patch


def test_its_labels_are_the_library_s(same):
    for k, alpha in ((3, 0.0), (5, 0.5)):
        expected = pseudo_labels(same.z, alpha, 1.0, k)
        assert torch.allclose(same.labels(7, k, alpha), expected[7], atol=1e-6)


def test_a_click_chooses_the_patch_under_it(same):
    shown = same.explorer(0)
    figure, before = shown._figure, shown.picture.png
    width, height = figure.canvas.get_width_height()
    y, x = same._centre(22)
    at = figure.axes[1].transData.transform((x, y))
    shown.picture.touch = {"phase": "down", "x": at[0] / width, "y": 1 - at[1] / height, "count": 1}
    assert shown.state["patch"] == 22 and shown.picture.png != before
    for name, value in (("k", 9), ("alpha", 0.7)):
        before = shown.picture.png
        shown.controls[name].value = value
        assert shown.picture.png != before


def test_rows_that_do_not_fit_the_images_are_refused():
    with pytest.raises(ValueError, match="2 images with 3 × 5 patches need as many rows"):
        lesson.SameAs([np.zeros((6, 10, 3), np.uint8)] * 2, torch.zeros(15, 4), GRID)


def test_exercise_1_knows_its_mistakes():
    assert lesson.check_1(0.6).right and lesson.check_1(...).right is None
    texts = {lesson.check_1(wrong).text for wrong in (3, 3 / 7, 0.0, 0.4, 0.5, 0.9)}
    assert len(texts) == 6 and not any("✓" in text for text in texts)


def test_exercise_2_knows_its_mistakes():
    def table(near, rule):
        return torch.tensor([[rule(i in near[j], j in near[i], i == j) for j in range(len(near))] for i in range(len(near))])

    assert lesson.check_2(lambda near: table(near, lambda a, b, own: a and b)).right
    assert lesson.check_2(lambda near: ...).right is None
    wrong = {
        "Eq. 3 also asks": lambda a, b, own: b,
        "one* of the two": lambda a, b, own: a or b,
        "diagonal is True": lambda a, b, own: a and b and not own,
    }
    for why, rule in wrong.items():
        outcome = lesson.check_2(lambda near, rule=rule: table(near, rule))
        assert outcome.right is False and why in outcome.text


def test_exercise_3_knows_its_mistakes():
    d2 = torch.tensor([900.0, 1600.0, 2500.0])
    right = 1600 / np.log(2)
    assert lesson.check_3(right, d2).right and float(np.exp(-1600 / right)) == pytest.approx(0.5)
    texts = {lesson.check_3(wrong, d2).text for wrong in (1600, 1600 * np.log(2), 40 / np.log(2), 800 / np.log(2), 1)}
    assert len(texts) == 5 and not any("✓" in text for text in texts)


def test_exercise_4_says_why():
    assert lesson.check_4("no expansion").right
    assert not lesson.check_4("nothing changes").right and not lesson.check_4("division by zero").right
