"""One session with an MCP server, over stdio or HTTP.

It lives in a task of its own, since it must be left in the task that entered it. The official SDK speaks the protocol.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import IO, Any, Final, TypeVar

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from shared.errors import ToolFailed
from shared.log import get_logger
from shared.mcp_servers import McpServer
from shared.scope import apart

log = get_logger()

T = TypeVar("T")

MAX_NOISE: Final = 200  # lines of a server's standard error of which the log tells
CLOSE_S: Final = 8.0  # the SDK needs up to 6 s to stop a server that ignores everything but SIGKILL


class Connection:
    """One session with one server, from its start until it breaks or is closed."""

    def __init__(self, name: str, server: McpServer) -> None:
        self._name = name
        self._server = server
        self._client: Client | None = None
        self._calls = 0
        self._ending = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.broken = False
        self.owner = asyncio.create_task(self._own(), name=f"mcp-{name}", context=apart())

    async def started(self) -> None:
        """Waits until it can be used. Raises ToolFailed when it cannot."""
        await asyncio.wait({self._started})
        self._started.result()

    async def use(self, ask: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """The answer to one question. Raises what `ask` raises, and ToolFailed when the session ends meanwhile."""
        assert self._client is not None
        self._calls += 1
        asking = asyncio.create_task(ask(self._client))
        try:
            await asyncio.wait({asking, self.owner}, return_when=asyncio.FIRST_COMPLETED)
            error = asking.exception() if asking.done() else None
            if isinstance(error, MCPError) and error.code == types.CONNECTION_CLOSED:
                self.broken = True
            if not asking.done() or (error is not None and self.broken):
                raise ToolFailed(f"The connection to the MCP server {self._name} broke.")
            return asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking}, timeout=1.0)
            self._calls -= 1
            if self.broken and not self._calls:
                self._ending.set()

    def retire(self) -> None:
        """Takes no more calls; ends when those under way have ended."""
        self.broken = True
        if not self._calls:
            self._ending.set()

    async def close(self) -> None:
        """Ends it now; a process that it started is gone afterwards."""
        self.broken = True
        self._ending.set()
        await asyncio.wait({self.owner}, timeout=CLOSE_S)
        if not self.owner.done():
            self.owner.cancel()
            await asyncio.wait({self.owner}, timeout=1.0)

    async def _own(self) -> None:
        error: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._server.timeout_seconds):
                    self._client = await stack.enter_async_context(Client(self._transport(), cache=None))
                self._started.set_result(None)
                log.info("mcp.connected", server=self._name, protocol=self._client.protocol_version)
                await self._ending.wait()
        except Exception as caught:
            error = caught
        finally:
            self.broken = True
            if not self._started.done():
                self._started.set_exception(ToolFailed(why_not(self._name, self._server, error)))
                self._started.exception()  # seen, should nobody wait for it any more
            log.info("mcp.ended", server=self._name, error=type(error).__name__ if error else None)

    def _transport(self) -> Any:
        if self._server.command is not None:
            return _over_stdio(self._name, self._server, self.retire)
        return _over_http(self._server)


def why_not(name: str, server: McpServer, error: BaseException | None) -> str:
    """Why a start failed, without what the settings hold."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return f"The MCP server {name} could not be started: its command cannot be run."
    if isinstance(error, TimeoutError):
        return f"The MCP server {name} was not ready within {server.timeout_seconds:g} s."
    return f"The MCP server {name} could not be {'started' if server.command else 'reached'}."


@asynccontextmanager
async def _over_http(server: McpServer) -> AsyncIterator[Any]:
    assert server.url is not None
    time_out = httpx2.Timeout(30.0, read=server.timeout_seconds)
    async with (
        httpx2.AsyncClient(headers=server.headers, timeout=time_out) as client,
        streamable_http_client(server.url, http_client=client) as streams,
    ):
        yield streams


@asynccontextmanager
async def _over_stdio(name: str, server: McpServer, on_end: Callable[[], None]) -> AsyncIterator[Any]:
    """The streams of a server that is started; `on_end` is called when it closes its output, as it does when it dies.

    It gets a small environment, not ours: that holds keys.
    """
    assert server.command is not None
    parameters = StdioServerParameters(command=server.command, args=list(server.args), env=server.env)
    reading, writing = os.pipe()
    listening = asyncio.create_task(_hear(name, os.fdopen(reading, "rb", buffering=0)))
    try:
        with os.fdopen(writing, "w") as noise:
            async with stdio_client(parameters, noise) as (read, write), anyio.create_task_group() as group:
                noise.close()  # the server has it now, and alone
                handing, handed = anyio.create_memory_object_stream[Any](0)

                async def hand_on() -> None:
                    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                        async with handing:
                            async for message in read:
                                await handing.send(message)
                    on_end()

                group.start_soon(hand_on)
                try:
                    yield handed, write
                finally:
                    group.cancel_scope.cancel()
                    handed.close()
    finally:
        await asyncio.wait({listening}, timeout=0.5)
        listening.cancel()


async def _hear(name: str, pipe: IO[bytes]) -> None:
    """Reads a server's standard error until its end, so that it never blocks; logs of the first of it that it came,
    and how long it was: many servers say what they are asked."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        heard = 0
        while piece := await reader.read(4_096):
            for line in filter(None, piece.decode("utf-8", "replace").splitlines()):
                heard += 1
                if heard <= MAX_NOISE:
                    log.debug("mcp.said", server=name, characters=len(line))
    finally:
        transport.close()
