"""The store of prompts: versions, labels and their history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.audit import SYSTEM, Action, Actor, AuditEntry, audit_entry, entry
from shared.clock import rfc3339
from shared.errors import RefusedError
from shared.keys import Keys
from shared.prompts import (
    PRODUCTION,
    SHARED,
    Content,
    Label,
    LabelMove,
    LabelView,
    NewVersion,
    Version,
    canonical,
    content_of,
    digest,
)
from shared.redis import Redis, Scripts

MOST_PROMPTS: Final = 10_000  # of an owner
MOST_VERSIONS: Final = 10_000  # of a prompt
MOST_LABELS: Final = 100

_version: Final = msgspec.json.Decoder(Version).decode
_label: Final = msgspec.json.Decoder(Label).decode


class Head(msgspec.Struct, frozen=True):
    """What may change of a prompt. `experiments` are those that run, by label, as JSON."""

    owner: str
    name: str
    description: str | None
    versions: int
    labels: dict[str, Label]
    experiments: dict[str, bytes]
    created_ms: int
    updated_ms: int
    is_archived: bool

    def labels_of(self, version: int) -> list[str]:
        """The labels that point at a version."""
        return sorted(name for name, label in self.labels.items() if label.version == version)


class PromptsStore:
    """Prompts of tenants, and the shared ones. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client, keys.prefix)

    # -- reads ---------------------------------------------------------------------------------------------------

    async def head(self, owner: str, name: str) -> Head | None:
        """Labels and experiments of a prompt, also of one that is archived; None when there never was one."""
        flat = await self._client.pipe.execute("HGETALL", self._keys.prompt(owner, name))
        return _head(owner, name, dict(zip(flat[::2], flat[1::2], strict=True)))

    async def names(self, owner: str) -> list[tuple[str, int]]:
        """All prompts of an owner, newest first, and when each was made, ms."""
        flat = await self._client.pipe.execute(
            "ZREVRANGEBYSCORE", self._keys.prompts(owner), "+inf", "-inf", "WITHSCORES"
        )
        return [(name.decode(), int(float(at))) for name, at in zip(flat[::2], flat[1::2], strict=True)]

    async def version(self, owner: str, name: str, number: int) -> Version | None:
        """A version; None when there is none."""
        (found,) = await self.versions(owner, name, [number])
        return found

    async def versions(self, owner: str, name: str, numbers: Sequence[int]) -> list[Version | None]:
        """Some versions, in this order."""
        if not numbers:
            return []
        rows = await self._client.pipe.execute("HMGET", self._keys.prompt_versions(owner, name), *numbers)
        return [None if row is None else _version(row) for row in rows]

    async def history(
        self, owner: str, name: str, *, limit: int, after: str | None
    ) -> tuple[list[AuditEntry], str | None]:
        """A page of the prompt's own audit log, newest first, and the cursor of the next."""
        entries = await self._client.pipe.execute(
            "XREVRANGE", self._keys.prompt_history(owner, name), f"({after}" if after else "+", "-", "COUNT", limit + 1
        )
        rows = []
        for raw_id, flat in entries[:limit]:
            fields = {key.decode(): value.decode() for key, value in zip(flat[::2], flat[1::2], strict=True)}
            rows.append(audit_entry(raw_id.decode(), fields))
        return rows, rows[-1].id if len(entries) > limit else None

    # -- changes -------------------------------------------------------------------------------------------------

    async def add(
        self,
        owner: str,
        name: str,
        new: NewVersion,
        *,
        is_new: bool,
        description: str | None = None,
        may_promote: bool,
        by: Actor,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[Version, bool]:
        """A new prompt or its next version, and whether the answer is a replay. Raises RefusedError `conflict` (there
        is one already, or too many), `not_found`, `scope_missing` (a protected label), `idempotency_mismatch`."""
        content = content_of(new)
        action = Action.PROMPT_CREATED if is_new else Action.PROMPT_VERSION_ADDED
        reply = await self._scripts.run(
            "prompt_add",
            [
                self._keys.prompt(owner, name),
                self._keys.prompt_versions(owner, name),
                self._keys.prompts(owner),
                idem_key or self._keys.idem(owner, "-"),
            ],
            owner=owner,
            name=name,
            is_new=is_new,
            description=description,
            content=canonical(content).decode(),
            sha256=digest(content),
            note=new.note,
            labels=list(dict.fromkeys(new.labels)),
            by=by.key,
            may_promote=may_promote,
            most_prompts=MOST_PROMPTS,
            most_versions=MOST_VERSIONS,
            most_labels=MOST_LABELS,
            audit=entry(by, action, owner, prompt=name),
            idem_body=idem_body if idem_key else None,
        )
        match [part.decode() for part in reply]:
            case ["ok", number, _, replayed]:
                made = await self.version(owner, name, int(number))
                if made is None:
                    raise no_prompt(name)
                return made, replayed == "1"
            case ["exists"]:
                raise RefusedError(
                    "conflict", f"There is a prompt {name!r} already; add a version to it at …/versions."
                )
            case ["protected", label]:
                raise protected(label)
            case ["full", what]:
                raise RefusedError("conflict", f"There are as many {what} as there may be.")
            case ["mismatch"]:
                raise RefusedError(
                    "idempotency_mismatch", "This Idempotency-Key was used with another body within 24 hours."
                )
        raise no_prompt(name)

    async def move_label(
        self, owner: str, name: str, label: str, move: LabelMove, *, expected: str | None, may_promote: bool, by: Actor
    ) -> Label:
        """Points a label at a version. `expected` is its `rev`, `*` (it must be there) or `-` (it must not). Raises
        RefusedError `not_found`, `invalid_request`, `precondition_failed`, `scope_missing`, `conflict`."""
        written = await self._change_label(
            owner, name, label, "move", Action.LABEL_MOVED, expected=expected, may_promote=may_promote, by=by,
            version=move.version, protected=move.protected, note=move.note,
        )  # fmt: skip
        return _label(written)

    async def roll_back(
        self, owner: str, name: str, label: str, *, may_promote: bool, by: Actor, note: str | None = None
    ) -> Label:
        """Takes a label back to where it was before its last move. Raises as `move_label`."""
        written = await self._change_label(
            owner, name, label, "rollback", Action.LABEL_ROLLED_BACK, expected=None, may_promote=may_promote, by=by,
            note=note,
        )  # fmt: skip
        return _label(written)

    async def remove_label(
        self, owner: str, name: str, label: str, *, expected: str | None, may_promote: bool, by: Actor
    ) -> None:
        """Takes a label away. Raises as `move_label`."""
        await self._change_label(
            owner, name, label, "remove", Action.LABEL_REMOVED, expected=expected, may_promote=may_promote, by=by
        )

    async def _change_label(
        self, owner: str, name: str, label: str, what: str, action: Action, *, by: Actor, **more: Any
    ) -> bytes:
        reply = await self._scripts.run(
            "prompt_label",
            [self._keys.prompt(owner, name)],
            owner=owner,
            name=name,
            label=label,
            what=what,
            by=by.key,
            most_labels=MOST_LABELS,
            audit=entry(by, action, owner, prompt=name),
            **more,
        )
        match [part.decode() for part in reply]:
            case ["ok", _]:
                written: bytes = reply[1]
                return written
            case ["no_version", count]:
                message = f"the prompt has the versions 1 to {count}"
                raise RefusedError("invalid_request", f"$.version: {message}", errors=(("$.version", message),))
            case ["stale", rev]:
                found = f'it is "{rev}" now' if rev else "there is no such label"
                raise RefusedError("precondition_failed", f"The label {label!r} is not what was expected: {found}.")
            case ["protected"]:
                raise protected(label)
            case ["nothing_before"]:
                raise RefusedError("conflict", f"The label {label!r} has pointed at no other version before.")
            case ["full"]:
                raise RefusedError("conflict", f"The prompt has {MOST_LABELS} labels, as many as it may.")
            case ["no_label"]:
                raise RefusedError("not_found", f"The prompt {name!r} has no label {label!r}.")
        raise no_prompt(name)

    async def archive(self, owner: str, name: str, *, may_promote: bool, by: Actor) -> None:
        """Takes a prompt out of use; its versions stay for the jobs that are pinned on them. Raises RefusedError
        `not_found`, `scope_missing`."""
        reply = await self._scripts.run(
            "prompt_archive",
            [self._keys.prompt(owner, name), self._keys.prompts(owner)],
            owner=owner,
            name=name,
            may_promote=may_promote,
            audit=entry(by, Action.PROMPT_ARCHIVED, owner, prompt=name),
        )
        match [part.decode() for part in reply]:
            case ["ok"]:
                return
            case ["protected", label]:
                raise protected(label)
        raise no_prompt(name)

    async def seed(self, defaults: Mapping[str, Content]) -> None:
        """Adds the shipped defaults that no version of the shared prompts says yet. Labels that somebody has moved stay
        where they are."""
        for name, content in defaults.items():
            await self._scripts.run(
                "prompt_seed",
                [
                    self._keys.prompt(SHARED, name),
                    self._keys.prompt_versions(SHARED, name),
                    self._keys.prompts(SHARED),
                ],
                owner=SHARED,
                name=name,
                content=canonical(content).decode(),
                sha256=digest(content),
                label=PRODUCTION,
                by=SYSTEM.key,
                audit=entry(SYSTEM, Action.PROMPT_VERSION_ADDED, SHARED, prompt=name),
            )


def _head(owner: str, name: str, row: Mapping[bytes, bytes]) -> Head | None:
    if b"versions" not in row:
        return None
    description = row.get(b"description")
    return Head(
        owner=owner,
        name=name,
        description=None if description is None else description.decode(),
        versions=int(row[b"versions"]),
        labels={field[2:].decode(): _label(value) for field, value in row.items() if field.startswith(b"l:")},
        experiments={field[2:].decode(): value for field, value in row.items() if field.startswith(b"x:")},
        created_ms=int(row.get(b"created_ms", b"0")),
        updated_ms=int(row.get(b"updated_ms", b"0")),
        is_archived=b"archived_ms" in row,
    )


def label_view(name: str, label: Label, experiment: str | None) -> LabelView:
    """A label as the API shows it."""
    return LabelView(
        label=name,
        version=label.version,
        previous=label.past[-1] if label.past else None,
        protected=label.protected,
        changed_at=rfc3339(label.at_ms),
        changed_by=label.by,
        experiment=experiment,
    )


def no_prompt(name: str) -> RefusedError:
    """There is none of this name."""
    return RefusedError("not_found", f"There is no prompt {name[:128]!r}.")


def protected(label: str) -> RefusedError:
    """The label is, and the key has not the scope."""
    return RefusedError(
        "scope_missing", f"The label {label!r} is protected: this needs a key with the scope `promote`."
    )
