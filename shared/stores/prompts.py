"""The store of prompts: immutable versions, labels that point at them, and the defaults that are shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.audit import SYSTEM, Actor, prompt_entry
from shared.errors import RefusedError
from shared.keys import Keys
from shared.prompts import (
    MAX_ARCHIVED,
    MAX_LABELS,
    MAX_PAST,
    MAX_PROMPTS,
    MAX_VERSIONS,
    SHARED,
    Content,
    Label,
    NewPrompt,
    NewVersion,
    Version,
    canonical,
    content_of,
    digest,
)
from shared.redis import Redis, Scripts
from shared.stores.prompt_records import Head, decode_label, head_of, version_of
from shared.stores.prompt_refusals import refusal, stale

_BOUNDS: Final = {
    "most_prompts": MAX_PROMPTS,
    "most_archived": MAX_ARCHIVED,
    "most_versions": MAX_VERSIONS,
    "most_labels": MAX_LABELS,
    "most_past": MAX_PAST,
}
SEED_NOTE: Final = "shipped with Errand"


class Change(msgspec.Struct, frozen=True):
    """Who changes a prompt: `promotes` says whether protected labels may be changed. The idempotency key's name in
    Redis and the hash of the body, where a key was sent."""

    by: Actor
    promotes: bool = False
    idem_key: str | None = None
    idem_body: str | None = None


class Added(msgspec.Struct, frozen=True):
    """A version that was made; when replayed, all is as it was the first time."""

    version: int
    at_ms: int
    by: str
    description: str | None
    replayed: bool


class Precondition(msgspec.Struct, frozen=True):
    """What a label must be: of one of these `revs` (None: any), there (`exists`), or not there (`absent`)."""

    revs: list[str] | None = None
    exists: bool = False
    absent: bool = False


ANY: Final = Precondition()


class PromptsStore:
    """Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client, keys.prefix)

    # -- reads ---------------------------------------------------------------------------------------------------

    async def head(self, owner: str, name: str) -> Head | None:
        """A prompt without what its versions say; also one that was archived. None when there never was one."""
        flat = await self._client.pipe.execute("HGETALL", self._keys.prompt(owner, name))
        return head_of(owner, name, dict(zip(flat[::2], flat[1::2], strict=True)))

    async def heads(self, prompts: Sequence[tuple[str, str]]) -> list[Head | None]:
        """The same of several (owner, name)."""
        async with self._client.pipeline(transaction=False) as pipe:
            for owner, name in prompts:
                pipe.hgetall(self._keys.prompt(owner, name))
            found = await pipe.execute()
        return [head_of(owner, name, raw) for (owner, name), raw in zip(prompts, found, strict=True)]

    async def names(self, owner: str) -> list[tuple[int, str]]:
        """(when it was created in ms, name) of all prompts of an owner that are not archived, newest first."""
        raw: Any = await self._client.zrevrangebyscore(self._keys.prompts(owner), "+inf", 0, withscores=True)
        return [(int(score), name.decode()) for name, score in raw]

    async def version(self, owner: str, name: str, number: int) -> Version | None:
        """A version, also of a prompt that was archived; None when there is none."""
        return (await self.versions(owner, name, [number])).get(number)

    async def versions(self, owner: str, name: str, numbers: Sequence[int]) -> dict[int, Version]:
        """Those of these versions that there are, by number."""
        if not numbers:
            return {}
        fields = [field for number in numbers for field in (f"v:{number}", f"m:{number}")]
        raw = await self._hmget(self._keys.prompt_versions(owner, name), fields)
        return {
            number: version_of(number, content, beside)
            for number, content, beside in zip(numbers, raw[::2], raw[1::2], strict=True)
            if content is not None
        }

    async def besides(self, owner: str, name: str, numbers: Sequence[int]) -> list[bytes]:
        """What stands beside these versions (JSON of prompt_records.Beside), which must exist."""
        if not numbers:
            return []
        return await self._hmget(self._keys.prompt_versions(owner, name), [f"m:{number}" for number in numbers])

    async def _hmget(self, key: str, fields: list[str]) -> list[Any]:
        # On a connection of its own: a version may be large, and others wait behind it on the shared one.
        found: list[Any] = await self._client.hmget(key, fields)  # type: ignore[misc]  # redis-py types both worlds
        return found

    # -- changes -------------------------------------------------------------------------------------------------

    async def add(self, owner: str, name: str, new: NewVersion, change: Change) -> Added:
        """A new prompt (NewPrompt), or the next version of one; its labels point at it at once, or nothing is done.

        Raises RefusedError `not_found`, `conflict`, `scope_missing` (a protected label), `idempotency_mismatch`.
        """
        content = content_of(new)
        match await self._run(
            "prompt_add",
            owner,
            name,
            change,
            [
                self._keys.prompt(owner, name),
                self._keys.prompt_versions(owner, name),
                self._keys.prompts(owner),
            ],
            creates=isinstance(new, NewPrompt),
            description=new.description if isinstance(new, NewPrompt) else None,
            content=canonical(content).decode(),
            sha256=digest(content),
            note=new.note,
            labels=list(dict.fromkeys(new.labels)),
        ):
            case ["ok", version, now_ms, by, description, replayed]:
                return Added(int(version), int(now_ms), by, description or None, replayed == "1")
            case ["exists"]:
                raise RefusedError(
                    "conflict", f"There is a prompt {name!r} already; POST …/versions adds the next version to it."
                )
            case other:
                raise refusal(owner, name, other)

    async def move_label(
        self,
        owner: str,
        name: str,
        label: str,
        version: int,
        change: Change,
        *,
        protected: bool | None = None,
        note: str | None = None,
        when: Precondition = ANY,
    ) -> Label:
        """Points a label at a version, and makes it `protected` or not (None: as it is). Where nothing changes nothing
        is written, but that a label of `system` becomes the caller's.

        Raises RefusedError `not_found`, `invalid_request` (there is no such version), `precondition_failed`, `conflict`
        and `scope_missing`.
        """
        done = await self._change_label(
            owner, name, label, change, "move", version=version, protected=protected, note=note, when=when
        )
        return decode_label(done[1])

    async def remove_label(
        self, owner: str, name: str, label: str, change: Change, *, when: Precondition = ANY
    ) -> None:
        """Removes a label. Raises as `move_label`, and `conflict` while an experiment runs on it."""
        await self._change_label(owner, name, label, change, "remove", when=when)

    async def roll_back(
        self,
        owner: str,
        name: str,
        label: str,
        change: Change,
        *,
        note: str | None = None,
        when: Precondition = ANY,
    ) -> tuple[Label, bool]:
        """Points a label at the version that it had before, and whether this answer is a replay. Raises as
        `move_label`, and `conflict` when it had none before."""
        done = await self._change_label(owner, name, label, change, "roll_back", note=note, when=when)
        return decode_label(done[1]), done[2] == "1"

    async def _change_label(
        self, owner: str, name: str, label: str, change: Change, act: str, *, when: Precondition, **more: Any
    ) -> list[str]:
        reply = await self._run(
            "prompt_label",
            owner,
            name,
            change,
            [self._keys.prompt(owner, name)],
            label=label,
            act=act,
            revs=when.revs,
            must_exist=when.exists or None,
            must_not_exist=when.absent or None,
            **more,
        )
        match reply:
            case ["ok", *_]:
                return reply
            case ["no_label"]:
                raise RefusedError("not_found", f"The prompt {name!r} has no label {label!r}.")
            case ["no_version", count]:
                sentence = f"the prompt has the versions 1 to {count}"
                raise RefusedError("invalid_request", f"$.version: {sentence}", errors=(("$.version", sentence),))
            case ["stale", text]:
                raise stale(label, decode_label(text) if text else None)
            case ["nothing"]:
                raise RefusedError(
                    "conflict", f"The label {label!r} had no version before: there is nothing to restore."
                )
            case other:
                raise refusal(owner, name, other)

    async def archive(self, owner: str, name: str, change: Change) -> None:
        """Takes a prompt out of the lists, and its labels away; versions stay for pinned jobs, and a prompt of the same
        name goes on with the next number. Raises RefusedError `not_found`, `conflict`, `scope_missing`."""
        reply = await self._run(
            "prompt_archive", owner, name, change, [self._keys.prompt(owner, name), self._keys.prompts(owner)]
        )
        if reply != ["ok"]:
            raise refusal(owner, name, reply)

    async def seed(self, defaults: Mapping[str, Content]) -> list[str]:
        """The shipped defaults of the shared prompts, by name: what has a text that no version has yet becomes the next
        version, and `production` moves to it if `system` moved it last. The names of those that were added."""
        added = []
        for name, content in defaults.items():
            outcome = await self._scripts.run(
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
                note=SEED_NOTE,
                audit=prompt_entry(SYSTEM, SHARED, name),
                **_BOUNDS,
            )
            if outcome in (b"added", b"moved"):
                added.append(name)
        return added

    async def _run(
        self, script: str, owner: str, name: str, change: Change, keys: Sequence[str], **arguments: Any
    ) -> list[str]:
        idem = [] if script == "prompt_archive" else [change.idem_key or self._keys.prompts(owner) + ":-"]
        reply = await self._scripts.run(
            script,
            [*keys, *idem, self._keys.tenant(owner)],
            owner=owner,
            name=name,
            promotes=change.promotes or None,
            audit=prompt_entry(change.by, owner, name),
            idem_body=change.idem_body if change.idem_key else None,
            **arguments,
            **_BOUNDS,
        )
        return [part.decode() for part in reply]
