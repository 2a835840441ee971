"""How documents are put before a model: always as fenced data."""

from __future__ import annotations


def fenced(tag: str, text: str) -> str:
    """`text` between tags; a closing tag inside the text cannot end it early."""
    closing = f"</{tag}"
    return f"<{tag}>\n{text.replace(closing, '< /' + tag)}\n{closing}>"
