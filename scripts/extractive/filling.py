"""Values for a JSON Schema, made of the context's sentences, words and numbers."""

from __future__ import annotations

import re
from typing import Any

from scripts.extractive.reading import Reader, Sentence, words

_ITEM = re.compile(r"^\s*(\d+)[.)]\s+(.+)$", re.MULTILINE)
_SCHEMA_NAME = re.compile(r'"(\w+)":\s*\{"(?:type|enum|anyOf|oneOf|description|\$ref)"')
PLENTY = 5  # elements of a list when nothing says how many


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
                name: self.value(part, f"{spaced(name)}", focus) for name, part in schema.get("properties", {}).items()
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
                        name: int(number) if name in numbered else self.value(part, spaced(name), found[0])
                        for name, part in properties.items()
                    })  # fmt: skip
            return filled[:most]
        if kind == "object" and "field" in properties and (names := _SCHEMA_NAME.findall(self.reader.asked)):
            # One element per field of the schema in the question that the context speaks of.
            return [
                {
                    name: wanted if name == "field" else self.value(part, spaced(name), found[0])
                    for name, part in properties.items()
                }
                for wanted in dict.fromkeys(names)
                if (found := self.reader.best(spaced(wanted), 1, floor=0.5))
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


def spaced(name: str) -> str:
    """The words of a name in snake or camel case."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name)


def _search(pattern: str, text: str) -> str | None:
    try:
        match = re.search(pattern.strip("^$"), text[:20_000])
    except re.error:
        return None
    return match[0] if match else None
