"""JSON Schemas that clients send: checked when they come in, and used to judge what the model made.

jsonschema-rs with its linear-time regular expressions, and no fetching: a `$ref` to another host is an error.
"""

from __future__ import annotations

from typing import Any, Final

import jsonschema_rs

MAX_ERRORS: Final = 5


class BadSchemaError(ValueError):
    """The schema is no JSON Schema, or refers to something outside itself."""


def _no_fetching(uri: str) -> Any:
    raise ValueError(f"references to {uri} are not followed")


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """A validator. Raises BadSchemaError with one sentence that says what is wrong."""
    try:
        return jsonschema_rs.validator_for(
            schema,
            retriever=_no_fetching,
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        raise BadSchemaError(str(error).partition("\n")[0]) from None


def violations(validator: jsonschema_rs.Validator, value: Any) -> list[str]:
    """Where `value` does not fit, as sentences `<path>: <what>`, a few at the most; empty when it fits."""
    found = []
    for error in validator.iter_errors(value):
        path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        found.append(f"{path}: {error.message}"[:300])
        if len(found) == MAX_ERRORS:
            break
    return found
