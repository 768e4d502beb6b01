"""What the tests of all lessons do with their checks and explorers."""

from __future__ import annotations


def verdicts(check, right, wrong) -> None:
    """The right answer is right, each mistake is told by its own words, and no answer is no verdict."""
    assert check(right).right is True
    texts = [check(answer).text for answer in wrong]
    assert all(check(answer).right is False for answer in wrong)
    assert len(set(texts)) == len(texts) and not any("usual slip" in text or "differs from what" in text for text in texts)
    assert check(...).right is None


def changes(explorer, **values) -> None:
    """Every control has a value here, and moving it draws another picture."""
    assert set(values) == set(explorer.controls)
    for name, value in values.items():
        before = explorer.picture.png
        explorer.controls[name].value = value
        assert explorer.picture.png != before, name


def touched(explorer, x: float, y: float) -> None:
    """A touch there draws another picture."""
    before = explorer.picture.png
    explorer.picture.touch = {"phase": "down", "x": x, "y": y, "count": 1}
    assert explorer.picture.png != before
