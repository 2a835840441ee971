"""Prompts: reading, versions, labels. Scope `prompts`; what every tenant has is changed with `admin` only."""

from __future__ import annotations

from aiohttp import web

from api.handlers.prompt_lists import location
from api.keys import PROMPTS
from api.prompts import (
    candidates,
    change_of,
    check_new,
    choose,
    is_blind,
    label_in_path,
    length_of,
    name_of,
    number_of,
    off_loop,
    owner_to_change,
    precondition,
    prompt_to_read,
    settable,
)
from api.wire import answer, etag_of, invalid, matches, query, read_json
from shared.clock import rfc3339
from shared.diff import diff
from shared.errors import RefusedError
from shared.prompt_defaults import DEFAULTS
from shared.prompts import (
    PRODUCTION,
    SHARED,
    Label,
    LabelMove,
    NewPrompt,
    NewVersion,
    Rollback,
    Version,
    VersionView,
    content_of,
    digest,
)
from shared.stores.prompt_records import Head, label_view, version_view
from shared.stores.prompts import Added


async def create(request: web.Request) -> web.Response:
    """POST /api/prompts."""
    owner = owner_to_change(request, query(request, ("shared",)))
    new, body = await read_json(request, NewPrompt)
    return await _add(request, owner, new.name, new, body)


async def add_version(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/versions."""
    owner, name = owner_to_change(request, query(request, ("shared",))), name_of(request)
    new, body = await read_json(request, NewVersion)
    return await _add(request, owner, name, new, body)


async def _add(request: web.Request, owner: str, name: str, new: NewVersion, body: bytes) -> web.Response:
    await check_new(new, name, owner)
    added = await request.app[PROMPTS].add(owner, name, new, change_of(request, owner, body))
    view = await off_loop(length_of(new), _made, owner, name, new, added)
    headers = {"Location": location(name, owner, version=added.version)}
    if added.replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(view, status=201, headers=headers)


def _made(owner: str, name: str, new: NewVersion, added: Added) -> VersionView:
    """The version as it was made: so the answer of a replay is that of the first time, whatever was moved since."""
    content = content_of(new)
    return VersionView(
        name=name,
        description=added.description,
        version=added.version,
        latest_version=added.version,
        label=None,
        labels=sorted(set(new.labels)),
        shared=owner == SHARED,
        messages=content.messages,
        variables=content.variables,
        model=content.model,
        parameters=content.parameters,
        note=new.note,
        sha256=digest(content),
        created_at=rfc3339(added.at_ms),
        created_by=added.by,
    )


async def show(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}."""
    parameters = query(request, ("label", "version", "shared"))
    heads = await candidates(request, name_of(request), parameters)
    head, number, label = choose(heads, parameters.get("label"), number_of(parameters, "version"))
    version = await version_in(request, head, number)
    response = answer(version_view(head, version, label, is_blind=is_blind(request, head.owner)))
    etag = etag_of(bytes(response.body or b""))  # type: ignore[arg-type]  # bytes, as `answer` made it
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return response


async def version_in(request: web.Request, head: Head, number: int) -> Version:
    """A version of a prompt. Raises RefusedError `not_found`."""
    version = await request.app[PROMPTS].version(head.owner, head.name, number)
    if version is None:
        raise RefusedError("not_found", f"The prompt {head.name!r} has the versions 1 to {head.versions}.")
    return version


async def compare(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/diff."""
    parameters = query(request, ("from", "to", "shared"))
    head = await prompt_to_read(request, parameters)
    old, new = [await _named(request, head, parameters, name) for name in ("from", "to")]
    return answer(
        await off_loop(length_of(old) + length_of(new), diff, head.name, old, new, (old.version, new.version))
    )


async def _named(request: web.Request, head: Head, parameters: dict[str, str], name: str) -> Version:
    """The version that a query parameter names by its number or by a label."""
    text = parameters.get(name)
    if text is None:
        raise invalid(f"?{name}", "give the number of a version, or a label")
    number = number_of(parameters, name) if text.isdecimal() else head.version_of(text)
    if number is None:
        raise RefusedError("not_found", f"The prompt {head.name!r} has no label {text[:64]!r}.")
    return await version_in(request, head, number)


async def show_label(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/labels/{label}."""
    head = await prompt_to_read(request, query(request, ("shared",)))
    name = label_in_path(request)
    label = head.labels.get(name)
    if label is None:
        raise RefusedError("not_found", f"The prompt {head.name!r} has no label {name!r} that was set.")
    return _label_answer(request, head.owner, name, label, head.experiments.get(name))


def _label_answer(
    request: web.Request, owner: str, name: str, label: Label, experiment: bytes | None, *, replayed: bool = False
) -> web.Response:
    headers = {"ETag": f'"{label.rev}"'}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(label_view(name, label, experiment, is_blind=is_blind(request, owner)), headers=headers)


async def move_label(request: web.Request) -> web.Response:
    """PUT /api/prompts/{name}/labels/{label}."""
    owner, name = owner_to_change(request, query(request, ("shared",))), name_of(request)
    label = settable(request.match_info["label"], "label")
    move, _ = await read_json(request, LabelMove)
    moved = await request.app[PROMPTS].move_label(
        owner,
        name,
        label,
        move.version,
        change_of(request, owner),
        protected=move.protected,
        note=move.note,
        when=precondition(request),
    )
    return await _changed(request, owner, name, label, moved)


async def _changed(
    request: web.Request, owner: str, name: str, label: str, now: Label, *, replayed: bool = False
) -> web.Response:
    head = await request.app[PROMPTS].head(owner, name)
    experiment = head.experiments.get(label) if head is not None else None
    return _label_answer(request, owner, label, now, experiment, replayed=replayed)


async def remove_label(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}/labels/{label}."""
    owner, name = owner_to_change(request, query(request, ("shared",))), name_of(request)
    label = settable(request.match_info["label"], "label")
    if owner == SHARED and name in DEFAULTS and label == PRODUCTION:
        raise RefusedError("conflict", f"Jobs need the label {PRODUCTION!r} of a built-in prompt; move it instead.")
    await request.app[PROMPTS].remove_label(owner, name, label, change_of(request, owner), when=precondition(request))
    return web.Response(status=204)


async def roll_back(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/rollback."""
    owner, name = owner_to_change(request, query(request, ("shared",))), name_of(request)
    wanted, body = await read_json(request, Rollback)
    label = settable(wanted.label, "$.label")
    restored, replayed = await request.app[PROMPTS].roll_back(
        owner, name, label, change_of(request, owner, body), note=wanted.note, when=precondition(request)
    )
    return await _changed(request, owner, name, label, restored, replayed=replayed)


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}."""
    owner, name = owner_to_change(request, query(request, ("shared",))), name_of(request)
    if owner == SHARED and name in DEFAULTS:
        raise RefusedError("conflict", "Jobs need the built-in prompts: they cannot be deleted.")
    await request.app[PROMPTS].archive(owner, name, change_of(request, owner))
    return web.Response(status=204)
