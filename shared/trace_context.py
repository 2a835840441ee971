"""W3C Trace Context (Recommendation, level 1; the random flag of level 2): what a client's headers say, and what goes
on to others. Pure; who makes spans is `shared.tracing`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PARENT_CHARACTERS: Final = 55  # of version 00; a later one may go on after a dash
_MOST_PARENT_CHARACTERS: Final = 512
_KNOWN_FLAGS: Final = 0x03  # sampled, random; the others mean nothing that we know

MOST_MEMBERS: Final = 32
MOST_STATE_CHARACTERS: Final = 512  # the standard asks that at least so many are carried on
_LONG_MEMBER: Final = 128  # the first to go where that is too little
_MOST_STATE_READ: Final = 8_192
_MEMBER: Final = re.compile(
    r"(?P<key>[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=(?P<value>[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """A place in a trace: `traceparent` in the form of version 00, and the `tracestate` that belongs to it."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits."""
        return self.traceparent[36:52]

    @property
    def flags(self) -> int:
        """The trace flags; 1 is `sampled`."""
        return int(self.traceparent[53:55], 16)

    @property
    def headers(self) -> dict[str, str]:
        """As request headers."""
        if self.tracestate:
            return {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {TRACEPARENT: self.traceparent}


def context_of(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """The context in the values of all `traceparent` and `tracestate` headers; None when there is none, or one that is
    not valid: then, as the standard says, neither of the two counts."""
    if len(parents) != 1 or (parent := parse_parent(parents[0])) is None:
        return None
    return TraceContext(parent, parse_state(states) if states else "")


def parse_parent(text: str) -> str | None:
    """A `traceparent` as one of version 00; None when it is not valid. Version 00 goes on unchanged; of a later one the
    part is taken that all versions share, of its flags those that we know (section 3.2.4)."""
    if len(text) > _MOST_PARENT_CHARACTERS or (match := _PARENT.match(text)) is None:
        return None
    version, trace_id, span_id, flags = match.groups()
    if version == "ff" or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    if version == "00":
        return text if len(text) == _PARENT_CHARACTERS else None
    if len(text) > _PARENT_CHARACTERS and text[_PARENT_CHARACTERS] != "-":
        return None
    return f"00-{trace_id}-{span_id}-{int(flags, 16) & _KNOWN_FLAGS:02x}"


def parse_state(values: Sequence[str]) -> str:
    """The `tracestate` of one or more headers as one value of at most MOST_STATE_CHARACTERS; "" when there is none or
    it is not valid (then it is dropped whole, section 3.3.1.1). Where it is too long, members over 128 characters go
    first, then those at the end (section 3.3.1.5)."""
    if sum(map(len, values)) > _MOST_STATE_READ:
        return ""
    members = [part for value in values for piece in value.split(",") if (part := piece.strip(" \t"))]
    keys = set()
    for member in members:
        if (match := _MEMBER.fullmatch(member)) is None:
            return ""
        keys.add(match["key"])
    if len(keys) != len(members) or len(members) > MOST_MEMBERS:
        return ""
    if _length(members) > MOST_STATE_CHARACTERS:
        for member in [member for member in reversed(members) if len(member) > _LONG_MEMBER]:
            if _length(members) > MOST_STATE_CHARACTERS:
                members.remove(member)
    while _length(members) > MOST_STATE_CHARACTERS:
        members.pop()
    return ",".join(members)


def _length(members: Sequence[str]) -> int:
    return sum(map(len, members)) + max(0, len(members) - 1)
