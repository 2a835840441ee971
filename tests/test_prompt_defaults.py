"""The shipped prompts: every installation has them, a changed one comes as a version, and no operator is overridden."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api import app as api_app
from api.keys import PROMPTS
from shared.prompt_defaults import DEFAULTS
from shared.prompts import PRODUCTION, SHARED, Content, digest, problems_of
from shared.specs import ChatMessage
from shared.stores.prompts import PromptsStore
from tests.conftest import RedisServer, Stack

NAME = "errand/agent"
PATH = "/api/prompts/errand%2Fagent"


def default(text: str) -> dict[str, Content]:
    return {NAME: Content(messages=[ChatMessage(role="system", content=text)])}


async def standing(store: PromptsStore) -> tuple[int, int | None, str]:
    """(versions, where production points, who moved it last)."""
    head = await store.head(SHARED, NAME)
    assert head is not None
    label = head.labels[PRODUCTION]
    return head.versions, label.version, label.by


def store_of(stack: Stack) -> PromptsStore:
    return PromptsStore(stack.client, stack.keys)


async def test_every_installation_has_the_shipped_prompts(edge: Stack) -> None:
    """Given an API that has just started, then each default is version 1, `production` points at it, its text is the
    shipped one, and it needs no values; a second process adds nothing."""
    await edge.start_api()
    listed = (await edge.call("GET", "/api/prompts?prefix=errand")).json["data"]
    assert sorted(row["name"] for row in listed) == sorted(DEFAULTS)
    for row in listed:
        assert (row["latestVersion"], row["labelVersions"], row["shared"]) == (1, {"production": 1}, True)
        version = await store_of(edge).version(SHARED, row["name"], 1)
        assert version is not None
        assert version.messages == DEFAULTS[row["name"]].messages
        assert version.sha256 == digest(DEFAULTS[row["name"]])
        assert (version.by, version.note) == ("system", "shipped with Errand")
    for content in DEFAULTS.values():
        assert problems_of(content, is_built_in=True) == []
    told = (await edge.call("GET", "/api/admin/audit?tenant=shared")).json["data"]
    assert sorted(entry["action"] for entry in told) == ["prompt.created"] * len(DEFAULTS) + [
        "prompt.label_moved"
    ] * len(DEFAULTS)


async def test_a_changed_default_moves_what_nobody_touched(edge: Stack) -> None:
    """Given a label that only `system` has moved, when a text changes, then it is the next version, and the label
    moves; an older process that starts again moves nothing back."""
    store = store_of(edge)
    first = await store.version(SHARED, NAME, 1)
    assert first is not None
    assert await store.seed(default("Another.")) == [NAME]
    assert await standing(store) == (2, 2, "system")
    assert await store.seed({NAME: DEFAULTS[NAME]}) == []
    assert await standing(store) == (2, 2, "system")
    assert await store.seed(default("A third.")) == [NAME]
    assert await standing(store) == (3, 3, "system")
    assert await store.version(SHARED, NAME, 1) == first


@pytest.mark.parametrize("touch", ["moved", "rolled back", "put where it was", "protected"])
async def test_a_changed_default_overrides_no_operator(edge: Stack, touch: str) -> None:
    """Given a label that an operator has moved, rolled back, protected, or set where it stood, when a text changes,
    then it is the next version, and the label stays."""
    store = store_of(edge)
    await store.seed(default("Another."))
    label = f"{PATH}/labels/production?shared=true"
    if touch == "rolled back":
        answer = await edge.call("POST", f"{PATH}/rollback?shared=true", {})
    else:
        body = {
            "moved": {"version": 1},
            "put where it was": {"version": 2},
            "protected": {"version": 2, "protected": True},
        }
        answer = await edge.call("PUT", label, body[touch])
    assert answer.status == 200, answer.text
    before = await standing(store)
    assert before[2].startswith("key_")
    assert await store.seed(default("A third.")) == [NAME]
    assert await standing(store) == (3, *before[1:])
    assert (await edge.call("GET", f"{PATH}?label=latest")).json["messages"][0]["content"] == "A third."


async def test_a_default_moves_no_label_under_an_experiment(edge: Stack) -> None:
    """Given an experiment on the label, when a text changes, then the version is there and the label stays."""
    store = store_of(edge)
    await edge.client.hset(edge.keys.prompt(SHARED, NAME), f"x:{PRODUCTION}", '{"id": "exp_1"}')  # type: ignore[misc]
    await store.seed(default("Another."))
    assert (await standing(store))[:2] == (2, 1)
    assert (await edge.call("GET", f"{PATH}/labels/production")).json["experiment"] == "exp_1"


async def test_many_starts_at_once_add_a_default_once(edge: Stack) -> None:
    store = store_of(edge)
    added = await asyncio.gather(*(store.seed(default("Another.")) for _ in range(10)))
    assert sorted(map(len, added)) == [0] * 9 + [1]
    assert await standing(store) == (2, 2, "system")


async def test_built_in_prompts_cannot_be_lost(edge: Stack) -> None:
    """Given an administrator, then a built-in prompt is not deleted, nor its `production`; other labels of it are."""
    for path in (f"{PATH}?shared=true", f"{PATH}/labels/production?shared=true"):
        answer = await edge.call("DELETE", path)
        assert (answer.status, answer.json["code"]) == (409, "conflict")
    assert (await edge.call("PUT", f"{PATH}/labels/old?shared=true", {"version": 1})).status == 200
    assert (await edge.call("DELETE", f"{PATH}/labels/old?shared=true")).status == 204


async def test_defaults_come_when_redis_is_back(
    make_stack: Any, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an API that starts while Redis is away, when Redis is back, then it has the shipped prompts."""
    monkeypatch.setattr(api_app, "SEED_S", 0.05)
    stack: Stack = await make_stack(redis_url=own_redis.url, api=False)
    seed = PromptsStore.seed
    tries = []

    async def counted(self: PromptsStore, defaults: Any) -> list[str]:
        tries.append(1)
        if len(tries) == 1:
            own_redis.kill()
        return await seed(self, defaults)

    monkeypatch.setattr(PromptsStore, "seed", counted)
    await stack.start_api()
    assert (await stack.call("GET", PATH)).status == 503
    own_redis.start()
    async with asyncio.timeout(15):
        while (await stack.call("GET", PATH)).status != 200:
            await asyncio.sleep(0.05)
    assert len(tries) > 1
    assert await stack._runners[0].app[PROMPTS].version(SHARED, NAME, 1) is not None
