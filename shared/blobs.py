"""Blobs: files and extracted texts, behind one interface; a local directory by default.

A key is a path such as `files/ten_…/ab12…`. A blob is durable when `put` returns, and never changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec

from shared.errors import ErrandError

_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]+)+")


class BlobMissingError(ErrandError):
    """There is no blob of this key."""


class BlobTooLargeError(ErrandError):
    """The content is longer than the given limit; nothing was kept."""


class Stored(msgspec.Struct, frozen=True):
    """What was written: length and SHA-256 (hex) of the content."""

    size_bytes: int
    sha256: str


class Blobs(Protocol):
    """The interface that every place for blobs has."""

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> Stored:
        """Writes content as it arrives, never whole in memory. Raises BlobTooLargeError."""
        ...

    async def put(self, key: str, content: bytes) -> None:
        """Writes a blob, replacing one of the same key in one step."""
        ...

    async def get(self, key: str) -> bytes:
        """A blob's content. Raises BlobMissingError."""
        ...

    async def delete(self, key: str) -> None:
        """Removes a blob; no error when there is none."""
        ...


class LocalBlobs:
    """Blobs as files below a directory, written aside and renamed, with fsync before anything is answered."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key) or ".." in key:
            raise ValueError(f"not a blob key: {key!r}")
        return self.root / key

    def _aside(self) -> Path:
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> Stored:
        """See Blobs."""
        aside = await asyncio.to_thread(self._aside)
        digest, size = hashlib.sha256(), 0
        try:
            file = await asyncio.to_thread(aside.open, "xb")
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit_bytes:
                        raise BlobTooLargeError(f"over {limit_bytes} bytes")
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(_sync, file)
            finally:
                await asyncio.to_thread(file.close)
            await asyncio.to_thread(_settle, aside, self._path(key))
        finally:
            await asyncio.to_thread(aside.unlink, missing_ok=True)
        return Stored(size, digest.hexdigest())

    async def put(self, key: str, content: bytes) -> None:
        """See Blobs."""

        def write() -> None:
            aside = self._aside()
            with aside.open("xb") as file:
                file.write(content)
                _sync(file)
            _settle(aside, self._path(key))

        await asyncio.to_thread(write)

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        try:
            return await asyncio.to_thread(self._path(key).read_bytes)
        except FileNotFoundError:
            raise BlobMissingError(key) from None

    async def delete(self, key: str) -> None:
        """See Blobs."""
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)


def _sync(file: object) -> None:
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def _settle(aside: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
