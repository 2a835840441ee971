"""What the server keeps: faults and limits that tests set, and its books of what was served."""

from __future__ import annotations

import collections
import json
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from scripts.dev_model.embedder import Embedder
from scripts.dev_model.profiles import PROFILES, OpenAI

PATHS: Final = ("embeddings", "chat")
PACE: Final = ("tokensPerSecond", "firstTokenSeconds", "tokensPerChunk")
INPUT_MEMORY_BYTES: Final = 64 * 1024 * 1024  # of embedded texts in the books; benchmarks send gigabytes


class Faults:
    """Faults on request, taken in order by the next calls, each as often as its `times` says.

    `path` confines a fault to `chat` or `embeddings`, `match` to calls whose body contains this text.
    """

    KINDS = (
        "status", "stall", "cut", "no_usage", "zero_usage", "twice_usage", "slow", "refuse", "bad_json", "drop",
        "truncate", "bad_arguments", "thought",
    )  # fmt: skip
    OF_TOOL_CALLS = ("bad_arguments", "thought")  # wait for an answer that calls tools

    def __init__(self) -> None:
        self.queue: list[dict[str, Any]] = []

    def take(self, path: str, body: dict[str, Any], *, calls_tools: bool = False) -> dict[str, Any]:
        """The fault for this call; empty when there is none."""
        for fault in self.queue:
            if (fault["kind"] in self.OF_TOOL_CALLS) != calls_tools or fault.get("path") not in (None, path):
                continue
            if "match" in fault and not _contains(body, fault["match"]):
                continue
            fault["times"] = fault.get("times", 1) - 1
            if fault["times"] <= 0:
                self.queue.remove(fault)
            return fault
        return {}


def _contains(body: dict[str, Any], text: str) -> bool:
    # Both as JSON, so that quotes and line breaks in the text are written alike.
    return json.dumps(text, ensure_ascii=False)[1:-1] in json.dumps(body, ensure_ascii=False)


class Limits(msgspec.Struct, rename="camel"):
    """What the upstream bears: calls in flight on `paths` together, and tokens a minute; beyond that it answers 429.

    `latency_seconds` is added to each call for embeddings.
    """

    in_flight: int | None = None
    retry_after: float | None = None
    latency_seconds: float = 0.0
    tokens_per_minute: int | None = None
    paths: tuple[str, ...] = PATHS


class Books:
    """What was served: the tests' independent count of calls and tokens."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.open: collections.Counter[str] = collections.Counter()
        self.most_open = 0
        self.refused = 0  # by the limits; such a call is not in `calls`
        self._inputs: collections.deque[tuple[dict[str, Any], int]] = collections.deque()
        self._input_bytes = 0

    def begin(self, path: str, body: dict[str, Any], input_tokens: int) -> dict[str, Any]:
        """A call was accepted."""
        call = {
            "path": path,
            "model": body.get("model"),
            "inputTokens": input_tokens,
            "outputTokens": 0,
            "ended": "open",
            "status": 200,
            "body": body,
            "atSeconds": time.time(),
        }
        self.calls.append(call)
        self.open[path] += 1
        self.most_open = max(self.most_open, self.open.total())
        if path == "embeddings":
            self._remember(call)
        return call

    def end(self, call: dict[str, Any], how: str) -> None:
        """A call is over: `done`, `fault` or `closed` (the client went away)."""
        if call["ended"] == "open":
            call["ended"] = how
            self.open[call["path"]] -= 1

    def clear(self) -> list[dict[str, Any]]:
        """Forgets what is over; what that was."""
        over = [call for call in self.calls if call["ended"] != "open"]
        self.calls = [call for call in self.calls if call["ended"] == "open"]
        self.most_open, self.refused = self.open.total(), 0
        self._inputs.clear()
        self._input_bytes = 0
        return over

    def _remember(self, call: dict[str, Any]) -> None:
        texts = call["body"].get("input")
        size = len(texts) if isinstance(texts, str) else sum(map(len, texts))
        self._inputs.append((call, size))
        self._input_bytes += size
        while self._input_bytes > INPUT_MEMORY_BYTES and len(self._inputs) > 1:
            oldest, freed = self._inputs.popleft()
            oldest["body"] = {**oldest["body"], "input": []}
            self._input_bytes -= freed


class State:
    """All of one server."""

    def __init__(self, pace: dict[str, float], limits: Limits) -> None:
        self.faults = Faults()
        self.books = Books()
        self.pace = pace
        self.profile: OpenAI = PROFILES["openai"]
        self.embedder = Embedder()
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """From now on; the minute's allowance of tokens is full again."""
        self.limits = limits
        self._allowance = float(limits.tokens_per_minute or 0)
        self._filled_s = time.monotonic()

    def admit(self, path: str, body: dict[str, Any], tokens: int) -> dict[str, Any] | web.Response:
        """The books' record of an accepted call, or the refusal of one that is beyond the limits."""
        limits = self.limits
        if path in limits.paths:
            if limits.in_flight is not None and sum(self.books.open[name] for name in limits.paths) >= limits.in_flight:
                return self._refuse(path, "requests", f"on requests at a time: Limit {limits.in_flight}.")
            if (rate := limits.tokens_per_minute) is not None:
                now_s = time.monotonic()
                self._allowance = min(rate, self._allowance + (now_s - self._filled_s) * rate / 60)
                self._filled_s = now_s
                if tokens > self._allowance:
                    used = rate - int(self._allowance)
                    wait_s = (tokens - self._allowance) * 60 / rate
                    told = f"Limit {rate}, Used {used}, Requested {tokens}. Please try again in {wait_s:.3f}s."
                    return self._refuse(path, "tokens", f"on tokens per min (TPM): {told}")
                self._allowance -= tokens
        return self.books.begin(path, body, tokens)

    def _refuse(self, path: str, kind: str, told: str) -> web.Response:
        self.books.refused += 1
        after = self.limits.retry_after
        headers = {} if after is None else {"Retry-After": f"{after:g}"}
        return self.error(429, f"Rate limit reached {told}", kind, path=path, headers=headers)

    def error(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        path: str = "chat",
        headers: dict[str, str] | None = None,
    ) -> web.Response:
        """An error as the server of the profile words it."""
        if status == 429 and code is None:
            code = "rate_limit_exceeded"
        body = self.profile.error(status, message, kind, code, param, path)
        return web.json_response(body, status=status, headers=headers)

    def fault_status(self, fault: dict[str, Any], path: str) -> web.Response | None:
        """The answer of a `status` fault."""
        if fault.get("kind") != "status":
            return None
        headers = {"Retry-After": str(fault["retryAfter"])} if "retryAfter" in fault else {}
        status = fault.get("status", 500)
        kind = "invalid_request_error" if status == 400 else "server_error"
        return self.error(status, "fault on request", kind, code=fault.get("code"), path=path, headers=headers)


STATE = web.AppKey("state", State)


async def body_of(request: web.Request) -> dict[str, Any] | web.Response:
    """The JSON body, or the refusal."""
    state = request.app[STATE]
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return state.error(400, "We could not parse the JSON body of your request.")
    if not isinstance(body, dict):
        return state.error(400, "The body must be a JSON object.")
    return body


def upset_usage(usage: dict[str, Any], fault: dict[str, Any]) -> dict[str, Any] | None:
    """The usage that is told: none, all zero or twice the truth, as a fault has it."""
    factor = {"no_usage": None, "zero_usage": 0, "twice_usage": 2}.get(fault.get("kind", ""), 1)
    if factor is None:
        return None
    return {name: value * factor if isinstance(value, int) else value for name, value in usage.items()}
