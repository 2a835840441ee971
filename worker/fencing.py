"""How documents are put before a model: always as fenced data.

What is in a fence cannot end it, cannot look like a label of ours, and has none of the marks by which servers tell
roles apart. Nothing of that changes the document: offsets and quotes are those of its own text.
"""

from __future__ import annotations

import re
from typing import Final

# Characters that nobody sees: zero width, direction, soft hyphens, tags. Instructions can hide in them.
UNSEEN: Final = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)
_TAG: Final = re.compile(r"[<＜﹤‹〈](?=\s*(?:[/／⁄∕]\s*)?(?:sources?|documents?|results?|context)\b)", re.IGNORECASE)
_LABEL: Final = re.compile(r"^([^\S\n]*)[\[［【](\s*\d{1,3}\s*)[\]］】]", re.MULTILINE)
_ROLE: Final = re.compile(
    r"<\|(?=[a-zA-Z_]{2,30}\|>)|\[(?=/?INST\])|<(?=</?SYS>>)|<(?=/?s>)|<(?=(?:start|end)_of_turn>)"
)


def fenced(tag: str, text: str) -> str:
    """`text` between tags; a closing tag inside the text cannot end it early."""
    inside = re.sub(rf"<(?=\s*(?:/\s*)?{re.escape(tag)}\b)", "< ", text, flags=re.IGNORECASE)
    return f"<{tag}>\n{inside}\n</{tag}>"


def as_data(text: str) -> str:
    """A part of a document for a fence with labels: without what is unseen, tags of ours, labels at the beginning of a
    line, and marks of roles."""
    text = UNSEEN.sub("", text)
    text = _TAG.sub("‹ ", text)
    text = _LABEL.sub(r"\1(\2)", text)
    return _ROLE.sub(lambda match: match[0] + " ", text)
