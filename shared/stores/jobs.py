"""The store of jobs: admission, reads and control by the API; claim, lease and settlement by workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.errors import LeaseLostError, RefusedError
from shared.ids import is_id, random_part
from shared.jobs import OUTPUT_TYPES, VIEW_FIELDS, JobRow, JobStatus, LimitDetail, Outlook
from shared.keys import Keys
from shared.limits import (
    SoftCrossed,
    Standing,
    Why,
    budget_refused,
    crossed_of,
    members_of,
    rate_refused,
    standing_of,
    why_of,
)
from shared.log import get_logger
from shared.metrics import SOFT_LIMITS
from shared.redis import Redis, Scripts
from shared.scope import origin
from shared.semconv import MESSAGE_ID, OUTCOME, job_sent
from shared.specs import Lane, Priority
from shared.tracing import Span, is_on

log = get_logger()

LIST_FIELDS: Final = tuple(name for name in VIEW_FIELDS if name != "result")
LIST_SCAN: Final = 5_000  # jobs that one list call looks at, at most
TOMBSTONE_S: Final = 30 * 86_400  # the contract: 410 for 30 days
MAX_LOST_WORKERS: Final = 3
CLASS: Final = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class Admitted(msgspec.Struct, frozen=True):
    """The answer of an admission. `outlook` is None when the job starts later."""

    job_id: str
    now_ms: int
    status: str
    due_ms: int
    outlook: Outlook | None
    replayed: bool
    standing: Standing | None = None


class Claimed(msgspec.Struct, frozen=True, array_like=True):
    """A job that this worker now owns, in the order in which `claim.lua` lists it; `lease` is the fencing token of
    every write for it. `spec` is JSON; 0 and "" stand for what the job does not have."""

    job_id: str
    tenant: str
    type: str
    lane: str
    lease: int
    attempt: int
    max_attempts: int
    spec: str
    model: str
    timeout_ms: int
    budget: int
    tokens_used: int
    claimed_ms: int
    queued_ms: int
    traceparent: str
    run: int = 1  # counts the runs: a manual retry opens the next
    key: str = ""
    user: str = ""
    prompt: str = ""  # `name@version` of the main one
    pins: str = ""  # JSON, see shared.prompts.Pin
    tracestate: str = ""
    request: str = ""  # id of the request that made the job

    @property
    def timeout_s(self) -> float:
        """Bound of one attempt."""
        return self.timeout_ms / 1000

    @property
    def token_budget(self) -> int | None:
        """The job's own hard cap of tokens, if it has one."""
        return self.budget or None


class Settlement(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt ended, as `settle.lua` takes it. `outcome`: complete, failed, cancelled, retry, input, budget,
    delay or handback; `result`, `error` and `waiting` (what is asked of a person, or the limit) are JSON;
    `reason` of a delay is what its event names."""

    job: str
    lease: int
    outcome: str
    result: str | None = None
    error: str | None = None
    waiting: str | None = None
    delay_ms: int | None = None
    due_ms: int | None = None
    revision: str | None = None
    held: bool = False
    reason: str | None = None
    upstream_closed: bool = False
    tokens_at_request: int = 0


class Companion(msgspec.Struct, frozen=True):
    """A record that is stored in the same step as a job: the document of an `ingest` job."""

    key: str
    index: str
    id: str
    fields: dict[str, Any]


class JobsStore:
    """All commands on job records. Raises a member of `shared.redis.OUTAGE` when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.scripts = Scripts(client, keys.prefix)

    # -- the API's side ------------------------------------------------------------------------------------------

    async def admit(
        self,
        *,
        tenant: str,
        lane: Lane,
        record: Mapping[str, Any],
        class_ms: int,
        expires_in_ms: int,
        delay_ms: int | None = None,
        run_at_ms: int | None = None,
        idem_digest: str | None = None,
        idem_body: str | None = None,
        companion: Companion | None = None,
        patience_ms: int | None = None,
        unpriced: bool = False,
    ) -> Admitted:
        """Takes a job in, durably, all or nothing. `class_ms` is class × aging time. With `patience_ms` it is refused
        when it would wait longer for its token rate; `unpriced`: no price of its model is known.

        Raises RefusedError `idempotency_mismatch`, `queue_full`, `rate_limited`, `budget_exhausted`,
        `invalid_request` (`unpriced`, where a limit is in money) or `unauthenticated` (the tenant was deleted).
        """
        name, attributes = job_sent(lane.value, record.get("type", "")) if is_on() else ("", None)
        with Span(name, "producer", attributes) as span:
            reply = await self.scripts.run(
                "admit",
                [self.keys.jobs(tenant), self.keys.idem(tenant, idem_digest or "-"), self.keys.tenant(tenant)],
                tenant=tenant,
                lane=lane,
                random=random_part(),
                record={**record, **origin()},
                class_ms=class_ms,
                delay_ms=delay_ms,
                run_at_ms=run_at_ms,
                expires_in_ms=expires_in_ms,
                idem_body=idem_body if idem_digest else None,
                companion=msgspec.structs.asdict(companion) if companion else None,
                patience_ms=patience_ms,
                unpriced=unpriced or None,
            )
            if is_on():
                span.set({MESSAGE_ID: reply[1].decode()} if reply[0] == b"ok" else {OUTCOME: reply[0].decode()})
        match [part.decode() for part in reply]:
            case ["ok", job_id, now, status, due, replayed, standing, *outlook]:
                return Admitted(
                    job_id,
                    int(now),
                    status,
                    int(due),
                    Outlook.from_reply(outlook) if outlook else None,
                    replayed == "1",
                    standing_of(standing),
                )
            case ["full", waiting, limit, room_in_s]:
                raise queue_full(tenant, waiting, limit, room_in_s)
            case ["rate" | "budget" | "unpriced" as kind, why]:
                raise limited(kind, why)
            case ["no_tenant"]:
                raise RefusedError("unauthenticated", "The key's tenant does not exist any more.")
            case _:
                raise mismatch()

    async def was_answered(self, tenant: str, idem_digest: str | None, idem_body: str | None) -> bool:
        """Whether this idempotency key and body had their answer before: `admit` will give it again."""
        if idem_digest is None:
            return False
        body: Any = await self.client.hget(self.keys.idem(tenant, idem_digest), "body")  # type: ignore[misc]
        return body is not None and body.decode() == idem_body

    async def view(self, tenant: str, job_id: str) -> JobRow:
        """A job, with its outlook where it is queued. Raises RefusedError `not_found` or, after its retention,
        `gone`."""
        if not is_id("job", job_id):
            raise job_not_found(job_id)
        reply = await self.scripts.run(
            "view",
            [self.keys.job(job_id), self.keys.gone(job_id)],
            job=job_id,
            tenant=tenant,
            fields=VIEW_FIELDS,
        )
        if reply[0] == b"gone":
            raise RefusedError("gone", f"{job_id} was removed: its time of retention is over.")
        if reply[0] != b"ok":
            raise job_not_found(job_id)
        row = JobRow.from_reply(reply[1])
        outlook = Outlook.from_reply([_text(part) for part in reply[3:]]) if len(reply) > 3 else None
        return JobRow(row.fields, outlook, int(reply[2]))

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        high: str,
        low: str,
        filters: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> tuple[list[JobRow], str | None]:
        """One page, newest first, and the cursor of the next (None at the end). `high` and `low` are lexical bounds
        as ZREVRANGEBYLEX takes them. A page may be short although more follow: one call looks at LIST_SCAN jobs."""
        last, more, rows = await self.scripts.run(
            "list",
            [self.keys.jobs(tenant)],
            high=high,
            low=low,
            limit=limit,
            scan=LIST_SCAN,
            fields=LIST_FIELDS,
            filter=filters,
            metadata=metadata,
        )
        return [JobRow.from_reply(row, LIST_FIELDS) for row in rows], last.decode() if more == b"1" else None

    async def cancel(self, tenant: str, job_id: str) -> JobStatus:
        """Asks for the end of a job; idempotent. The status after. Raises RefusedError `not_found`, or `gone` as `view`
        does."""
        return (await self._cancel(tenant, job_id, unless_started=False))[0]

    async def give_up(self, tenant: str, job_id: str) -> tuple[JobStatus, Why | None]:
        """Ends a chat that was not begun, and gives its request back; one that runs is left alone. The status after,
        and what its token rate says when that has no room. Raises as `cancel`."""
        status, why = await self._cancel(tenant, job_id, unless_started=True)
        return status, why_of(why) if why else None

    async def _cancel(self, tenant: str, job_id: str, *, unless_started: bool) -> tuple[JobStatus, bytes]:
        if not is_id("job", job_id):
            raise job_not_found(job_id)
        reply = await self.scripts.run(
            "cancel", [self.keys.job(job_id)], job=job_id, tenant=tenant, unless_started=unless_started
        )
        if reply[0] != b"ok":
            await self.view(tenant, job_id)
            raise job_not_found(job_id)
        return JobStatus(reply[1].decode()), reply[2]

    async def spec(self, tenant: str, job_id: str) -> tuple[str, bytes]:
        """The lane-independent spec of a job as (type, JSON). Raises as `view`."""
        row = await self.view(tenant, job_id)
        spec: Any = await self.client.hget(self.keys.job(job_id), "spec")  # type: ignore[misc]  # typed for both worlds
        if spec is None:
            raise job_not_found(job_id)
        return row.text("type") or "", spec

    async def retry(
        self,
        tenant: str,
        job_id: str,
        *,
        from_start: bool,
        record: Mapping[str, Any],
        class_ms: int,
        expires_in_ms: int,
        unpriced: bool = False,
    ) -> None:
        """Opens the next run of a failed, cancelled or expired job. Raises RefusedError `conflict` otherwise; or
        `queue_full`, `rate_limited` or `budget_exhausted`."""
        reply = await self.scripts.run(
            "retry",
            [self.keys.job(job_id), self.keys.journal(job_id), self.keys.output(job_id)],
            job=job_id,
            tenant=tenant,
            from_start=from_start,
            record=record,
            class_ms=class_ms,
            expires_in_ms=expires_in_ms,
            unpriced=unpriced or None,
        )
        if reply[0] == b"full":
            raise queue_full(tenant, *(part.decode() for part in reply[1:]))
        if reply[0] in (b"rate", b"budget", b"unpriced"):
            raise limited(reply[0].decode(), reply[1].decode())
        if reply[0] == b"state":
            raise RefusedError(
                "conflict",
                f"The job is {reply[1].decode()}; only a failed, cancelled or expired job can be retried.",
            )
        if reply[0] != b"ok":
            raise job_not_found(job_id)

    async def answer(self, tenant: str, job_id: str, request_id: str, value: Any) -> None:
        """Answers a job that waits for a person; the same answer again changes nothing. Raises RefusedError
        `not_found`, `gone` as `view` does, or `conflict` when it does not wait for this answer."""
        await self.view(tenant, job_id)
        reply = await self.scripts.run(
            "input",
            [self.keys.job(job_id), self.keys.journal(job_id)],
            job=job_id,
            tenant=tenant,
            request=request_id,
            value=msgspec.json.encode(value).decode(),
        )
        if reply[0] == b"none":
            raise job_not_found(job_id)
        if reply[0] == b"answered":
            raise RefusedError("conflict", f"The question {request_id!r} has another answer already.")
        if reply[0] == b"state":
            raise RefusedError(
                "conflict", f"The job is {reply[1].decode()}; it does not wait for an answer to {request_id!r}."
            )

    async def tell(self, job_ids: Sequence[str]) -> list[bool]:
        """Writes `job.queue` events for those of the jobs whose outlook has changed much; which are queued."""
        return [bool(state) for state in await self.scripts.run("tell", [], jobs=job_ids)]

    async def listen(self, jobs: Sequence[tuple[str, int]]) -> None:
        """Somebody listens to these jobs: each is left alone for so many ms from now on, at least."""
        await self.scripts.run("listen", [self.keys.listened], jobs=jobs)

    async def live_workers(self, lanes: Sequence[str], now_ms: int) -> dict[str, int]:
        """How many workers are alive on each lane."""
        counts = {}
        for lane in lanes:
            counts[lane] = int(await self.client.zcount(self.keys.workers(lane), now_ms, "+inf"))
        return counts

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def claim(
        self, *, worker: str, lanes: Sequence[tuple[str, int]], count: int, lease_ms: int, patience_ms: int = 60_000
    ) -> tuple[list[Claimed], int | None]:
        """Up to `count` jobs for this worker, of each lane at most the stated number, the first lane first; and in how
        many ms the next delayed one is due (None: there is none). A lane that had fewer wakes this worker later. A
        later lane from which nobody took a job for `patience_ms` goes first, with one job."""
        now, due, packed = await self.scripts.run(
            "claim",
            [self.keys.leases, self.keys.expiring],
            worker=worker,
            lanes=lanes,
            count=count,
            lease_ms=lease_ms,
            patience_ms=patience_ms,
        )
        next_due = int(due)
        try:
            jobs = _decode_claims(packed)
        except msgspec.DecodeError:
            jobs = _readable(packed)
        return jobs, max(0, next_due - int(now)) if next_due >= 0 else None

    async def renew(
        self,
        *,
        worker: str,
        lanes: Sequence[tuple[str, str]],
        lease_ms: int,
        jobs: Sequence[tuple[str, int]],
        leaving: bool = False,
        seen: Sequence[tuple[str, str, int]] = (),
        record: str | None = None,
    ) -> list[int]:
        """The worker's heartbeat; `lanes` with the slots it offers there (`20`, or `15s` when lanes share them). Per
        job: 1 renewed, 0 lost, 2 renewed but to be cancelled. One that is `leaving` no longer counts as alive and is
        not woken; its jobs stay its own. `seen`: output tokens of calls under way (job id, call id, tokens).
        `record`: what the worker says of itself, as JSON; "" takes it away."""
        states = await self.scripts.run(
            "renew",
            [self.keys.leases],
            worker=worker,
            lanes=lanes,
            lease_ms=lease_ms,
            alive_ms=0 if leaving else lease_ms,
            jobs=jobs,
            seen=seen or None,
            record=record,
        )
        return [int(state) for state in states]

    async def settle(self, worker: str, jobs: Sequence[Settlement]) -> list[str]:
        """Ends attempts of this worker, all in one step. Per job its new status, `again`, `lost` or `broken` (its
        record cannot be read). Safe to repeat."""
        states, crossed = await self.scripts.run(
            "settle",
            [self.keys.leases, self.keys.retention],
            worker=worker,
            jobs=jobs,
        )
        note_crossed(crossed_of(crossed))
        return [state.decode() for state in states]

    async def settle_one(self, claimed: Claimed, worker: str, **ending: Any) -> str:
        """`settle` for one job; `ending` are the members of Settlement. Raises LeaseLostError."""
        (state,) = await self.settle(worker, [Settlement(claimed.job_id, claimed.lease, **ending)])
        if state == "lost":
            raise LeaseLostError(claimed.job_id)
        return state

    async def disown(self, *, worker: str, jobs: Sequence[tuple[str, int]]) -> list[str]:
        """Hands back what this worker was given by a claim whose answer was lost: all its leases but those of `jobs`
        (job id, lease). Not to be called while a claim is under way."""
        return [
            job_id.decode() for job_id in await self.scripts.run("disown", [self.keys.leases], worker=worker, jobs=jobs)
        ]

    async def reap(self, limit: int = 100, *, lease_ms: int = 0) -> list[tuple[str, str, str]]:
        """The queue's upkeep: takes back the jobs of lost workers, expires what was not started, makes ready what is
        due; (job id, new status, reason) of the first two: `lease`, `expiry`, or `listener` for a chat without one.
        With `lease_ms` nothing is taken back for so long after Redis was away."""
        rows, crossed = await self.scripts.run(
            "reap",
            [self.keys.leases, self.keys.expiring, self.keys.listened],
            max_lost=MAX_LOST_WORKERS,
            limit=limit,
            lease_ms=lease_ms,
        )
        note_crossed(crossed_of(crossed))
        return [(job_id.decode(), status.decode(), reason.decode()) for job_id, status, reason in rows]

    async def sweep(self, limit: int = 100) -> int:
        """Removes jobs whose retention is over; how many. Their blobs are put on the list of what is to be deleted."""
        swept = await self.scripts.run(
            "sweep", [self.keys.retention], limit=limit, gone_s=TOMBSTONE_S, output_types=sorted(OUTPUT_TYPES)
        )
        return len(swept)


def note_crossed(crossed: Sequence[SoftCrossed]) -> None:
    """Counts soft limits that were crossed for the first time in their window."""
    for one in crossed:
        SOFT_LIMITS.labels(one.scope, one.period, one.unit).inc()
        log.warning("budget.soft_limit", scope=one.scope, owner=one.owner, period=one.period, unit=one.unit)


def mismatch() -> RefusedError:
    """The refusal of an idempotency key that stands for another body."""
    return RefusedError("idempotency_mismatch", "This Idempotency-Key was used with another body within 24 hours.")


def limited(kind: str, why: str) -> RefusedError:
    """The refusal of a job over a rate or a budget, from a script's reply."""
    if kind == "unpriced":
        text = (
            f"no price of this model is known, and the {why} has a hard limit in USD; name another model, or have its "
            "price set in ERRAND_PRICES"
        )
        return RefusedError("invalid_request", f"$.model: {text}", errors=(("$.model", text),))
    return rate_refused(why_of(why)) if kind == "rate" else budget_refused(why_of(why))


def queue_full(tenant: str, waiting: str, limit: str, room_in_s: str) -> RefusedError:
    """The refusal of a job for which the tenant's queue has no room; `room_in_s` is when there may be some."""
    detail = LimitDetail(
        scope="tenant",
        id=tenant,
        unit="jobs",
        period=None,
        limit=int(limit),
        used=int(waiting),
        reserved=0,
        remaining=max(0, int(limit) - int(waiting)),
        frees_at=None,
    )
    return RefusedError(
        "queue_full",
        f"The tenant already has {waiting} jobs waiting; maxQueuedJobs allows {limit}.",
        headers={"Retry-After": room_in_s},
        members=members_of(detail),
    )


def job_not_found(job_id: str) -> RefusedError:
    """The refusal for a job that does not exist or is another tenant's."""
    return RefusedError("not_found", f"There is no job {job_id[:64]!r}.")


_decode_claims = msgspec.msgpack.Decoder(list[Claimed]).decode


def _readable(packed: bytes) -> list[Claimed]:
    """The jobs of a claim of which at least one cannot be read. That one is left to its lease and the reaper, which
    fails it as poison in the end: nothing else suffers."""
    jobs = []
    for raw in msgspec.msgpack.decode(packed, type=list[msgspec.Raw]):
        try:
            jobs.append(msgspec.msgpack.decode(raw, type=Claimed))
        except msgspec.DecodeError as error:
            log.error("claim.unreadable", error=str(error))
    return jobs


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)
