"""The audit log: who changed which tenant, key or prompt, when, and from what to what."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from shared.clock import rfc3339
from shared.jobs import Output


class Action(StrEnum):
    """What was done."""

    TENANT_CREATED = "tenant.created"
    TENANT_CHANGED = "tenant.changed"
    TENANT_DELETED = "tenant.deleted"  # the erasure begins; its end is tenant.erased
    TENANT_ERASED = "tenant.erased"
    KEY_CREATED = "key.created"
    KEY_CHANGED = "key.changed"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    PROMPT_CREATED = "prompt.created"
    VERSION_ADDED = "prompt.version_added"
    LABEL_MOVED = "prompt.label_moved"
    LABEL_PROTECTED = "prompt.label_protected"  # or made unprotected
    LABEL_REMOVED = "prompt.label_removed"
    ROLLED_BACK = "prompt.rolled_back"
    PROMPT_ARCHIVED = "prompt.archived"
    EXPERIMENT_STARTED = "prompt.experiment_started"
    EXPERIMENT_CHANGED = "prompt.experiment_changed"
    EXPERIMENT_STOPPED = "prompt.experiment_stopped"
    EXPERIMENT_PROMOTED = "prompt.experiment_promoted"
    WEBHOOK_SECRET_ROTATED = "webhook.secret_rotated"  # noqa: S105 - the name of an action
    GUARDRAIL_TRIPPED = "prompt.guardrail_tripped"


class Actor(msgspec.Struct, frozen=True):
    """Who does it: the id and tenant of the key that asks, and the request's id."""

    key: str
    tenant: str | None = None
    request: str | None = None


SYSTEM: Final = Actor("system")  # a process by itself, at its start

Changes = Mapping[str, tuple[Any, Any]]
"""Member by member, old and new value; None where there was or is none."""


class AuditEntry(Output, frozen=True):
    """One change. `actor` is a key's id, or `system`. `resource` is the name of the prompt that was changed; the shared
    prompts are those of the tenant `shared`. `details` has old and new value of each member that changed;
    members of limits by their path, such as `limits.perUser.tokensPerMinute`."""

    id: str
    at: str
    actor: str
    actor_tenant_id: str | None
    request_id: str | None
    action: str
    tenant_id: str
    key_id: str | None
    resource: str | None
    details: dict[str, Any]


def entry(by: Actor, action: Action, tenant: str, key: str | None = None, changes: Changes | None = None) -> Any:
    """What a script takes as its argument `audit` (lib/audit.lua)."""
    details = {
        member: {name: value for name, value in (("old", old), ("new", new)) if value is not None}
        for member, (old, new) in (changes or {}).items()
    }
    whole = {
        "actor": by.key,
        "actor_tenant": by.tenant,
        "request": by.request,
        "action": action.value,
        "tenant": tenant,
        "key": key,
        "details": msgspec.json.encode(details).decode(),
    }
    return {name: value for name, value in whole.items() if value is not None}


def prompt_entry(by: Actor, owner: str, name: str) -> Any:
    """The same for scripts that change prompts: they say themselves what was done (lib/prompts.lua)."""
    whole = {"actor": by.key, "actor_tenant": by.tenant, "request": by.request, "tenant": owner, "resource": name}
    return {member: value for member, value in whole.items() if value is not None}


def told(**members: Any) -> Changes:
    """What an entry says of something new: the members that say something."""
    built = {name: msgspec.to_builtins(value) for name, value in members.items()}
    return {name: (None, value) for name, value in built.items() if value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two JSON objects, by path; lists are compared whole."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(differences(before, after, f"{path}{name}."))
        elif before != after:
            found[f"{path}{name}"] = (before, after)
    return found


def audit_entry(identifier: str, row: Mapping[str, str]) -> AuditEntry:
    """An entry of the stream as the API shows it."""
    return AuditEntry(
        id=identifier,
        at=rfc3339(int(row["at"])),
        actor=row.get("actor", SYSTEM.key),
        actor_tenant_id=row.get("actor_tenant"),
        request_id=row.get("request"),
        action=row["action"],
        tenant_id=row["tenant"],
        key_id=row.get("key"),
        resource=row.get("resource"),
        details=msgspec.json.decode(row.get("details", "{}")),
    )
