"""Blobs in S3, or what speaks like it. Only this module imports obstore."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from shared.blobs.interface import CHUNK_BYTES, BlobMissingError, BlobTooLargeError, Stored, checked
from shared.errors import BlobsUnavailableError, ConfigurationError
from shared.log import get_logger

if TYPE_CHECKING:
    from obstore.store import S3Store

log = get_logger()

PART_BYTES: Final = 8 * 1024 * 1024  # S3 takes 10,000 parts: 80 GB
PARALLEL_PARTS: Final = 2
WINDOW_BYTES: Final = 2 * 1024 * 1024  # of one request: a reader may take its time between two of them
REQUEST: Final = timedelta(seconds=60)
CONNECT: Final = timedelta(seconds=5)
ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class S3Blobs:
    """Blobs as objects of a bucket, below an optional prefix. A request that fails is repeated for `patience_s`."""

    def __init__(self, address: str, *, patience_s: float) -> None:
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError:
            raise ConfigurationError(
                f"ERRAND_BLOBS={address!r} needs the extra `s3`: pip install 'errand[s3]'"
            ) from None
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        self._obstore = obstore
        self._error = exceptions.BaseError
        try:
            self._store: S3Store = S3Store(
                bucket,
                prefix=prefix.strip("/") or None,
                client_options={
                    "allow_http": endpoint.lower().startswith("http://"),
                    "timeout": REQUEST,
                    "connect_timeout": CONNECT,
                },
                retry_config={"retry_timeout": timedelta(seconds=patience_s)},
            )
        except (exceptions.BaseError, ValueError) as error:
            raise ConfigurationError(f"ERRAND_BLOBS={address!r} cannot be used: {_first_line(error)}") from None

    @contextmanager
    def _failures(self, key: str | None = None) -> Iterator[None]:
        """What obstore raises as our own errors; `key` is that of a blob which may be missing."""
        try:
            yield
        except FileNotFoundError as error:
            if key is not None and "NoSuchBucket" not in str(error):
                raise BlobMissingError(key) from None
            raise _unavailable(error) from None
        except (self._error, OSError) as error:
            raise _unavailable(error) from None

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> Stored:
        """See Blobs. What is larger than PART_BYTES goes up in parts, which are given up when anything fails."""
        digest, size = hashlib.sha256(), 0
        with self._failures():
            writer = self._obstore.open_writer_async(
                self._store, checked(key), buffer_size=PART_BYTES, max_concurrency=PARALLEL_PARTS
            )
        # Entered and left by hand: an error of `chunks` is the caller's, and none of the store.
        await writer.__aenter__()
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit_bytes:
                    raise BlobTooLargeError(f"over {limit_bytes} bytes")
                digest.update(chunk)
                with self._failures():
                    await writer.write(chunk)
        except BaseException as error:
            with suppress(self._error, OSError):
                await writer.__aexit__(type(error), error, error.__traceback__)
            raise
        with self._failures():
            await writer.__aexit__(None, None, None)
        return Stored(size, digest.hexdigest())

    async def put(self, key: str, content: bytes) -> None:
        """See Blobs."""
        with self._failures():
            await self._obstore.put_async(self._store, checked(key), content, use_multipart=len(content) > PART_BYTES)

    async def get(self, key: str) -> bytes:
        """See Blobs."""
        with self._failures(key):
            result = await self._obstore.get_async(self._store, checked(key))
            return bytes(await result.bytes_async())

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """See Blobs."""
        size = await self.size(key)
        if start >= min(end, size):
            return b""  # S3 refuses an empty range
        return await self._window(key, start, min(end, size))

    async def _window(self, key: str, start: int, end: int) -> bytes:
        with self._failures(key):
            return bytes(await self._obstore.get_range_async(self._store, checked(key), start=start, end=end))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See Blobs."""
        size = await self.size(key)
        end = size if end is None else min(end, size)
        for at in range(start, end, WINDOW_BYTES):
            window = await self._window(key, at, min(at + WINDOW_BYTES, end))
            for place in range(0, len(window), CHUNK_BYTES):
                yield window[place : place + CHUNK_BYTES]

    async def size(self, key: str) -> int:
        """See Blobs."""
        with self._failures(key):
            return (await self._obstore.head_async(self._store, checked(key)))["size"]

    async def delete(self, key: str) -> None:
        """See Blobs."""
        with self._failures():
            await self._obstore.delete_async(self._store, checked(key))

    async def delete_prefix(self, prefix: str) -> int:
        """See Blobs."""
        count = 0
        with self._failures():
            async for page in self._obstore.list(self._store, checked(prefix), chunk_size=1_000):
                await self._obstore.delete_async(self._store, [entry["path"] for entry in page])
                count += len(page)
        return count

    async def discard_unfinished(self, older_than_s: float) -> int:
        """See Blobs. The service knows of unfinished uploads, and a rule of the bucket ends them
        (docs/operations.md)."""
        return 0


def _unavailable(error: Exception) -> BlobsUnavailableError:
    # The log names host, bucket and key; who sent the request or the job need not know them.
    log.warning("blobs.unavailable", error=_first_line(error))
    return BlobsUnavailableError("The blob store cannot serve us just now.")


def _first_line(error: Exception) -> str:
    # What follows is a dump of the client's insides.
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
