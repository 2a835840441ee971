"""An upstream that costs next to nothing: streams the same answer to every chat request, at a steady pace.

    python -m scripts.bench.upstream PORT TOKENS TOKENS_PER_SECOND

It speaks the wire format of OpenAI's streamed chat completions (chunked, a role chunk first, usage last), so that what
is measured is what stands between it and the client.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\n\r\n"
)
FRAME = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "bench"}


def chunk(payload: object) -> bytes:
    """One event in a chunk of its own."""
    data = f"data: {payload if isinstance(payload, str) else json.dumps(payload)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(content: dict[str, str], finish: str | None = None) -> bytes:
    """A chunk of the answer."""
    return chunk({**FRAME, "choices": [{"index": 0, "delta": content, "finish_reason": finish}]})


class Upstream(asyncio.Protocol):
    """One connection; requests one after the other."""

    tokens = 250
    interval_s = 0.02
    pieces: tuple[bytes, ...] = ()
    last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)
        self.received = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        if len(body) < length:
            return
        self.received = body[length:]
        if not head.startswith(b"POST"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        self.transport.write(HEAD + delta({"role": "assistant", "content": ""}))
        self._next(0, asyncio.get_running_loop().time())

    def _next(self, number: int, due: float) -> None:
        if number == self.tokens:
            self.transport.write(self.last)
            return
        self.transport.write(self.pieces[number])
        due += self.interval_s
        self.timer = asyncio.get_running_loop().call_at(due, self._next, number + 1, due)


async def serve(port: int, tokens: int, rate: float) -> None:
    """Serves until it is stopped."""
    Upstream.tokens, Upstream.interval_s = tokens, 1 / rate
    Upstream.pieces = tuple(delta({"content": f" token{number}"}) for number in range(tokens))
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": tokens + 10}
    Upstream.last = delta({}, "stop") + chunk({**FRAME, "choices": [], "usage": usage}) + chunk("[DONE]") + b"0\r\n\r\n"
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
