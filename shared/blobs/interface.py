"""What every place for blobs has.

A key is a path such as `files/ten_…/ab12…`. A blob is durable when it was put, and never changes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, Protocol

import msgspec

from shared.errors import ErrandError

CHUNK_BYTES: Final = 256 * 1024  # the most that `stream` yields at a time

_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]+)+")


class BlobMissingError(ErrandError):
    """There is no blob of this key."""


class BlobTooLargeError(ErrandError):
    """The content is longer than the given limit; nothing was kept."""


class Stored(msgspec.Struct, frozen=True):
    """What was written: length and SHA-256 (hex) of the content."""

    size_bytes: int
    sha256: str


class Blobs(Protocol):
    """The interface. Every call raises BlobsUnavailableError when the store cannot serve us just now."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> Stored:
        """Writes content as it arrives, never whole in memory. Raises BlobTooLargeError."""
        ...

    async def put(self, key: str, content: bytes) -> None:
        """Writes a blob, replacing one of the same key in one step."""
        ...

    async def get(self, key: str) -> bytes:
        """A blob's content. Raises BlobMissingError."""
        ...

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` (exclusive), as far as there are any. Raises BlobMissingError."""
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The same in pieces of at most CHUNK_BYTES; without `end` to the blob's end. Raises BlobMissingError at the
        first piece, and at a later one when the blob was deleted meanwhile."""
        ...

    async def size(self, key: str) -> int:
        """A blob's length in bytes. Raises BlobMissingError."""
        ...

    async def delete(self, key: str) -> None:
        """Removes a blob; no error when there is none."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Removes all blobs below `prefix/`, however many: how many there were."""
        ...

    async def discard_unfinished(self, older_than_s: float) -> int:
        """Removes what killed processes left half written, and nobody wrote on for so long: how many there were."""
        ...


def checked(key: str) -> str:
    """The key, or prefix of at least two parts. Raises ValueError for what is none."""
    if not _KEY.fullmatch(key) or ".." in key:
        raise ValueError(f"not a blob key: {key!r}")
    return key
