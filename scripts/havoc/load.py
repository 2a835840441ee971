"""The clients of a chaos run, and the history of what they saw. A request that ended in an error or in silence is
unknown, not failed: it is repeated with its Idempotency-Key until it is answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

WORDS = "harbour pilot tide crane quay berth cargo ledger signal storm lantern rope anchor bridge ferry".split()
FINAL = frozenset({"complete", "failed", "cancelled", "expired"})
REQUEST_S = 10.0


class Seen(msgspec.Struct):
    """One job as its client saw it."""

    ref: str
    key: str
    url: str
    api_key: str
    body: dict[str, Any]
    job_id: str = ""
    cancel_state: str = ""  # the status that the answer to DELETE showed
    retries: int = 0
    finals: list[str] = []  # final states that were shown, in order
    streamed: list[int] = []  # event numbers, as they came, over all reconnects
    gaps: int = 0
    view: dict[str, Any] | None = None  # at the end
    events: list[dict[str, Any]] = []  # at the end
    output: list[dict[str, Any]] = []  # of a batch, at the end


class Clients:
    """Submits, follows, cancels, retries."""

    def __init__(self, urls: list[str], chance: random.Random) -> None:
        self.urls = urls
        self.chance = chance
        self.jobs: list[Seen] = []
        self.refusals: list[tuple[float, int]] = []  # (seconds, status) of what was not answered as asked
        self.unknown = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

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
                    # A long poll that Redis's end interrupts has waited on purpose.
                    if "wait=" not in path:
                        self.refusals.append((time.monotonic() - started, answer.status))
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
        seen = Seen(ref, f"key-{number}", self.chance.choice(self.urls), api_key, self.body(ref))
        self.jobs.append(seen)
        status, answer = await self.call(
            "POST", "/api/jobs", api_key, json=seen.body, headers={"Idempotency-Key": seen.key}
        )
        assert status == 202, answer
        seen.job_id = answer["jobId"]
        dice = self.chance.random()
        if dice < 0.1:
            await asyncio.sleep(self.chance.uniform(0, 0.5))
            await self._cancel(seen)
        elif dice < 0.25:
            await self._follow(seen, slow=self.chance.random() < 0.3)
        await self._until_final(seen)
        if seen.finals[-1] in ("failed", "cancelled") and self.chance.random() < 0.3:
            status, answer = await self.call("POST", f"/api/jobs/{seen.job_id}/retry", api_key)
            # 409: an answer that was lost on the way had opened the run before.
            if status in (202, 409):
                seen.retries += 1
                await self._until_final(seen)

    async def _cancel(self, seen: Seen) -> None:
        answers = [self.call("DELETE", f"/api/jobs/{seen.job_id}", seen.api_key)]
        if self.chance.random() < 0.3:
            answers.append(self.call("DELETE", f"/api/jobs/{seen.job_id}", seen.api_key))
        for status, answer in await asyncio.gather(*answers):
            assert status in (200, 202), answer
            seen.cancel_state = answer["status"]

    async def _until_final(self, seen: Seen) -> None:
        while True:
            status, answer = await self.call("GET", f"/api/jobs/{seen.job_id}?wait=5", seen.api_key)
            assert status == 200, answer
            if answer["status"] in FINAL:
                seen.finals.append(answer["status"])
                return

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

    async def read_all(self) -> None:
        """What each job has come to, when the faults are over."""
        gate = asyncio.Semaphore(32)

        async def read(seen: Seen) -> None:
            async with gate:
                status, seen.view = await self.call("GET", f"/api/jobs/{seen.job_id}", seen.api_key)
                if status != 200:
                    seen.view = None
                after = 0
                if seen.body["type"] == "batch-embedding":
                    seen.output = await self._output(seen)
                while True:
                    status, page = await self.call(
                        "GET", f"/api/jobs/{seen.job_id}/events?limit=1000&after={after}", seen.api_key
                    )
                    if status != 200:
                        return
                    seen.events += page["data"]
                    if not page["hasMore"]:
                        return
                    after = page["next"]

        await asyncio.gather(*(read(seen) for seen in self.jobs if seen.job_id))

    async def _output(self, seen: Seen) -> list[dict[str, Any]]:
        """The lines of a batch's output."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {seen.api_key}"}
        url = f"{self.chance.choice(self.urls)}/api/jobs/{seen.job_id}/output"
        async with self._session.get(url, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return [json.loads(line) for line in (await answer.text()).splitlines()]

    async def list_ids(self, api_key: str) -> list[tuple[str, str]]:
        """(job id, ref) of every job that the tenant has."""
        found: list[tuple[str, str]] = []
        path = "/api/jobs?limit=200"
        while True:
            _, page = await self.call("GET", path, api_key)
            found += [(view["jobId"], view["metadata"].get("ref", "")) for view in page["data"]]
            if not page["hasMore"]:
                return found
            path = f"/api/jobs?limit=200&after={page['next']}"


async def all_of(work: Callable[[int], Awaitable[None]], count: int, at_once: int, stop: Callable[[], bool]) -> None:
    """Runs `work(0)`, `work(1)` … at most `at_once` at a time, until `count` or `stop()`."""
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            if stop():
                return
            await work(number)

    await asyncio.gather(*(client() for _ in range(at_once)))


def model_calls(stats: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The model's own record of calls, by the ref in their messages."""
    found: dict[str, list[dict[str, Any]]] = {}
    for call in stats.get("list", ()):
        text = json.dumps(call["body"].get("messages") or call["body"].get("input", ""))
        at = text.find("ref")
        ref = text[at : text.find("x", at) + 1] if at >= 0 else ""
        found.setdefault(ref, []).append(call)
    return found
