"""The discipline towards models: repeats, fallbacks, the circuit breaker, the window, and usage stated once."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

import worker.model.breaker as breaker_module
import worker.model.client as client_module
import worker.model.window as window_module
from shared.errors import (
    BadOutput,
    CircuitOpen,
    ContextTooLong,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamUnavailable,
)
from shared.settings import Settings
from shared.stores.events import CallUsage
from tests.conftest import DevModel, chat, settings_for
from worker.model.breaker import Breaker
from worker.model.calls import ChatCall, EmbeddingCall, Progress
from worker.model.client import Model
from worker.model.discipline import Discipline, parse_fallbacks
from worker.model.stream import Assembler, Usage
from worker.model.vectors import decode_vectors
from worker.model.window import Window


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(breaker_module, "monotonic_s", clock)
    monkeypatch.setattr(window_module, "monotonic_s", clock)
    return clock


# -- circuit breaker -------------------------------------------------------------------------------------------------


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through(clock: Clock) -> None:
    """Closed → open after three; half-open after its time, for one call; closed by its success."""
    breaker = Breaker("m", failures=3, open_s=10)
    for _ in range(3):
        assert breaker.enter() is False
        breaker.failed(probe=False)
    with pytest.raises(CircuitOpen) as caught:
        breaker.enter()
    assert caught.value.retry_after_s == pytest.approx(10)
    clock.now_s += 10.1
    assert breaker.state == "half-open"
    assert breaker.enter() is True
    with pytest.raises(CircuitOpen):
        breaker.enter()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.enter() is False


def test_a_failed_probe_doubles_the_time_and_a_cancelled_one_does_not(clock: Clock) -> None:
    """10 s, then 20 s; a probe that was cancelled leaves the next call to probe."""
    breaker = Breaker("m", failures=1, open_s=10)
    breaker.enter()
    breaker.failed(probe=False)
    clock.now_s += 10.1
    assert breaker.enter() is True
    breaker.gave_up(probe=True)
    assert breaker.enter() is True
    breaker.failed(probe=True)
    clock.now_s += 10.1
    with pytest.raises(CircuitOpen):
        breaker.enter()
    clock.now_s += 10
    assert breaker.enter() is True


def test_a_success_between_failures_keeps_the_breaker_closed(clock: Clock) -> None:
    """Only failures in a row count."""
    breaker = Breaker("m", failures=2, open_s=10)
    for _ in range(10):
        breaker.enter()
        breaker.failed(probe=False)
        breaker.enter()
        breaker.succeeded()
    assert breaker.state == "closed"


# -- window ----------------------------------------------------------------------------------------------------------


async def load(window: Window, upstream: Any, count: int, callers: int) -> list[str]:
    """`count` calls by many callers, each repeated until it is served; the answers in order of time."""
    answers: list[str] = []
    left = count

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            while True:
                place = await window.enter()
                answer = await upstream()
                answers.append(answer)
                if answer == "served":
                    window.served(place)
                    break
                window.refused(place, None)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


async def test_a_window_finds_what_a_model_takes_at_a_time_and_stays_there() -> None:
    """Ten at a time: soon the bound is ten or one more, and few of a thousand calls are refused."""
    under_way = 0
    window = Window(64)
    bounds: list[float] = []

    async def upstream() -> str:
        nonlocal under_way
        if under_way >= 10:
            return "refused"
        under_way += 1
        await asyncio.sleep(0.005)
        under_way -= 1
        bounds.append(window.limit)
        return "served"

    answers = await load(window, upstream, 1_000, 40)
    assert answers.count("served") == 1_000
    assert answers.count("refused") < 60
    assert {int(bound) for bound in bounds[100:]} <= {9, 10, 11}


async def test_a_window_halves_at_most_once_for_the_calls_of_one_round(clock: Clock) -> None:
    """All eight of a round are refused: the bound falls to half, not to one."""
    window = Window(8)
    window.limit = 8.0
    places = [await window.enter() for _ in range(8)]
    for place in places:
        window.refused(place, None)
    assert window.limit == 4.0
    clock.now_s += 60
    places = [await window.enter() for _ in range(4)]
    for place in places:
        window.refused(place, None)
    assert window.limit == 2.0


async def test_a_window_lowers_its_bound_to_what_is_still_served(clock: Clock) -> None:
    """Two of twelve refused: ten remain, since ten are being served."""
    window = Window(12)
    window.limit = 12.0
    places = [await window.enter() for _ in range(12)]
    for place in places[10:]:
        window.refused(place, None)
    assert window.limit == 10.0


async def test_no_call_begins_before_the_time_that_a_model_wished_for() -> None:
    """Retry-After of 0.2 s holds all calls, not only the refused one."""
    window = Window(8)
    place = await window.enter()
    began = asyncio.get_running_loop().time()
    window.refused(place, 0.2)
    await asyncio.gather(window.enter(), window.enter())
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_cancelled_wait_for_a_place_gives_it_back() -> None:
    """Waiting and just-admitted callers may be cancelled; no place leaks."""
    window = Window(1)
    place = await window.enter()
    waiting = [asyncio.create_task(window.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    window.served(place)  # gives the place to the second
    waiting[1].cancel()
    assert await asyncio.wait_for(waiting[2], 1) > 0
    assert window.in_flight == 1


async def test_jobs_take_turns_at_a_window() -> None:
    """A hundred calls of one job wait; the first call of another job waits for one place, not for a hundred."""
    window = Window(1)
    place = await window.enter("a")
    order: list[str] = []

    async def call(owner: str) -> None:
        mine = await window.enter(owner)
        order.append(owner)
        window.left(mine)

    calls = [asyncio.create_task(call("a")) for _ in range(100)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(call(owner)) for owner in "bbc"]
    await asyncio.sleep(0)
    window.served(place)
    await asyncio.gather(*calls)
    assert order[:7] in (["a", "b", "c", "a", "b", "a", "a"], ["b", "c", "a", "b", "a", "a", "a"])
    assert (window.in_flight, len(order)) == (0, 103)


async def test_no_place_leaks_whatever_becomes_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand calls that are served, refused, or cancelled while they wait or run, by chance: all places free."""
    monkeypatch.setattr(window_module, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(window_module, "FIRST_PAUSE_S", 0.01)
    chance = random.Random(7)
    window = Window(8)

    async def call(owner: str) -> None:
        place = await window.enter(owner)
        try:
            await asyncio.sleep(chance.random() / 500)
        except asyncio.CancelledError:
            window.left(place)
            raise
        if chance.random() < 0.1:
            window.refused(place, None)
        else:
            window.served(place)

    calls = []
    for number in range(2_000):
        calls.append(asyncio.create_task(call(str(number % 5))))
        if number % 3 == 0:
            await asyncio.sleep(0)
            chance.choice(calls).cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*calls, return_exceptions=True)
    assert window.in_flight == 0
    assert await asyncio.wait_for(window.enter(), 6) > 0


# -- tries -----------------------------------------------------------------------------------------------------------


def test_fallbacks_are_read_in_order() -> None:
    """`*` stands for any model."""
    assert parse_fallbacks("a=b, c; *=d;") == {"a": ("b", "c"), "*": ("d",)}
    tries = Discipline(Settings(fallback_models="a=b,c", model_retries=0)).tries("a")
    error = UpstreamUnavailable("gone")
    assert [tries.model, tries.after(error), tries.model, tries.after(error), tries.model, tries.after(error)] == [
        "a", 0.0, "b", 0.0, "c", None,
    ]  # fmt: skip
    assert Discipline(Settings(model_retries=5)).tries("a").after(UpstreamRefused("no")) is None


def test_a_wish_beyond_the_bound_ends_the_tries_of_a_model() -> None:
    """Ten seconds are waited for; sixty are the job's to wait for."""
    settings = Settings(model_retries=3, model_retry_wait_seconds=10)
    tries = Discipline(settings).tries("a")
    wait_s = tries.after(UpstreamRateLimited("later", retry_after_s=9))
    assert wait_s is not None
    assert 9 <= wait_s <= 10
    assert tries.after(UpstreamRateLimited("later", retry_after_s=60)) is None


async def test_a_call_that_fails_before_its_text_is_repeated_in_its_attempt(make_stack: Any, model: DevModel) -> None:
    """Two failures, then the answer: one attempt, each failure a failed step, and the model asked three times."""
    stack = await make_stack(workers=("interactive",), model_retries=2)
    await model.faults({"kind": "status", "status": 503, "times": 2})
    view = await stack.finished(await stack.submit(chat()))
    assert (view["status"], view["attempt"]) == ("complete", 1)
    assert (await model.stats())["calls"] == 3
    states = [event["state"] for event in await stack.log(view["jobId"]) if event["type"] == "job.step"]
    assert states == ["started", "failed", "started", "failed", "started", "finished"]
    assert view["usage"]["wastedTokens"] == 0


async def test_a_call_whose_text_was_shown_is_not_repeated_in_its_attempt(make_stack: Any, model: DevModel) -> None:
    """A stream cut after some text: the next attempt says which text is void."""
    stack = await make_stack(workers=("interactive",), model_retries=2)
    await model.faults({"kind": "cut", "after": 3})
    view = await stack.finished(await stack.submit(chat("one two three four five six")))
    assert (view["status"], view["attempt"]) == ("complete", 2)
    assert view["usage"]["wastedTokens"] > 0


async def test_a_fallback_model_answers_when_the_first_stays_out_of_reach(make_stack: Any, model: DevModel) -> None:
    """It is told as a warning; the job keeps the model that it named."""
    stack = await make_stack(workers=("interactive",), fallback_models="errand-dev-extractive=spare")
    await model.faults({"kind": "status", "status": 500})
    view = await stack.finished(await stack.submit(chat()))
    assert (view["status"], view["model"]) == ("complete", "errand-dev-extractive")
    calls = (await model.stats(calls=True))["list"]
    assert [call["model"] for call in calls] == ["errand-dev-extractive", "spare"]
    assert [event["code"] for event in await stack.log(view["jobId"]) if event["type"] == "job.warning"] == [
        "model_fallback"
    ]


async def test_a_model_that_fails_again_and_again_is_left_alone(make_stack: Any, model: DevModel) -> None:
    """After three failures the fourth job does not reach the model; later one call tries it, and all is well."""
    stack = await make_stack(workers=("interactive",), model_breaker_failures=3, model_breaker_seconds=0.5)
    await model.faults({"kind": "status", "status": 500, "times": 3})
    for _ in range(3):
        assert (await stack.finished(await stack.submit(chat(maxAttempts=1))))["status"] == "failed"
    view = await stack.finished(await stack.submit(chat(maxAttempts=1)))
    assert view["error"]["code"] == "upstream_unavailable"
    assert "left alone" in view["error"]["message"]
    assert (await model.stats())["calls"] == 3
    await asyncio.sleep(0.6)
    assert (await stack.finished(await stack.submit(chat())))["status"] == "complete"


async def test_a_call_that_takes_too_long_in_all_is_closed(make_stack: Any, model: DevModel) -> None:
    """No silence is too long, but the whole is."""
    stack = await make_stack(workers=("interactive",), model_total_seconds=0.5)
    await model.pace(tokensPerSecond=10)
    view = await stack.finished(await stack.submit(chat("a b c d e f g h i j k l m n o p", maxAttempts=1)))
    assert view["error"]["code"] == "upstream_unavailable"
    assert "longer than 0.5 s" in view["error"]["message"]
    assert view["usage"]["outputTokens"] > 0


# -- usage and vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "booked"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, CallUsage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}, CallUsage(10, 30)),
        ({"input_tokens": 7, "output_tokens": 2}, CallUsage(7, 2)),
        ({"prompt_tokens": 10, "total_tokens": 10}, CallUsage(10, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.5, "total_tokens": 15.5}, CallUsage(12, 4)),
        ({"prompt_tokens": 12, "completion_tokens": 2**62}, CallUsage(12, 0)),
        ({"prompt_tokens": "many", "completion_tokens": 3}, CallUsage(0, 3)),
    ],
)
def test_usage_is_normalised(stated: dict[str, int], booked: CallUsage | None) -> None:
    """Thoughts that are only in the total are output; zeros state nothing."""
    assert msgspec.convert(stated, Usage).normalised() == booked


def test_usage_that_is_stated_twice_is_booked_once() -> None:
    """Running figures replace each other; a closing null does not erase them."""
    progress = Progress(3)
    answer = Assembler("m", progress)
    for usage in ('{"prompt_tokens":3,"completion_tokens":1}', '{"prompt_tokens":3,"completion_tokens":4}', "null"):
        answer.take(b'{"choices":[],"usage":%s}' % usage.encode())
    progress.dispatched = True
    assert progress.usage() == CallUsage(3, 4)


def tool_deltas(*deltas: str) -> list[tuple[str, str, str]]:
    answer = Assembler("m", Progress(1))
    for delta in deltas:
        answer.take(b'{"choices":[{"delta":{"tool_calls":[%s]}}]}' % delta.encode())
    return [(call.id, call.name, call.arguments) for call in answer.tool_calls()]


def test_tool_calls_are_put_together_however_they_come() -> None:
    """In pieces by index; whole, with one index for all but their own ids; without an index; arguments as an object."""
    pieces = tool_deltas(
        '{"index":0,"id":"a","function":{"name":"f","arguments":""}}',
        '{"index":1,"id":"b","function":{"name":"g","arguments":""}}',
        '{"index":0,"function":{"arguments":"{\\"x\\""}}',
        '{"index":1,"function":{"arguments":"{}"}}',
        '{"index":0,"function":{"arguments":":1}"}}',
    )
    assert pieces == [("a", "f", '{"x":1}'), ("b", "g", "{}")]
    same_index = tool_deltas(
        '{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}',
        '{"index":0,"id":"b","function":{"name":"f","arguments":"{\\"y\\":2}"}}',
    )
    assert same_index == [("a", "f", "{}"), ("b", "f", '{"y":2}')]
    no_index = tool_deltas(
        '{"id":"a","function":{"name":"f","arguments":"{"}}',
        '{"function":{"arguments":"}"}}',
        '{"id":"b","function":{"name":"g","arguments":{"z":3}}}',
    )
    no_ids = tool_deltas(
        '{"index":0,"function":{"name":"f","arguments":"{\\"x\\":"}}',
        '{"index":0,"function":{"arguments":"1}"}}',
        '{"index":0,"function":{"name":"g","arguments":"{"}}',
        '{"index":0,"function":{"name":"g","arguments":"}"}}',
    )
    assert [call[1:] for call in no_ids] == [("f", '{"x":1}'), ("g", "{}")]
    assert no_index == [("a", "f", "{}"), ("b", "g", '{"z":3}')]


def vector_answer(vectors: list[Any], **more: Any) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return msgspec.json.encode({"data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}, **more})


def test_vectors_come_out_as_asked_whatever_the_model_sent() -> None:
    """Arrays for base64 (Ollama), base64 for arrays, and what was asked for left as it is."""
    packed = base64.b64encode(struct.pack("<2f", 0.5, -0.25)).decode()
    for encoding, sent, wanted in (
        ("float", [0.5, -0.25], b"[0.5,-0.25]"),
        ("float", packed, b"[0.5,-0.25]"),
        ("base64", packed, f'"{packed}"'.encode()),
        ("base64", [0.5, -0.25], f'"{packed}"'.encode()),
    ):
        call = EmbeddingCall(["a", "b"], encoding=encoding)  # type: ignore[arg-type]
        found = decode_vectors(vector_answer([sent, sent]), call, Progress(1))
        assert found.vectors == [wanted, wanted]
        assert (found.dimensions, found.usage) == (2, CallUsage(0, 0, 9))


@pytest.mark.parametrize(
    "sent",
    [
        b"[1,-2.5e-7,0.1]", b"[1]", b"[1 ,2]", b"[1,\n2]", b"[1e5,2E-3,1E2]", b"[-0.0,1e+2]", b"[]", b"[ ]", b"[01]",
        b'["1",2]', b"[null,1]", b"[true]", b"[false,1]", b"[[1],2]", b"[[]]", b"[{},1]", b'["a,b"]', b"[1,,2]",
        b"[1e999,1]",
    ],
)  # fmt: skip
def test_arrays_pass_unread_only_when_reading_them_would_have_let_them_pass(sent: bytes) -> None:
    """Whatever stands in the array, the outcome is that of decoding all its numbers."""
    try:
        numbers: list[float] | None = msgspec.json.decode(sent, type=list[float]) or None
    except msgspec.DecodeError:
        numbers = None
    body = b'{"data":[{"index":0,"embedding":%s}]}' % sent
    if numbers is None:
        with pytest.raises((BadOutput, msgspec.DecodeError)):
            decode_vectors(body, EmbeddingCall(["a"]), Progress(1))
        return
    found = decode_vectors(body, EmbeddingCall(["a"]), Progress(1))
    assert found.dimensions == len(numbers)
    assert msgspec.json.decode(found.vectors[0], type=list[float]) == numbers
    assert not {32, 9, 10, 13} & set(found.vectors[0])


def test_chunks_of_many_tokens_are_not_counted_as_one() -> None:
    """A server that sends 200 tokens at a time and is cut off: what it made is what it is charged for."""
    progress = Progress(10)
    progress.dispatched = True
    answer = Assembler("m", progress)
    for _ in range(5):
        answer.take(msgspec.json.encode({"choices": [{"delta": {"content": "word " * 200}}]}))
    assert progress.usage() == CallUsage(10, 1_250, 0, estimated=True)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_what_is_no_number_is_no_vector(encoding: Any) -> None:
    """NaN in base64 would become null in an array."""
    packed = base64.b64encode(struct.pack("<2f", float("nan"), 1.0)).decode()
    with pytest.raises(BadOutput):
        decode_vectors(vector_answer([packed]), EmbeddingCall(["a"], encoding=encoding), Progress(1))


def test_vectors_that_do_not_fit_the_call_are_refused() -> None:
    """Too few, other dimensions, numbered twice, no vectors at all; an answer without usage is estimated."""
    call = EmbeddingCall(["a", "b"], dimensions=2)
    for body in (
        vector_answer([[1.0, 2.0]]),
        vector_answer([[1.0], [2.0]]),
        vector_answer([[1.0, 2.0], [1.0]]),
        vector_answer([[], []]),
        vector_answer(["??", "??"]),
        msgspec.json.encode({"data": [{"index": 0, "embedding": [1, 2]}, {"index": 0, "embedding": [1, 2]}]}),
    ):
        with pytest.raises(BadOutput):
            decode_vectors(body, call, Progress(1))
    found = decode_vectors(
        msgspec.json.encode({"data": [{"embedding": [1, 2]}, {"embedding": [3, 4]}]}), call, Progress(7)
    )
    assert found.usage == CallUsage(0, 0, 7, estimated=True)
    assert found.vectors == [b"[1,2]", b"[3,4]"]


async def test_the_development_model_embeds_through_the_sdk(model: DevModel, redis_server: Any, tmp_path: Any) -> None:
    """Floats and base64 name the same vector."""
    client = Model(settings_for(redis_server.url, model, tmp_path))
    try:
        found = {}
        for encoding in ("float", "base64"):
            progress = Progress(5)
            call = EmbeddingCall(["the harbour", "the river"], 64, encoding)  # type: ignore[arg-type]
            answer = await client.embed("errand-dev-embedding", call, progress)
            assert answer.dimensions == 64
            assert answer.usage.embedding_tokens == 4
            found[encoding] = answer.vectors
        floats = msgspec.json.decode(found["float"][0], type=list[float])
        packed = base64.b64decode(msgspec.json.decode(found["base64"][0], type=str))
        assert struct.unpack("<64f", packed) == pytest.approx(floats, abs=1e-6)
    finally:
        await client.close()


async def test_a_request_that_is_too_long_is_told_apart(model: DevModel, redis_server: Any, tmp_path: Any) -> None:
    """It is refused for good, but a task may shorten it."""
    client = Model(settings_for(redis_server.url, model, tmp_path))
    try:
        call = ChatCall([{"role": "user", "content": "word " * 130_000}])
        with pytest.raises(ContextTooLong):
            await client.complete("m", call, Progress(1))
    finally:
        await client.close()


# -- servers without measure -----------------------------------------------------------------------------------------


class Endless:
    """A server on loopback that sends without end what a test says; how much it could send."""

    def __init__(self) -> None:
        self.status = 200
        self.piece = b""
        self.sent_bytes = 0
        self.base = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while self.sent_bytes < 1 << 30:
            await response.write(self.piece)
            self.sent_bytes += len(self.piece)
        return response


@pytest.fixture
async def endless() -> AsyncIterator[Endless]:
    state = Endless()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", state.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.base = "http://{}:{}".format(*runner.addresses[0][:2])
    yield state
    await runner.cleanup()


async def test_of_what_comes_with_an_error_only_the_beginning_is_read(
    endless: Endless, redis_server: Any, tmp_path: Any
) -> None:
    """A gigabyte with a 500: some of it is read, its first words are told, and the connection is closed."""
    endless.status, endless.piece = 500, b'{"error": {"message": "' + b"too much " * 4_000
    client = Model(settings_for(redis_server.url, DevModel(endless.base), tmp_path))
    try:
        with pytest.raises(UpstreamUnavailable) as caught:
            await client.complete("m", ChatCall([{"role": "user", "content": "Hello"}]), Progress(1))
        assert "500" in caught.value.message
        assert len(caught.value.message) <= 1_000
        assert endless.sent_bytes < 32 << 20
    finally:
        await client.close()


async def test_an_endless_answer_is_closed(
    endless: Endless, redis_server: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the bound of one answer; and a maker that has to wait reads nothing meanwhile."""
    monkeypatch.setattr(client_module, "MAX_ANSWER_CHARACTERS", 50_000)
    endless.piece = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"word " * 100)
    client = Model(settings_for(redis_server.url, DevModel(endless.base), tmp_path))
    waits = 0

    class Slow:
        is_full = True

        async def room(self) -> None:
            nonlocal waits
            waits += 1

    try:
        progress = Progress(1)
        with pytest.raises(UpstreamUnavailable, match="endless"):
            await client.complete("m", ChatCall([{"role": "user", "content": "Hello"}]), progress, pacer=Slow())
        assert 50_000 < progress.characters < 60_000
        assert waits >= 100
        assert progress.usage().output_tokens > 10_000
    finally:
        await client.close()
