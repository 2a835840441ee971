"""The application: its resources, its one middleware and the URL table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from aiohttp import WSCloseCode, web

from api import cors, docs_page, hardening, keys, openapi, standing
from api.auth import forget
from api.doors import Doors
from api.guardian import Guardian
from api.live import Hub
from api.middleware import edge
from api.pinning import Pinning
from api.presence import Audience, Sessions
from api.route import Handler
from api.routes import ROUTES, guarded
from api.standing import Standings
from api.teller import Teller
from api.webhook_routes import events
from api.websocket import Socket
from shared.blobs import blobs_of
from shared.keys import Keys
from shared.log import get_logger
from shared.prices import PriceBook
from shared.prompt_defaults import DEFAULTS
from shared.redis import OUTAGE, connect
from shared.settings import Settings
from shared.stores.access import AccessStore
from shared.stores.api_keys import ApiKeysStore
from shared.stores.audit import AuditStore
from shared.stores.books import BooksStore
from shared.stores.documents import DocumentsStore
from shared.stores.erasure import ErasureStore
from shared.stores.events import EventsStore
from shared.stores.experiments import ExperimentsStore
from shared.stores.fleet import FleetStore
from shared.stores.indexes import IndexesStore
from shared.stores.jobs import JobsStore
from shared.stores.limits import LimitsStore
from shared.stores.outputs import OutputsStore
from shared.stores.prompts import PromptsStore
from shared.stores.searches import SearchesStore
from shared.stores.tenants import TenantsStore
from shared.stores.tickets import TicketsStore
from shared.stores.usage import UsageStore
from shared.stores.webhooks import WebhooksStore
from shared.stores.workers import WorkersStore
from shared.tokens import TokenCounter
from shared.upkeep import Disposal, Upkeep, sweep_every_s
from shared.version import our_version

log = get_logger()

REDIS_S = 1.0  # an API process says 503 after so long; clients repeat with their Idempotency-Key
SEED_S = 1.0  # between tries to store the shipped prompts
BLOBS_S = 3.0  # likewise of a blob store that is elsewhere


def create_app(settings: Settings) -> web.Application:
    """The API. Connections are made when it starts and closed when it stops."""
    app = web.Application(middlewares=[edge], client_max_size=settings.max_upload_bytes)
    names = Keys(settings.redis_prefix)
    client = connect(settings.redis_url, timeout_s=REDIS_S)
    app[keys.SETTINGS] = settings
    app[keys.DOORS] = Doors(settings.max_connections, settings.max_connections_per_client, settings.trusted_proxies)
    app[keys.REDIS] = client
    app[keys.REDIS_KEYS] = names
    app[keys.JOBS] = JobsStore(client, names)
    app[keys.EVENTS] = EventsStore(client, names)
    app[keys.FLEET] = FleetStore(client, names)
    app[keys.WORKERS] = WorkersStore(client, names)
    app[keys.TENANTS] = TenantsStore(client, names)
    app[keys.API_KEYS] = ApiKeysStore(client, names)
    app[keys.ACCESS] = AccessStore(client, names)
    app[keys.AUDIT] = AuditStore(client, names)
    app[keys.DOCUMENTS] = DocumentsStore(client, names)
    app[keys.INDEXES] = IndexesStore(client, names)
    app[keys.SEARCHES] = SearchesStore(client, names)
    app[keys.BLOBS] = blobs_of(settings, patience_s=BLOBS_S)
    app[keys.ERASURES] = ErasureStore(client, names)
    app[keys.OUTPUTS] = OutputsStore(client, names)
    app[keys.PRINCIPALS] = {}
    document = openapi.build(ROUTES, our_version(), events())
    app[keys.OPENAPI] = msgspec.json.encode(document)
    app[keys.DOCS_PAGE] = docs_page.page(document).encode()
    app[keys.HUB] = Hub(connect(settings.redis_url, timeout_s=None), names)
    app[keys.TELLER] = Teller(app[keys.JOBS])
    swept_s = sweep_every_s(settings.retention_seconds)
    app[keys.UPKEEP] = Upkeep(app[keys.JOBS], lease_s=settings.lease_seconds, sweep_every_s=swept_s)
    app[keys.DISPOSAL] = Disposal(app[keys.OUTPUTS], app[keys.BLOBS], every_s=swept_s)
    app[keys.AUDIENCE] = Audience(app[keys.JOBS], app[keys.UPKEEP])
    app[keys.SESSIONS] = Sessions(app[keys.ACCESS])
    app[keys.TICKETS] = TicketsStore(client, names, app[keys.ACCESS])
    app[keys.LIMITS] = Standings(LimitsStore(client, names))
    app[keys.PROMPTS] = PromptsStore(client, names)
    app[keys.PINNING] = Pinning(app[keys.PROMPTS])
    app[keys.EXPERIMENTS] = ExperimentsStore(client, names)
    app[keys.TOKENS] = TokenCounter()
    app[keys.PRICES] = PriceBook(settings.prices, settings.openai_base_url)
    app[keys.BOOKS] = BooksStore(client, names)
    app[keys.USAGE] = UsageStore(client, names)
    app[keys.WEBHOOKS] = WebhooksStore(client, names)
    app[keys.DIAGNOSING] = asyncio.Lock()
    sockets: set[Socket] = set()
    app[keys.SOCKETS] = sockets
    for route in ROUTES:
        handler = guarded(route)
        app.router.add_route(route.method, route.path, handler)
        if route.method == "GET" and not route.is_stream:
            app.router.add_route("HEAD", route.path, handler)
    for path in {route.path for route in ROUTES if "{" not in route.path}:
        # Else `DELETE /api/search/log`, say, where there is none, would be that of a search with this id.
        there = [route for route in ROUTES if route.path == path]
        heads = {"HEAD" for route in there if route.method == "GET" and not route.is_stream}
        app.router.add_route("*", path, _without({route.method for route in there} | heads))
    app.cleanup_ctx.append(_resources)
    app.on_response_prepare.append(hardening.add_headers)
    app.on_response_prepare.append(cors.add_headers)
    app.on_response_prepare.append(standing.add_headers)
    app.on_shutdown.append(_end_streams)
    return app


def _without(methods: set[str]) -> Handler:
    """Refuses all methods that a path has not."""

    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, sorted(methods))

    return handler


async def _resources(app: web.Application) -> AsyncIterator[None]:
    hub = app[keys.HUB]
    hub.on_revoked(lambda key_id, _: forget(app[keys.PRINCIPALS], key_id))
    hub.on_revoked(app[keys.SESSIONS].revoked)
    hub.on_prompt(app[keys.PINNING].forget)
    await hub.start()
    seeding = asyncio.create_task(_seed(app), name="seeding")
    # The first request finds them, unless Redis is away: then they come when it is back.
    await asyncio.wait([seeding], timeout=REDIS_S)
    guardian = Guardian(app[keys.PROMPTS], app[keys.EXPERIMENTS], app[keys.PINNING].forget)
    companions = [
        seeding,
        asyncio.create_task(guardian.run(), name="guardian"),
        asyncio.create_task(app[keys.UPKEEP].run(), name="upkeep"),
        asyncio.create_task(app[keys.DISPOSAL].run(), name="disposal"),
        asyncio.create_task(app[keys.AUDIENCE].run(), name="audience"),
        asyncio.create_task(app[keys.SESSIONS].run(), name="sessions"),
        asyncio.create_task(app[keys.TELLER].run(), name="teller"),
    ]
    yield
    # Again and again: redis-py can swallow a cancellation.
    while left := [task for task in companions if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.2)
    await hub.close()
    await app[keys.REDIS].aclose()


async def _seed(app: web.Application) -> None:
    while True:
        try:
            added = await app[keys.PROMPTS].seed(DEFAULTS)
        except OUTAGE:
            await asyncio.sleep(SEED_S)
            continue
        except Exception:
            log.exception("prompts.seeding_failed")
            return
        if added:
            log.info("prompts.seeded", prompts=added)
        return


async def _end_streams(app: web.Application) -> None:
    # Before aiohttp waits for the handlers: a stream ends by itself only when its job does.
    app[keys.HUB].end_readers()
    sockets = app[keys.SOCKETS]
    for socket in list(sockets):
        socket.end(WSCloseCode.SERVICE_RESTART, "this process is stopping")
