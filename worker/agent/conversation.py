"""The conversation of an agent, and how it is made to fit: pure, so that a retry builds the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from worker.fencing import fenced
from worker.model.calls import CHARACTERS_PER_TOKEN, ToolCall, message_characters

Message = dict[str, Any]

KEPT_CHARACTERS: Final = 200  # of a folded tool result
DIGEST_SHARE: Final = 0.5  # of the room for a last answer that goes to what was found
FOLDED: Final = "[Folded to save room: this result had {length:,} characters. Call the tool again if you need it.]"


def of_model(text: str, calls: Sequence[ToolCall]) -> Message:
    """What the model said: text, calls of tools, or both."""
    message: Message = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
            for call in calls
        ]
    return message


def _json(arguments: str) -> str:
    """Arguments that servers take back: some refuse a conversation in which they are no JSON object."""
    try:
        if isinstance(msgspec.json.decode(arguments), dict):
            return arguments
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    return msgspec.json.encode({"invalid": arguments}).decode()


def of_tool(call_id: str, text: str) -> Message:
    """A tool's result, as data."""
    return {"role": "tool", "tool_call_id": call_id, "content": fenced("result", text)}


def tokens_of(messages: Sequence[Message]) -> int:
    """The tokens of a conversation, estimated."""
    return sum(map(message_characters, messages)) // CHARACTERS_PER_TOKEN + 1


def fold(messages: Sequence[Message], most_tokens: int) -> tuple[list[Message], int]:
    """The conversation in at most `most_tokens`, if folding can do that, and how many tool results were folded.

    The oldest tool results go first, those of the last step at the very end; a folded one keeps its beginning and says
    that it was folded. Nothing else is touched.
    """
    found = list(messages)
    folded = 0
    room = most_tokens - tokens_of(found)
    for place, message in enumerate(found):
        if room >= 0:
            break
        content = message.get("content") or ""
        if message["role"] != "tool" or len(content) <= 2 * KEPT_CHARACTERS:
            continue
        begun = content.removeprefix("<result>\n")[:KEPT_CHARACTERS]
        short = f"{fenced('result', begun + '…')}\n{FOLDED.format(length=len(content))}"
        found[place] = {**message, "content": short}
        room += (len(content) - len(short)) // CHARACTERS_PER_TOKEN
        folded += 1
    return found, folded


def digest(goal: str, findings: Sequence[tuple[str, str]], most_tokens: int) -> str:
    """The goal and what the tools have found, (call, result) each, newest first in the choice of what is kept, in at
    most about `most_tokens`: what a last answer is made from when there is no room for the whole conversation."""
    room = round(most_tokens * CHARACTERS_PER_TOKEN * DIGEST_SHARE)
    share = max(KEPT_CHARACTERS, room // max(1, len(findings)))
    kept: list[str] = []
    for call, result in reversed(findings):
        piece = f"{call}:\n{result[:share]}" + ("…" if len(result) > share else "")
        if len(piece) > room:
            break
        room -= len(piece)
        kept.append(piece)
    found = fenced("findings", "\n\n".join(reversed(kept)) or "Nothing was found yet.")
    return f"{goal}\n\nWhat was found so far:\n{found}"
