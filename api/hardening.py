"""What every answer tells a browser: that it is no page to be framed, guessed at, or allowed to load anything."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

from aiohttp import web

_COMMON: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_DATA: Final = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# Our pages have a style sheet inside them, and nothing else: no script, image, font or frame.
_PAGE: Final = f"{_DATA}; style-src 'unsafe-inline'"


def harden(headers: MutableMapping[str, str], content_type: str) -> None:
    """Adds the headers to an answer; one that is there already stays."""
    for name, value in _COMMON.items():
        headers.setdefault(name, value)
    headers["Server"] = "errand"  # aiohttp has put its own and Python's version there
    headers.setdefault("Content-Security-Policy", _PAGE if content_type == "text/html" else _DATA)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To every response, before it begins."""
    harden(response.headers, response.content_type)
