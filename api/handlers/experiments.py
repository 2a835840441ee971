"""Experiments on labels of prompts, and figures of versions. Scope `prompts`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api.handlers.usage import days_of
from api.keys import EXPERIMENTS, JOBS, PINNING, PRINCIPAL, PROMPTS
from api.prompts import change_of, is_blind, label_in_path, name_of, owner_to_change, prompt_to_read
from api.wire import answer, integer, invalid, page_answer, page_of, page_size, query, read_json
from shared.audit import Action
from shared.errors import RefusedError
from shared.experiments import Experiment, ExperimentDraft, ExperimentView, Promotion
from shared.figures import experiment_view, stats_rows
from shared.prompts import MAX_VERSIONS
from shared.redis import redis_now_ms
from shared.stores.experiments import running
from shared.stores.prompt_records import Head
from shared.stores.prompt_refusals import refusal
from shared.usage import day_name

_CURSOR: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})\.([1-9][0-9]{0,8})")


def _etag(experiment: Experiment) -> str:
    return f'"{experiment.id}-{experiment.rev}"'


def _expected(request: web.Request) -> str | None:
    """The experiment that `If-Match` names, as the store takes it; `""` for `If-None-Match: *`."""
    if (none := request.headers.get("If-None-Match")) is not None:
        if none.strip() != "*":
            raise invalid("If-None-Match", "only `*` has a meaning here")
        return ""
    if (given := request.headers.get("If-Match")) is None:
        return None
    if given.strip() == "*":
        return "*"
    identifier, _, rev = given.strip().strip('"').rpartition("-")
    return f"{identifier} {rev}"


async def _own(request: web.Request, owner: str) -> Head:
    """The owner's own prompt: for changes. Raises RefusedError `not_found`."""
    name = name_of(request)
    head = await request.app[PROMPTS].head(owner, name)
    if head is None or head.is_archived:
        raise refusal(owner, name, ["none"])
    return head


async def _readable(request: web.Request, parameters: dict[str, str]) -> Head:
    """The prompt in the path. Figures of a shared one are all tenants': for administrators. Raises RefusedError."""
    head = await prompt_to_read(request, parameters)
    if is_blind(request, head.owner):
        raise RefusedError("scope_missing", "Experiments on shared prompts are read with the scope `admin`.")
    return head


async def _shown(request: web.Request, head: Head, label: str, experiment: Experiment) -> ExperimentView:
    sums = await request.app[EXPERIMENTS].sums(head.owner, experiment)
    return experiment_view(head.name, label, experiment, sums)


async def begin(request: web.Request) -> web.Response:
    """PUT /api/prompts/{name}/experiments/{label}."""
    owner = owner_to_change(request, query(request, ("shared",)))
    label, (draft, _) = label_in_path(request), await read_json(request, ExperimentDraft)
    head = await _own(request, owner)
    wanted = await request.app[EXPERIMENTS].set(
        head, label, draft, change_of(request, owner), expected=_expected(request)
    )
    request.app[PINNING].forget(owner, head.name)
    return answer(await _shown(request, head, label, wanted), headers={"ETag": _etag(wanted)})


async def show(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/experiments/{label}."""
    head, label = await _readable(request, query(request, ("shared",))), label_in_path(request)
    experiment = running(head, label)
    if experiment is None:
        raise RefusedError("not_found", f"No experiment runs on the label {label!r}.")
    return answer(await _shown(request, head, label, experiment), headers={"ETag": _etag(experiment)})


async def list_all(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/experiments."""
    parameters = query(request, ("limit", "after", "shared"))
    limit, after = page_of(parameters, "exp")
    head = await _readable(request, parameters)
    found: list[Experiment] = [one for label in head.experiments if (one := running(head, label)) is not None]
    found += await request.app[EXPERIMENTS].ended(head)
    found = sorted((one for one in found if after is None or one.id < after), key=lambda one: one.id, reverse=True)
    rows = [await _shown(request, head, one.label, one) for one in found[:limit]]
    return page_answer(request, rows, rows[-1].id if len(found) > limit else None)


async def stop(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}/experiments/{label}."""
    return await _end(request, "stop", Action.EXPERIMENT_STOPPED, "Stopped by a person.")


async def promote(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/experiments/{label}/promote."""
    wanted, _ = await read_json(request, Promotion)
    why = wanted.note or f"Version {wanted.version} was promoted."
    return await _end(request, "promote", Action.EXPERIMENT_PROMOTED, why, wanted.version)


async def _end(request: web.Request, act: str, action: Action, why: str, version: int | None = None) -> web.Response:
    owner = owner_to_change(request, query(request, ("shared",)))
    head, label = await _own(request, owner), label_in_path(request)
    experiment = running(head, label)
    figures: Any = None if experiment is None else await _shown(request, head, label, experiment)
    await request.app[EXPERIMENTS].end(
        head, label, act, change_of(request, owner), action, why=why,
        expected=_expected(request), version=version, figures=figures,
    )  # fmt: skip
    request.app[PINNING].forget(owner, head.name)
    (ended,) = await request.app[EXPERIMENTS].ended(head, most=1)
    return answer(await _shown(request, head, label, ended))


async def stats(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/stats."""
    parameters = query(request, ("from", "to", "version", "limit", "after", "shared"))
    limit, after = page_size(parameters), _place(parameters.get("after"))
    head = await prompt_to_read(request, parameters)
    today = datetime.fromtimestamp(await redis_now_ms(request.app[JOBS].client) / 1000, UTC).date()
    first, last = days_of(parameters, today)
    wanted = integer(parameters, "version", 0, low=1, high=MAX_VERSIONS)
    found = await request.app[EXPERIMENTS].days(request[PRINCIPAL].tenant, head.name, day_name(first), day_name(last))
    rows = [row for day, figures in reversed(found) for row in stats_rows(day, figures)]
    rows = [row for row in rows if not wanted or row.version == wanted]
    if after is not None:
        rows = [row for row in rows if (row.day, row.version) < after]
    page = rows[:limit]
    return page_answer(request, page, f"{page[-1].day}.{page[-1].version}" if len(rows) > limit else None)


def _place(cursor: str | None) -> tuple[str, int] | None:
    """The day and the version behind which a page of figures begins. Raises RefusedError."""
    if cursor is None:
        return None
    if (match := _CURSOR.fullmatch(cursor)) is None:
        raise invalid("?after", "is no cursor of this list")
    return match[1], int(match[2])
