"""Experiments on labels of prompts, and figures of versions. Scope `prompts`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api.acting import actor_of
from api.handlers.prompts import head_of, label_of, may_promote, name_of, own_head, owner_of
from api.handlers.usage import days_of
from api.keys import EXPERIMENTS, JOBS, PRINCIPAL, PROMPTS
from api.wire import answer, integer, invalid, page_answer, query, read_json
from shared.audit import Action
from shared.errors import RefusedError
from shared.experiments import Experiment, ExperimentDraft, ExperimentView, Promotion
from shared.figures import experiment_view, stats_rows
from shared.redis import redis_now_ms
from shared.stores.experiments import running
from shared.stores.prompts import Head
from shared.usage import day_name

MAX_VERSION: Final = 10**9


def _etag(experiment: Experiment) -> str:
    return f'"{experiment.id}-{experiment.rev}"'


def _expected(request: web.Request) -> str | None:
    """The experiment that `If-Match` names, as the store takes it; `""` for `If-None-Match: *`."""
    if (none := request.headers.get("If-None-Match")) is not None:
        if none.strip() != "*":
            raise invalid("If-None-Match", "only `*` has a meaning here")
        return ""
    if (given := request.headers.get("If-Match")) is None or given.strip() == "*":
        return None
    identifier, _, rev = given.strip().strip('"').rpartition("-")
    return f"{identifier} {rev}"


async def _shown(request: web.Request, head: Head, label: str, experiment: Experiment) -> ExperimentView:
    sums = await request.app[EXPERIMENTS].sums(head.owner, experiment)
    return experiment_view(head.name, label, experiment, sums)


async def begin(request: web.Request) -> web.Response:
    """PUT /api/prompts/{name}/experiments/{label}."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    label, (draft, _) = label_of(request), await read_json(request, ExperimentDraft)
    head = await own_head(request, owner, name)
    wanted = await request.app[EXPERIMENTS].set(
        head, label, draft, expected=_expected(request), may_promote=may_promote(request), by=actor_of(request)
    )
    request.app[PROMPTS].forget(owner, name)
    return answer(await _shown(request, head, label, wanted), headers={"ETag": _etag(wanted)})


async def show(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/experiments/{label}."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    head, label = await own_head(request, owner, name), label_of(request)
    experiment = running(head, label)
    if experiment is None:
        raise RefusedError("not_found", f"No experiment runs on the label {label!r}.")
    return answer(await _shown(request, head, label, experiment), headers={"ETag": _etag(experiment)})


async def list_all(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/experiments."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    head = await own_head(request, owner, name)
    rows = []
    for label in sorted({*head.labels, *head.experiments}):
        if (experiment := running(head, label)) is not None:
            rows.append(await _shown(request, head, label, experiment))
        for ended in await request.app[EXPERIMENTS].ended(head, label):
            rows.append(await _shown(request, head, label, ended))
    rows.sort(key=lambda row: row.started_at, reverse=True)
    return page_answer(request, rows, None)


async def stop(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}/experiments/{label}."""
    return await _end(request, "stop", Action.EXPERIMENT_STOPPED, "Stopped by a person.")


async def promote(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/experiments/{label}/promote."""
    wanted, _ = await read_json(request, Promotion)
    why = wanted.note or f"Version {wanted.version} was promoted."
    return await _end(request, "promote", Action.EXPERIMENT_PROMOTED, why, wanted.version)


async def _end(request: web.Request, what: str, action: Action, why: str, version: int | None = None) -> web.Response:
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    head, label = await own_head(request, owner, name), label_of(request)
    experiment = running(head, label)
    figures: Any = None if experiment is None else await _shown(request, head, label, experiment)
    await request.app[EXPERIMENTS].end(
        head, label, what, action, why=why, by=actor_of(request), may_promote=may_promote(request),
        expected=_expected(request), version=version, figures=figures,
    )  # fmt: skip
    request.app[PROMPTS].forget(owner, name)
    (ended, *_) = await request.app[EXPERIMENTS].ended(head, label)
    return answer(await _shown(request, head, label, ended))


async def stats(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/stats."""
    parameters = query(request, ("from", "to", "version"))
    name = name_of(request)
    head = await head_of(request, request[PRINCIPAL].tenant, name)
    today = datetime.fromtimestamp(await redis_now_ms(request.app[JOBS].client) / 1000, UTC).date()
    first, last = days_of(parameters, today)
    wanted = integer(parameters, "version", 0, low=1, high=MAX_VERSION)
    found = await request.app[EXPERIMENTS].days(request[PRINCIPAL].tenant, head.name, day_name(first), day_name(last))
    rows = [row for day, figures in reversed(found) for row in stats_rows(day, figures)]
    return page_answer(request, [row for row in rows if not wanted or row.version == wanted], None)
