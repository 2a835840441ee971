"""A whole answer, before any server's way of sending it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from scripts.dev_model.talk import Talk, text_of
from scripts.dev_model.tokens import counter_of, pieces_of
from scripts.dev_model.tools import plan_calls, tool_answer
from scripts.extractive import fill_schema, reply_text

_counter = itertools.count(1)
CHAT_MODEL: Final = "errand-dev-extractive"
THOUGHT = "I look it up."


class ToolCall(msgspec.Struct):
    """A call of a tool; `pieces` are its arguments as they are streamed."""

    id: str
    name: str
    arguments: str
    pieces: list[str]


class Answer(msgspec.Struct):
    """Text or tool calls, why it ends, and the pieces (a token each) in which it is made. `per_chunk`: how many of them
    go out in one chunk."""

    model: str
    content: str | None
    calls: list[ToolCall]
    finish: str
    pieces: list[str]
    reasoning: list[str] = []
    per_chunk: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of the output."""
        return len(self.pieces) + len(self.reasoning) + sum(len(call.pieces) for call in self.calls)

    def chunks(self, pieces: list[str], least: int = 1) -> Iterator[tuple[str, int]]:
        """The texts of the chunks that these pieces go out in, `least` pieces or more each, and their tokens."""
        size = max(self.per_chunk, least)
        for start in range(0, len(pieces), size):
            chunk = pieces[start : start + size]
            yield "".join(chunk), len(chunk)

    def cut_content(self) -> None:
        """A model that breaks off in its JSON."""
        if self.content:
            self.content = self.content[: len(self.content) // 2]
            self.pieces = pieces_of(self.model, self.content)

    def cut_arguments(self) -> None:
        """A model that breaks off in its first call's arguments."""
        call = self.calls[0]
        call.arguments = call.arguments[: max(1, len(call.arguments) // 2)]
        call.pieces = pieces_of(self.model, call.arguments, arguments=True)

    def think_aloud(self) -> None:
        """A model that says what it does before it calls tools."""
        self.content, self.pieces = THOUGHT, pieces_of(self.model, THOUGHT)


def make_answer(body: dict[str, Any], *, fence_json: bool, reasoning: str) -> Answer:
    """What the request is answered with. `fence_json`: JSON comes as Markdown; `reasoning`: what is thought before."""
    talk, model = Talk(body), model_of(body)
    calls = [
        ToolCall(_call_id(body), name, arguments, pieces_of(model, arguments, arguments=True))
        for name, arguments in (
            (name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in plan_calls(talk)
        )
    ]
    thought = pieces_of(model, reasoning)
    if calls:
        return Answer(model, None, calls, "tool_calls", [], thought)
    content = _content(talk, body.get("response_format") or {}, fence_json)
    pieces, finish = pieces_of(model, content), "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and len(pieces) > limit:
        pieces, finish = pieces[:limit], "length"
        content = "".join(pieces)
    return Answer(model, content, [], finish, pieces, thought)


def _content(talk: Talk, wanted: dict[str, Any], fence_json: bool) -> str:
    if wanted.get("type") == "json_schema":
        filled = fill_schema(talk.reader, wanted["json_schema"]["schema"])
    elif wanted.get("type") == "json_object":
        filled = {"answer": tool_answer(talk) or reply_text(talk.reader)}
    else:
        return tool_answer(talk) or reply_text(talk.reader)
    text = json.dumps(filled, ensure_ascii=False)
    return f"```json\n{text}\n```" if fence_json else text


def _call_id(body: dict[str, Any]) -> str:
    # Of the conversation too: a server that was started anew must not give an id again that stands in it.
    seed = f"{next(_counter)} {json.dumps(body['messages'])}"
    return hashlib.blake2b(seed.encode(), digest_size=12).hexdigest()


def model_of(body: dict[str, Any]) -> str:
    """The name that the request calls the model by."""
    return str(body.get("model") or CHAT_MODEL)


def input_tokens_of(body: dict[str, Any]) -> int:
    """Tokens of a chat request: its messages, their tool calls, tools and schema, and four for each message's frame."""
    count = counter_of(model_of(body))
    total = sum(count(text_of(message.get("content"))) + 4 for message in body["messages"])
    total += sum(count(json.dumps(message["tool_calls"])) for message in body["messages"] if message.get("tool_calls"))
    for extra in ("tools", "response_format"):
        if body.get(extra):
            total += count(json.dumps(body[extra]))
    return total + 3
