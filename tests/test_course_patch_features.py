"""Notebook 01's figures, explorers and checks: they show what they claim, also where H != W."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rcp import plots, widgets
from rcp.course import patch_features as lesson
from rcp.course import receptive_field as seen
from rcp.features import join_levels, neighbourhood_average

STACKS = [((3, 1), (3, 2), (3, 1)), ((5, 2), (3, 1)), ((3, 1),) * 4, ((5, 1), (3, 2), (5, 1), (3, 1)), ()]


def touched(explorer, x, y, phase="down"):
    """Touch a place of the picture, in fractions from the upper left; return whether the picture changed."""
    before = explorer.picture.png
    count = explorer.picture.touch.get("count", 0) + 1
    explorer.picture.touch = {"phase": phase, "x": x, "y": y, "count": count}
    return explorer.picture.png != before


def at(explorer, panel, x, y):
    """Return where data coordinates of a panel lie in the picture, in fractions from the upper left."""
    figure = explorer._figure
    width, height = figure.canvas.get_width_height()
    px, py = figure.axes[panel].transData.transform((x, y))
    return px / width, 1 - py / height


def changes(explorer, name, value):
    before = explorer.picture.png
    explorer.controls[name].value = value
    return explorer.picture.png != before


def gaussian(h, w, y, x, sigma):
    rows, columns = torch.arange(h).float() - y, torch.arange(w).float() - x
    energy = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * sigma**2))
    return energy / energy.sum()


@pytest.fixture(scope="module")
def fields():
    """Of images of 96 x 128 pixels; level l has jump 2^(l+1)."""
    found = {}
    for level in (1, 2, 3):
        jump = 2 ** (level + 1)
        row, column = 96 // jump // 2, 128 // jump // 2
        for s in (1, 3, 5):
            middle = ((row + 0.5) * jump - 0.5, (column + 0.5) * jump - 0.5)
            energy = gaussian(96, 128, *middle, level * (2 + s))
            found[level, s] = seen.Field(level, s, jump, 20 * level**2 + s * jump, row, column, energy)
    return found


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(60, 220, (3, 96, 128, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def views(images):
    draw = torch.Generator().manual_seed(0)
    maps = {
        level: torch.randn(3, 96 // 2 ** (level + 1), 128 // 2 ** (level + 1), 5, generator=draw) for level in (1, 2, 3)
    }
    return lesson.Views(images, ("missing_hole", "scratch", "good"), maps)


# --- the stack


@pytest.mark.parametrize("layers", STACKS)
def test_the_ways_are_the_gradient_of_a_stack_of_ones(layers):
    counts = seen.sizes(layers, 41)
    for unit in (0, counts[-1] // 2, counts[-1] - 1):
        x = torch.ones(1, 1, 41, dtype=torch.float64, requires_grad=True)
        y = x
        for kernel, stride in layers:
            y = F.conv1d(y, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
        assert y.shape[-1] == counts[-1]
        y[0, 0, unit].backward()
        assert seen.ways(layers, 41, len(layers), unit)[0].tolist() == x.grad[0, 0].tolist()


def test_the_stack_figure_shows_the_field_it_names():
    figure = seen.stack_figure(STACKS[0])
    assert "sees 9 pixels" in figure.axes[0].get_title()
    bars = figure.axes[1].patches[0].get_data().values
    assert (bars > 0).sum() == 9 and bars.tolist() == seen.ways(STACKS[0], 21, 3, seen.sizes(STACKS[0], 21)[-1] // 2)[
        0
    ].tolist()
    lines = figure.axes[0].lines
    assert np.isnan(lines[0].get_xdata()).sum() == 3 * sum(seen.sizes(STACKS[0], 21)[1:])  # a gap after each connection
    assert np.isnan(lines[1].get_xdata()).sum() == 3 * (1 + 3 + 7)
    assert "sees 1 pixel;" in seen.stack_figure(STACKS[0], 21, 0, 4).axes[0].get_title()


def test_connections_join_a_unit_to_the_middle_of_what_it_sees():
    places = seen._places(((3, 2), (5, 1)), 31)
    x, y = seen._connections(((3, 2), (5, 1)), places, None)
    for top, bottom, low in zip(x[0::3], x[1::3], y[1::3], strict=True):
        assert abs(top - bottom) <= (1 if low == 0 else 4)  # (k - 1) / 2 jumps
    assert np.isnan(x[2::3]).all()


def test_the_stack_explorer_listens():
    explorer = seen.stack_explorer()
    assert changes(explorer, "kernel", 5) and changes(explorer, "depth", 5) and changes(explorer, "stride_at", 1)
    assert touched(explorer, *at(explorer, 0, 20, 2)) and explorer.state["unit"][0] == 2
    places = seen._places([(5, 2)] + [(5, 1)] * 4, 49)
    assert places[2][explorer.state["unit"][1]] == pytest.approx(20, abs=1.1)
    assert not touched(explorer, *at(explorer, 1, 20, 2))  # the bars are for looking at
    explorer.controls["depth"].value = 1  # the chosen layer is gone: the last one stands for it
    assert "layer 1" in explorer._figure.axes[0].get_title()


# --- fields


def test_the_width_is_that_of_the_smallest_square(fields):
    for field in fields.values():
        y, x = field.centre
        rows, columns = torch.arange(96).float(), torch.arange(128).float()
        for share in (0.5, 0.9):
            side = 0  # slowly: widen a square until enough lies in it
            while True:
                inside = ((rows - y).abs() <= (side - 1) / 2)[:, None] & ((columns - x).abs() <= (side - 1) / 2)[None]
                if side and float(field.energy.double()[inside].sum()) >= share:
                    break
                side += 1
            assert field.width(share) == side
        assert (np.diff(field.growth()) >= 0).all() and field.growth()[-1] == pytest.approx(1)


def test_the_offset_is_where_the_energy_lies(fields):
    field = fields[2, 3]
    assert field.offset == pytest.approx((0, 0), abs=0.02)
    away = seen.Field(
        2, 3, 8, 60, field.row, field.column, gaussian(96, 128, field.centre[0] + 3, field.centre[1] - 5, 4)
    )
    assert away.offset == pytest.approx((3, -5), abs=0.02)


def test_moving_moves():
    energy = np.random.default_rng(0).random((7, 9))
    assert np.array_equal(seen._moved(energy, 0, 0), energy)
    moved = seen._moved(energy, 2, -3)
    assert np.array_equal(moved[2:, :-3], energy[:-2, 3:]) and not moved[:2].any() and not moved[:, -3:].any()
    assert not seen._moved(energy, 9, 0).any() and not seen._moved(energy, 0, -9).any()


def test_the_fields_stand_around_the_patch_of_the_place(fields, images):
    figure = seen.fields_figure(images[0], [fields[1, 3], fields[2, 3]], (30, 100), "here")
    title, scale = figure.get_suptitle().split("\n")
    assert title == "here" and "own scale, the image is 128 px wide" in scale
    for axes, field in zip(figure.axes, (fields[1, 3], fields[2, 3]), strict=True):
        squares = {patch.get_label(): patch for patch in axes.patches if not patch.get_label().startswith("_")}
        own, whole = squares["the patch's own cell"], squares["theoretical field"]
        assert own.get_width() == field.jump and whole.get_width() == field.side
        for square in squares.values():
            middle = square.get_x() + square.get_width() / 2, square.get_y() + square.get_height() / 2
            assert middle[0] == 100 // field.jump * field.jump + field.jump / 2 - 0.5
            assert middle[1] == 30 // field.jump * field.jump + field.jump / 2 - 0.5
        shown = np.asarray(axes.images[0].get_array())
        assert shown[26:34, 96:104].mean() > 1.5 * shown[80:, :20].mean()  # bright where the patch looks


def test_growth_marks_the_90_percent(fields):
    figure = seen.growth_figure([fields[1, 3], fields[3, 3]])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[1] == f"level 3: 90 % within {fields[3, 3].width(0.9)} px, theory {fields[3, 3].side} px"
    assert [float(line.get_xdata()[0]) for line in figure.axes[0].lines[2::3]] == [fields[1, 3].side, fields[3, 3].side]


def test_the_field_explorer_listens(fields, images):
    explorer = seen.field_explorer(images, fields)
    assert all(changes(explorer, *change) for change in (("image", 2), ("level", 3), ("s", 5), ("level", 1)))
    assert touched(explorer, *at(explorer, 0, 120, 10))
    assert "patch (2, 30) of 24 × 32" in explorer._figure.axes[0].get_title()
    assert touched(explorer, *at(explorer, 0, 140, 110), phase="move")  # beside the image: the nearest patch
    assert "patch (23, 31)" in explorer._figure.axes[0].get_title()
    assert not touched(explorer, *at(explorer, 0, 60, 60), phase="up")


# --- levels


def test_likeness_is_a_distance_in_mean_distances(views):
    grid = views.maps[2][0]
    far = lesson.likeness(grid, 3, 5)
    assert far.shape == grid.shape[:2] and far[3, 5] == 0 and float(far.mean()) == pytest.approx(1)
    slow = torch.tensor([[float(torch.dist(grid[r, c], grid[3, 5])) for c in range(16)] for r in range(12)])
    torch.testing.assert_close(far, slow / slow.mean())
    grid = grid.clone()
    grid[1, 1] = 7 * grid[3, 5]
    assert lesson.likeness(grid, 3, 5, "cosine")[1, 1] < 1e-5  # one direction,
    assert lesson.likeness(grid, 3, 5)[1, 1] > 1  # far away


def test_the_likeness_figure_marks_the_same_place_in_all_panels(views):
    figure = lesson.likeness_figure(views, 0, 20, 100)
    assert [axes.get_title() for axes in figure.axes[:4]] == [
        "missing hole",
        "level 1: 24 × 32",
        "level 2: 12 × 16",
        "level 3: 6 × 8",
    ]
    for axes in figure.axes[:4]:
        mark = axes.patches[0]
        assert mark.get_x() - 4.5 <= 100 <= mark.get_x() + mark.get_width() + 0.5
        assert mark.get_y() - 4.5 <= 20 <= mark.get_y() + mark.get_height() + 0.5
    shown = np.asarray(figure.axes[2].images[0].get_array())
    assert np.unravel_index(shown.argmin(), shown.shape) == (20 // 8, 100 // 8)


def test_the_likeness_explorer_listens(views):
    explorer = lesson.likeness_explorer(views)
    assert changes(explorer, "image", 1) and changes(explorer, "measure", "cosine")
    for panel in range(4):
        assert touched(explorer, *at(explorer, panel, 10 + 20 * panel, 80))
        assert explorer.state == pytest.approx({"x": 10 + 20 * panel, "y": 80})
    assert not touched(explorer, *at(explorer, 4, 0.5, 1.0))  # the colour bar


def test_the_join_figure_shows_blocks_and_no_blocks():
    deep = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    figure = lesson.join_figure(deep, (6, 8), "a channel")
    raw, near, smooth = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3])
    assert np.array_equal(near, np.kron(raw, np.ones((2, 2))))
    library = join_levels([torch.zeros(1, 1, 6, 8), deep[None, None]])[0, ..., 1]
    assert np.allclose(smooth, library) and not np.allclose(smooth, near)


def test_a_look_reads_scores_by_kind(category):
    geometry, test = lesson.Geometry(72, (64, 96)), category.test
    truth = lesson.masks(test, geometry)
    assert truth.shape == (len(test), 64, 96) and truth[test.labels == 0].sum() == 0 < truth[test.labels == 1].sum()
    perfect = torch.from_numpy(truth.reshape(len(test), 8, 8, 12, 8).mean((2, 4)))  # the share of defect in each patch
    look = lesson.look_at("x", [perfect, -perfect], test, truth)
    assert look.image == [1.0, pytest.approx(0, abs=0.5)] and look.kinds == {
        "scratch": pytest.approx(np.mean(look.image))
    }
    assert look.pixel[0] > 0.95 and look.pixel[1] == pytest.approx(1 - look.pixel[0], abs=1e-6)  # one a seed
    assert np.isnan(lesson.look_at("x", [perfect, perfect], test, None).pixel).tolist() == [True, True]
    y, x = lesson.middle(next(sample for sample in test if sample.label), geometry)
    assert truth[list(test.labels).index(1), int(y), int(x)]
    assert lesson.middle(next(sample for sample in test if not sample.label), geometry) == (32, 48)


def test_the_look_figure_shows_its_numbers():
    looks = [
        lesson.Look("one", (0.9, 0.8, 0.7), (0.95, 0.96, 0.97), {"dent": 0.9, "big_hole": 0.6}),
        lesson.Look("two", (0.5,), (np.nan,), {"dent": 0.5, "big_hole": 1.0}),
    ]
    figure = lesson.look_figure(looks, "what varies")
    left, right = figure.axes
    assert [text.get_text() for text in right.texts] == ["90", "60", "50", "100"]
    assert left.containers[0].lines[0].get_xdata() == pytest.approx([80, 50])
    low, high = left.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((70, 90))  # mean ± standard deviation of three seeds
    pixel = left.containers[1].lines
    assert pixel[0].get_xdata()[0] == pytest.approx(96)
    assert pixel[2][0].get_segments()[0][:, 0] == pytest.approx([95, 97])
    assert [label.get_text() for label in left.get_yticklabels()] == ["one", "two"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["dent", "big\nhole"]


def test_type_is_large_enough(fields, images, views):
    figures = [
        seen.stack_figure(STACKS[0]), seen.fields_figure(images[0], [fields[1, 3]], (5, 5), "x"),
        seen.growth_figure([fields[1, 3]]),
        lesson.likeness_figure(views, 0, 1, 1), lesson.look_figure([lesson.Look("a", (0.5,), (0.5,), {"b": 0.5})], "x"),
    ]  # fmt: skip
    for figure in figures:
        widgets.png(figure)
        texts = [
            text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text().strip()
        ]
        assert texts and min(text.get_fontsize() for text in texts if text.get_visible()) >= plots.TYPE - 5


# --- checks


def verdicts(check, answers):
    """Return what a check says to each answer; no two of its texts may be the same."""
    outcomes = [check(answer) for answer in answers]
    assert len({outcome.text for outcome in outcomes}) == len(outcomes)
    return [outcome.right for outcome in outcomes]


def test_check_1():
    assert verdicts(lesson.check_1, [43, 17, 53, 42, 62, 4, 40, ...]) == [True] + [False] * 6 + [None]
    assert "no value that a usual slip" in lesson.check_1(40).text
    assert "no value that a usual slip" not in "".join(lesson.check_1(wrong).text for wrong in (17, 53, 42, 62, 4))


def test_check_2():
    def right(grid, row, column, s):
        reach = s // 2
        return grid[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].sum() / s**2

    def real(grid, row, column, s):
        reach = s // 2
        return grid[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].mean()

    def edge(grid, row, column, s):
        padded = np.pad(grid.numpy(), s // 2, mode="edge")
        return float(padded[row : row + s, column : column + s].mean())

    wrong = [
        real, edge, lambda *case: case[3] ** 2 * right(*case),
        lambda grid, row, column, s: grid[row : row + s, column : column + s].sum() / s**2,
        lambda grid, row, column, s: right(grid.T, row, column, s), lambda grid, row, column, s: grid[row, column],
        lambda grid, row, column, s: grid[99], lambda *case: ...,
    ]  # fmt: skip
    assert verdicts(lesson.check_2, [right, *wrong]) == [True] + [False] * 7 + [None]
    assert all("differs from what the library gives" not in lesson.check_2(slip).text for slip in wrong[:5])
    assert "IndexError" in lesson.check_2(wrong[6]).text
    assert right(torch.ones(4, 5), 0, 0, 3) == pytest.approx(
        float(neighbourhood_average(torch.ones(1, 1, 4, 5), 3)[0, 0, 0, 0])
    )


def test_check_3():
    assert verdicts(lesson.check_3, ["3", "1", "2", "4", "5", ...]) == [True, False, False, False, False, None]
    assert lesson.check_3(3).right and not lesson.check_3(2).right
    numbers = [check(...).text.split()[1] for check in (lesson.check_1, lesson.check_2, lesson.check_3, lesson.check_4)]
    assert numbers == ["1.1", "1.2", "1.3", "1.4"]
    assert "theoretical" in lesson.check_3(2).text


def test_check_4():
    rows = 280 * 60 * 60
    right = rows * 1536 * 2
    wrong = [
        right * 2,
        280 * 784 * 1536 * 2,
        rows * 512 * 2 + rows // 4 * 1024 * 2,
        rows * 2,
        280 * 480 * 480 * 1536 * 2,
        right / 1e9,
        7,
    ]
    assert verdicts(lesson.check_4, [right, *wrong, ...]) == [True] + [False] * 7 + [None]
    assert "usual slip" in lesson.check_4(7).text and "usual slip" not in "".join(
        lesson.check_4(slip).text for slip in wrong[:-1]
    )
