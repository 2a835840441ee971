"""The names of the tools that agents may call: enough to judge a submission without the tools themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from shared.mcp_servers import parse_servers
from shared.settings import Settings

BUILT_IN: Final = ("calculate", "current_time", "search_documents", "read_document", "fetch_url")
DEFAULTS: Final = ("calculate", "current_time", "search_documents", "read_document")

SEPARATOR: Final = "__"  # between an MCP server's name and its tool's
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
FETCH_OFF: Final = "`fetch_url` is switched off on this installation (ERRAND_FETCH_ENABLED)"


def available(settings: Settings) -> list[str]:
    """What a job may name, for a person: the built-in tools and `server__*` for each MCP server."""
    built_in = [name for name in BUILT_IN if name != "fetch_url" or settings.fetch_enabled]
    return built_in + [f"{server}{SEPARATOR}*" for server in parse_servers(settings.mcp_servers)]


def problem(name: str, settings: Settings) -> str | None:
    """What is wrong with one tool name, as a sentence without its full stop; None when it may be used.

    Which tools an MCP server has is known to the worker alone: it is asked when the job runs.
    """
    there = f"; there are: {', '.join(available(settings))}"
    if name in BUILT_IN:
        return FETCH_OFF if name == "fetch_url" and not settings.fetch_enabled else None
    server, separator, tool = name.partition(SEPARATOR)
    if not separator or not tool:
        return f"there is no tool {name[:64]!r}{there}"
    servers = parse_servers(settings.mcp_servers)
    if server not in servers:
        return f"there is no MCP server {server[:24]!r}{there}"
    if tool == "*":
        return None
    if not TOOL_NAME.fullmatch(name):
        return f"{name[:64]!r} is no name of a tool: letters, digits, `_` and `-`, at most 64"
    allowed = servers[server].tools
    if allowed is not None and tool not in allowed:
        return f"the MCP server {server!r} offers no tool {tool[:64]!r}; of its tools these may be used: " + (
            ", ".join(allowed) or "none"
        )
    return None


def problems(names: Sequence[str], settings: Settings) -> list[str]:
    """What is wrong with the tools that a submission names; empty when nothing is."""
    return [found for name in names if (found := problem(name, settings)) is not None]
