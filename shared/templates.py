"""Templates of prompts: `{{name}}` is replaced by a value, once; a value is data and is never looked at again.

`\\{{` stands for the two braces themselves. There is nothing else: no expressions, no loops, no includes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import msgspec

NAME: Final = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_NAME: Final = re.compile(NAME)
REMEMBERED_CHARACTERS: Final = 8_192  # a template that is longer is parsed each time: a thousand of them are in memory
# A comment-like run of braces is not guessed at: what begins with `{{` is a variable, or is refused.
_MARK: Final = re.compile(r"\\\{\{|\{\{([^{}]*)\}\}|\{\{")


class Template(msgspec.Struct, frozen=True):
    """A text cut at its variables: `texts` has one more than `names`, and they alternate."""

    texts: tuple[str, ...]
    names: tuple[str, ...]

    def length(self, values: Mapping[str, str]) -> int:
        """How many characters `fill` gives. Raises KeyError likewise."""
        return sum(map(len, self.texts)) + sum(len(values[name]) for name in self.names)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with these values in it. Raises KeyError for a variable without one."""
        parts = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            parts += (values[name], text)
        return "".join(parts)


class BadTemplateError(ValueError):
    """The text has `{{` where no variable is meant; the message says where and what to write."""


def parse(text: str) -> Template:
    """The template that a text is. Raises BadTemplateError."""
    return _remembered(text) if len(text) <= REMEMBERED_CHARACTERS else _parsed(text)


def _parsed(text: str) -> Template:
    texts: list[str] = []
    names: list[str] = []
    parts: list[str] = []  # of the text since the last variable: joined once, since adding to a text copies it
    end = 0
    for mark in _MARK.finditer(text):
        parts.append(text[end : mark.start()])
        end = mark.end()
        if mark[0] == "\\{{":
            parts.append("{{")
            continue
        name = (mark[1] or "").strip()
        if not _NAME.fullmatch(name):
            line = text.count("\n", 0, mark.start()) + 1
            raise BadTemplateError(
                f"{text[mark.start() : mark.start() + 24]!r} in line {line} is no variable: write {{{{name}}}} with "
                "letters, digits and _ , or \\{{ for the braces themselves"
            )
        names.append(name)
        texts.append("".join(parts))
        parts = []
    parts.append(text[end:])
    texts.append("".join(parts))
    return Template(tuple(texts), tuple(names))


_remembered = lru_cache(maxsize=1024)(_parsed)


def names_in(texts: Iterable[str]) -> list[str]:
    """The variables of some texts, each once, in the order in which they come. Raises BadTemplateError."""
    return list(dict.fromkeys(name for text in texts for name in parse(text).names))
