"""How the development model reads: sentences of the given context, ranked by what is asked. Pure and deterministic.

It follows conventions that any prompt may use and no others: the context is what stands between tags or code fences
(else the whole last user message), `[3]` at the start of a paragraph is its label, and `1.` starts an item of a list.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cached_property
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_TOKEN = re.compile(r"[^\W_]{1,8}|[^\w\s]|_|\s{2,}")
_TAGGED = re.compile(r"<(?P<tag>[A-Za-z][\w-]*)>\n?(?P<body>.*?)\n?</(?P=tag)>", re.DOTALL)
_FENCED = re.compile(r"```[^\n]*\n(?P<body>.*?)```", re.DOTALL)
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|(?=\n\s*\n)|$)", re.DOTALL)
_LABEL = re.compile(r"^\s*\[(\d+)\]\s*")
_ITEM = re.compile(r"^\s*(\d+)[.)]\s+(.+)$", re.MULTILINE)
_SCHEMA_NAME = re.compile(r'"(\w+)":\s*\{"(?:type|enum|anyOf|oneOf|description|\$ref)"')
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s|^\s*[-=|*_]{3,}\s*$")

STOP = frozenset(
    (
        "a an and are as at be been but by can did do does for from had has have how i if in into is it its may more "
        "most no not of on or our should so such than that the their them then there these they this to was we were "
        "what when where which who whom why will with would you your der die das und ist in zu den von mit"
    ).split()
)
PLENTY = 5  # elements of a list when nothing says how many


def count_tokens(text: str) -> int:
    """Tokens as this model counts them: pieces of up to eight letters, and marks."""
    return len(_TOKEN.findall(text))


def words(text: str) -> list[str]:
    """The words that carry meaning, lower case, plural and verb endings folded."""
    found = []
    for match in _WORD.finditer(text):
        word = match[0].casefold()
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


def tool_call_for(reader: Reader, body: dict[str, Any]) -> dict[str, Any] | None:
    """The tool whose description fits what is asked, unless a tool has answered already."""
    if any(role == "tool" for role, _ in reader.messages):
        return None
    best: tuple[float, dict[str, Any]] | None = None
    wanted = set(words(reader.asked))
    for tool in body["tools"]:
        function = tool.get("function") or {}
        said = set(words(f"{function.get('name', '').replace('_', ' ')} {function.get('description', '')}"))
        score = len(wanted & said) / (len(wanted) or 1)
        if best is None or score > best[0]:
            best = (score, function)
    if best is None or (best[0] == 0 and body.get("tool_choice") not in ("required",)):
        return None
    arguments = fill_schema(reader, best[1].get("parameters") or {"type": "object"})
    return {
        "id": f"call_{best[1]['name']}",
        "type": "function",
        "function": {"name": best[1]["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def fill_schema(reader: Reader, schema: dict[str, Any]) -> Any:
    """A value that fits the schema, made of the context's sentences, words and numbers."""
    return _Filler(reader, schema).value(schema, "", None)


class _Filler:
    def __init__(self, reader: Reader, root: dict[str, Any]) -> None:
        self.reader = reader
        self.root = root
        self.depth = 0
        self.used: list[Sentence] = []  # what the last text was made of: its labels are the sources beside it

    def value(self, schema: dict[str, Any], about: str, focus: Sentence | None) -> Any:
        """`about` is what the field is called and described as; `focus` the sentence that its element is about."""
        schema = self.resolve(schema)
        self.depth += 1
        try:
            if self.depth > 24:
                return None
            return self._value(schema, about, focus)
        finally:
            self.depth -= 1

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        for _ in range(16):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            found: Any = self.root
            for part in reference.lstrip("#").strip("/").split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if part else found
            schema = found
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                options = [option for option in schema[key] if option.get("type") != "null"]
                return {
                    **{name: value for name, value in schema.items() if name != key},
                    **(options or schema[key])[0],
                }
        return schema

    def _value(self, schema: dict[str, Any], about: str, focus: Sentence | None) -> Any:
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self.choose(schema["enum"], about, focus)
        kind = schema.get("type")
        nullable = isinstance(kind, list) and "null" in kind
        if isinstance(kind, list):
            kind = next((name for name in kind if name != "null"), "null")
        about = f"{about} {schema.get('description', '')}".strip()
        if kind == "object" or (kind is None and "properties" in schema):
            return {
                name: self.value(part, f"{_spaced(name)}", focus) for name, part in schema.get("properties", {}).items()
            }
        if kind == "array":
            return self.array(schema, about, focus)
        if kind == "integer":
            return self.clamp(schema, self.integer(about, focus))
        if kind == "number":
            return self.clamp(schema, self.number(about, focus))
        if kind == "boolean":
            return bool(self.reader.best(about, 1, floor=0.5))
        if kind == "null":
            return None
        text = self.string(schema, about, focus)
        return None if nullable and not text else text

    def array(self, schema: dict[str, Any], about: str, focus: Sentence | None) -> list[Any]:
        items = self.resolve(schema.get("items") or {"type": "string"})
        bounds = [int(number) for number in re.findall(r"\b(\d{1,3})\b", schema.get("description", ""))]
        most = schema.get("maxItems", bounds[0] if bounds else PLENTY)
        least = schema.get("minItems", 0)
        kind = items.get("type")
        if kind == "integer":
            return self.labels(focus, most)
        listed = _ITEM.findall(self.reader.asked)
        properties = items.get("properties", {})
        numbered = [name for name, part in properties.items() if self.resolve(part).get("type") == "integer"]
        if kind == "object" and numbered and listed:
            # One element per numbered question that the context speaks of.
            filled = []
            for number, question in listed:
                found = self.reader.best(question, 1, floor=0.25)
                if found:
                    filled.append({
                        name: int(number) if name in numbered else self.value(part, _spaced(name), found[0])
                        for name, part in properties.items()
                    })  # fmt: skip
            return filled[:most]
        if kind == "object" and "field" in properties and (names := _SCHEMA_NAME.findall(self.reader.asked)):
            # One element per field of the schema in the question that the context speaks of.
            return [
                {
                    name: wanted if name == "field" else self.value(part, _spaced(name), found[0])
                    for name, part in properties.items()
                }
                for wanted in dict.fromkeys(names)
                if (found := self.reader.best(_spaced(wanted), 1, floor=0.5))
            ]
        if focus is not None and kind == "string":
            return [focus.text][: max(most, least)]
        chosen = self.reader.main(max(most, least)) if kind == "object" else self.reader.best(about, max(most, least))
        if kind == "object":
            return [self.value(items, "", sentence) for sentence in chosen]
        return [self.value(items, about, sentence) for sentence in chosen]

    def labels(self, focus: Sentence | None, most: int) -> list[int]:
        if focus is not None:
            return [focus.label] if focus.label is not None else []
        found = [sentence.label for sentence in self.used or self.reader.main(most) if sentence.label is not None]
        return list(dict.fromkeys(found))

    def string(self, schema: dict[str, Any], about: str, focus: Sentence | None) -> str:
        if schema.get("format") in ("date", "date-time"):
            match = re.search(r"\d{4}-\d{2}-\d{2}", focus.text if focus else self.reader.context)
            if match:
                return match[0] + ("T00:00:00Z" if schema["format"] == "date-time" else "")
        if focus is not None:
            text = focus.text
        elif valued := self.named_value(about):
            text = valued
        elif "summar" in about.casefold():
            chosen = sorted(self.reader.main(4), key=lambda sentence: sentence.place)
            self.used = chosen
            text = " ".join(dict.fromkeys(sentence.text for sentence in chosen))
        else:
            found = self.reader.best(f"{about} {self.reader.asked}", 1)
            self.used = found
            text = found[0].text if found else ""
        if pattern := schema.get("pattern"):
            text = _search(pattern, self.reader.context) or text
        return text[: schema.get("maxLength", len(text))]

    def named_value(self, about: str) -> str | None:
        """What stands after `<name>:` in the context."""
        for line in self.reader.context.splitlines():
            name, colon, value = line.partition(":")
            if colon and value.strip() and len(name) < 40 and set(words(about)) & set(words(name)):
                return value.strip().rstrip(".,;")
        return None

    def integer(self, about: str, focus: Sentence | None) -> int:
        if focus is not None and focus.label is not None:
            return focus.label
        return round(self.number(about, focus))

    def number(self, about: str, focus: Sentence | None) -> float:
        text = focus.text if focus else (self.named_value(about) or "")
        for source in (text, *(sentence.text for sentence in self.reader.best(about, 3, floor=0.1))):
            match = re.search(r"-?\d+(?:[,\s]\d{3})*(?:\.\d+)?", source)
            if match:
                return float(re.sub(r"[,\s]", "", match[0]))
        return 0.0

    def clamp(self, schema: dict[str, Any], number: float) -> float:
        low, high = schema.get("minimum"), schema.get("maximum")
        number = number if low is None else max(low, number)
        return number if high is None else min(high, number)

    def choose(self, options: list[Any], about: str, focus: Sentence | None) -> Any:
        text = (focus.text if focus else self.reader.context).casefold()
        spoken = [option for option in options if isinstance(option, str) and option.casefold() in text]
        return spoken[0] if spoken else options[0]


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name)


def _search(pattern: str, text: str) -> str | None:
    try:
        match = re.search(pattern.strip("^$"), text[:20_000])
    except re.error:
        return None
    return match[0] if match else None
