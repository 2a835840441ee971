"""Counts tokens offline: exactly where the vocabulary is known, else by bytes. docs/adr/0014-token-counting.md."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from splintr import AnyTokenizer

DEFAULT_RATIO: Final = 4.0  # bytes per token of a model of which nothing is known
LEAST_RATIO: Final = 1.0
MOST_RATIO: Final = 20.0
MOST_MODELS: Final = 1_000  # with a learned ratio; names come from clients

# https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb
MESSAGE_FRAME: Final = 3
NAME_FRAME: Final = 1
ANSWER_FRAME: Final = 3

INLINE_CHARACTERS: Final = 8_000  # counted on the event loop, well below a millisecond
PIECE_CHARACTERS: Final = 65_536
SEARCH_CHARACTERS: Final = 16_384
UNBROKEN_CHARACTERS: Final = 262_144

# The names that tiktoken gives; a `-`, `.`, `:` or `@` may follow (`gpt-4o-mini`, `gpt-5.2`, `gpt-oss:20b`).
_VOCABULARIES: Final = (
    ("o200k_base", re.compile(r"(?:chatgpt-4o|gpt-4o|gpt-4\.[15]|gpt-5|gpt-oss|o[134])(?:[-.:@]|$)")),
    ("cl100k_base", re.compile(r"(?:gpt-4|gpt-3\.5|gpt-35|text-embedding-3|text-embedding-ada-002)(?:[-:@]|$)")),
)

# Where a text may be cut without changing its count: both vocabularies split it there whatever comes before or after.
# A blank after anything but white space, and these marks after a letter or digit, always begin a new split; an
# apostrophe does not (`it's`), nor a line break after a mark.
_SEAM: Final = re.compile(
    r"(?<=\S)(?= )"
    r"|(?<=[0-9A-Za-zа-яぁ-ゖァ-ヺ一-龥가-힣])(?=[\n\t,.;:!?()\[\]{}<>\"=+*/_，。、！？；：「」（）・…—-])"
)

_loaded: dict[str, AnyTokenizer] = {}
_loading = threading.Lock()


class TokenCounter:
    """Counts the tokens of texts and conversations. Long texts are counted in a thread, off the event loop."""

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def learn(self, model: str, bytes_per_token: float) -> None:
        """Remembers the ratio of a model without a known vocabulary; one outside 1 to 20 is an error somewhere else."""
        if self.is_known(model) or not LEAST_RATIO <= bytes_per_token <= MOST_RATIO:
            return
        self._ratios.pop(model, None)
        self._ratios[model] = bytes_per_token
        if len(self._ratios) > MOST_MODELS:
            del self._ratios[next(iter(self._ratios))]

    def is_known(self, model: str) -> bool:
        """Whether the model's vocabulary is known, so that texts are counted exactly."""
        return vocabulary_of(model) is not None

    def quick(self, model: str) -> Callable[[str], int] | None:
        """Counts pieces of a stream one by one, on the event loop; None without a known vocabulary. A piece that is too
        long for that counts by its length."""
        vocabulary = vocabulary_of(model)
        if vocabulary is None:
            return None

        def count(piece: str) -> int:
            if len(piece) > INLINE_CHARACTERS:
                return math.ceil(_size(piece) / DEFAULT_RATIO)
            return _count(vocabulary, (piece,))[0]

        return count

    async def text(self, model: str, text: str) -> int:
        """Tokens of one text."""
        return (await self.texts(model, (text,)))[0]

    async def texts(self, model: str, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; without a known vocabulary estimated, and at least 1."""
        vocabulary = vocabulary_of(model)
        if vocabulary is None:
            ratio = self._ratios.get(model, DEFAULT_RATIO)
            return [max(1, math.ceil(_size(text) / ratio)) for text in texts]
        if vocabulary in _loaded and sum(map(len, texts)) <= INLINE_CHARACTERS:
            return _count(vocabulary, texts)
        return await asyncio.to_thread(_count, vocabulary, texts)

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], *, schema: Any = None, tools: Any = None
    ) -> int:
        """Input tokens of a completion: what is said, and the frames around it as OpenAI counts them.

        Calls of tools, `schema` and `tools` count as their JSON text, a close guess: how OpenAI renders them is not
        public. Images and other parts that are not text count nothing.
        """
        frames = ANSWER_FRAME
        for message in messages:
            frames += MESSAGE_FRAME + (NAME_FRAME if message.get("name") else 0)
        if not self.is_known(model):
            ratio = self._ratios.get(model, DEFAULT_RATIO)
            return max(1, math.ceil(self.chat_bytes(messages, schema, tools) / ratio) + frames)
        marks = [str(message[part]) for message in messages for part in ("role", "name") if message.get(part)]
        return frames + sum(await self.texts(model, [*marks, *_said(messages, schema, tools)]))

    @staticmethod
    def chat_bytes(messages: Sequence[Mapping[str, Any]], schema: Any = None, tools: Any = None) -> int:
        """UTF-8 bytes that a learned ratio is over: contents, calls of tools, schema and tools."""
        return sum(map(_size, _said(messages, schema, tools)))


@lru_cache(maxsize=MOST_MODELS)
def vocabulary_of(model: str) -> str | None:
    """The vocabulary of a model of OpenAI, also behind the names of providers and of its fine-tuned forms.

    `openai/gpt-4o` and `ft:gpt-4o-mini:acme::id` are their last part and their base. None when it is not known.
    """
    name = model.strip().lower().rpartition("/")[2].removeprefix("ft:")
    return next((vocabulary for vocabulary, names in _VOCABULARIES if names.match(name)), None)


def pieces(text: str) -> Iterator[str]:
    """The text cut into pieces whose counts add up to its own.

    A piece ends at the first seam after 65,536 characters. Where there is none for 262,144 characters (one letter
    repeated, say), it is cut all the same, which can add a token or two: the one case that is not exact.
    """
    start, length = 0, len(text)
    while length - start > PIECE_CHARACTERS:
        end = min(length, start + UNBROKEN_CHARACTERS)
        # In windows: a regular expression holds the interpreter from its start to its end.
        for place in range(start + PIECE_CHARACTERS, end, SEARCH_CHARACTERS):
            if seam := _SEAM.search(text, place, min(end, place + SEARCH_CHARACTERS)):
                end = seam.start()
                break
        yield text[start:end]
        start = end
    if start < length:
        yield text[start:]


def _count(vocabulary: str, texts: Sequence[str]) -> list[int]:
    tokenizer = _load(vocabulary)
    return [sum(_tokens(tokenizer, piece) for piece in pieces(_proper(text))) for text in texts]


def _tokens(tokenizer: AnyTokenizer, piece: str) -> int:
    # The flat form (four bytes a token) makes no list of numbers, which would hold the interpreter. But it takes
    # "<|endoftext|>" in what a person wrote for that one token, which no API does.
    if "<|" in piece:
        return len(tokenizer.encode_ordinary(piece))
    return len(tokenizer.encode_flat(piece)) // 4


def _load(vocabulary: str) -> AnyTokenizer:
    with _loading:
        if vocabulary not in _loaded:
            # Here: 40 MB of memory that only workers need, and they only when they count.
            from splintr import Tokenizer

            _loaded[vocabulary] = Tokenizer.from_pretrained(vocabulary)
    return _loaded[vocabulary]


def _said(messages: Sequence[Mapping[str, Any]], schema: Any, tools: Any) -> Iterator[str]:
    """All that is said in a conversation, as texts."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif content:
            yield from (part["text"] for part in content if isinstance(part.get("text"), str))
        if calls := message.get("tool_calls"):
            yield msgspec.json.encode(calls).decode()
    for more in (schema, tools):
        if more:
            yield msgspec.json.encode(more).decode()


def _proper(text: str) -> str:
    """The text, with `?` for what cannot be written in UTF-8: halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
