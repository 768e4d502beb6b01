"""Checks of exercises: right or not, and if not, *why* not.

Every exercise knows the mistakes that people make. A check computes what each mistake would give, and compares: whoever
forgot a square root reads that, and not just "wrong".
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WIDTH = 110  # characters a line


@dataclass(frozen=True)
class Outcome:
    """What a check says of an answer; a notebook shows its text.

    Attributes:
        right: None if there is no answer yet.
        text: the reason.
    """

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return textwrap.fill(self.text, WIDTH, subsequent_indent="    ")


def answer(
    number: str,
    given: Any,
    right: Any,
    because: str,
    mistakes: Sequence[tuple[Any, str]] = (),
    *,
    tolerance: float = 1e-3,
    hint: str = "",
) -> Outcome:
    """Return whether an answer is right, and if it is a known mistake, which.

    Args:
        number: of the exercise, "2.1".
        given: the answer: a number, text, list or tensor; ... or None if there is none yet.
        right: the right one.
        because: why it is right.
        mistakes: (wrong answer, why it is wrong), the first that fits is told.
        tolerance: relative, for numbers.
        hint: for answers that are no known mistake.
    """
    if _open(given):
        return _waiting(number)
    if same(given, right, tolerance):
        return Outcome(True, f"✓ {number} Right. {because}")
    for wrong, why in mistakes:
        if same(given, wrong, tolerance):
            return Outcome(False, f"✗ {number} Not yet: {why}")
    return Outcome(False, f"✗ {number} Not yet: {_shape_trouble(given, right) or hint or 'this is no value that a usual slip would give.'}")


def function(
    number: str,
    given: Callable[..., Any],
    right: Callable[..., Any],
    cases: Sequence[tuple],
    because: str,
    mistakes: Sequence[tuple[Callable[..., Any], str]] = (),
    *,
    tolerance: float = 1e-4,
    hint: str = "",
) -> Outcome:
    """Return whether a function gives the right results, and if it makes a known mistake, which.

    Args:
        number: of the exercise.
        given: the student's function; one that returns ... or None counts as not written yet.
        right: the right one.
        cases: argument tuples that both are called with.
        because: why it is right.
        mistakes: (wrong function, why it is wrong), the first that gives the same results is told.
        tolerance: relative.
        hint: for results of no known mistake.
    """
    if _open(given):
        return _waiting(number)
    try:
        results = [given(*copy.deepcopy(case)) for case in cases]  # a student's code may change what it is given
    except Exception as error:  # whatever the student's code raises is for the student to read
        return Outcome(False, f"✗ {number} Not yet: your function raised {type(error).__name__}: {error}")
    if all(_open(result) for result in results):
        return _waiting(number)
    if _agree(results, right, cases, tolerance):
        return Outcome(True, f"✓ {number} Right. {because}")
    for wrong, why in mistakes:
        if _agree(results, wrong, cases, tolerance):
            return Outcome(False, f"✗ {number} Not yet: {why}")
    expected = [right(*case) for case in cases]
    first = next(i for i, (a, b) in enumerate(zip(results, expected, strict=True)) if not same(a, b, tolerance))
    trouble = _shape_trouble(results[first], expected[first]) or hint
    return Outcome(False, f"✗ {number} Not yet: case {first + 1} of {len(cases)} differs from what the library gives. {trouble}")


def choice(number: str, given: Any, options: Mapping[str, str], right: str) -> Outcome:
    """Return what a choice among named options says about itself.

    Args:
        number: of the exercise.
        given: one of the names; ... or None if there is none yet.
        options: name → why it is right, or why it is wrong.
        right: which is right.
    """
    if _open(given):
        return _waiting(number)
    name = str(given).strip().lower()
    if name not in options:
        return Outcome(False, f"✗ {number} Choose one of {', '.join(map(repr, options))}; this is {given!r}.")
    sign, word = ("✓", "Right.") if name == right else ("✗", "Not yet:")
    return Outcome(name == right, f"{sign} {number} {word} {options[name]}")


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Return whether two answers are equal: numbers and arrays to a relative tolerance, all else exactly."""
    if isinstance(b, str) or isinstance(a, str):
        return isinstance(a, str) and isinstance(b, str) and a.strip().lower() == b.strip().lower()
    if isinstance(b, (set, frozenset, dict)):
        return a == b
    try:
        a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float) for x in (a, b))
    except (TypeError, ValueError, RuntimeError):  # no numbers, or tensors in a list that want a gradient
        return False
    if a.shape != b.shape:
        return False
    finite = np.abs(b[np.isfinite(b)])
    rounding = 1e-6 * (finite.max() if finite.size and finite.max() > 0 else 1)  # of entries that should be 0
    return bool(np.allclose(a, b, rtol=tolerance, atol=rounding))


def _agree(results: Sequence[Any], other: Callable[..., Any], cases: Sequence[tuple], tolerance: float) -> bool:
    return all(same(result, other(*case), tolerance) for result, case in zip(results, cases, strict=True))


def _open(given: Any) -> bool:
    return given is None or given is ...


def _waiting(number: str) -> Outcome:
    return Outcome(None, f"… {number} Your turn: replace the ... above, and run this cell again.")


def _shape_trouble(given: Any, right: Any) -> str:
    try:
        have, want = tuple(np.shape(given)), tuple(np.shape(right))  # torch has a type of its own
    except (TypeError, ValueError, RuntimeError):
        return ""
    return "" if have == want else f"the result has shape {have}, it should have {want}."
