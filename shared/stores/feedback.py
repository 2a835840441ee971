"""What people think of jobs' results, and what a job might expect before it is submitted: small calls beside the store
of jobs. Each raises a member of OUTAGE when Redis is out of reach."""

from __future__ import annotations

import msgspec

from shared.errors import RefusedError
from shared.jobs import Outlook
from shared.specs import Lane
from shared.stores.jobs import JobsStore, job_not_found, mismatch


class Feedback(msgspec.Struct, frozen=True):
    """All that was said of a job: how often, and the sum of the scores in thousandths."""

    count: int
    total_milli: int
    now_ms: int
    replayed: bool


async def give_feedback(
    jobs: JobsStore,
    tenant: str,
    job_id: str,
    *,
    score: float,
    comment: str | None,
    key: str,
    idem_digest: str | None,
    idem_body: str | None,
) -> Feedback:
    """Notes what somebody thinks of a job's result. Raises RefusedError `not_found`, `gone` as `view` does,
    `conflict` when it has not started, `idempotency_mismatch`."""
    await jobs.view(tenant, job_id)
    reply = await jobs.scripts.run(
        "feedback",
        [jobs.keys.job(job_id), jobs.keys.feedback(job_id), jobs.keys.idem(tenant, idem_digest or "-")],
        tenant=tenant,
        score_milli=round(score * 1000),
        comment=comment,
        key=key,
        idem_body=idem_body if idem_digest else None,
    )
    match [part.decode() for part in reply]:
        case ["ok", count, milli, now, replayed]:
            return Feedback(int(count), int(milli), int(now), replayed == "1")
        case ["none"]:
            raise job_not_found(job_id)
        case ["state", status]:
            raise RefusedError("conflict", f"The job is {status}; there is nothing yet to say anything of.")
        case _:
            raise mismatch()


async def foresee(jobs: JobsStore, tenant: str, lane: Lane, class_ms: int) -> Outlook:
    """What a job might expect if it were admitted now."""
    reply = await jobs.scripts.run("foresee", [], tenant=tenant, lane=lane, class_ms=class_ms)
    return Outlook.from_reply([part.decode() for part in reply])
