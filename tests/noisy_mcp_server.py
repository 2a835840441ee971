"""An MCP server over stdio that tells everything it is asked to its standard error, as many do."""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("noisy", log_level="DEBUG")


@server.tool()
def repeat(text: str) -> str:
    """Says it again."""
    sys.stderr.write(f"asked to repeat {text}\n")
    sys.stderr.flush()
    if "fail" in text:
        raise RuntimeError(text)
    return text


if __name__ == "__main__":
    server.run()
