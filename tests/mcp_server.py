"""A small MCP server for tests: `mcp_server.py` speaks over stdio, `mcp_server.py PORT` over HTTP on loopback."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from typing import Any

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

server = MCPServer("small", log_level="CRITICAL")
calls = itertools.count(1)


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool(annotations=ToolAnnotations(idempotent_hint=True))
def pay(amount: int, context: Context) -> str:
    """Pays, once per key."""
    meta: Any = context.request_context.meta or {}
    return f"paid {amount} {dict(meta).get('errand/idempotency-key')}"


@server.tool()
def count() -> int:
    """How often this process was asked."""
    return next(calls)


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("the shop is closed")


@server.tool()
async def slow() -> str:
    """Takes a minute."""
    await asyncio.sleep(60)
    return "late"


@server.tool()
async def die() -> str:
    """Dies in mid-call."""
    await asyncio.sleep(0.1)
    os._exit(1)


@server.tool()
def who() -> list[str]:
    """The process and the names of its environment."""
    return [str(os.getpid()), *sorted(os.environ)]


@server.tool(structured_output=False)
def picture() -> list[Any]:
    """A text and an image."""
    return ["look:", Image(data=b"x" * 300, format="png")]


@server.tool(structured_output=True)
def shelf() -> dict[str, int]:
    """What is there."""
    return {"apples": 3}


@server.tool(name="odd name.with:signs")
def odd() -> str:
    """Has a name that models cannot say."""
    return ""


@server.tool()
def shout() -> str:
    """Writes a megabyte to standard error."""
    sys.stderr.write("noise noise noise\n" * 60_000)
    sys.stderr.flush()
    return "shouted"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
