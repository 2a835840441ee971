"""A small client of the HTTP API, for the scripts: JSON calls, uploads and event streams that resume."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

DEFAULT_URL = "http://127.0.0.1:8080"


class ApiError(Exception):
    """The API refused; `problem` is its problem object."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or str(problem))
        self.problem = problem


class UnreachableError(Exception):
    """There is no API at this address."""


@dataclass
class Place:
    """How far an output has been read. `is_whole`: the job has ended, and that was all."""

    at: int = 0
    is_whole: bool = False


def default_key() -> str | None:
    """ERRAND_KEY, else ERRAND_ADMIN_KEY, else the admin key of the data directory."""
    for name in ("ERRAND_KEY", "ERRAND_ADMIN_KEY"):
        if os.environ.get(name):
            return os.environ[name]
    path = Path(os.environ.get("ERRAND_DATA_DIR", ".errand")) / "admin.key"
    try:
        return path.read_text().strip()
    except OSError:
        return None


class Client:
    """Calls to one API. Raises ApiError and UnreachableError."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self.url = (url or os.environ.get("ERRAND_URL") or DEFAULT_URL).rstrip("/")
        self._key = key or default_key()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None, connect=5))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """One call; the decoded JSON answer, None when it has no body."""
        return (await self.tagged(method, path, **options))[0]

    async def tagged(self, method: str, path: str, **options: Any) -> tuple[Any, str | None]:
        """The same, and the answer's ETag."""
        assert self._session is not None
        try:
            async with self._session.request(method, self.url + path, **options) as response:
                body = await response.read()
                if response.status >= 400:
                    raise ApiError(_problem(response.status, body))
                return _decoded(response.content_type, body), response.headers.get("ETag")
        except aiohttp.ClientConnectionError as error:
            raise UnreachableError(f"there is no Errand at {self.url}: {error}") from None

    async def pages(self, path: str, *, most: int | None = None, query: str = "") -> dict[str, Any]:
        """The rows of a list from its start, all or at most so many, as one page."""
        page: dict[str, Any] = {"data": [], "hasMore": True, "next": None}
        while page["hasMore"] and (most is None or len(page["data"]) < most):
            left = 200 if most is None else min(200, most - len(page["data"]))
            parts = [f"limit={left}", *([f"after={page['next']}"] if page["next"] else []), *([query] if query else [])]
            found = await self.call("GET", f"{path}?{'&'.join(parts)}")
            page = {**found, "data": page["data"] + found["data"]}
        return page

    async def upload(self, path: Path, **fields: str) -> Any:
        """Stores a file as a document; see `upload_content`."""
        with path.open("rb") as file:
            return await self.upload_content(file, path.name, **fields)

    async def upload_content(self, content: Any, filename: str, *, where: str = "", **fields: str) -> Any:
        """Stores an open file, or pieces of bytes as they come, as a document, or as that at the path `where`."""
        form = aiohttp.FormData()
        for name, value in fields.items():
            form.add_field(name, value)
        form.add_field("file", content, filename=filename)
        return await self.call("PUT" if where else "POST", where or "/api/documents", data=form)

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """A job's events to the final one; a broken connection is resumed after the last event seen."""
        assert self._session is not None
        failures = 0
        while True:
            headers = {"Last-Event-ID": str(after)} if after else {}
            try:
                async with self._session.get(f"{self.url}/api/jobs/{job_id}/stream", headers=headers) as response:
                    if response.status == 204:
                        return
                    if response.status >= 400:
                        raise ApiError(_problem(response.status, await response.read()))
                    failures = 0
                    async for line in response.content:
                        if not line.startswith(b"data:"):
                            continue
                        payload = line[5:].strip()
                        if payload == b"[DONE]":
                            return
                        event = json.loads(payload)
                        after = event.get("seq", after)
                        yield event
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                failures += 1
                if failures > 6:
                    raise UnreachableError(f"the stream of {job_id} cannot be resumed: {error}") from None
                await asyncio.sleep(min(0.2 * 2**failures, 3))

    async def output(self, job_id: str, place: Place, *, follow: bool = True) -> AsyncIterator[bytes]:
        """A job's output from `place` on, which moves along; a broken connection is resumed there. With `follow` to the
        job's end, else what is there now."""
        assert self._session is not None
        failures = 0
        while not place.is_whole:
            wait_s = min(0.2 * 2**failures, 3)
            try:
                address, headers = f"{self.url}/api/jobs/{job_id}/output", {"Range": f"bytes={place.at}-"}
                async with self._session.get(address, headers=headers) as response:
                    if response.status in (502, 503):
                        raise aiohttp.ClientPayloadError(f"HTTP {response.status}")
                    if response.status != 416 and (response.status >= 400 or (response.status == 200 and place.at)):
                        raise ApiError(_problem(response.status, await response.read()))
                    wait_s = float(response.headers.get("Retry-After", 1))
                    if response.status != 416:
                        async for piece in response.content.iter_any():
                            place.at, failures = place.at + len(piece), 0
                            yield piece
                    # Only a job that has not ended asks to come again.
                    place.is_whole = "Retry-After" not in response.headers
                    if not follow:
                        return
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                failures += 1
                if failures > 6:
                    raise UnreachableError(f"the output of {job_id} cannot be resumed: {error}") from None
            if not place.is_whole:
                await asyncio.sleep(min(wait_s, 5))

    async def chat(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """A chat's text as it is made; a broken connection is resumed after the last frame seen. Raises ApiError."""
        assert self._session is not None
        place, failures, key, begun = "", 0, secrets.token_hex(16), False
        while True:
            headers = {"Last-Event-ID": place} if place else {"Idempotency-Key": key}
            try:
                address = f"{self.url}/api/chat/stream"
                async with self._session.post(address, json=body, headers=headers) as response:
                    if response.status == 503 and failures < 3:
                        failures += 1
                        await asyncio.sleep(min(float(response.headers.get("Retry-After", "1")), 5))
                        continue
                    if response.status >= 400:
                        raise ApiError(_problem(response.status, await response.read()))
                    failures, failed, begun = 0, False, True
                    async for line in response.content:
                        name, _, value = line.decode().rstrip("\n").partition(": ")
                        if name == "id":
                            place = value
                        elif name == "event":
                            failed = value == "error"
                        elif name == "data" and value == "[DONE]":
                            return
                        elif name == "data":
                            if failed:
                                raise ApiError(json.loads(value))
                            yield json.loads(value)["text"]
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                failures += 1
                if not begun:
                    raise UnreachableError(f"there is no Errand at {self.url}: {error}") from None
                if failures > 6:
                    raise UnreachableError(f"the chat's stream broke and cannot be resumed: {error}") from None
            await asyncio.sleep(min(0.2 * 2**failures, 3))


def _decoded(content_type: str, body: bytes) -> Any:
    if not body:
        return None
    return json.loads(body) if "json" in content_type else body.decode("utf-8", "replace")


def _problem(status: int, body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
        return problem if isinstance(problem, dict) else {"status": status, "detail": str(problem)}
    except ValueError:
        return {"status": status, "detail": f"HTTP {status}"}
