"""Which tools are called for a question, and the answer from what they gave."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from scripts.dev_model.arguments import Filler, corrected, is_query
from scripts.dev_model.talk import Made, Talk, Tool, meanings, readable
from scripts.extractive.reading import Reader, words

MAX_ATTEMPTS: Final = 3  # for one part of a question, its corrections counted
EVIDENCE: Final = 2.0  # an argument that only this kind of tool takes weighs more than words
QUOTED: Final = 4  # sentences of an answer
RELATED: Final = 0.3  # of the best sentence's fit: what fits less is left out

_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+(.+)$", re.MULTILINE)
_HARD = re.compile(r"(?<=[.!?;])\s+|\n+")
_SOFT = re.compile(r"(?:,\s*|\s+)(?:and(?:\s+(?:then|also))?|then)\s+", re.IGNORECASE)
_ASKS = re.compile(
    r"\?\s*$|^\W*(?:what|who|whose|when|where|which|why|how|find|tell|explain|describe|summari[sz]e)\b", re.I
)
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", re.IGNORECASE)


class Part:
    """A part of the question: the tool that fits it and the arguments, None while they cannot be given."""

    def __init__(self, text: str, tool: Tool, arguments: dict[str, Any] | None, evident: bool) -> None:
        self.text = text
        self.tool = tool
        self.arguments = arguments
        self.evident = evident
        self.attempts: list[Made] = []


def plan_calls(talk: Talk) -> list[tuple[str, dict[str, Any]]]:
    """The calls to make now, name and arguments; none when it is time to answer."""
    if not talk.tools or talk.choice == "none":
        return []
    if isinstance(talk.choice, dict):
        name = (talk.choice.get("function") or {}).get("name")
        return [_forced(talk, tool) for tool in talk.tools if tool.name == name][:1]
    if talk.must_answer and talk.choice != "required":
        return []
    parts = _parts(talk)
    _match(parts, talk.made)
    wanted: list[tuple[str, dict[str, Any]]] = []
    for part in parts:
        arguments = _next(part, talk)
        if arguments is not None and (part.tool.name, arguments) not in wanted:
            wanted.append((part.tool.name, arguments))
    if not wanted and talk.choice == "required":
        wanted = [_forced(talk, max(talk.tools, key=lambda tool: _score(talk, tool, talk.question)))]
    return wanted if talk.parallel else wanted[:1]


def _forced(talk: Talk, tool: Tool) -> tuple[str, dict[str, Any]]:
    own = [part for part in _parts(talk) if part.tool is tool and part.arguments is not None]
    text = own[0].text if own else talk.question
    return tool.name, Filler(talk, tool, text).arguments(certain=True) or {}


def _parts(talk: Talk) -> list[Part]:
    listed = _ITEM.findall(talk.question)
    parts: list[Part] = []
    for sentence in listed or _HARD.split(talk.question):
        own: list[Part] = []
        for text in _SOFT.split(sentence):
            part = _part(talk, text)
            if part is None or (own and own[-1].tool is part.tool and not (own[-1].evident and part.evident)):
                if own:
                    own[-1] = _with(talk, own[-1], sentence, text)
                continue
            own.append(part)
        own = own or [part for part in (_part(talk, sentence, asks=True),) if part is not None]
        # A further sentence on the same matter says how, a further question or item asks for more.
        more = bool(listed) or _ASKS.search(sentence) is not None
        parts += [part for part in own if more or part.evident or all(part.tool is not made.tool for made in parts)]
    return parts


def _with(talk: Talk, part: Part, sentence: str, text: str) -> Part:
    whole = sentence[sentence.index(part.text) : sentence.index(text) + len(text)]
    return Part(whole, part.tool, Filler(talk, part.tool, whole).arguments(), part.evident)


def _part(talk: Talk, text: str, *, asks: bool = False) -> Part | None:
    scored = [(_score(talk, tool, text, asks=asks), tool) for tool in talk.tools]
    scored = [(score, tool) for score, tool in scored if score > 0]
    if not scored:
        return None
    scored.sort(key=lambda pair: -pair[0])
    for _, tool in scored:
        filler = Filler(talk, tool, text)
        if (arguments := filler.arguments()) is not None:
            return Part(text, tool, arguments, filler.evident)
    # What it needs may come with another tool's result.
    return Part(text, scored[0][1], None, False)


def _score(talk: Talk, tool: Tool, text: str, *, asks: bool = False) -> float:
    """How well a tool fits: the words that its description shares with the text, those of few tools above others."""
    shared = meanings(text) & tool.said
    score = sum(1 / sum(word in other.said for other in talk.tools) for word in shared)
    filler = Filler(talk, tool, text)
    if filler.arguments() is not None:
        score += EVIDENCE * filler.evident
        if any(is_query(name, part) for name, part in tool.properties.items()):
            score += 0.5 * bool(score)
            if asks and not score and not talk.has_context and _ASKS.search(text) and words(text):
                score = 0.1
    return score


def _match(parts: list[Part], made: list[Made]) -> None:
    """Gives each call that was made to the part that it was made for."""
    for call in made:
        own = [part for part in parts if part.tool.name == call.name]
        for fits in (
            [part for part in own if part.arguments == call.arguments],
            [part for part in own if part.attempts and part.attempts[-1].failed],
            [part for part in own if not part.attempts],
            own,
        ):
            if fits:
                fits[0].attempts.append(call)
                break


def _next(part: Part, talk: Talk) -> dict[str, Any] | None:
    """The arguments to call the part's tool with now; None when that is done, or hopeless."""
    if not part.attempts:
        return part.arguments
    last = part.attempts[-1]
    if not last.failed or len(part.attempts) >= MAX_ATTEMPTS:
        return None
    arguments = corrected(Filler(talk, part.tool, part.text), last)
    again = [call.arguments == arguments for call in part.attempts[-2:]]
    return None if len(again) == 2 and all(again) else arguments


def tool_answer(talk: Talk) -> str:
    """What the tools of this question gave: calculated numbers, and sentences that fit, quoted. Empty without any."""
    given = [call for call in talk.results if not call.failed]
    if not given:
        return _plainly(talk.results)
    told: list[str] = []
    texts: list[str] = []
    for call in given:
        text = readable(call.result or "").strip()
        if (formula := _formula(call)) and (number := _NUMBER.search(text.rpartition("=")[2])):
            told.append(f"{formula} = {number[0]}.")
        elif text and text not in texts:
            texts.append(text)
    if texts:
        reader = Reader([("tool", "\n\n".join(texts)), ("user", talk.question)])
        best = reader.best(talk.question, QUOTED)
        least = RELATED * reader.match(talk.question, best[0]) if best else 0.0
        chosen = [sentence for sentence in best if reader.match(talk.question, sentence) >= least]
        chosen.sort(key=lambda sentence: sentence.place)
        told += [
            f"“{text}”" if _stands(text, given) else text
            for text in dict.fromkeys(sentence.text for sentence in chosen)
        ]
    return " ".join(told)


def _formula(call: Made) -> str | None:
    values = [value for value in (call.arguments or {}).values() if isinstance(value, str)]
    return next((value for value in values if re.fullmatch(r"[-\d\s.,+*/^%()a-z]*\d[-\d\s.,+*/^%()a-z]*", value)), None)


def _stands(text: str, given: list[Made]) -> bool:
    """Whether it is a sentence of a tool's result, word for word, and not a short value."""
    if len(text.split()) < 3:
        return False
    inside_json = json.dumps(text, ensure_ascii=False)[1:-1]
    return any(text in (call.result or "") or inside_json in (call.result or "") for call in given)


def _plainly(failed: list[Made]) -> str:
    return f"This could not be found out: {readable(failed[-1].result or '').strip()[:300]}" if failed else ""
