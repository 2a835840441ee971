"""Prompts: versions, labels, what differs, and what a model would get. Scope `prompts`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from api.acting import actor_of, idem_of
from api.keys import COUNTER, PRINCIPAL, PROMPTS, SETTINGS
from api.prompts import BadPromptError
from api.wire import answer, integer, invalid, matches, page_answer, page_size, query, read_json
from shared.clock import rfc3339
from shared.diff import PromptDiff, diff_members, diff_messages
from shared.errors import RefusedError
from shared.experiments import Experiment
from shared.jobs import ExperimentArm
from shared.prompts import (
    BUILT_IN,
    LATEST,
    PRODUCTION,
    SHARED,
    LabelMove,
    LabelName,
    NewPrompt,
    NewVersion,
    PromptName,
    PromptRow,
    Rendered,
    RenderRequest,
    Rollback,
    Version,
    VersionRow,
    VersionView,
    problems_of,
    render,
)
from shared.stores.prompts import Head, label_view, no_prompt
from shared.tenants import Scope

_CURSOR: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")
MAX_VERSION: Final = 10**9


# -- whose, and which ---------------------------------------------------------------------------------------------


def name_of(request: web.Request) -> str:
    """The prompt's name in the path. Raises RefusedError `not_found` for what is none."""
    name = request.match_info["name"]
    try:
        return msgspec.convert(name, PromptName)
    except msgspec.ValidationError:
        raise no_prompt(name) from None


def label_of(request: web.Request) -> str:
    """The label's name in the path. Raises RefusedError."""
    label = request.match_info["label"]
    try:
        return msgspec.convert(label, LabelName)
    except msgspec.ValidationError:
        raise invalid("label", "a label has small letters, digits, `.`, `_` and `-`, at most 64") from None


def owner_of(request: web.Request, shared: str | None) -> str:
    """Whose prompts are meant: the tenant's, or with `?shared=true` those that all have. Raises RefusedError."""
    if shared is None or shared == "false":
        return request[PRINCIPAL].tenant
    if shared != "true":
        raise invalid("?shared", "must be true or false")
    if Scope.ADMIN not in request[PRINCIPAL].scopes and request.method not in ("GET", "HEAD"):
        raise RefusedError("scope_missing", "The shared prompts are changed with the scope `admin` only.")
    return SHARED


def may_promote(request: web.Request) -> bool:
    """Whether the key may move protected labels."""
    return Scope.PROMOTE in request[PRINCIPAL].scopes


async def head_of(request: web.Request, owner: str, name: str) -> Head:
    """A prompt of this owner, or the shared one that it has. Raises RefusedError `not_found`."""
    store = request.app[PROMPTS].store
    for whose in (owner, SHARED) if name.startswith(BUILT_IN) else (owner,):
        head = await store.head(whose, name)
        if head is not None and not head.is_archived:
            return head
    raise no_prompt(name)


async def own_head(request: web.Request, owner: str, name: str) -> Head:
    """A prompt of this owner itself: for changes. Raises RefusedError `not_found`."""
    head = await request.app[PROMPTS].store.head(owner, name)
    if head is None or head.is_archived:
        raise no_prompt(name)
    return head


async def version_of(request: web.Request, head: Head, number: int) -> Version:
    """Raises RefusedError `not_found`."""
    found = await request.app[PROMPTS].versions.get(head.owner, head.name, number)
    if found is None:
        raise RefusedError(
            "not_found", f"The prompt {head.name!r} has the versions 1 to {head.versions}, not {number}."
        )
    return found


def view_of(head: Head, version: Version, label: str | None) -> VersionView:
    """A version as the API shows it."""
    return VersionView(
        name=head.name,
        description=head.description,
        version=version.version,
        latest_version=head.versions,
        label=label,
        labels=head.labels_of(version.version),
        shared=head.owner == SHARED,
        messages=version.messages,
        variables=version.variables,
        model=version.model,
        parameters=version.parameters,
        note=version.note,
        sha256=version.sha256,
        created_at=rfc3339(version.at_ms),
        created_by=version.by,
    )


# -- prompts and versions -----------------------------------------------------------------------------------------


async def create(request: web.Request) -> web.Response:
    """POST /api/prompts."""
    owner = owner_of(request, query(request, ("shared",)).get("shared"))
    new, body = await read_json(request, NewPrompt)
    return await _add(request, owner, new.name, new, body, is_new=True, description=new.description)


async def add_version(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/versions."""
    owner = owner_of(request, query(request, ("shared",)).get("shared"))
    name = name_of(request)
    new, body = await read_json(request, NewVersion)
    return await _add(request, owner, name, new, body, is_new=False)


async def _add(
    request: web.Request,
    owner: str,
    name: str,
    new: NewVersion,
    body: bytes,
    *,
    is_new: bool,
    description: str | None = None,
) -> web.Response:
    problems = problems_of(new, is_built_in=name.startswith(BUILT_IN))
    if owner == SHARED and not name.startswith(BUILT_IN):
        problems.append(("$.name", f"a shared prompt is in the folder {BUILT_IN}"))
    if LATEST in new.labels:
        problems.append(("$.labels", f"`{LATEST}` is always the newest version; it cannot be set"))
    if problems:
        raise RefusedError(
            "invalid_request", "; ".join(f"{path}: {text}" for path, text in problems), errors=tuple(problems)
        )
    idem_key, idem_body = idem_of(request, body)
    made, replayed = await request.app[PROMPTS].store.add(
        owner, name, new, is_new=is_new, description=description, may_promote=may_promote(request),
        by=actor_of(request), idem_key=idem_key, idem_body=idem_body,
    )  # fmt: skip
    request.app[PROMPTS].forget(owner, name)
    view = view_of(await own_head(request, owner, name), made, None)
    headers = {"Location": f"/api/prompts/{name.replace('/', '%2F')}?version={made.version}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(view, status=201, headers=headers)


async def list_prompts(request: web.Request) -> web.Response:
    """GET /api/prompts."""
    parameters = query(request, ("limit", "after", "prefix", "search", "label", "shared"))
    limit, after = page_size(parameters), parameters.get("after")
    store = request.app[PROMPTS].store
    owners = [owner_of(request, parameters.get("shared"))]
    if owners[0] != SHARED:
        owners.append(SHARED)
    listed: dict[str, tuple[int, str]] = {}
    for owner in reversed(owners):  # one's own goes over the shared one
        listed |= {name: (at_ms, owner) for name, at_ms in await store.names(owner)}
    prefix, wanted = parameters.get("prefix", ""), parameters.get("search", "").casefold()
    order = sorted((name for name in listed if name.startswith(prefix)), key=lambda name: (-listed[name][0], name))
    if after is not None:
        if after not in listed:
            raise invalid("?after", "is no cursor of this list")
        place = (-listed[after][0], after)
        order = [name for name in order if (-listed[name][0], name) > place]
    rows: list[PromptRow] = []
    for name in order:
        head = await store.head(listed[name][1], name)
        if head is None or head.is_archived or not _fits(head, wanted, parameters.get("label")):
            continue
        if len(rows) == limit:
            return page_answer(request, rows, rows[-1].name)
        rows.append(_row(head))
    return page_answer(request, rows, None)


def _fits(head: Head, wanted: str, label: str | None) -> bool:
    if label is not None and label not in head.labels:
        return False
    return not wanted or wanted in head.name.casefold() or wanted in (head.description or "").casefold()


def _row(head: Head) -> PromptRow:
    return PromptRow(
        name=head.name,
        description=head.description,
        shared=head.owner == SHARED,
        latest_version=head.versions,
        labels=sorted(head.labels),
        label_versions={name: head.labels[name].version for name in sorted(head.labels)},
        created_at=rfc3339(head.created_ms),
        updated_at=rfc3339(head.updated_ms),
    )


async def show(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}."""
    parameters = query(request, ("label", "version", "shared"))
    owner, name = owner_of(request, parameters.get("shared")), name_of(request)
    head, number, label = await _found(request, owner, name, parameters)
    view = view_of(head, await version_of(request, head, number), label)
    etag = f'"{view.sha256[:16]}-{number}"'
    if matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers={"ETag": etag})
    return answer(view, headers={"ETag": etag})


async def _found(
    request: web.Request, owner: str, name: str, parameters: dict[str, str]
) -> tuple[Head, int, str | None]:
    """Prompt, version and label that the query names; `production` where it names none. Raises RefusedError."""
    if "version" in parameters:
        if "label" in parameters:
            raise invalid("?version", "`label` and `version` exclude each other")
        number = integer(parameters, "version", 1, low=1, high=MAX_VERSION)
        return await head_of(request, owner, name), number, None
    label = parameters.get("label", PRODUCTION)
    head = await _with_label(request, owner, name, label)
    return head, head.versions if label == LATEST else head.labels[label].version, label


async def _with_label(request: web.Request, owner: str, name: str, label: str) -> Head:
    """The prompt that has the label: the owner's, else the shared one. Raises RefusedError."""
    head = await head_of(request, owner, name)
    if label == LATEST or label in head.labels:
        return head
    if head.owner != SHARED and name.startswith(BUILT_IN):
        below = await request.app[PROMPTS].store.head(SHARED, name)
        if below is not None and label in below.labels:
            return below
    known = ", ".join(sorted(head.labels)) or "none"
    raise invalid("?label", f"the prompt has no label {label!r}; it has {known}. Name a `label` or a `version`")


async def list_versions(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/versions."""
    parameters = query(request, ("limit", "after", "shared"))
    limit = page_size(parameters)
    head = await head_of(request, owner_of(request, parameters.get("shared")), name_of(request))
    first = integer(parameters, "after", head.versions + 1, low=1, high=MAX_VERSION) - 1
    numbers = list(range(min(first, head.versions), 0, -1))
    found = await request.app[PROMPTS].store.versions(head.owner, head.name, numbers[:limit])
    rows = [
        VersionRow(
            version=version.version,
            labels=head.labels_of(version.version),
            note=version.note,
            sha256=version.sha256,
            created_at=rfc3339(version.at_ms),
            created_by=version.by,
        )
        for version in found
        if version is not None
    ]
    return page_answer(request, rows, str(numbers[limit - 1]) if len(numbers) > limit else None)


async def archive(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    await request.app[PROMPTS].store.archive(owner, name, may_promote=may_promote(request), by=actor_of(request))
    request.app[PROMPTS].forget(owner, name)
    return web.Response(status=204)


# -- labels -------------------------------------------------------------------------------------------------------


def _experiment_of(head: Head, label: str) -> str | None:
    raw = head.experiments.get(label)
    return None if raw is None else msgspec.json.decode(raw, type=Experiment).id


async def list_labels(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/labels."""
    parameters = query(request, ("shared",))
    head = await head_of(request, owner_of(request, parameters.get("shared")), name_of(request))
    rows = [label_view(name, head.labels[name], _experiment_of(head, name)) for name in sorted(head.labels)]
    return page_answer(request, rows, None)


async def show_label(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/labels/{label}."""
    parameters = query(request, ("shared",))
    head = await head_of(request, owner_of(request, parameters.get("shared")), name_of(request))
    label = label_of(request)
    if label not in head.labels:
        raise RefusedError("not_found", f"The prompt {head.name!r} has no label {label!r}.")
    return _label_answer(request, head, label)


def _label_answer(request: web.Request, head: Head, label: str) -> web.Response:
    etag = f'"{head.labels[label].rev}"'
    if request.method == "GET" and matches(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers={"ETag": etag})
    return answer(label_view(label, head.labels[label], _experiment_of(head, label)), headers={"ETag": etag})


def _expected(request: web.Request) -> str | None:
    """What the label must be for the change: its `rev`, `*`, `-` for none, or None. Raises RefusedError."""
    given, none = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if none is not None:
        if none.strip() != "*" or given is not None:
            raise invalid("If-None-Match", "only `*` has a meaning here, and not beside If-Match")
        return "-"
    if given is None or given.strip() == "*":
        return None if given is None else "*"
    return given.strip().removeprefix("W/").strip('"') or "?"


async def move_label(request: web.Request) -> web.Response:
    """PUT /api/prompts/{name}/labels/{label}."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    label, (move, _) = label_of(request), await read_json(request, LabelMove)
    if label == LATEST:
        raise invalid("label", f"`{LATEST}` is always the newest version; it cannot be set")
    await request.app[PROMPTS].store.move_label(
        owner, name, label, move, expected=_expected(request), may_promote=may_promote(request), by=actor_of(request)
    )
    return await _changed_label(request, owner, name, label)


async def _changed_label(request: web.Request, owner: str, name: str, label: str) -> web.Response:
    request.app[PROMPTS].forget(owner, name)
    head = await own_head(request, owner, name)
    if label not in head.labels:
        raise RefusedError("conflict", f"The label {label!r} was removed meanwhile.")
    return _label_answer(request, head, label)


async def remove_label(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{name}/labels/{label}."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    await request.app[PROMPTS].store.remove_label(
        owner, name, label_of(request), expected=_expected(request), may_promote=may_promote(request),
        by=actor_of(request),
    )  # fmt: skip
    request.app[PROMPTS].forget(owner, name)
    return web.Response(status=204)


async def roll_back(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/rollback."""
    owner, name = owner_of(request, query(request, ("shared",)).get("shared")), name_of(request)
    wanted, _ = await read_json(request, Rollback)
    await request.app[PROMPTS].store.roll_back(
        owner, name, wanted.label, may_promote=may_promote(request), by=actor_of(request), note=wanted.note
    )
    return await _changed_label(request, owner, name, wanted.label)


# -- looking closer -----------------------------------------------------------------------------------------------


async def diff(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/diff."""
    parameters = query(request, ("from", "to", "shared"))
    owner, name = owner_of(request, parameters.get("shared")), name_of(request)
    head = await head_of(request, owner, name)
    old, new = [await version_of(request, head, _number(head, parameters, end)) for end in ("from", "to")]
    messages = await asyncio.to_thread(diff_messages, old, new)
    members = diff_members(old, new)
    return answer(
        PromptDiff(
            name=name,
            from_version=old.version,
            to_version=new.version,
            identical=old.sha256 == new.sha256,
            messages=messages,
            members=members,
        )
    )


def _number(head: Head, parameters: dict[str, str], end: str) -> int:
    """A version by its number or by a label; by default the one before the newest, and the newest."""
    text = parameters.get(end)
    if text is None:
        return max(1, head.versions - 1) if end == "from" else head.versions
    if text.isascii() and text.isdigit():
        return integer(parameters, end, 1, low=1, high=MAX_VERSION)
    if text == LATEST:
        return head.versions
    if text not in head.labels:
        raise invalid(f"?{end}", "must be the number of a version, or a label")
    return head.labels[text].version


async def history(request: web.Request) -> web.Response:
    """GET /api/prompts/{name}/audit."""
    parameters = query(request, ("limit", "after", "shared"))
    owner, name = owner_of(request, parameters.get("shared")), name_of(request)
    after = parameters.get("after")
    if after is not None and not _CURSOR.fullmatch(after):
        raise invalid("?after", "is no cursor of this list")
    head = await head_of(request, owner, name)
    rows, cursor = await request.app[PROMPTS].store.history(head.owner, name, limit=page_size(parameters), after=after)
    return page_answer(request, rows, cursor)


async def render_prompt(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/render."""
    owner, name = owner_of_read(request), name_of(request)
    wanted, _ = await read_json(request, RenderRequest)
    prompts = request.app[PROMPTS]
    await head_of(request, owner, name)
    try:
        pin = await prompts.resolve(
            owner, name, version=wanted.version, label=wanted.label, user=wanted.user, is_job=False
        )
    except BadPromptError as error:
        raise refused(error.problems, "$") from None
    content = await prompts.content(pin)
    messages: list[dict[str, Any]] = [dict(message) for message in render(content, wanted.variables)]
    model = wanted.model or content.model or request.app[SETTINGS].default_model
    shown = Rendered(
        name=name,
        version=pin.version,
        label=pin.label,
        messages=messages,
        model=model,
        tokens=await request.app[COUNTER].chat(model, messages),
    )
    if pin.experiment is not None and pin.arm is not None:
        shown = msgspec.structs.replace(shown, experiment=ExperimentArm(id=pin.experiment, arm=pin.arm))
    return answer(shown)


def owner_of_read(request: web.Request) -> str:
    """Whose prompts are meant by a call that changes nothing, whatever its method."""
    return SHARED if query(request, ("shared",)).get("shared") == "true" else request[PRINCIPAL].tenant


def refused(problems: Sequence[tuple[str, str]], root: str) -> RefusedError:
    """The refusal of a reference to a prompt, its paths below `root`."""
    found = tuple((f"{root}{path}", text) for path, text in problems)
    return RefusedError("invalid_request", "; ".join(f"{path}: {text}" for path, text in found), errors=found)
