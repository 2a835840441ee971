"""A TCP proxy that breaks connections in mid-stream, for tests of how clients come back."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any
from urllib.parse import urlsplit


class Cut:
    """Ends a connection when `after_bytes` of an answer have passed: with a reset, or as a proxy that just closes."""

    def __init__(self, after_bytes: int, *, reset: bool = True) -> None:
        self.after_bytes = after_bytes
        self.reset = reset


class CuttingProxy:
    """Forwards to the host and port of `target`. Each of `cuts` ends one connection, in turn; later ones pass whole.

    Only connections on which a request came that contains `marker` (such as b"GET /api/ws") are cut, and bytes are
    counted from there: a browser's preflights, and connections that it opens in advance, use up no cut.
    """

    def __init__(self, target: str, *cuts: Cut, marker: bytes = b"") -> None:
        address = urlsplit(target)
        self._target = address.hostname, address.port
        self._cuts = list(cuts)
        self._marker = marker
        self._connections: set[asyncio.Task[Any]] = set()
        self.made = 0  # cuts that were made
        self.passed = 0  # connections on which such a request came
        self.url = ""

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await Connection(self, reader, writer).run()
        except (OSError, asyncio.CancelledError):
            pass  # a side has gone, or the test is over
        finally:
            writer.close()
            self._connections.discard(task)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the target."""
        return await asyncio.open_connection(*self._target)

    def cut_for(self, sent: bytes) -> Cut | None:
        """The cut of a connection on which a client has sent this; None when it may pass."""
        if self._marker not in sent:
            return None
        self.passed += 1
        return self._cuts.pop(0) if self._cuts else None


class Connection:
    """One client's connection, and the one to the target that belongs to it."""

    def __init__(self, proxy: CuttingProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._cut: Cut | None = None
        self._left = 0

    async def run(self) -> None:
        """Forwards until either side ends, or the cut."""
        reader, writer = await self._proxy.connect()
        # What was written must have left before a cut.
        self._writer.transport.set_write_buffer_limits(high=0)
        directions = [
            asyncio.create_task(self._upstream(self._reader, writer)),
            asyncio.create_task(self._downstream(reader, self._writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.transport.abort()

    async def _upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            # The head of a request comes in one piece from all clients that we have seen.
            if self._cut is None and (cut := self._proxy.cut_for(data)) is not None:
                self._cut, self._left = cut, cut.after_bytes
            writer.write(data)
            await writer.drain()

    async def _downstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self._cut is None:
                writer.write(data)
                await writer.drain()
                continue
            writer.write(data[: self._left])
            await writer.drain()
            self._left -= len(data)
            if self._left <= 0:
                self._proxy.made += 1
                if self._cut.reset:
                    reset(writer)
                return


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a crashed host does: with RST (socket(7), SO_LINGER of 0 s)."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
