"""Arguments for a tool, by the schema of its parameters, from what a part of the question says."""

from __future__ import annotations

import re
from typing import Any

from scripts.dev_model.arithmetic import DATE, NUMBER, expression_in
from scripts.dev_model.talk import Made, Talk, Tool, meanings
from scripts.extractive.filling import fill_schema, spaced
from scripts.extractive.reading import STOP, words

_URL = re.compile(r"https?://[^\s<>\"'”“)\]]+")
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b")
_ID = re.compile(
    r"\b(?=[\w-]*\d)[A-Za-z]{2,12}[_-][A-Za-z0-9][\w-]*\b|\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b[0-9A-HJKMNP-TV-Z]{26}\b"
)
_QUOTED = re.compile(r"[\"“„«]([^\"”“»]{1,200})[\"”“»]")
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-ZÄÖÜ][\w'’-]*(?:\s+[A-ZÄÖÜ][\w'’-]*)*")
_ASKING = frozenset(
    "find search look up get fetch tell me please show give calculate compute also then i need want know".split()
)


def is_expression(name: str, schema: dict[str, Any]) -> bool:
    """Whether a parameter takes an arithmetic expression."""
    about = f"{spaced(name)} {schema.get('description') or ''}"
    return _is_text(schema) and bool(
        re.search(r"expression|formula|arithmetic|equation|calculation", about, re.IGNORECASE)
    )


def is_query(name: str, schema: dict[str, Any]) -> bool:
    """Whether a parameter takes words to look for."""
    if (
        not _is_text(schema)
        or schema.get("enum")
        or _is_url(name, schema)
        or _is_id(name)
        or is_expression(name, schema)
    ):
        return False
    about = f"{spaced(name)} {schema.get('description') or ''}".casefold()
    return bool(re.search(r"quer(?:y|ies)|question|search|topic|keyword|look for|\bq\b|\btask\b|what to", about))


def _is_text(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _is_url(name: str, schema: dict[str, Any]) -> bool:
    return schema.get("format") in ("uri", "url") or bool(re.search(r"\b(?:url|uri|link)\b", spaced(name).casefold()))


def _is_id(name: str) -> bool:
    return bool(re.search(r"\bids?$", spaced(name).casefold()))


class Filler:
    """Fills the parameters of one tool from one part of the question."""

    def __init__(self, talk: Talk, tool: Tool, text: str) -> None:
        self.talk = talk
        self.tool = tool
        self.text = text
        self.evident = False  # something was found that only such a parameter takes
        self._numbers: list[str] = []  # of the text, those that no parameter has yet

    def arguments(self, *, certain: bool = False, also: frozenset[str] = frozenset()) -> dict[str, Any] | None:
        """None when a required one cannot be given, unless it is `certain` that the call is made.

        `also`: optional ones that are asked for.
        """
        filled: dict[str, Any] = {}
        self._numbers = re.findall(NUMBER, self.text)
        for name, described in self.tool.properties.items():
            schema = _resolved(described, self.tool.schema)
            needed = name in self.tool.required or name in also
            value = self._value(name, schema, needed=needed)
            if value is not None:
                filled[name] = value
            elif needed and _nullable(schema):
                filled[name] = None
            elif needed and (certain or name in also):
                filled[name] = schema.get("default", fill_schema(self.talk.reader, schema))
            elif needed:
                return None
        return filled

    def _value(self, name: str, schema: dict[str, Any], *, needed: bool) -> Any:
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"], needed=needed and not _nullable(schema))
        kind = schema.get("type")
        kind = next((one for one in kind if one != "null"), None) if isinstance(kind, list) else kind
        needed = needed and not _nullable(schema)
        if kind == "string":
            return self._string(name, schema, needed=needed)
        if kind in ("integer", "number"):
            return self._number(name, schema, whole=kind == "integer", needed=needed)
        if kind == "boolean":
            said = bool(meanings(name) and meanings(name) <= meanings(self.text))
            return said if needed or said else None
        if kind == "array" and needed:
            item = self._value(
                name.removesuffix("s"), _resolved(schema.get("items") or {}, self.tool.schema), needed=True
            )
            return None if item is None else [item]
        if kind == "object" and needed:
            return fill_schema(self.talk.reader, {**schema, "$defs": self.tool.schema.get("$defs", {})})
        return None

    def _string(self, name: str, schema: dict[str, Any], *, needed: bool) -> str | None:
        if is_expression(name, schema):
            return self._evidence(expression_in(self.text))
        if _is_url(name, schema):
            return self._evidence(_first(_URL, self.text, ".,;"))
        if _is_id(name):
            return self._id(name, needed=needed)
        if schema.get("format") in ("date", "date-time") or "date" in spaced(name).casefold().split():
            return _first(DATE, self.text)
        if schema.get("format") == "email" or "email" in spaced(name).casefold():
            return self._evidence(_first(_EMAIL, self.text))
        if is_query(name, schema):
            return self._subject() if needed else None
        said = re.search(
            rf"\b{re.escape(spaced(name))}\b(?:\s*(?:is|of|to|as|:|=))?\s+[\"“]?([\w.-]+)", self.text, re.IGNORECASE
        )
        if said and said[1].casefold() not in STOP:
            return said[1]
        if not needed:
            return None
        named = _QUOTED.search(self.text)
        return named[1] if named else _first(_NAME, self.text) or self._subject()

    def _evidence(self, found: str | None) -> str | None:
        self.evident = self.evident or found is not None
        return found

    def _subject(self) -> str:
        """The part's words without those around them that only name the tool and ask."""
        found = self.text.strip(" \t\n.,;:!?").split()
        passed = [
            not meanings(word) or meanings(word) <= self.tool.said or word.casefold() in _ASKING for word in found
        ]
        if all(passed):
            return " ".join(found)
        start = passed.index(False)
        end = len(found) - passed[::-1].index(False)
        return " ".join(found[start:end]).strip(".,;:!?")

    def _id(self, name: str, *, needed: bool) -> str | None:
        if (own := _first(_ID, self.text)) is not None:
            return self._evidence(own)
        if not needed:
            return None
        tail = "id" if name.casefold() == "id" else name
        # documentId, document_id and documentid are one name.
        key = r"[_ ]?".join(re.escape(word) for word in spaced(tail).split())
        pattern = re.compile(rf"\b{key}\b[\"']?\s*[:=]\s*[\"']?([\w-]+)", re.IGNORECASE)
        results = [call.result for call in self.talk.made if call.result and not call.failed]
        earlier = [text for role, text in self.talk.texts if role != "tool"]
        for source in (*reversed(results), *reversed(earlier)):
            if (match := pattern.search(source)) is not None:
                return match[1]
        bare = re.compile(r"[\"']id[\"']\s*:\s*[\"']?([\w-]+)")
        for source in reversed(results):
            if (match := bare.search(source)) is not None:
                return match[1]
            if (found := _first(_ID, source)) is not None:
                return found
        return None

    def _number(self, name: str, schema: dict[str, Any], *, whole: bool, needed: bool) -> float | None:
        near = rf"\b{re.escape(spaced(name))}s?\b\W*(?:\w+\W+)?({NUMBER})|({NUMBER})\s+{re.escape(spaced(name))}s?\b"
        match = re.search(near, self.text, re.IGNORECASE)
        text = (match[1] or match[2]) if match else (self._numbers[0] if needed and self._numbers else None)
        if text is None:
            default = schema.get("default")
            return float(default) if needed and isinstance(default, (int, float)) else None
        if text in self._numbers:
            self._numbers.remove(text)
        number = float(text.replace(",", ""))
        number = float(min(max(number, schema.get("minimum", number)), schema.get("maximum", number)))
        return round(number) if whole else number

    def _choice(self, options: list[Any], *, needed: bool) -> Any:
        said = meanings(self.text)
        spoken = [
            option for option in options if isinstance(option, str) and meanings(option) and meanings(option) <= said
        ]
        return spoken[0] if spoken else options[0] if needed else None


def corrected(filler: Filler, failed: Made) -> dict[str, Any] | None:
    """The arguments after a tool said what was wrong with them; None when it gave no hint."""
    hint = failed.result or ""
    low = hint.casefold()
    named = [name for name in filler.tool.properties if re.search(rf"\b{re.escape(name.casefold())}\b", low)]
    arguments = filler.arguments(certain=True, also=frozenset(named)) or {}
    if failed.arguments is None or re.search(
        r"try again|timed? ?out|temporar|busy|unavailable|not (?:valid )?json|pars", low
    ):
        return filler.arguments(certain=True)
    arguments = {**failed.arguments, **{name: arguments[name] for name in named if name not in failed.arguments}}
    options = re.search(
        r"(?:one of|allowed(?: values)?|must be either|choose from|available)\W*:?\s*([^.\n]+)", hint, re.IGNORECASE
    )
    meant = re.search(r"did you mean\W+([\w.-]+(?: [\w.-]+)*)", hint, re.IGNORECASE)
    most = re.search(r"at most (\d+) (?:character|letter)|(?:max\w*|limit)\D{0,30}(\d+) (?:character|letter)", low)
    for name in named or [name for name in arguments if isinstance(arguments[name], str)][:1]:
        if meant:
            arguments[name] = meant[1]
        elif options and (values := re.findall(r"[\w.-]+", re.sub(r"\b(?:or|and)\b", " ", options[1]))):
            said = set(words(filler.text))
            arguments[name] = next((value for value in values if set(words(value)) & said), values[0])
        elif most and isinstance(arguments.get(name), str):
            arguments[name] = arguments[name][: int(most[1] or most[2])].rstrip()
        elif (
            "integer" in low
            and isinstance(arguments.get(name), (float, str))
            and re.search(r"\d", str(arguments[name]))
        ):
            arguments[name] = round(float(re.findall(NUMBER, str(arguments[name]))[0].replace(",", "")))
    return arguments if arguments != failed.arguments else None


def _first(pattern: re.Pattern[str], text: str, strip: str = "") -> str | None:
    match = pattern.search(text)
    return match[0].rstrip(strip) if match else None


def _nullable(schema: dict[str, Any]) -> bool:
    return isinstance(schema.get("type"), list) and "null" in schema["type"]


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a reference; of alternatives the first that is not null, which then may be null."""
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found: dict[str, Any] = (root.get("$defs") or {}).get(reference.rpartition("/")[2], {})
        return found
    for key in ("anyOf", "oneOf"):
        if options := [option for option in schema.get(key) or [] if option.get("type") != "null"]:
            kind = options[0].get("type", "string")
            nullable = {"type": [kind, "null"]} if len(options) < len(schema[key]) else {}
            return {**schema, **_resolved(options[0], root), **nullable, key: None}
    return schema
