"""An agent's run as a person sees it."""

from __future__ import annotations

import json
from typing import Any

from scripts.commands.printing import queue_text

SHOWN_CHARACTERS = 160  # of a call, and of its result


def short(value: Any) -> str:
    """One line of a text or of JSON, cut; how long it is when it is."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}… ({len(text)} characters)"


class Live:
    """Prints the events of a run. What an attempt repeats of the one before it is shown once."""

    def __init__(self) -> None:
        self._said = ""  # by this attempt
        self._before = ""  # by the attempt before it, as far as this one has not said it too
        self._told: set[tuple[Any, ...]] = set()
        self._in_line = False

    def show(self, event: dict[str, Any]) -> None:
        """An event; those that tell a person nothing are passed over."""
        match event["type"]:
            case "delta":
                self._text(event["text"])
            case "tool.call":
                self._once("→", event, f"{event['tool']} {short(event['arguments'])}")
            case "tool.result":
                self._once("!" if event["isError"] else "←", event, short(event["text"]))
            case "attempt.restarted":
                self._before, self._said = self._said, ""
            case "job.queue":
                self.line(f"· {queue_text(event)}")
            case "job.warning":
                self.line(f"! {event['message']}")
            case "job.waiting" if event["kind"] != "input":
                error = event.get("error", {}).get("message", "")
                self.line(f"· waiting ({event['kind']}) {error}".rstrip())

    def line(self, line: str) -> None:
        """A line of its own."""
        print(("\n" if self._in_line else "") + line, flush=True)
        self._in_line = False

    def ended(self, answer: str | None) -> None:
        """The end: the answer stands there, also when its text was missed."""
        if answer is not None and not self._said.endswith(answer):
            self.line(answer)
        elif self._in_line:
            self.line("")
            return
        self._in_line = False

    def _text(self, text: str) -> None:
        self._said += text
        if self._before.startswith(text):
            self._before = self._before[len(text) :]
            return
        if self._before and text.startswith(self._before):
            text = text[len(self._before) :]
        elif self._before:
            self.line("· started again; what was said so far is void")
            text = self._said
        self._before = ""
        print(text, end="", flush=True)
        self._in_line = not text.endswith("\n")

    def _once(self, sign: str, event: dict[str, Any], line: str) -> None:
        """A call or a result; an attempt that goes on tells those of the one before it again."""
        told = (event["type"], event["step"], event["callId"])
        if told not in self._told:
            self._told.add(told)
            self.line(f"{sign} {line}")
