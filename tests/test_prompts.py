"""The registry of prompts over HTTP: versions that never change, labels with history, and whose they are."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from yarl import URL

from api.handlers import prompt_lists
from shared.prompt_defaults import DEFAULTS
from shared.prompts import MAX_LABELS, MAX_PROMPTS, MAX_VERSIONS
from shared.redis import connect
from tests.conftest import ADMIN_KEY, Answer, Stack
from tests.test_erasure import delete, erased, everything, traces

ADMIN_ID = f"key_{ADMIN_KEY.split('_')[1]}"
PATH = "/api/prompts/team%2Fhello"
LABEL = f"{PATH}/labels/production"
SAID = [{"role": "system", "content": "Greet {{who}}."}]


def prompt(**more: Any) -> dict[str, Any]:
    return {"name": "team/hello", "messages": SAID, **more}


def version(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": text}], **more}


async def made(stack: Stack, versions: int = 1, **options: Any) -> None:
    """The prompt team/hello with so many versions, `production` at the first."""
    answer = await stack.call("POST", "/api/prompts", prompt(labels=["production"]), **options)
    assert answer.status == 201, answer.text
    for number in range(2, versions + 1):
        answer = await stack.call("POST", f"{PATH}/versions", version(f"Greet {number} {{{{who}}}}."), **options)
        assert answer.json["version"] == number, answer.text


async def move(stack: Stack, number: int, **more: Any) -> Answer:
    options = {name: more.pop(name) for name in ("key", "headers") if name in more}
    return await stack.call("PUT", LABEL, {"version": number, **more}, **options)


async def history(stack: Stack, path: str = PATH, **options: Any) -> list[dict[str, Any]]:
    """All entries of a prompt's history, oldest first."""
    answer = await stack.call("GET", f"{path}/audit?limit=200", **options)
    assert answer.status == 200, answer.text
    return list(answer.json["data"][::-1])


def refused(answer: Answer, status: int, code: str, path: str | None = None) -> None:
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    if path is not None:
        assert path in [error["path"] for error in answer.json["errors"]], answer.text


async def key_with(stack: Stack, *scopes: str, tenant: str = f"ten_{'0' * 26}") -> str:
    made = await stack.call("POST", f"/api/admin/tenants/{tenant}/keys", {"scopes": list(scopes)})
    return str(made.json["key"])


# -- versions ----------------------------------------------------------------------------------------------------------


async def test_a_prompt_and_its_versions(edge: Stack) -> None:
    """Given a prompt with its first version and a second one, then each is read by number, by label and by
    `latest`, and the first is as it was."""
    body = prompt(
        description="Says hello",
        note="first",
        labels=["production", "staging"],
        model="m",
        parameters={"temperature": 0.5},
    )
    answer = await edge.call("POST", "/api/prompts", body)
    first = answer.json
    assert answer.status == 201
    assert answer.headers["Location"] == f"{PATH}?version=1"
    assert {name: first[name] for name in ("name", "description", "version", "latestVersion", "label", "labels")} == {
        "name": "team/hello", "description": "Says hello", "version": 1, "latestVersion": 1, "label": None,
        "labels": ["production", "staging"],
    }  # fmt: skip
    assert first["messages"] == SAID
    assert first["variables"] == {"who": {}}
    assert (first["model"], first["parameters"], first["note"]) == ("m", {"temperature": 0.5}, "first")
    assert (first["shared"], first["createdBy"]) == (False, ADMIN_ID)
    assert (await edge.call("GET", answer.headers["Location"])).json == first
    second = await edge.call("POST", f"{PATH}/versions", version("Hi.", labels=["staging"]))
    assert (second.status, second.json["version"], second.json["labels"]) == (201, 2, ["staging"])
    by_label = await edge.call("GET", f"{PATH}?label=staging")
    assert (by_label.json["version"], by_label.json["label"]) == (2, "staging")
    assert (await edge.call("GET", f"{PATH}?label=latest")).json["version"] == 2
    production = (await edge.call("GET", PATH)).json
    assert production == {**first, "label": "production", "labels": ["production"], "latestVersion": 2}
    rows = (await edge.call("GET", f"{PATH}/versions")).json["data"]
    assert [(row["version"], row["labels"], row["note"]) for row in rows] == [
        (2, ["staging"], None),
        (1, ["production"], "first"),
    ]
    assert rows[1]["sha256"] == first["sha256"] != rows[0]["sha256"]


async def test_versions_never_change(edge: Stack) -> None:
    """Given many changes of all kinds, then what is stored of a version is bit for bit what it was."""
    await made(edge)
    tenant = f"ten_{'0' * 26}"

    async def stored() -> Any:
        return await edge.client.hmget(edge.keys.prompt_versions(tenant, "team/hello"), ["v:1", "m:1"])  # type: ignore[misc]

    before = await stored()
    assert None not in before
    await edge.call("POST", f"{PATH}/versions", version("Other."))
    for number in (2, 1, 2):
        await move(edge, number)
    await edge.call("POST", f"{PATH}/rollback", {})
    await edge.call("DELETE", LABEL)
    await edge.call("DELETE", PATH)
    await edge.call("POST", "/api/prompts", prompt(note="again"))
    assert await stored() == before


async def test_many_versions_at_once_are_numbered_without_gaps(edge: Stack) -> None:
    await made(edge)
    answers = await asyncio.gather(*(edge.call("POST", f"{PATH}/versions", version(f"n{n}")) for n in range(40)))
    assert sorted(answer.json["version"] for answer in answers) == list(range(2, 42))
    for answer in answers:
        read = await edge.call("GET", f"{PATH}?version={answer.json['version']}")
        assert read.json["messages"] == answer.json["messages"]


async def test_a_version_is_made_once_per_idempotency_key(edge: Stack) -> None:
    """Given the same key and body again, also after labels were moved, then the first answer; another body is 422,
    and the same key for the shared prompt is another request."""
    headers = {"Idempotency-Key": "once"}
    first = await edge.call("POST", "/api/prompts", prompt(labels=["a"]), headers=headers)
    again = await edge.call("POST", "/api/prompts", prompt(labels=["a"]), headers=headers)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.body == first.body
    refused(await edge.call("POST", "/api/prompts", prompt(), headers=headers), 422, "idempotency_mismatch")
    added = await edge.call("POST", f"{PATH}/versions", version("Hi.", labels=["a"]), headers=headers)
    await edge.call("POST", f"{PATH}/versions", version("Ho.", labels=["a"]))
    again = await edge.call("POST", f"{PATH}/versions", version("Hi.", labels=["a"]), headers=headers)
    assert (again.body, "Idempotent-Replayed" in added.headers) == (added.body, False)
    assert (await edge.call("GET", f"{PATH}?label=a")).json["version"] == 3
    assert [entry["action"] for entry in await history(edge)].count("prompt.version_added") == 2
    agent = "/api/prompts/errand%2Fagent/versions"
    await edge.call("POST", "/api/prompts", {**version("Mine."), "name": "errand/agent"})
    own = await edge.call("POST", agent, version("x"), headers={"Idempotency-Key": "two"})
    shared = await edge.call("POST", f"{agent}?shared=true", version("x"), headers={"Idempotency-Key": "two"})
    assert [(one.json["shared"], "Idempotent-Replayed" in one.headers) for one in (own, shared)] == [
        (False, False),
        (True, False),
    ]


async def test_a_prompt_is_made_whole_or_not_at_all(edge: Stack) -> None:
    """Given a version with labels of which one may not be moved, then there is no version, no label and no entry."""
    await made(edge)
    await edge.call("PUT", f"{PATH}/labels/locked", {"version": 1, "protected": True})
    key = await key_with(edge, "prompts")
    before = await history(edge)
    answer = await edge.call("POST", f"{PATH}/versions", version("Hi.", labels=["production", "locked"]), key=key)
    refused(answer, 403, "scope_missing")
    assert (await edge.call("GET", f"{PATH}?label=latest")).json["version"] == 1
    assert (await edge.call("GET", LABEL)).json["version"] == 1
    assert await history(edge) == before


async def test_a_name_is_taken_once(edge: Stack) -> None:
    answers = await asyncio.gather(*(edge.call("POST", "/api/prompts", prompt(note=str(n))) for n in range(10)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 9
    refused(await edge.call("POST", "/api/prompts/nobody/versions", version("x")), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "a b"}, "$.name"),
        ({"name": "a/"}, "$.name"),
        ({"name": "a@1"}, "$.name"),
        ({"messages": []}, "$.messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "$.messages[0].role"),
        ({"messages": [{"role": "user", "content": "{{a"}]}, "$.messages[0].content"),
        ({"variables": {"other": {}}}, "$.variables.other"),
        ({"variables": {"who": {"type": "date"}}}, "$.variables[...].type"),
        ({"variables": {"who": {"default": 1}}}, "$.variables.who.default"),
        ({"labels": ["latest"]}, "$.labels[0]"),
        ({"labels": ["production", "12"]}, "$.labels[1]"),
        ({"parameters": {"temperature": 3}}, "$.parameters.temperature"),
        ({"colour": "red"}, "$.colour"),
        ({"name": "errand/mine"}, "$.variables"),
    ],
)
async def test_a_bad_prompt_is_named(edge: Stack, body: dict[str, Any], path: str) -> None:
    refused(await edge.call("POST", "/api/prompts", {**prompt(), **body}), 422, "invalid_request", path)
    assert (await edge.call("GET", "/api/prompts?prefix=team")).json["data"] == []


async def test_bounds_are_refused(edge: Stack) -> None:
    """Given as many prompts, versions or labels as there may be, then one more is 409, and nothing is done."""
    await made(edge)
    tenant = f"ten_{'0' * 26}"
    labels = [f"l{n}" for n in range(MAX_LABELS - 1)]
    for start in range(0, len(labels), 20):
        added = await edge.call("POST", f"{PATH}/versions", version("x", labels=labels[start : start + 20]))
        assert added.status == 201, added.text
    refused(await edge.call("PUT", f"{PATH}/labels/more", {"version": 1}), 409, "conflict")
    refused(await edge.call("POST", f"{PATH}/versions", version("x", labels=["more"])), 409, "conflict")
    assert (await edge.call("PUT", f"{PATH}/labels/l1", {"version": 1})).status == 200
    await edge.client.hset(edge.keys.prompt(tenant, "team/hello"), "versions", MAX_VERSIONS)  # type: ignore[misc]
    refused(await edge.call("POST", f"{PATH}/versions", version("x")), 409, "conflict")
    await edge.client.zadd(edge.keys.prompts(tenant), {f"p{n}": 1 for n in range(MAX_PROMPTS - 1)})
    refused(await edge.call("POST", "/api/prompts", {**prompt(), "name": "one-more"}), 409, "conflict")


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["team%2Fhello", "team%2fhello", "%74eam%2Fhello"])
async def test_a_name_with_folders_arrives_whole(edge: Stack, spelled: str) -> None:
    await made(edge)
    url = URL(f"{edge.base}/api/prompts/{spelled}?version=1", encoded=True)
    async with edge.session.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as response:
        assert (response.status, (await response.json())["name"]) == (200, "team/hello")


@pytest.mark.parametrize(
    "spelled", ["team/hello", "team%252Fhello", "team%2F", "team%2F..%2Fhello", "team%40hello", "%2F"]
)
async def test_what_is_no_name_is_not_found(edge: Stack, spelled: str) -> None:
    await made(edge)
    url = URL(f"{edge.base}/api/prompts/{spelled}?version=1", encoded=True)
    async with edge.session.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as response:
        assert response.status == 404


async def test_without_label_or_version_production_is_meant(edge: Stack) -> None:
    """Given a prompt without `production`, then reading and rendering it need a label or a version: 422; a label
    that it has not is 404, and so is a version."""
    await edge.call("POST", "/api/prompts", prompt())
    refused(await edge.call("GET", PATH), 422, "invalid_request")
    refused(await edge.call("POST", f"{PATH}/render", {"variables": {"who": "x"}}), 422, "invalid_request")
    refused(await edge.call("GET", f"{PATH}?label=a&version=1"), 422, "invalid_request")
    refused(await edge.call("GET", f"{PATH}?label=production"), 404, "not_found")
    refused(await edge.call("GET", f"{PATH}?version=2"), 404, "not_found")
    for wrong in ("0", "-1", "1.0", "x", "99999999999999999999", "²"):
        refused(await edge.call("GET", f"{PATH}?version={wrong}"), 422, "invalid_request", "?version")


async def test_a_version_has_a_validator(edge: Stack) -> None:
    """Given the ETag of a version, then it is 304 until what is shown of it changes."""
    await made(edge, 2)
    first = await edge.call("GET", f"{PATH}?version=1")
    unchanged = await edge.call("GET", f"{PATH}?version=1", headers={"If-None-Match": first.headers["ETag"]})
    assert (unchanged.status, unchanged.body, unchanged.headers["ETag"]) == (304, b"", first.headers["ETag"])
    await move(edge, 2)
    changed = await edge.call("GET", f"{PATH}?version=1", headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status, changed.json["labels"]) == (200, [])


async def test_versions_are_listed_in_pages(edge: Stack) -> None:
    await made(edge, 7)
    found, path = [], f"{PATH}/versions?limit=3"
    sizes = []
    while True:
        answer = await edge.call("GET", path)
        found += [row["version"] for row in answer.json["data"]]
        sizes.append(len(answer.json["data"]))
        if not answer.json["hasMore"]:
            break
        path = f"{PATH}/versions?limit=3&after={answer.json['next']}"
        await edge.call("POST", f"{PATH}/versions", version("meanwhile"))
    assert (found, sizes) == ([7, 6, 5, 4, 3, 2, 1], [3, 3, 1])
    refused(await edge.call("GET", f"{PATH}/versions?after=x"), 422, "invalid_request", "?after")


async def test_prompts_are_listed_and_found(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given prompts in folders, then they are listed newest first, in pages that meet, and found by folder, by text in
    name or description, and by label; also where a page looks at few at a time."""
    names = ["a", "team/one", "team/two", "team/deep/three", "teams/four", "zebra"]
    for name in names:
        body = {
            **prompt(),
            "name": name,
            "description": f"About {name.upper()}",
            "labels": ["beta"] if "t" in name else [],
        }
        assert (await edge.call("POST", "/api/prompts", body)).status == 201
        await asyncio.sleep(0.002)

    async def listed(query: str) -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            answer = await edge.call("GET", f"/api/prompts?{query}{after}")
            assert answer.status == 200, answer.text
            found += [row["name"] for row in answer.json["data"] if not row["shared"]]
            if not answer.json["hasMore"]:
                return found
            assert 'rel="next"' in answer.headers["Link"]
            after = f"&after={answer.json['next']}"

    for _ in range(2):
        for limit in (1, 2, 50):
            assert await listed(f"limit={limit}") == names[::-1]
            assert await listed(f"limit={limit}&label=beta") == [
                "teams/four",
                "team/deep/three",
                "team/two",
                "team/one",
            ]
        assert await listed("prefix=team") == await listed("prefix=team/") == names[3:0:-1]
        assert await listed("prefix=team/one") == ["team/one"]
        assert await listed("search=ABOUT%20TEAM/D") == ["team/deep/three"]
        assert await listed("search=nothing") == []
        assert await listed("shared=true") == []
        monkeypatch.setattr(prompt_lists, "BATCH", 2)
        monkeypatch.setattr(prompt_lists, "MAX_SCANNED", 4)
    rows = (await edge.call("GET", "/api/prompts?prefix=team/one")).json["data"]
    assert rows[0]["labelVersions"] == {"beta": 1}
    assert rows[0]["description"] == "About TEAM/ONE"
    for wrong in ("limit=0", "after=x", "after=1", "shared=yes", "folder=a"):
        refused(await edge.call("GET", f"/api/prompts?{wrong}"), 422, "invalid_request")


# -- labels ------------------------------------------------------------------------------------------------------------


async def test_a_label_is_moved_and_rolled_back(edge: Stack) -> None:
    """Given three moves, when the label is rolled back, then it goes back one move each time, and then there is nothing
    before: 409. Each stands in the history, with old and new."""
    await made(edge, 3)
    for number in (2, 3, 1):
        answer = await move(edge, number, note=f"to {number}")
        assert (answer.status, answer.json["version"], answer.json["changedBy"]) == (200, number, ADMIN_ID)
    found = []
    for _ in range(3):
        answer = await edge.call("POST", f"{PATH}/rollback", {"label": "production", "note": "bad"})
        found.append((answer.status, answer.json["version"], answer.json["previous"]))
    assert found == [(200, 3, 2), (200, 2, 1), (200, 1, None)]
    refused(await edge.call("POST", f"{PATH}/rollback", {}), 409, "conflict")
    refused(await edge.call("POST", f"{PATH}/rollback", {"label": "nobody"}), 404, "not_found")
    told = [(entry["action"], entry["details"]) for entry in await history(edge)][3:]
    assert told[0] == ("prompt.version_added", told[0][1])
    assert told[1:] == [
        ("prompt.label_moved", {"labels.production": {"old": 1, "new": 2}, "note": {"new": "to 2"}}),
        ("prompt.label_moved", {"labels.production": {"old": 2, "new": 3}, "note": {"new": "to 3"}}),
        ("prompt.label_moved", {"labels.production": {"old": 3, "new": 1}, "note": {"new": "to 1"}}),
        ("prompt.rolled_back", {"labels.production": {"old": 1, "new": 3}, "note": {"new": "bad"}}),
        ("prompt.rolled_back", {"labels.production": {"old": 3, "new": 2}, "note": {"new": "bad"}}),
        ("prompt.rolled_back", {"labels.production": {"old": 2, "new": 1}, "note": {"new": "bad"}}),
    ]


async def test_a_lost_answer_of_a_rollback_rolls_back_once(edge: Stack) -> None:
    await made(edge, 3)
    await move(edge, 2)
    await move(edge, 3)
    headers = {"Idempotency-Key": "back"}
    first = await edge.call("POST", f"{PATH}/rollback", {}, headers=headers)
    again = await edge.call("POST", f"{PATH}/rollback", {}, headers=headers)
    assert (again.body, again.headers["ETag"]) == (first.body, first.headers["ETag"])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await edge.call("GET", LABEL)).json["version"] == 2


async def test_what_changes_nothing_is_not_written(edge: Stack) -> None:
    await made(edge, 2)
    first = await move(edge, 2)
    before = await history(edge)
    again = await move(edge, 2, protected=False)
    assert (again.status, again.body, again.headers["ETag"]) == (200, first.body, first.headers["ETag"])
    assert await history(edge) == before


async def test_a_label_is_moved_only_from_what_was_read(edge: Stack) -> None:
    """Given If-Match, then a label that was moved meanwhile is not moved: 412, which names what it is now. `*` and
    If-None-Match say that it must be there, or must not."""
    await made(edge, 3)
    tag = (await edge.call("GET", LABEL)).headers["ETag"]
    moved = await move(edge, 2, headers={"If-Match": tag})
    assert moved.status == 200
    assert moved.headers["ETag"] != tag
    stale = await move(edge, 3, headers={"If-Match": tag})
    refused(stale, 412, "precondition_failed")
    assert stale.headers["ETag"] == moved.headers["ETag"]
    assert "version 2" in stale.json["detail"]
    for headers in ({"If-Match": f"W/{moved.headers['ETag']}"}, {"If-Match": "x"}, {"If-None-Match": "*"}):
        refused(await move(edge, 3, headers=headers), 412, "precondition_failed")
    refused(await move(edge, 3, headers={"If-None-Match": '"1"'}), 400, "malformed_request")
    other = f"{PATH}/labels/new"
    refused(await edge.call("PUT", other, {"version": 1}, headers={"If-Match": "*"}), 412, "precondition_failed")
    refused(await edge.call("PUT", other, {"version": 1}, headers={"If-Match": '"1"'}), 412, "precondition_failed")
    assert (await edge.call("PUT", other, {"version": 1}, headers={"If-None-Match": "*"})).status == 200
    refused(await edge.call("POST", f"{PATH}/rollback", {}, headers={"If-Match": tag}), 412, "precondition_failed")
    refused(await edge.call("DELETE", LABEL, headers={"If-Match": tag}), 412, "precondition_failed")
    assert (await move(edge, 3, headers={"If-Match": f'"99", {moved.headers["ETag"]}'})).status == 200
    assert (await edge.call("GET", LABEL)).json["version"] == 3


async def test_no_etag_comes_again(edge: Stack) -> None:
    """Given a label that is removed and made again, or goes with its prompt and comes back, then no earlier ETag
    matches."""
    await made(edge, 2)
    seen = [(await edge.call("GET", LABEL)).headers["ETag"]]
    for _ in range(2):
        assert (await edge.call("DELETE", LABEL)).status == 204
        seen.append((await move(edge, 1)).headers["ETag"])
        seen.append((await move(edge, 2)).headers["ETag"])
    await edge.call("DELETE", PATH)
    await edge.call("POST", "/api/prompts", prompt(labels=["production"]))
    seen.append((await edge.call("GET", LABEL)).headers["ETag"])
    assert len(set(seen)) == len(seen)


async def test_many_moves_at_once_have_an_entry_each(edge: Stack) -> None:
    """Given many moves at once over two processes, then each has one entry, each begins where the one before ended, and
    the revs have no gap."""
    await made(edge, 12)
    second = Stack.__new__(Stack)
    second.__dict__ = {**edge.__dict__, "base": await edge.start_api()}
    before = int((await edge.call("GET", LABEL)).headers["ETag"].strip('"'))
    wanted = [2 + n % 11 for n in range(60)]
    answers = await asyncio.gather(
        *(move((edge, second)[n % 2], number, note=f"n{n}") for n, number in enumerate(wanted))
    )
    assert {answer.status for answer in answers} == {200}
    moves = [entry for entry in await history(edge) if entry["details"].get("labels.production", {}).get("old")]
    assert moves
    ends = [entry["details"]["labels.production"] for entry in moves]
    assert [one["old"] for one in ends] == [1, *(one["new"] for one in ends[:-1])]
    revs = {int(answer.headers["ETag"].strip('"')) for answer in answers}
    assert revs | {before + 1} == set(range(min(revs), before + len(moves) + 1))
    label = await edge.call("GET", LABEL)
    assert label.headers["ETag"] == f'"{before + len(moves)}"'
    assert label.json["version"] == ends[-1]["new"]


async def test_of_many_moves_from_one_reading_one_wins(edge: Stack) -> None:
    await made(edge, 21)
    tag = (await edge.call("GET", LABEL)).headers["ETag"]
    answers = await asyncio.gather(*(move(edge, 2 + n, headers={"If-Match": tag}) for n in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [412] * 19
    winner = next(answer for answer in answers if answer.status == 200)
    assert (await edge.call("GET", LABEL)).json["version"] == winner.json["version"]
    answers = await asyncio.gather(
        *(edge.call("PUT", f"{PATH}/labels/new", {"version": 1 + n}, headers={"If-None-Match": "*"}) for n in range(20))
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 19


async def test_the_past_is_a_hundred_moves(edge: Stack) -> None:
    """Given more moves than are kept, then a hundred can be rolled back, and no more."""
    await made(edge, 2)
    for n in range(105):
        assert (await move(edge, 2 - n % 2)).status == 200
    answers = [(await edge.call("POST", f"{PATH}/rollback", {})).status for _ in range(101)]
    assert answers == [200] * 100 + [409]


async def test_a_protected_label_takes_the_scope(edge: Stack) -> None:
    """Given a protected label, then without the scope `promote` it is not moved, rolled back, removed, unprotected,
    taken by a new version, or gone with its prompt, and none is made protected; with it, all of that."""
    await made(edge, 2)
    await move(edge, 2)
    assert (await move(edge, 2, protected=True)).json["protected"] is True
    plain, promoter = await key_with(edge, "prompts"), await key_with(edge, "prompts", "promote")
    calls: list[tuple[str, str, Any]] = [
        ("PUT", LABEL, {"version": 1}),
        ("PUT", LABEL, {"version": 2, "protected": False}),
        ("PUT", f"{PATH}/labels/mine", {"version": 1, "protected": True}),
        ("POST", f"{PATH}/rollback", {}),
        ("POST", f"{PATH}/versions", version("x", labels=["production"])),
        ("DELETE", LABEL, None),
        ("DELETE", PATH, None),
    ]
    before = await everything(edge)
    for method, path, body in calls:
        refused(await edge.call(method, path, body, key=plain), 403, "scope_missing")
    after = await everything(edge)
    assert {name: after[name] for name in after if "prompt" in name} == {
        name: before[name] for name in before if "prompt" in name
    }
    assert (await edge.call("PUT", f"{PATH}/labels/free", {"version": 1, "protected": False}, key=plain)).status == 200
    for method, path, body in [*calls[3:5], *calls[:3], calls[6]]:
        answer = await edge.call(method, path, body, key=promoter)
        assert answer.status in (200, 201, 204), (method, path, answer.text)
    log = (await edge.call("GET", "/api/admin/audit?resource=team/hello&limit=200")).json["data"]
    told = [(entry["action"], entry["details"]) for entry in log if "protected" in str(entry["details"])][::-1]
    member = "labels.production.protected"
    assert told == [
        ("prompt.label_protected", {member: {"old": False, "new": True}}),
        ("prompt.label_moved", {member: {"old": True, "new": False}, "labels.production": {"old": 1, "new": 2}}),
        ("prompt.label_moved", {"labels.mine.protected": {"old": False, "new": True}, "labels.mine": {"new": 1}}),
    ]


async def test_latest_is_not_set(edge: Stack) -> None:
    await made(edge)
    refused(await edge.call("PUT", f"{PATH}/labels/latest", {"version": 1}), 422, "invalid_request")
    refused(await edge.call("DELETE", f"{PATH}/labels/latest"), 422, "invalid_request")
    refused(await edge.call("POST", f"{PATH}/rollback", {"label": "latest"}), 422, "invalid_request")
    refused(await edge.call("GET", f"{PATH}/labels/latest"), 404, "not_found")
    for wrong in ("12", "UP", "a%2Fb", "x" * 65):
        refused(await edge.call("PUT", f"{PATH}/labels/{wrong}", {"version": 1}), 422, "invalid_request", "label")
        refused(await edge.call("GET", f"{PATH}/labels/{wrong}"), 404, "not_found")


async def test_a_label_points_at_what_there_is(edge: Stack) -> None:
    await made(edge)
    for number in (0, 2, 10_001):
        refused(await move(edge, number), 422, "invalid_request", "$.version")
    refused(await edge.call("PUT", "/api/prompts/nobody/labels/production", {"version": 1}), 404, "not_found")
    labels = (await edge.call("GET", f"{PATH}/labels")).json["data"]
    assert [(label["label"], label["version"]) for label in labels] == [("production", 1)]


async def test_every_change_is_told(edge: Stack) -> None:
    """Given somebody who listens on the channel, then each change says whose prompt it was."""
    listener = connect(edge.redis_url, timeout_s=None)
    channel = listener.pubsub()  # type: ignore[no-untyped-call]
    await channel.subscribe(edge.keys.prompts_channel)
    await made(edge, 2)
    await move(edge, 2)
    await edge.call("POST", f"{PATH}/rollback", {})
    await edge.call("DELETE", LABEL)
    await edge.call("DELETE", PATH)
    heard = []
    async with asyncio.timeout(5):
        while len(heard) < 6:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=1.0)
            if message:
                heard.append(message["data"])
    assert heard == [f"ten_{'0' * 26} team/hello".encode()] * 6
    await channel.aclose()  # type: ignore[no-untyped-call]
    await listener.aclose()


# -- difference, rendering, history ------------------------------------------------------------------------------------


async def test_the_difference_of_two_versions(edge: Stack) -> None:
    await made(edge)
    await edge.call("POST", f"{PATH}/versions", version("Greet {{who}} kindly.", model="m", labels=["beta"]))
    answer = await edge.call("GET", f"{PATH}/diff?from=production&to=2")
    assert (answer.json["from"], answer.json["to"]) == (1, 2)
    assert answer.json["messages"] == [
        {
            "index": 0,
            "role": "system",
            "previousRole": "system",
            "changes": [
                {"op": "equal", "text": "Greet {{who}}"},
                {"op": "insert", "text": " kindly"},
                {"op": "equal", "text": "."},
            ],
        }
    ]
    assert answer.json["model"] == {"old": None, "new": "m"}
    assert (await edge.call("GET", f"{PATH}/diff?from=beta&to=latest")).json["messages"] == []
    refused(await edge.call("GET", f"{PATH}/diff?from=1"), 422, "invalid_request", "?to")
    refused(await edge.call("GET", f"{PATH}/diff?from=1&to=3"), 404, "not_found")
    refused(await edge.call("GET", f"{PATH}/diff?from=x&to=1"), 404, "not_found")


async def test_a_long_difference_holds_nobody_up(edge: Stack) -> None:
    """Given two of the longest texts, while they are compared, then others are answered."""
    for name, word in (("long", "a "), ("short", "b ")):
        body = {**version(word * 240_000), "name": name}
        assert (await edge.call("POST", "/api/prompts", body)).status == 201
    await edge.call("POST", "/api/prompts/long/versions", version("b " * 240_000))
    comparing = asyncio.create_task(edge.call("GET", "/api/prompts/long/diff?from=1&to=2"))
    waited = 0.0
    while not comparing.done():
        started = asyncio.get_running_loop().time()
        assert (await edge.call("GET", "/healthz", key=None)).status == 200
        waited = max(waited, asyncio.get_running_loop().time() - started)
    assert comparing.result().status == 200
    assert waited < 1


async def test_a_prompt_is_rendered(edge: Stack) -> None:
    """Given values, then the messages are as a model would get them, with their tokens; nothing in a value is
    looked at, and what is wrong is named."""
    await made(edge)
    variables = {"who": {"default": "you"}, "n": {"type": "integer"}}
    await edge.call("POST", f"{PATH}/versions", version("Hi {{who}}, {{n}}.", variables=variables))
    answer = await edge.call("POST", f"{PATH}/render", {"variables": {"who": "{{who}} \\{{ {{n}}"}})
    assert answer.status == 200
    assert answer.json["messages"] == [{"role": "system", "content": "Greet {{who}} \\{{ {{n}}."}]
    assert (answer.json["version"], answer.json["label"]) == (1, "production")
    assert answer.json["model"] == edge.settings.default_model
    second = await edge.call("POST", f"{PATH}/render", {"variables": {"n": 2}, "version": 2, "model": "gpt-4o"})
    assert second.json["messages"][0]["content"] == "Hi you, 2."
    # Hi| you|,| |2|. and the frames of a message and of the answer, with its role.
    assert second.json["tokens"] == 6 + 3 + 3 + 1
    wrong = await edge.call("POST", f"{PATH}/render", {"variables": {"n": "2", "x": 1}, "version": 2})
    refused(wrong, 422, "invalid_request", "$.variables.n")
    refused(wrong, 422, "invalid_request", "$.variables.x")
    refused(await edge.call("POST", f"{PATH}/render", {}), 422, "invalid_request", "$.variables.who")
    used = (await edge.call("GET", "/api/usage?groupBy=")).json["data"][0]
    assert (used["jobs"], used["totalTokens"]) == (0, 0)


async def test_the_history_is_read_in_pages(edge: Stack) -> None:
    """Given a prompt's history, then its pages give each entry once, newest first, and the audit log has the same."""
    await made(edge, 5)
    whole = (await history(edge))[::-1]
    assert [entry["action"] for entry in whole] == ["prompt.version_added"] * 4 + [
        "prompt.label_moved",
        "prompt.created",
    ]
    assert {entry["resource"] for entry in whole} == {"team/hello"}
    found, after = [], ""
    while True:
        page = (await edge.call("GET", f"{PATH}/audit?limit=4{after}")).json
        found += page["data"]
        if not page["hasMore"]:
            break
        after = f"&after={page['next']}"
    assert found == whole
    log = (await edge.call("GET", "/api/admin/audit?resource=team/hello")).json["data"]
    assert [{**entry, "id": ""} for entry in log] == [{**entry, "id": ""} for entry in whole]


# -- whose it is -------------------------------------------------------------------------------------------------------


async def test_another_tenants_prompts_are_not_found(edge: Stack) -> None:
    """Given a prompt of one tenant, then another finds nothing under any call, and has the name for itself."""
    await made(edge, 2)
    _, key = await edge.tenant()
    calls: list[tuple[str, str, Any]] = [
        ("GET", PATH, None),
        ("GET", f"{PATH}?version=1", None),
        ("GET", f"{PATH}/versions", None),
        ("GET", f"{PATH}/labels", None),
        ("GET", LABEL, None),
        ("GET", f"{PATH}/diff?from=1&to=2", None),
        ("GET", f"{PATH}/audit", None),
        ("POST", f"{PATH}/render", {"variables": {"who": "x"}}),
        ("POST", f"{PATH}/versions", version("x")),
        ("PUT", LABEL, {"version": 1}),
        ("DELETE", LABEL, None),
        ("POST", f"{PATH}/rollback", {}),
        ("DELETE", PATH, None),
    ]
    for method, path, body in calls:
        refused(await edge.call(method, path, body, key=key), 404, "not_found")
    assert [row["name"] for row in (await edge.call("GET", "/api/prompts?prefix=team", key=key)).json["data"]] == []
    await made(edge, key=key)
    await edge.call("DELETE", PATH, key=key)
    assert (await edge.call("GET", PATH)).json["version"] == 1


async def test_a_key_without_the_scope_is_refused(edge: Stack) -> None:
    key = await key_with(edge, "jobs", "promote")
    refused(await edge.call("GET", "/api/prompts", key=key), 403, "scope_missing")
    refused(await edge.call("POST", "/api/prompts", prompt(), key=key), 403, "scope_missing")


async def test_a_tenants_own_prompt_goes_before_the_shared_one(edge: Stack) -> None:
    """Given a tenant's own `errand/agent`, then it is shown to this tenant in place of the shared one where it has the
    label, also in its list; `?shared=true` is the shared one; others see the shared one."""
    agent = "/api/prompts/errand%2Fagent"
    _, key = await edge.tenant()
    shared = (await edge.call("GET", agent, key=key)).json
    assert shared["shared"] is True
    body = {**version("Mine."), "name": "errand/agent", "labels": ["beta"]}
    assert (await edge.call("POST", "/api/prompts", body, key=key)).status == 201
    assert (await edge.call("GET", agent, key=key)).json == shared
    assert (await edge.call("GET", f"{agent}?label=beta", key=key)).json["messages"][0]["content"] == "Mine."
    assert (await edge.call("POST", f"{agent}/render", {"label": "beta"}, key=key)).json["messages"][0][
        "content"
    ] == "Mine."
    await edge.call("PUT", f"{agent}/labels/production", {"version": 1}, key=key)
    own = (await edge.call("GET", agent, key=key)).json
    assert (own["shared"], own["messages"][0]["content"]) == (False, "Mine.")
    assert (await edge.call("GET", f"{agent}?shared=true", key=key)).json == shared
    assert (await edge.call("GET", agent)).json["shared"] is True
    rows = {row["name"]: row["shared"] for row in (await edge.call("GET", "/api/prompts", key=key)).json["data"]}
    assert (rows["errand/agent"], rows["errand/agent/last"], len(rows)) == (False, True, len(DEFAULTS))
    rows = {
        row["name"]: row["shared"] for row in (await edge.call("GET", "/api/prompts?shared=true", key=key)).json["data"]
    }
    assert rows["errand/agent"] is True
    await edge.call("DELETE", agent, key=key)
    assert (await edge.call("GET", agent, key=key)).json == shared


async def test_shared_prompts_are_changed_by_administrators_only(edge: Stack) -> None:
    """Given a tenant's key, then it changes no shared prompt, and is not told whose keys did; an administrator's
    does."""
    agent = "/api/prompts/errand%2Fagent"
    _, key = await edge.tenant()
    for method, path, body in [
        ("POST", "/api/prompts", {**version("x"), "name": "errand/new"}),
        ("POST", f"{agent}/versions", version("x")),
        ("PUT", f"{agent}/labels/production", {"version": 1}),
        ("DELETE", f"{agent}/labels/production", None),
        ("POST", f"{agent}/rollback", {}),
        ("DELETE", agent, None),
    ]:
        refused(await edge.call(method, f"{path}?shared=true", body, key=key), 403, "scope_missing")
    refused(await edge.call("POST", f"{agent}/versions", version("x"), key=key), 404, "not_found")
    new = await edge.call("POST", f"{agent}/versions?shared=true", version("New.", labels=["production"]))
    assert (new.status, new.headers["Location"]) == (201, f"{agent}?version=2&shared=true")
    seen = (await edge.call("GET", agent, key=key)).json
    assert (seen["messages"][0]["content"], seen["createdBy"]) == ("New.", "operator")
    assert (await edge.call("GET", f"{agent}/labels/production", key=key)).json["changedBy"] == "operator"
    told = await history(edge, agent, key=key)
    assert {entry["actor"] for entry in told} == {"system", "operator"}
    assert ADMIN_ID not in str(told)
    assert ("ten_" in str(told), "req_" in str(told)) == (False, False)
    assert ADMIN_ID in str(await history(edge, agent))
    other = await edge.call("POST", "/api/prompts?shared=true", {**version("x"), "name": "team/all"})
    refused(other, 422, "invalid_request", "$.name")
    made = await edge.call("POST", "/api/prompts?shared=true", {**version("x"), "name": "errand/new"})
    assert made.status == 201
    assert (await edge.call("DELETE", "/api/prompts/errand%2Fnew?shared=true")).status == 204


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_deleted_prompt_leaves_its_versions(edge: Stack) -> None:
    """Given a prompt that is deleted, then it is nowhere shown, its versions stay for the jobs that are pinned to them,
    and one of the same name goes on with the next number."""
    await made(edge, 2)
    assert (await edge.call("DELETE", PATH)).status == 204
    refused(await edge.call("GET", f"{PATH}?version=1"), 404, "not_found")
    refused(await edge.call("POST", f"{PATH}/versions", version("x")), 404, "not_found")
    refused(await move(edge, 1), 404, "not_found")
    refused(await edge.call("DELETE", PATH), 404, "not_found")
    assert (await edge.call("GET", "/api/prompts?prefix=team")).json["data"] == []
    tenant = f"ten_{'0' * 26}"
    raw: Any = await edge.client.hget(edge.keys.prompt_versions(tenant, "team/hello"), "v:2")  # type: ignore[misc]
    assert b"Greet 2" in raw
    again = await edge.call("POST", "/api/prompts", prompt())
    assert (again.status, again.json["version"], again.json["labels"], again.json["description"]) == (201, 3, [], None)
    refused(await edge.call("GET", PATH), 422, "invalid_request")
    actions = [entry["action"] for entry in await history(edge)]
    assert actions[-2:] == ["prompt.archived", "prompt.created"]


async def test_a_label_under_an_experiment_is_not_removed(edge: Stack) -> None:
    await made(edge, 2)
    record = edge.keys.prompt(f"ten_{'0' * 26}", "team/hello")
    await edge.client.hset(record, "x:production", '{"id": "exp_1"}')  # type: ignore[misc]
    refused(await edge.call("DELETE", LABEL), 409, "conflict")
    refused(await edge.call("DELETE", PATH), 409, "conflict")
    refused(await move(edge, 2), 409, "conflict")


async def test_a_tenants_prompts_are_erased_with_it(make_stack: Any) -> None:
    """Given two tenants with prompts of one name, when one is deleted, then no key or member names it any more, and the
    other has all that it had; meanwhile it can write nothing."""
    stack: Stack = await make_stack()
    tenant, key = await stack.tenant()
    other, other_key = await stack.tenant()
    for one in (key, other_key):
        await made(stack, 3, key=one)
        await stack.call("POST", "/api/prompts", {**version("x"), "name": f"{other}"}, key=one)
        await stack.call("PUT", LABEL, {"version": 2}, key=one)
        headers = {"Idempotency-Key": "back"}
        assert (await stack.call("POST", f"{PATH}/rollback", {}, key=one, headers=headers)).status == 200
    whole = await everything(stack)
    before = {
        name: held for name, held in whole.items() if name.startswith("prompt") and f"{name}:".split(":")[1] == other
    }
    assert len(before) == 7
    shared = {name: held for name, held in whole.items() if ":shared:" in name}
    assert len(await traces(stack, "-", tenant)) >= 7
    job_id = await delete(stack, tenant)
    for path in ("/api/prompts", f"{PATH}/rollback"):
        # 409 while this process has not heard of it.
        assert (await stack.call("POST", path, {**prompt(), "name": "more"}, key=key)).status in (401, 409, 422)
    await stack.start_worker("both")
    receipt = await erased(stack, job_id)
    assert receipt["remaining"] == 0
    assert await traces(stack, job_id, tenant) == []
    after = await everything(stack)
    assert {name: after[name] for name in before} == before
    assert {name: after[name] for name in shared} == shared


async def test_a_tenant_that_is_being_deleted_writes_no_prompt(edge: Stack) -> None:
    """Given a process that has not heard of it, then the scripts themselves refuse."""
    tenant, key = await edge.tenant()
    await made(edge, 2, key=key)
    await edge.client.hset(edge.keys.tenant(tenant), "deleting", "1")  # type: ignore[misc]
    for method, path, body in [
        ("POST", "/api/prompts", {**prompt(), "name": "other"}),
        ("POST", f"{PATH}/versions", version("x")),
        ("PUT", LABEL, {"version": 2}),
        ("POST", f"{PATH}/rollback", {}),
        ("DELETE", LABEL, None),
        ("DELETE", PATH, None),
    ]:
        refused(await edge.call(method, path, body, key=key), 409, "conflict")


async def test_what_a_template_says_is_kept_letter_by_letter(edge: Stack) -> None:
    """Given any characters in messages, notes and defaults, then they come back as they were sent."""
    text = "é\u2028\x01\\{{ \U0001f600 \"'</script>\t" + base64.b64encode(bytes(range(256))).decode()
    body = prompt(
        messages=[{"role": "user", "content": text + "{{a}}"}], note=text, description=text,
        variables={"a": {"type": "json", "default": {"x": [text, 1.5, None, {}, []]}}},
    )  # fmt: skip
    first = (await edge.call("POST", "/api/prompts", body)).json
    read = (await edge.call("GET", f"{PATH}?version=1")).json
    assert read == first
    assert (read["messages"], read["note"], read["description"]) == (body["messages"], text, text)
    assert read["variables"] == body["variables"]
    assert (await history(edge))[0]["details"]["note"] == {"new": text}
