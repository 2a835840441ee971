"""Blobs: one contract for the local directory and for S3, the latter over HTTP against a server that speaks it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.blobs import CHUNK_BYTES, BlobMissingError, Blobs, BlobTooLargeError, LocalBlobs, S3Blobs, blobs_of
from shared.errors import BlobsUnavailableError, ConfigurationError
from shared.settings import Settings
from tests.conftest import Stack
from tests.s3 import S3Server, environment, free_port
from tests.test_documents import upload

MB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Iterator[Blobs]:
    if request.param == "local":
        yield LocalBlobs(tmp_path)
        return
    with environment(s3.url):
        yield blobs_of(Settings(blobs=f"s3://{s3.bucket()}/some/where"), patience_s=1)


async def pieces(count: int, size: int = CHUNK_BYTES, error: Exception | None = None) -> AsyncIterator[bytes]:
    for index in range(count):
        yield bytes([index % 251]) * size
    if error is not None:
        raise error


async def test_what_was_put_is_there_and_replaced_in_one_step(blobs: Blobs) -> None:
    await blobs.put("texts/a/x", b"one")
    await blobs.put("texts/a/x", b"another")
    assert await blobs.get("texts/a/x") == b"another"
    assert await blobs.size("texts/a/x") == 7
    await blobs.delete("texts/a/x")
    await blobs.delete("texts/a/x")
    with pytest.raises(BlobMissingError):
        await blobs.get("texts/a/x")


async def test_what_is_missing_says_so(blobs: Blobs) -> None:
    with pytest.raises(BlobMissingError):
        await blobs.size("texts/a/none")
    with pytest.raises(BlobMissingError):
        await blobs.get_range("texts/a/none", 0, 1)
    with pytest.raises(BlobMissingError):
        await anext(aiter(blobs.stream("texts/a/none")))


@pytest.mark.parametrize("key", ["x", "/x/y", "a/../b", "a//b", "a/b/", ""])
async def test_only_keys_are_keys(blobs: Blobs, key: str) -> None:
    for call in (blobs.get(key), blobs.put(key, b""), blobs.delete_prefix(key)):
        with pytest.raises(ValueError, match="not a blob key"):
            await call


async def test_a_stream_goes_in_and_out_in_pieces(blobs: Blobs) -> None:
    """Given a content of many parts, when it is stored and read, then every byte is there, also from the middle."""
    stored = await blobs.put_stream("files/a/big", pieces(45), limit_bytes=12 * MB)
    whole = b"".join([piece async for piece in pieces(45)])
    assert (stored.size_bytes, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    read = [piece async for piece in blobs.stream("files/a/big")]
    assert b"".join(read) == whole
    assert max(map(len, read)) <= CHUNK_BYTES
    start, end = CHUNK_BYTES - 3, 3 * MB + 5
    assert b"".join([piece async for piece in blobs.stream("files/a/big", start, end)]) == whole[start:end]
    assert b"".join([piece async for piece in blobs.stream("files/a/big", len(whole) - 2)]) == whole[-2:]
    assert [piece async for piece in blobs.stream("files/a/big", len(whole))] == []
    assert await blobs.get_range("files/a/big", start, start + 9) == whole[start : start + 9]
    assert await blobs.get_range("files/a/big", len(whole) - 1, len(whole) + 9) == whole[-1:]
    assert await blobs.get_range("files/a/big", len(whole), len(whole) + 9) == b""


async def test_an_empty_stream_is_an_empty_blob(blobs: Blobs) -> None:
    assert (await blobs.put_stream("files/a/empty", pieces(0), limit_bytes=1)).size_bytes == 0
    assert await blobs.get("files/a/empty") == b""
    assert [piece async for piece in blobs.stream("files/a/empty")] == []


async def test_what_is_too_large_or_cut_leaves_nothing(blobs: Blobs, s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(BlobTooLargeError):
        await blobs.put_stream("files/a/x", pieces(80), limit_bytes=18 * MB)
    with pytest.raises(ConnectionResetError):
        await blobs.put_stream("files/a/x", pieces(40, error=ConnectionResetError("gone")), limit_bytes=20 * MB)

    async def endless() -> AsyncIterator[bytes]:
        async for piece in pieces(40):
            yield piece
        await asyncio.sleep(60)

    task = asyncio.create_task(blobs.put_stream("files/a/x", endless(), limit_bytes=20 * MB))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(BlobMissingError):
        await blobs.size("files/a/x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    for bucket in s3.client.list_buckets()["Buckets"]:
        assert s3.open_uploads(bucket["Name"]) == 0


async def test_what_a_killed_writer_left_goes_after_a_while(blobs: Blobs, tmp_path: Path) -> None:
    """Given a file that nobody finished, and one that somebody writes just now, then the first alone is removed."""
    await blobs.put("files/a/whole", b"whole")
    incoming = tmp_path / "incoming"
    if isinstance(blobs, LocalBlobs):
        for name, age_s in (("left", 3_700), ("written", 60)):
            (incoming / name).write_bytes(b"half")
            os.utime(incoming / name, (time.time() - age_s,) * 2)
    assert await blobs.discard_unfinished(3_600) == (1 if isinstance(blobs, LocalBlobs) else 0)
    assert await blobs.discard_unfinished(3_600) == 0
    assert await blobs.get("files/a/whole") == b"whole"
    if isinstance(blobs, LocalBlobs):
        assert [path.name for path in incoming.iterdir()] == ["written"]


@pytest.mark.parametrize("lane", [None, "batch"])
async def test_the_upkeep_of_both_sides_removes_it(make_stack: Any, tmp_path: Path, lane: str | None) -> None:
    left = tmp_path / "blobs" / "incoming" / "left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 3_700,) * 2)
    stack: Stack = await make_stack(api=lane is None)
    if lane is not None:
        await stack.start_worker(lane)
    async with asyncio.timeout(10):
        while left.exists():
            await asyncio.sleep(0.02)


async def test_a_prefix_is_deleted_with_all_below_it(blobs: Blobs, tmp_path: Path) -> None:
    for key in ("outputs/a/job/0", "outputs/a/job/deep/er", "outputs/a/job2/0", "outputs/a/jo"):
        await blobs.put(key, b"x")
    await blobs.delete_prefix("outputs/a/job")
    await blobs.delete_prefix("outputs/a/job")
    with pytest.raises(BlobMissingError):
        await blobs.size("outputs/a/job/deep/er")
    assert await blobs.get("outputs/a/job2/0") == await blobs.get("outputs/a/jo") == b"x"
    assert not (tmp_path / "outputs/a/job").exists()


async def test_a_large_stream_is_never_whole_in_memory(blobs: Blobs) -> None:
    """Given 100 MB, when they are stored and read, then the process grows by a few parts of an upload at the most."""
    most = 0

    async def watched(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        nonlocal most
        async for piece in source:
            most = max(most, resident_bytes())
            yield piece

    await blobs.put_stream("files/a/warm", pieces(80), limit_bytes=200 * MB)
    before = resident_bytes()
    await blobs.put_stream("files/a/large", watched(pieces(400)), limit_bytes=200 * MB)
    assert sum([len(piece) async for piece in watched(blobs.stream("files/a/large"))]) == 100 * MB
    assert most - before < 60 * MB


def resident_bytes() -> int:
    """Memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_an_s3_that_is_away_is_an_outage(s3: S3Server) -> None:
    with environment(f"http://127.0.0.1:{free_port()}"):
        away = S3Blobs("s3://bucket", patience_s=0.3)
    with environment(s3.url):
        no_bucket = S3Blobs("s3://no-such-bucket", patience_s=0.3)
    for store in (away, no_bucket):
        for call in (store.put("a/b", b"x"), store.put_stream("a/b", pieces(60), limit_bytes=20 * MB)):
            with pytest.raises(BlobsUnavailableError):
                await call
    for call in (away.get("a/b"), away.size("a/b"), away.delete("a/b"), away.delete_prefix("a/b")):
        with pytest.raises(BlobsUnavailableError):
            await call


async def test_a_store_that_refuses_us_is_an_outage(s3: S3Server, monkeypatch: Any) -> None:
    """Given a server that answers 403 or 500 to everything, then it is the store's failure, not the blob's."""
    for line in (b"403 Forbidden", b"500 Internal Server Error"):

        async def refuse(reader: Any, writer: Any, line: bytes = line) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        with environment(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"):
            store = S3Blobs("s3://bucket", patience_s=0.3)
        for call in (store.get("a/b"), store.put("a/b", b"x")):
            with pytest.raises(BlobsUnavailableError):
                await call
        server.close()


async def test_documents_live_in_s3_when_the_settings_say_so(make_stack: Any, s3: S3Server) -> None:
    bucket = s3.bucket()
    with environment(s3.url):
        stack: Stack = await make_stack(workers=("batch",), blobs=f"s3://{bucket}/errand")
        answer = await upload(stack, b"A text in a bucket.")
        assert (await stack.finished(answer.json["jobId"]))["status"] == "complete"
    path = answer.headers["Location"]
    assert (await stack.call("GET", f"{path}/text")).text == "A text in a bucket."
    assert [key.split("/")[:2] for key in s3.keys(bucket)] == [["errand", "files"], ["errand", "texts"]]
    assert (await stack.call("DELETE", path)).status == 200
    assert s3.keys(bucket) == []


async def test_without_its_blob_store_the_api_says_503(make_stack: Any) -> None:
    with environment(f"http://127.0.0.1:{free_port()}"):
        stack: Stack = await make_stack(blobs="s3://bucket")
        answer = await upload(stack, b"x")
    assert (answer.status, answer.json["code"], answer.headers["Retry-After"]) == (503, "unavailable", "1")
    assert (await stack.call("GET", "/api/documents")).json["data"] == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError, match=r"errand\[s3\]"):
        blobs_of(Settings(blobs="s3://bucket"))
    with pytest.raises(ConfigurationError, match="ERRAND_BLOBS"):
        Settings.load({"ERRAND_BLOBS": "gs://bucket"})
