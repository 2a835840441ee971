"""Tools of MCP servers: one session per server and worker process, started at first use and shared by all jobs.

A session lives in a task of its own, since it must be left in the task that entered it. The official SDK speaks the
protocol; imported by the toolbox only when servers are named.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import IO, Any, Final, TypeVar

import anyio
import httpx2
import mcp_types as types
import msgspec
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from shared.clock import monotonic_s
from shared.errors import ToolFailed
from shared.log import get_logger
from shared.mcp_servers import McpServer
from shared.schemas import BadSchemaError, compile_schema
from shared.toolnames import SEPARATOR, TOOL_NAME
from worker.tools.base import Replay, Tool, ToolContext, ToolError, ToolResult

log = get_logger()

T = TypeVar("T")

MAX_TOOLS: Final = 200  # of one server
MAX_DESCRIPTION: Final = 4_000  # characters
MAX_NOISE: Final = 200  # pieces of a server's standard error that are logged, each of at most 500 characters
LIST_S: Final = 60.0  # for so long a list of tools is believed
CLOSE_S: Final = 8.0  # the SDK needs up to 6 s to stop a server that ignores everything but SIGKILL
IDEMPOTENCY_KEY: Final = "errand/idempotency-key"  # in a call's `_meta`; MCP has no name for it


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
        self.owner = asyncio.create_task(self._own(), name=f"mcp-{name}")

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
                self._started.set_exception(ToolFailed(_why(self._name, self._server, error)))
                self._started.exception()  # seen, should nobody wait for it any more
            log.info("mcp.ended", server=self._name, error=type(error).__name__ if error else None)

    def _transport(self) -> Any:
        if self._server.command is not None:
            return _over_stdio(self._name, self._server, self.retire)
        return _over_http(self._server)


def _why(name: str, server: McpServer, error: BaseException | None) -> str:
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
    """Reads a server's standard error until its end, so that it never blocks; logs the first of it."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        heard = 0
        while piece := await reader.read(4_096):
            for line in filter(None, piece.decode("utf-8", "replace").splitlines()):
                heard += 1
                if heard <= MAX_NOISE:
                    log.debug("mcp.said", server=name, line=line[:500])
    finally:
        transport.close()


class Server:
    """One MCP server, started when it is needed and again after it broke."""

    def __init__(self, name: str, server: McpServer) -> None:
        self._name = name
        self._server = server
        self._connection: Connection | None = None
        self._owners: set[asyncio.Task[None]] = set()
        self._listed: tuple[float, dict[str, Tool]] = (0.0, {})
        self._closed = False

    async def tools(self) -> dict[str, Tool]:
        """Its tools that may be used, by full name. Raises ToolFailed when it cannot be reached."""
        until, tools = self._listed
        if monotonic_s() >= until or self._connection is None or self._connection.broken:
            try:
                found = await asyncio.wait_for(self._list(), self._server.timeout_seconds)
            except TimeoutError:
                raise ToolFailed(_why(self._name, self._server, TimeoutError())) from None
            except MCPError as error:
                raise ToolFailed(f"The MCP server {self._name} does not list its tools ({error.code}).") from None
            except (RuntimeError, ValueError):
                raise ToolFailed(f"The MCP server {self._name} lists its tools in no known form.") from None
            tools = {tool.name: tool for tool in map(self._tool, found) if tool is not None}
            self._listed = (monotonic_s() + LIST_S, tools)
        return tools

    async def close(self) -> None:
        """Ends its sessions; nothing is left of a process that was started."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()
        if self._owners:
            await asyncio.wait(self._owners, timeout=CLOSE_S)

    async def _connected(self) -> Connection:
        if self._closed:
            raise ToolFailed("The worker is stopping.")
        if self._connection is None or self._connection.broken:
            self._connection = Connection(self._name, self._server)
            self._owners.add(self._connection.owner)
            self._connection.owner.add_done_callback(self._owners.discard)
        connection = self._connection
        await connection.started()
        return connection

    async def _list(self) -> list[types.Tool]:
        connection = await self._connected()
        found: list[types.Tool] = []
        cursor: str | None = None
        while True:
            page = await connection.use(partial(_page, cursor=cursor))
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) >= MAX_TOOLS:
                return found[:MAX_TOOLS]

    def _tool(self, found: types.Tool) -> Tool | None:
        """A server's tool as ours; None when it is not on the list of those allowed, or cannot be offered."""
        name = f"{self._name}{SEPARATOR}{found.name}"
        if self._server.tools is not None and found.name not in self._server.tools:
            return None
        try:
            compile_schema(found.input_schema)
        except BadSchemaError:
            fits = False
        else:
            fits = TOOL_NAME.fullmatch(name) is not None
        if not fits:
            log.warning("mcp.tool_unusable", server=self._name, tool=found.name[:100])
            return None
        return Tool(
            name=name,
            description=(found.description or found.title or found.name)[:MAX_DESCRIPTION],
            parameters=found.input_schema,
            run=partial(self._call, found.name),
            replay=_replay(found.annotations),
            timeout_s=self._server.timeout_seconds,
        )

    async def _call(self, tool: str, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        meta: Any = {IDEMPOTENCY_KEY: context.idempotency_key} if context.idempotency_key else None
        connection = await self._connected()
        try:
            result = await connection.use(lambda client: client.call_tool(tool, arguments, meta=meta))
        except ToolFailed:
            raise ToolError(
                f"The MCP server {self._name} went away during the call; whether it was carried out is not known."
            ) from None
        except MCPError as error:
            if error.code == types.INVALID_REQUEST:
                connection.retire()  # perhaps a session that the server has forgotten
            raise ToolError(f"The MCP server {self._name} refused the call: {error.message[:500]}") from None
        except (RuntimeError, ValueError):
            raise ToolError(f"The MCP server {self._name} answered in a form that it did not promise.") from None
        return ToolResult(text_of(result), is_error=result.is_error)


async def _page(client: Client, cursor: str | None) -> types.ListToolsResult:
    return await client.list_tools(cursor=cursor)


def _replay(hints: types.ToolAnnotations | None) -> Replay:
    if hints is not None and hints.read_only_hint:
        return "safe"
    return "keyed" if hints is not None and hints.idempotent_hint else "never"


def text_of(result: types.CallToolResult) -> str:
    """A result as text: its text parts; without one, its structured content; other parts as a short note."""
    texts = [part.text for part in result.content if isinstance(part, types.TextContent)]
    if not texts and result.structured_content is not None:
        texts = [msgspec.json.encode(result.structured_content).decode()]
    return "\n".join([*texts, *(_note(part) for part in result.content if not isinstance(part, types.TextContent))])


def _note(part: Any) -> str:
    match part:
        case types.ImageContent() | types.AudioContent():
            return f"[{part.type} {part.mime_type}, {len(part.data) * 3 // 4} bytes: cannot be shown]"
        case types.ResourceLink():
            return f"[resource {part.uri}: {part.name}]"
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return f"[resource {resource.uri}]\n{resource.text}"
        case types.EmbeddedResource():
            return f"[resource {part.resource.uri}: cannot be shown]"
    return "[content of an unknown kind]"
