"""What the calls about prompts share: which prompt is meant, who may change it, and which version a label names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from api.auth import require
from api.keys import PRINCIPAL, PROMPTS, REDIS_KEYS, REQUEST_ID
from api.wire import digest_of, idempotency, invalid
from shared.audit import Actor
from shared.errors import RefusedError
from shared.prompts import (
    BUILT_IN,
    LATEST,
    MAX_VERSIONS,
    PRODUCTION,
    SHARED,
    LabelName,
    NewVersion,
    PromptName,
    problems_of,
)
from shared.stores.prompt_records import Head
from shared.stores.prompt_refusals import no_prompt
from shared.stores.prompts import Change, Precondition
from shared.tenants import Scope

T = TypeVar("T")

INLINE_CHARACTERS: Final = 32_768  # of templates and values that are read on the event loop: about a millisecond
MAX_NAMED: Final = 50  # errors of one body that are told


async def off_loop(characters: int, work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, in a thread when it is about many characters."""
    if characters <= INLINE_CHARACTERS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def length_of(new: Any) -> int:
    """The characters of a version's messages."""
    return sum(len(message.content) for message in new.messages)


def is_shared(parameters: dict[str, str]) -> bool:
    """Whether `?shared=true` was sent. Raises RefusedError."""
    text = parameters.get("shared", "false")
    if text not in ("true", "false"):
        raise invalid("?shared", "must be true or false")
    return text == "true"


def owner_to_change(request: web.Request, parameters: dict[str, str]) -> str:
    """Whose prompt a change is about: the caller's, or with `?shared=true` the shared one. Raises RefusedError
    `scope_missing`."""
    if not is_shared(parameters):
        return request[PRINCIPAL].tenant
    require(request[PRINCIPAL], Scope.ADMIN)
    return SHARED


def name_of(request: web.Request) -> str:
    """The prompt's name in the path. Raises RefusedError `not_found` for what can be none."""
    return _as(PromptName, request.match_info["name"], no_prompt(request.match_info["name"]))


def label_in_path(request: web.Request) -> str:
    """The label in the path. Raises RefusedError `not_found` for what can be none."""
    label = request.match_info["label"]
    return _as(LabelName, label, RefusedError("not_found", f"There can be no label {label[:64]!r}."))


def settable(label: str, path: str) -> str:
    """A label that can be set. Raises RefusedError `invalid_request`."""
    if label == LATEST:
        raise invalid(path, f"{LATEST!r} is always the newest version, and cannot be set")
    sentence = "a label has 1 to 64 of a-z, 0-9, `.`, `_` and `-`, and not digits alone"
    return _as(LabelName, label, invalid(path, sentence))


def _as(kind: Any, text: str, refusal: RefusedError) -> str:
    try:
        return str(msgspec.convert(text, kind))
    except msgspec.ValidationError:
        raise refusal from None


def change_of(request: web.Request, owner: str, body: bytes | None = None) -> Change:
    """Who changes a prompt of `owner`, with the idempotency key where there is a body that it can stand for."""
    principal = request[PRINCIPAL]
    digest, body_hash = None, None
    if body is not None and idempotency(request, body)[0] is not None:
        # The same path is another prompt with `?shared=true`.
        call = f"{request.method} {request.path} {owner}"
        digest, body_hash = digest_of(call, request.headers["Idempotency-Key"], body)
    return Change(
        by=Actor(principal.key_id, principal.tenant, request[REQUEST_ID]),
        promotes=Scope.PROMOTE in principal.scopes,
        idem_key=request.app[REDIS_KEYS].idem(principal.tenant, digest) if digest else None,
        idem_body=body_hash,
    )


def precondition(request: web.Request) -> Precondition:
    """If-Match and If-None-Match about a label. A weak tag never matches (RFC 9110 13.1.1).

    Raises RefusedError `malformed_request`.
    """
    match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if none_match is not None and none_match.strip() != "*":
        raise RefusedError("malformed_request", "If-None-Match takes `*` here: the label must not exist.")
    if match is None:
        return Precondition(absent=none_match is not None)
    if match.strip() == "*":
        return Precondition(exists=True, absent=none_match is not None)
    tags = [tag.strip() for tag in match.split(",")]
    revs = [tag[1:-1] for tag in tags if len(tag) > 2 and tag[0] == tag[-1] == '"']
    return Precondition(revs=revs, absent=none_match is not None)


def is_blind(request: web.Request, owner: str) -> bool:
    """Whether the caller must not see whose keys changed a prompt: a shared one, to whoever is no administrator."""
    return owner == SHARED and Scope.ADMIN not in request[PRINCIPAL].scopes


async def candidates(request: web.Request, name: str, parameters: dict[str, str]) -> list[Head]:
    """The prompts of a name that the caller may read, the one that goes before first: its own, then the shared one.
    Raises RefusedError `not_found`."""
    owners = [SHARED] if is_shared(parameters) else [request[PRINCIPAL].tenant]
    if owners != [SHARED] and name.startswith(BUILT_IN):
        owners.append(SHARED)
    found = await request.app[PROMPTS].heads([(owner, name) for owner in owners])
    if not (heads := [head for head in found if head is not None and not head.is_archived]):
        raise no_prompt(name)
    return heads


async def prompt_to_read(request: web.Request, parameters: dict[str, str]) -> Head:
    """The prompt in the path. Raises RefusedError `not_found`."""
    return (await candidates(request, name_of(request), parameters))[0]


def choose(heads: list[Head], label: str | None, version: int | None) -> tuple[Head, int, str | None]:
    """(prompt, version, the label by which it was found): that version, or where the label points, or `production`.
    The caller's own prompt goes before the shared one if it has the label.

    Raises RefusedError `not_found`, and `invalid_request` when neither was asked for and there is no `production`.
    """
    if version is not None:
        if label is not None:
            raise invalid("label", "give either a label or a version")
        return heads[0], version, None
    wanted = label or PRODUCTION
    for head in heads:
        if (found := head.version_of(wanted)) is not None:
            return head, found, wanted
    if label is None:
        raise invalid("label", f"the prompt has no label {PRODUCTION!r}; give a label or a version")
    raise RefusedError("not_found", f"The prompt {heads[0].name!r} has no label {label[:64]!r}.")


def number_of(parameters: dict[str, str], name: str) -> int | None:
    """A version number in the query. Raises RefusedError `invalid_request`."""
    text = parameters.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MAX_VERSIONS:
        raise invalid(f"?{name}", f"must be a whole number from 1 to {MAX_VERSIONS}")
    return int(text)


async def check_new(new: NewVersion, name: str, owner: str) -> None:
    """Raises RefusedError `invalid_request` naming each path of a new version that is wrong."""
    wrong = await off_loop(length_of(new), _problems, new, name.startswith(BUILT_IN))
    if owner == SHARED and not name.startswith(BUILT_IN):
        wrong.insert(0, ("$.name", f"the shared prompts are those in {BUILT_IN!r}"))
    if wrong:
        told = wrong[:MAX_NAMED]
        detail = "; ".join(f"{path}: {text}" for path, text in told[:5])
        raise RefusedError("invalid_request", detail, errors=tuple(told))


def _problems(new: NewVersion, is_built_in: bool) -> list[tuple[str, str]]:
    wrong = problems_of(new, is_built_in=is_built_in)
    if LATEST in new.labels:
        wrong.append((f"$.labels[{new.labels.index(LATEST)}]", f"{LATEST!r} is always the newest version"))
    return wrong
