"""What was used, and how the limits stand."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Final

import msgspec
from aiohttp import web

from api.keys import API_KEYS, LIMITS, PRINCIPAL, REDIS, TENANTS, USAGE
from api.wire import answer, asks_for, integer, invalid, page_answer, query
from shared.errors import RefusedError
from shared.limit_rows import view_of
from shared.redis import redis_now_ms
from shared.tenants import Scope
from shared.usage import MAX_DAYS, Group, Order, Place, UsageQuery, csv_of, day_of, ordered, place_of, row_of, span

DEFAULT_ROWS: Final = 1_000
MAX_ROWS: Final = 10_000
FILTERS: Final = (Group.MODEL, Group.TYPE, Group.PROMPT, Group.USER, Group.KEY)
CSV: Final = "text/csv"


async def usage(request: web.Request) -> web.Response:
    """GET /api/usage."""
    parameters = query(
        request, ("from", "to", "groupBy", *(group.value for group in FILTERS), "tenant", "order", "limit", "after")
    )
    now_ms = await redis_now_ms(request.app[REDIS])
    first, last = days_of(parameters, datetime.fromtimestamp(now_ms / 1000, UTC).date())
    wanted = UsageQuery(
        first=first,
        last=last,
        groups=_groups(parameters),
        only={group: parameters[group.value] for group in FILTERS if group.value in parameters},
    )
    limit = integer(parameters, "limit", DEFAULT_ROWS, low=1, high=MAX_ROWS)
    order = _order(parameters)
    after = _place(parameters["after"], order, len(wanted.groups)) if "after" in parameters else None
    rows = ordered(await request.app[USAGE].sums(await _tenants(request, parameters), wanted), wanted.groups, order)
    if asks_for(request, CSV):
        name = f"usage-{first}-{last}.csv"
        return web.Response(
            text=csv_of(rows, wanted.groups),
            content_type=CSV,
            charset="utf-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"},
        )
    if after is not None:
        rows = [row for row in rows if place_of(*row, wanted.groups, order) > after]
    page = rows[:limit]
    cursor = _cursor(place_of(*page[-1], wanted.groups, order)) if len(rows) > limit else None
    return page_answer(request, [row_of(*row, wanted.groups) for row in page], cursor, headers={"Vary": "Accept"})


async def limits(request: web.Request) -> web.Response:
    """GET /api/limits."""
    parameters = query(request, ("user", "prompt"))
    principal = request[PRINCIPAL]
    state = await request.app[LIMITS].store.state(
        principal.tenant, key=principal.key_id, user=parameters.get("user"), prompt=parameters.get("prompt")
    )
    return answer(view_of(state))


async def tenant_limits(request: web.Request) -> web.Response:
    """GET /api/admin/tenants/{tenantId}/limits."""
    parameters = query(request, ("key", "user", "prompt"))
    tenant = request.match_info["tenantId"]
    await request.app[TENANTS].tenant(tenant)
    if "key" in parameters:
        await request.app[API_KEYS].key(tenant, parameters["key"])
    return answer(view_of(await request.app[LIMITS].store.state(tenant, **parameters)))


def days_of(parameters: Mapping[str, str], today: date) -> tuple[date, date]:
    """The first and the last day that a query asks for. Raises RefusedError."""
    found: dict[str, date] = {}
    for name in ("from", "to"):
        if name in parameters:
            try:
                found[name] = day_of(parameters[name])
            except (ValueError, OverflowError) as error:
                raise invalid(f"?{name}", f"must be a day (YYYY-MM-DD) or an RFC 3339 time: {error}") from None
    first, last = span(found.get("from"), found.get("to"), today)
    if first > last:
        raise invalid("?from", f"is {first}, after `to`, which is {last}")
    if (last - first).days >= MAX_DAYS:
        raise invalid("?from", f"{first} to {last} is more than {MAX_DAYS} days")
    return first, last


def _groups(parameters: Mapping[str, str]) -> tuple[Group, ...]:
    text = parameters.get("groupBy", Group.DAY.value)
    try:
        return tuple(dict.fromkeys(Group(name.strip()) for name in text.split(","))) if text.strip() else ()
    except ValueError:
        known = ", ".join(Group)
        raise invalid("?groupBy", f"must be some of {known}, with commas between, or empty") from None


def _order(parameters: Mapping[str, str]) -> Order:
    try:
        return Order(parameters.get("order", Order.NAME))
    except ValueError:
        raise invalid("?order", f"must be one of {', '.join(Order)}") from None


async def _tenants(request: web.Request, parameters: Mapping[str, str]) -> list[str]:
    principal = request[PRINCIPAL]
    tenant = parameters.get("tenant", principal.tenant)
    if tenant == principal.tenant:
        return [tenant]
    if Scope.ADMIN not in principal.scopes:
        raise RefusedError("scope_missing", "Usage of other tenants needs the scope 'admin', which the key has not.")
    if tenant == "*":
        return await request.app[USAGE].all_tenants()
    await request.app[TENANTS].tenant(tenant)
    return [tenant]


_decode_place: Final = msgspec.json.Decoder(tuple[str, str, int, tuple[str, ...]]).decode


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str, order: Order, groups: int) -> Place:
    try:
        place = _decode_place(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise invalid("?after", "is no cursor of this list") from None
    if place[0] != order or len(place[3]) != groups:
        raise invalid("?after", "is no cursor of this list")
    return place
