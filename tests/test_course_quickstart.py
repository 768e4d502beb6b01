"""Notebook 00's checks and the sentence on what its table shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rcp.comparison import NAMES, Row
from rcp.course import quickstart as lesson

DEFECTS = ["good", "good", "crack", "crack", "crack", "missing_screw", "missing_screw"]


def result(scores: list[float]):
    return SimpleNamespace(
        defects=DEFECTS,
        scores=SimpleNamespace(image_scores=torch.tensor(scores)),
        verdict=SimpleNamespace(threshold=SimpleNamespace(value=5.0)),
    )


def test_exercise_1_knows_its_mistakes():
    assert lesson.check_1(lambda q, m: torch.cdist(q, m).amin(1)).right
    assert lesson.check_1(lambda q, m: ...).right is None
    wrong = {
        "squared": lambda q, m: torch.cdist(q, m).amin(1) ** 2,
        "mean distance": lambda q, m: torch.cdist(q, m).mean(1),
        "farthest": lambda q, m: torch.cdist(q, m).amax(1),
        "other way round": lambda q, m: torch.cdist(q, m).amin(0),
    }
    for why, function in wrong.items():
        assert lesson.check_1(function).right is False and why in lesson.check_1(function).text


def test_exercise_2_knows_its_mistakes():
    assert lesson.check_2(5017, 50176, 64).right and lesson.check_2(..., 50176, 64).right is None
    texts = {lesson.check_2(wrong, 50176, 64).text for wrong in (501, 6, 5018, 50176, 17)}
    assert len(texts) == 5 and not any("✓" in text for text in texts)


def test_exercise_3_counts_what_lies_at_or_below_the_limit():
    some = result([1, 9, 5.0, 4, 9, 9, 2])  # two cracks, one of them at the limit, and one screw
    assert lesson.check_3("crack", some).right and "crack 2 of 3, missing screw 1 of 2" in lesson.check_3("crack", some).text
    for wrong in ("missing_screw", "good", "none", "dust"):
        assert lesson.check_3(wrong, some).right is False
    assert lesson.check_3("none", result([1, 1, 9, 9, 9, 9, 9])).right
    assert lesson.check_3("crack", result([1, 1, 9, 9, 9, 9, 9])).right is False


@pytest.mark.parametrize(
    ("values", "ahead", "behind"),
    [((0.90, 0.91, 0.99), "a", "none"), ((0.90, 0.98, 0.99), "no line", "none"), ((0.95, 0.94, 0.90), "no line", "a")],
)
def test_the_finding_names_a_gain_only_beyond_the_spread_of_both_controls(values, ahead, behind):
    wobble = {"PatchCore": 0.005, "untrained f": 0.02, "ReConPatch": 0.005}
    rows = [
        Row("a", name, seed, {"image_auroc": value + wobble[name] * (seed - 1)})
        for name, value in zip(NAMES, values, strict=True)
        for seed in range(3)
    ]
    text = lesson.finding(rows)
    assert f"in {ahead}, and behind both by more than the spread in {behind}." in text and "± 0.50. ReConPatch" in text
