"""The operator's MCP servers, as `ERRAND_MCP_SERVERS` names them. Its values may be secrets: no error quotes them."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.errors import ConfigurationError

ServerName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,24}$")]


class McpServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One server: a `command` that is started and spoken to over stdio, or the `url` of one that runs elsewhere.

    `tools` are those that may be used; without it, all. `timeoutSeconds` bounds its start and each call.
    """

    command: Annotated[str, Meta(min_length=1)] | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    url: Annotated[str, Meta(pattern=r"^https?://\S+$")] | None = None
    headers: dict[str, str] = {}
    timeout_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    tools: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.command is None) == (self.url is None):
            raise ValueError("exactly one of `command` and `url` is needed")
        if self.command is None and (self.args or self.env):
            raise ValueError("`args` and `env` go with `command`")
        if self.url is None and self.headers:
            raise ValueError("`headers` go with `url`")


@lru_cache(maxsize=8)
def parse_servers(text: str) -> dict[ServerName, McpServer]:
    """The servers by name; none for an empty text. Raises ConfigurationError, which says where the text is wrong."""
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[ServerName, McpServer])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(f"ERRAND_MCP_SERVERS is not valid: {error}") from None
