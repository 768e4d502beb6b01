"""JupyterLab opens the notebooks with the playgrounds: sliders and clicks change the pictures, and nothing goes wrong."""

from __future__ import annotations

import math

import lab
import pytest


@pytest.fixture(scope="module", params=lab.OPENED)
def notebook(request, opened, address):
    found = lab.Notebook(opened, address, request.param)
    yield found
    found.close()


def test_all_cells_run_without_a_trouble(notebook):
    assert notebook.troubles() == []


def test_every_slider_changes_its_picture(notebook):
    explorers = notebook.explorers()
    assert explorers
    for explorer in explorers:
        sliders = explorer.locator(".noUi-handle")
        for number in range(sliders.count()):
            before = lab.pixels(explorer)
            at_end = math.isnan(lab.press(explorer, number, "ArrowRight"))  # it may stand at its upper end
            assert not at_end or not math.isnan(lab.press(explorer, number, "ArrowLeft"))
            assert lab.wait_for_change(explorer, before)
    assert notebook.troubles() == []


def test_a_number_typed_beside_a_slider_is_no_trouble(notebook):
    for explorer in notebook.explorers():
        for number in range(explorer.locator(".noUi-handle").count()):
            lab.type_beside(explorer, number, "0.33")
    notebook.page.wait_for_timeout(1500)
    assert notebook.troubles() == []


def test_a_quick_drag_ends_where_the_finger_left(notebook):
    if notebook.name != "02_pseudo_labels":
        pytest.skip("the points that can be dragged are in 02")
    explorer, point_4, end = notebook.explorers()[0], (0.1425, 0.489), (0.2, 0.7)
    lab.drag(explorer, point_4, end, 30)  # many places that Python has no time for
    notebook.page.wait_for_timeout(1500)
    quick = lab.pixels(explorer)
    lab.drag(explorer, end, end, 1)  # takes hold where it should be, and lets go there
    notebook.page.wait_for_timeout(1500)
    assert lab.pixels(explorer) == quick
    lab.drag(explorer, end, (0.22, 0.68), 1)
    assert lab.wait_for_change(explorer, quick)  # it was there
    assert notebook.troubles() == []


def test_a_click_changes_a_picture_that_can_be_touched(notebook):
    touchable = [e for e in notebook.explorers() if e.locator(f"{lab.PICTURE}[tabindex]").count()]
    assert touchable
    for explorer in touchable:
        before = lab.pixels(explorer)
        places = [(0.2, 0.5), (0.3, 0.4), (0.12, 0.6), (0.4, 0.6), (0.7, 0.5)]  # some may fall on what is chosen already
        for place in places:
            lab.click(explorer, *place)
            if changed := lab.wait_for_change(explorer, before, 2):
                break
        assert changed or lab_drags(explorer)
    assert notebook.troubles() == []


def lab_drags(explorer) -> bool:
    """Whether a drag from one of some places changes the picture."""
    for x in (0.06, 0.1, 0.14, 0.18, 0.22):
        before = lab.pixels(explorer)
        lab.drag(explorer, (x, 0.49), (x + 0.03, 0.6))
        if lab.wait_for_change(explorer, before, 1):
            return True
    return False


def test_the_keyboard_touches_the_first_picture(notebook):
    explorer = next(e for e in notebook.explorers() if e.locator(f"{lab.PICTURE}[tabindex]").count())
    picture = explorer.locator(lab.PICTURE)
    before = lab.pixels(explorer)
    picture.focus()
    for _ in range(40):
        for key in ("ArrowLeft", "Enter", "Shift+ArrowUp"):
            notebook.page.keyboard.press(key)
        if lab.wait_for_change(explorer, before, 0.4):
            break
    assert lab.pixels(explorer) != before and notebook.troubles() == []
