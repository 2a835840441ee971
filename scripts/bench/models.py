"""An upstream for the benchmarks of whole jobs: embeddings and chats that take a fixed time each and cost little CPU.

    python -m scripts.bench.models PORT

`POST /v1/embeddings` answers vectors that were made beforehand. `POST /v1/chat/completions` streams: a model whose name
begins with `agent` calls `calculate` with another expression at each of `steps` steps and then answers; any other is
the development model's reading, which fits every schema. An answer's first half is silence, the rest comes in pieces;
its last byte is due `latencyS` after the last byte of the request. Above `inFlight` requests at a time: 429, at once.
A request keeps its place for its whole time, whatever becomes of its connection, and counts as served: it is paid for.

`POST /bench` sets these and begins new books; `GET /bench` shows them, `GET /bench/bodies` the requests of the readers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import struct
import sys
from collections import Counter
from time import perf_counter
from typing import Any, cast

import msgspec

from scripts.bench.upstream import FRAME, HEAD, chunk, delta
from scripts.dev_model.answer import make_answer
from shared.prompt_defaults import READ_PART

PIECES = 20  # of an answer
VECTORS = 16  # that are told apart
REFUSAL = b'{"error":{"message":"Too many requests at a time.","type":"requests","code":"rate_limit_exceeded"}}'


class Limits(msgspec.Struct, rename="camel"):
    """How the upstream behaves. `retry_after_s` 0 sends no `Retry-After`."""

    latency_s: float = 0.1
    in_flight: int = 1_000_000
    retry_after_s: float = 0
    steps: int = 20


class Books(msgspec.Struct, rename="camel"):
    """What was served. `calls`: (kind, the model's own seconds) of each; `again`: requests beyond the first of equal
    ones."""

    in_flight: int = 0
    most: int = 0
    served: int = 0
    refused: int = 0
    texts: int = 0
    again: int = 0
    calls: list[tuple[str, float]] = []


class _Request(msgspec.Struct):
    """What is read of a request for vectors."""

    input: list[str]
    dimensions: int = 256
    encoding_format: str = "float"


LIMITS = Limits()
BOOKS = Books()
SEEN: Counter[bytes] = Counter()
BODIES: list[bytes] = []
_answers: dict[tuple[int, int, str], bytes] = {}
_decode = msgspec.json.Decoder(_Request).decode


def vectors(count: int, dimensions: int, encoding: str) -> bytes:
    """A whole answer with so many vectors; the same for all requests of one size."""
    key = (count, dimensions, encoding)
    if key not in _answers:
        chance = random.Random(dimensions)  # noqa: S311 - numbers that look like a vector's
        written = []
        for _ in range(VECTORS):
            numbers = [round(chance.gauss(0, dimensions**-0.5), 10) for _ in range(dimensions)]
            packed = base64.b64encode(struct.pack(f"<{dimensions}f", *numbers))
            written.append(msgspec.json.encode(numbers) if encoding == "float" else b'"%s"' % packed)
        rows = (
            b'{"object":"embedding","index":%d,"embedding":%s}' % (place, written[place % VECTORS])
            for place in range(count)
        )
        usage = b'"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (count * 50, count * 50)
        _answers[key] = whole(b'{"object":"list","model":"bench","data":[%s],%s}' % (b",".join(rows), usage))
    return _answers[key]


def whole(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """An answer that is sent at once."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


def said(text_pieces: list[str], finish: str = "stop") -> list[bytes]:
    """A streamed answer in at most PIECES parts, its frame not counted."""
    size = max(1, -(-len(text_pieces) // PIECES))
    parts = ["".join(text_pieces[at : at + size]) for at in range(0, len(text_pieces), size)]
    return [*(delta({"content": part}) for part in parts), ending(len(text_pieces), finish)]


def ending(tokens: int, finish: str) -> bytes:
    """The end of a streamed answer."""
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    return delta({}, finish) + chunk({**FRAME, "choices": [], "usage": usage}) + chunk("[DONE]") + b"0\r\n\r\n"


def agent(body: dict[str, Any]) -> list[bytes]:
    """The next step of the scripted agent: by the results that it was given."""
    step = sum(message["role"] == "tool" for message in body["messages"])
    if step >= LIMITS.steps:
        return said(["The ", "sum ", "is ", "found."])
    arguments = msgspec.json.encode({"expression": f"({step} + 17) * 3.5 - 2 ** 4"}).decode()
    begun = {"index": 0, "id": f"call_{step}", "type": "function", "function": {"name": "calculate", "arguments": ""}}
    rest: Any = {"index": 0, "function": {"arguments": arguments}}
    calls: tuple[Any, ...] = ({"tool_calls": [begun]}, {"tool_calls": [rest]})
    return [*(delta(call) for call in calls), ending(8, "tool_calls")]


class Connection(asyncio.Protocol):
    """One connection; requests one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)
        self.received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end])
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        if len(self.received) < end + 4 + length:
            return
        body = bytes(self.received[end + 4 : end + 4 + length])
        del self.received[: end + 4 + length]
        self.route(head.split(b" ", 2)[:2], body)

    def route(self, wanted: list[bytes], body: bytes) -> None:
        """Answers one request."""
        match wanted:
            case [b"POST", b"/v1/embeddings"]:
                self.model(self.embed, body)
            case [b"POST", b"/v1/chat/completions"]:
                self.model(self.chat, body)
            case [b"POST", b"/bench"]:
                begin_books(msgspec.json.decode(body, type=Limits))
                self.write(whole(b"{}"))
            case [b"GET", b"/bench/bodies"]:
                self.write(whole(b"[%s]" % b",".join(BODIES)))
            case _:
                self.write(whole(msgspec.json.encode(BOOKS)))

    def model(self, answer: Any, body: bytes) -> None:
        """A request to the model: refused, or answered in its time."""
        books, limits, began = BOOKS, LIMITS, perf_counter()
        if books.in_flight >= limits.in_flight:
            books.refused += 1
            after = b"Retry-After: %g\r\n" % limits.retry_after_s if limits.retry_after_s else b""
            error = (
                b'{"error":{"message":"Too many requests at a time.","type":"requests","code":"rate_limit_exceeded"}}'
            )
            self.write(whole(error, b"429 Too Many Requests", after))
            return
        books.in_flight += 1
        books.most = max(books.most, books.in_flight)
        kind, pieces = answer(body)
        digest = hashlib.blake2b(body, digest_size=16).digest()
        books.again += digest in SEEN
        SEEN[digest] += 1
        loop = asyncio.get_running_loop()
        due = loop.time() - (perf_counter() - began) + limits.latency_s
        *before, last = pieces
        for number, piece in enumerate(before, 1):
            loop.call_at(due - limits.latency_s / 2 * (1 - number / len(pieces)), self.write, piece)
        loop.call_at(due, self.finish, books, kind, began, last)

    def finish(self, books: Books, kind: str, began: float, last: bytes) -> None:
        """The end of an answer."""
        books.in_flight -= 1
        books.served += 1
        self.write(last)
        books.calls.append((kind, perf_counter() - began))

    def embed(self, body: bytes) -> tuple[str, list[bytes]]:
        """Vectors come in one piece."""
        asked = _decode(body)
        BOOKS.texts += len(asked.input)
        return "embed", [vectors(len(asked.input), asked.dimensions, asked.encoding_format)]

    def chat(self, body: bytes) -> tuple[str, list[bytes]]:
        """An agent's step, or a reader's answer."""
        asked = msgspec.json.decode(body)
        opening = HEAD + delta({"role": "assistant", "content": ""})
        if asked["model"].startswith("agent"):
            kind, pieces = "step", agent(asked)
        else:
            BODIES.append(body)
            kind = "read" if asked["messages"][0]["content"] == READ_PART else "combine"
            pieces = said(make_answer(asked, fence_json=False, reasoning="").pieces)
        return kind, [opening + pieces[0], *pieces[1:]]

    def write(self, data: bytes) -> None:
        """Sends, unless nobody is there any more."""
        if not self.transport.is_closing():
            self.transport.write(data)


def begin_books(limits: Limits) -> None:
    """From now on these limits, and an empty account."""
    global LIMITS, BOOKS
    LIMITS, BOOKS = limits, Books()
    SEEN.clear()
    BODIES.clear()


async def serve(port: int) -> None:
    """Serves until it is stopped."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1])))
