"""Cutting a document into chunks for search.

The cuts depend on the text around them, not on what stands before: paragraphs are gathered up to the size, a heading
begins a chunk, and so does whatever follows a paragraph whose checksum says so. After a change the old cuts come back
a few paragraphs later, and only the chunks in between are new (content-defined chunking: Muthitacharoen, Chen,
Mazières, "A Low-bandwidth Network File System", 2001).
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from shared.stores.indexes import HASH_BYTES

ONE_IN: Final = 3  # paragraphs that end a chunk which is half full
HEADING_SHARE: Final = 0.25  # of the size, from which a heading begins a new chunk

_BETWEEN = re.compile(r"\n\s*\n")  # paragraphs
_SENTENCE = re.compile(r"[^.!?…。！？\n]*(?:[.!?…。！？]+[\"'”’)\]]*(?=\s|$)\s*|[.!?…。！？]+|\n+|$)")
_HEADING = re.compile(r"#{1,6}\s")


class Chunk(msgspec.Struct, frozen=True):
    """Code points `start` to `end` (exclusive) of the document. `digest` is that of its text, `occurrence` counts the
    chunks of the same text before it."""

    start: int
    end: int
    digest: bytes
    occurrence: int


def cut(text: str, size: int) -> list[Chunk]:
    """The chunks of a text, in order, of at most `size` characters; white space between them belongs to none."""
    chunks: list[Chunk] = []
    seen: Counter[bytes] = Counter()
    for start, end in _spans(text, size):
        digest = text_digest(text[start:end])
        chunks.append(Chunk(start, end, digest, seen[digest]))
        seen[digest] += 1
    return chunks


def text_digest(text: str) -> bytes:
    """What tells a chunk's text from all others."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=HASH_BYTES).digest()


def chunk_id(document_id: str, digest: bytes, occurrence: int) -> str:
    """The id of a chunk: the same as long as its text stands in its document."""
    named = document_id.encode() + digest + occurrence.to_bytes(4, "little")
    return "chk_" + hashlib.blake2b(named, digest_size=HASH_BYTES).hexdigest()


def _spans(text: str, size: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    group: list[tuple[int, int]] = []

    def close(keep: int = 0) -> None:
        """Ends the chunk; its last `keep` paragraphs begin the next."""
        nonlocal group
        done, group = (group[:-keep], group[-keep:]) if keep else (group, [])
        if done:
            spans.append((done[0][0], done[-1][1]))

    for start, end in _paragraphs(text, size):
        is_heading = _HEADING.match(text, start, end) is not None
        if group and end - group[0][0] > size:
            # A heading goes with what it is the heading of.
            dangling = len(group) > 1 and _HEADING.match(text, *group[-1]) is not None
            close(keep=1 if dangling and end - group[-1][0] <= size else 0)
        elif group and is_heading and group[-1][1] - group[0][0] >= size * HEADING_SHARE:
            close()
        group.append((start, end))
        length = end - group[0][0]
        if (
            not is_heading
            and length >= size / 2
            and zlib.crc32(text[start:end].encode("utf-8", "replace")) % ONE_IN == 0
        ):
            close()
    close()
    return spans


def _paragraphs(text: str, size: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    begin = 0
    for gap in (*(match.span() for match in _BETWEEN.finditer(text)), (len(text), len(text))):
        piece = text[begin : gap[0]]
        inner = piece.strip()
        if inner:
            start = begin + len(piece) - len(piece.lstrip())
            found += _pieces(text, start, start + len(inner), size)
        begin = gap[1]
    return found


def _pieces(text: str, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """A paragraph, or the sentences of one that is longer than a chunk; parts of a sentence that is. Takes time in
    proportion to the length, whatever the text."""
    if end - start <= size:
        yield start, end
        return
    for match in _SENTENCE.finditer(text, start, end):
        first, last = match.start(), match.end()
        while last - first > size:
            blank = max(
                text.rfind(" ", first + size // 2, first + size), text.rfind("\n", first + size // 2, first + size)
            )
            cut_at = blank if blank > 0 else first + size
            if inner := text[first:cut_at].strip():
                begin = first + text[first:cut_at].index(inner[0])
                yield begin, begin + len(inner)
            first = cut_at
        piece = text[first:last]
        if inner := piece.strip():
            begin = first + len(piece) - len(piece.lstrip())
            yield begin, begin + len(inner)
