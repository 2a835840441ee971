"""Rules between the members of a body, as JSON Schema: what `__post_init__` checks is in the OpenAPI document too.

A Struct that has such rules lists them in `RULES`; api/openapi.py adds them to its schema.
"""

from __future__ import annotations

from typing import Any, Final

Rule = dict[str, Any]


def given(name: str) -> Rule:
    """The member is there, and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def absent(name: str) -> Rule:
    """The member is not there, or null."""
    return {"properties": {name: {"type": "null"}}}


def exactly_one_of(*names: str) -> Rule:
    """One of the members, and no other of them."""
    return {"oneOf": [{"allOf": [given(name), *(absent(other) for other in names if other != name)]} for name in names]}


def at_least_one_of(*names: str) -> Rule:
    """One of the members, or more."""
    return {"anyOf": [given(name) for name in names]}


def not_both(one: str, other: str) -> Rule:
    """The members exclude each other."""
    return {"anyOf": [absent(one), absent(other)]}


def needs(name: str, other: str) -> Rule:
    """The member is given only with the other."""
    return {"anyOf": [absent(name), given(other)]}


def some_of(name: str) -> Rule:
    """The list is there, and not empty."""
    return {"required": [name], "properties": {name: {"minItems": 1}}}


def like(name: str, pattern: str, **more: str) -> Rule:
    """The text, where there is one, fits this."""
    return {"properties": {name: {"anyOf": [{"type": "null"}, {"type": "string", "pattern": pattern, **more}]}}}


PRINTABLE: Final = "^[^\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]*$"
VISIBLE: Final = r"\S"
CONTENT: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"  # some text, and no NUL
