"""A request as an agent's model reads it: the question, the tools, and what was called for it so far."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import msgspec

from scripts.extractive import Reader
from scripts.extractive.filling import spaced
from scripts.extractive.reading import words

_TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>]*)?>")
_NO_TOOLS = re.compile(
    r"\bno (?:more|further) tools?\b"
    r"|(?:do not|don['’]t|without) (?:call|us)(?:e|ing)? (?:any |more |further )*tools?\b",
    re.IGNORECASE,
)
_ANSWER_NOW = re.compile(r"\banswer\b[^.?!]*\bnow\b|\bnow\b[^.?!]*\banswer\b|\bfinal answer\b", re.IGNORECASE)
DEMAND_CHARACTERS = 2_000  # of a message's end, where it says what is to be done
_FAILED = re.compile(
    r"^\W*(?:error|invalid|failed|failure|exception|bad request)\b|[\"']error[\"']\s*:\s*[^nf\s]", re.IGNORECASE
)
# Verbs that people use for one another when they ask for a thing to be done.
_VERBS = ("search find look retriev lookup seek", "calculat comput evaluat", "read fetch open download visit load")
_ALIKE = {alike: verbs.split()[0] for verbs in _VERBS for alike in verbs.split()}


def text_of(content: Any) -> str:
    """A message's text, whether it came as a string or in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def meanings(text: str) -> set[str]:
    """The words of a text; verbs that ask for the same count as one."""
    return {_ALIKE.get(word.rstrip("e"), word.rstrip("e")) for word in words(spaced(text))}


class Tool:
    """A tool as its definition describes it."""

    def __init__(self, function: dict[str, Any]) -> None:
        self.name = str(function.get("name", ""))
        self.schema: dict[str, Any] = function.get("parameters") or {"type": "object"}
        self.properties: dict[str, dict[str, Any]] = self.schema.get("properties") or {}
        self.required: list[str] = self.schema.get("required") or []
        self.said = meanings(f"{self.name} {function.get('description') or ''}")


class Made(msgspec.Struct):
    """A call that stands in the conversation, and what its tool answered."""

    name: str
    arguments: dict[str, Any] | None  # None: they were no JSON object
    result: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the tool said that it could not."""
        return self.result is not None and bool(_FAILED.search(self.result[:400]))


class Talk:
    """The conversation of one request."""

    def __init__(self, body: dict[str, Any]) -> None:
        messages = [(entry.get("role", "user"), entry) for entry in body["messages"]]
        self.tools = [Tool(entry.get("function") or {}) for entry in body.get("tools") or []]
        self.choice = body.get("tool_choice") or "auto"
        self.parallel = body.get("parallel_tool_calls") is not False
        self.texts = [(role, _plain(text_of(entry.get("content")), role)) for role, entry in messages]
        spoken = [
            at for at, (role, _) in enumerate(messages) if role == "user" or (role in ("system", "developer") and at)
        ]
        last = spoken[-1] if spoken else None
        self.must_answer = last is not None and _demands_an_answer(self.texts, last)
        if self.must_answer and last is not None and any(role == "user" for role, _ in self.texts[:last]):
            asking = [pair for at, pair in enumerate(self.texts) if at != last]  # the demand is not the question
        else:
            asking = self.texts
        self.reader = Reader(asking)
        users = [at for at, (role, _) in enumerate(asking) if role == "user"]
        self.question = self.reader.asked or (_TAG.sub(" ", asking[users[-1]][1]).strip() if users else "")
        self.has_context = self.reader.fenced and not any(role == "tool" for role, _ in messages)
        self.made = _made([entry for _, entry in messages[users[-1] if users else 0 :]])

    @cached_property
    def results(self) -> list[Made]:
        """The calls of this question that were answered."""
        return [call for call in self.made if call.result is not None]


def _demands_an_answer(texts: list[tuple[str, str]], last: int) -> bool:
    text = texts[last][1][-DEMAND_CHARACTERS:]
    # A first question may speak of answers; after calls of tools it is a demand.
    called = any(role == "tool" for role, _ in texts[:last])
    return bool(_NO_TOOLS.search(text) or (called and _ANSWER_NOW.search(text)))


def _made(messages: list[dict[str, Any]]) -> list[Made]:
    found: dict[str, Made] = {}
    for entry in messages:
        for call in entry.get("tool_calls") or []:
            function = call.get("function") or {}
            found[str(call.get("id"))] = Made(str(function.get("name")), _arguments(function.get("arguments")))
        if entry.get("role") == "tool" and (made := found.get(str(entry.get("tool_call_id")))) is not None:
            made.result = text_of(entry.get("content"))
    return list(found.values())


def _arguments(text: Any) -> dict[str, Any] | None:
    try:
        decoded = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, TypeError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _plain(text: str, role: str) -> str:
    return readable(text) if role == "tool" else text


def readable(result: str) -> str:
    """A tool's result as text: the texts inside of JSON a paragraph each, tags taken off."""
    try:
        decoded = msgspec.json.decode(result)
    except msgspec.DecodeError:
        return _TAG.sub("\n\n", result)
    leaves = list(_leaves("", decoded))
    long = [text for _, text in leaves if len(text.split()) > 3]
    return "\n\n".join(long or [f"{name}: {text}".removeprefix(": ") for name, text in leaves])


def _leaves(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(str(key), inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(name, inner)]
    return [] if value is None else [(name, str(value))]
