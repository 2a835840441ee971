"""Chats of a chaos run: read as they are made, cut at random, resumed anywhere, some left alone; and their checker."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
import msgspec

from scripts.havoc.check import tokens_of
from scripts.havoc.history import EXPECTED_ERRORS, FINAL, Violations
from scripts.havoc.load import Clients

FIRST_REF = 10_000_000  # the model's record tells them from other jobs by their number


class Talk(msgspec.Struct):
    """One chat as its client saw it."""

    ref: str
    job_id: str = ""
    place: str = ""
    texts: list[str] = []
    places: list[int] = []
    cuts: int = 0
    ended: str = ""  # done, error, left, refused
    error: str = ""
    view: dict[str, Any] | None = None
    events: list[dict[str, Any]] = []
    is_checked: bool = False

    def shrink(self) -> None:
        """Keeps of it what the last look at all chats needs."""
        self.is_checked = True
        self.texts, self.places, self.events = [], [], []
        if self.view is not None:
            self.view = {name: self.view[name] for name in ("jobId", "status", "usage")}


class Talks:
    """Chats of one tenant, several at a time."""

    def __init__(self, clients: Clients, api_key: str, chance: random.Random) -> None:
        self._clients = clients
        self._key = api_key
        self._chance = chance
        self.talks: list[Talk] = []

    async def one(self, number: int) -> None:
        """The life of one chat: to its end, or until its client loses interest."""
        talk = Talk(f"ref{FIRST_REF + number}x")
        self.talks.append(talk)
        words = self._chance.choice((20, 150, 600))
        content = f"{talk.ref}: {self._clients.text(words)}."
        body = {"messages": [{"role": "user", "content": content}], "user": talk.ref}
        leaves = self._chance.random() < 0.15
        while not talk.ended:
            await self._read(talk, body)
            if leaves and talk.job_id and not talk.ended:
                talk.ended = "left"
            if not talk.ended:
                await asyncio.sleep(self._chance.uniform(0.05, 1.0))
        self._clients.inspector.later(lambda: self.look(talk))

    async def _read(self, talk: Talk, body: dict[str, Any]) -> None:
        """Reads until the stream ends, breaks, or is cut by us."""
        headers = {"Authorization": f"Bearer {self._key}"}
        headers |= {"Last-Event-ID": talk.place} if talk.place else {"Idempotency-Key": talk.ref}
        url = f"{self._chance.choice(self._clients.urls)}/api/chat/stream"
        timeout = aiohttp.ClientTimeout(total=None, sock_read=20, sock_connect=5)
        cut_after = self._chance.randint(1, 40)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(url, json=body, headers=headers) as answer,
            ):
                talk.job_id = answer.headers.get("X-Job-Id", talk.job_id)
                if answer.status != 200:
                    problem = await answer.json(content_type=None)
                    # Not taken, failed before its first text, or (after an answer that was lost) found cancelled.
                    if answer.status in (409, 410) or (answer.status >= 500 and problem.get("code") != "unavailable"):
                        talk.ended, talk.error = "refused", problem.get("code", "")
                    elif answer.status == 503 and "nothing was sent" in problem.get("detail", ""):
                        talk.ended, talk.error = "refused", "not taken"
                    return
                event = ""
                async for line in answer.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "id":
                        talk.place = value
                    elif name == "event":
                        event = value
                    elif name == "data" and event == "error":
                        talk.ended, talk.error = "error", json.loads(value)["code"]
                    elif name == "data" and value == "[DONE]":
                        talk.ended = talk.ended or "done"
                        return
                    elif name == "data":
                        talk.texts.append(json.loads(value)["text"])
                        talk.places.append(int(talk.place.rpartition(".")[2]))
                        cut_after -= 1
                    elif not line.strip() and cut_after <= 0:
                        talk.cuts += 1
                        return
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            talk.cuts += 1

    async def look(self, talk: Talk) -> None:
        """Checks what a chat has come to: found by its `user`, also where no client ever learned its job."""
        if talk.is_checked:
            return
        _, page = await self._clients.call("GET", f"/api/jobs?user={talk.ref}", self._key)
        if page["data"]:
            job_id = page["data"][0]["jobId"]
            talk.view = page["data"][0]
            for _ in range(12):
                _, talk.view = await self._clients.call("GET", f"/api/jobs/{job_id}?wait=5", self._key)
                if talk.view is not None and talk.view["status"] in FINAL:
                    break
            talk.events = await self._clients.log(job_id, self._key)
            self._check_one(talk, self._clients.found)
        elif talk.texts:
            self._clients.found.add("a chat was lost", f"{talk.ref}: {talk.job_id}")
        talk.shrink()

    async def look_at_rest(self) -> None:
        """Checks what was not: chats whose clients were stopped."""
        for talk in self.talks:
            await self.look(talk)

    def check_tokens(self, calls: dict[str, list[dict[str, Any]]], found: Violations) -> None:
        """What was booked of each chat is what the model counted."""
        for talk in self.talks:
            if talk.view is None:
                continue
            mine, usage, job = calls.get(talk.ref, []), talk.view["usage"], talk.view["jobId"]
            booked, served = usage["totalTokens"], sum(map(tokens_of, mine))
            if not usage["estimated"] and booked != served:
                found.add("tokens differ", f"{job} (chat): booked {booked}, the model counted {served}")
            if served and not booked:
                found.add("a chat was not booked", f"{job}: the model counted {served}")

    def _check_one(self, talk: Talk, found: Violations) -> None:
        """Whether its reader had every token once, nothing was begun anew behind its back, and nothing goes on that
        nobody listens to."""
        assert talk.view is not None
        job, view = talk.view["jobId"], talk.view
        if talk.job_id and talk.job_id != job:
            found.add("a chat has two jobs", f"{talk.ref}: {talk.job_id} and {job}")
        if view["status"] not in FINAL:
            found.add("a chat goes on with nobody listening", f"{job} is {view['status']}")
        if any(later <= earlier for earlier, later in zip(talk.places, talk.places[1:], strict=False)):
            found.add("a chat repeated text", job)
        spoken = False
        for event in talk.events:
            spoken = spoken or event["type"] == "delta"
            if spoken and event["type"] in ("job.started", "attempt.restarted"):
                found.add("a chat was begun anew after its text", job)
        text, whole = "".join(talk.texts), "".join(e["text"] for e in talk.events if e["type"] == "delta")
        if not whole.startswith(text):
            found.add("a chat's reader has other text than its log", job)
        if talk.ended == "done" and (view["status"] != "complete" or text != view["result"]["text"]):
            found.add("a chat ended well without its whole answer", f"{job}: {view['status']}")
        if talk.ended in ("error", "refused") and view["status"] == "complete" and talk.error != "gone":
            found.add("a complete chat was shown as failed", f"{job}: {talk.error}")
        if view["status"] == "failed" and view["error"]["code"] not in EXPECTED_ERRORS:
            found.add("a chat failed by our fault", f"{job}: {view['error']['code']}")

    def row(self) -> str:
        """What is printed."""
        ended = {how: sum(talk.ended == how for talk in self.talks) for how in ("done", "error", "left", "refused")}
        told = ", ".join(f"{count} {how}" for how, count in ended.items())
        return f"{len(self.talks)}: {told}; {sum(talk.cuts for talk in self.talks)} cuts"
