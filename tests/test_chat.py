"""Chat: plain frames of text that resume, that end with their listeners, and that are never silently begun anew."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from shared.events import NewEvent
from shared.redis import redis_now_ms
from shared.stores.jobs import Claimed
from tests.conftest import ADMIN_KEY, Answer, Stack, analysis
from tests.test_streams import frames_of

HELLO = {"messages": [{"role": "user", "content": "Please repeat one two three four five six seven eight nine ten."}]}
LONG = {"messages": [{"role": "user", "content": "Repeat: " + " ".join(f"word{n}" for n in range(400)) + "."}]}
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


def text_of(frames: list[dict[str, str]]) -> str:
    return "".join(json.loads(frame["data"])["text"] for frame in frames if frame["data"].startswith('{"text": '))


async def chat(stack: Stack, body: Any = HELLO, **options: Any) -> Answer:
    return await stack.call("POST", "/api/chat/stream", body, **options)


async def claim(stack: Stack) -> Claimed:
    async with asyncio.timeout(5):
        while True:
            claimed, _ = await stack.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
            if claimed:
                return claimed[0]
            await asyncio.sleep(0.01)


async def say(stack: Stack, job: Claimed, batch: int, text: str) -> None:
    await stack.events.append_one(job, "w", batch, [NewEvent("delta", {"text": text})])


class Reader:
    """Reads one stream line by line."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.place = ""

    async def next(self) -> str:
        """The data of the next frame."""
        async with asyncio.timeout(10):
            while True:
                line = (await self.response.content.readline()).decode()
                assert line, "the stream has ended"
                if line.startswith("id: "):
                    self.place = line[4:].strip()
                if line.startswith("data: "):
                    return line[6:].strip()


async def begin(stack: Stack, body: Any = HELLO, **more: Any) -> Reader:
    response = await stack.session.post(f"{stack.base}/api/chat/stream", json={**body, **more}, headers=HEADERS)
    assert response.status == 200, await response.text()
    return Reader(response)


async def calls(model: Any) -> list[dict[str, Any]]:
    return list((await model.stats(calls=True))["list"])


async def test_frames_are_exactly_text_and_done(stack: Stack) -> None:
    answer = await chat(stack)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Accel-Buffering"] == "no"
    blocks = [block for block in answer.text.split("\n\n") if block]
    assert blocks[-1] == "data: [DONE]"
    for block in blocks[:-1]:
        place, data = block.split("\n")
        assert place.startswith("id: ")
        assert data == f"data: {json.dumps(json.loads(data[6:]), ensure_ascii=False)}"
        assert list(json.loads(data[6:])) == ["text"]
    job = await stack.call("GET", answer.headers["Location"])
    assert answer.headers["Location"] == f"/api/jobs/{answer.headers['X-Job-Id']}"
    assert text_of(frames_of(answer.text)) == job.json["result"]["text"]
    assert job.json["status"] == "complete"


async def test_text_of_every_kind_arrives_as_it_is(edge: Stack) -> None:
    """Quotes, line ends, separators and characters beyond the first plane are the same text after JSON and SSE."""
    odd = 'a"b\\c\n\r\t\u2028\u2029\x85 😀 </script> {"text": "x"}'
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, odd)
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    assert text_of(frames_of((await reading).text)) == odd


async def test_the_answer_comes_while_it_is_made(stack: Stack, model: Any) -> None:
    """Given a model of ten tokens a second, then the first frame is there long before the last token is."""
    await model.pace(tokensPerSecond=10)
    started = time.monotonic()
    reader = await begin(stack)
    assert json.loads(await reader.next())["text"]
    assert time.monotonic() - started < 0.5
    assert (await model.stats())["open"] == 1
    reader.response.close()


async def test_a_chat_resumes_after_each_of_its_frames_and_is_paid_once(stack: Stack, model: Any) -> None:
    await model.pace(tokensPerSecond=100)
    whole = await chat(stack)
    frames = [frame for frame in frames_of(whole.text) if "id" in frame]
    assert len(frames) >= 3
    for number, frame in enumerate(frames):
        place = {"Last-Event-ID": frame["id"]}
        rest = text_of(frames[number + 1 :])
        for answer in (
            await chat(stack, headers=place),
            await stack.call("GET", "/api/chat/stream", headers=place),
            await stack.call("GET", f"/api/chat/stream/{whole.headers['X-Job-Id']}", headers=place),
        ):
            assert answer.status == 200
            assert text_of(frames_of(answer.text)) == rest
            assert frames_of(answer.text)[-1] == {"data": "[DONE]"}
            assert answer.headers["X-Job-Id"] == whole.headers["X-Job-Id"]
    replayed = await stack.call("GET", f"/api/chat/stream/{whole.headers['X-Job-Id']}")
    assert text_of(frames_of(replayed.text)) == text_of(frames)
    assert len(await calls(model)) == 1


async def test_a_cut_connection_resumes_live(stack: Stack, model: Any) -> None:
    """Given a chat whose connection breaks again and again, when it is resumed each time, then nothing is missing."""
    await model.pace(tokensPerSecond=150)
    reader = await begin(stack, LONG)
    text, place, job_id = "", "", reader.response.headers["X-Job-Id"]
    for _ in range(5):
        for _ in range(3):
            text += json.loads(await reader.next())["text"]
            place = reader.place
        reader.response.close()
        response = await stack.session.post(
            f"{stack.base}/api/chat/stream", json=LONG, headers={**HEADERS, "Last-Event-ID": place}
        )
        reader = Reader(response)
    while (data := await reader.next()) != "[DONE]":
        text += json.loads(data)["text"]
    assert text == (await stack.finished(job_id))["result"]["text"]
    assert len(await calls(model)) == 1


@pytest.mark.parametrize("place", ["x", "17", "job_01M81SGW152PHX78GHNCJWQHRS", "job_01M81SGW152PHX78GHNCJWQHRS.x"])
async def test_a_bad_place_is_refused_and_starts_nothing(edge: Stack, place: str) -> None:
    answer = await chat(edge, headers={"Last-Event-ID": place})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    assert (await edge.call("GET", "/api/jobs")).json["data"] == []


async def test_places_are_those_of_ones_own_chats(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await edge.jobs.settle_one(job, "w", outcome="complete", result='{"text":"","finishReason":"stop"}')
    await reading
    _, other = await edge.tenant()
    place = {"Last-Event-ID": f"{job.job_id}.1"}
    assert (await chat(edge, headers=place, key=other)).status == 404
    assert (await edge.call("GET", f"/api/chat/stream/{job.job_id}", key=other)).status == 404
    wrong = await edge.call("GET", "/api/chat/stream/job_01M81SGW152PHX78GHNCJWQHRS", headers=place)
    assert wrong.status == 422
    document = await edge.submit(analysis("A sentence."))
    assert (await edge.call("GET", f"/api/chat/stream/{document}")).status == 404


async def test_a_whole_answer_is_one_object(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/chat", HELLO)
    assert answer.status == 200
    job = (await stack.call("GET", answer.headers["Location"])).json
    assert {name: answer.json[name] for name in ("text", "finishReason")} == job["result"]
    assert answer.json["jobId"] == answer.headers["X-Job-Id"]
    assert answer.json["usage"] == job["usage"]


async def test_a_message_in_the_address(stack: Stack) -> None:
    answer = await stack.call("GET", "/api/chat/stream?message=Say+hello.&maxTokens=2&user=u1")
    assert frames_of(answer.text)[-1] == {"data": "[DONE]"}
    job = (await stack.call("GET", answer.headers["Location"])).json
    assert (job["result"]["finishReason"], job["user"]) == ("length", "u1")
    for query, path in (("", "?message"), ("?message=x&maxTokens=many", "?maxTokens"), ("?message=x&top=1", "?top")):
        refused = await stack.call("GET", f"/api/chat/stream{query}")
        assert (refused.status, refused.json["errors"][0]["path"]) == (422, path)


async def test_bad_chats_are_named(edge: Stack) -> None:
    for body, path in (
        ({}, "$.messages"),
        ({"messages": []}, "$.messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "$.messages[0].role"),
        ({**HELLO, "input": {}}, "$.input"),
        ({**HELLO, "temperature": 3}, "$.temperature"),
        ({**HELLO, "prompt": {"name": "none"}}, "$.prompt.name"),
        ({**HELLO, "disconnectGraceSeconds": 0}, "$.disconnectGraceSeconds"),
    ):
        for call in ("/api/chat", "/api/chat/stream"):
            answer = await edge.call("POST", call, body)
            assert (answer.status, answer.json["errors"][0]["path"]) == (422, path)


async def test_the_same_idempotency_key_streams_the_same_chat(stack: Stack, model: Any) -> None:
    key = {"Idempotency-Key": "once"}
    first, again = await chat(stack, headers=key), await chat(stack, headers=key)
    assert again.headers["X-Job-Id"] == first.headers["X-Job-Id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert text_of(frames_of(again.text)) == text_of(frames_of(first.text))
    assert len(await calls(model)) == 1


async def test_without_a_worker_it_is_503_within_ten_seconds(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.chat.START_S", 0.4)
    for call in ("/api/chat/stream", "/api/chat"):
        answer = await edge.call("POST", call, HELLO)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    jobs = (await edge.call("GET", "/api/jobs")).json["data"]
    assert {job["status"] for job in jobs} == {"cancelled"}


async def test_a_chat_that_nobody_took_is_never_started_later(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat whose client went before any worker came, then none starts it after its time, grace or not."""
    monkeypatch.setattr("api.handlers.jobs.START_S", 0.4)
    monkeypatch.setattr("api.handlers.jobs.EXPIRY_S", 0.0)
    reading = asyncio.create_task(chat(edge))
    await asyncio.sleep(0.2)
    job = (await edge.call("GET", "/api/jobs")).json["data"][0]
    reading.cancel()
    await asyncio.sleep(0.4)
    claimed, _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    assert claimed == []
    assert (await edge.call("GET", f"/api/jobs/{job['jobId']}")).json["status"] == "expired"


# -- how a chat goes wrong


async def test_a_model_that_fails_before_its_first_text_has_a_status(stack: Stack, model: Any) -> None:
    await model.faults({"kind": "status", "status": 400})
    answer = await chat(stack)
    assert (answer.status, answer.json["code"]) == (502, "upstream_refused")
    assert answer.json["retryable"] is False
    await model.faults({"kind": "status", "status": 400})
    assert (await stack.call("POST", "/api/chat", HELLO)).status == 502


async def test_a_model_that_fails_once_before_its_first_text_is_asked_again(stack: Stack, model: Any) -> None:
    await model.faults({"kind": "status", "status": 500})
    answer = await chat(stack)
    assert answer.status == 200
    assert frames_of(answer.text)[-1] == {"data": "[DONE]"}
    assert "event: error" not in answer.text
    assert len(await calls(model)) == 2


async def test_a_stream_that_is_cut_after_text_ends_with_an_error(stack: Stack, model: Any) -> None:
    """Given a model that breaks off, then the reader gets text, an error event and [DONE]; nothing is asked again."""
    await model.pace(tokensPerSecond=200)
    await model.faults({"kind": "cut", "after": 5})
    answer = await chat(stack)
    assert answer.status == 200
    frames = frames_of(answer.text)
    assert text_of(frames)
    assert frames[-2]["event"] == "error"
    assert json.loads(frames[-2]["data"])["code"] == "upstream_unavailable"
    assert frames[-1] == {"data": "[DONE]"}
    assert len(await calls(model)) == 1
    job = (await stack.call("GET", answer.headers["Location"])).json
    assert (job["status"], job["error"]["code"]) == ("failed", "upstream_unavailable")
    assert job["usage"]["outputTokens"] == 5
    assert job["usage"]["estimated"] is True
    # Resumed at its last text, it says the same.
    place = {"Last-Event-ID": [frame["id"] for frame in frames if "id" in frame][-1]}
    again = frames_of((await chat(stack, headers=place)).text)
    assert [frame.get("event") for frame in again] == ["error", None]


async def test_a_chat_job_by_the_jobs_api_restarts_and_says_so(stack: Stack, model: Any) -> None:
    await model.pace(tokensPerSecond=200)
    await model.faults({"kind": "cut", "after": 5})
    job_id = await stack.submit({"type": "chat", "input": HELLO})
    assert (await stack.finished(job_id))["status"] == "complete"
    log = await stack.log(job_id)
    restarted = next(event for event in log if event["type"] == "attempt.restarted")
    void = range(restarted["discardAfter"] + 1, restarted["seq"])
    kept = "".join(event["text"] for event in log if event["type"] == "delta" and event["seq"] not in void)
    assert kept == (await stack.finished(job_id))["result"]["text"]
    assert len(await calls(model)) == 2


async def test_a_lost_worker_after_text_is_an_error(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, "Hello")
    await edge.client.zadd(edge.keys.leases, {job.job_id: 1})
    await edge.jobs.reap()
    frames = frames_of((await reading).text)
    assert text_of(frames) == "Hello"
    assert json.loads(frames[-2]["data"])["code"] == "worker_lost"
    assert frames[-1] == {"data": "[DONE]"}


async def test_a_lost_worker_before_text_is_not_noticed(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await edge.client.zadd(edge.keys.leases, {job.job_id: 1})
    await edge.jobs.reap()
    job = await claim(edge)
    await say(edge, job, 1, "Hello")
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    frames = frames_of((await reading).text)
    assert (text_of(frames), frames[-1]) == ("Hello", {"data": "[DONE]"})


async def test_a_deploy_after_text_is_an_error_and_not_a_restart(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, "Hello")
    assert await edge.jobs.settle_one(job, "w", outcome="handback") == "failed"
    frames = frames_of((await reading).text)
    assert json.loads(frames[-2]["data"])["code"] == "worker_lost"
    # A person may still retry it: then it is a job like any other.
    assert (await edge.call("POST", f"/api/jobs/{job.job_id}/retry")).status == 202
    job = await claim(edge)
    assert await edge.jobs.settle_one(job, "w", outcome="handback") == "queued"


async def test_a_cancelled_chat_says_so(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, "Hello")
    await edge.call("DELETE", f"/api/jobs/{job.job_id}")
    await edge.jobs.settle_one(job, "w", outcome="cancelled")
    frames = frames_of((await reading).text)
    assert (frames[-2]["event"], json.loads(frames[-2]["data"])["code"]) == ("error", "cancelled")


# -- nobody listens


async def test_the_model_is_let_go_when_nobody_listens(stack: Stack, model: Any) -> None:
    """Given a chat whose client has gone, when the grace is over, then the model's connection is closed: by its own
    count it sends no more, and what it sent is what is booked."""
    await model.pace(tokensPerSecond=20)
    reader = await begin(stack, LONG, disconnectGraceSeconds=1)
    await reader.next()
    job_id = reader.response.headers["X-Job-Id"]
    gone = time.monotonic()
    reader.response.close()
    await asyncio.sleep(0.6)
    assert (await model.stats())["open"] == 1
    job = await stack.until(job_id, "cancelled")
    assert 0.9 < time.monotonic() - gone < 2.0
    (call,) = await calls(model)
    assert call["ended"] == "closed"
    assert abs(job["usage"]["outputTokens"] - call["outputTokens"]) <= 2
    sent = call["outputTokens"]
    await asyncio.sleep(0.3)
    assert (await calls(model))[0]["outputTokens"] == sent
    warning = next(event for event in await stack.log(job_id) if event["type"] == "job.warning")
    assert warning["code"] == "nobody_listens"


async def test_who_comes_back_within_the_grace_keeps_the_chat(stack: Stack, model: Any) -> None:
    await model.pace(tokensPerSecond=100)
    reader = await begin(stack, LONG, disconnectGraceSeconds=1)
    await reader.next()
    job_id = reader.response.headers["X-Job-Id"]
    for _ in range(3):
        reader.response.close()
        await asyncio.sleep(0.6)
        reader = Reader(
            await stack.session.get(
                f"{stack.base}/api/chat/stream/{job_id}", headers={**HEADERS, "Last-Event-ID": reader.place}
            )
        )
        await reader.next()
    reader.response.close()
    assert (await stack.until(job_id, "cancelled"))["status"] == "cancelled"


async def test_every_kind_of_listener_counts(stack: Stack, model: Any) -> None:
    """A reader of the job's events, a long poll, a WebSocket: each keeps the chat alive."""
    await model.pace(tokensPerSecond=100)
    slow = {"messages": [{"role": "user", "content": "Repeat: " + "word " * 350}]}
    finished = {}
    for kind in ("stream", "poll", "socket"):
        reader = await begin(stack, slow, disconnectGraceSeconds=1)
        job_id = reader.response.headers["X-Job-Id"]
        if kind == "stream":
            listening = asyncio.create_task(stack.call("GET", f"/api/jobs/{job_id}/stream"))
        elif kind == "poll":
            listening = asyncio.create_task(stack.call("GET", f"/api/jobs/{job_id}?wait=20"))
        else:
            socket = await stack.session.ws_connect(f"{stack.base}/api/ws", headers=HEADERS)
            await socket.send_json({"op": "subscribe", "ref": 1, "jobId": job_id})
        await asyncio.sleep(0.1)
        reader.response.close()
        await asyncio.sleep(1.6)
        finished[kind] = (await stack.call("GET", f"/api/jobs/{job_id}")).json["status"]
        if kind == "socket":
            await socket.close()
        else:
            listening.cancel()
    assert finished == dict.fromkeys(finished, "processing")


async def test_a_client_that_goes_before_the_first_text_is_noticed(stack: Stack, model: Any) -> None:
    await model.pace(firstTokenSeconds=30)
    for call in ("/api/chat/stream", "/api/chat"):
        with pytest.raises(asyncio.TimeoutError):
            async with stack.session.post(
                f"{stack.base}{call}",
                json={**HELLO, "disconnectGraceSeconds": 1},
                headers=HEADERS,
                timeout=aiohttp.ClientTimeout(total=0.5),
            ):
                await asyncio.sleep(5)
    for job in (await stack.call("GET", "/api/jobs")).json["data"]:
        await stack.until(job["jobId"], "cancelled")
    assert (await model.stats())["open"] == 0


async def test_nobody_is_cut_off_by_an_outage_of_redis(edge: Stack) -> None:
    """Given that nobody could renew for a while, when Redis is back, then listeners have time to say so."""
    job_id = (await edge.call("POST", "/api/jobs", {"type": "chat", "input": HELLO})).json["jobId"]
    await edge.client.hset(edge.keys.job(job_id), "grace_ms", 1000)  # type: ignore[misc]
    upkeep = f"{edge.keys.prefix}upkeep"
    await edge.client.hset(upkeep, "last", await redis_now_ms(edge.client) - 6_000)  # type: ignore[misc]
    await edge.client.zadd(edge.keys.listened, {job_id: 1})
    await edge.jobs.reap(lease_ms=15_000)
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["status"] == "queued"
    await edge.client.hset(upkeep, "listened_from", 0)  # type: ignore[misc]
    await edge.jobs.reap(lease_ms=15_000)
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["status"] == "cancelled"


async def test_a_listener_sits_out_a_redis_that_was_killed(make_stack: Any, model: Any, own_redis: Any) -> None:
    """Given a chat with a reader, when Redis is away for longer than the last renewal lasts, then the chat goes on."""
    await model.pace(tokensPerSecond=20)
    stack: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url)
    reader = await begin(stack, LONG, disconnectGraceSeconds=5)
    await reader.next()
    job_id = reader.response.headers["X-Job-Id"]
    own_redis.kill()
    await asyncio.sleep(5.2)
    own_redis.start()
    await asyncio.sleep(6)
    assert (await stack.call("GET", f"/api/jobs/{job_id}")).json["status"] == "processing"
    await reader.next()
    reader.response.close()


async def test_a_job_by_the_jobs_api_runs_with_nobody_listening(make_stack: Any, model: Any) -> None:
    stack: Stack = await make_stack(workers=("interactive",), disconnect_grace_seconds=1.0)
    await model.pace(tokensPerSecond=100)
    job_id = await stack.submit({"type": "chat", "input": LONG | {"maxTokens": 250}})
    await asyncio.sleep(1.8)
    assert (await stack.finished(job_id))["status"] == "complete"


async def test_a_stopping_api_sends_chats_elsewhere(make_stack: Any, model: Any) -> None:
    """Given a chat on an API process that stops, when the client goes to another, then it has every token once."""
    await model.pace(tokensPerSecond=100)
    stack: Stack = await make_stack(workers=("interactive",))
    other = await stack.start_api()
    first = stack.base
    stack.base = other
    reader = await begin(stack, LONG)
    text = json.loads(await reader.next())["text"]
    await stack.stop_api()
    rest = (await reader.response.read()).decode()
    assert rest.endswith("retry: 200\n\n")
    assert "[DONE]" not in rest
    frames = [frame for frame in frames_of(rest) if "id" in frame]
    text += text_of(frames)
    stack.base = first
    place = frames[-1]["id"] if frames else reader.place
    answer = await chat(stack, LONG, headers={"Last-Event-ID": place})
    text += text_of(frames_of(answer.text))
    job = await stack.finished(answer.headers["X-Job-Id"])
    assert text == job["result"]["text"]
    assert len(await calls(model)) == 1


# -- jobs that need no listener, and chats that were refused


async def test_reading_a_queued_job_never_cancels_it(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat job by the jobs API that waits for a worker, when its text is read, with a key or with a ticket, for
    longer than a chat may wait, then it is still queued."""
    monkeypatch.setattr("api.chat.START_S", 0.2)
    job_id = await edge.submit({"type": "chat", "input": HELLO})
    ticket = (await edge.call("POST", f"/api/jobs/{job_id}/stream-ticket")).json["ticket"]
    for path, key in ((f"/api/chat/stream/{job_id}", ADMIN_KEY), (f"/api/chat/stream/{job_id}?ticket={ticket}", None)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await edge.call("GET", path, key=key)
    assert (await edge.call("GET", f"/api/jobs/{job_id}")).json["status"] == "queued"


async def test_a_retried_chat_needs_no_listener(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge, HELLO | {"disconnectGraceSeconds": 1}))
    job = await claim(edge)
    await say(edge, job, 1, "Hello")
    await edge.jobs.settle_one(job, "w", outcome="handback")
    await reading
    await edge.call("POST", f"/api/jobs/{job.job_id}/retry")
    job = await claim(edge)
    await asyncio.sleep(1.3)
    await edge.jobs.reap()
    assert (await edge.call("GET", f"/api/jobs/{job.job_id}")).json["status"] == "processing"


async def test_a_refused_chat_may_come_again_with_its_key(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat that no worker took, when the same request comes again with its key, then it is tried again."""
    monkeypatch.setattr("api.chat.START_S", 0.2)
    key = {"Idempotency-Key": "again"}
    refused = await chat(edge, headers=key)
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    first = refused.headers["X-Job-Id"]
    monkeypatch.setattr("api.chat.START_S", 10.0)
    reading = asyncio.create_task(chat(edge, headers=key))
    job = await claim(edge)
    assert job.job_id != first
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    assert (await reading).status == 200


async def test_a_stopping_api_names_the_chat_that_goes_on(make_stack: Any, model: Any) -> None:
    """Given chats whose first text is not there yet, when their API process stops, then each client learns its job."""
    await model.pace(firstTokenSeconds=30)
    stack: Stack = await make_stack(workers=("interactive",))
    whole = asyncio.create_task(stack.call("POST", "/api/chat", HELLO))
    stream = asyncio.create_task(chat(stack))
    while (await model.stats())["open"] < 2:
        await asyncio.sleep(0.02)
    await stack.stop_api()
    refused, broken = await whole, await stream
    assert (refused.status, refused.json["code"]) == (503, "unavailable")
    assert refused.headers["X-Job-Id"].startswith("job_")
    assert broken.status == 200
    assert f"id: {broken.headers['X-Job-Id']}.0\n" in broken.text
    assert broken.text.endswith("retry: 200\n\n")


async def test_a_restarted_job_reads_as_its_last_run(edge: Stack) -> None:
    """Given a job that began anew, when its text is read from the start, then what is void is not in it."""
    job_id = await edge.submit({"type": "chat", "input": HELLO})
    job = await claim(edge)
    await say(edge, job, 1, "OLD")
    await edge.client.zadd(edge.keys.leases, {job_id: 1})
    await edge.jobs.reap()
    job = await claim(edge)
    await say(edge, job, 1, "NEW")
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    frames = frames_of((await edge.call("GET", f"/api/chat/stream/{job_id}")).text)
    assert (text_of(frames[1:] if "data" not in frames[0] else frames), frames[-1]) == ("NEW", {"data": "[DONE]"})


async def test_a_chat_whose_beginning_is_gone_says_so(edge: Stack) -> None:
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, "a")
    await say(edge, job, 2, "b")
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    await reading
    await edge.client.xtrim(edge.keys.log(job.job_id), maxlen=2, approximate=False)
    answer = await edge.call("GET", f"/api/chat/stream/{job.job_id}")
    assert (answer.status, answer.json["code"]) == (410, "gone")


async def test_a_chat_is_never_silent_for_long(edge: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a chat whose job says much that is no text, then its stream shows a sign of life all the same."""
    monkeypatch.setattr("api.chat.HEARTBEAT_S", 0.3)
    monkeypatch.setattr("api.chat.OPEN_S", 0.1)
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    for batch in range(1, 11):
        await edge.events.append_one(job, "w", batch, [NewEvent("job.progress", {"fraction": None})])
        await asyncio.sleep(0.1)
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    assert (await reading).text.count(": waiting") >= 2


async def test_a_model_that_does_not_speak_http_is_an_upstream_fault(make_stack: Any) -> None:
    """Given a model that answers with garbage, or breaks its chunks in mid-stream, then that is the model's fault."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
    answers = [b"garbage\r\n\r\n", head + b"%x\r\n%s\r\nzz\r\n" % (len(piece), piece)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[0])
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    stack: Stack = await make_stack(workers=("interactive",), openai_base_url=f"http://127.0.0.1:{port}/v1")
    while answers:
        job_id = await stack.submit({"type": "chat", "input": HELLO, "maxAttempts": 1})
        assert (await stack.finished(job_id))["error"]["code"] == "upstream_unavailable"
        answers.pop(0)
    server.close()


async def test_a_resumed_chat_may_send_anything(edge: Stack) -> None:
    """Given a place, then the body is not looked at, whatever its type: some send what they sent before."""
    reading = asyncio.create_task(chat(edge))
    job = await claim(edge)
    await say(edge, job, 1, "a")
    await edge.jobs.settle_one(job, "w", outcome="complete", result="{}")
    place = {"Last-Event-ID": frames_of((await reading).text)[0]["id"]}
    for body, kind in (
        (b"", "application/x-www-form-urlencoded"),
        (b"x", "application/octet-stream"),
        (b"{", "text/x"),
    ):
        answer = await chat(edge, body, headers={**place, "Content-Type": kind})
        assert (answer.status, answer.text) == (200, "data: [DONE]\n\n")
