"""Cutting a long text into parts that a model reads one by one, at sentence boundaries, without losing a character."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from semantic_text_splitter import TextSplitter


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
    starts = [start for start, _ in TextSplitter(size, trim=False).chunk_indices(text)]
    bounds = [*starts, len(text)]
    return [Part(index, start, end, text[start:end]) for index, (start, end) in enumerate(pairwise(bounds))]
