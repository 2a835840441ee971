"""Tools of MCP servers: one session per server and worker process, started at first use and shared by all jobs.

The toolbox imports this only when servers are named: the SDK is an extra.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import mcp_types as types
import msgspec
from mcp import Client, MCPError

from shared.clock import monotonic_s
from shared.errors import ToolFailed
from shared.log import get_logger
from shared.mcp_servers import McpServer
from shared.schemas import BadSchemaError, compile_schema
from shared.toolnames import SEPARATOR, TOOL_NAME
from worker.tools.base import Replay, Tool, ToolContext, ToolError, ToolResult
from worker.tools.mcp_connection import CLOSE_S, Connection, why_not

log = get_logger()

MAX_TOOLS: Final = 200  # of one server
MAX_DESCRIPTION: Final = 4_000  # characters
LIST_S: Final = 60.0  # for so long a list of tools is believed
IDEMPOTENCY_KEY: Final = "errand/idempotency-key"  # in a call's `_meta`; MCP has no name for it


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
                raise ToolFailed(why_not(self._name, self._server, TimeoutError())) from None
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
