"""Which of the chunks that a search found are those that were judged: by ids, names, and passages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal
from unicodedata import normalize
from urllib.parse import quote

from scripts.client import ApiError, Client
from scripts.commands.search_files import Question, Relevant

By = Literal["chunk", "document"]
Source = dict[str, Any]
LEAST_SHARE: Final = 0.5  # of a passage that is cut by a chunk's edge,
LEAST_CHARACTERS: Final = 20  # and of it so many


class Filenames:
    """File names of documents, each asked for once: a search does not tell them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names: dict[str, asyncio.Task[str | None]] = {}

    async def learn(self, document_ids: Iterable[str]) -> None:
        """Makes them known."""
        for document_id in document_ids:
            if document_id not in self._names:
                self._names[document_id] = asyncio.create_task(self._ask(document_id))
            await self._names[document_id]

    def of(self, document_id: str) -> str | None:
        """The name of a document that was learned; None where it has none, or is gone."""
        return self._names[document_id].result() if document_id in self._names else None

    async def _ask(self, document_id: str) -> str | None:
        try:
            found = await self._client.call("GET", f"/api/documents/{quote(document_id, safe='')}")
        except ApiError as error:
            if error.problem.get("status") in (404, 410):  # deleted while it was searched
                return None
            raise
        name: str | None = found.get("filename")
        return name


def needs_filenames(questions: Iterable[Question]) -> bool:
    """Whether any judgement may be of a file name."""
    return any({"name", "filename"} & set(place.references) for one in questions for place in one.relevant)


def best_of_documents(sources: Sequence[Source]) -> list[Source]:
    """The best chunk of each document, in order."""
    first: dict[str, Source] = {}
    for source in sources:
        first.setdefault(source["documentId"], source)
    return list(first.values())


def is_meant(place: Relevant, source: Source, filename: str | None, by: By) -> bool:
    """Whether a chunk is what a judgement names; by document its passage does not matter, if it names a document."""
    references = place.references
    for kind, wanted in references.items():
        have = {
            "documentId": source["documentId"] == wanted,
            "chunkId": source["chunkId"] == wanted,
            "title": source.get("title") is not None and _flat(source["title"]) == _flat(wanted),
            "filename": any(_same_file(name, wanted) for name in (filename, source.get("title")) if name),
        }
        if not (any(have.values()) if kind == "name" else have[kind]):
            return False
    if place.text is None or (by == "document" and references):
        return True
    return holds(source["text"], place.text)


def holds(text: str, passage: str) -> bool:
    """Whether a passage stands in a chunk, but for white space; or half of it does, where the chunk's edge cuts it."""
    have, wanted = _flat(text), _flat(passage)
    if wanted in have:
        return True
    least = max(LEAST_CHARACTERS, round(len(wanted) * LEAST_SHARE))
    return any(
        have.endswith(wanted[:length]) or have.startswith(wanted[-length:]) for length in range(least, len(wanted))
    )


def rankings(
    relevant: Sequence[Relevant], runs: Sequence[Sequence[Source]], filenames: Filenames | None, by: By
) -> tuple[list[list[str]], dict[str, int]]:
    """The rankings of one query by keys, and the keys' grades.

    Each judgement is a key. Judgements that one chunk fits are one key, with the best of their grades, in all runs
    alike: one chunk with two passages is one find. A further chunk for a key that was found is judged, and worth
    nothing.
    """
    parent = list(range(len(relevant)))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    def meant(source: Source) -> list[int]:
        name = filenames.of(source["documentId"]) if filenames else None
        return [at for at, place in enumerate(relevant) if is_meant(place, source, name, by)]

    if by == "document":  # judgements of one document are one, also of a document that was not found
        first: dict[str, int] = {}
        for at, place in enumerate(relevant):
            if place.references:
                parent[root(at)] = root(first.setdefault(repr(sorted(place.references.items())), at))
    fits = [[meant(source) for source in run] for run in runs]
    for places in (places for run in fits for places in run):
        for other in places[1:]:
            parent[root(other)] = root(places[0])
    grades: dict[str, int] = {}
    for at, place in enumerate(relevant):
        key = f"#{root(at)}"
        grades[key] = max(grades.get(key, 0), place.grade)
    ranked = []
    for run, found in zip(runs, fits, strict=True):
        keys: list[str] = []
        for source, places in zip(run, found, strict=True):
            key = f"#{root(places[0])}" if places else source["chunkId"]
            if key in keys:
                key = source["chunkId"]
                grades.setdefault(key, 0)
            keys.append(key)
        ranked.append(keys)
    return ranked, grades


def same_place(one: Source, other: Source) -> bool:
    """Whether two chunks, perhaps of two index versions, are the same text: half of the shorter one."""
    if one["chunkId"] == other["chunkId"]:
        return True
    if one["documentId"] != other["documentId"]:
        return False
    common = min(one["end"], other["end"]) - max(one["start"], other["start"])
    return bool(common > 0 and common * 2 >= min(one["end"] - one["start"], other["end"] - other["start"]))


def _flat(text: str) -> str:
    return " ".join(normalize("NFC", text).split())


def _same_file(one: str, other: str) -> bool:
    """`docs/jobs.md` is also `jobs.md`, since an upload may keep the last part only."""
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")
