"""The words of texts and queries, as numbers: a CRC of each folded word (worker.documents.passages.terms).

Two words of one number are taken for each other: among a million different words a word of a query meets another in
0.02 % of the cases.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import lru_cache
from typing import Final

from worker.documents.passages import terms

MAX_QUERY_TERMS: Final = 64


@lru_cache(maxsize=131_072)
def _number(term: str) -> int:
    return zlib.crc32(term.encode("utf-8", "replace"))


def counts_of(text: str) -> Counter[int]:
    """How often each word stands in a text."""
    return Counter(map(_number, terms(text)))


def query_terms(query: str) -> list[int]:
    """The different words of a query, in their order, at most MAX_QUERY_TERMS."""
    return list(dict.fromkeys(map(_number, terms(query))))[:MAX_QUERY_TERMS]
