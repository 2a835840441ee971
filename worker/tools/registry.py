"""The tools of one worker, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shared.errors import ConfigurationError, InvalidInput
from shared.mcp_servers import McpServer, parse_servers
from shared.settings import Settings
from shared.toolnames import DEFAULTS, SEPARATOR, problem
from worker.documents.library import Library
from worker.documents.passages import Passages
from worker.documents.web import WebPages
from worker.fetch import Fetcher
from worker.tools.base import Tool
from worker.tools.calculate import CALCULATE
from worker.tools.clock import CURRENT_TIME
from worker.tools.documents import READ_DOCUMENT, search_documents
from worker.tools.web import fetch_url

if TYPE_CHECKING:
    from worker.tools.mcp import Server  # which few installations have

OF_DOCUMENTS = frozenset({"search_documents", "read_document"})


class Toolbox:
    """What the agents of one worker may call; made once, closed with the worker."""

    def __init__(self, settings: Settings, library: Library) -> None:
        """Raises ConfigurationError when MCP servers are named that cannot be spoken to here."""
        self._settings = settings
        self.pages = WebPages(Fetcher(settings), library)
        tools = (
            CALCULATE,
            CURRENT_TIME,
            search_documents(Passages(library, settings.search_characters)),
            READ_DOCUMENT,
            fetch_url(self.pages, settings),
        )
        self._built_in = {tool.name: tool for tool in tools}
        self._servers = _servers(parse_servers(settings.mcp_servers))

    async def close(self) -> None:
        """Ends the MCP servers; nothing is called any more."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def resolve(self, names: Sequence[str] | None, *, has_documents: bool) -> list[Tool]:
        """The tools of these names, each once, in their order. None: the defaults, those of documents only when the
        job `has_documents`.

        Raises InvalidInput with a sentence that says what there is, ToolFailed when an MCP server cannot be reached.
        """
        if names is None:
            names = [name for name in DEFAULTS if has_documents or name not in OF_DOCUMENTS]
        found: dict[str, Tool] = {}
        for name in dict.fromkeys(names):
            if (wrong := problem(name, self._settings)) is not None:
                raise InvalidInput(f"{wrong[0].upper()}{wrong[1:]}.")
            if name in self._built_in:
                found[name] = self._built_in[name]
                continue
            server, _, tool = name.partition(SEPARATOR)
            offered = await self._servers[server].tools()
            if tool == "*":
                found |= offered
            elif name in offered:
                found[name] = offered[name]
            else:
                raise InvalidInput(f"There is no tool {name!r}; {server} has: {', '.join(offered) or 'none'}.")
        return list(found.values())


def _servers(named: Mapping[str, McpServer]) -> dict[str, Server]:
    if not named:
        return {}
    try:
        from worker.tools.mcp import Server
    except ImportError:
        raise ConfigurationError(
            "ERRAND_MCP_SERVERS needs the extra `mcp`, which is not installed: pip install 'errand[mcp]'"
        ) from None
    return {name: Server(name, server) for name, server in named.items()}
