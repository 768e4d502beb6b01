"""Interactive figures: a control or a touch changes the picture, and a place in the picture is the place in the data."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rcp import plots, widgets


def two_panels(width: float = 3.0, place: tuple[float, float] = (0.0, 0.0)):
    figure = plots.new_figure(8, 3)  # H ≠ W
    left, right = figure.subplots(1, 2)
    left.plot([0, width], [0, 1])
    right.plot(*place, "o")
    right.set(xlim=(-2, 6), ylim=(10, -5))  # y downwards, as images have it
    return figure


def fraction(figure, panel: int, x: float, y: float) -> tuple[float, float]:
    """Where a data point lies in the picture, from its upper left corner."""
    width, height = figure.canvas.get_width_height()
    at = figure.axes[panel].transData.transform((x, y))
    return at[0] / width, 1 - at[1] / height


def explorer():
    def moved(touch, values):
        return {"place": (touch.x, touch.y)} if touch.panel == 1 else {"width": touch.x} if touch.phase == "up" else {}

    control = widgets.slider(1.0, 9.0, 3.0, "width")
    return widgets.explore(two_panels, {"width": control}, state={"place": (0.0, 0.0)}, on_touch=moved, alt="two")


def test_a_control_draws_the_picture_anew_with_its_value():
    shown = explorer()
    before = shown.picture.png
    shown.controls["width"].value = 7.0
    assert shown.picture.png == widgets.png(two_panels(7.0)) != before
    assert Image.open(io.BytesIO(shown.picture.png)).size == (8 * widgets.DPI, 3 * widgets.DPI)


@given(x=st.floats(-1.9, 5.9), y=st.floats(-4.9, 9.9))
@settings(max_examples=25, deadline=None)
def test_a_touch_is_located_in_data_coordinates(x, y):
    figure = two_panels()
    widgets.png(figure)
    across, down = fraction(figure, 1, x, y)
    touch = widgets.located(figure, {"phase": "down", "x": across, "y": down})
    assert touch.panel == 1 and touch.phase == "down"
    assert np.allclose((touch.x, touch.y), (x, y), atol=1e-6)


def test_a_touch_outside_all_panels_changes_nothing():
    shown = explorer()
    before = shown.picture.png
    assert widgets.located(two_panels(), {}) is None
    shown.picture.touch = {"phase": "down", "x": 0.0, "y": 0.0, "count": 1}
    assert shown.picture.png == before


def test_a_touch_changes_state_and_controls_with_one_picture():
    shown = explorer()
    drawn = []
    shown.picture.observe(drawn.append, names="png")
    figure = two_panels()
    widgets.png(figure)
    across, down = fraction(figure, 1, 2.0, 3.0)
    shown.picture.touch = {"phase": "down", "x": across, "y": down, "count": 1}
    assert shown.state["place"] == pytest.approx((2.0, 3.0))
    across, down = fraction(figure, 0, 2.0, 0.5)
    shown.picture.touch = {"phase": "up", "x": across, "y": down, "count": 2}
    assert shown.controls["width"].value == pytest.approx(2.0)
    assert len(drawn) == 2


def test_an_explorer_without_touch_does_not_listen():
    shown = widgets.explore(two_panels, {"width": widgets.slider(1, 9, 3, "width")}, alt="two")
    assert not shown.picture.touchable and shown.picture.alt == "two"
    assert explorer().picture.touchable


def test_sliders_are_whole_where_their_numbers_are():
    assert type(widgets.slider(1, 9, 3, "k")).__name__ == "IntSlider"
    fine = widgets.slider(0.0, 2.0, 1.0, "σ")
    assert type(fine).__name__ == "FloatSlider" and fine.step == pytest.approx(0.02)


def test_the_play_button_moves_the_slider():
    position, button = widgets.player(12, "step")
    button.value = 5
    assert position.value == 5 and position.max == button.max == 12


def test_a_number_typed_between_two_steps_is_brought_to_a_step():
    shown = explorer()  # steps of 0.08 from 1
    shown.controls["width"].value = 3.43
    assert shown.values()["width"] == pytest.approx(3.4)
    shown.controls["width"].value = 9.0
    assert shown.values()["width"] == 9.0


def test_two_equal_touches_sent_by_the_front_end_are_two():
    shown, seen = explorer(), []
    shown.picture.observe(lambda change: seen.append(change["new"]["count"]), names="touch")
    for _ in range(2):
        shown.picture._handle_custom_msg({"phase": "down", "x": 0.2, "y": 0.5}, [])
    assert seen == [1, 2]


def test_a_touch_that_changes_two_controls_draws_one_picture():
    drawn = []

    def draw(a, b):
        drawn.append((a, b))
        return two_panels()

    controls = {"a": widgets.slider(0, 9, 1, "a"), "b": widgets.slider(0, 9, 1, "b")}
    shown = widgets.explore(draw, controls, on_touch=lambda touch, values: {"a": 5, "b": 6}, alt="two")
    across, down = fraction(shown._figure, 0, 1.0, 0.5)
    shown.picture.touch = {"phase": "down", "x": across, "y": down, "count": 1}
    assert drawn == [(1, 1), (5, 6)]
