"""Operations: health, readiness, metrics, the published contract."""

from __future__ import annotations

import hmac

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from api.auth import authenticate
from api.keys import DOCS_PAGE, FLEET, JOBS, OPENAPI, REDIS, SETTINGS, WORKERS
from api.wire import answer
from shared.metrics import REGISTRY
from shared.redis import OUTAGE, check_durability, redis_now_ms
from shared.specs import Lane


async def health(request: web.Request) -> web.Response:
    """GET /healthz: the process is up."""
    return answer({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: Redis answers, keeps what it acknowledges, and at least one worker is alive."""
    checks: dict[str, object] = {}
    try:
        found = await check_durability(request.app[REDIS])
        checks["redis"] = f"answers, version {found.version}"
        durable = not found.wrong or request.app[SETTINGS].allow_volatile
        checks["durability"] = list(found.wrong) or list(found.unknown) or "right"
        lanes = await request.app[JOBS].live_workers(list(Lane), await redis_now_ms(request.app[REDIS]))
        checks["workers"] = lanes
        is_ready = durable and sum(lanes.values()) > 0
    except OUTAGE as error:
        checks["redis"] = f"out of reach: {error}"
        is_ready = False
    return answer(
        {"status": "ready" if is_ready else "not ready", "checks": checks},
        status=200 if is_ready else 503,
        headers={} if is_ready else {"Retry-After": "1"},
    )


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus. No key is needed on loopback; elsewhere a key, or ERRAND_METRICS_TOKEN."""
    await _may_scrape(request)
    fleet = request.app[FLEET]
    await fleet.refresh()
    common = CollectorRegistry()
    common.register(fleet.collector)
    body = generate_latest(REGISTRY) + generate_latest(common)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


class TargetGroup(msgspec.Struct, frozen=True):
    """Targets with the labels that they share, as Prometheus's `http_sd_config` reads it. Labels that begin with
    `__meta_` are for its relabelling and are dropped after it: others would stand in the way of the metrics' own."""

    targets: list[str]
    labels: dict[str, str]


async def service_discovery(request: web.Request) -> web.Response:
    """GET /metrics/sd: the live workers, for Prometheus's `http_sd_configs`. Who may read it: as `/metrics`."""
    await _may_scrape(request)
    groups = [
        TargetGroup(
            [worker.metrics],
            {
                "__meta_errand_worker": worker.id,
                "__meta_errand_host": worker.host,
                "__meta_errand_lanes": ",".join(sorted(worker.slots)),
                "__meta_errand_version": worker.version,
            },
        )
        for worker in await request.app[WORKERS].live()
        if worker.metrics is not None
    ]
    return answer(groups)


async def _may_scrape(request: web.Request) -> None:
    token = request.app[SETTINGS].metrics_token
    presented = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    by_token = bool(token) and hmac.compare_digest(presented.encode(), token.encode())
    if not by_token and not _on_loopback(request):
        await authenticate(request)


def _on_loopback(request: web.Request) -> bool:
    # A proxy on this host forwards for others: then the peer's address says nothing.
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    remote = request.remote or ""
    return remote.startswith("127.") or remote in ("::1", "::ffff:127.0.0.1")


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json", charset="utf-8")


async def docs(request: web.Request) -> web.Response:
    """GET /docs: the same contract to read, without a request to any other host."""
    return web.Response(body=request.app[DOCS_PAGE], content_type="text/html", charset="utf-8")
