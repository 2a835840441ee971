"""What a model is asked, and what it answers: values only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from shared.stores.events import CallUsage

CHARACTERS_PER_TOKEN: Final = 4  # for estimates only; usage that the provider states wins
Count = Callable[[str], int]  # the tokens of a piece of text
CHUNK_CHARACTERS: Final = 16  # a chunk that is longer has several tokens
MESSAGE_FRAME: Final = 8  # characters for a message's role and marks


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model wants to make; `arguments` is JSON as the model wrote it, perhaps broken."""

    id: str
    name: str
    arguments: str


class ChatCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request for a completion. `schema`: the answer must be JSON that fits it; `strict` only for our own. `tools`
    are in the form of OpenAI's API; with `no_tools` they stay known to the model, which must answer all the same."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None
    schema: dict[str, Any] | None = None
    strict: bool = False
    tools: list[dict[str, Any]] | None = None
    no_tools: bool = False


class EmbeddingCall(msgspec.Struct, frozen=True):
    """One request for the vectors of `texts`; `dimensions` None leaves their number to the model."""

    texts: list[str]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"


class Completion(msgspec.Struct, frozen=True):
    """A finished answer: text, or calls of tools, or both. `model` is the one that says it answered."""

    text: str
    finish_reason: str
    usage: CallUsage
    model: str
    tool_calls: tuple[ToolCall, ...] = ()


class Embedded(msgspec.Struct, frozen=True):
    """Vectors in the order of the texts, each as the JSON value of the asked encoding (an array, or a base64 string of
    little-endian float32), with their number of dimensions."""

    vectors: list[bytes]
    dimensions: int
    usage: CallUsage


class Progress:
    """What is known of a call while it runs: what a cut or cancelled call is charged for."""

    def __init__(self, input_tokens: int, count: Count | None = None) -> None:
        """`count`: by the model's vocabulary, where that is known."""
        self.input_tokens = input_tokens
        self.dispatched = False
        self.parts: list[str] = []
        self.characters = 0  # of all that came: text, calls of tools, thoughts that are not shown
        self.stated: CallUsage | None = None
        self.is_over = False  # the answer has come to its end: what is stated is final
        self.call_id = ""  # in the books
        self.first_s: float | None = None  # when the first chunk came, monotonic
        self.on_dispatch: Callable[[], None] | None = None  # called once, just before it is sent
        # Output tokens so far by our count; without a vocabulary one per chunk, or more in a long one.
        self.made = 0
        self._count = count

    def sending(self) -> None:
        """The request is sent now."""
        if self.on_dispatch is not None:
            self.on_dispatch()
            self.on_dispatch = None

    def add(self, text: str, *, is_shown: bool = False) -> None:
        """A piece of the answer has come."""
        if is_shown:
            self.parts.append(text)
        self.characters += len(text)
        if self._count is not None:
            self.made += max(1, self._count(text))
        else:
            self.made += 1 if len(text) <= CHUNK_CHARACTERS else len(text) // CHARACTERS_PER_TOKEN

    def usage(self) -> CallUsage:
        """The provider's figure if it came, else ours: the estimated input, and the output that was seen."""
        made = self.made
        if self.stated is not None:
            # Some state a figure early on, and go on.
            if self.is_over or made <= self.stated.output_tokens:
                return self.stated
            return CallUsage(self.stated.input_tokens, made, 0, estimated=True)
        if not self.dispatched:
            return CallUsage()
        return CallUsage(self.input_tokens, made, 0, estimated=True)


class Requests(Progress):
    """The same for a step that makes several requests for vectors, one after another."""

    def __init__(self, input_tokens: int, count: Count | None = None) -> None:
        super().__init__(input_tokens, count)
        self.reserved = input_tokens  # for all requests so far
        self.requests = 0
        self.wasted_tokens = 0
        self._done = CallUsage()
        self._current: Progress | None = None

    def begin(self, tokens: int) -> Progress:
        """A request begins; `tokens` estimates its texts."""
        self.requests += 1
        self._current = Progress(tokens)
        self._current.on_dispatch = self.sending
        return self._current

    def end(self, *, wasted: bool) -> None:
        """It ended; `wasted`: without vectors."""
        spent = self._of_current()
        self._current = None
        self._done = CallUsage(
            0, 0, self._done.embedding_tokens + spent.embedding_tokens, self._done.estimated or spent.estimated
        )
        if wasted:
            self.wasted_tokens += spent.total

    def usage(self) -> CallUsage:
        """What all requests have used so far."""
        spent = self._of_current()
        return CallUsage(
            0, 0, self._done.embedding_tokens + spent.embedding_tokens, self._done.estimated or spent.estimated
        )

    def _of_current(self) -> CallUsage:
        used = self._current.usage() if self._current is not None else CallUsage()
        return CallUsage(0, 0, used.total, used.estimated)


def message_characters(message: dict[str, Any]) -> int:
    """The length of one message: its text and the calls of tools in it."""
    length = len(message.get("content") or "") + MESSAGE_FRAME
    if calls := message.get("tool_calls"):
        length += len(msgspec.json.encode(calls))
    return length


def estimate_text_tokens(text: str) -> int:
    """The tokens of a text to embed: bytes, since scripts beyond Latin take more tokens per character."""
    return len(text.encode("utf-8", "replace")) // CHARACTERS_PER_TOKEN + 1
