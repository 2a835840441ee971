"""What a token is to this model: by a name of OpenAI's, one of that model's vocabulary, in and out; by any other name a
word of an answer with the blank before it, and of a question what `count_tokens` counts."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from scripts.extractive import count_tokens

# Its own list, and all pieces counted one by one: it is the tests' second opinion on shared/tokens.py.
_NAMES = (("o200k_base", ("gpt-4o", "gpt-4.1", "gpt-5")), ("cl100k_base", ("gpt-4", "gpt-3.5")))
_PIECE = re.compile(r"\s?[^\W_]{1,6}|_|[^\w]{1,2}")


def _vocabulary_of(model: str) -> str | None:
    return next((vocabulary for vocabulary, names in _NAMES if model.startswith(names)), None)


@cache
def _tokenizer(vocabulary: str) -> Any:
    from splintr import Tokenizer  # 40 MB, only for who asks under such a name

    return Tokenizer.from_pretrained(vocabulary)


def counter_of(model: str) -> Callable[[str], int]:
    """Counts the tokens of a text that the model reads."""
    if (vocabulary := _vocabulary_of(model)) is None:
        return count_tokens
    return lambda text: len(_tokenizer(vocabulary).encode_ordinary(text))


def pieces_of(model: str, text: str, *, arguments: bool = False) -> list[str]:
    """An answer's text in the pieces in which it is made, a token each; they join to the text. A token that ends within
    a letter gives no text, the next one gives the letter. `arguments`: it is JSON for a tool."""
    if (vocabulary := _vocabulary_of(model)) is not None:
        tokenizer, decoder = _tokenizer(vocabulary), codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(tokenizer.decode_bytes([token])) for token in tokenizer.encode_ordinary(text)]
    if arguments:
        return _PIECE.findall(text)
    words = text.split(" ")
    return [piece for piece in [words[0], *(f" {word}" for word in words[1:])] if piece]
