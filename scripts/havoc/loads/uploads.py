"""Batches that come as a file: uploaded, embedded line by line, their output read by ranges while it is made."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from scripts.havoc.history import Seen
from scripts.havoc.loads.ground import Ground

FIRST = 30_000_000
LINES = 400
RANGE_BYTES = 60_000
BAD = 123  # the line that is no JSON


class Uploads:
    """One tenant's files."""

    AT_ONCE = 1

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = ""
        self._whole = self._ranges = 0

    async def prepare(self) -> None:
        """The tenant."""
        _, self._key = await self._ground.make_tenant("uploads", {})

    async def one(self, number: int) -> None:
        """One file, from its upload to its deletion."""
        ref = f"ref{FIRST + number}x"
        texts = [f"{ref}: {self._clients.text(8)} {line % 90}" for line in range(LINES)]
        content = b"".join(
            b"{no json\n" if line == BAD else json.dumps(text).encode() + b"\n" for line, text in enumerate(texts)
        )
        made = await self._upload(content, ref)
        stored = await self._ground.job_of("uploads", ref, self._key, made["jobId"], "ingest")
        if stored.view is not None and stored.view["status"] == "complete":
            source = {"documentId": made["documentId"], "dimensions": 64}
            body = {"type": "batch-embedding", "input": source, "maxAttempts": 20, "metadata": {"ref": f"{ref}b"}}
            seen = Seen(f"{ref}b", f"{ref}b", self._key, body, kind="uploads")
            await self._clients.submit(seen)
            content = await self._read(seen)
            view = await self._clients.until_final(seen)
            self._clients.look_later(seen)
            if view["status"] == "complete":
                self._check(seen.job_id, texts, content)
        await self._clients.call("DELETE", f"/api/documents/{made['documentId']}", self._key)

    async def _upload(self, content: bytes, mark: str) -> dict[str, Any]:
        """The same file with the same key until it is taken; a form can be sent once only."""
        while True:
            form = aiohttp.FormData()
            form.add_field("index", "false")
            form.add_field("file", content, filename="texts.ndjson")
            url = self._ground.chance.choice(self._clients.urls) + "/api/documents"
            headers = {"Authorization": f"Bearer {self._key}", "Idempotency-Key": f"upload-{mark}"}
            try:
                timeout = aiohttp.ClientTimeout(total=15)
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.post(url, data=form, headers=headers) as answer,
                ):
                    made = await answer.json(content_type=None)
                    if answer.status < 500 and answer.status != 429:
                        assert answer.status == 202, made
                        accepted: dict[str, Any] = made
                        return accepted
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                pass
            await asyncio.sleep(0.2)

    async def _read(self, seen: Seen) -> bytes:
        """The output by ranges, from where the last one ended, until the job has ended and there is no more."""
        content = b""
        while True:
            url = f"{self._ground.chance.choice(self._clients.urls)}/api/jobs/{seen.job_id}/output"
            headers = {
                "Authorization": f"Bearer {self._key}",
                "Range": f"bytes={len(content)}-{len(content) + RANGE_BYTES - 1}",
            }
            try:
                timeout = aiohttp.ClientTimeout(total=15)
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.get(url, headers=headers) as answer,
                ):
                    if answer.status == 206:
                        async for piece in answer.content.iter_any():
                            content += piece
                        self._ranges += 1
                        total = answer.headers["Content-Range"].rpartition("/")[2]
                        if total.isdigit() and len(content) == int(total):
                            return content
                        continue
                    if answer.status == 416 and "Retry-After" not in answer.headers:
                        return content
                    if answer.status < 500 and answer.status not in (416, 429):
                        self._ground.found.add("a range was refused", f"{seen.job_id}: {answer.status}")
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                pass
            await asyncio.sleep(0.3)

    def _check(self, job_id: str, texts: list[str], content: bytes) -> None:
        lines = [json.loads(line) for line in content.splitlines()]
        if [line["index"] for line in lines] != list(range(LINES)):
            self._ground.found.add("an output by ranges is not whole", f"{job_id}: {len(lines)} of {LINES} lines")
            return
        vectors: dict[str, Any] = {}
        for text, line in zip(texts, lines, strict=True):
            if ("error" in line) != (line["index"] == BAD):
                self._ground.found.add("an output has a wrong line", f"{job_id}: {str(line)[:80]}")
            elif "error" not in line and vectors.setdefault(text, line["embedding"]) != line["embedding"]:
                self._ground.found.add("one text has two vectors", f"{job_id}: line {line['index']}")
        self._whole += 1

    async def finish(self) -> None:
        """No file is left."""
        _, page = await self._clients.call("GET", "/api/documents?limit=200", self._key)
        for view in page["data"]:
            await self._clients.call("DELETE", f"/api/documents/{view['documentId']}", self._key)

    def row(self) -> str:
        """What is printed."""
        return f"{self._whole} files of {LINES} lines whole, {self._ranges} ranges"
