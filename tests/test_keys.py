"""API keys while they are used: limits, changes, two secrets at a time, and what ends with which."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from api.auth import CACHE_S
from api.keys import ACCESS, HUB, PRINCIPALS, SESSIONS, TENANTS
from shared.clock import parse_rfc3339, rfc3339
from shared.errors import ConfigurationError
from shared.ids import hash_secret
from shared.redis import RedisRefusedError, redis_now_ms
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat

ADMIN_PATH = f"/api/admin/tenants/ten_{'0' * 26}/keys/key_{ADMIN_KEY.split('_')[1]}"


class Made:
    """A key of a tenant of its own."""

    def __init__(self, stack: Stack, view: dict[str, Any], tenant: str) -> None:
        self.stack = stack
        self.view = view
        self.id: str = view["keyId"]
        self.key: str = view["key"]
        self.path = f"/api/admin/tenants/{tenant}/keys/{view['keyId']}"

    async def rotate(self, body: Any = None, **headers: str) -> Any:
        return await self.stack.call("POST", f"{self.path}/rotate", body, headers=headers)

    async def status(self, key: str, base: str | None = None) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.stack.session.get(f"{base or self.stack.base}/api/jobs", headers=headers) as response:
            return response.status

    async def record(self) -> dict[str, str]:
        raw = await self.stack.client.hgetall(self.stack.keys.api_key(self.id))
        return {name.decode(): value.decode() for name, value in raw.items()}


async def made(stack: Stack, **body: Any) -> Made:
    tenant, _ = await stack.tenant()
    answer = await stack.call("POST", f"/api/admin/tenants/{tenant}/keys", body)
    assert answer.status == 201, answer.text
    return Made(stack, answer.json, tenant)


class Open:
    """A stream or socket that somebody holds open with a key."""

    def __init__(self, held: Any) -> None:
        self._held = held

    @classmethod
    async def stream(cls, stack: Stack, job_id: str, key: str, base: str | None = None) -> Open:
        headers = {"Authorization": f"Bearer {key}"}
        response = await stack.session.get(f"{base or stack.base}/api/jobs/{job_id}/stream", headers=headers)
        assert response.status == 200
        await response.content.readline()
        return cls(response)

    @classmethod
    async def ticket(cls, stack: Stack, job_id: str, key: str) -> Open:
        ticket = (await stack.call("POST", f"/api/jobs/{job_id}/stream-ticket", key=key)).json["ticket"]
        response = await stack.session.get(f"{stack.base}/api/jobs/{job_id}/stream?ticket={ticket}")
        assert response.status == 200
        await response.content.readline()
        return cls(response)

    @classmethod
    async def socket(cls, stack: Stack, key: str, base: str | None = None) -> Open:
        headers = {"Authorization": f"Bearer {key}"}
        return cls(await stack.session.ws_connect(f"{base or stack.base}/api/ws", headers=headers, autoping=True))

    async def ended(self, within_s: float) -> bool:
        """Whether the server ends it within so long."""
        try:
            async with asyncio.timeout(within_s):
                if isinstance(self._held, aiohttp.ClientWebSocketResponse):
                    while (message := await self._held.receive()).type is aiohttp.WSMsgType.TEXT:
                        pass
                    return (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
                try:
                    while await self._held.content.readline():
                        pass
                except aiohttp.ClientPayloadError:
                    pass
                return True
        except TimeoutError:
            return False

    def close(self) -> None:
        if isinstance(self._held, aiohttp.ClientWebSocketResponse):
            self._held._response.close()
        else:
            self._held.close()


# -- what a key has, and how it is changed


async def test_a_key_has_limits_of_its_own(edge: Stack) -> None:
    """Given a key with a rate, when it is over it, then it is refused, and another key of the tenant is not; when the
    limit is removed, it may again."""
    key = await made(edge, limits={"requestsPerMinute": 1})
    assert key.view["limits"] == {"requestsPerMinute": 1}
    assert (await key.record())["policy"] == '{"rpm":1,"rb":1}'
    answers = [await edge.call("POST", "/api/jobs", chat(), key=key.key) for _ in range(2)]
    assert [answer.status for answer in answers] == [202, 429]
    assert answers[1].json["scope"] == "key"
    assert (await edge.call("PATCH", key.path, {"limits": {"requestsPerMinute": None}})).json["limits"] == {}
    assert not {"policy"} & set(await key.record())
    assert (await edge.call("POST", "/api/jobs", chat(), key=key.key)).status == 202


async def test_a_key_is_changed(edge: Stack) -> None:
    key = await made(edge, name="ci", scopes=["jobs"])
    later = rfc3339(await redis_now_ms(edge.client) + 3_600_000)
    body = {"name": "cd", "scopes": ["jobs", "usage", "jobs"], "expiresAt": later, "limits": {"tokensPerMinute": 5}}
    answer = await edge.call("PATCH", key.path, body)
    assert answer.status == 200
    assert answer.json == {**body, "scopes": ["jobs", "usage"], "keyId": key.id, "createdAt": key.view["createdAt"],
                           "lastUsedAt": None}  # fmt: skip
    assert answer.json == (await edge.call("GET", key.path)).json
    gone = await edge.call("PATCH", key.path, {"name": None, "expiresAt": None})
    assert (gone.json["name"], gone.json["expiresAt"]) == (None, None)
    assert gone.json == (await edge.call("GET", key.path)).json
    assert not {"name", "expires_ms"} & set(await key.record())


async def test_changed_scopes_hold_at_once_and_elsewhere_soon(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    second = await stack.start_api()
    key = await made(stack)
    assert [await key.status(key.key, base) for base in (stack.base, second)] == [200, 200]
    await stack.call("PATCH", key.path, {"scopes": ["documents"]})
    assert await key.status(key.key) == 403
    async with asyncio.timeout(CACHE_S + 0.5):
        while await key.status(key.key, second) == 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"scopes": []}, "$.scopes"),
        ({"scopes": ["root"]}, "$.scopes[0]"),
        ({"scopes": None}, "$.scopes"),
        ({"expiresAt": "2001-01-01T00:00:00Z"}, "$.expiresAt"),
        ({"expiresAt": "soon"}, "$.expiresAt"),
        ({"limits": {"maxConcurrentJobs": 1}}, "$.limits.maxConcurrentJobs"),
        ({"limits": {"requestsBurst": 1}}, "$.limits"),
        ({"keyId": "x"}, "$.keyId"),
    ],
)
async def test_a_bad_change_of_a_key_is_refused(edge: Stack, body: Any, where: str) -> None:
    key = await made(edge)
    before = await key.record()
    answer = await edge.call("PATCH", key.path, body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, where)
    assert await key.record() == before


async def test_a_key_of_another_tenant_is_404(edge: Stack) -> None:
    key, other = await made(edge), await made(edge)
    wrong = f"{other.path.rpartition('/')[0]}/{key.id}"
    for method, path, body in (
        ("GET", wrong, None),
        ("PATCH", wrong, {"name": "x"}),
        ("POST", f"{wrong}/rotate", {}),
        ("DELETE", wrong, None),
    ):
        assert (await edge.call(method, path, body)).status == 404
    assert await key.status(key.key) == 200


async def test_a_key_made_before_limits_is_shown(edge: Stack) -> None:
    """Records of an earlier version have no limits."""
    key = await made(edge)
    await edge.client.hdel(edge.keys.api_key(key.id), "limits")
    assert (await edge.call("GET", key.path)).json["limits"] == {}
    changed = await edge.call("PATCH", key.path, {"limits": {"requestsPerMinute": 2}})
    assert changed.json["limits"] == {"requestsPerMinute": 2}


# -- two secrets


async def test_both_secrets_live_for_the_overlap(edge: Stack) -> None:
    """Given a rotated key, then old and new secret are valid until the overlap is over, and the old one no longer."""
    key = await made(edge)
    before_ms = await redis_now_ms(edge.client)
    rotated = await key.rotate({"overlapSeconds": 3})  # longer than CACHE_S
    assert rotated.status == 200
    fresh = rotated.json["key"]
    assert fresh.rpartition("_")[0] == key.key.rpartition("_")[0]
    assert fresh != key.key
    until_ms = parse_rfc3339(rotated.json["previousExpiresAt"])
    assert 3_000 <= until_ms - before_ms < 4_000
    shown = (await edge.call("GET", key.path)).json
    assert "key" not in shown
    assert shown["previousExpiresAt"] == rotated.json["previousExpiresAt"]
    assert [await key.status(key.key), await key.status(fresh)] == [200, 200]
    # Asked again and again: what is kept of the old secret never outlives it.
    while await redis_now_ms(edge.client) < until_ms:
        await key.status(key.key)
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert [await key.status(key.key), await key.status(fresh)] == [401, 200]
    assert "previousExpiresAt" not in (await edge.call("GET", key.path)).json


async def test_a_day_is_the_default_overlap(edge: Stack) -> None:
    key = await made(edge)
    now_ms = await redis_now_ms(edge.client)
    for body in (None, {}, b""):
        until_ms = parse_rfc3339((await key.rotate(body)).json["previousExpiresAt"])
        assert 86_400_000 <= until_ms - now_ms < 86_410_000
    for wrong in (-1, 30 * 86_400 + 1, 1.5, "1"):
        answer = await key.rotate({"overlapSeconds": wrong})
        assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.overlapSeconds")


async def test_a_second_rotation_ends_the_oldest_secret(edge: Stack) -> None:
    key = await made(edge)
    second = (await key.rotate()).json["key"]
    assert await key.status(key.key) == 200
    assert await key.status(second) == 200
    third = (await key.rotate()).json["key"]
    assert [await key.status(one) for one in (key.key, second, third)] == [401, 200, 200]
    fourth = (await key.rotate({"overlapSeconds": 0})).json
    assert "previousExpiresAt" not in fourth
    assert [await key.status(one) for one in (second, third, fourth["key"])] == [401, 401, 200]
    record = await key.record()
    assert record["hash"] == hash_secret(fourth["key"].rpartition("_")[2])
    assert not {"old_hash", "old_until_ms"} & set(record)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "another"}])
async def test_a_lost_answer_ends_nobodys_secret(edge: Stack, headers: dict[str, str]) -> None:
    """Given a rotation whose answer was lost, when the key is rotated again, then it is the secret that nobody knows
    that ends; the one in use works until the time that it was promised, and no longer."""
    key = await made(edge)
    lost = (await key.rotate({"overlapSeconds": 3}, **{"Idempotency-Key": "k"})).json
    assert await key.status(key.key) == 200
    again = (await key.rotate({"overlapSeconds": 60}, **headers)).json
    assert again["previousExpiresAt"] == lost["previousExpiresAt"]
    assert [await key.status(one) for one in (key.key, lost["key"], again["key"])] == [200, 401, 200]
    log = (await edge.call("GET", f"/api/admin/audit?key={key.id}&action=key.rotated")).json["data"]
    assert [entry["details"] for entry in log] == [
        {"unusedSecretReplaced": {"new": True}},
        {"overlapSeconds": {"new": 3}},
    ]
    until_ms = parse_rfc3339(lost["previousExpiresAt"])
    while await redis_now_ms(edge.client) < until_ms:
        assert await key.status(again["key"]) == 200
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.05)
    assert [await key.status(one) for one in (key.key, again["key"])] == [401, 200]


async def test_a_secret_that_was_used_is_not_taken_for_lost(make_stack: Any) -> None:
    """Given a new secret that came once, elsewhere, right after the old one had, when the key is rotated again, then
    both newest work and the oldest ends."""
    stack: Stack = await make_stack()
    second = await stack.start_api()
    key = await made(stack)
    assert [await key.status(key.key, base) for base in (stack.base, second)] == [200, 200]
    middle = (await key.rotate()).json["key"]
    assert await key.status(middle, second) == 200
    last = (await key.rotate()).json["key"]
    assert [await key.status(one) for one in (key.key, middle, last)] == [401, 200, 200]


async def test_an_unused_secret_whose_predecessor_is_over_lives_on(edge: Stack) -> None:
    """It is all that there is: whoever has put it in place may just not have called yet."""
    key = await made(edge)
    await key.rotate({"overlapSeconds": 0})
    fresh = (await key.rotate({"overlapSeconds": 1})).json["key"]
    await asyncio.sleep(1.1)
    newest = (await key.rotate()).json["key"]
    assert [await key.status(one) for one in (fresh, newest)] == [200, 200]


async def test_no_overlap_ends_all_that_was_before(edge: Stack) -> None:
    """Given a secret in use and one that nobody has used, when the key is rotated without overlap, then both end."""
    key = await made(edge)
    unused = (await key.rotate()).json["key"]
    newest = (await key.rotate({"overlapSeconds": 0})).json
    assert "previousExpiresAt" not in newest
    assert [await key.status(one) for one in (key.key, unused, newest["key"])] == [401, 401, 200]


async def test_an_old_secret_lives_no_longer_than_its_key(edge: Stack) -> None:
    soon = rfc3339(await redis_now_ms(edge.client) + 700)
    key = await made(edge, expiresAt=soon)
    rotated = (await key.rotate()).json
    assert rotated["previousExpiresAt"] == soon
    assert [await key.status(key.key), await key.status(rotated["key"])] == [200, 200]
    await asyncio.sleep(0.8)
    assert [await key.status(key.key), await key.status(rotated["key"])] == [401, 401]
    refused = await key.rotate()
    assert (refused.status, refused.json["code"]) == (409, "conflict")


async def test_a_replayed_rotation_omits_the_secret_and_rotates_nothing(edge: Stack) -> None:
    key = await made(edge)
    first = await key.rotate({"overlapSeconds": 60}, **{"Idempotency-Key": "k"})
    again = await key.rotate({"overlapSeconds": 60}, **{"Idempotency-Key": "k"})
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert "key" not in again.json
    assert {**again.json, "key": first.json["key"]} == first.json
    assert [await key.status(key.key), await key.status(first.json["key"])] == [200, 200]
    other = await key.rotate({"overlapSeconds": 61}, **{"Idempotency-Key": "k"})
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")


async def test_streams_end_with_the_secret_they_came_with(make_stack: Any) -> None:
    """Given streams and sockets on both secrets of a key and one with a ticket, over two processes, when the overlap is
    over, then those of the old secret end within five seconds, and the others stay."""
    stack: Stack = await make_stack()
    second = await stack.start_api()
    key = await made(stack)
    job_id = await stack.submit(chat(), key=key.key)
    bases = (stack.base, second)
    old = [await Open.stream(stack, job_id, key.key, base) for base in bases]
    old += [await Open.socket(stack, key.key, base) for base in bases]
    ticket = await Open.ticket(stack, job_id, key.key)
    fresh = (await key.rotate({"overlapSeconds": 1})).json["key"]
    new = [await Open.stream(stack, job_id, fresh, second), await Open.socket(stack, fresh), ticket]
    assert not any(await asyncio.gather(*(one.ended(0.5) for one in (*old, *new))))
    assert all(await asyncio.gather(*(one.ended(5.5) for one in old)))
    assert not any(await asyncio.gather(*(one.ended(2.5) for one in new)))
    for one in new:
        one.close()


async def test_streams_of_a_secret_that_is_rotated_away_end(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    second = await stack.start_api()
    key = await made(stack)
    job_id = await stack.submit(chat(), key=key.key)
    first = [await Open.stream(stack, job_id, key.key), await Open.socket(stack, key.key, second)]
    middle_key = (await key.rotate()).json["key"]
    middle = [await Open.stream(stack, job_id, middle_key), await Open.socket(stack, middle_key, second)]
    assert not any(await asyncio.gather(*(one.ended(0.3) for one in (*first, *middle))))
    last_key = (await key.rotate()).json["key"]
    assert all(await asyncio.gather(*(one.ended(5) for one in first)))
    assert not any(await asyncio.gather(*(one.ended(2.5) for one in middle)))
    await key.rotate({"overlapSeconds": 0})
    assert all(await asyncio.gather(*(one.ended(5) for one in middle)))
    assert await key.status(last_key) == 401


async def test_a_revoked_key_closes_everything_in_every_process(make_stack: Any) -> None:
    """Given streams, sockets and a ticket on both secrets over two processes, when the key is revoked, then all end
    within five seconds."""
    stack: Stack = await make_stack()
    second = await stack.start_api()
    key = await made(stack)
    job_id = await stack.submit(chat(), key=key.key)
    fresh = (await key.rotate()).json["key"]
    held = [await Open.ticket(stack, job_id, fresh)]
    for base in (stack.base, second):
        for one in (key.key, fresh):
            held += [await Open.stream(stack, job_id, one, base), await Open.socket(stack, one, base)]
    assert (await stack.call("DELETE", key.path)).status == 204
    assert all(await asyncio.gather(*(one.ended(5) for one in held)))
    for base in (stack.base, second):
        assert [await key.status(one, base) for one in (key.key, fresh)] == [401, 401]
    assert (await stack.call("DELETE", key.path)).status == 404


async def test_streams_end_when_the_key_is_made_to_expire(edge: Stack) -> None:
    """Given a stream and a socket, when the key gets an expiry, then they end within five seconds of it."""
    key = await made(edge)
    job_id = await edge.submit(chat(), key=key.key)
    held = [await Open.stream(edge, job_id, key.key), await Open.socket(edge, key.key)]
    soon = rfc3339(await redis_now_ms(edge.client) + 500)
    assert (await edge.call("PATCH", key.path, {"expiresAt": soon})).status == 200
    assert not any(await asyncio.gather(*(one.ended(0.3) for one in held)))
    assert all(await asyncio.gather(*(one.ended(5.2) for one in held)))


async def test_a_lost_notice_of_a_rotation_is_made_up_for(edge: Stack) -> None:
    """Given a stream, when its secret ended and the notice was lost, then it ends within five seconds."""
    key = await made(edge)
    job_id = await edge.submit(chat(), key=key.key)
    held = await Open.stream(edge, job_id, key.key)
    await edge.client.hset(edge.keys.api_key(key.id), "hash", hash_secret("other"))
    assert await held.ended(5)
    assert not [one for one in edge._runners[0].app[SESSIONS]._ends if one[0] == key.id]


@pytest.mark.parametrize("overlap_s", [0, 1])
async def test_running_streams_end_without_any_notice(make_stack: Any, model: DevModel, overlap_s: int) -> None:
    """Given jobs that stream, over two processes of which none hears a notice any more, when the secret of the streams
    is rotated away, then they end within five seconds of its end, also one that came on what was still remembered of
    it; those on the new secret stay, and the job runs on."""
    stack: Stack = await make_stack(workers=("interactive",))
    second = await stack.start_api()
    for runner in stack._runners:
        runner.app[HUB]._on_revoked.clear()
    await model.pace(tokensPerSecond=2)
    key = await made(stack)
    job_id = await stack.submit(chat("The harbour opens at nine. The ferry leaves at ten. " * 9), key=key.key)
    bases = (stack.base, second)
    old = [await Open.stream(stack, job_id, key.key, base) for base in bases]
    old += [await Open.socket(stack, key.key, base) for base in bases]
    # A process that did not rotate the key remembers its secret for a moment.
    fresh = (await key.rotate({"overlapSeconds": overlap_s})).json["key"]
    if not overlap_s:
        old.append(await Open.stream(stack, job_id, key.key, second))
    new = [await Open.stream(stack, job_id, fresh, base) for base in bases]
    assert all(await asyncio.gather(*(one.ended(5 + overlap_s) for one in old)))
    assert not any(await asyncio.gather(*(one.ended(CACHE_S + 0.5) for one in new)))
    assert [await key.status(key.key, base) for base in bases] == [401, 401]
    assert (await stack.call("GET", f"/api/jobs/{job_id}", key=fresh)).json["status"] == "processing"
    for one in new:
        one.close()


async def test_a_ticket_outlives_a_rotation(edge: Stack) -> None:
    key = await made(edge)
    job_id = await edge.submit(chat(), key=key.key)
    ticket = (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket", key=key.key)).json["ticket"]
    await key.rotate({"overlapSeconds": 0})
    async with edge.session.get(f"{edge.base}/api/jobs/{job_id}/stream?ticket={ticket}") as response:
        assert response.status == 200


async def test_secrets_are_stored_as_hashes_only(edge: Stack) -> None:
    key = await made(edge)
    rotated = (await key.rotate(**{"Idempotency-Key": "k"})).json["key"]
    everything = []
    async for name in edge.client.scan_iter(f"{edge.keys.prefix}*"):
        everything.append(await edge.client.dump(name))
    for secret in (key.key, rotated):
        assert secret.rpartition("_")[2].encode() not in b"".join(everything)


# -- the admin key


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "", None),
        ("POST", "/rotate", {}),
        ("PATCH", "", {"expiresAt": "2099-01-01T00:00:00Z"}),
        ("PATCH", "", {"scopes": ["jobs"]}),
        ("PATCH", "", {"name": "x", "scopes": ["jobs"]}),
    ],
)
async def test_the_admin_key_cannot_be_lost(edge: Stack, method: str, path: str, body: Any) -> None:
    before = (await edge.call("GET", ADMIN_PATH)).json
    answer = await edge.call(method, ADMIN_PATH + path, body)
    assert (answer.status, answer.json["code"]) == (409, "conflict")
    assert "ERRAND_ADMIN_KEY" in answer.json["detail"]
    assert "admin.key" in answer.json["detail"]
    after = (await edge.call("GET", ADMIN_PATH)).json
    assert {**after, "lastUsedAt": None} == {**before, "lastUsedAt": None}


async def test_the_admin_key_may_be_named(edge: Stack) -> None:
    answer = await edge.call("PATCH", ADMIN_PATH, {"name": "root", "expiresAt": None, "limits": {}})
    assert (answer.status, answer.json["name"]) == (200, "root")


async def test_a_key_of_a_tenant_is_no_admin_key(edge: Stack) -> None:
    """Given a key of a tenant, when the installation is started with it as its admin key, then that is refused."""
    key = await made(edge)
    with pytest.raises(ConfigurationError, match="another tenant"):
        await edge._runners[0].app[TENANTS].ensure_admin(key.key)
    assert (await edge.call("GET", ADMIN_PATH)).status == 200


async def test_a_start_with_another_secret_of_the_admin_key(edge: Stack) -> None:
    """Given the admin key's id with another secret, when an API starts with it, then the old secret ends at once."""
    fresh = ADMIN_KEY[:-43] + "b" * 43
    held = await Open.socket(edge, ADMIN_KEY)
    await edge._runners[0].app[TENANTS].ensure_admin(fresh)
    assert await held.ended(1)  # by the notice: the net has its first look after two
    assert (await edge.call("GET", ADMIN_PATH, key=ADMIN_KEY)).status == 401
    assert (await edge.call("GET", ADMIN_PATH, key=fresh)).status == 200


# -- when it was used


async def test_when_a_key_was_used_is_told(edge: Stack) -> None:
    """Given a key, when it is used, then lastUsedAt says when; many uses within ten seconds are written once."""
    key = await made(edge)
    assert key.view["lastUsedAt"] is None
    before_ms = await redis_now_ms(edge.client)
    await key.status(key.key)
    first = (await edge.call("GET", key.path)).json["lastUsedAt"]
    assert before_ms <= parse_rfc3339(first) <= await redis_now_ms(edge.client)
    app = edge._runners[0].app
    app[PRINCIPALS].clear()
    await key.status(key.key)
    assert (await edge.call("GET", key.path)).json["lastUsedAt"] == first
    app[PRINCIPALS].clear()
    app[ACCESS]._used[key.id] -= 10
    await key.status(key.key)
    assert (await edge.call("GET", key.path)).json["lastUsedAt"] > first


async def test_a_wrong_secret_is_no_use(edge: Stack) -> None:
    key = await made(edge)
    assert await key.status(key.key[:-1] + "_") == 401
    assert await key.status(key.key + "x") == 401
    assert (await edge.call("GET", key.path)).json["lastUsedAt"] is None


async def test_a_use_never_brings_a_revoked_key_back(edge: Stack) -> None:
    key = await made(edge)
    store = edge._runners[0].app[ACCESS]
    assert (await edge.call("DELETE", key.path)).status == 204
    await store._note_use(key.id)
    assert not await edge.client.exists(edge.keys.api_key(key.id))


async def test_a_use_that_cannot_be_noted_fails_nothing(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a Redis that takes no writes, then reading goes on."""
    key = await made(edge)
    store = edge._runners[0].app[ACCESS]
    run = store.scripts.run

    async def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "used":
            raise RedisRefusedError("OOM")
        return await run(name, *arguments, **more)

    monkeypatch.setattr(store.scripts, "run", refuse)
    assert await key.status(key.key) == 200
    monkeypatch.undo()
    edge._runners[0].app[PRINCIPALS].clear()
    assert await key.status(key.key) == 200
    assert (await key.record())["used_ms"]
