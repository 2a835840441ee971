"""From sources to an answer: the sources as fenced data, the answer streamed, its citations proven.

The model is asked to prove each statement by a quote; what is shown of it is the number of the source. A quote counts
only when it stands in a source that was given, and then with its place in the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from shared.metrics import CITATIONS
from shared.search import Quotes, SearchAnswer, SearchCitation, Source
from worker.context import JobContext
from worker.documents.cite import Citation, Prover
from worker.fencing import as_data, fenced
from worker.model.calls import ChatCall
from worker.search.marks import Cite, Marks

MOST_CITATIONS: Final = 50
LEAST_LETTERS: Final = 12  # of a sentence that is its own proof
SENTENCE: Final = re.compile(r"[^\s][^\n]*?(?:(?<![.!?…])[.!?…]+[\"'”’)\]]*(?=\s|\Z)|(?=\n)|\Z)")
_QUOTED: Final = re.compile(r"“([^“”]{12,2000})”|\"([^\"\n]{12,2000})\"|«([^«»]{12,2000})»|„([^„“”]{12,2000})[“”]")
_NUMBER: Final = re.compile(r"\s?\[\d{1,3}\]")


class Cited(msgspec.Struct, frozen=True):
    """A source, and the page table of its document (the start of each page; empty where it has none)."""

    source: Source
    pages: list[int]


class Answered(msgspec.Struct, frozen=True):
    """The answer, and how many of its quotes were proven and dropped."""

    answer: SearchAnswer
    quotes: Quotes


class Sources:
    """The sources of one answer, in which quotes are looked for."""

    def __init__(self, cited: Sequence[Cited]) -> None:
        self.ranks = [one.source.rank for one in cited]
        self._sources = {one.source.rank: one.source for one in cited}
        self._provers = {one.source.rank: Prover(one.source.text, one.source.start, one.pages) for one in cited}
        self._first: dict[str, int] = {}  # the first source in which a quote stands, 0 for none

    def where(self, quote: str, named: int) -> int:
        """The source in which a quote stands, the one that was named if it does there; 0 for none. Counted."""
        if quote not in self._first:
            self._first[quote] = next((rank for rank in self.ranks if self._provers[rank].find(quote) is not None), 0)
        found = self._first[quote]
        if found not in (0, named) and named in self._provers and self._provers[named].find(quote) is not None:
            found = named
        CITATIONS.labels("yes" if found else "no").inc()
        return found

    def cite(self, quote: str, rank: int) -> SearchCitation | None:
        """The citation of a quote in this source (0: in any); None when it does not stand there."""
        for one in self.ranks if rank == 0 else [rank]:
            found = self._provers[one].find(quote)
            if found is not None:
                return _citation(self._sources[one], found)
        return None


def _citation(source: Source, found: Citation) -> SearchCitation:
    return SearchCitation(
        source=source.rank,
        document_id=source.document_id,
        start=found.start,
        end=found.end,
        quote=found.quote,
        page=found.page if found.page is not None else msgspec.UNSET,
    )


async def answer(query: str, sources: Sequence[Cited], context: JobContext, on_text: Callable[[str], None]) -> Answered:
    """Asks the model; `on_text` gets what can be shown as it comes: joined, it is the answer's text. Raises
    JobError."""
    said = await context.wording.main()
    known = Sources(sources)
    marks = Marks(known.ranks, known.where, [query, *(one.source.text for one in sources)])
    shown: list[str] = []

    def show(text: str) -> None:
        if text:
            shown.append(text)
            on_text(text)

    call = ChatCall(
        messages=[*said.messages, {"role": "user", "content": f"{listed(sources)}\n\nQuestion: {query}"}],
        max_tokens=said.parameters.max_tokens,
        temperature=said.temperature(0.0),
    )
    await context.complete("answer", call, on_text=lambda piece: show(marks.feed(piece)))
    show(marks.finish())
    text = "".join(shown)
    citations = list(_citations(text, marks.kept, known))[:MOST_CITATIONS]
    proven = sum(one.quote is not None for one in marks.kept)
    return Answered(SearchAnswer(text=text, citations=citations), Quotes(max(proven, len(citations)), marks.dropped))


def listed(sources: Sequence[Cited]) -> str:
    """The sources as the model sees them: numbered, between one pair of tags."""
    parts = []
    for one in sources:
        title = f"{as_data(one.source.title)}\n" if one.source.title else ""
        parts.append(f"[{one.source.rank}] {title}{as_data(one.source.text)}")
    return fenced("sources", "\n\n".join(parts))


def _citations(text: str, kept: Sequence[Cite], known: Sources) -> Iterator[SearchCitation]:
    """The proven citations, in the order of the answer, each once."""
    seen: set[tuple[int, int, int]] = set()
    for quote, rank in _claims(text, kept):
        found = known.cite(quote, rank)
        if found is not None and (place := (found.source, found.start, found.end)) not in seen:
            seen.add(place)
            yield found


def _claims(text: str, kept: Sequence[Cite]) -> Iterator[tuple[str, int]]:
    """What may stand in a source, and in which (0: any): the quotes of marks, the sentence before a mark without one;
    in an answer without marks its sentences and what stands between quotation marks."""
    for mark in kept:
        if mark.quote is not None:
            yield mark.quote, mark.source
            continue
        before = _NUMBER.sub("", text[max(0, mark.at - 1_500) : mark.at])
        sentences = [one.strip() for one in SENTENCE.findall(before) if one.strip()]
        if sentences and _is_telling(sentences[-1]):
            yield sentences[-1], mark.source
    if kept:
        return
    for match in SENTENCE.finditer(text):
        if _is_telling(match[0]):
            yield match[0].strip(), 0
    for match in _QUOTED.finditer(text):
        quote = next(group for group in match.groups() if group)
        if _is_telling(quote):
            yield quote, 0


def _is_telling(text: str) -> bool:
    return sum(character.isalnum() for character in text) >= LEAST_LETTERS
