"""Strict decoding of what clients send: errors name their JSON path."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

import msgspec

from shared.errors import RefusedError

MAX_EXACT: Final = 2**53  # above it a float does not tell whole numbers apart
_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_NAMED = re.compile(r"`(?P<field>\w+)` ")  # our own sentences begin with the field that they are about
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode_body(body: bytes, kind: Any) -> Any:
    """`body` as `kind`. Raises RefusedError `malformed_request` when it is no JSON, `invalid_request` when it is
    JSON of another shape; the latter names the path."""
    if not body.strip():
        raise RefusedError("malformed_request", "The body is empty; a JSON object is expected.")
    try:
        try:
            return _decoder(kind).decode(body)
        except msgspec.ValidationError as error:
            if "got `float`" in str(error):
                # 2.0 is a whole number to JSON Schema, and some clients write them so.
                try:
                    return msgspec.convert(_whole(msgspec.json.decode(body)), kind)
                except msgspec.ValidationError as left:
                    error = left
            # The decoder stops at the first wrong member; what follows may be no JSON at all.
            msgspec.json.decode(body)
            path, message = explain(error)
            raise RefusedError("invalid_request", f"{path}: {message}", errors=((path, message),)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError("malformed_request", f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise RefusedError("malformed_request", "The body is nested too deeply.") from None


def _whole(value: Any) -> Any:
    """The value with its numbers that are whole as integers."""
    match value:
        case float() if value.is_integer() and abs(value) < MAX_EXACT:
            return int(value)
        case dict():
            return {name: _whole(one) for name, one in value.items()}
        case list():
            return [_whole(one) for one in value]
    return value


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """A validation error as (JSON path, sentence). For an unknown or missing field the path is that field's."""
    match = _PATH.match(str(error))
    what, path = (match["what"], match["path"] or "$") if match else (str(error), "$")
    if unknown := _UNKNOWN.fullmatch(what):
        return f"{path}.{unknown['field']}", "unknown field"
    if missing := _MISSING.fullmatch(what):
        return f"{path}.{missing['field']}", "this field is required"
    if named := _NAMED.match(what):
        return f"{path}.{named['field']}", what
    return path, what
