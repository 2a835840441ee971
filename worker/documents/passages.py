"""Finding passages in documents by their words: BM25 over parts of about 1,200 characters, indexed at first use.

The ranking is that of Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
"""

from __future__ import annotations

import asyncio
import math
import re
import unicodedata
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from shared.documents import Extracted, page_of
from shared.errors import InvalidInput, JobError
from shared.stores.documents import ReadyDocument
from worker.documents.chunk import Part, split
from worker.documents.library import Library

PASSAGE_CHARACTERS: Final = 1_200
MAX_QUERY_TERMS: Final = 64
K1: Final = 1.2  # how soon repetition of a term stops counting
B: Final = 0.75  # how much long passages are held back

# Scripts that put no space between words are taken character by character.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Hit(msgspec.Struct, frozen=True):
    """A passage that was found; `part` gives its offsets in the document, in code points."""

    document_id: str
    title: str | None
    part: Part
    page: int | None
    score: float


class Found(msgspec.Struct, frozen=True):
    """The best passages first; `searched` documents were looked through, `left_out` says which were not and why."""

    hits: list[Hit]
    searched: int
    left_out: list[str]


class Index:
    """The passages of one document by their terms."""

    def __init__(self, extracted: Extracted, title: str | None) -> None:
        self.title = title
        self.pages = extracted.pages
        self.characters = len(extracted.text)
        self.parts = split(extracted.text, PASSAGE_CHARACTERS)
        self.lengths = array("I")
        self.postings: dict[str, array[int]] = {}  # term → passage, count, passage, count, …
        for number, part in enumerate(self.parts):
            counts = Counter(terms(part.text))
            self.lengths.append(counts.total())
            for term, count in counts.items():
                self.postings.setdefault(term, array("I")).extend((number, count))


def terms(text: str) -> list[str]:
    """The words of a text, without differences of case, accents and the plural's s."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return [_stem(word) for word in _WORDS.findall(plain)]


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def rank(indexes: Sequence[tuple[str, Index]], query: str, limit: int) -> list[Hit]:
    """The `limit` best passages of the documents (id, index) for a query; none when no word of it occurs."""
    wanted = list(dict.fromkeys(terms(query)))[:MAX_QUERY_TERMS]
    passages = sum(len(index.parts) for _, index in indexes)
    length = sum(sum(index.lengths) for _, index in indexes) / max(passages, 1)
    found_in = {
        term: sum(len(index.postings[term]) // 2 for _, index in indexes if term in index.postings) for term in wanted
    }
    known = [term for term in wanted if found_in[term]]
    # All words count, but a passage is found by one that not every second passage has, if there is such a word.
    telling = {term for term in known if found_in[term] <= passages / 2} or set(known)
    scored: list[tuple[float, int, int]] = []
    for place, (_, index) in enumerate(indexes):
        scores: dict[int, float] = {}
        for term in sorted(known, key=lambda term: term not in telling):
            weight = math.log(1 + (passages - found_in[term] + 0.5) / (found_in[term] + 0.5))
            postings = index.postings.get(term, array("I"))
            for number, count in zip(postings[::2], postings[1::2], strict=True):
                if term not in telling and number not in scores:
                    continue
                held_back = K1 * (1 - B + B * index.lengths[number] / max(length, 1))
                scores[number] = scores.get(number, 0.0) + weight * count * (K1 + 1) / (count + held_back)
        scored += [(-score, place, number) for number, score in scores.items()]
    hits = []
    for score, place, number in sorted(scored)[:limit]:
        document_id, index = indexes[place]
        part = index.parts[number]
        hits.append(Hit(document_id, index.title, part, page_of(index.pages, part.start), -score))
    return hits


class Passages:
    """Search over a worker's documents. At most `limit_characters` are searched at a time, and kept indexed."""

    def __init__(self, library: Library, limit_characters: int) -> None:
        self._library = library
        self._limit = limit_characters
        self._kept: OrderedDict[tuple[str, str], Index] = OrderedDict()
        self._characters = 0

    async def search(
        self, tenant: str, query: str, *, documents: Sequence[str] = (), collection: str | None = None, limit: int
    ) -> Found:
        """Searches these documents, and those of the collection that are ready; without both, all of the tenant's.

        The newest come first when there are more than the bound allows.
        """
        left_out: list[str] = []
        wanted = [ReadyDocument(document_id) for document_id in dict.fromkeys(documents)]
        if collection is not None or not wanted:
            listed, more = await self._library.ready(tenant, collection)
            wanted += [document for document in listed if document.id not in documents]
            if more:
                left_out.append(f"older documents: only the {len(listed)} newest were looked through")
        indexes: list[tuple[str, Index]] = []
        characters = over = 0
        for document in wanted:
            if characters + document.characters > self._limit:
                over += 1
                continue
            try:
                index = await self._index(tenant, document.id, listed=document.characters > 0)
            except JobError as error:
                left_out.append(f"{document.id}: {error.message}")
                continue
            if characters + index.characters > self._limit:
                over += 1
                continue
            characters += index.characters
            indexes.append((document.id, index))
        if over:
            left_out.append(f"{over} documents: one search looks through {self._limit:,} characters at the most")
        return Found(await asyncio.to_thread(rank, indexes, query, limit), len(indexes), left_out)

    async def _index(self, tenant: str, document_id: str, *, listed: bool) -> Index:
        """A document's index; one that was not just `listed` is looked up, since it may be gone. Raises JobError."""
        key = (tenant, document_id)
        if key in self._kept:
            if not listed:
                await self._library.collection_of(tenant, document_id)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        extracted, title = await self._library.load(tenant, document_id)
        if len(extracted.text) > self._limit:
            raise InvalidInput(f"it has {len(extracted.text):,} characters; a search looks through {self._limit:,}")
        index = await asyncio.to_thread(Index, extracted, title)
        self._keep(key, index)
        return index

    def _keep(self, key: tuple[str, str], index: Index) -> None:
        if key not in self._kept:
            self._characters += index.characters
        self._kept[key] = index
        while self._characters > self._limit and len(self._kept) > 1:
            self._characters -= self._kept.popitem(last=False)[1].characters
