"""Prompts over the API: versions, labels with history, diff, render, archive."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import Answer, Stack

HELLO = [{"role": "system", "content": "You greet {{name}}."}]


def path_of(name: str, *rest: str) -> str:
    return "/".join([f"/api/prompts/{quote(name, safe='')}", *rest])


async def make(stack: Stack, name: str = "greeting", **more: Any) -> Any:
    key = more.pop("key", None)
    options = {"key": key} if key else {}
    answer = await stack.call("POST", "/api/prompts", {"name": name, "messages": HELLO, **more}, **options)
    assert answer.status == 201, answer.text
    return answer.json


async def version(stack: Stack, text: str, name: str = "greeting", **more: Any) -> int:
    body = {"messages": [{"role": "system", "content": text}], **more}
    answer = await stack.call("POST", path_of(name, "versions"), body)
    assert answer.status == 201, answer.text
    return int(answer.json["version"])


async def move(stack: Stack, to: int, label: str = "production", name: str = "greeting", **options: Any) -> Answer:
    body = {"version": to, **options.pop("body", {})}
    return await stack.call("PUT", path_of(name, "labels", label), body, **options)


async def test_a_prompt_is_made_and_read(edge: Stack) -> None:
    """Given a prompt with a label, then it is found by `production`, by number, and by `latest`; its versions count
    from 1 and say who made them; another of its name is refused."""
    made = await make(edge, "support/greeting", labels=["production", "staging"], note="first", description="Hello")
    assert (made["version"], made["labels"], made["label"], made["note"]) == (
        1,
        ["production", "staging"],
        None,
        "first",
    )
    assert made["variables"] == {"name": {}}
    body = {"messages": [{"role": "system", "content": "Hi {{name}}"}], "model": "m", "parameters": {"temperature": 0}}
    added = await edge.call("POST", path_of("support/greeting", "versions"), body)
    assert (added.status, added.json["version"], added.json["labels"]) == (201, 2, [])
    assert added.headers["Location"] == "/api/prompts/support%2Fgreeting?version=2"
    for query, number, label in (("", 1, "production"), ("?label=staging", 1, "staging"), ("?version=2", 2, None),
                                 ("?label=latest", 2, "latest")):  # fmt: skip
        shown = (await edge.call("GET", path_of("support/greeting") + query)).json
        assert (shown["version"], shown["label"], shown["latestVersion"], shown["shared"]) == (number, label, 2, False)
    assert (shown["model"], shown["parameters"], shown["description"]) == ("m", {"temperature": 0.0}, "Hello")
    listed = (await edge.call("GET", path_of("support/greeting", "versions"))).json["data"]
    assert [row["version"] for row in listed] == [2, 1]
    assert listed[0]["createdBy"].startswith("key_")
    again = await edge.call("POST", "/api/prompts", {"name": "support/greeting", "messages": HELLO})
    assert (again.status, again.json["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "a@1", "messages": HELLO}, "$.name"),
        ({"name": "/a", "messages": HELLO}, "$.name"),
        ({"name": "a//b", "messages": HELLO}, "$.name"),
        ({"name": "a", "messages": []}, "$.messages"),
        ({"name": "a", "messages": [{"role": "tool", "content": "x"}]}, "$.messages[0].role"),
        ({"name": "a", "messages": [{"role": "user", "content": "{{a b}}"}]}, "$.messages[0].content"),
        ({"name": "a", "messages": HELLO, "variables": {"other": {}}}, "$.messages[0].content"),
        ({"name": "a", "messages": HELLO, "labels": ["latest"]}, "$.labels"),
        ({"name": "a", "messages": HELLO, "labels": ["Big"]}, "$.labels[0]"),
        ({"name": "a", "messages": HELLO, "parameters": {"topP": 1}}, "$.parameters.topP"),
        ({"name": "errand/agent", "messages": HELLO}, "$.variables"),
    ],
)
async def test_a_bad_prompt_is_refused_by_its_path(edge: Stack, body: Any, path: str) -> None:
    answer = await edge.call("POST", "/api/prompts", body)
    assert answer.status == 422, answer.text
    assert path in [error["path"] for error in answer.json["errors"]]


async def test_a_label_remembers_where_it_was(edge: Stack) -> None:
    """Given a label that was moved over three versions, then each rollback takes it one move back, visibly, until there
    is nothing before."""
    await make(edge, labels=["production"])
    for text in ("two", "three"):
        number = await version(edge, text)
        assert (await move(edge, number)).json["previous"] == number - 1
    for expected in (2, 1):
        back = await edge.call("POST", path_of("greeting", "rollback"), {"label": "production", "note": "it was bad"})
        assert (back.status, back.json["version"]) == (200, expected), back.text
        assert (await edge.call("GET", path_of("greeting"))).json["version"] == expected
    nothing = await edge.call("POST", path_of("greeting", "rollback"), {"label": "production"})
    assert (nothing.status, nothing.json["code"]) == (409, "conflict")
    log = (await edge.call("GET", path_of("greeting", "audit"))).json["data"]
    assert Counter(row["action"] for row in log) == {
        "prompt.created": 1, "prompt.version_added": 2, "prompt.label_moved": 2, "prompt.rolled_back": 2,
    }  # fmt: skip
    assert log[0]["details"]["version"] == {"old": 2, "new": 1}
    assert log[0]["details"]["note"] == {"new": "it was bad"}
    assert log[0]["prompt"] == "greeting"
    whole = (await edge.call("GET", "/api/admin/audit?action=prompt.rolled_back")).json["data"]
    assert len(whole) == 2


async def test_labels_are_compared_and_set(edge: Stack) -> None:
    """Given a label, when it is moved by who has not seen its last move, then 412; with its ETag it moves."""
    await make(edge, labels=["production"])
    two = await version(edge, "two")
    shown = await edge.call("GET", path_of("greeting", "labels", "production"))
    etag = shown.headers["ETag"]
    assert (await move(edge, two, headers={"If-Match": '"999"'})).status == 412
    assert (await move(edge, two, headers={"If-None-Match": "*"})).status == 412
    assert (await move(edge, two, "fresh", headers={"If-Match": "*"})).status == 412
    moved = await move(edge, two, headers={"If-Match": etag})
    assert (moved.status, moved.json["version"]) == (200, two)
    assert moved.headers["ETag"] != etag
    stale = await move(edge, 1, headers={"If-Match": etag})
    assert (stale.status, stale.json["code"]) == (412, "precondition_failed")
    assert moved.headers["ETag"] in stale.json["detail"]
    assert (await move(edge, two, "fresh", headers={"If-None-Match": "*"})).status == 200
    gone = await edge.call("DELETE", path_of("greeting", "labels", "fresh"))
    assert gone.status == 204
    assert (await edge.call("GET", path_of("greeting", "labels", "fresh"))).status == 404
    assert (await edge.call("GET", path_of("greeting") + "?label=fresh")).status == 422
    assert (await move(edge, 9)).json["errors"][0]["path"] == "$.version"
    assert (await move(edge, 1, "latest")).status == 422


async def test_of_many_moves_at_once_each_counts_and_one_compare_wins(edge: Stack) -> None:
    await make(edge, labels=["production"])
    for number in range(2, 6):
        await version(edge, f"number {number}")
    etag = (await edge.call("GET", path_of("greeting", "labels", "production"))).headers["ETag"]
    answers = await asyncio.gather(*(move(edge, 2 + n % 4, headers={"If-Match": etag}) for n in range(20)))
    assert Counter(answer.status for answer in answers) == {200: 1, 412: 19}
    before = int(answers[[answer.status for answer in answers].index(200)].headers["ETag"].strip('"'))
    targets = [1 + n % 5 for n in range(50)]
    moved = await asyncio.gather(*(move(edge, to) for to in targets))
    revs = sorted({int(answer.headers["ETag"].strip('"')) for answer in moved})
    log = (await edge.call("GET", path_of("greeting", "audit") + "?limit=200")).json["data"]
    steps = [row["details"]["version"] for row in log if row["action"] == "prompt.label_moved"]
    # Newest first: each began where the one before it had ended; one that changes nothing is no move.
    assert all(later["old"] == earlier["new"] for later, earlier in pairwise(steps))
    assert all(one["old"] != one["new"] for one in steps)
    assert revs[-1] - before == len(steps) - 1


async def test_protected_labels_need_the_scope(edge: Stack) -> None:
    """Given a protected label, when a key without `promote` moves, removes or rolls it back, unprotects it, adds a
    version to it or archives its prompt, then 403; with the scope it does."""
    await make(edge, labels=["production"])
    two = await version(edge, "two")
    await move(edge, two, body={"protected": True})
    tenant = (await edge.call("GET", "/api/admin/tenants")).json["data"][-1]["tenantId"]
    made = await edge.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": ["prompts"]})
    key = made.json["key"]
    body = {"messages": HELLO, "labels": ["production"]}
    for answer in (
        await move(edge, 1, key=key),
        await move(edge, two, body={"protected": False}, key=key),
        await edge.call("DELETE", path_of("greeting", "labels", "production"), key=key),
        await edge.call("POST", path_of("greeting", "rollback"), {"label": "production"}, key=key),
        await edge.call("POST", path_of("greeting", "versions"), body, key=key),
        await edge.call("DELETE", path_of("greeting"), key=key),
        await move(edge, 1, "mine", body={"protected": True}, key=key),
    ):
        assert (answer.status, answer.json["code"]) == (403, "scope_missing"), answer.text
    assert (await move(edge, 1, "mine", key=key)).status == 200
    shown = (await edge.call("GET", path_of("greeting", "labels"))).json["data"]
    assert {row["label"]: (row["version"], row["protected"]) for row in shown} == {
        "mine": (1, False), "production": (two, True),
    }  # fmt: skip
    assert (await move(edge, 1)).json["version"] == 1
    assert (await move(edge, 1, body={"protected": False})).json["protected"] is False


async def test_prompts_are_listed_by_folder_search_and_label(edge: Stack) -> None:
    _, key = await edge.tenant()
    for name in ("support/a", "support/b", "sales/a"):
        await make(
            edge, name, description=f"About {name}", labels=["production"] if name.endswith("a") else [], key=key
        )

    async def names(query: str) -> list[str]:
        rows = (await edge.call("GET", f"/api/prompts?{query}", key=key)).json["data"]
        return [row["name"] for row in rows]

    assert await names("prefix=support/") == ["support/b", "support/a"]
    assert await names("search=ABOUT%20sales") == ["sales/a"]
    assert await names("label=production&prefix=s") == ["sales/a", "support/a"]
    first = (await edge.call("GET", "/api/prompts?limit=2", key=key)).json
    assert [row["name"] for row in first["data"]] == ["sales/a", "support/b"]
    second = (await edge.call("GET", f"/api/prompts?limit=200&after={quote(first['next'], safe='')}", key=key)).json
    rest = {row["name"]: row["shared"] for row in second["data"]}
    assert rest.pop("support/a") is False
    assert rest
    assert all(shared and name.startswith("errand/") for name, shared in rest.items())


async def test_prompts_belong_to_their_tenant(edge: Stack) -> None:
    await make(edge, labels=["production"])
    _, key = await edge.tenant()
    for method, path, body in (
        ("GET", path_of("greeting"), None),
        ("GET", path_of("greeting", "versions"), None),
        ("GET", path_of("greeting", "audit"), None),
        ("GET", path_of("greeting", "diff"), None),
        ("POST", path_of("greeting", "render"), {"variables": {"name": "x"}}),
        ("POST", path_of("greeting", "versions"), {"messages": HELLO}),
        ("PUT", path_of("greeting", "labels", "production"), {"version": 1}),
        ("POST", path_of("greeting", "rollback"), {"label": "production"}),
        ("DELETE", path_of("greeting"), None),
    ):
        answer = await edge.call(method, path, body, key=key)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), (method, path, answer.text)
    for name in ("nothing", "a//b", "-", "x" * 200):
        assert (await edge.call("GET", path_of(name))).status == 404


async def test_what_differs_is_told_word_by_word(edge: Stack) -> None:
    await make(edge, labels=["production"])
    body = {
        "messages": [{"role": "system", "content": "You greet {{name}} warmly."}, {"role": "user", "content": "Go."}],
        "model": "m",
    }
    await edge.call("POST", path_of("greeting", "versions"), body)
    found = (await edge.call("GET", path_of("greeting", "diff") + "?from=production&to=2")).json
    assert (found["fromVersion"], found["toVersion"], found["identical"]) == (1, 2, False)
    first, second = found["messages"]
    assert [(change["op"], change["text"]) for change in first["changes"]] == [
        ("equal", "You greet {{name}}"), ("insert", " warmly"), ("equal", "."),
    ]  # fmt: skip
    assert (second["oldRole"], second["changes"]) == (None, [{"op": "insert", "text": "Go."}])
    assert found["members"] == {"model": {"old": None, "new": "m"}}
    assert (await edge.call("GET", path_of("greeting", "diff") + "?from=nothing")).status == 422
    assert (await edge.call("GET", path_of("greeting", "diff") + "?from=7")).status == 404


async def test_a_prompt_is_rendered_without_a_model(edge: Stack) -> None:
    await make(edge, labels=["production"])
    shown = await edge.call("POST", path_of("greeting", "render"), {"variables": {"name": "{{name}} & Ann"}})
    assert shown.status == 200, shown.text
    assert shown.json["messages"] == [{"role": "system", "content": "You greet {{name}} & Ann."}]
    assert (shown.json["version"], shown.json["label"]) == (1, "production")
    assert shown.json["tokens"] > 5
    assert "experiment" not in shown.json
    missing = await edge.call("POST", path_of("greeting", "render"), {"variables": {"nam": 1}})
    assert {error["path"] for error in missing.json["errors"]} == {"$.variables.name", "$.variables.nam"}
    assert missing.status == 422
    for body, path in (({"version": 5}, "$.version"), ({"label": "x"}, "$.label")):
        answer = await edge.call("POST", path_of("greeting", "render"), {"variables": {"name": ""}, **body})
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, path)


async def test_an_archived_prompt_is_gone_and_its_numbers_go_on(edge: Stack) -> None:
    await make(edge, labels=["production"])
    assert (await edge.call("DELETE", path_of("greeting"))).status == 204
    assert (await edge.call("GET", path_of("greeting"))).status == 404
    assert (await edge.call("DELETE", path_of("greeting"))).status == 404
    assert (await edge.call("GET", "/api/prompts?prefix=greeting")).json["data"] == []
    again = await make(edge)
    assert (again["version"], again["labels"]) == (2, [])


async def test_a_repeated_request_makes_one_version(edge: Stack) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"name": "once", "messages": HELLO}
    first = await edge.call("POST", "/api/prompts", body, headers=headers)
    second = await edge.call("POST", "/api/prompts", body, headers=headers)
    assert (first.status, second.status, second.json["version"]) == (201, 201, 1)
    assert second.headers["Idempotent-Replayed"] == "true"
    other = await edge.call("POST", "/api/prompts", {**body, "name": "twice"}, headers=headers)
    assert other.json["code"] == "idempotency_mismatch"


async def test_shared_prompts_are_changed_by_administrators(edge: Stack) -> None:
    """Given the shared prompts, then every tenant reads them, only the scope `admin` changes them, with `?shared=true`;
    without it an administrator's change is the own tenant's, too."""
    tenant, key = await edge.tenant()
    name = "errand/agent"
    assert (await edge.call("GET", path_of(name), key=key)).json["shared"] is True
    body = {"messages": [{"role": "system", "content": "Be brief."}]}
    refused = await edge.call("POST", path_of(name, "versions") + "?shared=true", body, key=key)
    assert (refused.status, refused.json["code"]) == (403, "scope_missing")
    assert (await edge.call("POST", path_of(name, "versions"), body, key=key)).status == 404
    own = await edge.call("POST", "/api/prompts", {"name": name, **body}, key=key)
    assert (own.status, own.json["shared"]) == (201, False)
    # Without a label of its own, the shared one is still in place.
    assert (await edge.call("GET", path_of(name), key=key)).json["shared"] is True
    assert (await edge.call("PUT", path_of(name, "labels", "production"), {"version": 1}, key=key)).status == 200
    assert (await edge.call("GET", path_of(name), key=key)).json["messages"] == body["messages"]
    assert (await edge.call("GET", path_of(name))).json["shared"] is True
    added = await edge.call("POST", path_of(name, "versions") + "?shared=true", {**body, "labels": ["production"]})
    assert (added.status, added.json["shared"]) == (201, True)
    shared = await edge.call("POST", "/api/prompts?shared=true", {"name": "mine", **body})
    assert shared.status == 422
    assert tenant
