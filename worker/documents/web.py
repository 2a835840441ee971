"""Documents that are named by their URL: fetched by the guarded fetcher, read like any other."""

from __future__ import annotations

from typing import Final

from shared.addresses import FetchRefusedError
from shared.documents import Extracted
from shared.errors import DocumentRejected
from worker.documents.library import Library
from worker.fetch import Fetched, Fetcher, FetchFailedError

_READABLE: Final = frozenset(
    (
        "application/json application/xml application/xhtml+xml application/pdf application/octet-stream "
        "application/markdown application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    ).split()
)


class WebPages:
    """The text of pages and files on the web."""

    def __init__(self, fetcher: Fetcher, library: Library) -> None:
        self._fetcher = fetcher
        self._library = library

    async def read(self, url: str) -> tuple[Extracted, str]:
        """The text, and the URL where it was found in the end. Raises DocumentRejected as `fetch`."""
        content, where = await self.fetch(url)
        return await self._library.extract(content), where

    async def fetch(self, url: str) -> tuple[bytes, str]:
        """The content of a readable page, and the URL where it was found in the end. Raises DocumentRejected with a
        sentence, which `retryable` says may pass when the page could not be reached."""
        try:
            found: Fetched = await self._fetcher.fetch(url)
        except FetchRefusedError as error:
            raise DocumentRejected(str(error)) from None
        except FetchFailedError as error:
            raise PageUnreachable(str(error)) from None
        if found.status >= 500 or found.status == 429:
            raise PageUnreachable(f"{found.url} answered with status {found.status}.")
        if found.status >= 400:
            raise DocumentRejected(f"{found.url} answered with status {found.status}.")
        kind = found.media_type
        if not (kind.startswith("text/") or kind in _READABLE or kind.endswith(("+json", "+xml"))):
            raise DocumentRejected(
                f"{found.url} is {kind[:80]}; only HTML, PDF, DOCX, Markdown, JSON and text are read."
            )
        return found.content, found.url


class PageUnreachable(DocumentRejected):
    """A page could not be reached, or not in time; that may pass."""

    retryable = True
