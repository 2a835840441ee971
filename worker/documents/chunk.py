"""Cutting a long text into parts that a model reads one by one, at sentence boundaries, without losing a character."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec
from semantic_text_splitter import TextSplitter

WINDOW: Final = 200_000  # characters


class Part(msgspec.Struct, frozen=True):
    """A part of a text: code points `start` to `end` (exclusive) of the whole."""

    index: int
    start: int
    end: int
    text: str


def split(text: str, size: int) -> list[Part]:
    """`text` in parts of at most `size` characters; together they are the text, white space between them included.

    One part when it fits. Source of the boundaries: semantic-text-splitter (paragraph, sentence, word, in this order).
    """
    if len(text) <= size:
        return [Part(0, 0, len(text), text)]
    splitter = TextSplitter(size, trim=False)
    starts = [
        begin + start for begin, end in _windows(text, size) for start, _ in splitter.chunk_indices(text[begin:end])
    ]
    bounds = [*starts, len(text)]
    return [Part(index, start, end, text[start:end]) for index, (start, end) in enumerate(pairwise(bounds))]


def _windows(text: str, size: int) -> list[tuple[int, int]]:
    """Pieces in which the splitter works: its time grows with the square of a text's length where there are no
    boundaries (50 MB on one line). Each ends behind a paragraph, line or word, where there is one."""
    window = max(WINDOW, 8 * size)
    found: list[tuple[int, int]] = []
    begin = 0
    while len(text) - begin > window:
        end = begin + window
        for boundary in ("\n\n", "\n", " "):
            place = text.rfind(boundary, begin + window // 2, end)
            if place >= 0:
                end = place + len(boundary)
                break
        found.append((begin, end))
        begin = end
    return [*found, (begin, len(text))]
