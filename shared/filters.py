"""Filters on documents' metadata, as searches and lists take them.

`{"lang": "en", "year": {"gte": "2020"}}`: all must hold. A value is a text (equal), a list (one of them), or operators:
`eq`, `ne`, `in`, `nin`, `gt`, `gte`, `lt`, `lte`, `exists`. `$and` and `$or` take lists of filters, `$not` one. Two
numbers are compared as numbers, all else as text, so that RFC 3339 times compare rightly. A document without the member
fits only `ne`, `nin` and `{"exists": false}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

MAX_DEPTH: Final = 8
MAX_CONDITIONS: Final = 100
MAX_VALUES: Final = 1_000  # in all lists together
MAX_TEXT: Final = 512  # characters, as of metadata
MAX_NUMBER: Final = 2**53
COMPARISONS: Final = ("gt", "gte", "lt", "lte")
OPERATORS: Final = ("eq", "ne", "in", "nin", *COMPARISONS, "exists")


def filter_problem(wanted: Any) -> str | None:
    """What is wrong with a filter, as a sentence; None when nothing is."""
    return _problem(wanted, 0, [MAX_CONDITIONS], [MAX_VALUES])


def _problem(wanted: Any, depth: int, budget: list[int], values: list[int]) -> str | None:
    if depth > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH}"
    if not isinstance(wanted, Mapping):
        return "must be an object"
    budget[0] -= max(len(wanted), 1)
    if budget[0] < 0:
        return f"has more than {MAX_CONDITIONS} conditions"
    for name, value in wanted.items():
        if name in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                return f"{name} takes a list of filters"
            found = next((wrong for part in value if (wrong := _problem(part, depth + 1, budget, values))), None)
        elif name == "$not":
            found = _problem(value, depth + 1, budget, values)
        elif name.startswith("$"):
            return f"there is no {name}; known are $and, $or and $not"
        else:
            values[0] -= sum(map(len, _lists(value)))
            if values[0] < 0:
                return f"has lists of more than {MAX_VALUES} values together"
            found = _condition_problem(name, value)
        if found is not None:
            return found
    return None


def _lists(value: Any) -> list[list[Any]]:
    within = value.values() if isinstance(value, Mapping) else (value,)
    return [one for one in within if isinstance(one, list)]


def _condition_problem(name: str, value: Any) -> str | None:
    if isinstance(value, list):
        return None if value and all(map(_is_plain, value)) else f"{name}: a list of texts is needed"
    if not isinstance(value, Mapping):
        return None if _is_plain(value) else f"{name}: must be a text, a list of texts, or operators"
    if not value:
        return f"{name}: has no operator; known are {', '.join(OPERATORS)}"
    for operator, operand in value.items():
        if operator not in OPERATORS:
            return f"{name}: there is no operator {operator!r}; known are {', '.join(OPERATORS)}"
        if operator == "exists":
            fits = isinstance(operand, bool)
        elif operator in ("in", "nin"):
            fits = isinstance(operand, list) and bool(operand) and all(map(_is_plain, operand))
        else:
            fits = _is_plain(operand)
        if not fits:
            return f"{name}: {operator} takes " + {"exists": "true or false", "in": "a list of texts"}.get(
                "in" if operator == "nin" else operator, "a text or a number"
            )
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER


def matches(wanted: Mapping[str, Any], metadata: Mapping[str, str]) -> bool:
    """Whether metadata fits a filter that `filter_problem` found nothing wrong with."""
    for name, value in wanted.items():
        if name == "$and":
            fits = all(matches(part, metadata) for part in value)
        elif name == "$or":
            fits = any(matches(part, metadata) for part in value)
        elif name == "$not":
            fits = not matches(value, metadata)
        else:
            fits = _fits(value, metadata.get(name))
        if not fits:
            return False
    return True


def _fits(wanted: Any, have: str | None) -> bool:
    if isinstance(wanted, list):
        return have is not None and any(_equal(one, have) for one in wanted)
    if not isinstance(wanted, Mapping):
        return have is not None and _equal(wanted, have)
    return all(_holds(operator, operand, have) for operator, operand in wanted.items())


def _holds(operator: str, operand: Any, have: str | None) -> bool:
    if operator == "exists":
        return bool((have is not None) == operand)
    if operator == "ne":
        return have is None or not _equal(operand, have)
    if operator == "nin":
        return have is None or not any(_equal(one, have) for one in operand)
    if have is None:
        return False
    if operator == "eq":
        return _equal(operand, have)
    if operator == "in":
        return any(_equal(one, have) for one in operand)
    left, right = _comparable(have, operand)
    if operator in ("gt", "gte"):
        return bool(left > right or (operator == "gte" and left == right))
    return bool(left < right or (operator == "lte" and left == right))


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _equal(wanted: Any, have: str) -> bool:
    if _text(wanted) == have:
        return True
    return isinstance(wanted, int | float) and not isinstance(wanted, bool) and bool(_number(have) == float(wanted))


def _comparable(have: str, wanted: Any) -> tuple[Any, Any]:
    left, right = _number(have), _number(_text(wanted))
    return (have, _text(wanted)) if left is None or right is None else (left, right)
