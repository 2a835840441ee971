"""How a worker writes events: the first text at once, then in rounds, in order, nothing twice."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from shared.clock import monotonic_s
from shared.errors import LeaseLostError
from shared.redis import RedisRefusedError
from shared.stores.events import Append
from shared.stores.jobs import Claimed
from worker.report import MOST_OWED, Report
from worker.scribe import MAX_ROUND_S, ROUND_S, Scribe
from worker.turnstile import Turnstile


class Log:
    """Takes what is written, and when; a write takes `delay_s`."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.writes: list[tuple[float, list[Append]]] = []
        self.faults: list[Exception] = []
        self.lost: set[str] = set()

    async def append(self, worker: str, jobs: list[Append]) -> list[int]:
        self.writes.append((monotonic_s(), list(jobs)))
        await asyncio.sleep(self.delay_s)
        if self.faults:
            raise self.faults.pop(0)
        return [-1 if job.job in self.lost else 1 for job in jobs]

    def text(self, job_id: str) -> str:
        """What the log has of a job, its repeats left out."""
        batches = {job.batch: job.events for _, jobs in self.writes for job in jobs if job.job == job_id}
        return "".join(json.loads(data)["text"] for _, events in sorted(batches.items()) for _, data in events)


def claimed(job_id: str) -> Claimed:
    return Claimed(job_id, "ten", "chat", "interactive", 1, 1, 3, "{}", "m", 1000, 0, 0, 0, 0, "")


def reports(log: Log, count: int, lost: list[str] | None = None) -> list[Report]:
    scribe = Scribe(log, "w")  # type: ignore[arg-type]
    found: list[str] = [] if lost is None else lost
    return [Report(scribe, claimed(f"job{n}"), lambda n=n: found.append(f"job{n}")) for n in range(count)]  # type: ignore[misc]


async def test_the_first_text_is_written_at_once_and_what_follows_in_rounds() -> None:
    """Given one fast stream, then its first token waits for nothing, and the others share one about every 20 ms."""
    log = Log()
    (report,) = reports(log, 1)
    started = monotonic_s()
    for number in range(200):
        report.text(f"{number} ")
        await asyncio.sleep(0.001)
    await report.flush()
    assert log.writes[0][0] - started < 0.01
    assert log.text("job0") == "".join(f"{number} " for number in range(200))
    took = monotonic_s() - started
    assert len(log.writes) <= took / ROUND_S + 3
    assert len(log.writes) >= 4


async def test_a_slow_stream_waits_for_no_round() -> None:
    """Given a model slower than the rounds, then each token is written when it comes."""
    log = Log()
    (report,) = reports(log, 1)
    for number in range(4):
        report.text(f"{number} ")
        await asyncio.sleep(0.05)
        assert len(log.writes) == number + 1


async def test_the_more_streams_the_more_tokens_share_an_event() -> None:
    """Given 200 streams, then one script writes for all of them, and a round is longer than that of one stream."""
    log = Log()
    all_reports = reports(log, 200)
    for number in range(30):
        for report in all_reports:
            report.text(f"{number} ")
        await asyncio.sleep(0.01)
    for report in all_reports:
        await report.flush()
    assert all(log.text(f"job{n}") == "".join(f"{number} " for number in range(30)) for n in range(200))
    rounds = [at for at, jobs in log.writes if len(jobs) == 200][1:]
    assert rounds
    pauses = [later - earlier for earlier, later in itertools.pairwise(rounds)]
    assert all(pause > ROUND_S * 2 for pause in pauses)
    assert min(pauses, default=0) < MAX_ROUND_S * 2


async def test_events_that_are_not_text_keep_their_place_and_do_not_wait() -> None:
    log = Log()
    (report,) = reports(log, 1)
    report.text("a")
    await asyncio.sleep(0.005)
    report.text("b")
    await asyncio.sleep(0.005)
    report.text("c")
    report.progress(0.5, "reading", "half")
    await asyncio.sleep(0.005)
    assert [kind for kind, _ in log.writes[-1][1][0].events] == ["delta", "job.progress"]
    report.text("d")
    await report.flush()
    kinds = [
        (kind, json.loads(data).get("text")) for _, jobs in log.writes for job in jobs for kind, data in job.events
    ]
    assert kinds == [("delta", "a"), ("delta", "b"), ("delta", "c"), ("job.progress", None), ("delta", "d")]
    assert json.loads(next(job.progress for _, jobs in log.writes for job in jobs if job.progress))["fraction"] == 0.5


async def test_what_comes_while_a_write_is_under_way_goes_with_the_next() -> None:
    log = Log(delay_s=0.05)
    (report,) = reports(log, 1)
    for number in range(40):
        report.text(f"{number} ")
        await asyncio.sleep(0.002)
    await report.flush()
    assert log.text("job0") == "".join(f"{number} " for number in range(40))
    assert len(log.writes) <= 5


async def test_a_model_waits_while_too_much_text_is_unwritten() -> None:
    """Given a write that takes long, then a maker of text is told to wait, and goes on when it is written; one whose
    lease is lost does not wait for ever."""
    log = Log(delay_s=0.1)
    (report,) = reports(log, 1)
    report.text("first ")
    await asyncio.sleep(0)
    assert not report.is_full
    report.text("x" * (MOST_OWED + 1))
    assert report.is_full
    await asyncio.wait_for(report.room(), 2)
    assert not report.is_full
    assert len(log.text("job0")) == len("first ") + MOST_OWED + 1
    log.lost.add("job0")
    report.text("y" * (MOST_OWED + 1))
    await asyncio.wait_for(report.room(), 2)


async def test_an_outage_repeats_the_same_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given that Redis is away when text comes, then the same batch is sent again, and later text follows it."""
    monkeypatch.setattr("worker.scribe.RECONNECT_S", 0.01)
    log = Log()
    log.faults = [RedisRefusedError("OOM"), RedisRefusedError("OOM")]
    (report,) = reports(log, 1)
    report.text("a")
    await asyncio.sleep(0.005)
    report.text("b")
    await report.flush()
    assert [(job.batch, job.events) for _, jobs in log.writes for job in jobs] == [
        (1, [("delta", '{"text":"a"}')]),
        (1, [("delta", '{"text":"a"}')]),
        (1, [("delta", '{"text":"a"}')]),
        (2, [("delta", '{"text":"b"}')]),
    ]


async def test_a_lost_lease_stops_its_own_report_only() -> None:
    log, lost = Log(), list[str]()
    log.lost = {"job0"}
    one, two = reports(log, 2, lost)
    one.text("a")
    two.text("a")
    with pytest.raises(LeaseLostError):
        await one.flush()
    await two.flush()
    one.text("b")
    two.text("b")
    await two.flush()
    assert lost == ["job0"]
    assert (log.text("job0"), log.text("job1")) == ("a", "ab")


async def test_a_defect_in_a_write_ends_its_attempts_and_not_the_worker() -> None:
    """Given a write that fails by a defect, then each attempt is tried for itself, and only what fails again ends."""
    log, lost = Log(), list[str]()
    log.faults = [ValueError("a defect"), ValueError("a defect")]
    one, two = reports(log, 2, lost)
    one.text("a")
    two.text("a")
    with pytest.raises(LeaseLostError):
        await one.flush()
    await two.flush()
    assert (lost, log.text("job1")) == (["job0"], "a")


async def test_a_turnstile_lets_a_few_through_in_each_turn_in_order() -> None:
    """Given five that come at once, then two pass in each turn; one that gave up takes nobody's place."""
    turnstile, passed = Turnstile(2), list[int]()

    async def one(number: int) -> None:
        await turnstile.enter()
        passed.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert passed == [0, 1]
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert passed == [0, 1, 3, 4, 5]
    async with asyncio.timeout(1):
        await one(6)
