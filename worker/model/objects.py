"""JSON objects as answers: the schema that strict mode asks for, and reading what came."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.errors import BadOutput


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of an answer, also when a model put it into a code fence. Raises BadOutput."""
    stripped = text.strip()
    if stripped.startswith("```"):
        stripped = stripped.partition("\n")[2].rpartition("```")[0]
    try:
        return msgspec.json.decode(stripped, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadOutput(f"The model's answer is no JSON object: {error}") from None


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these members, all required and no others: what strict mode asks for."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
