"""Numbers as settings have them: 1 and 1.0 mean the same learning rate, 1.5 is no number of steps, and nan is none at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_type_hints


def exact(settings: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for settings, each number in the type of its field.

    Args:
        settings: a dataclass.
        given: some of its fields; names that it does not have are left to it to refuse.

    Raises:
        ValueError: if a number is not finite, a whole number is asked for and a fraction given, or a number is given for yes or
            no, or the other way round, or a word for either.
    """
    return exact_by(_kinds_of(settings), given)


def exact_by(kinds: Mapping[str, set[type]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values, each number in the type that is named for it; raises as `exact` does.

    Args:
        kinds: name → types that a value may have; of lists, what is in them.
        given: name → value.
    """
    return {name: _exact(name, value, kinds.get(name, set())) for name, value in given.items()}


def _exact(name: str, value: Any, kinds: set[type]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_exact(name, one, kinds) for one in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and float in kinds:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
        return float(value)
    if number and int in kinds:
        if value != value // 1:  # true of nan, too
            raise ValueError(f"{name} must be a whole number, got {value}")
        return int(value)
    if number and bool in kinds:
        raise ValueError(f"{name} must be true or false, got {value}")
    if isinstance(value, str) and str not in kinds and kinds & {int, float, bool}:
        raise ValueError(f"{name} must be {'true or false' if bool in kinds else 'a number'}, got {value!r}")
    if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
        raise ValueError(f"{name} must be a number, got {str(value).lower()}")
    return value


@cache
def _kinds_of(settings: type) -> dict[str, set[type]]:
    return {name: _kinds(hint) for name, hint in get_type_hints(settings).items()}


def _kinds(hint: Any) -> set[type]:
    """The simple types in a hint: of `tuple[int, ...] | None`, int and None's."""
    inner = get_args(hint)
    return set().union(*map(_kinds, inner)) if inner else {hint}
