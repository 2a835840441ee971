"""Sentences of the given context, ranked by what is asked."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cached_property

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_TOKEN = re.compile(r"[^\W_]{1,8}|[^\w\s]|_|\s{2,}")
_TAGGED = re.compile(r"<(?P<tag>[A-Za-z][\w-]*)>\n?(?P<body>.*?)\n?</(?P=tag)>", re.DOTALL)
_FENCED = re.compile(r"```[^\n]*\n(?P<body>.*?)```", re.DOTALL)
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|(?=\n\s*\n)|$)", re.DOTALL)
_LABEL = re.compile(r"^\s*\[(\d+)\]\s*")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s|^\s*[-=|*_]{3,}\s*$")

STOP = frozenset(
    (
        "a an and are as at be been but by can did do does for from had has have how i if in into is it its may more "
        "most no not of on or our should so such than that the their them then there these they this to was we were "
        "what when where which who whom why will with would you your der die das und ist in zu den von mit"
    ).split()
)


def count_tokens(text: str) -> int:
    """Tokens as this model counts them: pieces of up to eight letters, and marks."""
    return len(_TOKEN.findall(text))


def words(text: str) -> list[str]:
    """The words that carry meaning, lower case, plural and verb endings folded."""
    found = []
    for match in _WORD.finditer(text):
        word = match[0].casefold().removesuffix("'s").removesuffix("’s")
        if word not in STOP and (len(word) > 1 or word.isdigit()):
            found.append(_stem(word))
    return found


def _stem(word: str) -> str:
    for ending in ("ing", "ied", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


class Sentence:
    """A sentence of the context, word for word, with the label of its paragraph."""

    def __init__(self, text: str, label: int | None, place: int) -> None:
        self.text = text
        self.label = label
        self.place = place
        self.words = words(text)


def sentences(context: str) -> list[Sentence]:
    """The sentences of a context; headings and rules are passed over."""
    found: list[Sentence] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*\[\d+\])", context):
        label_match = _LABEL.match(paragraph)
        label = int(label_match[1]) if label_match else None
        body = paragraph[label_match.end() :] if label_match else paragraph
        for match in _SENTENCE.finditer(body):
            text = match[0].strip()
            if len(text) >= 3 and not _HEADING.match(text):
                found.append(Sentence(text, label, len(found)))
    return found


class Reader:
    """A request as the model reads it: what is asked, and the context that it answers from."""

    def __init__(self, messages: list[tuple[str, str]]) -> None:
        users = [text for role, text in messages if role == "user"]
        last = users[-1] if users else ""
        self.messages = messages
        blocks = [
            match["body"]
            for text in [*(text for role, text in messages if role in ("tool", "system")), *users]
            for pattern in (_TAGGED, _FENCED)
            for match in pattern.finditer(text)
        ]
        self.asked = _FENCED.sub(" ", _TAGGED.sub(" ", last)).strip()
        tools = [text for role, text in messages if role == "tool" and text.strip()]
        if blocks:
            self.context = max(blocks, key=len)
        elif tools:
            self.context = "\n\n".join(tools)
        else:
            self.context = last
        self.fenced = bool(blocks or tools)
        self.sentences = sentences(self.context)

    @cached_property
    def _rarity(self) -> dict[str, float]:
        counts = Counter(word for sentence in self.sentences for word in set(sentence.words))
        total = len(self.sentences) + 1
        return {word: math.log(total / count) + 0.1 for word, count in counts.items()}

    @cached_property
    def _weight(self) -> Counter[str]:
        return Counter(word for sentence in self.sentences for word in sentence.words)

    def match(self, question: str, sentence: Sentence) -> float:
        """How far a sentence speaks of a question: the share of the question's weight that it covers."""
        wanted = set(words(question))
        whole = sum(self._rarity.get(word, 1.0) for word in wanted)
        if not whole:
            return 0.0
        return sum(self._rarity[word] for word in wanted & set(sentence.words)) / whole

    def central(self, sentence: Sentence) -> float:
        """How much of the context's own subject a sentence carries."""
        if not sentence.words:
            return 0.0
        unique = set(sentence.words)
        return sum(self._weight[word] for word in unique) / (len(unique) + 6) / (1 + sentence.place * 0.002)

    def best(self, question: str, count: int, *, floor: float = 0.0) -> list[Sentence]:
        """The sentences that answer a question best, best first; by the subject where the question matches none."""
        scored = [(self.match(question, sentence), sentence) for sentence in self.sentences]
        matching = [(score, sentence) for score, sentence in scored if score > floor]
        if not matching:
            if floor > 0:
                return []
            matching = [(0.0, sentence) for sentence in self.sentences]
        matching.sort(key=lambda pair: (-round(pair[0], 6), -self.central(pair[1]), pair[1].place))
        return [sentence for _, sentence in matching[:count]]

    def main(self, count: int) -> list[Sentence]:
        """The sentences that carry the subject, most telling first."""
        ranked = sorted(self.sentences, key=lambda sentence: (-self.central(sentence), sentence.place))
        return ranked[:count]


def reply_text(reader: Reader) -> str:
    """A plain answer: the sentences that fit what is asked, in their order."""
    if not reader.fenced:
        if not reader.asked:
            return "There is nothing to answer."
        earlier = [text for role, text in reader.messages[:-1] if role in ("user", "assistant")]
        if earlier:
            memory = Reader([("user", "<context>" + "\n\n".join(earlier) + "</context>" + reader.asked)])
            chosen = memory.best(reader.asked, 3, floor=0.2)
            if chosen:
                return " ".join(sentence.text for sentence in sorted(chosen, key=lambda found: found.place))
        return f"I am the development model: I only quote what I am given. You wrote: {reader.asked}"
    chosen = reader.best(reader.asked, 4)
    return " ".join(sentence.text for sentence in sorted(chosen, key=lambda found: found.place)) or "Nothing is said."
