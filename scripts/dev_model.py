"""The development model: the OpenAI HTTP API on loopback, with no key and no network.

It extracts, it does not invent: an answer is made of sentences chosen from what it was given. It is deterministic.
Its model names say what it is. It sees only what any model would see; faults for tests are set through `/dev/…`,
apart from the requests.

    python -m scripts.dev_model --port 9100
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import itertools
import json
import signal
import struct
import sys
import time
from typing import Any

from aiohttp import web

from scripts.extractive import Reader, count_tokens, fill_schema, reply_text, tool_call_for

CHAT_MODEL = "errand-dev-extractive"
EMBEDDING_MODEL = "errand-dev-embedding"
DIMENSIONS = 256
MAX_INPUT_TOKENS = 128_000
MAX_EMBEDDING_INPUTS = 2_048


class Faults:
    """Faults on request, taken in order by the next calls, each as often as its `times` says."""

    KINDS = ("status", "stall", "cut", "no_usage", "slow", "refuse", "bad_json", "drop", "truncate")

    def __init__(self) -> None:
        self.queue: list[dict[str, Any]] = []

    def take(self, path: str) -> dict[str, Any]:
        """The fault for this call; empty when there is none."""
        for fault in self.queue:
            if fault.get("path") in (None, path):
                fault["times"] = fault.get("times", 1) - 1
                if fault["times"] <= 0:
                    self.queue.remove(fault)
                return fault
        return {}


class Books:
    """What was served: the tests' independent count of calls and tokens."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.open = 0
        self.most_open = 0

    def begin(self, path: str, body: dict[str, Any], input_tokens: int) -> dict[str, Any]:
        """A call arrived."""
        call = {
            "path": path,
            "model": body.get("model"),
            "inputTokens": input_tokens,
            "outputTokens": 0,
            "ended": "open",
            "status": 200,
            "body": body,
        }
        self.calls.append(call)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return call

    def end(self, call: dict[str, Any], how: str) -> None:
        """A call is over: `done`, `fault` or `closed` (the client went away)."""
        if call["ended"] == "open":
            call["ended"] = how
            self.open -= 1


FAULTS = web.AppKey("faults", Faults)
BOOKS = web.AppKey("books", Books)
PACE = web.AppKey("pace", dict[str, float])


def error(status: int, message: str, kind: str = "invalid_request_error", **headers: str) -> web.Response:
    """An error as OpenAI words it."""
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": None}},
        status=status,
        headers=headers,
    )


async def body_of(request: web.Request) -> dict[str, Any] | web.Response:
    """The JSON body, or the refusal."""
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return error(400, "We could not parse the JSON body of your request.")
    if not isinstance(body, dict):
        return error(400, "The body must be a JSON object.")
    return body


def faulty_status(fault: dict[str, Any]) -> web.Response | None:
    """The answer of a `status` fault."""
    if fault.get("kind") != "status":
        return None
    headers = {"Retry-After": str(fault["retryAfter"])} if "retryAfter" in fault else {}
    return error(fault.get("status", 500), "fault on request", "server_error", **headers)


def text_of(content: Any) -> str:
    """A message's text, whether it came as a string or in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def input_tokens_of(body: dict[str, Any]) -> int:
    """Tokens of a chat request: its messages, tools and schema, and four for the frame of each message."""
    total = sum(count_tokens(text_of(message.get("content"))) + 4 for message in body["messages"])
    for extra in ("tools", "response_format"):
        if extra in body:
            total += count_tokens(json.dumps(body[extra]))
    return total + 3


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    body = await body_of(request)
    if isinstance(body, web.Response):
        return body
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(entry, dict) for entry in messages):
        return error(400, "'messages' must be a list of messages with at least one entry.")
    tokens = input_tokens_of(body)
    fault = request.app[FAULTS].take("chat")
    call = request.app[BOOKS].begin("chat", body, tokens)
    try:
        if (refusal := faulty_status(fault)) is not None:
            call["inputTokens"], call["status"] = 0, refusal.status
            return refusal
        if tokens > MAX_INPUT_TOKENS:
            call["inputTokens"], call["status"] = 0, 400
            return error(400, f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens; you sent {tokens}.")
        if fault.get("kind") == "stall":
            await asyncio.sleep(fault.get("seconds", 3600))
        if fault.get("kind") == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        answer = await asyncio.to_thread(make_answer, body)
        if fault.get("kind") == "bad_json" and answer["content"]:
            answer["content"] = answer["content"][: len(answer["content"]) // 2]
            answer["pieces"] = split_tokens(answer["content"])
            answer["tokens"] = len(answer["pieces"])
        if fault.get("kind") == "refuse":
            answer["finish"] = "content_filter"
        if body.get("stream"):
            return await stream_answer(request, body, answer, call, fault)
        await pace(request, count_tokens(answer["content"] or ""))
        call["outputTokens"] = answer["tokens"]
        completion = whole_answer(body, answer, tokens)
        if fault.get("kind") == "no_usage":
            del completion["usage"]
        return web.json_response(completion)
    except (asyncio.CancelledError, ConnectionResetError):
        request.app[BOOKS].end(call, "closed")
        raise
    finally:
        request.app[BOOKS].end(call, "fault" if fault.get("kind") in ("cut", "truncate", "drop", "status") else "done")


def make_answer(body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer, before it is sent: its text or tool calls, why it ends, its tokens."""
    reader = Reader([(entry.get("role", "user"), text_of(entry.get("content"))) for entry in body["messages"]])
    wanted = body.get("response_format") or {}
    tool_calls: list[dict[str, Any]] = []
    content: str | None
    if body.get("tools") and body.get("tool_choice") != "none" and (found := tool_call_for(reader, body)):
        content, tool_calls = None, [found]
    elif wanted.get("type") == "json_schema":
        schema = wanted["json_schema"]["schema"]
        content = json.dumps(fill_schema(reader, schema), ensure_ascii=False)
    elif wanted.get("type") == "json_object":
        content = json.dumps({"answer": reply_text(reader)}, ensure_ascii=False)
    else:
        content = reply_text(reader)
    pieces = split_tokens(content or "".join(call["function"]["arguments"] for call in tool_calls))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    finish = "tool_calls" if tool_calls else "stop"
    if limit is not None and len(pieces) > limit and not tool_calls:
        pieces, finish = pieces[:limit], "length"
        content = "".join(pieces)
    return {
        "content": content,
        "tool_calls": tool_calls,
        "pieces": pieces,
        "finish": finish,
        "tokens": len(pieces),
    }


def split_tokens(text: str) -> list[str]:
    """The text in the pieces in which it is streamed: words with the blank before them."""
    pieces: list[str] = []
    for word in text.split(" "):
        pieces.append(word if not pieces else " " + word)
    return [piece for piece in pieces if piece]


_numbers = itertools.count(1)


def frame_of(body: dict[str, Any]) -> dict[str, Any]:
    """What every answer and chunk begins with."""
    return {
        "id": f"chatcmpl-dev{next(_numbers)}",
        "created": int(time.time()),
        "model": body.get("model") or CHAT_MODEL,
        "system_fingerprint": "errand-dev",
    }


def usage_of(answer: dict[str, Any], tokens: int) -> dict[str, int]:
    """Usage as OpenAI words it."""
    return {
        "prompt_tokens": tokens,
        "completion_tokens": answer["tokens"],
        "total_tokens": tokens + answer["tokens"],
    }


def whole_answer(body: dict[str, Any], answer: dict[str, Any], tokens: int) -> dict[str, Any]:
    """An unstreamed answer."""
    message: dict[str, Any] = {"role": "assistant", "content": answer["content"], "refusal": None}
    if answer["tool_calls"]:
        message["tool_calls"] = answer["tool_calls"]
    return {
        **frame_of(body),
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": answer["finish"], "logprobs": None}],
        "usage": usage_of(answer, tokens),
    }


async def pace(request: web.Request, tokens: int) -> None:
    """Takes the time that a model of the set speed would."""
    rate = request.app[PACE]["tokensPerSecond"]
    await asyncio.sleep(request.app[PACE]["firstTokenSeconds"] + (tokens / rate if rate else 0))


async def stream_answer(
    request: web.Request,
    body: dict[str, Any],
    answer: dict[str, Any],
    call: dict[str, Any],
    fault: dict[str, Any],
) -> web.StreamResponse:
    """Server-Sent Events, a token each; tokens are counted as they are sent."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    frame = {**frame_of(body), "object": "chat.completion.chunk"}
    rate = fault.get("tokensPerSecond") if fault.get("kind") == "slow" else request.app[PACE]["tokensPerSecond"]
    await asyncio.sleep(request.app[PACE]["firstTokenSeconds"])
    await response.prepare(request)

    async def send(delta: dict[str, Any], finish: str | None = None) -> None:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client went away")
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        await response.write(b"data: " + json.dumps({**frame, "choices": [choice]}).encode() + b"\n\n")

    await send({"role": "assistant", "content": "", "refusal": None})
    pieces = answer["pieces"]
    cut_after = fault.get("after", len(pieces) // 2) if fault.get("kind") in ("cut", "truncate") else None
    if answer["tool_calls"]:
        tool = answer["tool_calls"][0]
        head = {
            "index": 0,
            "id": tool["id"],
            "type": "function",
            "function": {"name": tool["function"]["name"], "arguments": ""},
        }
        await send({"tool_calls": [head]})
    for number, piece in enumerate(pieces):
        if cut_after is not None and number >= cut_after:
            if fault["kind"] == "truncate":
                # A proxy in between that ends the body as if it were whole.
                await response.write_eof()
            elif request.transport is not None:
                request.transport.abort()
            return response
        if answer["tool_calls"]:
            await send({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            await send({"content": piece})
        call["outputTokens"] += 1
        if rate:
            await asyncio.sleep(1 / rate)
    await send({}, answer["finish"])
    if (body.get("stream_options") or {}).get("include_usage") and fault.get("kind") != "no_usage":
        last = {**frame, "choices": [], "usage": usage_of(answer, call["inputTokens"])}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


class Embedder:
    """wordllama, loaded from the weights in its wheel at the first use."""

    def __init__(self) -> None:
        self._model: Any = None

    def embed(self, texts: list[str]) -> Any:
        """Unit vectors, float32."""
        if self._model is None:
            import pathlib

            import wordllama

            folder = pathlib.Path(wordllama.__file__).parent
            self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        return self._model.embed(texts, norm=True)


EMBEDDER = web.AppKey("embedder", Embedder)


async def embeddings(request: web.Request) -> web.Response:
    """POST /v1/embeddings."""
    body = await body_of(request)
    if isinstance(body, web.Response):
        return body
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        return error(400, "'input' must be a non-empty string or a list of non-empty strings.")
    if len(texts) > MAX_EMBEDDING_INPUTS:
        return error(400, f"'input' may hold at most {MAX_EMBEDDING_INPUTS} texts.")
    dimensions = body.get("dimensions", DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= DIMENSIONS:
        return error(400, f"'dimensions' must be between 1 and {DIMENSIONS}.")
    tokens = sum(count_tokens(text) for text in texts)
    fault = request.app[FAULTS].take("embeddings")
    call = request.app[BOOKS].begin("embeddings", body, tokens)
    try:
        if (refusal := faulty_status(fault)) is not None:
            call["inputTokens"], call["status"] = 0, refusal.status
            return refusal
        if fault.get("kind") == "stall":
            await asyncio.sleep(fault.get("seconds", 3600))
        vectors = await asyncio.to_thread(request.app[EMBEDDER].embed, texts)
        data = []
        for index, vector in enumerate(vectors):
            values = [float(value) for value in vector[:dimensions]]
            norm = sum(value * value for value in values) ** 0.5 or 1.0
            values = [value / norm for value in values]
            coded: Any = values
            if body.get("encoding_format") == "base64":
                coded = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            data.append({"object": "embedding", "index": index, "embedding": coded})
        return web.json_response(
            {
                "object": "list",
                "data": data,
                "model": body.get("model") or EMBEDDING_MODEL,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )
    finally:
        request.app[BOOKS].end(call, "done")


async def models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    return web.json_response(
        {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "errand-development"}
                for name in (CHAT_MODEL, EMBEDDING_MODEL)
            ],
        }
    )


async def set_faults(request: web.Request) -> web.Response:
    """POST /dev/faults: a list of faults for the next calls; replaces what was set."""
    faults = await request.json()
    for fault in faults:
        if fault.get("kind") not in Faults.KINDS:
            return error(400, f"kind must be one of {', '.join(Faults.KINDS)}")
    request.app[FAULTS].queue = faults
    return web.json_response({"faults": len(faults)})


async def set_pace(request: web.Request) -> web.Response:
    """POST /dev/pace: `tokensPerSecond` (0: at once) and `firstTokenSeconds` of all calls."""
    request.app[PACE].update(await request.json())
    return web.json_response(request.app[PACE])


async def stats(request: web.Request) -> web.Response:
    """GET /dev/stats: the count of calls and tokens. DELETE clears it."""
    books = request.app[BOOKS]
    if request.method == "DELETE":
        books.calls = [call for call in books.calls if call["ended"] == "open"]
        books.most_open = books.open
    ended = collections.Counter(call["ended"] for call in books.calls)
    summary = {
        "calls": len(books.calls),
        "open": books.open,
        "mostOpen": books.most_open,
        "ended": dict(ended),
        "inputTokens": sum(call["inputTokens"] for call in books.calls),
        "outputTokens": sum(call["outputTokens"] for call in books.calls),
    }
    if "calls" in request.query:
        summary["list"] = books.calls
    return web.json_response(summary)


async def health(request: web.Request) -> web.Response:
    """GET /healthz."""
    return web.json_response({"status": "ok", "model": CHAT_MODEL})


def create_app(*, tokens_per_second: float = 0.0, first_token_s: float = 0.0) -> web.Application:
    """The server; speed 0 answers at once."""
    app = web.Application(client_max_size=256 * 1024 * 1024, handler_args={"handler_cancellation": True})
    app[FAULTS] = Faults()
    app[BOOKS] = Books()
    app[EMBEDDER] = Embedder()
    app[PACE] = {"tokensPerSecond": tokens_per_second, "firstTokenSeconds": first_token_s}
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/dev/faults", set_faults)
    app.router.add_post("/dev/pace", set_pace)
    app.router.add_get("/dev/stats", stats)
    app.router.add_delete("/dev/stats", stats)
    app.router.add_get("/healthz", health)
    return app


async def serve(host: str, port: int, speed: float, first: float) -> None:
    """Serves until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = web.AppRunner(
        create_app(tokens_per_second=speed, first_token_s=first),
        access_log=None,
        shutdown_timeout=1.0,
        handler_cancellation=True,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    address = runner.addresses[0]
    print(
        f"development model {CHAT_MODEL!r} (extractive: it quotes, it does not think) on "
        f"http://{address[0]}:{address[1]}/v1",
        file=sys.stderr,
        flush=True,
    )
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    """The process. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dev_model", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="loopback address (default %(default)s)")
    parser.add_argument("--port", type=int, default=9100, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="speed of streams; 0: at once")
    parser.add_argument("--first-token-seconds", type=float, default=0.0, help="wait before the first token")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.host, arguments.port, arguments.tokens_per_second, arguments.first_token_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
