"""Prompts: versions added, labels moved and rolled back, an experiment, while jobs that are pinned to a version run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from scripts.havoc.loads.ground import Ground

FIRST = 40_000_000
MOVING, TRIED = "moving", "tried"
MOST_VERSIONS = 40


class Prompts:
    """One tenant's prompts: one whose label moves all the time, one with an experiment."""

    AT_ONCE = 3

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._clients = ground.clients
        self._key = ""
        self._texts: dict[tuple[str, int], str] = {}  # what a version says it is, by name and number
        self._pinned: dict[str, tuple[str, int]] = {}  # ref → (name, version) as it was at admission
        self._arms: dict[str, set[int]] = defaultdict(set)  # by user
        self._moves = 0

    async def prepare(self) -> None:
        """Two prompts; an experiment on the second."""
        _, self._key = await self._ground.make_tenant("prompts", {})
        for name in (MOVING, TRIED):
            body = {"name": name, "labels": ["production"], **content("first")}
            await self._send("POST", "/api/prompts", body, 201)
            self._texts[name, 1] = "first"
            await self._add(name, "second")
        variants = [{"version": 1, "weight": 50}, {"version": 2, "weight": 50}]
        body = {"variants": variants, "stickyBy": "user"}
        await self._send("PUT", f"/api/prompts/{TRIED}/experiments/production", body, 200)

    async def _add(self, name: str, text: str) -> None:
        made = await self._send("POST", f"/api/prompts/{name}/versions", content(text), 201)
        self._texts[name, made["version"]] = text

    async def _send(self, method: str, path: str, body: dict[str, Any], *good: int) -> Any:
        self._moves += 1
        headers = {"Idempotency-Key": f"{path}-{self._moves}"} if method == "POST" else {}
        status, answer = await self._clients.call(method, path, self._key, json=body, headers=headers)
        assert status in good, (path, status, answer)
        return answer

    async def one(self, number: int) -> None:
        """A change of a prompt, or a job that uses one."""
        dice = self._ground.chance.random()
        if dice < 0.1 and len(self._texts) < MOST_VERSIONS:
            await self._add(MOVING, f"t{number}")
        elif dice < 0.25:
            version = self._ground.chance.choice([version for name, version in self._texts if name == MOVING])
            await self._send("PUT", f"/api/prompts/{MOVING}/labels/production", {"version": version}, 200)
        elif dice < 0.3:
            await self._send("POST", f"/api/prompts/{MOVING}/rollback", {"label": "production"}, 200, 409)
        else:
            await self._use(number)

    async def _use(self, number: int) -> None:
        ref, name = f"ref{FIRST + number}x", self._ground.chance.choice((MOVING, TRIED))
        user = f"user{number % 25}"
        body = {
            "type": "chat",
            "user": user,
            "input": {"messages": [{"role": "user", "content": f"{ref}: {self._clients.text(12)}."}]},
            "prompt": {"name": name, "variables": {"name": name, "mark": "it"}},
        }
        seen = await self._ground.run_job("prompts", ref, self._key, body)
        if seen.view is None:
            return
        pinned = seen.view["prompt"]
        self._pinned[ref] = (name, pinned["version"])
        if name == TRIED:
            self._arms[user].add(pinned["version"])

    async def finish(self) -> None:
        """Every call had the text of its job's version; a user has one arm; versions are as they were."""
        for ref, (name, version) in self._pinned.items():
            said = {str(call["system"]) for call in self._ground.calls.of.get(ref, []) if call["system"]}
            text = self._texts.get((name, version))
            if text is not None and said - {f"version {text} of {name}"}:
                self._ground.found.add("a job used another version than its own", f"{ref}: {version} of {name}, {said}")
        for user, arms in self._arms.items():
            if len(arms) > 1:
                self._ground.found.add("a user saw two arms of an experiment", f"{user}: {sorted(arms)}")
        for (name, version), text in self._texts.items():
            _, shown = await self._clients.call("GET", f"/api/prompts/{name}?version={version}", self._key)
            if shown["messages"] != content(text)["messages"]:
                self._ground.found.add("a version of a prompt changed", f"{version} of {name}")

    def row(self) -> str:
        """What is printed."""
        return f"{len(self._pinned)} jobs pinned, {len(self._texts)} versions, {self._moves} changes"


def content(text: str) -> dict[str, Any]:
    """A version that says which it is."""
    said = f"You are version {text} of {{{{name}}}}. Be brief about {{{{mark}}}}."
    variables = {"name": {"required": True}, "mark": {"default": "it"}}
    return {"messages": [{"role": "system", "content": said}], "variables": variables}
