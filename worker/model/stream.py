"""Putting an answer together from the chunks of a stream, as the servers that we know send it.

Seen in the wild, and tested in tests/test_profiles.py: a first chunk without choices (Azure), usage in the last chunk
with a choice or in one of its own, stated twice or as zeros, `index` missing or 0 for all tool calls (Ollama), calls
whole in one piece or in many, `finish_reason` "stop" after tool calls, null contents.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shared.errors import UpstreamRefused, UpstreamUnavailable
from shared.stores.events import CallUsage
from worker.model.calls import Progress, ToolCall


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, object] | None = None


class _ToolDelta(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolDelta] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


MOST_TOKENS: Final = 10**9  # of one call; a larger figure is none

Count = float | str | None  # what servers put where a whole number belongs


class Usage(msgspec.Struct):
    """A provider's figures, whichever of them it states."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    total_tokens: Count = None
    input_tokens: Count = None
    output_tokens: Count = None

    def normalised(self) -> CallUsage | None:
        """As we book it; None when nothing is stated. Some leave the tokens of thoughts out of the completion and count
        them in the total only: the total wins."""
        given = _count(self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens)
        made = _count(self.completion_tokens if self.completion_tokens is not None else self.output_tokens)
        if not given and not made:
            return None
        return CallUsage(given, max(made, _count(self.total_tokens) - given))


def _count(stated: Count) -> int:
    """A figure as a number of tokens; 0 for what is none. An answer is never lost for its figures."""
    if not isinstance(stated, int | float) or not 0 <= stated <= MOST_TOKENS:
        return 0
    return round(stated)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    model: str | None = None
    error: msgspec.Raw | None = None


class _Pending:
    """A tool call that is still coming."""

    def __init__(self, index: int | None, call_id: str) -> None:
        self.index = index
        self.id = call_id
        self.name = ""
        self.arguments: list[str] = []


def _is_whole(call: _Pending) -> bool:
    """Whether the arguments of a call have come to their end."""
    try:
        return isinstance(msgspec.json.decode("".join(call.arguments)), dict)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Assembler:
    """One answer in the making. `progress` learns what it has used."""

    def __init__(self, model: str, progress: Progress) -> None:
        self.model = model
        self.finish_reason = ""
        self._progress = progress
        self._pending: list[_Pending] = []

    def take(self, line: bytes) -> list[str]:
        """The new pieces of text in one chunk.

        Raises UpstreamRefused, UpstreamUnavailable, or msgspec.DecodeError for what is no chunk.
        """
        chunk = _decode_chunk(line)
        self.model = chunk.model or self.model
        if chunk.error is not None:
            raise UpstreamUnavailable(f"the model broke off: {bytes(chunk.error).decode()[:300]}")
        if chunk.usage is not None and (stated := chunk.usage.normalised()) is not None:
            self._progress.stated = stated
        texts: list[str] = []
        for choice in chunk.choices or ():
            self.finish_reason = choice.finish_reason or self.finish_reason
            delta = choice.delta
            if delta is None:
                continue
            if delta.refusal:
                raise UpstreamRefused(f"the model declined: {delta.refusal[:300]}")
            if thought := delta.reasoning_content or delta.reasoning:
                self._progress.add(thought)
            if delta.content:
                self._progress.add(delta.content, is_shown=True)
                texts.append(delta.content)
            for piece in delta.tool_calls or ():
                self._add(piece)
        return texts

    def _add(self, piece: _ToolDelta) -> None:
        call = self._call_of(piece)
        function = piece.function or _Function()
        if function.name and not call.name:
            call.name = function.name
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            call.arguments.append(arguments)
        self._progress.add((function.name or "") + (arguments or ""))

    def _call_of(self, piece: _ToolDelta) -> _Pending:
        """The call that a piece belongs to. A new id begins a new call, whatever the index says."""
        last = self._pending[-1] if self._pending else None
        found = next((call for call in reversed(self._pending) if call.index == piece.index), None)
        if piece.index is None:
            found = last
        if found is not None and piece.id and found.id and piece.id != found.id:
            found = next((call for call in self._pending if call.id == piece.id), None)
        elif (
            found is not None
            and not piece.id
            and piece.function is not None
            and piece.function.name
            and _is_whole(found)
        ):
            found = None  # a server without ids: a name after whole arguments begins the next call
        if found is None:
            found = _Pending(piece.index, piece.id or "")
            self._pending.append(found)
        found.id = found.id or piece.id or ""
        return found

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools, each with an id of its own."""
        calls = []
        for number, call in enumerate(self._pending):
            if call.name:
                calls.append(ToolCall(call.id or f"call_{number}", call.name, "".join(call.arguments)))
        return tuple(calls)
