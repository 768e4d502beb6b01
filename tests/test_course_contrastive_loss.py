"""Notebook 03: its figures show what they claim, its explorers move, and its checks know right from wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rcp import widgets
from rcp.course import contrastive_loss as lesson
from rcp.course import training
from rcp.distances import distances
from rcp.head import EpochRecord
from rcp.loss import loss_of_distances, pushed_share, relative_distances, relaxed_contrastive_loss

TOY = lesson.toy()
LABELS = lesson.toy_labels(TOY.seen)
PATH = training.descend(TOY.start, LABELS)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_labels(n, seed=0):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def touched(explorer, x, y, phase="down"):
    """Touch a picture at a fraction of its width and height, from the upper left; return whether it changed."""
    before = explorer.picture.png
    count = explorer.picture.touch.get("count", 0) + 1
    explorer.picture.touch = {"phase": phase, "x": x, "y": y, "count": count}
    return explorer.picture.png != before


def fraction(figure, panel, x, y):
    """Where data coordinates lie in a drawn figure, as a touch says it."""
    width, height = figure.canvas.get_width_height()
    at = figure.axes[panel].transData.transform((x, y))
    return at[0] / width, 1 - at[1] / height


def every_control_moves(explorer, **values):
    for name, value in values.items():
        before = explorer.picture.png
        explorer.controls[name].value = value
        assert explorer.picture.png != before, name
    assert set(values) == set(explorer.controls)


# --- the two terms --------------------------------------------------------------------------------


@pytest.mark.parametrize(("w", "margin"), [(0.0, 1.0), (0.3, 1.5), (0.7, 0.4), (1.0, 1.0)])
def test_the_bracket_is_that_of_eq_7(w, margin):
    delta = np.linspace(0, 2, 23)
    slow = [w * d * d + (1 - w) * max(margin - d, 0.0) ** 2 for d in delta.tolist()]
    np.testing.assert_allclose(lesson.bracket(delta, w, margin), slow, atol=1e-6)


@pytest.mark.parametrize(("w", "margin"), [(0.0, 1.0), (0.05, 0.05), (0.3, 1.5), (0.65, 2.0), (1.0, 1.0), (0.5, 0.0)])
def test_the_lowest_point_found_is_the_one_derived(w, margin):
    assert lesson.lowest(w, margin) == pytest.approx((1 - w) * margin, abs=6e-4)


def test_the_curves_show_pull_push_and_a_lowest_point_that_nothing_undercuts():
    figure = lesson.term_curves()
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["w = 0", "w = 0.25", "w = 0.5", "w = 0.75", "w = 1"]
    for axes in figure.axes:
        drawn = lines(axes)
        pull, push, both = (drawn[name].get_ydata() for name in ("pull", "push", "sum"))
        np.testing.assert_allclose(pull + push, both, atol=1e-6)
        assert drawn["lowest point"].get_ydata()[0] <= both.min() + 1e-6


def test_the_terms_explorer_says_whether_the_pair_is_pulled_or_pushed():
    explorer = lesson.terms_explorer()
    every_control_moves(explorer, w=0.5, margin=1.5)
    for delta, word in ((1.8, "pulled"), (0.1, "pushed"), (0.75, "no force")):
        assert touched(explorer, *fraction(explorer._figure, 0, delta, 1.0))
        assert word in explorer._figure.axes[0].get_title()
    assert not touched(explorer, 0.5, 0.5, "up")


# --- the margin -----------------------------------------------------------------------------------


def test_the_margin_figure_counts_the_pairs_nearer_than_each_margin():
    delta = relative_distances(gaussian(30, 4))
    figure = lesson.margin_figure(delta, "toy", margins=(0.5, 1.0))
    near = [int((delta[i] < 1.0).sum()) - 1 for i in range(30)]  # itself does not count
    share = 100 * sum(near) / (30 * 29)
    assert f"m = 1: {share:.1f} %" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    curve = max(figure.axes[1].get_lines(), key=lambda line: len(line.get_xdata()))
    assert curve.get_ydata()[0] == 0
    assert (np.diff(curve.get_ydata()) >= 0).all()
    assert "toy" in figure.axes[0].get_title()


def test_slider_and_click_set_the_same_margin():
    delta = relative_distances(gaussian(40, 3, seed=1))
    explorer = lesson.margin_explorer(delta)
    every_control_moves(explorer, margin=0.7)
    assert f"{100 * pushed_share(delta, 0.7):.1f} %" in explorer._figure.axes[0].get_title()
    assert touched(explorer, *fraction(explorer._figure, 0, 1.3, 0.2))
    assert explorer.controls["margin"].value == pytest.approx(1.3, abs=0.026)
    for margin in (0.0, 0.3, 1.975, 2.0):  # the slider's ends, and stops that no float hits exactly
        explorer.controls["margin"].value = margin


# --- the toy --------------------------------------------------------------------------------------


def test_the_toy_s_labels_know_its_clusters():
    same = TOY.kind[:, None] == TOY.kind
    for seed in range(5):
        toy = lesson.toy(seed)
        w = lesson.toy_labels(toy.seen)
        assert w[same.clone().fill_diagonal_(False)].mean() > 5 * w[~same].mean()
    assert not torch.equal(lesson.toy_labels(TOY.seen, 0.0), lesson.toy_labels(TOY.seen, 1.0))


def test_descending_is_gradient_descent_by_autograd():
    z, w = gaussian(7, 2, seed=2), random_labels(7, 2)
    path = training.descend(z, w, margin=0.8, steps=12, rate=0.1)
    for step in range(13):
        moving = z.clone().requires_grad_()
        loss = relaxed_contrastive_loss(moving, w, 0.8)
        loss.backward()
        torch.testing.assert_close(path.points[step], z)
        torch.testing.assert_close(path.arrows[step], -moving.grad)
        torch.testing.assert_close(path.losses[step], loss.detach())
        z = z - 0.1 * moving.grad


def test_the_path_ends_lower_and_longer():
    assert PATH.losses[-1] < 0.4 * PATH.losses[0]
    length = (PATH.points - PATH.points.mean(1, keepdim=True)).square().sum((1, 2))
    steps = (training.RATE * PATH.arrows[:-1]).square().sum((1, 2))
    torch.testing.assert_close(length[1:] - length[:-1], steps, rtol=0, atol=1e-4)  # Pythagoras: at a right angle


@pytest.mark.parametrize("fixed", [False, True])
def test_the_forces_of_all_pairs_add_up_to_minus_the_gradient(fixed):
    z, w = gaussian(9, 2, seed=3).requires_grad_(), random_labels(9, 3)
    d = distances(z)
    mean = d.mean(1, keepdim=True)
    loss_of_distances(d / (mean.detach() if fixed else mean), w, 1.0).backward()
    forces = training.pair_forces(z.detach(), w, 1.0, fixed_mean=fixed)
    towards = z.detach()[None] - z.detach()[:, None]  # (i, j): from i to j
    unit = towards / towards.norm(dim=2, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close((forces[:, :, None] * unit).sum(1), -z.grad)
    torch.testing.assert_close(forces, forces.T)


def test_the_toy_figure_draws_the_points_of_its_steps():
    figure = training.toy_figure(TOY, PATH, stages=(0, 30))
    assert [axes.get_title() for axes in figure.axes][1:] == [
        f"step {step}\nloss {float(PATH.losses[step]):.2f}" for step in (0, 30)
    ]
    for axes, points in zip(figure.axes, (TOY.seen, PATH.points[0], PATH.points[30]), strict=True):
        drawn = np.concatenate([axes.collections[kind].get_offsets() for kind in range(3)])
        np.testing.assert_allclose(drawn, points.numpy(), atol=1e-6)


def test_the_arrows_stay_inside_the_picture():
    ends = PATH.points + training.ARROW * PATH.arrows
    for side, (low, high) in enumerate(training.FRAME):
        for all_points in (TOY.seen, PATH.points, ends):
            assert low < all_points[..., side].min()
            assert all_points[..., side].max() < high


def test_the_forces_figure_has_a_line_for_every_other_point():
    figure = training.forces_figure(TOY, PATH, 3, stages=(0, 10))
    for axes in figure.axes:
        assert sum(len(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments")) == len(TOY.kind) - 1


def test_the_toy_explorer_moves_and_shows_the_forces_of_a_clicked_point():
    box = training.toy_explorer(TOY)
    play, explorer = box.children
    every_control_moves(explorer, step=30, margin=1.5, alpha=0.0)
    play.value = 12
    assert explorer.controls["step"].value == 12
    point = training.descend(TOY.start, lesson.toy_labels(TOY.seen, 0.0), 1.5).points[12][5]
    assert touched(explorer, *fraction(explorer._figure, 0, *point.tolist()))
    assert explorer.state["chosen"] == 5
    assert touched(explorer, *fraction(explorer._figure, 0, 3.4, 3.3))  # far from every point: none is chosen
    assert explorer.state["chosen"] is None
    assert not touched(explorer, *fraction(explorer._figure, 1, 20, 1.0))  # the loss curve does not listen


def test_the_slider_s_ends_can_be_drawn():
    _, explorer = training.toy_explorer(TOY).children
    for margin in (0.0, 2.0):
        for alpha in (0.0, 1.0):
            explorer.controls["margin"].value, explorer.controls["alpha"].value = margin, alpha
            explorer.controls["step"].value = training.STEPS


# --- hard labels ----------------------------------------------------------------------------------


def test_hard_labels_of_clusters_collapse_them_and_relaxed_ones_do_not():
    person = (TOY.kind[:, None] == TOY.kind).float()
    figure = training.hard_figure(TOY, {"relaxed": LABELS, "cluster": person})
    spread = [[float(axes.collections[kind].get_offsets().std(0).max()) for kind in range(3)] for axes in figure.axes]
    assert max(spread[2]) < 0.05 < min(spread[1])


def test_the_hard_explorer_moves():
    play, explorer = training.hard_explorer(TOY).children
    every_control_moves(explorer, step=40, limit=0.2)
    play.value = 3
    assert explorer.controls["step"].value == 3
    assert "w > 0.20" in explorer._figure.axes[1].get_title()


# --- the teacher ----------------------------------------------------------------------------------


def test_a_teacher_follows_as_eq_8_says():
    student, momentum, slow, teacher = gaussian(40).tolist(), 0.8, [], 0.0
    for value in student:
        teacher = momentum * teacher + (1 - momentum) * value
        slow.append(teacher)
    np.testing.assert_allclose(lesson.follow(student, momentum), slow, atol=1e-6)
    np.testing.assert_allclose(lesson.follow(np.ones(9), 0.9), 1 - 0.9 ** np.arange(1, 10), atol=1e-6)


def test_the_square_wave_jumps_at_half_its_period():
    assert lesson.square_wave(4, 7).tolist() == [1, 1, 0, 0, 1, 1, 0]


def test_the_teacher_figure_marks_the_half_lives():
    figure = lesson.teacher_figure()
    assert [text.get_text() for text in figure.axes[0].texts] == ["7", "69", "693"]


def test_the_teacher_explorer_moves():
    explorer = lesson.teacher_explorer(steps=60)
    every_control_moves(explorer, momentum=0.9, period=20)
    for momentum in (0.0, 0.999):
        explorer.controls["momentum"].value = momentum


# --- real patches ---------------------------------------------------------------------------------


def test_means_by_label_equal_a_pair_by_pair_loop():
    delta, w = gaussian(25, 25).abs(), random_labels(25) * 0.7
    means = training.by_label(delta, w)
    for place, (low, high) in enumerate(zip(training.EDGES[:-1], training.EDGES[1:], strict=True)):
        own = [float(delta[i, j]) for i in range(25) for j in range(25) if i != j and low <= float(w[i, j]) < high]
        if len(own) < training.FEWEST:
            assert math.isnan(means[place])
        else:
            assert means[place] == pytest.approx(sum(own) / len(own))
    assert np.isnan(training.by_label(delta, torch.zeros(25, 25))[1:]).all()


def records(shift):
    quantiles = (0.5, 0.8, 1.0, 1.1, 1.3)
    return [
        EpochRecord(epoch, 100 + shift * epoch, 0.4, 0.3 + 0.01 * shift, 0.003, quantiles, 0.01 * epoch, 1e-5, 1.0)
        for epoch in (1, 2, 3)
    ]


def looks(shift):
    bins = np.linspace(1.2, 0.3, len(training.EDGES) - 1)
    return [
        training.Look(epoch, 100 + shift * epoch, 100 - epoch, 80 + epoch, bins[::-1], bins - 0.01 * shift * epoch, bins)
        for epoch in (0, 1, 2)
    ]


def test_the_history_figure_draws_every_record():
    figure = training.history_figure({"slow": records(-1), "quick": records(2)}, "toy")
    panels = figure.axes
    assert len(panels) == 6
    assert lines(panels[0])["quick"].get_ydata().tolist() == [102, 104, 106]
    assert lines(panels[1])["slow"].get_ydata().tolist() == pytest.approx([40, 40, 40])
    assert lines(panels[2])["quick"].get_ydata().tolist() == pytest.approx([0.32] * 3)
    assert lines(panels[3])["slow"].get_ydata().tolist() == pytest.approx([3, 3, 3])
    assert lines(panels[4])["slow"].get_ydata().tolist() == [1.0] * 3
    assert lines(panels[5])["slow"].get_ydata().tolist() == pytest.approx([1, 2, 3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["slow", "quick"]
    assert "toy" in figure.get_suptitle()


def test_the_figure_of_labels_draws_moving_frozen_and_floor():
    figure = training.labels_figure({"a": looks(3), "b": looks(1)})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    drawn = lines(figure.axes[0])
    assert drawn["moving labels"].get_ydata().tolist() == [100, 103, 106]
    assert drawn["labels of the start"].get_ydata().tolist() == [100, 99, 98]
    assert drawn["floor of moving labels"].get_ydata().tolist() == [80, 81, 82]


def test_the_figure_of_moved_pairs_draws_before_and_after():
    seen = looks(3)
    figure = training.moved_figure({"a": seen}, "toy")
    of_z, of_f = (lines(axes) for axes in figure.axes)
    np.testing.assert_array_equal(of_z["before"].get_ydata(), seen[0].delta)
    np.testing.assert_array_equal(of_z["after: a"].get_ydata(), seen[-1].delta)
    np.testing.assert_array_equal(of_f["after: a"].get_ydata(), seen[-1].kept)
    np.testing.assert_array_equal(of_z["before"].get_xdata(), seen[0].label)


def test_the_epoch_explorer_moves():
    explorer = training.epoch_explorer({"a": looks(3), "b": looks(1)})
    every_control_moves(explorer, training="b", epoch=1)
    assert "after epoch 1" in lines(explorer._figure.axes[1])


def test_the_epoch_explorer_takes_trainings_of_unequal_length():
    explorer = training.epoch_explorer({"a": looks(3), "b": looks(1)[:2]})
    explorer.controls["training"].value = "b"
    assert "after epoch 1" in lines(explorer._figure.axes[1])


# --- exercises ------------------------------------------------------------------------------------


def others(z):
    return distances(z) / (distances(z).sum(1, keepdim=True) / (len(z) - 1))


def squared(z):
    return distances(z) ** 2 / (distances(z) ** 2).mean(1, keepdim=True)


def right_relative(z):
    d = torch.cdist(z, z)
    return d / d.mean(1, keepdim=True)


MISTAKES = [
    (lesson.check_1, lambda z: torch.cdist(z, z) / torch.cdist(z, z).mean(), "one mean of the whole matrix"),
    (lesson.check_1, lambda z: torch.cdist(z, z) / torch.cdist(z, z).mean(1), "each *column*"),
    (lesson.check_1, others, "other N-1 rows"),
    (lesson.check_1, squared, "squared distances"),
    (lesson.check_1, lambda z: torch.cdist(z, z), "the distances themselves"),
    (lesson.check_1, lambda z: z, "shape"),
    (lesson.check_2, 0.45, "turned round"),
    (lesson.check_2, 0.7, "margin of 1 only"),
    (lesson.check_2, 1.5, "at the margin only"),
    (lesson.check_2, 0, "at 0 the pull"),
    (lesson.check_2, 0.3 * 0.7 * 1.5**2, "how high"),
    (lesson.check_2, 1.2, "set the derivative"),
    (lesson.check_3, 1, "1/N²"),
    (lesson.check_3, 9, "how many more pairs"),
    (lesson.check_3, 1 / 3, "not slower"),
    (lesson.check_3, math.sqrt(3), "does not change at all"),
    (lesson.check_3, 27, "how many pairs"),
    (lesson.check_4, 500, "equal steps"),
    (lesson.check_4, 1000, "1/e"),
    (lesson.check_4, 301.03, "decimal logarithm"),
    (lesson.check_4, math.log(0.999) / math.log(0.5), "upside down"),
    (lesson.check_4, math.log(0.5) / math.log(0.001), "what *stays*"),
    (lesson.check_4, 50, "distance left"),
]


@pytest.mark.parametrize(("check", "wrong", "said"), MISTAKES)
def test_each_mistake_is_told_by_its_own_words(check, wrong, said):
    outcome = check(wrong)
    assert outcome.right is False
    assert [words for other, _, words in MISTAKES if other is check and words in outcome.text] == [said]


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (lesson.check_1, right_relative),
        (lesson.check_2, 1.05),
        (lesson.check_3, 3),
        (lesson.check_4, 693),
        (lesson.check_4, math.log(2) / 0.001),
        (lesson.check_4, math.log(0.5) / math.log(0.999)),
    ],
)
def test_the_right_answer_is_right(check, right):
    outcome = check(right)
    assert outcome.right is True
    assert "✓" in outcome.text


@pytest.mark.parametrize("check", [lesson.check_1, lesson.check_2, lesson.check_3, lesson.check_4])
def test_no_answer_yet_is_neither_right_nor_wrong(check):
    assert check(...).right is None


def test_a_stub_is_no_answer_yet():
    assert lesson.check_1(lambda z: ...).right is None


def test_every_picture_is_described():
    explorers = [lesson.terms_explorer(), lesson.teacher_explorer(), training.epoch_explorer({"a": looks(1)})]
    for explorer in explorers:
        assert isinstance(explorer, widgets.Explorer)
        assert len(explorer.picture.alt) > 20
