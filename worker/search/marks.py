"""An answer as it is made, with its proofs taken out: `[2: "exact words"]` becomes `[2]` when the words stand in source
2, and nothing when they stand in none.

What a document may have talked the model into is taken out too: images, and links and addresses that stand in no
source and not in the question; each would tell somebody else what was asked. Text flows at once; only what may become
a mark or an address is held back, and the result is the same however the text is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

HELD: Final = 1_200  # characters of what may become a mark; longer ones are none
REMOVED: Final = "(link removed)"

_NUMBERS = r"(?:sources?|quellen?|docs?|documents?|passages?)?\s{0,2}#?(\d{1,3}(?:\s*[-–,;&]\s*\d{1,3})*)"
_MARK: Final = re.compile(
    rf"[\[【]\s{{0,2}}{_NUMBERS}\s{{0,2}}(?:[:,;†]\s*[\"“”„«‘’'](.+?)[\"“”»‘’']\s{{0,2}})?[\]】]",
    re.IGNORECASE | re.DOTALL,
)
# What a mark is before it is whole: its head, or its head and the beginning of a quote.
_HEAD: Final = re.compile(r"[\[【]\s{0,2}(?:[a-z]{0,9}\s{0,2}#?)?(?:\d[-–\d\s,;&]*)?", re.IGNORECASE)
_QUOTING: Final = re.compile(rf"[\[【]\s{{0,2}}{_NUMBERS}\s{{0,2}}[:,;†]\s*(?:[\"“”„«‘’']|\Z)", re.IGNORECASE)
_LINK: Final = re.compile(r"\[([^\[\]\n]{0,300})\]\(([^()\n]{0,800})\)")
_LINKING: Final = re.compile(r"\[[^\[\]\n]{0,300}(?:\Z|\](?:\Z|\([^()\n]{0,800}\Z))")
# At the beginning of a line: what `[text]` elsewhere leads to.
_DEFINED: Final = re.compile(r"\[([^\[\]\n]{0,300})\]:[ \t]*\n?[ \t]*(\S{0,800}[/.:<]\S{0,800})(?=\s|\Z)")
_DEFINING: Final = re.compile(r"\[[^\[\]\n]{0,300}(?:\Z|\](?:\Z|:[ \t]*(?:\Z|\n?[ \t]*\S{0,800}\Z)))")
_IMAGE: Final = re.compile(r"!\[([^\[\]]{0,300})\](?:\([^()\n]{0,800}\)|\[[^\[\]\n]{0,100}\])")
_IMAGING: Final = re.compile(r"!(?:\Z|\[[^\[\]]{0,300}(?:\Z|\](?:\Z|\([^()\n]{0,800}\Z|\[[^\[\]\n]{0,100}\Z)))")
_ADDRESS: Final = re.compile(
    r"(?:https?|ftp)://[^\s<>\"'`\[\]{}|\\^]{1,800}|data:[a-z]+/[^\s\"'<>)]{1,800}", re.IGNORECASE
)
_SCHEMES: Final = ("http://", "https://", "ftp://", "data:")
_ENDED: Final = re.compile(r"[\s<>\"'`]")
_TAG: Final = re.compile(r"</?([a-zA-Z][a-zA-Z0-9-]{0,20})(?![a-zA-Z0-9-])")
_TAGGING: Final = re.compile(r"</?(?:[a-zA-Z][a-zA-Z0-9-]{0,20})?\Z")
# What a page would load, follow, run, or style itself by.
_LOADING: Final = frozenset(
    (
        "a applet area audio base body button embed form frame frameset iframe image img input ins isindex link math "
        "meta object param picture portal script source style svg table td template track use video xml"
    ).split()
)
_SPECIAL: Final = re.compile(r"[\[【!` <hfdHFD]")
_AFTER_ADDRESS: Final = ".,;:!?)…"


class Cite(msgspec.Struct, frozen=True):
    """A mark that was kept: where it stands in the answer, the source, and its quote (None: it had none)."""

    at: int
    source: int
    quote: str | None


class Marks:
    """Reads an answer piece by piece. `prove(quote, source)` says in which given source a quote stands, that one first;
    0 for none."""

    def __init__(self, sources: Collection[int], prove: Callable[[str, int], int], texts: Sequence[str] = ()) -> None:
        """`texts` are those whose addresses may be shown: sources and question."""
        self.kept: list[Cite] = []
        self.dropped = 0
        self._sources = frozenset(sources)
        self._prove = prove
        self._addresses = {_bare(match[0]) for text in texts for match in _ADDRESS.finditer(text)}
        self._rest = ""
        self._blanks = ""  # before what may be dropped
        self._in_code = False
        self._length = 0
        self._last = ""  # character that was shown

    def feed(self, piece: str) -> str:
        """What can be shown with this piece."""
        return self._read(piece, is_end=False)

    def finish(self) -> str:
        """What was held back."""
        return self._read("", is_end=True)

    def _read(self, piece: str, *, is_end: bool) -> str:
        text = self._rest + piece
        out: list[str] = []
        at = 0
        while at < len(text):
            special = _SPECIAL.search(text, at)
            if special is None:
                self._show(text[at:], out)
                at = len(text)
                break
            if special.start() > at:
                self._show(text[at : special.start()], out)
                at = special.start()
            used = self._special(text[at : at + HELD], is_end or len(text) - at >= HELD, out)
            if not used:
                break
            at += used
        self._rest = text[at:]
        if is_end:
            self._show("", out)
        return "".join(out)

    def _show(self, text: str, out: list[str]) -> None:
        shown = self._blanks + text
        self._blanks = ""
        self._length += len(shown)
        self._last = shown[-1:] or self._last
        out.append(shown)

    def _special(self, text: str, is_whole: bool, out: list[str]) -> int:
        """Deals with what begins here; how many characters of it, 0 when more must come first. `is_whole`: no more
        comes, or none that matters."""
        first = text[0]
        if first == " ":
            self._blanks += " "
            return 1
        if first == "`":
            if not is_whole and text in ("`", "``"):
                return 0
            used = 3 if text.startswith("```") else 1
            self._in_code ^= used == 3
            self._show(text[:used], out)
            return used
        if first in "hfdHFD":
            return self._address(text, is_whole, out)
        if first == "<":
            return self._tag(text, is_whole, out)
        if first == "!":  # in code too: what is code is for a page to say
            return self._replaced(_IMAGE, _IMAGING, text, is_whole, out)
        if self._in_code:
            self._show(first, out)
            return 1
        match = _MARK.match(text)
        if match is not None and not any(map(int, re.findall(r"\d+", match[1]))):
            match = None  # [0]: an index
            is_whole = True
        if match is not None and (match.end() < len(text) or is_whole) and text[match.end() : match.end() + 1] != "(":
            self._mark(match, out)
            return match.end()
        if match is not None and match.end() == len(text) and not is_whole:
            return 0
        if match is None and not is_whole and _may_be_mark(text):
            return 0
        if self._last in ("", "\n"):
            if not is_whole and _DEFINING.match(text):
                return 0
            if (defined := _DEFINED.match(text)) is not None and not self._may_show(defined[2].strip("<>")):
                self._show(defined[1], out)
                return defined.end()
        return self._replaced(_LINK, _LINKING, text, is_whole, out)

    def _mark(self, match: re.Match[str], out: list[str]) -> None:
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        quote: str | None = match[2]
        kept: list[int] = []
        for named in dict.fromkeys(numbers):
            number = named if quote is None else self._prove(quote, named)
            if number in self._sources and number not in kept:
                kept.append(number)
        if not kept:
            self.dropped += 1
            self._blanks = ""
            return
        for number in kept:
            self._show("", out)
            self.kept.append(Cite(self._length, number, quote))
            self._show(f"[{number}]", out)

    def _replaced(
        self, whole: re.Pattern[str], part: re.Pattern[str], text: str, is_whole: bool, out: list[str]
    ) -> int:
        """An image, or a link that leads to a place of its own, is shown as its text."""
        match = whole.match(text)
        if match is None:
            if not is_whole and part.match(text):
                return 0
            # Too long to be looked at, but perhaps an image all the same: with a blank in it it is none.
            self._show("! " if text.startswith("![") else text[0], out)
            return 1
        address = match[2] if whole is _LINK else None
        if address is not None and self._may_show(address.split()[0] if address.split() else ""):
            self._show(match[0], out)
        else:
            self._show(match[1], out)
        return match.end()

    def _address(self, text: str, is_whole: bool, out: list[str]) -> int:
        low = text[:8].lower()
        begun = any(low.startswith(scheme) for scheme in _SCHEMES)
        if not is_whole and any(scheme.startswith(low) for scheme in _SCHEMES):
            return 0
        match = _ADDRESS.match(text) if begun else None
        if match is None:
            if begun and not is_whole and not _ENDED.search(text):
                return 0
            self._show(text[0], out)
            return 1
        if match.end() == len(text) and not is_whole:
            return 0
        address = _bare(match[0])
        self._show(address if self._may_show(address) else REMOVED, out)
        return len(address)

    def _tag(self, text: str, is_whole: bool, out: list[str]) -> int:
        """A tag that would load or lead somewhere is none with a blank in it."""
        if not is_whole and _TAGGING.match(text):
            return 0
        match = _TAG.match(text)
        tag = match[1].lower() if match is not None else ""
        # Any tag with attributes may load by its style.
        is_told = bool(tag) and match is not None and text[match.end() : match.end() + 1] not in ("", ">")
        self._show("< " if tag in _LOADING or is_told else "<", out)
        return 1

    def _may_show(self, address: str) -> bool:
        return _bare(address) in self._addresses or address.startswith("#")


def _may_be_mark(text: str) -> bool:
    """Whether more text may make a mark of this."""
    head = _HEAD.match(text)
    return (head is not None and head.end() == len(text)) or _QUOTING.match(text) is not None


def _bare(address: str) -> str:
    """An address without the marks of the sentence around it."""
    bare = address.rstrip(_AFTER_ADDRESS)
    return bare or address
