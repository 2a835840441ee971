"""Data by a client's JSON Schema: made from the text (or from the facts noted part by part), validated, repaired once,
and each value cited where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from shared.documents import Extracted
from shared.errors import BadOutput, InvalidInput
from shared.prompt_names import EXTRACT
from shared.schemas import BadSchemaError, compile_schema, violations
from shared.specs import ExtractTask
from worker.context import Bounded
from worker.documents.cite import Citation, Prover
from worker.fencing import fenced
from worker.model.calls import ChatCall
from worker.model.objects import parse_object
from worker.tasks.notes import Note

MIN_CITED_LETTERS = 2
WRAPPER = "data"


async def extract_data(
    task: ExtractTask, notes: Sequence[Note], document: Extracted, label: str, model: Bounded
) -> tuple[Any, list[Citation]]:
    """The data and a citation per value that stands in the text, its JSON path as `item`.

    Raises BadOutput when the model's data does not fit the schema, also after it was told why; other JobErrors.
    """
    try:
        validator = compile_schema(task.schema)
    except BadSchemaError as error:
        raise InvalidInput(f"The schema of the extract task is not valid: {error}") from None
    if len(document.text) <= model.settings.chunk_characters:
        source = fenced("document", document.text)
    else:
        facts = "\n\n".join(f"{note.about}: {note.text}\n(“{note.citations[0].quote}”)" for note in notes)
        source = fenced("document", facts or "Nothing was found.")
    said = model.said[EXTRACT]
    temperature = said.temperature(0.0)
    messages = [
        *said.messages,
        {"role": "user", "content": f"{source}\n\nExtract the data that the schema describes."},
    ]
    asked, wrapped = _rooted(task.schema)

    def parsed(text: str) -> Any:
        answer = parse_object(text)
        return answer.get(WRAPPER) if wrapped else answer

    call = ChatCall(list(messages), schema=asked, temperature=temperature)
    answer = parsed((await model.complete(label, call, accept=parse_object)).text)
    wrong = violations(validator, answer)
    if wrong:
        shown = msgspec.json.encode(answer).decode()
        messages += [
            {"role": "assistant", "content": shown},
            {
                "role": "user",
                "content": "This does not fit the schema:\n" + "\n".join(wrong) + "\nCorrect it.",
            },
        ]

        def accept(text: str) -> None:
            if still := violations(validator, parsed(text)):
                raise BadOutput(f"The extracted data does not fit the schema, also after one repair: {still[0]}")

        finished = await model.complete(
            f"{label}/repair", ChatCall(messages, schema=asked, temperature=temperature), accept=accept
        )
        answer = parsed(finished.text)
    # In a thread: folding millions of characters must not stop the heartbeat of this worker's other jobs.
    return answer, await asyncio.to_thread(_cite, answer, notes, document)


def _rooted(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema as models take it: its root must be an object, so any other is put into one; and whether it was."""
    if schema.get("type") == "object":
        return schema, False
    definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions", "$schema") if name in schema}
    inner = {name: value for name, value in schema.items() if name not in definitions}
    return {
        **definitions,
        "type": "object",
        "properties": {WRAPPER: inner},
        "required": [WRAPPER],
        "additionalProperties": False,
    }, True


def _cite(data: Any, notes: Sequence[Note], document: Extracted) -> list[Citation]:
    """Where each value stands: in a quote noted while reading, else anywhere in the text."""
    prover = Prover(document.text, 0, document.pages)
    found = []
    for path, value in _leaves(data, "$"):
        text = _written(value)
        if sum(character.isalnum() for character in text) < MIN_CITED_LETTERS:
            continue
        noted = next(
            (
                note.citations[0]
                for note in notes
                if note.citations and text.casefold() in note.citations[0].quote.casefold()
            ),
            None,
        )
        citation = msgspec.structs.replace(noted, item=path) if noted else prover.prove(text, path)
        if citation is not None:
            found.append(citation)
    return found


def _leaves(data: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(data, dict):
        return [leaf for name, value in data.items() for leaf in _leaves(value, f"{path}.{name}")]
    if isinstance(data, list):
        return [leaf for index, value in enumerate(data) for leaf in _leaves(value, f"{path}[{index}]")]
    return [] if data is None or isinstance(data, bool) else [(path, data)]


def _written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
