"""A relay between Unix sockets that holds every byte back for half of the stated round trip, in each direction.

python -m scripts.bench.relay LISTEN TARGET RTT_MS
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast


class Half(asyncio.Protocol):
    """One side of a connection: what it reads, the other side writes a little later."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.transport: asyncio.Transport | None = None
        self.other: Half | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport = cast(asyncio.Transport, transport)
        for data in self.early:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        asyncio.get_running_loop().call_later(self.delay_s, self._hand_on, data)

    def _hand_on(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            (self.other.early if self.other else self.early).append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio's protocol."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def serve(listen: str, target: str, rtt_ms: float) -> None:
    """Relays until it is stopped."""
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[object]] = set()

    def accept() -> Half:
        near, far = Half(rtt_ms / 2000), Half(rtt_ms / 2000)
        near.other, far.other = far, near
        task = loop.create_task(_connect(loop, far, target))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return near

    server = await loop.create_unix_server(accept, listen)
    await server.serve_forever()


async def _connect(loop: asyncio.AbstractEventLoop, half: Half, target: str) -> object:
    return await loop.create_unix_connection(lambda: half, target)


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3])))
