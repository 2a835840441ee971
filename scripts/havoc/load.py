"""The clients of a chaos run, and the history of what they saw. A request that ended in an error or in silence is
unknown, not failed: it is repeated with its Idempotency-Key until it is answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiohttp

from scripts.havoc.check import check_job
from scripts.havoc.history import FINAL, Seen, Violations
from scripts.havoc.inspector import Inspector

WORDS = "harbour pilot tide crane quay berth cargo ledger signal storm lantern rope anchor bridge ferry".split()
REQUEST_S = 10.0


class Clients:
    """Submits, follows, cancels, retries; what came of a job is looked at a while after its end."""

    def __init__(self, urls: list[str], chance: random.Random, inspector: Inspector, found: Violations) -> None:
        self.urls = urls
        self.chance = chance
        self.inspector = inspector
        self.found = found
        self.jobs: list[Seen] = []
        self.refusals: list[tuple[float, int, str]] = []  # (seconds, status, what) of what was not answered as asked
        self.unknown = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def renew(self) -> None:
        """Closes all connections, as if these clients had gone."""
        await self.__aexit__()
        await self.__aenter__()

    async def call(self, method: str, path: str, api_key: str, **options: Any) -> tuple[int, Any]:
        """One call, repeated on any API until one answers. 5xx and silence are unknown outcomes."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {api_key}", **options.pop("headers", {})}
        # Some clients give up at once, and do not know what became of their request.
        patience_s = self.chance.uniform(0.001, 0.02) if self.chance.random() < 0.05 else REQUEST_S
        while True:
            url, started = self.chance.choice(self.urls), time.monotonic()
            timeout, patience_s = aiohttp.ClientTimeout(total=patience_s), REQUEST_S
            try:
                async with self._session.request(
                    method, url + path, headers=headers, timeout=timeout, **options
                ) as answer:
                    body: Any = await answer.json(content_type=None)
                    if answer.status < 500 and answer.status != 429:
                        return answer.status, body
                    # A long poll that Redis's end interrupts has waited on purpose; so has a search for its worker.
                    if "wait=" not in path and path != "/api/search":
                        what = f"{method} {path.partition('?')[0]}"
                        self.refusals.append((time.monotonic() - started, answer.status, what))
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
                self.unknown += 1
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))

    def text(self, words: int) -> str:
        """A text that the model makes an answer of."""
        return " ".join(self.chance.choice(WORDS) for _ in range(words))

    def body(self, ref: str) -> dict[str, Any]:
        """A job: mostly chats, some documents, agents and batches."""
        priority = self.chance.choice(["high", "normal", "normal", "low"])
        common = {"priority": priority, "metadata": {"ref": ref}, "maxAttempts": 20}
        dice = self.chance.random()
        if dice < 0.06:
            goal = f"{ref}: " + " ".join(f"{n}. Calculate {self.chance.randint(2, 999)} * 7.5." for n in range(1, 4))
            return {"type": "agent", "input": {"goal": goal, "tools": ["calculate"]}, **common}
        if dice < 0.12:
            texts = [f"{ref}: {self.text(12)} {number % 120}" for number in range(120)]
            return {"type": "batch-embedding", "input": {"texts": texts + texts[:20], "dimensions": 64}, **common}
        if dice < 0.22:
            parts = "\n\n".join(f"{ref}: part {n}. {self.text(60)}." for n in range(3))
            return {
                "type": "document-analysis",
                "input": {"document": {"text": parts}, "tasks": [{"kind": "summary"}]},
                **common,
            }
        if self.chance.random() < 0.05:
            common["delaySeconds"] = round(self.chance.uniform(0.1, 2), 2)
        words = self.chance.randint(300, 900) if self.chance.random() < 0.15 else self.chance.randint(3, 40)
        content = f"{ref}: {self.text(words)}."
        return {"type": "chat", "input": {"messages": [{"role": "user", "content": content}]}, **common}

    async def one(self, number: int, api_key: str) -> None:
        """The life of one job, as a client lives it."""
        ref = f"ref{number}x"
        seen = Seen(ref, f"key-{number}", api_key, self.body(ref))
        await self.submit(seen)
        dice = self.chance.random()
        if dice < 0.1:
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await self._cancel(seen)
        elif dice < 0.25:
            await self._follow(seen, slow=self.chance.random() < 0.3)
        await self.until_final(seen)
        if seen.finals[-1] in ("failed", "cancelled") and self.chance.random() < 0.3:
            status, _ = await self.call("POST", f"/api/jobs/{seen.job_id}/retry", api_key)
            # 409: an answer that was lost on the way had opened the run before.
            if status in (202, 409):
                seen.retries += 1
                await self.until_final(seen)
        self.look_later(seen)

    async def submit(self, seen: Seen) -> dict[str, Any]:
        """Submits a job, once however often; its first view."""
        self.jobs.append(seen)
        headers = {"Idempotency-Key": seen.key}
        status, answer = await self.call("POST", "/api/jobs", seen.api_key, json=seen.body, headers=headers)
        assert status == 202, answer
        seen.job_id = answer["jobId"]
        first: dict[str, Any] = answer
        return first

    def look_later(self, seen: Seen) -> None:
        """Has a job that has ended checked in a while."""
        self.inspector.later(lambda: self.look(seen))

    async def _cancel(self, seen: Seen) -> None:
        answers = [self.call("DELETE", f"/api/jobs/{seen.job_id}", seen.api_key)]
        if self.chance.random() < 0.3:
            answers.append(self.call("DELETE", f"/api/jobs/{seen.job_id}", seen.api_key))
        for status, answer in await asyncio.gather(*answers):
            assert status in (200, 202), answer
            seen.cancel_state = answer["status"]

    async def until_final(self, seen: Seen) -> dict[str, Any]:
        """The view of a job at its end."""
        while True:
            status, answer = await self.call("GET", f"/api/jobs/{seen.job_id}?wait=5", seen.api_key)
            assert status == 200, answer
            if answer["status"] in FINAL:
                seen.finals.append(answer["status"])
                view: dict[str, Any] = answer
                return view

    async def _follow(self, seen: Seen, *, slow: bool) -> None:
        """The stream, cut at random and resumed, to its end; a slow reader leaves it unread for a while."""
        assert self._session is not None
        for _ in range(200):
            last = seen.streamed[-1] if seen.streamed else 0
            headers = {"Authorization": f"Bearer {seen.api_key}", "Last-Event-ID": str(last)}
            url = f"{self.chance.choice(self.urls)}/api/jobs/{seen.job_id}/stream"
            cut_after = self.chance.randint(1, 60)
            try:
                async with self._session.get(
                    url, headers=headers, timeout=aiohttp.ClientTimeout(total=None, sock_read=20, sock_connect=5)
                ) as answer:
                    if answer.status == 204:
                        return
                    if answer.status != 200:
                        await asyncio.sleep(0.2)
                        continue
                    async for line in answer.content:
                        if line.startswith(b"id: "):
                            seen.streamed.append(int(line[4:]))
                            cut_after -= 1
                            if slow:
                                await asyncio.sleep(0.05)
                        elif line.startswith(b"event: gap"):
                            seen.gaps += 1
                        elif line.startswith(b"data: [DONE]"):
                            return
                        # Only between events: half an event is not one.
                        elif line == b"\n" and cut_after <= 0:
                            break
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                await asyncio.sleep(0.1)

    async def look(self, seen: Seen) -> None:
        """Checks what a job has come to."""
        if seen.is_checked:
            return
        status, seen.view = await self.call("GET", f"/api/jobs/{seen.job_id}", seen.api_key)
        if status != 200:
            seen.view = None
        if "texts" in seen.body["input"]:
            seen.output = await self._output(seen)
        seen.events = await self.log(seen.job_id, seen.api_key)
        check_job(seen, self.found)
        seen.shrink()

    async def log(self, job_id: str, api_key: str) -> list[dict[str, Any]]:
        """All events of a job; none when it cannot be read."""
        events: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            status, page = await self.call("GET", f"/api/jobs/{job_id}/events?limit=1000&after={after}", api_key)
            if status != 200:
                return []
            events += page["data"]
            after = page["next"] if page["hasMore"] else None
        return events

    async def look_at_rest(self) -> None:
        """Checks what was not: of clients that were stopped before their job ended."""
        gate = asyncio.Semaphore(16)

        async def look(seen: Seen) -> None:
            async with gate:
                await self.look(seen)

        await asyncio.gather(*(look(seen) for seen in self.jobs if seen.job_id and not seen.is_checked))

    async def _output(self, seen: Seen) -> list[dict[str, Any]]:
        """The lines of a batch's output, asked for until it comes whole; none when the job has none."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {seen.api_key}"}
        while True:
            url = f"{self.chance.choice(self.urls)}/api/jobs/{seen.job_id}/output"
            try:
                timeout = aiohttp.ClientTimeout(total=REQUEST_S)
                async with self._session.get(url, headers=headers, timeout=timeout) as answer:
                    if answer.status == 200:
                        return [json.loads(line) for line in (await answer.text()).splitlines()]
                    if answer.status < 500 and answer.status != 429:
                        return []
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
                pass
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))

    async def list_jobs(self, api_key: str) -> list[tuple[str, str, str]]:
        """(job id, ref, status) of every job that the tenant has."""
        found: list[tuple[str, str, str]] = []
        path = "/api/jobs?limit=200"
        while True:
            _, page = await self.call("GET", path, api_key)
            found += [(view["jobId"], view["metadata"].get("ref", ""), view["status"]) for view in page["data"]]
            if not page["hasMore"]:
                return found
            path = f"/api/jobs?limit=200&after={page['next']}"


async def all_of(
    work: Callable[[int], Awaitable[None]], numbers: Iterable[int], at_once: int, stop: Callable[[], bool]
) -> None:
    """Runs `work` with each of the numbers, at most `at_once` at a time, until they are done or `stop()`."""
    left = iter(numbers)

    async def client() -> None:
        for number in left:
            if stop():
                return
            await work(number)

    await asyncio.gather(*(client() for _ in range(at_once)))


def never() -> bool:
    """For work without an early end."""
    return False
