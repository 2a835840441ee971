"""Prompts: lists of them, of their versions and labels, and who changed them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from api.keys import AUDIT, PRINCIPAL, PROMPTS
from api.prompts import is_blind, is_shared, prompt_to_read
from api.wire import DEFAULT_LIMIT, MAX_LIMIT, answer, integer, invalid, page_answer, query
from shared.audit import AuditEntry
from shared.prompts import MAX_VERSIONS, SHARED, LabelList
from shared.stores.prompt_records import Head, fits, is_in_folder, label_view, prompt_row, version_row, who

MAX_SCANNED: Final = 2_000  # prompts that one page looks at for those that a filter wants
BATCH: Final = 200
_AUDIT_ID: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")
_CURSOR: Final = re.compile(r"([0-9]{1,15})\.([A-Za-z0-9._~-]{1,128})")

Place = tuple[int, str, str]
"""When a prompt was created, its name, and its owner."""


def location(name: str, owner: str, *, version: int) -> str:
    """The path of a version."""
    return f"/api/prompts/{quote(name, safe='')}?version={version}" + ("&shared=true" if owner == SHARED else "")


async def list_prompts(request: web.Request) -> web.Response:
    """GET /api/prompts."""
    parameters = query(request, ("limit", "after", "prefix", "search", "label", "shared"))
    limit = integer(parameters, "limit", DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    places = await _places(request, parameters)
    found: list[Head] = []
    last: Place | None = None
    for start in range(0, min(len(places), MAX_SCANNED), BATCH):
        batch = places[start : start + BATCH]
        heads = await request.app[PROMPTS].heads([(owner, name) for _, name, owner in batch])
        for place, head in zip(batch, heads, strict=True):
            if head is None or head.is_archived or not fits(head, parameters.get("search"), parameters.get("label")):
                last = place
                continue
            if len(found) == limit:
                return page_answer(request, [prompt_row(one) for one in found], _cursor(last))
            found.append(head)
            last = place
    is_cut = len(places) > MAX_SCANNED
    return page_answer(request, [prompt_row(head) for head in found], _cursor(last) if is_cut else None)


async def _places(request: web.Request, parameters: dict[str, str]) -> list[Place]:
    """The prompts that the caller sees in this folder, newest first, after the cursor."""
    store, tenant = request.app[PROMPTS], request[PRINCIPAL].tenant
    own = [] if is_shared(parameters) else [(ms, name, tenant) for ms, name in await store.names(tenant)]
    names = {name for _, name, _ in own}
    common = [(ms, name, SHARED) for ms, name in await store.names(SHARED) if name not in names]
    folder = parameters.get("prefix", "")
    after = _after(parameters.get("after"))
    return sorted(
        (
            place
            for place in own + common
            if (not folder or is_in_folder(place[1], folder)) and (after is None or place[:2] < after)
        ),
        reverse=True,
    )


def _cursor(place: Place | None) -> str | None:
    # A name has no `~`, and a cursor no `/`.
    return f"{place[0]}.{place[1].replace('/', '~')}" if place else None


def _after(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise invalid("?after", "is no cursor of this list")
    return int(match[1]), match[2].replace("~", "/")


async def list_versions(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/versions."""
    parameters = query(request, ("limit", "after", "shared"))
    limit = integer(parameters, "limit", DEFAULT_LIMIT, low=1, high=MAX_LIMIT)
    after = integer(parameters, "after", MAX_VERSIONS + 1, low=1, high=MAX_VERSIONS + 1)
    head = await prompt_to_read(request, parameters)
    first = min(head.versions, after - 1)
    numbers = list(range(first, max(first - limit, 0), -1))
    besides = await request.app[PROMPTS].besides(head.owner, head.name, numbers)
    blind = is_blind(request, head.owner)
    rows = [version_row(head, number, beside, is_blind=blind) for number, beside in zip(numbers, besides, strict=True)]
    return page_answer(request, rows, str(numbers[-1]) if numbers and numbers[-1] > 1 else None)


async def list_labels(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/labels."""
    head = await prompt_to_read(request, query(request, ("shared",)))
    blind = is_blind(request, head.owner)
    return answer(
        LabelList(
            data=[
                label_view(name, head.labels[name], head.experiments.get(name), is_blind=blind)
                for name in sorted(head.labels)
            ]
        )
    )


async def history(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/audit."""
    parameters = query(request, ("limit", "after", "shared"))
    after = parameters.get("after")
    if after is not None and not _AUDIT_ID.fullmatch(after):
        raise invalid("?after", "is no cursor of this list")
    head = await prompt_to_read(request, parameters)
    rows, cursor = await request.app[AUDIT].history(
        head.owner,
        head.name,
        limit=integer(parameters, "limit", DEFAULT_LIMIT, low=1, high=MAX_LIMIT),
        after=after,
    )
    if is_blind(request, head.owner):
        rows = [_unnamed(row) for row in rows]
    return page_answer(request, rows, cursor)


def _unnamed(row: AuditEntry) -> AuditEntry:
    # An experiment has the key that began it, and figures of all tenants.
    details = {member: change for member, change in row.details.items() if member not in ("experiment", "figures")}
    return msgspec.structs.replace(
        row, actor=who(row.actor, is_blind=True), actor_tenant_id=None, request_id=None, details=details
    )
