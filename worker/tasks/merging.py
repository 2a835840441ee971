"""Combining the notes of a long document into one answer; citations come from the notes that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shared.prompt_names import MERGE
from worker.context import Bounded
from worker.documents.cite import Citation
from worker.fencing import fenced
from worker.model.calls import ChatCall
from worker.model.objects import object_schema, parse_object
from worker.tasks.notes import Note
from worker.tasks.side_by_side import side_by_side

MAX_POINTS: Final = 10
NUMBERS: Final = {
    "type": "array",
    "items": {"type": "integer"},
    "description": "Numbers of the notes that it rests on",
}


async def merge_summary(notes: Sequence[Note], label: str, model: Bounded) -> tuple[str, list[Citation]]:
    """One summary from the parts' summaries, and its citations. No call when there is only one. Raises JobError."""
    if not notes:
        return "", []
    if len(notes) == 1:
        return notes[0].text, list(notes[0].citations)
    schema = object_schema(
        {
            "summary": {"type": "string", "description": "The summary of the whole document"},
            "sources": NUMBERS,
        }
    )

    def build(entry: dict[str, Any], group: Sequence[Note]) -> list[Note]:
        text = str(entry.get("summary") or "").strip()
        return [Note(text, _cited(entry, group, default_all=True))] if text else []

    merged = await _merge(notes, "Write one summary of the whole document.", schema, build, label, model, single=True)
    return merged[0].text, list(merged[0].citations)


async def merge_points(notes: Sequence[Note], label: str, model: Bounded) -> list[Note]:
    """The most important points, without repetition. No call when they are few already. Raises JobError."""
    if len(notes) <= MAX_POINTS:
        return list(notes)
    point = object_schema(
        {"point": {"type": "string", "description": "One main point, in one sentence"}, "sources": NUMBERS}
    )
    schema = object_schema(
        {"points": {"type": "array", "items": point, "description": f"The {MAX_POINTS} main points of all"}}
    )

    def build(answer: dict[str, Any], group: Sequence[Note]) -> list[Note]:
        entries = answer.get("points")
        return [
            Note(str(entry["point"]).strip(), _cited(entry, group))
            for entry in (entries if isinstance(entries, list) else [])[:MAX_POINTS]
            if isinstance(entry, dict) and str(entry.get("point") or "").strip()
        ]

    wish = f"Choose the {MAX_POINTS} most important points; join those that say the same."
    return (await _merge(notes, wish, schema, build, label, model))[:MAX_POINTS]


async def merge_answers(questions: Sequence[str], notes: Sequence[Note], label: str, model: Bounded) -> list[Note]:
    """One answer per question, with an empty text where no part answers it. Raises JobError."""
    schema = object_schema(
        {"answer": {"type": "string", "description": "The answer to the question"}, "sources": NUMBERS}
    )

    def build(entry: dict[str, Any], group: Sequence[Note]) -> list[Note]:
        text = str(entry.get("answer") or "").strip()
        return [Note(text, _cited(entry, group, default_all=True))] if text else []

    async def answer(number: int, question: str) -> Note:
        about = [note for note in notes if note.about == number]
        if len(about) > 1:
            wish = f"Answer this question from the notes: {question}"
            about = await _merge(about, wish, schema, build, f"{label}/{number}", model, single=True)
        return about[0] if about else Note("")

    return await side_by_side(answer(number, question) for number, question in enumerate(questions, 1))


async def _merge(
    notes: Sequence[Note],
    wish: str,
    schema: dict[str, Any],
    build: Callable[[dict[str, Any], Sequence[Note]], list[Note]],
    label: str,
    model: Bounded,
    *,
    single: bool = False,
) -> list[Note]:
    """Combines notes in groups that fit one call, and the results again, until one group is left.

    Falls back to the notes themselves where a model's answer is empty, so that nothing read is lost.
    """
    size = model.settings.chunk_characters
    level = 0
    current = list(notes)
    while True:
        groups = _groups(current, size)
        alone = len(groups) == 1 and level == 0
        merged = [
            note
            for notes_of_group in await side_by_side(
                _combine(group, len(groups), wish, schema, build,
                         label if alone else f"{label}/{level + 1}.{index + 1}", model, single)
                for index, group in enumerate(groups)
            )
            for note in notes_of_group
        ]  # fmt: skip
        if len(groups) == 1:
            return merged
        current, level = merged, level + 1


async def _combine(
    group: Sequence[Note],
    groups: int,
    wish: str,
    schema: dict[str, Any],
    build: Callable[[dict[str, Any], Sequence[Note]], list[Note]],
    step: str,
    model: Bounded,
    single: bool,
) -> list[Note]:
    """The notes that a group becomes."""
    if len(group) == 1:
        return list(group)
    # Each level at least halves the notes, so that it ends; on the last one there are MAX_POINTS.
    most = 1 if single else min(MAX_POINTS, max(1, len(group) // 2) if groups > 1 else MAX_POINTS)
    room = model.settings.chunk_characters // 2
    listed = "\n".join(f"[{n}] {note.text[:room]}" for n, note in enumerate(group, 1))
    said = model.said[MERGE]
    call = ChatCall(
        messages=[
            *said.messages,
            {"role": "user", "content": f"{fenced('notes', listed)}\n\n{wish}"},
        ],
        schema=schema,
        strict=True,
        temperature=said.temperature(0.0),
    )
    finished = await model.complete(step, call, accept=parse_object)
    return (build(parse_object(finished.text), group) or list(group))[:most]


def _groups(notes: Sequence[Note], size: int) -> list[list[Note]]:
    """The notes in runs that fit one call, at least two to a run."""
    groups: list[list[Note]] = [[]]
    used = 0
    for note in notes:
        if len(groups[-1]) >= 2 and used + len(note.text) > size:
            groups.append([])
            used = 0
        groups[-1].append(note)
        used += len(note.text)
    return groups


def _cited(entry: dict[str, Any], group: Sequence[Note], *, default_all: bool = False) -> tuple[Citation, ...]:
    """Citations of the notes that an entry names; of all when it names none that exist and that is asked for."""
    numbers = entry.get("sources")
    chosen = [
        group[number - 1]
        for number in (numbers if isinstance(numbers, list) else [])
        if isinstance(number, int) and 1 <= number <= len(group)
    ]
    if not chosen and default_all:
        chosen = list(group)
    return tuple(dict.fromkeys(citation for note in chosen for citation in note.citations))
