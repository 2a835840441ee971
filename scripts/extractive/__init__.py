"""How the development model reads and what it makes of it. Pure and deterministic.

It follows conventions that any prompt may use and no others: the context is what stands between tags or code fences
(else the whole last user message), `[3]` at the start of a paragraph is its label, and `1.` starts an item of a list.
"""

from scripts.extractive.filling import fill_schema
from scripts.extractive.reading import Reader, count_tokens, reply_text

__all__ = ["Reader", "count_tokens", "fill_schema", "reply_text"]
