"""Arithmetic as people write it."""

from __future__ import annotations

import re
from typing import Final

NUMBER: Final = r"\d+(?:[.,]\d+)*"
DATE: Final = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")

_OPERATOR = r"(?:\*\*|[-+*/^%×÷]|x(?=\s*[\d(])|plus\b|minus\b|times\b|divided by\b|multiplied by\b)"
_TERM = rf"[-(]*(?:sqrt\()?{NUMBER}\)*"
_EXPRESSION = re.compile(rf"{_TERM}(?:\s*{_OPERATOR}\s*{_TERM})+|sqrt\({NUMBER}\)")
_SHARE = re.compile(rf"({NUMBER})\s*(?:%|percent) of ({NUMBER})")
_SPOKEN = {
    "×": "*",
    "÷": "/",
    "plus": "+",
    "minus": "-",
    "multiplied by": "*",
    "times": "*",
    "divided by": "/",
    "x": "*",
    "^": "**",
}


def expression_in(text: str) -> str | None:
    """The arithmetic expression in a text, as a calculator takes it."""
    if (share := _SHARE.search(text)) is not None:
        return f"{share[1]} / 100 * {share[2]}"
    for match in _EXPRESSION.finditer(text):
        found = re.sub(r"(?<=\d),(?=\d{3}\b)", "", match[0].strip())
        if DATE.fullmatch(found):
            continue
        for spoken, sign in _SPOKEN.items():
            found = found.replace(spoken, sign)
        while found.count(")") > found.count("(") and found.endswith(")"):
            found = found[:-1]
        while found.count("(") > found.count(")") and found.startswith("("):
            found = found[1:]
        return found
    return None
