"""What differs between two versions of a prompt: word by word in the messages, and member by member beside them."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from shared.audit import differences
from shared.jobs import Output
from shared.prompts import Content
from shared.specs import ChatMessage

STEPS: Final = 3_000_000  # of the search, for all messages together: about a second at the worst
_WORDS: Final = re.compile(r"\w+|\s+|[^\w\s]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")

Op = Literal["equal", "insert", "delete"]


class TextChange(Output, frozen=True):
    """A piece of a text that both have (`equal`), or only the new (`insert`) or the old (`delete`)."""

    op: Op
    text: str


class MemberChange(Output, frozen=True):
    """A value before and after; null where there was or is none."""

    old: Any
    new: Any


class MessageDiff(Output, frozen=True):
    """A message that differs, by its place from 0. `role` is the new one (null: it is gone), `previousRole` the one
    before (null: it was not there). The texts of all `changes` but `insert` are the old content, those of all but
    `delete` the new."""

    index: int
    role: str | None
    previous_role: str | None
    changes: list[TextChange]


class PromptDiff(Output, frozen=True, kw_only=True):
    """What differs between two versions: messages, variables by name, the model (null: the same), and parameters."""

    name: str
    from_version: int = msgspec.field(name="from")
    to_version: int = msgspec.field(name="to")
    messages: list[MessageDiff]
    variables: dict[str, MemberChange]
    model: MemberChange | None
    parameters: dict[str, MemberChange]


class _Steps:
    """How much work is left for a search."""

    def __init__(self, left: int) -> None:
        self.left = left


def diff(name: str, old: Content, new: Content, numbers: tuple[int, int]) -> PromptDiff:
    """What differs between two contents; messages are compared place by place. Takes a second at the most, so for long
    ones not on the event loop."""
    steps = _Steps(STEPS)
    before, after = msgspec.to_builtins(_beside(old)), msgspec.to_builtins(_beside(new))
    return PromptDiff(
        name=name,
        from_version=numbers[0],
        to_version=numbers[1],
        messages=[
            _message(place, _at(old.messages, place), _at(new.messages, place), steps)
            for place in range(max(len(old.messages), len(new.messages)))
            if _at(old.messages, place) != _at(new.messages, place)
        ],
        variables=_members(before["variables"], after["variables"], is_deep=False),
        model=None if old.model == new.model else MemberChange(old.model, new.model),
        parameters=_members(before["parameters"], after["parameters"], is_deep=True),
    )


def _beside(content: Content) -> dict[str, Any]:
    return {"variables": content.variables, "parameters": content.parameters or {}}


def _members(old: Any, new: Any, *, is_deep: bool) -> dict[str, MemberChange]:
    if is_deep:
        return {path: MemberChange(*change) for path, change in differences(old, new).items()}
    names = [*old, *(name for name in new if name not in old)]
    return {name: MemberChange(old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _at(messages: Sequence[ChatMessage], place: int) -> ChatMessage | None:
    return messages[place] if place < len(messages) else None


def _message(place: int, old: ChatMessage | None, new: ChatMessage | None, steps: _Steps) -> MessageDiff:
    return MessageDiff(
        index=place,
        role=new.role if new else None,
        previous_role=old.role if old else None,
        changes=_changes(old.content if old else "", new.content if new else "", steps),
    )


def changes(old: str, new: str) -> list[TextChange]:
    """What differs between two texts: by words and white space; where that would take too long, by lines, or else as a
    whole."""
    return _changes(old, new, _Steps(STEPS))


def _changes(old: str, new: str, steps: _Steps) -> list[TextChange]:
    for pieces in (_WORDS, _LINES):
        # Half of what is left: so a message that is too much for words can still be compared by lines, and so can those
        # that come after it.
        share = _Steps(steps.left // 2)
        a, b = pieces.findall(old), pieces.findall(new)
        found = _compared(a, b, share)
        steps.left -= steps.left // 2 - share.left
        if found is not None:
            return found
    return _joined([("delete", old), ("insert", new)])


def _compared(a: list[str], b: list[str], steps: _Steps) -> list[TextChange] | None:
    """The same for lists of pieces; None when it would take more steps."""
    first = 0
    while first < min(len(a), len(b)) and a[first] == b[first]:
        first += 1
    last = 0
    while last < min(len(a), len(b)) - first and a[-1 - last] == b[-1 - last]:
        last += 1
    middle = _shortest(a[first : len(a) - last], b[first : len(b) - last], steps)
    if middle is None:
        return None
    return _joined([*(("equal", piece) for piece in a[:first]), *middle, *(("equal", p) for p in a[len(a) - last :])])


def _shortest(a: list[str], b: list[str], steps: _Steps) -> list[tuple[Op, str]] | None:
    """The shortest way from a to b (Myers, An O(ND) Difference Algorithm, 1986), None when it would take more steps.

    Not difflib: its time for texts of few different words grows with the cube of their length.
    """
    trace: list[array[int]] = []  # by distance: how far into a, on the diagonals from -distance to distance, by twos
    for distance in range(len(a) + len(b) + 1):
        reached = array("i")
        for place in range(distance + 1):
            begin = x = _begin(trace, distance, place)[0]
            y = x - (2 * place - distance)
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            steps.left -= 1 + x - begin
            reached.append(x)
            if x >= len(a) and y >= len(b):
                return _walked_back(a, b, trace)
        if steps.left < 0:
            return None
        trace.append(reached)
    raise AssertionError("the end is never further than all deletions and insertions")


def _begin(trace: Sequence[array[int]], distance: int, place: int) -> tuple[int, int, bool]:
    """Where a diagonal is entered from those of the distance before: (how far into a, from where, by an insertion?)."""
    if distance == 0:
        return 0, 0, False
    before = trace[distance - 1]
    if place == 0 or (place != distance and before[place - 1] < before[place]):
        return before[place], before[place], True
    return before[place - 1] + 1, before[place - 1], False


def _walked_back(a: list[str], b: list[str], trace: Sequence[array[int]]) -> list[tuple[Op, str]]:
    """The way that came to the end in one more than these distances."""
    way: list[tuple[Op, str]] = []
    x, y = len(a), len(b)
    for distance in range(len(trace), 0, -1):
        begin, from_x, is_insert = _begin(trace, distance, (x - y + distance) // 2)
        way += [("equal", piece) for piece in reversed(a[begin:x])]
        y -= x - begin
        way.append(("insert", b[y - 1]) if is_insert else ("delete", a[from_x]))
        x, y = from_x, y - is_insert
    way += [("equal", piece) for piece in reversed(a[:x])]
    return way[::-1]


def _joined(pieces: Sequence[tuple[Op, str]]) -> list[TextChange]:
    """Neighbours of one kind as one; between two equal pieces what was deleted stands before what was inserted."""
    found: list[TextChange] = []
    gap: dict[Op, list[str]] = {"delete": [], "insert": [], "equal": []}

    def close(*ops: Op) -> None:
        for op in ops:
            if text := "".join(gap[op]):
                found.append(TextChange(op=op, text=text))
            gap[op] = []

    for op, text in pieces:
        if op == "equal":
            close("delete", "insert")
        else:
            close("equal")
        gap[op].append(text)
    close("equal", "delete", "insert")
    return found
