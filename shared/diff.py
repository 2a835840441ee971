"""What two versions of a prompt have in common and what not, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from shared.jobs import Output
from shared.prompts import Content

_WORDS: Final = re.compile(r"\s+|\w+|[^\w\s]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
MOST_WORDS: Final = 4_000  # of both texts; above it lines are compared: the search grows with the square
MOST_LINES: Final = 20_000  # above it a text counts as replaced


class Change(Output, frozen=True):
    """A stretch of text that is in both, only in the new one, or only in the old one."""

    op: Literal["equal", "insert", "delete"]
    text: str


class MessageDiff(Output, frozen=True, kw_only=True):
    """One message, by its place from 0. `role` is the new one, or the old one where there is no new message."""

    index: int
    role: str
    old_role: str | None
    changes: list[Change]


class PromptDiff(Output, frozen=True, kw_only=True):
    """From one version to another. `members` has old and new value of what else differs."""

    name: str
    from_version: int
    to_version: int
    identical: bool
    messages: list[MessageDiff]
    members: dict[str, Any]


def word_changes(old: str, new: str) -> list[Change]:
    """How `old` becomes `new`: the texts of `equal` and `delete` are `old`, of `equal` and `insert` are `new`."""
    if old == new:
        return [Change("equal", old)] if old else []
    parts = _WORDS.findall(old), _WORDS.findall(new)
    if len(parts[0]) + len(parts[1]) > MOST_WORDS:
        parts = _LINES.findall(old), _LINES.findall(new)
    if len(parts[0]) + len(parts[1]) > MOST_LINES:
        parts = [old], [new]
    return _joined(*parts)


def _joined(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    found: list[Change] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for op, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if op == "equal":
            found.append(Change("equal", "".join(old[old_start:old_end])))
            continue
        if old_end > old_start:
            found.append(Change("delete", "".join(old[old_start:old_end])))
        if new_end > new_start:
            found.append(Change("insert", "".join(new[new_start:new_end])))
    return found


def diff_messages(old: Content, new: Content) -> list[MessageDiff]:
    """Message by message, in their places."""
    found = []
    for index in range(max(len(old.messages), len(new.messages))):
        before = old.messages[index] if index < len(old.messages) else None
        after = new.messages[index] if index < len(new.messages) else None
        role = after.role if after is not None else before.role if before is not None else ""
        changes = word_changes(before.content if before else "", after.content if after else "")
        found.append(
            MessageDiff(index=index, role=role, old_role=before.role if before is not None else None, changes=changes)
        )
    return found


def diff_members(old: Content, new: Content) -> dict[str, Any]:
    """Variables, model and parameters that differ, as {member: {"old", "new"}}; absent ones are null."""
    found: dict[str, Any] = {}
    before, after = (
        {
            "model": content.model,
            "parameters": msgspec.to_builtins(content.parameters),
            **{f"variables.{name}": msgspec.to_builtins(one) for name, one in content.variables.items()},
        }
        for content in (old, new)
    )
    for member in dict.fromkeys([*before, *after]):
        if before.get(member) != after.get(member):
            found[member] = {"old": before.get(member), "new": after.get(member)}
    return found
