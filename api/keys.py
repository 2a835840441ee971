"""What the application carries, by typed key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from api.doors import Doors
from api.live import Hub
from api.pinning import Pinning
from api.teller import Teller
from shared.blobs import Blobs
from shared.keys import Keys
from shared.limits import Standing
from shared.prices import PriceBook
from shared.redis import Redis
from shared.settings import Settings
from shared.stores.access import AccessStore, Principal
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
from shared.stores.outputs import OutputsStore
from shared.stores.prompts import PromptsStore
from shared.stores.searches import SearchesStore
from shared.stores.tenants import TenantsStore
from shared.stores.tickets import TicketsStore
from shared.stores.usage import UsageStore
from shared.stores.webhooks import WebhooksStore
from shared.stores.workers import WorkersStore
from shared.tokens import TokenCounter
from shared.upkeep import Disposal, Upkeep

if TYPE_CHECKING:  # they look things up here themselves
    from api.presence import Audience, Sessions
    from api.standing import Standings
    from api.websocket import Socket

SETTINGS = web.AppKey("settings", Settings)
DOORS = web.AppKey("doors", Doors)
REDIS = web.AppKey("redis", Redis)
REDIS_KEYS = web.AppKey("redis_keys", Keys)
JOBS = web.AppKey("jobs", JobsStore)
EVENTS = web.AppKey("events", EventsStore)
FLEET = web.AppKey("fleet", FleetStore)
WORKERS = web.AppKey("workers", WorkersStore)
TENANTS = web.AppKey("tenants", TenantsStore)
API_KEYS = web.AppKey("api_keys", ApiKeysStore)
ACCESS = web.AppKey("access", AccessStore)
AUDIT = web.AppKey("audit", AuditStore)
DOCUMENTS = web.AppKey("documents", DocumentsStore)
SEARCHES = web.AppKey("searches", SearchesStore)
ERASURES = web.AppKey("erasures", ErasureStore)
OUTPUTS = web.AppKey("outputs", OutputsStore)
BLOBS = web.AppKey("blobs", Blobs)
HUB = web.AppKey("hub", Hub)
TELLER = web.AppKey("teller", Teller)
UPKEEP = web.AppKey("upkeep", Upkeep)
DISPOSAL = web.AppKey("disposal", Disposal)
SESSIONS: web.AppKey[Sessions] = web.AppKey("sessions")
PROMPTS = web.AppKey("prompts", PromptsStore)
TOKENS = web.AppKey("tokens", TokenCounter)
TICKETS = web.AppKey("tickets", TicketsStore)
AUDIENCE: web.AppKey[Audience] = web.AppKey("audience")
LIMITS: web.AppKey[Standings] = web.AppKey("limits")
USAGE = web.AppKey("usage", UsageStore)
WEBHOOKS = web.AppKey("webhooks", WebhooksStore)
INDEXES = web.AppKey("indexes", IndexesStore)
PINNING = web.AppKey("pinning", Pinning)
EXPERIMENTS = web.AppKey("experiments", ExperimentsStore)
PRICES = web.AppKey("prices", PriceBook)
BOOKS = web.AppKey("books", BooksStore)
SOCKETS: web.AppKey[set[Socket]] = web.AppKey("sockets")
PRINCIPALS = web.AppKey("principals", dict[str, tuple[float, Principal]])
DIAGNOSING = web.AppKey("diagnosing", asyncio.Lock)
OPENAPI = web.AppKey("openapi", bytes)
DOCS_PAGE = web.AppKey("docs_page", bytes)

PRINCIPAL = web.RequestKey("principal", Principal)
REQUEST_ID = web.RequestKey("request_id", str)
STANDING: web.RequestKey[Standing | None] = web.RequestKey("standing")  # of the limits, as this request found them
