"""Vectors for the texts of a file: uploaded as it is read, and written as they are made."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import msgspec

from scripts.client import ApiError, Client, Place
from scripts.commands.following import going_on
from scripts.commands.parsing import Commands, job_path, positive, without_none
from scripts.commands.printing import failure_text, note, out, sink, usage_error
from scripts.results import embedding_text

PIECE_BYTES = 256 * 1024

_encode = msgspec.json.Encoder().encode

USELESS = ("invalid_input", "document_rejected")  # a retry of the same file would end alike
TIMEOUT_S = 86_400  # the longest that there is: a large file takes hours


async def embed(client: Client, arguments: argparse.Namespace) -> int:
    """Embeds the texts of a file. Exit code 1 when any of them could not be embedded."""
    path = Path(arguments.file)
    if arguments.out and arguments.file != "-" and Path(arguments.out).exists() and Path(arguments.out).samefile(path):
        return usage_error(f"{path} is the input; name another file for the output")
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if arguments.file == "-" else stack.enter_context(_opened(path))
        except OSError as error:
            return usage_error(f"{path} cannot be read: {error.strerror}")
        target = stack.enter_context(sink(arguments.out))
        texts = Texts(file.fileno(), plain=arguments.lines)
        try:
            document = await client.upload_content(texts.pieces(), path.name, index="false")
        except Exception:
            if texts.problem is not None:  # what broke the upload off
                return usage_error(f"{arguments.file}: {texts.problem}")
            raise
        return await _embed_document(client, arguments, document["documentId"], target)


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


async def _embed_document(client: Client, arguments: argparse.Namespace, document_id: str, target: BinaryIO) -> int:
    wanted = without_none(model=arguments.model, dimensions=arguments.dimensions, encoding=arguments.encoding)
    body = {
        "type": "batch-embedding",
        "timeoutSeconds": TIMEOUT_S,
        "input": {"documentId": document_id, **wanted},
    }
    try:
        job = await client.call("POST", "/api/jobs", json=body)
    except ApiError:
        await _remove(client, document_id)
        raise
    with going_on(job["jobId"], "output --follow"):
        job = await _download(client, job["jobId"], target)
    if arguments.json and arguments.out:
        out(arguments, job, "")
    is_done = job["status"] == "complete"
    note(embedding_text(job["result"]) if is_done else failure_text(job))
    if arguments.keep:
        note(f"{document_id} is kept")
    elif is_done or job.get("error", {}).get("code") in USELESS:
        await _remove(client, document_id)
    else:
        note(f"{document_id} is kept for errand jobs retry {job['jobId']}")
    return 0 if is_done and not job["result"]["failed"] else 1


async def _download(client: Client, job_id: str, target: BinaryIO) -> dict[str, Any]:
    """The job at its end, with all of its output written."""
    place = Place()
    name = quote(job_id, safe="")
    is_shown = sys.stderr.isatty() and not target.isatty()

    async def fetch() -> None:
        async for piece in client.output(name, place, follow=False):
            target.write(piece)
        target.flush()

    try:
        async for event in client.events(name):
            if event["type"] == "job.progress":
                if is_shown:
                    share = "" if event["fraction"] is None else f"{event['fraction']:4.0%}  "
                    print(f"\r\x1b[K{share}{event['message']}", end="", file=sys.stderr, flush=True)
                await fetch()
        await fetch()
    finally:
        if is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    job: dict[str, Any] = await client.call("GET", job_path(job_id))
    return job


async def _remove(client: Client, document_id: str) -> None:
    try:
        await client.call("DELETE", f"/api/documents/{quote(document_id, safe='')}")
    except ApiError as error:
        note(f"{document_id} could not be deleted: {error}")


class Texts:
    """A file on its way up; with `plain`, each line becomes an item whose id is the line's number."""

    def __init__(self, source: int, *, plain: bool) -> None:
        self.problem: str | None = None
        self._source = source
        self._plain = plain
        self._number = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content, piece by piece. A problem is set before it is raised: aiohttp hides it in one of its own."""
        rest = b""
        while piece := await in_thread(lambda: os.read(self._source, PIECE_BYTES)):
            if not self._plain:
                yield piece
                continue
            *lines, rest = (rest + piece).split(b"\n")
            yield self._items(lines)
        if rest:
            yield self._items([rest])

    def _items(self, lines: list[bytes]) -> bytes:
        made = []
        for line in lines:
            self._number += 1
            try:
                text = line.decode("utf-8-sig" if self._number == 1 else "utf-8").removesuffix("\r")
            except UnicodeDecodeError:
                self.problem = f"line {self._number} is not UTF-8"
                raise ValueError(self.problem) from None
            if text.strip():
                made.append(_encode({"id": str(self._number), "text": text}) + b"\n")
        return b"".join(made)


async def in_thread(call: Callable[[], bytes]) -> bytes:
    """Like asyncio.to_thread, in a thread that Ctrl-C need not wait for: a read of a terminal may never end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | None, error: OSError | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result or b"")

    def work() -> None:
        try:
            found, error = call(), None
        except OSError as caught:
            found, error = None, caught
        loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=work, daemon=True).start()
    return await future


def register(commands: Commands) -> None:
    """`embed`."""
    embedding = commands.action(commands.top, "embed", embed, "vectors for the texts of a file")
    embedding.add_argument("file", help='NDJSON: a string or {"id", "text"} on each line; - reads standard input')
    embedding.add_argument("--lines", action="store_true", help="FILE is plain text: each line that is not blank is a "
                           "text, and its number the item's id")  # fmt: skip
    embedding.add_argument("-o", "--out", metavar="FILE", help="where the vectors go, as NDJSON (default: standard "
                           "output); with --json the job is printed then")  # fmt: skip
    embedding.add_argument("--model")
    embedding.add_argument("--dimensions", type=positive, metavar="N", help="default: the model's own number")
    embedding.add_argument("--encoding", choices=["float", "base64"], help="default: float")
    embedding.add_argument("--keep", action="store_true", help="keep the uploaded texts (default: deleted when done)")
