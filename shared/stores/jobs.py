"""The store of jobs: admission, reads and control by the API; claim, lease and settlement by workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.errors import LeaseLostError, RefusedError
from shared.ids import is_id, random_part
from shared.jobs import VIEW_FIELDS, JobRow
from shared.keys import Keys
from shared.log import get_logger
from shared.redis import Redis, Scripts
from shared.specs import Lane, Priority

log = get_logger()

LIST_FIELDS: Final = tuple(name for name in VIEW_FIELDS if name != "result")
LIST_SCAN: Final = 5_000  # jobs that one list call looks at, at most
TOMBSTONE_S: Final = 30 * 86_400  # the contract: 410 for 30 days
MAX_LOST_WORKERS: Final = 3
CLASS: Final = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
CLAIM_FIELDS: Final = (
    "id", "tenant", "type", "lane", "lease", "attempt", "max_attempts", "run", "spec", "model", "timeout_ms",
    "token_budget", "created_ms", "queued_ms", "claimed_ms", "tok_in", "tok_out", "tok_embed", "user", "traceparent",
)  # fmt: skip


class Admitted(msgspec.Struct, frozen=True):
    """The answer of an admission. `rank` is the place in the tenant's queue, None when it starts later."""

    job_id: str
    now_ms: int
    status: str
    due_ms: int
    rank: int | None
    replayed: bool


class Claimed(msgspec.Struct, frozen=True):
    """A job that this worker now owns; `lease` is the fencing token of every write for it."""

    job_id: str
    tenant: str
    type: str
    lane: str
    lease: int
    attempt: int
    max_attempts: int
    spec: bytes
    model: str
    timeout_s: float
    token_budget: int | None
    tokens_used: int
    claimed_ms: int
    queued_ms: int
    traceparent: str | None


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
    ) -> Admitted:
        """Takes a job in, durably, all or nothing. `class_ms` is class × aging time.

        Raises RefusedError `idempotency_mismatch`, `queue_full` or `unauthenticated` (the tenant was deleted).
        """
        reply = await self.scripts.run(
            "admit",
            [self.keys.jobs(tenant), self.keys.idem(tenant, idem_digest or "-"), self.keys.tenant(tenant)],
            tenant=tenant,
            lane=lane,
            random=random_part(),
            record=record,
            class_ms=class_ms,
            delay_ms=delay_ms,
            run_at_ms=run_at_ms,
            expires_in_ms=expires_in_ms,
            idem_body=idem_body if idem_digest else None,
            companion=msgspec.structs.asdict(companion) if companion else None,
        )
        match [part.decode() for part in reply]:
            case ["ok", job_id, now, status, due, rank, replayed]:
                return Admitted(
                    job_id, int(now), status, int(due), int(rank) if int(rank) >= 0 else None, replayed == "1"
                )
            case ["full", limit]:
                raise queue_full(limit)
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

    async def view(self, tenant: str, job_id: str) -> tuple[JobRow, int | None]:
        """A job and its rank in the queue. Raises RefusedError `not_found` or, after its retention, `gone`."""
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
        rank = int(reply[2])
        return JobRow({**row.fields, "waiting_on": reply[3]}), rank if rank >= 0 else None

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

    async def cancel(self, tenant: str, job_id: str) -> None:
        """Asks for the end of a job; idempotent. Raises RefusedError `not_found`, or `gone` as `view` does."""
        if not is_id("job", job_id):
            raise job_not_found(job_id)
        reply = await self.scripts.run("cancel", [self.keys.job(job_id)], job=job_id, tenant=tenant)
        if reply[0] != b"ok":
            await self.view(tenant, job_id)
            raise job_not_found(job_id)

    async def spec(self, tenant: str, job_id: str) -> tuple[str, bytes]:
        """The lane-independent spec of a job as (type, JSON). Raises as `view`."""
        row, _ = await self.view(tenant, job_id)
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
    ) -> None:
        """Opens the next run of a failed, cancelled or expired job. Raises RefusedError `conflict` otherwise."""
        reply = await self.scripts.run(
            "retry",
            [self.keys.job(job_id), self.keys.journal(job_id)],
            job=job_id,
            tenant=tenant,
            from_start=from_start,
            record=record,
            class_ms=class_ms,
            expires_in_ms=expires_in_ms,
        )
        if reply[0] == b"full":
            raise queue_full(reply[1].decode())
        if reply[0] == b"state":
            raise RefusedError(
                "conflict",
                f"The job is {reply[1].decode()}; only a failed, cancelled or expired job can be retried.",
            )
        if reply[0] != b"ok":
            raise job_not_found(job_id)

    async def live_workers(self, lanes: Sequence[str], now_ms: int) -> dict[str, int]:
        """How many workers are alive on each lane."""
        counts = {}
        for lane in lanes:
            counts[lane] = int(await self.client.zcount(self.keys.workers(lane), now_ms, "+inf"))
        return counts

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def claim(self, *, lane: str, worker: str, count: int, lease_ms: int) -> tuple[list[Claimed], int | None]:
        """Up to `count` jobs for this worker, and in how many ms the next delayed one is due (None: there is none)."""
        now, due, rows = await self.scripts.run(
            "claim",
            [self.keys.delayed(lane), self.keys.leases],
            lane=lane,
            worker=worker,
            count=count,
            lease_ms=lease_ms,
            fields=CLAIM_FIELDS,
        )
        next_due = float(due)
        jobs = []
        for row in rows:
            try:
                jobs.append(_claimed(row))
            except (ValueError, KeyError) as error:
                # Left to its lease and the reaper, which fails it as poison: nothing else suffers.
                log.error("claim.unreadable", job=(row[0] or b"").decode(errors="replace"), error=type(error).__name__)
        return jobs, max(0, round(next_due - int(now))) if next_due >= 0 else None

    async def renew(self, *, lane: str, worker: str, lease_ms: int, jobs: Sequence[tuple[str, int]]) -> list[int]:
        """The worker's heartbeat. Per job: 1 renewed, 0 lost, 2 renewed but to be cancelled."""
        states = await self.scripts.run(
            "renew",
            [self.keys.leases, self.keys.workers(lane)],
            worker=worker,
            lease_ms=lease_ms,
            alive_ms=lease_ms,
            jobs=jobs,
        )
        return [int(state) for state in states]

    async def leave(self, *, lane: str, worker: str) -> None:
        """The worker is gone: it no longer counts as alive."""
        await self.client.zrem(self.keys.workers(lane), worker)

    async def settle(
        self,
        claimed: Claimed,
        worker: str,
        *,
        outcome: str,
        result: bytes | None = None,
        error: bytes | None = None,
        delay_ms: int = 0,
        upstream_closed: bool = False,
        tokens_at_request: int = 0,
    ) -> str:
        """Ends the attempt; returns the job's status after it. Safe to repeat. Raises LeaseLostError."""
        reply = await self.scripts.run(
            "settle",
            [self.keys.job(claimed.job_id)],
            job=claimed.job_id,
            worker=worker,
            lease=claimed.lease,
            outcome=outcome,
            result=result.decode() if result is not None else None,
            error=error.decode() if error else None,
            delay_ms=delay_ms,
            upstream_closed=upstream_closed,
            tokens_at_request=tokens_at_request,
        )
        if reply[0] == b"lost":
            raise LeaseLostError(claimed.job_id)
        return reply[1].decode() if reply[0] == b"ok" else "again"

    async def reap(self, limit: int = 100) -> list[tuple[str, str]]:
        """Takes back the jobs of lost workers and expires what was not started; (job id, new status) of each."""
        rows = await self.scripts.run(
            "reap", [self.keys.leases, self.keys.expiring], max_lost=MAX_LOST_WORKERS, limit=limit
        )
        return [(job_id.decode(), status.decode()) for job_id, status in rows]

    async def sweep(self, limit: int = 100) -> int:
        """Removes jobs whose retention is over; how many."""
        return len(await self.scripts.run("sweep", [self.keys.retention], limit=limit, gone_s=TOMBSTONE_S))


def mismatch() -> RefusedError:
    """The refusal of an idempotency key that stands for another body."""
    return RefusedError("idempotency_mismatch", "This Idempotency-Key was used with another body within 24 hours.")


def queue_full(limit: str) -> RefusedError:
    """The refusal of a job for which the tenant's queue has no room."""
    return RefusedError(
        "queue_full",
        f"The tenant already has {limit} jobs waiting (maxQueuedJobs).",
        headers={"Retry-After": "5"},
    )


def job_not_found(job_id: str) -> RefusedError:
    """The refusal for a job that does not exist or is another tenant's."""
    return RefusedError("not_found", f"There is no job {job_id[:64]!r}.")


def _claimed(row: Sequence[bytes | None]) -> Claimed:
    fields = JobRow.from_reply(row, CLAIM_FIELDS)
    budget = fields.number("token_budget")
    return Claimed(
        job_id=fields.job_id,
        tenant=fields.tenant,
        type=fields.text("type") or "",
        lane=fields.text("lane") or "",
        lease=fields.number("lease"),
        attempt=fields.number("attempt"),
        max_attempts=fields.number("max_attempts"),
        spec=fields.raw("spec") or b"",
        model=fields.text("model") or "",
        timeout_s=fields.number("timeout_ms") / 1000,
        token_budget=budget or None,
        tokens_used=fields.number("tok_in") + fields.number("tok_out") + fields.number("tok_embed"),
        claimed_ms=fields.number("claimed_ms"),
        queued_ms=fields.number("queued_ms"),
        traceparent=fields.text("traceparent"),
    )
