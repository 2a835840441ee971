"""Blobs in a local directory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from shared.blobs.interface import CHUNK_BYTES, BlobMissingError, BlobTooLargeError, Stored, checked
from shared.clock import wall_ms

INCOMING = "incoming"  # where a blob is written before it has its name


class LocalBlobs:
    """Blobs as files below a directory, written aside and renamed, with fsync before anything is answered."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    def _aside(self) -> Path:
        folder = self.root / INCOMING
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
            try:
                with aside.open("xb") as file:
                    file.write(content)
                    _sync(file)
                _settle(aside, self._path(key))
            finally:
                aside.unlink(missing_ok=True)

        await asyncio.to_thread(write)

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        try:
            return await asyncio.to_thread(self._path(key).read_bytes)
        except FileNotFoundError:
            raise BlobMissingError(key) from None

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See Blobs."""

        def read() -> bytes:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(max(0, end - start))

        try:
            return await asyncio.to_thread(read)
        except FileNotFoundError:
            raise BlobMissingError(key) from None

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See Blobs."""
        try:
            file = await asyncio.to_thread(self._path(key).open, "rb")
        except FileNotFoundError:
            raise BlobMissingError(key) from None
        with file:
            await asyncio.to_thread(file.seek, start)
            at = start
            while end is None or at < end:
                wanted = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - at)
                if not (chunk := await asyncio.to_thread(file.read, wanted)):
                    return
                at += len(chunk)
                yield chunk

    async def size(self, key: str) -> int:
        """See Blobs."""
        try:
            return (await asyncio.to_thread(self._path(key).stat)).st_size
        except FileNotFoundError:
            raise BlobMissingError(key) from None

    async def delete(self, key: str) -> None:
        """See Blobs."""
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def delete_prefix(self, prefix: str) -> int:
        """See Blobs. The emptied directories go too."""
        return await asyncio.to_thread(_clear, self._path(prefix))

    async def discard_unfinished(self, older_than_s: float) -> int:
        """See Blobs."""

        def discard() -> int:
            count, before_s = 0, wall_ms() / 1000 - older_than_s
            with suppress(FileNotFoundError), os.scandir(self.root / INCOMING) as entries:
                for entry in entries:
                    # Its writer may have ended, or another process may be at this too.
                    with suppress(FileNotFoundError):
                        if entry.stat(follow_symlinks=False).st_mtime < before_s:
                            os.unlink(entry.path)
                            count += 1
            return count

        return await asyncio.to_thread(discard)


def _clear(folder: Path) -> int:
    count, moved = 0, True
    # By portions: a folder may hold more names than should be in memory.
    while moved:
        moved = False
        try:
            with os.scandir(folder) as entries:
                portion = list(islice(entries, 1_000))
        except (FileNotFoundError, NotADirectoryError):
            break
        for entry in portion:
            if entry.is_dir(follow_symlinks=False):
                count += _clear(Path(entry.path))
                moved = moved or not Path(entry.path).exists()
            else:
                Path(entry.path).unlink(missing_ok=True)
                count, moved = count + 1, True
    # Another process may clear it too, or have written into it just now.
    with suppress(OSError):
        folder.rmdir()
    return count


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle(aside: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
