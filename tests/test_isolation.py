"""No tenant reaches another's: every call of the URL table, with another tenant's ids in every place where an id can
stand, answers as if these did not exist, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import aiohttp
import msgspec
import pytest
from msgspec import inspect

from api.route import Route
from api.routes import ROUTES, SOCKET_PATH
from api.websocket import Operation
from shared.tenants import Scope
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, Stack, chat, settings_for
from tests.reach import NAMING, PLAIN, SAMPLES, Sample, address, filled, named_in
from tests.victim import Victim, like, make_victim

# What may differ between two answers that say the same.
VOLATILE: Final = re.compile(
    r"date|x-request-id|ratelimit.*|x-ratelimit-.*|content-length|etag|location|x-job-id|link", re.I
)
ANY_ID: Final = re.compile(r"\b[a-z]+_[0-7][0-9A-HJKMNP-TV-Z]{25}")
TIMED: Final = 7  # calls of each kind whose median counts
GROSS_S: Final = 0.05  # of that much more or less somebody could learn something over a network
CALL_S: Final = 25.0

Seen = tuple[int, dict[str, str], str]
"""Status, headers, body."""


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def has_ids(route: Route) -> bool:
    return "{" in route.path and route.scope is not None


class Scene:
    """A victim, and whoever calls."""

    def __init__(self, stack: Stack, victim: Victim) -> None:
        self.stack = stack
        self.victim = victim
        self.state: dict[str, Any] = {}

    async def stranger(self, *, is_admin: bool = False) -> str:
        """A key of a tenant that has nothing yet."""
        tenant, key = await self.stack.tenant()
        if not is_admin:
            return key
        body = {"scopes": [scope.value for scope in Scope]}
        return str((await self.stack.call("POST", f"/api/admin/tenants/{tenant}/keys", body)).json["key"])

    async def unknown(self, wanted: set[str]) -> dict[str, str]:
        """Likenesses of these things, which exist nowhere."""
        found: dict[str, str] = {}
        for name in sorted(wanted):  # `job.…` before `place.…`
            if name.startswith("own."):
                continue
            kind, _, which = name.partition(".")
            real = self.victim.names[name]
            # Places in a list are not made up: those that exist are as good as any other.
            found[name] = real if kind in ("cursor", "label") else await like(self.stack, real)
            if kind == "place":
                job = found.get(f"job.{which}") or await like(self.stack, self.victim.names[f"job.{which}"])
                found[name] = f"{job}.1"
        return found

    async def own(self, wanted: set[str], key: str | None) -> dict[str, str]:
        """What the caller has of its own."""
        if not wanted & {"own.job", "own.ticket"}:
            return {}
        if key is None:
            return {"own.job": self.victim.names["job.queued"], "own.ticket": "st_"}
        made = await self.stack.call("POST", "/api/jobs", chat(delaySeconds=100_000), key=key)
        if made.status != 202:
            return {"own.job": self.victim.names["job.queued"], "own.ticket": "st_"}
        job = made.json["jobId"]
        ticket = (await self.stack.call("POST", f"/api/jobs/{job}/stream-ticket", key=key)).json["ticket"]
        return {"own.job": job, "own.ticket": ticket}

    async def send(self, route: Route, sample: Sample, names: Mapping[str, str], key: str | None) -> Seen:
        """Makes the call."""
        where = address(route.path, sample, names.__getitem__)
        headers = {"X-Request-Id": "req"} | filled(sample.headers, names.__getitem__)
        if key is not None and "ticket" not in sample.query:
            headers["Authorization"] = f"Bearer {key}"
        if sample.frames is not None:
            return await self._talk(where, headers, filled(sample.frames, names.__getitem__))
        options: dict[str, Any] = {}
        if sample.form is not None:
            form = aiohttp.FormData()
            for field, text in filled(sample.form, names.__getitem__).items():
                form.add_field(field, text, filename="a.txt" if field == "file" else None)
            options["data"] = form
        elif sample.body is not None:
            options["json"] = filled(sample.body, names.__getitem__)
        async with asyncio.timeout(CALL_S):
            answer = await self.stack.call(route.method, where, key=None, headers=headers, **options)
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.body.decode()

    async def _talk(self, where: str, headers: dict[str, str], frames: list[Any]) -> Seen:
        replies: list[Any] = []
        try:
            async with (
                asyncio.timeout(CALL_S),
                self.stack.session.ws_connect(self.stack.base + where, headers=headers) as socket,
            ):
                for frame in frames:
                    await socket.send_json(frame)
                    while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                        if "ref" in (reply := json.loads(message.data)):
                            replies.append(reply)
                            break
                    else:
                        return 401, {}, json.dumps([*replies, str(message.extra)])
        except aiohttp.WSServerHandshakeError as error:
            return error.status, {}, ""
        refused = [reply["problem"]["status"] for reply in replies if "problem" in reply]
        return (refused or [200])[0], {}, json.dumps(replies)


@pytest.fixture(scope="module")
async def scene(
    redis_server: RedisServer, model_server: DevModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    await model_server.reset()
    folder = tmp_path_factory.mktemp("isolation")
    changes = {"embedding_model": "errand-dev-embedding", "lease_seconds": 15.0}
    stack = Stack(settings_for(redis_server.url, model_server, folder, **changes), redis_server.url)
    try:
        await stack.start_api()
        victim = await make_victim(stack, model_server)
        for lane in ("interactive", "batch"):
            await stack.start_worker(lane, webhooks=False)
        made = Scene(stack, victim)
        made.state = await state_of(made)
        yield made
    finally:
        await stack.stop()
        await model_server.reset()


READERS: Final = {"string": "GET", "hash": "HGETALL", "list": "LRANGE", "set": "SMEMBERS", "zset": "ZRANGE",
                  "stream": "XRANGE"}  # fmt: skip
BOUNDS: Final = {"list": (0, -1), "zset": (0, -1, "WITHSCORES"), "stream": ("-", "+")}


async def state_of(scene: Scene) -> dict[str, Any]:
    """All that the installation holds of the victim: whole keys, members of common ones, and files. Not when its keys
    were last used: some are used here."""
    client: Any = scene.stack.client
    prefix = scene.stack.settings.redis_prefix
    mine = re.compile("|".join({found[0] for text in scene.victim.ids() for found in ANY_ID.finditer(text)}))
    keys = [raw async for raw in client.scan_iter(f"{prefix}*", count=1_000)]
    async with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
        kinds = [kind.decode() for kind in await pipe.execute()]
        there = [
            (key, kind) for key, kind in zip(keys, kinds, strict=True) if kind != "none"
        ]  # one may just have expired
        for key, kind in there:
            pipe.execute_command(READERS[kind], key, *BOUNDS.get(kind, ()))
        held = await pipe.execute()
    found: dict[str, Any] = {}
    for (key, kind), value in zip(there, held, strict=True):
        if value is None:
            continue
        name = key.decode().removeprefix(prefix)
        members = sorted(map(str, value.items() if isinstance(value, dict) else value if kind != "string" else [value]))
        if name.startswith("key:"):
            members = [one for one in members if "used_ms" not in one]
        if mine.search(name):
            found[name] = members
        elif not ANY_ID.search(name) and (own := [one for one in members if mine.search(one)]):
            found[name] = own
    blobs = scene.stack.settings.data_dir / "blobs"
    found["files"] = sorted(
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in await asyncio.to_thread(lambda: [*Path(blobs).rglob("*")])
        if path.is_file() and mine.search(str(path))
    )
    return found


def normal(text: str, names: Mapping[str, str]) -> str:
    """A body without what the caller itself had said."""
    parts = {f"{name}'s": found[0] for name, value in names.items() for found in ANY_ID.finditer(value)}
    shown = [(form, name) for name, value in {**parts, **names}.items() for form in (value, json.dumps(value)[1:-1])]
    # Refusals quote the beginning of long ones.
    shown += [(form[:most], name) for form, name in shown for most in (64, 20)]
    for form, name in sorted(shown, key=lambda one: -len(one[0])):
        text = text.replace(form, f"<{name}>") if len(form) > 3 else text
    return text


def shape_of(text: str) -> Any:
    """Which members a JSON body has, without their values."""

    def of(value: Any) -> Any:
        match value:
            case dict():
                return {name: of(one) for name, one in sorted(value.items())}
            case list():
                return [of(one) for one in value]
        return type(value).__name__.replace("int", "float")

    try:
        return of(json.loads(text))
    except ValueError:
        return None


def headers_of(seen: Seen) -> dict[str, str]:
    return {name: value for name, value in seen[1].items() if not VOLATILE.fullmatch(name)}


def check_blind(scene: Scene, sample: Sample, real: Seen, names: Mapping[str, str]) -> None:
    """Nothing of the victim is in the answer, but what was in the request."""
    said = [value for name in named_in(sample) if (value := names.get(name))]
    shown = "\n".join([*(f"{name}: {value}" for name, value in real[1].items()), real[2]])
    leaked = [text for text in scene.victim.ids() if text in shown and not any(text in value for value in said)]
    assert not leaked, f"{leaked} in {real}"


def check_same(sample: Sample, real: Seen, unknown: Seen, names: Mapping[str, str], others: Mapping[str, str]) -> None:
    """An answer about what is somebody else's is that about what does not exist."""
    names, others = ({name: one[name] for name in named_in(sample)} for one in (names, others))
    assert real[0] == unknown[0], f"{real}\n{unknown}"
    assert headers_of(real).keys() == headers_of(unknown).keys()
    if real[0] >= 300:
        assert normal(real[2], names) == normal(unknown[2], others)
        assert headers_of(real) == headers_of(unknown)
    else:
        assert shape_of(real[2]) == shape_of(unknown[2])


def with_routes(*, wanted: Any = lambda _: True) -> Any:
    routes = [route for route in ROUTES if wanted(route)]
    return pytest.mark.parametrize("route", routes, ids=name_of)


# -- the table is whole ----------------------------------------------------------------------------------------------


def members_of(kind: Any, path: str = "$", depth: int = 6) -> set[str]:
    """The paths of all members that a body of this type may have."""
    found: set[str] = set()
    match inspect.type_info(kind) if not isinstance(kind, inspect.Type) else kind:
        case inspect.StructType(fields=fields) if depth:
            for field in fields:
                place = f"{path}.{field.encode_name}"
                found |= {place} | members_of(field.type, place, depth - 1)
        case inspect.UnionType(types=types):
            for one in types:
                found |= members_of(one, path, depth)
        case inspect.ListType(item_type=item):
            found |= members_of(item, path, depth)
    return found


def named_members(value: Any, path: str = "$") -> set[str]:
    """The paths of a sample's body at which something of the victim stands."""
    match value:
        case str():
            return {path} if re.search(r"<[a-z.-]+>", value) else set()
        case dict():
            return set().union(*(named_members(one, f"{path}.{name}") for name, one in value.items()), set())
        case list():
            return set().union(*(named_members(one, path) for one in value), set())
    return set()


@with_routes()
def test_every_call_has_its_samples(route: Route) -> None:
    """Whoever adds a call, a parameter or a body member that takes an id must say here what could stand there."""
    samples = SAMPLES.get(name_of(route))
    assert samples, f"no sample of {name_of(route)}: add one to tests/reach.py"
    for part in re.findall(r"{(\w+)}", route.path):
        assert all(part in sample.path for sample in samples), part
    for parameter in route.parameters:
        given = [
            (sample.query if parameter.place == "query" else sample.headers).get(parameter.name) for sample in samples
        ]
        assert any(given) or parameter.name in PLAIN, f"no sample of {name_of(route)} has {parameter.name!r}"
    if route.body is not None:
        wanted = {path for path in members_of(route.body) if NAMING.fullmatch(path)}
        given_paths = set().union(*(named_members(sample.body) for sample in samples))
        assert wanted <= given_paths, f"no sample of {name_of(route)} names somebody's {wanted - given_paths}"
    if route.path == SOCKET_PATH:
        operations = {one.__struct_config__.tag for one in get_args(Operation)} - {"auth"}
        assert operations == {frame["op"] for sample in samples for frame in sample.frames or ()}


def test_the_table_has_each_call_once() -> None:
    """And there is no sample of a call that is gone."""
    assert sorted(SAMPLES) == sorted(name_of(route) for route in ROUTES)


# -- the attack ------------------------------------------------------------------------------------------------------


@with_routes()
async def test_another_tenants_is_as_if_it_did_not_exist(scene: Scene, route: Route) -> None:
    """Given all that a victim has, when another tenant names any of it, then the answer is that about what exists
    nowhere, tells nothing, and changes nothing; an administrator's key of another tenant is no better."""
    victim = scene.victim
    for sample in SAMPLES[name_of(route)]:
        if sample.opens:
            continue
        wanted = named_in(sample)
        others = await scene.unknown(wanted)
        for is_admin in (False, True):
            if is_admin and (route.scope is Scope.ADMIN or sample.is_documented):
                continue
            seen: list[Seen] = []
            used: list[dict[str, str]] = []
            for names in (victim.names, others):
                key = await scene.stranger(is_admin=is_admin)
                used.append({**names, **await scene.own(wanted, key)})
                seen.append(await scene.send(route, sample, used[-1], key))
            real, unknown = seen
            check_blind(scene, sample, real, used[0])
            check_same(sample, real, unknown, *used)
            assert real[0] < 500, real
            if route.scope is Scope.ADMIN or sample.is_documented:
                assert real[0] == 403, real
                continue
            assert real[0] != 403, "403 would say that it exists"
            theirs = any("<own." not in value and "<" in value for value in sample.path.values())
            if theirs and 401 not in sample.control:
                assert real[0] == 404, real
    assert await state_of(scene) == scene.state


@with_routes(wanted=lambda route: route.scope is not None)
async def test_a_key_that_is_none_or_may_not_reaches_nothing(scene: Scene, route: Route) -> None:
    """Given keys that were revoked, have expired, are of a tenant that was deleted, have another secret or exist
    nowhere, and one of the victim's own without the scope, then each is refused alike whatever it asks for."""
    victim, scope = scene.victim, route.scope
    assert scope is not None
    narrow = victim.key if scope is Scope.ADMIN else victim.narrow[scope.value]
    for sample in SAMPLES[name_of(route)]:
        if any("ticket" in part for part in sample.query):
            continue
        wanted = named_in(sample)
        others = {**await scene.unknown(wanted), **await scene.own(wanted, None)}
        names = {**victim.names, **await scene.own(wanted, None)}
        for why, key in {**victim.refused, "scope": narrow}.items():
            if key is None and route.path == SOCKET_PATH:
                continue  # it waits for a frame with the key: the test below
            real = await scene.send(route, sample, names, key)
            unknown = await scene.send(route, sample, others, key)
            assert real[0] == (403 if why == "scope" else 401), (why, real)
            check_blind(scene, sample, real, names)
            check_same(sample, real, unknown, names, others)
    assert await state_of(scene) == scene.state


async def test_a_socket_without_a_good_key_in_its_first_frame_reaches_nothing(scene: Scene) -> None:
    """Whatever the first frame is, if it is no good key then no other frame is read."""
    victim = scene.victim
    subscribe = {"op": "subscribe", "ref": 1, "jobId": victim.names["job.complete"]}
    keys = [key for key in victim.refused.values() if key] + [victim.narrow["jobs"]]
    firsts = [subscribe, *({"op": "auth", "ref": 1, "key": key} for key in keys)]
    for first in firsts:
        async with scene.stack.session.ws_connect(f"{scene.stack.base}{SOCKET_PATH}") as socket:
            await socket.send_json(first)
            await socket.send_json(subscribe)
            said = [message.data async for message in socket if message.type is aiohttp.WSMsgType.TEXT]
        assert [json.loads(one)["problem"]["status"] for one in said] in ([401], [403])
        assert not any(text in said[0] for text in victim.ids())
    assert await state_of(scene) == scene.state


@with_routes(wanted=lambda route: has_ids(route) and route.scope is not Scope.ADMIN)
async def test_any_id_in_any_place_of_an_address_is_unknown(scene: Scene, route: Route) -> None:
    """Given each of a victim's ids and names, of whatever kind, when another tenant puts it into each place of the
    address, then it is 404 and says nothing."""
    sample, key = SAMPLES[name_of(route)][0], await scene.stranger()
    plain = Sample(path=sample.path, body=sample.body, form=sample.form)
    for name, real in sorted(scene.victim.names.items()):
        for place in sample.path:
            at = {**sample.path, place: f"<{name}>"}
            if "<" not in "".join(value for part, value in at.items() if part != place) and name == "label":
                continue
            probe = msgspec.structs.replace(plain, path=at)
            wanted = named_in(probe)
            others = await scene.unknown(wanted)
            seen = await scene.send(route, probe, scene.victim.names, key)
            other = await scene.send(route, probe, others, key)
            assert seen[0] == 404 or (place == "label" and seen[0] == 422), (place, name, real, seen)
            check_blind(scene, probe, seen, scene.victim.names)
            check_same(probe, seen, other, scene.victim.names, others)
    assert await state_of(scene) == scene.state


@with_routes(wanted=lambda route: has_ids(route) and route.scope is not Scope.ADMIN)
async def test_how_long_it_takes_does_not_tell(scene: Scene, route: Route) -> None:
    """Given an id of a victim and one that exists nowhere, then the answers take about as long (medians of calls by
    turns; looked at again, since other work on the machine takes time too)."""
    key = await scene.stranger()
    for sample in SAMPLES[name_of(route)]:
        if sample.opens or any("<own." in value for value in sample.path.values()):
            continue
        others = await scene.unknown(named_in(sample))
        for _ in range(4):
            took: tuple[list[float], list[float]] = ([], [])
            for _ in range(TIMED):
                for times, names in zip(took, (scene.victim.names, others), strict=True):
                    own = {"own.ticket": "st_", "own.job": ""}
                    started = time.perf_counter()
                    await scene.send(route, sample, {**names, **own}, key)
                    times.append(time.perf_counter() - started)
            real, unknown = map(statistics.median, took)
            if abs(real - unknown) < GROSS_S:
                break
        else:
            raise AssertionError(f"{sample}: {real:.3f} s, and {unknown:.3f} s for what does not exist")


# -- the control -----------------------------------------------------------------------------------------------------


async def test_the_victim_itself_gets_through(scene: Scene) -> None:
    """The same calls, made by the one whose things they name, succeed: what was refused above was there. And nobody
    else's call with an Idempotency-Key of the victim's is taken for a repetition."""
    victim = scene.victim
    await scene.stack.call("PATCH", f"/api/admin/tenants/{victim.tenant}", {"limits": {"maxConcurrentJobs": None}})
    calls = [(route, sample) for route in ROUTES for sample in SAMPLES[name_of(route)]]
    wrong: list[Any] = []
    for route, sample in sorted(calls, key=lambda call: call[1].order):
        key = ADMIN_KEY if route.scope is Scope.ADMIN or sample.is_documented else victim.key
        names = {**victim.names, **await scene.own(named_in(sample), key)}
        seen = await scene.send(route, sample, names, key)
        if seen[0] not in sample.control:
            wrong.append((name_of(route), sample, seen))
            continue
        if "Idempotency-Key" in sample.headers and seen[0] < 300:
            again = await scene.send(route, sample, names, key)
            assert again[1].get("idempotent-replayed") == "true", (name_of(route), again)
            if route.scope is Scope.ADMIN:
                continue
            strange = await scene.send(route, sample, names, await scene.stranger())
            assert "idempotent-replayed" not in strange[1], (name_of(route), strange)
            check_blind(scene, sample, strange, names)
            other = {**names, "idem.job": await like(scene.stack, names["idem.job"])}
            assert strange[0] == (await scene.send(route, sample, other, await scene.stranger()))[0], strange
    assert not wrong, "\n\n".join(map(str, wrong))
