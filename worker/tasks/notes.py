"""Reading one part of a document: the schema that the model fills, and its notes with proven quotes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shared.prompt_names import READ
from shared.specs import AnalysisTask, ExtractTask, KeyPointsTask, QuestionsTask, SummaryTask
from worker.context import Bounded
from worker.documents.chunk import Part
from worker.documents.cite import Citation, Prover
from worker.fencing import fenced
from worker.model.calls import ChatCall
from worker.model.objects import object_schema, parse_object

POINTS_PER_PART: Final = 6
QUOTES_PER_SUMMARY: Final = 3


class Note(msgspec.Struct, frozen=True):
    """One finding of one task: its text, what it is about (a question's number from 1, a field's name), its proof."""

    text: str
    citations: tuple[Citation, ...] = ()
    about: int | str | None = None


class PartNotes(msgspec.Struct, frozen=True):
    """What one part gave, a list per task."""

    part: Part
    tasks: list[list[Note]]


def of_task(read: Sequence[PartNotes], index: int) -> list[Note]:
    """All notes of one task, in the document's order."""
    return [note for notes in read for note in notes.tasks[index]]


async def read_part(
    part: Part,
    count: int,
    title: str | None,
    tasks: Sequence[AnalysisTask],
    prover: Prover,
    label: str,
    model: Bounded,
) -> PartNotes:
    """One call for all tasks that read notes. Raises JobError."""
    asked = {
        f"task{index + 1}": schema for index, task in enumerate(tasks) if (schema := _schema(task, count)) is not None
    }
    if not asked:
        return PartNotes(part, [[] for _ in tasks])
    schema = object_schema(asked)
    place = f"Part {part.index + 1} of {count} of the document" + (f" “{title}”" if title else "")
    wishes = "\n".join(
        f"task{index + 1}: {_wish(task)}" for index, task in enumerate(tasks) if f"task{index + 1}" in asked
    )
    said = model.said[READ]
    call = ChatCall(
        messages=[
            *said.messages,
            {"role": "user", "content": f"{place}:\n{fenced('document', part.text)}\n\nTasks:\n{wishes}"},
        ],
        schema=schema,
        strict=True,
        temperature=said.temperature(0.0),
    )
    finished = await model.complete(label, call, accept=parse_object)
    answer = parse_object(finished.text)
    return PartNotes(part, [_notes(task, answer.get(f"task{index + 1}"), prover) for index, task in enumerate(tasks)])


def _array(items: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _schema(task: AnalysisTask, count: int) -> dict[str, Any] | None:
    quote = _text("The sentence of the document that says so, copied letter by letter")
    match task:
        case SummaryTask():
            return object_schema(
                {
                    "summary": _text("A summary of this part, in at most five sentences"),
                    "quotes": _array(quote, f"Up to {QUOTES_PER_SUMMARY} sentences that the summary rests on"),
                }
            )
        case KeyPointsTask():
            point = object_schema({"point": _text("One main point, in one sentence"), "quote": quote})
            return _array(point, f"Up to {POINTS_PER_PART} main points of this part, the most important first")
        case QuestionsTask():
            answer = object_schema(
                {
                    "question": {"type": "integer", "description": "The number of the question"},
                    "answer": _text("The answer that this part gives"),
                    "quote": quote,
                }
            )
            return _array(answer, "One entry for each question that this part answers; none for the others")
        case ExtractTask() if count > 1:
            fact = object_schema(
                {
                    "field": _text("Path of the field in the schema"),
                    "value": _text("Its value"),
                    "quote": quote,
                }
            )
            return _array(fact, "Every value in this part that belongs into the wanted data")
        case _:
            return None  # data of a short document is extracted from its text in one call


def _wish(task: AnalysisTask) -> str:
    match task:
        case SummaryTask():
            return "Summarise the document."
        case KeyPointsTask():
            return "Name the main points."
        case QuestionsTask(questions=questions):
            return "Answer these questions:\n" + "\n".join(f"{n}. {text}" for n, text in enumerate(questions, 1))
        case ExtractTask(schema=schema):
            return f"Find the data that this JSON Schema describes:\n{msgspec.json.encode(schema).decode()}"


def _notes(task: AnalysisTask, answer: Any, prover: Prover) -> list[Note]:
    """The notes in a model's answer. What has not the asked form is passed over: models add and forget members."""
    match task:
        case SummaryTask() if isinstance(answer, dict) and isinstance(answer.get("summary"), str):
            quotes = answer.get("quotes")
            found = [
                prover.prove(quote) for quote in (quotes if isinstance(quotes, list) else []) if isinstance(quote, str)
            ]
            text = answer["summary"].strip()
            return [Note(text, tuple(filter(None, found)))] if text else []
        case KeyPointsTask():
            return [
                Note(entry["point"].strip(), _proof(entry, prover))
                for entry in _entries(answer, "point")[:POINTS_PER_PART]
            ]
        case QuestionsTask(questions=questions):
            return [
                Note(entry["answer"].strip(), proof, entry["question"])
                for entry in _entries(answer, "answer")
                if isinstance(entry.get("question"), int)
                and 1 <= entry["question"] <= len(questions)
                # An answer without a quote that stands in the text is not from the document.
                and (proof := _proof(entry, prover))
            ]
        case ExtractTask():
            return [
                Note(entry["value"].strip(), proof, str(entry.get("field", "")))
                for entry in _entries(answer, "value")
                if (proof := _proof(entry, prover))
            ]
        case _:
            return []


def _entries(answer: Any, member: str) -> list[dict[str, Any]]:
    return [
        entry
        for entry in (answer if isinstance(answer, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get(member), str) and entry[member].strip()
    ]


def _proof(entry: dict[str, Any], prover: Prover) -> tuple[Citation, ...]:
    quote = entry.get("quote")
    found = prover.prove(quote) if isinstance(quote, str) else None
    return (found,) if found else ()
