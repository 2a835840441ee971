"""The diagnosis of this installation. Scope `admin`."""

from __future__ import annotations

from aiohttp import web

from api.keys import BLOBS, DIAGNOSING, JOBS, REDIS, REDIS_KEYS, SETTINGS, WORKERS
from api.wire import answer, query
from shared.diagnosis.blob_checks import check_blobs
from shared.diagnosis.findings import Check, Diagnosis, worst
from shared.diagnosis.fleet_rules import judge
from shared.diagnosis.redis_checks import check_redis
from shared.redis import OUTAGE, redis_now_ms, shielded
from shared.specs import Lane
from shared.version import our_version
from shared.workers import WorkerRecord


async def diagnose(request: web.Request) -> web.Response:
    """GET /api/admin/diagnosis."""
    query(request, ())
    # A client that goes away must not cut a probe in the middle: it would leave what it wrote.
    return answer(await shielded(_diagnosis(request.app)))


async def _diagnosis(app: web.Application) -> Diagnosis:
    """Probes Redis and the blobs, and reads what the workers said. One at a time in this process, for two would measure
    each other."""
    settings = app[SETTINGS]
    async with app[DIAGNOSING]:
        checks = [
            *await check_redis(
                app[REDIS], app[REDIS_KEYS], allow_volatile=settings.allow_volatile, who="the API's clock"
            ),
            await check_blobs(app[BLOBS], needed_bytes=settings.max_upload_bytes),
        ]
        fleet, workers = await _fleet(app)
    checks.extend(fleet)
    return Diagnosis(
        state=worst(check.state for check in checks),
        version=our_version(),
        checks=tuple(checks),
        workers=workers,
    )


async def _fleet(app: web.Application) -> tuple[tuple[Check, ...], tuple[WorkerRecord, ...]]:
    """The checks of the workers, and their records. While Redis is away nothing is known of them."""
    try:
        records = tuple(await app[WORKERS].live())
        alive = await app[JOBS].live_workers(list(Lane), await redis_now_ms(app[REDIS]))
    except OUTAGE:
        return (), ()
    return judge(alive, records, version=our_version()), records
