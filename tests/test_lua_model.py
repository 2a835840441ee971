"""The Lua scripts against a plain model in Python: random histories on a real Redis, all raw keys compared each step.

The model (`Model`) knows the rules of docs/lifecycle.md and the contracts in the head of each script; it does not know
the time: what the clock decides (a lease that lapses, a job that falls due) is brought about by writing an old score.
The machine (`Machine`) draws what happens, does it through the stores, and compares.

LUA_MODEL_EXAMPLES sets how many histories are tried, LUA_MODEL_STEPS their length. A failure prints the history.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shared.errors import LeaseLostError, RefusedError
from shared.events import FINAL_TYPES, NewEvent
from shared.ids import CROCKFORD
from shared.keys import Keys
from shared.specs import Lane
from shared.stores.events import Begun, CallUsage, EventsStore, Reservation
from shared.stores.jobs import MAX_LOST_WORKERS, Claimed, JobsStore, Settlement
from tests.histories import Bench, bench_in, run_histories

EXAMPLES = 80
LANES = (Lane.INTERACTIVE, Lane.BATCH)
FINAL = ("complete", "failed", "cancelled", "expired")
HOUR_MS = 3_600_000  # longer than any history: what is this far away happens only when the machine wants it to
GRANT = 2
T = TypeVar("T")

# -- the model -------------------------------------------------------------------------------------------------------


@dataclass
class Tenant:
    """A tenant's limits."""

    weight: float
    max_concurrent: int
    max_queued: int


@dataclass
class Call:
    """A model call: under way (`open`), booked by its estimate (`guessed`), or by its true figure (`exact`)."""

    est: int
    state: str = "open"
    usage: CallUsage = field(default_factory=CallUsage)
    wasted: bool = False

    def figures(self) -> Counter[str]:
        """What this call adds to the job's record."""
        if self.state == "guessed":
            return Counter(tok_in=self.est, tok_wasted=self.est, estimated=1)
        used = self.usage
        return Counter(
            tok_in=used.input_tokens,
            tok_out=used.output_tokens,
            tok_embed=used.embedding_tokens,
            tok_wasted=used.total if self.wasted else 0,
            estimated=int(used.estimated),
        )


@dataclass
class Job:
    """What should be known of a job."""

    id: str
    tenant: str
    lane: str
    est: int
    score: int
    status: str
    max_attempts: int = GRANT
    attempt: int = 0
    lease: int = 0
    owner: str = ""
    run: int = 1
    lost: int = 0
    weight: float = 1  # the tenant's when the job was claimed
    waits_since: int = 0  # the tick that was written as the score of `delayed`; 0: not due
    overdue_since: int = 0  # the same of `expiring`
    lapsed_since: int = 0  # the same of `leases`
    unstarted: bool = True  # in this run
    handed_back: bool = False
    settled: int = 0  # the lease that was settled last
    first_seq: int = 0
    has_text: bool = False
    batch: tuple[int, int] | None = None
    told: tuple[int, str] | None = None
    result: str | None = None
    error: str | None = None
    tokens_at_claim: int = 0
    cancel_tokens: int | None = None
    reused: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    steps: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)  # of its output
    log: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # type, and members that must be in the data
    checked: int = 0  # events of the log that were compared

    @property
    def runs(self) -> bool:
        """Whether a worker has it."""
        return self.status in ("processing", "cancelling")

    @property
    def tokens(self) -> int:
        """All tokens that were booked."""
        figures = self.figures()
        return figures["tok_in"] + figures["tok_out"] + figures["tok_embed"]

    def figures(self) -> Counter[str]:
        """The sum over its calls, each once."""
        total: Counter[str] = Counter(tok_reused=self.reused)
        for call in self.calls.values():
            total.update(call.figures())
        return total

    def emit(self, kind: str, /, **data: Any) -> None:
        """An event that must be next in its log."""
        self.log.append((kind, data))

    def finish(self, status: str) -> None:
        """Its final state in this run."""
        self.status = status
        self.waits_since = self.overdue_since = self.lapsed_since = 0
        self.emit(f"job.{status}")


def cost(tokens: int, weight: float) -> int:
    """Thousandths of a token per weight, as counters have them; never nothing."""
    return math.floor(max(1, tokens) * 1000 / weight)


class Model:
    """All jobs of one prefix, and the fair queue of both lanes."""

    def __init__(self, tenants: dict[str, Tenant]) -> None:
        self.tenants = tenants
        self.jobs: dict[str, Job] = {}
        self.gone: dict[str, str] = {}
        self.trash: set[str] = set()
        self.served: dict[str, dict[str, float]] = {lane: {} for lane in LANES}
        self.floor: dict[str, float] = dict.fromkeys(LANES, 0)
        self.order: dict[str, set[str]] = {lane: set() for lane in LANES}
        self.parked: dict[str, set[str]] = {lane: set() for lane in LANES}
        self.ran: dict[str, float] = dict.fromkeys(LANES, 0)
        self.slots: dict[str, dict[str, int]] = {lane: {} for lane in LANES}
        self._owed: Counter[tuple[str, str]] = Counter()
        self._freed: set[str] = set()

    def having(self, *statuses: str) -> list[Job]:
        """Jobs in one of these states, oldest first."""
        return [job for job in self.jobs.values() if job.status in statuses]

    def ready(self, lane: str, tenant: str) -> list[Job]:
        """Queued jobs in the order in which they are to start."""
        found = [job for job in self.having("queued") if (job.lane, job.tenant) == (lane, tenant)]
        return sorted(found, key=lambda job: (job.score, job.id))

    def running(self, tenant: str) -> int:
        """Jobs of a tenant that workers have."""
        return sum(job.runs for job in self.jobs.values() if job.tenant == tenant)

    def room(self, tenant: str) -> int:
        """Free slots of a tenant, negative after its limit was lowered."""
        return self.tenants[tenant].max_concurrent - self.running(tenant)

    def waiting(self, tenant: str) -> int:
        """Jobs that count against the bound of the queue."""
        return sum(job.tenant == tenant for job in self.having("queued", "scheduled"))

    def startable(self, lane: str) -> dict[str, Job]:
        """Of each tenant with room and with a job that may start: that job."""
        found = {}
        for tenant in self.tenants:
            able = [job for job in self.ready(lane, tenant) if not job.overdue_since]
            if able and self.room(tenant) > 0:
                found[tenant] = able[0]
        return found

    def counter(self, lane: str, tenant: str) -> float:
        """What decides whose turn it is: what its ended jobs used, and the estimates of those that run, per weight."""
        running = [job for job in self.jobs.values() if job.runs and (job.lane, job.tenant) == (lane, tenant)]
        return self.served[lane].get(tenant, 0) + sum(cost(job.est, job.weight) for job in running)

    def push(self, job: Job) -> None:
        """Into its queue. A tenant that was idle starts at what the least served of the active ones has used."""
        job.status = "queued"
        lane, tenant, served = job.lane, job.tenant, self.served[job.lane]
        if tenant not in self.order[lane] | self.parked[lane]:
            least = min((served.get(other, 0) for other in self.order[lane]), default=self.floor[lane])
            if least > served.get(tenant, 0):
                served[tenant] = least
            self.order[lane].add(tenant)

    def left(self, job: Job) -> None:
        """After a job has left the queue: a tenant without ready jobs leaves the order."""
        if not self.ready(job.lane, job.tenant):
            self.order[job.lane].discard(job.tenant)
            self.parked[job.lane].discard(job.tenant)

    def unpark(self, tenant: str) -> None:
        """Back into the order of each lane."""
        for lane in LANES:
            if tenant in self.parked[lane]:
                self.parked[lane].remove(tenant)
                self.order[lane].add(tenant)

    def release(self, job: Job) -> None:
        """Off its worker; what it used is booked when the script ends (`flush`), in place of its estimate."""
        for call in job.calls.values():
            if call.state == "open":
                call.state = "guessed"
        used = job.tokens - job.tokens_at_claim if job.calls else 0
        self._owed[job.lane, job.tenant] += cost(used, job.weight)
        self._freed.add(job.tenant)
        job.lapsed_since = 0

    def flush(self) -> None:
        """The end of a script."""
        for (lane, tenant), amount in self._owed.items():
            self.served[lane][tenant] = self.served[lane].get(tenant, 0) + amount
        for tenant in self._freed:
            self.unpark(tenant)
        self._owed, self._freed = Counter(), set()

    def promote(self, lane: str) -> None:
        """Delayed jobs that are due become ready."""
        due = [job for job in self.having("scheduled", "waiting") if job.lane == lane and job.waits_since]
        for job in sorted(due, key=lambda job: job.waits_since):
            job.waits_since, job.told = 0, None
            job.emit("job.queued")
            self.push(job)

    def start(self, job: Job, worker: str) -> None:
        """A claim gives it to a worker."""
        tenant = self.tenants[job.tenant]
        self.floor[job.lane] = self.served[job.lane].get(job.tenant, 0)
        job.status, job.owner, job.weight, job.lease = "processing", worker, tenant.weight, job.lease + 1
        job.attempt += 0 if job.handed_back else 1
        job.unstarted = job.handed_back = False
        job.tokens_at_claim, job.error = job.tokens, None
        job.emit("job.started", attempt=job.attempt, worker=worker)
        if not job.first_seq:
            job.first_seq = len(job.log)
        elif job.has_text:
            job.emit("attempt.restarted", discardAfter=job.first_seq)
            job.has_text = False

    def expire(self, job: Job) -> None:
        """It was not started in time."""
        was = job.status
        job.finish("expired")
        if was == "queued":
            self.left(job)

    def take_back(self, job: Job) -> None:
        """Its worker was lost."""
        self.release(job)
        job.lost += 1
        if job.status == "cancelling":
            job.finish("cancelled")
        elif job.lost >= MAX_LOST_WORKERS:
            job.finish("failed")
        else:
            job.emit("job.queued", reason="workerLost")
            self.push(job)

    def reap(self) -> list[tuple[str, str, str]]:
        """The upkeep; (job, new status, reason) as the script tells it."""
        lapsed = sorted((job for job in self.jobs.values() if job.lapsed_since), key=lambda job: job.lapsed_since)
        for job in lapsed:
            self.take_back(job)
        overdue = sorted((job for job in self.jobs.values() if job.overdue_since), key=lambda job: job.overdue_since)
        for job in overdue:
            self.expire(job)
        self.flush()
        told = [(job.id, job.status, "lease") for job in lapsed]
        told += [(job.id, job.status, "expiry") for job in overdue]
        for lane in LANES:
            self.promote(lane)
            for tenant in list(self.parked[lane]):
                if self.room(tenant) > 0:
                    self.unpark(tenant)
        return told

    def settle(self, job: Job | None, worker: str, item: Settlement) -> str:
        """The end of one attempt."""
        if job is None:
            return "lost"
        if job.settled == item.lease:
            return "again"
        if not (job.runs and job.owner == worker and job.lease == item.lease):
            return "lost"
        self.release(job)
        outcome, job.settled = item.outcome, item.lease
        if job.status == "cancelling":
            outcome = "cancelled"
        elif outcome == "cancelled":
            outcome = "handback"
        if outcome in ("complete", "failed"):
            self.ran[job.lane] = self.ran[job.lane] + 1  # decayed by the caller, once for all
            job.result = item.result if outcome == "complete" else job.result
            job.error = item.error if outcome == "failed" else job.error
            job.finish(outcome)
        elif outcome == "cancelled":
            job.cancel_tokens = max(job.cancel_tokens or 0, item.tokens_at_request)
            job.finish("cancelled")
        elif outcome == "retry":
            job.status, job.error = "waiting", item.error
            job.emit("job.waiting", kind="backoff")
        else:
            job.handed_back = True
            job.emit("job.queued", reason="handback")
            self.push(job)
        return job.status


# -- the machine -----------------------------------------------------------------------------------------------------

# All keys of a prefix, read in one step: {name without prefix, value}; of each log only what follows `seen[name]`.
DUMP = """
local prefix, seen, out = ARGV[1], cmsgpack.unpack(ARGV[2]), {}
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local kind, name, value = redis.call('TYPE', key).ok, string.sub(key, #prefix + 1), nil
  if string.match(name, '^journal:') or string.match(name, '^idem:') then value = {}  -- MessagePack inside
  elseif kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'string' then value = {redis.call('GET', key)}
  else
    value = {redis.call('XLEN', key)}
    for _, entry in ipairs(redis.call('XRANGE', key, '(' .. (seen[name] or 0) .. '-0', '+')) do
      value[#value + 1] = {entry[1], entry[2]}
    end
  end
  out[#out + 1] = {name, value}
end
return cmsgpack.pack(out)
"""

PICK = st.integers(0, 63)
TENANTS = ("anna", "bert", "carl", "dora")
WORKERS = ("w0", "w1", "w2")
LABELS = ("s0", "s1", "s2")
TOKENS = st.tuples(st.integers(0, 300), st.integers(0, 300), st.sampled_from((0, 50)))
OUTCOMES = st.sampled_from(("complete", "failed", "retry", "cancelled", "handback"))
SUBMISSION = st.tuples(
    PICK,  # tenant
    st.sampled_from(LANES),
    st.sampled_from((0, 60_000, 120_000)),  # class times aging time
    st.sampled_from((0, 1, 100, 1_000)),  # estimated tokens
    st.sampled_from((None, None, None, 90_000, HOUR_MS)),  # delay
)


def pairs(flat: list[Any]) -> dict[str, str]:
    """A hash or a sorted set as Redis lists it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def numbered() -> Callable[[], str]:
    """Ids' part of chance without chance: a history that is tried again takes the same course."""
    count = itertools.count(1)

    def part() -> str:
        number = next(count)
        return "".join(CROCKFORD[(number >> shift) & 31] for shift in range(75, -5, -5))

    return part


class Machine(RuleBasedStateMachine):
    """Draws what happens, does it, and compares."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.do = bench.do
        self.client = bench.client
        self.keys = Keys(f"m{secrets.token_hex(4)}:")
        self.store = JobsStore(bench.client, self.keys)
        self.events = EventsStore(bench.client, self.keys)
        self.model = Model({})
        self.claims: list[tuple[Claimed, str]] = []  # all that were ever given out, with their worker
        self.begun: list[tuple[Claimed, str, str, str]] = []  # claim, worker, step, call
        self.answers: dict[tuple[str, str], tuple[str, str]] = {}  # tenant and idempotency key → body, job
        self.ticks = itertools.count(1)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def raw(self, *command: Any) -> Any:
        """A Redis command of the machine's own."""
        return self.do(self.client.pipe.execute(*command))

    def held(self) -> list[tuple[Claimed, str]]:
        """Claims that are still good."""
        return [(claim, worker) for claim, worker in self.claims if self.holds(claim, worker)]

    def stale(self) -> list[tuple[Claimed, str]]:
        """Claims that are not."""
        return [(claim, worker) for claim, worker in self.claims if not self.holds(claim, worker)]

    def holds(self, claim: Claimed, worker: str) -> bool:
        job = self.model.jobs.get(claim.job_id)
        return job is not None and job.runs and (job.owner, job.lease) == (worker, claim.lease)

    # -- tenants and admission ---------------------------------------------------------------------------------------

    @initialize(
        limits=st.lists(
            st.tuples(st.sampled_from((1.0, 2.0, 5.0, 0.3)), st.integers(1, 3), st.integers(3, 12)),
            min_size=2,
            max_size=len(TENANTS),
        ),
        submissions=st.lists(SUBMISSION, max_size=10),
    )
    def tenants(self, limits: list[tuple[float, int, int]], submissions: list[Any]) -> None:
        for name, (weight, most, queued) in zip(TENANTS, limits, strict=False):
            self.model.tenants[name] = Tenant(weight, most, queued)
            self.write_tenant(name)
        self.admit(submissions)

    def write_tenant(self, name: str) -> None:
        tenant = self.model.tenants[name]
        values = {
            "id": name,
            "weight": tenant.weight,
            "max_concurrent": tenant.max_concurrent,
            "max_queued": tenant.max_queued,
        }
        self.raw("HSET", self.keys.tenant(name), *[str(part) for pair in values.items() for part in pair])

    def admit_one(self, submission: tuple[int, str, int, int, int | None], idem: tuple[str, str] | None = None) -> None:
        index, lane, class_ms, est, delay_ms = submission
        name = list(self.model.tenants)[index % len(self.model.tenants)]
        key, body = idem or ("", "")
        request = self.store.admit(
            tenant=name,
            lane=Lane(lane),
            record={"type": "chat", "est": est, "retention_ms": HOUR_MS, "max_attempts": GRANT, "grant": GRANT},
            class_ms=class_ms,
            expires_in_ms=HOUR_MS,
            delay_ms=delay_ms,
            idem_digest=key or None,
            idem_body=body or None,
        )
        before = self.answers.get((name, key))
        bound = self.model.tenants[name].max_queued
        try:
            admitted = self.do(request)
        except RefusedError as error:
            code = error.code
        else:
            code = ""
        if before:
            assert code == ("" if before[0] == body else "idempotency_mismatch")
        else:
            assert code == ("queue_full" if self.model.waiting(name) >= bound else ""), "the bound of the queue"
        if code:
            return
        if before:
            assert before == (body, admitted.job_id), "an idempotency key stands for one body and one job"
            assert admitted.replayed
            return
        assert not admitted.replayed
        if key:
            self.answers[name, key] = (body, admitted.job_id)
        assert admitted.job_id not in self.model.jobs
        assert admitted.due_ms == admitted.now_ms + (delay_ms or 0)
        assert admitted.status == ("scheduled" if delay_ms else "queued")
        job = Job(admitted.job_id, name, lane, est, admitted.due_ms + class_ms, admitted.status)
        self.model.jobs[job.id] = job
        if delay_ms:
            assert admitted.outlook is None
            return
        job.emit("job.queued")
        self.model.push(job)
        assert admitted.outlook is not None
        self.check_outlook(job, admitted.outlook)

    def check_outlook(self, job: Job, outlook: Any) -> None:
        queue = self.model.ready(job.lane, job.tenant)
        assert outlook.rank == queue.index(job)
        if job is queue[-1]:
            assert outlook.ahead_tokens == sum(other.est for other in queue[:-1])
        assert outlook.waiting_on == self.waits_for(job)

    def waits_for(self, job: Job) -> str:
        if self.model.room(job.tenant) <= 0:
            return "tenantConcurrency"
        return "priority" if self.model.ready(job.lane, job.tenant)[0] is not job else "worker"

    @rule(submissions=st.lists(SUBMISSION, min_size=1, max_size=6))
    def admit(self, submissions: list[Any]) -> None:
        for submission in submissions:
            self.admit_one(submission)

    @rule(submission=SUBMISSION, key=st.sampled_from("kl"), body=st.sampled_from(("b1", "b1", "b2")))
    def admit_with_key(self, submission: Any, key: str, body: str) -> None:
        self.admit_one(submission, (key, body))

    @rule(index=PICK, most=st.integers(1, 4), weight=st.sampled_from((1.0, 3.0)))
    def change_limits(self, index: int, most: int, weight: float) -> None:
        """An operator changes a tenant; the next reap of any process lets it go on where it may."""
        name = list(self.model.tenants)[index % len(self.model.tenants)]
        self.model.tenants[name].max_concurrent = most
        self.model.tenants[name].weight = weight
        self.write_tenant(name)
        self.reap()

    # -- workers -----------------------------------------------------------------------------------------------------

    @rule(
        worker=st.sampled_from(WORKERS),
        count=st.integers(1, 6),
        first=st.sampled_from(LANES),
        limits=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    )
    def claim(self, worker: str, count: int, first: Lane, limits: list[int]) -> None:
        model = self.model
        lanes = list(zip([first, *[lane for lane in LANES if lane != first]], limits, strict=False))
        claimed, due_in = self.do(self.store.claim(worker=worker, lanes=lanes, count=count, lease_ms=HOUR_MS))
        order = [lane for lane, _ in lanes]
        assert [claim.lane for claim in claimed] == sorted((claim.lane for claim in claimed), key=order.index)
        left, sleeps = count, {}
        for lane, limit in lanes:
            model.promote(lane)
            most = min(left, limit)
            mine = [claim for claim in claimed if claim.lane == lane]
            assert len(mine) <= most, "more than was asked for"
            for claim in mine:
                self.check_start(claim, worker)
            left, sleeps[lane] = left - len(mine), len(mine) < most
            # Jobs that were to expire and stood before others, or alone: which of them depends on how ties fell.
            for job in [job for job in model.having("queued") if job.lane == lane and job.overdue_since]:
                if self.raw("HGET", self.keys.job(job.id), "status") == b"expired":
                    model.expire(job)
            if len(mine) < most:
                assert not model.startable(lane), f"{lane}: {len(mine)} of {most} given, though there was more"
            if most > 0:
                for tenant in list(model.order[lane]):
                    if model.room(tenant) <= 0:
                        model.order[lane].remove(tenant)
                        model.parked[lane].add(tenant)
        model.flush()
        for lane, _ in lanes:
            asleep = self.raw("SISMEMBER", f"{self.keys.prefix}idle:{lane}", worker) == 1
            assert asleep == (left > 0 and sleeps[lane])
        delayed = [job for job in model.having("scheduled", "waiting") if job.lane in order]
        assert (due_in is None) == (not delayed)
        self.claims += [(claim, worker) for claim in claimed]

    def check_start(self, claim: Claimed, worker: str) -> None:
        """That this job was the one to start."""
        model, job = self.model, self.model.jobs[claim.job_id]
        able = model.startable(job.lane)
        assert job.status == "queued", f"claimed though {job.status}"
        assert not job.overdue_since, "started too late"
        assert job.tenant in able, f"{job.tenant} is at its limit"
        assert able[job.tenant] is job, "overtaken within its tenant"
        counters = {tenant: model.counter(job.lane, tenant) for tenant in able}
        assert counters[job.tenant] == min(counters.values()), f"{job.tenant} was not next: {counters}"
        for other in model.ready(job.lane, job.tenant):
            if other is job:
                break
            model.expire(other)
        model.start(job, worker)
        model.left(job)
        found = (claim.tenant, claim.lease, claim.attempt, claim.max_attempts, claim.tokens_used, claim.type)
        assert found == (job.tenant, job.lease, job.attempt, job.max_attempts, job.tokens, "chat")

    def settle_all(self, worker: str, items: list[Settlement]) -> None:
        """One settlement of several jobs, and what it should come to."""
        before = dict(self.model.ran)
        states = self.do(self.store.settle(worker, items))
        wanted = [self.model.settle(self.model.jobs.get(item.job), worker, item) for item in items]
        self.model.flush()
        assert states == wanted
        for lane, past in before.items():
            more = round(self.model.ran[lane] - past)
            self.model.ran[lane] = past * 0.98**more + more

    def ending(self, claim: Claimed, outcome: str, tokens: int = 0) -> Settlement:
        mark = json.dumps({"n": next(self.ticks)})  # no two settlements are alike
        return Settlement(
            claim.job_id,
            claim.lease,
            outcome,
            result=mark if outcome == "complete" else None,
            error=mark if outcome in ("failed", "retry") else None,
            delay_ms=HOUR_MS if outcome == "retry" else 0,
            upstream_closed=outcome == "cancelled" and tokens > 0,
            tokens_at_request=tokens if outcome == "cancelled" else 0,
        )

    @precondition(lambda self: self.held())
    @rule(index=PICK, endings=st.lists(st.tuples(PICK, OUTCOMES), min_size=1, max_size=4), tokens=st.integers(0, 300))
    def settle(self, index: int, endings: list[tuple[int, str]], tokens: int) -> None:
        """One worker ends attempts; the same job may be among them twice."""
        held = self.held()
        worker = held[index % len(held)][1]
        own = [claim for claim, owner in held if owner == worker]
        self.settle_all(worker, [self.ending(own[pick % len(own)], outcome, tokens) for pick, outcome in endings])

    @precondition(lambda self: self.stale())
    @rule(index=PICK, outcome=OUTCOMES)
    def settle_stale(self, index: int, outcome: str) -> None:
        """An attempt that is over, or whose lease was lost, is ended (again)."""
        claim, worker = self.stale()[::-1][index % len(self.stale())]
        self.settle_all(worker, [self.ending(claim, outcome)])

    @precondition(lambda self: self.held())
    @rule(index=PICK, outcome=OUTCOMES, shift=st.sampled_from((-1, 0, 1)), other=st.sampled_from(WORKERS))
    def settle_wrong(self, index: int, outcome: str, shift: int, other: str) -> None:
        """A worker, or a lease, that is not the job's; sometimes it is."""
        claim, _ = self.held()[index % len(self.held())]
        wrong = msgspec.structs.replace(claim, lease=claim.lease + shift)
        if wrong.lease > 0:
            self.settle_all(other, [self.ending(wrong, outcome)])

    def append_one(self, claim: Claimed, worker: str, texts: list[bool], *, twice: bool = False) -> None:
        job, batch = self.model.jobs.get(claim.job_id), next(self.ticks)
        news = [
            NewEvent("delta", {"text": "x"}) if text else NewEvent("job.progress", {"stage": "x"}) for text in texts
        ]
        for again in (False, True) if twice else (False,):
            try:
                seq = self.do(self.events.append_one(claim, worker, batch, news, {"fraction": batch}))
            except LeaseLostError:
                assert not self.holds(claim, worker)
                continue
            assert self.holds(claim, worker), "an event without a lease"
            assert job is not None
            if not again:
                for new in news:
                    job.emit(new.type)
                job.has_text = job.has_text or any(texts)
            assert seq == len(job.log)

    @precondition(lambda self: self.claims)
    @rule(index=PICK, good=st.booleans(), texts=st.lists(st.booleans(), min_size=1, max_size=3), twice=st.booleans())
    def append(self, index: int, good: bool, texts: list[bool], twice: bool) -> None:
        choice = (self.held() if good else self.stale()) or self.claims
        claim, worker = choice[index % len(choice)]
        self.append_one(claim, worker, texts, twice=twice)

    def begin_one(self, claim: Claimed, worker: str, step: str, est: int, *, twice: bool = False) -> None:
        job, call = self.model.jobs.get(claim.job_id), f"c{next(self.ticks)}"
        for again in (False, True) if twice else (False,):
            try:
                reserve = Reservation("m", est)
                known = self.do(
                    self.events.begin_step(claim, worker, step=step, label=step, call=call, reserve=reserve)
                )
            except LeaseLostError:
                assert not self.holds(claim, worker)
                continue
            assert self.holds(claim, worker), "a step without a lease"
            assert job is not None
            done = job.steps.get(step)
            assert known == (done[0] if done else Begun())
            if again:
                continue
            if done:
                job.reused += done[1]
                job.emit("job.step", step=step, state="finished", reused=True)
            else:
                job.calls[call] = Call(est)
                self.begun.append((claim, worker, step, call))
                job.emit("job.step", step=step, state="started", reused=False)

    def finish_one(
        self, begun: tuple[Claimed, str, str, str], usage: CallUsage, *, works: bool, twice: bool = False
    ) -> None:
        claim, worker, step, call = begun
        job = self.model.jobs.get(claim.job_id)
        result = json.dumps({"call": call}).encode() if works else None
        wasted = 0 if works else usage.total
        part = (LABELS.index(step), f"7 outputs/{claim.tenant}/{claim.job_id}/{call}")
        for _ in range(2 if twice else 1):
            booked = job is None or job.calls[call].state == "exact"
            lost = False
            try:
                self.do(
                    self.events.finish_step(
                        claim,
                        worker,
                        step=step,
                        label=step,
                        call=call,
                        usage=usage,
                        result=result,
                        wasted=wasted,
                        part=part,
                    )
                )
            except LeaseLostError:
                lost = True
            if job is None:
                assert lost
            elif not booked:
                holds = self.holds(claim, worker)
                assert lost == (not holds)
                job.calls[call] = Call(job.calls[call].est, "exact", usage, wasted=not works or not holds)
                if holds:
                    if result is not None:
                        job.steps[step] = (result, usage.total)
                        job.parts[str(part[0])] = part[1]
                    else:
                        job.steps.pop(step, None)
                    if usage.total:
                        job.emit("job.usage", inputTokens=job.figures()["tok_in"], totalTokens=job.tokens)
                    job.emit("job.step", step=step, state="finished" if works else "failed", reused=False)

    @precondition(lambda self: self.claims)
    @rule(
        index=PICK,
        good=st.booleans(),
        steps=st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 500)), min_size=1, max_size=3),
        twice=st.booleans(),
    )
    def begin_steps(self, index: int, good: bool, steps: list[tuple[str, int]], twice: bool) -> None:
        choice = (self.held() if good else self.stale()) or self.claims
        claim, worker = choice[index % len(choice)]
        for step, est in steps:
            self.begin_one(claim, worker, step, est, twice=twice)

    @precondition(lambda self: self.begun)
    @rule(
        picks=st.lists(PICK, min_size=1, max_size=3),
        tokens=TOKENS,
        works=st.booleans(),
        estimated=st.booleans(),
        twice=st.booleans(),
    )
    def finish_steps(
        self, picks: list[int], tokens: tuple[int, int, int], works: bool, estimated: bool, twice: bool
    ) -> None:
        """Calls end: in time, again, or long after their lease was lost."""
        for index in picks:
            begun = self.begun[::-1][index % len(self.begun)]
            self.finish_one(begun, CallUsage(*tokens, estimated=estimated), works=works, twice=twice)

    @rule(
        worker=st.sampled_from(WORKERS),
        count=st.integers(1, 6),
        calls=st.lists(
            st.tuples(PICK, st.sampled_from(LABELS), st.sampled_from(("ends", "fails", "stays")), TOKENS), max_size=4
        ),
        outcomes=st.lists(OUTCOMES, max_size=4),
    )
    def work(self, worker: str, count: int, calls: list[Any], outcomes: list[str]) -> None:
        """What a worker does all day: claims, calls, and ends some of its jobs."""
        self.claim(worker, count, Lane.INTERACTIVE, [5, 5])
        self.agrees()
        own = [claim for claim, owner in self.held() if owner == worker]
        if not own:
            return
        for index, step, course, tokens in calls:
            claim, before = own[index % len(own)], len(self.begun)
            self.begin_one(claim, worker, step, sum(tokens) // 2, twice=True)
            self.append_one(claim, worker, [True])
            if course != "stays" and len(self.begun) > before:
                self.finish_one(self.begun[-1], CallUsage(*tokens), works=course == "ends")
        self.agrees()
        items = [self.ending(claim, outcome) for claim, outcome in zip(own, outcomes, strict=False)]
        if items:
            self.settle_all(worker, items)

    @rule(
        worker=st.sampled_from(WORKERS),
        slots=st.tuples(st.integers(1, 8), st.integers(1, 8)),
        stray=st.lists(PICK, max_size=3),
        leaving=st.booleans(),
    )
    def renew(self, worker: str, slots: tuple[int, int], stray: list[int], leaving: bool) -> None:
        """A heartbeat for all that the worker holds, and for some that it does not."""
        claims = [claim for claim, owner in self.held() if owner == worker]
        claims += [self.claims[index % len(self.claims)][0] for index in stray if self.claims]
        lanes = list(zip(LANES, slots, strict=True))
        states = self.do(
            self.store.renew(
                worker=worker,
                lanes=lanes,
                lease_ms=HOUR_MS,
                jobs=[(claim.job_id, claim.lease) for claim in claims],
                leaving=leaving,
            )
        )
        for lane, count in lanes:
            self.model.slots[lane].pop(worker, None)
            if not leaving:
                self.model.slots[lane][worker] = count
        wanted = []
        for claim in claims:
            job = self.model.jobs.get(claim.job_id)
            good = job is not None and self.holds(claim, worker)
            wanted.append((2 if job.status == "cancelling" else 1) if job is not None and good else 0)
            if job is not None and good:
                job.lapsed_since = 0
        assert states == wanted

    def lapse(self, claim: Claimed) -> None:
        self.model.jobs[claim.job_id].lapsed_since = tick = next(self.ticks)
        self.raw("ZADD", self.keys.leases, tick, claim.job_id)

    @precondition(lambda self: self.held())
    @rule(picks=st.lists(PICK, min_size=1, max_size=4), renewed=st.booleans())
    def lose(self, picks: list[int], renewed: bool) -> None:
        """Leases lapse, and the reaper comes; or first the owner of one of them after all."""
        held = self.held()
        for index in picks:
            claim, worker = held[index % len(held)]
            self.lapse(claim)
        if renewed:
            self.renew(worker, (1, 1), [], leaving=False)
        self.reap()

    @rule(worker=st.sampled_from(WORKERS), rounds=st.integers(1, MAX_LOST_WORKERS), lane=st.sampled_from(LANES))
    def lose_often(self, worker: str, rounds: int, lane: Lane) -> None:
        """Jobs that kill their workers."""
        for _ in range(rounds):
            self.claim(worker, 6, lane, [5])
            self.agrees()
            for claim, owner in self.held():
                if owner == worker:
                    self.lapse(claim)
            self.reap()
            self.agrees()

    # -- clients and upkeep ------------------------------------------------------------------------------------------

    def cancel_one(self, job: Job) -> None:
        self.do(self.store.cancel(job.tenant, job.id))
        if job.status == "processing":
            job.status, job.cancel_tokens = "cancelling", job.tokens
        elif job.status in ("queued", "scheduled", "waiting"):
            job.cancel_tokens = job.tokens
            job.error = None  # what an earlier attempt failed of is no longer what it came to
            job.finish("cancelled")
            self.model.left(job)

    @precondition(lambda self: self.model.jobs)
    @rule(picks=st.lists(PICK, min_size=1, max_size=3), of=st.sampled_from(TENANTS), stranger=st.booleans())
    def cancel(self, picks: list[int], of: str, stranger: bool) -> None:
        """In any state, some of them twice; those of one tenant, so that it sometimes has nothing left."""
        jobs = list(self.model.jobs.values())
        jobs = [job for job in jobs if job.tenant == of and job.status not in FINAL] or jobs
        for index in picks:
            job = jobs[index % len(jobs)]
            if stranger:
                with pytest.raises(RefusedError):
                    self.do(self.store.cancel("nobody", job.id))
            else:
                self.cancel_one(job)

    @precondition(lambda self: self.held())
    @rule(index=PICK, outcome=st.one_of(st.just("lost"), OUTCOMES), tokens=st.integers(0, 300))
    def cancel_running(self, index: int, outcome: str, tokens: int) -> None:
        """An accepted cancellation stands, whatever the attempt comes to."""
        claim, worker = self.held()[index % len(self.held())]
        self.cancel_one(self.model.jobs[claim.job_id])
        self.agrees()
        if outcome == "lost":
            self.lapse(claim)
            self.reap()
        else:
            self.settle_all(worker, [self.ending(claim, outcome, tokens)])

    @precondition(lambda self: self.model.jobs)
    @rule(index=PICK, from_start=st.booleans(), class_ms=st.sampled_from((0, 60_000)), crowd=st.integers(0, 4))
    def retry(self, index: int, from_start: bool, class_ms: int, crowd: int) -> None:
        """The next run of a job, or the refusal of it; others may have come before."""
        jobs = self.model.having("failed", "cancelled", "expired") or list(self.model.jobs.values())
        job = jobs[index % len(jobs)]
        for _ in range(crowd):
            self.admit_one((list(self.model.tenants).index(job.tenant), job.lane, 0, 1, None))
        time.sleep(0.002)  # the clock has gone on: whether the score ties with an earlier one's is not left to chance
        request = self.store.retry(
            job.tenant, job.id, from_start=from_start, record={}, class_ms=class_ms, expires_in_ms=HOUR_MS
        )
        wanted = ""
        if job.status not in ("failed", "cancelled", "expired"):
            wanted = "conflict"
        elif self.model.waiting(job.tenant) >= self.model.tenants[job.tenant].max_queued:
            wanted = "queue_full"
        try:
            self.do(request)
        except RefusedError as error:
            code = error.code
        else:
            code = ""
        assert code == wanted
        if code:
            return
        job.run += 1
        job.max_attempts = job.attempt + GRANT
        job.lost = job.settled = 0
        job.handed_back, job.unstarted, job.told = False, True, None
        job.result = job.error = job.cancel_tokens = None
        if from_start:
            job.steps.clear()
            self.model.trash |= {value.split()[1] for value in job.parts.values()}
            job.parts.clear()
        score, queued = (int(part) for part in self.raw("HMGET", self.keys.job(job.id), "score", "queued_ms"))
        assert score == queued + class_ms
        job.score = score
        job.emit("job.queued", reason="retry")
        self.model.push(job)

    @precondition(lambda self: self.model.having("scheduled", "waiting"))
    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def fall_due(self, picks: list[int]) -> None:
        delayed = self.model.having("scheduled", "waiting")
        for index in picks:
            job = delayed[index % len(delayed)]
            job.waits_since = next(self.ticks)
            self.raw("ZADD", self.keys.delayed(job.lane), job.waits_since, job.id)

    @precondition(lambda self: any(job.unstarted for job in self.model.having("queued", "scheduled")))
    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def fall_overdue(self, picks: list[int]) -> None:
        jobs = [job for job in self.model.having("queued", "scheduled") if job.unstarted]
        for index in picks:
            job = jobs[index % len(jobs)]
            job.overdue_since = next(self.ticks)
            self.raw("ZADD", self.keys.expiring, job.overdue_since, job.id)
            self.raw("HSET", self.keys.job(job.id), "expires_ms", job.overdue_since)

    @rule()
    def reap(self) -> None:
        found = self.do(self.store.reap())
        assert found == self.model.reap()

    @precondition(lambda self: self.model.having(*FINAL))
    @rule(picks=st.lists(PICK, min_size=1, max_size=2))
    def sweep(self, picks: list[int]) -> None:
        """The retention of some final jobs is over."""
        final = self.model.having(*FINAL)
        jobs = {final[index % len(final)].id for index in picks}
        for job_id in jobs:
            self.raw("ZADD", self.keys.retention, 1, job_id)
        assert self.do(self.store.sweep()) == len(jobs)
        for job_id in jobs:
            removed = self.model.jobs.pop(job_id)
            self.model.gone[job_id] = removed.tenant
            if removed.parts:
                self.model.trash.add(f"outputs/{removed.tenant}/{job_id}")
            for act in (self.store.view, self.store.cancel):
                with pytest.raises(RefusedError) as refused:
                    self.do(act(self.model.gone[job_id], job_id))
                assert refused.value.code == "gone"

    @precondition(lambda self: self.model.jobs)
    @rule(index=PICK)
    def view(self, index: int) -> None:
        jobs = self.model.having("queued") or list(self.model.jobs.values())
        job = jobs[index % len(jobs)]
        row = self.do(self.store.view(job.tenant, job.id))
        assert row.text("status") == job.status
        assert (row.outlook is not None) == (job.status == "queued")
        if row.outlook is not None:
            self.check_outlook(job, row.outlook)

    @precondition(lambda self: self.model.jobs)
    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def tell(self, picks: list[int]) -> None:
        """Who follows a queued job hears of its place when it has changed much, or after it was queued anew."""
        jobs = list(self.model.jobs.values())
        for index in picks:
            job = jobs[index % len(jobs)]
            (queued,) = self.do(self.store.tell([job.id]))
            assert queued == (job.status == "queued")
            if not queued:
                continue
            place, waits = self.model.ready(job.lane, job.tenant).index(job) + 1, self.waits_for(job)
            wrote = int(self.raw("HGET", self.keys.job(job.id), "seq")) - len(job.log)
            changed = job.told is None or place * 2 <= job.told[0] or waits != job.told[1]
            assert wrote == 1 if changed else wrote in (0, 1)  # 1: it has started since
            if wrote:
                job.emit("job.queue", position=place, waitingOn=waits)
                job.told = (place, waits)

    # -- what holds after each step ----------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """All raw keys."""
        seen = msgspec.msgpack.encode({f"log:{job.id}": job.checked for job in self.model.jobs.values()})
        packed = self.raw("EVAL", DUMP, 0, self.keys.prefix, seen)
        return dict(msgspec.msgpack.decode(packed))

    @invariant()
    def agrees(self) -> None:
        found = self.dump()
        jobs = list(self.model.jobs.values())
        for job in jobs:
            self.check_job(job, pairs(found[f"job:{job.id}"]))
            self.check_log(job, found.get(f"log:{job.id}", [0]))
            calls = {name: call.est for name, call in job.calls.items() if call.state == "open"}
            holds = {name: json.loads(hold)["i"] for name, hold in pairs(found.get(f"open:{job.id}", [])).items()}
            assert holds == calls
            assert pairs(found.get(f"output:{job.id}", [])) == job.parts
        assert set(found.get("trash", [])) == self.model.trash
        for lane in LANES:
            self.check_lane(lane, found)
        self.check_sets(found)
        kept = {job.id for job in jobs}
        for name in found:
            kind, _, rest = name.partition(":")
            if kind in ("job", "log", "journal", "open", "output"):
                assert rest in kept, f"{name} was left behind"

    def check_job(self, job: Job, row: dict[str, str]) -> None:
        wanted: dict[str, Any] = {
            "status": job.status,
            "tenant": job.tenant,
            "lane": job.lane,
            "seq": len(job.log),
            "score": job.score,
            "attempt": job.attempt,
            "lease": job.lease,
            "run": job.run,
            "max_attempts": job.max_attempts,
        }
        for name, value in wanted.items():
            assert row[name] == str(value), f"{name} of {job}"
        if job.lease:
            assert row["owner"] == job.owner
        figures = job.figures()
        for name in ("tok_in", "tok_out", "tok_embed", "tok_wasted", "tok_reused", "estimated"):
            assert int(row.get(name, "0")) == figures[name], f"{name} of {job}"
        assert int(row.get("lost", "0")) == job.lost
        assert row.get("result") == job.result
        if job.status == "cancelled":
            assert row["cancel_tokens"] == str(job.cancel_tokens)
        if job.status == "failed" and job.lost >= MAX_LOST_WORKERS:
            assert json.loads(row["error"])["code"] == "worker_lost"
        else:
            assert (row.get("error") or None) == job.error

    def check_log(self, job: Job, raw: list[Any]) -> None:
        length, *entries = raw
        assert length == len(job.log), f"the log of {job}"
        assert [entry_id for entry_id, _ in entries] == [f"{n}-0" for n in range(job.checked + 1, length + 1)]
        for (_, flat), (kind, members) in zip(entries, job.log[job.checked :], strict=True):
            fields = pairs(flat)
            assert fields["t"] == kind, f"the log of {job}"
            if members:
                data = json.loads(fields["d"])
                assert {name: data.get(name) for name in members} == members, f"{kind} in the log of {job}"
        job.checked = length
        # Once final, at its end, and before it only runs that were opened again.
        finals = [index for index, (kind, _) in enumerate(job.log) if kind in FINAL_TYPES]
        assert len(finals) == job.run - (job.status not in FINAL)
        for index in finals:
            assert index == length - 1 or job.log[index + 1] == ("job.queued", {"reason": "retry"})

    def check_lane(self, lane: str, found: dict[str, Any]) -> None:
        model = self.model
        tokens, waits = {}, set()
        for tenant in model.tenants:
            queue = model.ready(lane, tenant)
            raw = found.get(f"q:{lane}:{tenant}", [])
            assert [(name, float(score)) for name, score in pairs(raw).items()] == [
                (job.id, job.score) for job in queue
            ]
            if queue:
                waits.add(tenant)
                tokens[tenant] = str(sum(job.est for job in queue))
        assert pairs(found.get(f"q:{lane}:tokens", [])) == tokens
        order = {name: float(score) for name, score in pairs(found.get(f"q:{lane}:tenants", [])).items()}
        parked = set(found.get(f"q:{lane}:parked", []))
        assert not order.keys() & parked, "both in the order and parked"
        assert order.keys() | parked == waits, "a tenant with ready jobs is lost, or one without is kept"
        for tenant in parked:
            assert model.room(tenant) <= 0, f"{tenant} is parked below its limit"
        assert (set(order), parked) == (model.order[lane], model.parked[lane])
        served = {name: float(value) for name, value in pairs(found.get(f"q:{lane}:served", [])).items()}
        assert served.pop("!floor", 0) == model.floor[lane]
        assert {k: v for k, v in served.items() if v} == {k: v for k, v in model.served[lane].items() if v}
        assert order == {tenant: model.counter(lane, tenant) for tenant in order}
        held = {tenant: model.counter(lane, tenant) - model.served[lane].get(tenant, 0) for tenant in model.tenants}
        found_held = {name: float(value) for name, value in pairs(found.get(f"q:{lane}:held", [])).items()}
        assert found_held == {name: value for name, value in held.items() if value}
        ready = {name: divmod(float(score), 2**43) for name, score in pairs(found.get(f"q:{lane}:ready", [])).items()}
        assert set(ready) == {job.id for job in model.having("queued") if job.lane == lane}
        pace = pairs(found.get(f"pace:{lane}", []))
        assert int(pace.get("ready", 0)) == sum(job.lane == lane for job in model.having("queued"))
        assert int(pace.get("running", 0)) == sum(job.lane == lane and job.runs for job in model.jobs.values())
        assert int(pace.get("slots", 0)) == sum(model.slots[lane].values())
        assert math.isclose(float(pace.get("n", 0)), model.ran[lane], abs_tol=1e-9)
        delayed = {job.id for job in model.having("scheduled", "waiting") if job.lane == lane}
        assert pairs(found.get(f"delayed:{lane}", [])).keys() == delayed
        if found.get(f"idle:{lane}"):
            assert not model.startable(lane), "a worker sleeps though there is work"

    def check_sets(self, found: dict[str, Any]) -> None:
        jobs = list(self.model.jobs.values())
        sets = {
            "leases": {job.id for job in jobs if job.runs},
            "retention": {job.id for job in jobs if job.status in FINAL},
            "expiring": {job.id for job in jobs if job.status in ("queued", "scheduled") and job.unstarted},
        }
        for tenant in self.model.tenants:
            sets[f"jobs:{tenant}"] = {job.id for job in jobs if job.tenant == tenant}
        for name, wanted in sets.items():
            assert pairs(found.get(name, [])).keys() == wanted, name
        running = Counter(job.tenant for job in jobs if job.runs)
        assert {k: int(v) for k, v in pairs(found.get("running", [])).items()} == running
        scheduled = Counter(job.tenant for job in self.model.having("scheduled"))
        assert {k: int(v) for k, v in pairs(found.get("scheduled", [])).items()} == scheduled
        gone = {name.partition(":")[2]: value[0] for name, value in found.items() if name.startswith("gone:")}
        assert gone == self.model.gone

    def teardown(self) -> None:
        names = self.raw("KEYS", self.keys.prefix + "*")
        if names:
            self.raw("UNLINK", *names)


# -- the test --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A Redis without other tests' keys, so that each look at all keys is short."""
    monkeypatch.setattr("shared.stores.jobs.random_part", numbered())
    with bench_in(short_dir / "lua-model") as made:
        yield made


def test_a_call_is_booked_once_over_a_retry_from_the_start(bench: Bench) -> None:
    """Given a worker that was frozen in a call, when its job is retried from the start and the call ends after all,
    then its true figure takes the place of the estimate."""
    machine = Machine(bench)
    try:
        machine.tenants([(1.0, 1, 3)], [(0, Lane.BATCH, 0, 0, None)])
        machine.claim("w0", 1, Lane.BATCH, [1])
        machine.begin_steps(0, True, [("s0", 100)], False)
        machine.cancel_running(0, "lost", 0)
        machine.retry(0, True, 0, 0)
        machine.agrees()
        machine.finish_steps([0], (60, 0, 0), True, False, False)
        machine.agrees()
    finally:
        machine.teardown()


def test_a_late_call_whose_estimate_was_nothing(bench: Bench) -> None:
    machine = Machine(bench)
    try:
        machine.tenants([(1.0, 1, 3)], [(0, Lane.BATCH, 0, 0, None)])
        machine.claim("w0", 1, Lane.BATCH, [1])
        machine.begin_steps(0, True, [("s0", 0)], False)
        machine.lose([0], False)
        machine.finish_steps([0], (60, 0, 0), True, False, False)
        machine.agrees()
    finally:
        machine.teardown()


def test_the_scripts_do_as_the_model(bench: Bench) -> None:
    run_histories(lambda: Machine(bench), EXAMPLES)
