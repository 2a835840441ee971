"""Files of queries and what is relevant to them: JSON Lines, TREC topics, TREC qrels.

A line of JSON Lines is `{"query", "relevant": [...], "id"?, "filter"?, "collection"?}`. Something relevant is a text
(the id of a document or chunk, a title, or a file name) or an object with one of `documentId`, `chunkId`, `title`,
`filename`, and with `text` (a passage that must stand in the chunk) and `grade` (1 unless it says otherwise; 0: judged,
and not relevant). Topics are `<top> <num>… <title>… </top>`, or lines of `id<TAB>query`; their judgements come as
qrels, lines of `query 0 name grade`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from shared.filters import filter_problem

Text = Annotated[str, Meta(min_length=1)]
Grade = Annotated[int, Meta(ge=0, le=100)]
REFERENCES: Final = ("documentId", "chunkId", "title", "filename")
_TOPIC: Final = re.compile(r"<top>(.*?)</top>", re.DOTALL | re.IGNORECASE)
_FIELD: Final = re.compile(r"<(num|title)>\s*(?:Number:|Topic:)?\s*(.*?)\s*(?=<|\Z)", re.DOTALL | re.IGNORECASE)


class BadSearchFileError(Exception):
    """A file that cannot be evaluated: where, and why."""

    def __init__(self, path: Path, line: int | None, why: str) -> None:
        super().__init__(f"{path}:{line}: {why}" if line else f"{path}: {why}")


class Relevant(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One judgement. `name` is any of the four references, and what a plain text says."""

    name: Text | None = None
    document_id: Text | None = None
    chunk_id: Text | None = None
    title: Text | None = None
    filename: Text | None = None
    text: Text | None = None
    grade: Grade = 1

    @property
    def references(self) -> dict[str, str]:
        """The references that it has, by their name in JSON; `name` for any."""
        values = (self.name, self.document_id, self.chunk_id, self.title, self.filename)
        return {key: value for key, value in zip(("name", *REFERENCES), values, strict=True) if value is not None}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A query and what is relevant to it. `line` is where it stands in its file."""

    id: str
    query: str
    relevant: tuple[Relevant, ...]
    filter: dict[str, Any] | None = None
    collection: str | list[str] | None = None
    line: int


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    query: Text
    relevant: list[Text | Relevant] = []
    id: str | int | None = None
    filter: dict[str, Any] | None = None
    collection: Text | list[Text] | None = None


def read_questions(path: Path, qrels: Path | None = None) -> list[Question]:
    """The judged queries of a file; `qrels` adds judgements by the queries' ids. Raises BadSearchFileError, also for a
    query that nothing relevant is named for, naming it."""
    text = _text(path)
    start = text.lstrip()[:1]
    if start == "{":
        questions = list(_lines(path, text))
    elif "<top>" in text.lower():
        questions = list(_topics(path, text))
    else:
        questions = list(_pairs(path, text))
    if not questions:
        raise BadSearchFileError(path, None, "holds no queries")
    if qrels is not None:
        judgements = read_qrels(qrels)
        questions = [
            msgspec.structs.replace(one, relevant=(*one.relevant, *judgements.get(one.id, ()))) for one in questions
        ]
    seen: dict[str, int] = {}
    for one in questions:
        if not one.query.strip():
            raise BadSearchFileError(path, one.line, f"query {one.id} is empty")
        if one.id in seen:
            raise BadSearchFileError(path, one.line, f"the id {one.id!r} is that of line {seen[one.id]}, too")
        seen[one.id] = one.line
        if not any(place.grade > 0 for place in one.relevant):
            where = f" in {qrels}" if qrels else "; give `relevant`, or --qrels"
            raise BadSearchFileError(path, one.line, f"nothing is relevant to query {one.id} ({one.query!r}){where}")
    return questions


def read_qrels(path: Path) -> dict[str, list[Relevant]]:
    """Judgements by query id, of lines `query iteration name grade`; a negative grade counts as 0, as in trec_eval. A
    name may hold blanks. Raises BadSearchFileError."""
    found: dict[str, dict[str, Relevant]] = {}
    for number, line in _numbered(_text(path)):
        parts = line.split("\t") if line.count("\t") == 3 else line.split()
        if len(parts) < 4:
            raise BadSearchFileError(path, number, "needs four columns: query, 0, name, grade")
        query, name, grade = parts[0].strip(), " ".join(parts[2:-1]).strip(), parts[-1].strip()
        if not re.fullmatch(r"-?\d{1,9}", grade):
            raise BadSearchFileError(path, number, f"the grade {grade!r} is no whole number")
        if name in found.setdefault(query, {}):
            raise BadSearchFileError(path, number, f"{name!r} is judged twice for query {query}")
        found[query][name] = Relevant(name=name, grade=min(max(int(grade), 0), 100))
    if not found:
        raise BadSearchFileError(path, None, "holds no judgements")
    return {query: list(places.values()) for query, places in found.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadSearchFileError(path, None, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise BadSearchFileError(path, None, f"is no UTF-8 text (byte {error.start})") from None


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, from 1. Only line feeds end a line: JSON may hold other breaks."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _lines(path: Path, text: str) -> Iterator[Question]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in _numbered(text):
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadSearchFileError(path, number, str(error)) from None
        if row.filter is not None and (wrong := filter_problem(row.filter)) is not None:
            raise BadSearchFileError(path, number, f"`filter`: {wrong}")
        yield Question(
            id=_id(path, number, str(number if row.id is None else row.id)),
            query=row.query,
            relevant=tuple(_places(path, number, row.relevant)),
            filter=row.filter,
            collection=row.collection,
            line=number,
        )


def _places(path: Path, number: int, given: Sequence[str | Relevant]) -> Iterator[Relevant]:
    for at, one in enumerate(given):
        place = Relevant(name=one) if isinstance(one, str) else one
        if not place.references and place.text is None:
            named = ", ".join(f"`{name}`" for name in REFERENCES)
            raise BadSearchFileError(path, number, f"relevant[{at}] names nothing: one of {named} or `text` is needed")
        yield place


def _topics(path: Path, text: str) -> Iterator[Question]:
    for match in _TOPIC.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        fields = {name.lower(): " ".join(value.split()) for name, value in _FIELD.findall(match[1])}
        for needed in ("num", "title"):
            if not fields.get(needed):
                raise BadSearchFileError(path, line, f"the topic has no <{needed}>")
        yield Question(id=_id(path, line, fields["num"]), query=fields["title"], relevant=(), line=line)


def _pairs(path: Path, text: str) -> Iterator[Question]:
    for number, line in _numbered(text):
        name, tab, query = line.partition("\t")
        if not tab or not name.strip():
            raise BadSearchFileError(path, number, "is neither JSON nor a topic `id<TAB>query`")
        yield Question(id=_id(path, number, name.strip()), query=query.strip(), relevant=(), line=number)


def _id(path: Path, line: int, name: str) -> str:
    """An id as TREC files can hold it."""
    if not name or name.split() != [name]:
        raise BadSearchFileError(path, line, f"the id {name!r} is empty or holds white space")
    return name
