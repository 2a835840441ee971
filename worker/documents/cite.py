"""Citations are proven: a quote counts only when it stands in the text, and then with its place."""

from __future__ import annotations

import re
import unicodedata
from array import array

import msgspec

from shared.documents import page_of
from shared.metrics import CITATIONS

MIN_QUOTE = 3  # letters or digits; less proves nothing

_FOLD = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u00a0": " ",
}  # fmt: skip
# Not shown by any program, and left out of what a model sees (worker.fencing).
_UNSEEN = frozenset(
    map(chr, (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF))
)
_EDGES = re.compile(r"^[\s\"'\u2018\u2019\u201c\u201d\u2026.]+|(?:[\s\"'\u2018\u2019\u201c\u201d\u2026]|\.{2,})+$")


class Citation(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A proven quote: `quote` is the text's own wording at code points `start` to `end` (exclusive).

    `item` says what it supports: the index of a point or question, or the JSON path of a field.
    """

    quote: str
    start: int
    end: int
    page: int | None = None
    item: int | str | None = None


class Folded:
    """A text without differences of case, white space, quotes and dashes, and the way back to its offsets."""

    def __init__(self, text: str) -> None:
        characters: list[str] = []
        places = array("I")
        blank = True
        for place, character in enumerate(text):
            if character in _UNSEEN:
                continue
            if character.isspace():
                if not blank:
                    characters.append(" ")
                    places.append(place)
                blank = True
                continue
            blank = False
            for folded in _FOLD.get(character, character).casefold():
                characters.append(folded)
                places.append(place)
        self.text = "".join(characters)
        self.places = places

    def find(self, quote: str) -> tuple[int, int] | None:
        """Start and end (exclusive) in the original text, or None."""
        wanted = Folded(quote).text.strip() if quote else ""
        at = self.text.find(wanted) if wanted else -1
        if at < 0:
            return None
        return self.places[at], self.places[at + len(wanted) - 1] + 1


class Prover:
    """Finds quotes in one text (a part of a document that begins at `offset`)."""

    def __init__(self, text: str, offset: int = 0, pages: list[int] | None = None) -> None:
        self._text = text
        self._offset = offset
        self._pages = pages or []
        self._folded: Folded | None = None

    def prove(self, quote: str, item: int | str | None = None) -> Citation | None:
        """The citation of a quote, exact first, then folded; None (and counted) when it does not stand there."""
        found = self.find(quote)
        CITATIONS.labels("yes" if found else "no").inc()
        return None if found is None else msgspec.structs.replace(found, item=item)

    def find(self, quote: str) -> Citation | None:
        """The citation of a quote; None when it does not stand there. Not counted."""
        found = self._find(quote)
        if found is None:
            return None
        start, end = found
        page = page_of(self._pages, self._offset + start)
        return Citation(self._text[start:end], self._offset + start, self._offset + end, page)

    def _find(self, quote: str) -> tuple[int, int] | None:
        quote = unicodedata.normalize("NFC", quote)
        quote = _EDGES.sub("", quote)
        if sum(character.isalnum() for character in quote) < MIN_QUOTE:
            return None
        at = self._text.find(quote)
        if at >= 0:
            return at, at + len(quote)
        if self._folded is None:
            self._folded = Folded(self._text)
        return self._folded.find(quote)
