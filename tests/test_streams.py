"""Job streams: gap-free, resumable at every number, and they end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.live import MAX_BUFFERED, Hub, ReplayEnd, Subscription, follow
from shared.events import NewEvent
from shared.redis import connect
from tests.conftest import ADMIN_KEY, Stack, chat


def frames_of(body: str) -> list[dict[str, str]]:
    """The frames of an event stream."""
    frames = []
    for block in body.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if fields:
            frames.append(fields)
    return frames


def events_in(frames: list[dict[str, str]]) -> list[dict[str, str]]:
    """The numbered ones, without what is said once per response."""
    return [{name: value for name, value in frame.items() if name != "retry"} for frame in frames if "id" in frame]


async def stream(stack: Stack, job_id: str, **headers: str) -> list[dict[str, str]]:
    answer = await stack.call("GET", f"/api/jobs/{job_id}/stream", headers=headers)
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Accel-Buffering"] == "no"
    return frames_of(answer.text)


async def test_a_live_stream_is_gap_free_and_ends(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    job_id = await stack.submit(chat())
    reading = asyncio.create_task(stream(stack, job_id))
    await asyncio.sleep(0.1)
    await stack.start_worker("interactive")
    frames = await reading
    assert frames[0]["retry"] == "2000"
    assert frames[0]["id"] == "1"
    assert frames[-1] == {"data": "[DONE]"}
    numbers = [int(frame["id"]) for frame in frames if "id" in frame]
    assert numbers == list(range(1, len(numbers) + 1))
    kinds = [frame.get("event") for frame in frames]
    assert kinds.count("replay.end") == 1
    assert kinds.index("replay.end") == 1
    assert kinds[-2] == "job.complete"
    for frame in frames[:-1]:
        data = json.loads(frame["data"])
        assert data["type"] == frame["event"]
        assert data.get("seq") == (int(frame["id"]) if "id" in frame else None)


async def test_a_finished_job_replays_without_replay_end(stack: Stack) -> None:
    job_id = await stack.submit(chat())
    await stack.finished(job_id)
    frames = await stream(stack, job_id)
    assert "replay.end" not in [frame.get("event") for frame in frames]
    assert frames[-1] == {"data": "[DONE]"}


async def test_every_place_can_be_resumed(stack: Stack) -> None:
    job_id = await stack.submit(chat())
    await stack.finished(job_id)
    whole = events_in(await stream(stack, job_id))
    for place in range(len(whole)):
        by_header = await stream(stack, job_id, **{"Last-Event-ID": str(place)})
        assert events_in(by_header) == whole[place:]
    last = await stack.call("GET", f"/api/jobs/{job_id}/stream", headers={"Last-Event-ID": str(len(whole))})
    assert (last.status, last.body) == (204, b"")
    by_query = await stack.call("GET", f"/api/jobs/{job_id}/stream?after=2")
    assert events_in(frames_of(by_query.text)) == whole[2:]


@pytest.mark.parametrize("place", ["x", "-1", "1.5"])
async def test_a_bad_place_is_refused(edge: Stack, place: str) -> None:
    job_id = await edge.submit(chat())
    answer = await edge.call("GET", f"/api/jobs/{job_id}/stream", headers={"Last-Event-ID": place})
    assert answer.status == 422


async def test_a_client_that_takes_no_events_is_told(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    answer = await edge.call("GET", f"/api/jobs/{job_id}/stream", headers={"Accept": "application/json"})
    assert (answer.status, answer.json["code"]) == (406, "not_acceptable")


async def test_a_submit_can_answer_with_its_stream(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/jobs", chat(), headers={"Accept": "text/event-stream"})
    frames = frames_of(answer.text)
    assert answer.headers["Location"] == f"/api/jobs/{answer.headers['X-Job-Id']}"
    assert frames[0]["event"] == "job.queued"
    assert frames[-1] == {"data": "[DONE]"}
    text = "".join(json.loads(frame["data"])["text"] for frame in frames if frame.get("event") == "delta")
    job = await stack.call("GET", answer.headers["Location"])
    assert text == job.json["result"]["text"]


async def test_events_are_listed_from_a_number(stack: Stack) -> None:
    job_id = await stack.submit(chat())
    await stack.finished(job_id)
    first = (await stack.call("GET", f"/api/jobs/{job_id}/events?limit=2")).json
    assert (first["hasMore"], first["next"]) == (True, 2)
    rest = (await stack.call("GET", f"/api/jobs/{job_id}/events?after=2")).json
    assert rest["data"][0]["seq"] == 3
    assert rest["hasMore"] is False


async def test_a_gap_in_the_log_is_told(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    await edge.client.xtrim(edge.keys.log(job_id), maxlen=1, approximate=False)
    frames = await stream(edge, job_id)
    gap = next(json.loads(frame["data"]) for frame in frames if frame.get("event") == "gap")
    assert gap == {"type": "gap", "from": 1, "to": 1}
    assert frames[-1] == {"data": "[DONE]"}


async def test_a_stream_goes_on_after_its_subscriber_lost_redis(make_stack: Any) -> None:
    """Given a stream, when the one pub/sub connection is killed, then nothing is lost or repeated."""
    stack: Stack = await make_stack()
    job_id = await stack.submit(chat())
    reading = asyncio.create_task(stream(stack, job_id))
    await asyncio.sleep(0.1)
    assert await stack.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    await stack.start_worker("interactive")
    numbers = [int(frame["id"]) for frame in await reading if "id" in frame]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_stopping_api_sends_streams_elsewhere(make_stack: Any) -> None:
    stack: Stack = await make_stack()
    job_id = await stack.submit(chat())
    reading = asyncio.create_task(stream(stack, job_id))
    await asyncio.sleep(0.1)
    await stack.stop_api()
    frames = await reading
    assert frames[-1] == {"retry": "200"}
    assert {"data": "[DONE]"} not in frames


async def test_closing_the_connection_never_stops_the_job(stack: Stack, model: Any) -> None:
    await model.pace(tokensPerSecond=100)
    job_id = await stack.submit(chat("one two three four five six seven eight nine ten"))
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with stack.session.get(f"{stack.base}/api/jobs/{job_id}/stream", headers=headers) as response:
        await response.content.readline()
    assert (await stack.finished(job_id))["status"] == "complete"


def test_a_slow_reader_is_sent_back_to_the_log() -> None:
    """Given a reader that never reads, when its buffer is full, then it holds nothing and is marked behind."""
    reader = Subscription()
    for number in range(MAX_BUFFERED + 1):
        reader.push(b"%d 0 delta {}" % number)
    assert reader.behind
    assert not reader._messages
    big = Subscription()
    big.push(b"1 0 delta " + b"x" * 300_000)
    assert big.behind


async def test_a_reader_that_fell_behind_misses_nothing(edge: Stack) -> None:
    """Given a reader that rests while 2,000 events come, when its buffer has overflowed and it reads on, then all
    arrive, once, in order."""
    job_id = await edge.submit(chat())
    hub = Hub(connect(edge.redis_url, timeout_s=None), edge.keys)
    await hub.start()
    seen: list[int] = []

    async def until_frame(kind: type | None) -> None:
        async with asyncio.timeout(5):
            while not feed.done:
                for frame in await feed.next(15):
                    if isinstance(frame, list):
                        seen.extend(event.seq for event in frame)
                    if kind is not None and isinstance(frame, kind):
                        return

    reading = follow(hub, edge.events, job_id, after=0)
    feed = await reading.__aenter__()
    await until_frame(ReplayEnd)
    claimed, _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    for batch in range(20):
        events = [NewEvent("delta", {"text": f"{batch}.{number} "}) for number in range(100)]
        await edge.events.append_one(claimed[0], "w", batch, events)
    await asyncio.sleep(0.1)
    (channel,) = hub._channels.values()
    assert [reader.behind for reader in channel.readers] == [True]
    await edge.jobs.settle_one(claimed[0], "w", outcome="complete", result="{}")
    await until_frame(None)
    assert seen == list(range(1, 2_004))
    await reading.__aexit__(None, None, None)
    await hub.close()


async def test_a_live_message_that_is_lost_is_read_from_the_log(edge: Stack) -> None:
    """Given a stream, when an event is in the log but its message never came, then the next one reveals it."""
    job_id = await edge.submit(chat())
    reading = asyncio.create_task(stream(edge, job_id))
    await asyncio.sleep(0.1)
    claimed, _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    seq = await edge.client.hincrby(edge.keys.job(job_id), "seq", 1)
    await edge.client.xadd(edge.keys.log(job_id), {"t": "delta", "a": "1", "d": '{"text":"lost"}'}, id=f"{seq}-0")
    await edge.jobs.settle_one(claimed[0], "w", outcome="complete", result="{}")
    async with asyncio.timeout(5):
        frames = await reading
    assert [int(frame["id"]) for frame in frames if "id" in frame] == [1, 2, 3, 4]


async def test_what_came_while_the_subscriber_was_away_is_read_from_the_log(edge: Stack) -> None:
    """Given a stream, when its job ends between the loss of the subscriber and its return, then it ends at once."""
    job_id = await edge.submit(chat())
    reading = asyncio.create_task(stream(edge, job_id))
    await asyncio.sleep(0.1)
    assert await edge.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    async with asyncio.timeout(5):
        frames = await reading
    assert [int(frame["id"]) for frame in frames if "id" in frame] == [1, 2]
    assert frames[-1] == {"data": "[DONE]"}
