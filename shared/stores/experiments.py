"""The store of experiments on labels of prompts, their figures, and the figures of versions by day."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from msgspec import UNSET

from shared.audit import Action, prompt_entry
from shared.errors import RefusedError
from shared.evidence import Sums
from shared.experiments import ArmSums, Ended, Experiment, ExperimentDraft, Metric, StickyBy
from shared.ids import new_id
from shared.keys import Keys
from shared.prompts import MAX_PAST, Label
from shared.redis import Redis, Scripts, redis_now_ms
from shared.stores.prompt_records import Head, decode_label
from shared.stores.prompt_refusals import refusal
from shared.stores.prompts import Change

_experiment: Final = msgspec.json.Decoder(Experiment).decode
_SUMS: Final = ("n", "x", "u", "ss", "sn", "nn")


class ExperimentsStore:
    """Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._scripts = Scripts(client, keys.prefix)

    async def set(
        self, head: Head, label: str, draft: ExperimentDraft, change: Change, *, expected: str | None = None
    ) -> Experiment:
        """Begins an experiment on a label, or changes the one that runs there. `expected`: its id and revision with a
        blank between, `""` for none. Raises RefusedError `invalid_request`, `conflict`, `precondition_failed`,
        `scope_missing`, `not_found`."""
        known = running(head, label)
        now_ms = await redis_now_ms(self._client)
        details: dict[str, tuple[Any, Any]]
        if known is None:
            wanted = _begun(head, label, draft, now_ms, change.by.key)
            action, details = Action.EXPERIMENT_STARTED, {"experiment": (None, wanted)}
        else:
            wanted = _grown(known, draft)
            action, details = Action.EXPERIMENT_CHANGED, {"experiment": (known, wanted)}
        await self._run(
            head, label, "set", change, action, details,
            running=expected if expected is not None else ("" if known is None else f"{known.id} {known.rev}"),
            experiment=msgspec.json.encode(wanted).decode(),
            versions=[variant.version for variant in wanted.variants],
            guarded=bool(wanted.guardrails),
        )  # fmt: skip
        return wanted

    async def end(
        self,
        head: Head,
        label: str,
        act: str,
        change: Change,
        action: Action,
        *,
        why: str,
        expected: str | None = None,
        version: int | None = None,
        figures: Any = None,
    ) -> Label:
        """Ends the experiment on a label: `stop`, `promote` a version, or `roll_back` the label as well. Raises
        RefusedError as `set`."""
        known = running(head, label)
        details: dict[str, tuple[Any, Any]] = {"experiment": (known.id if known else None, None), "why": (None, why)}
        if version is not None:
            details[f"labels.{label}"] = (head.version_of(label), version)
        if figures is not None:
            details["figures"] = (None, figures)
        written = await self._run(
            head, label, act, change, action, details, running=expected, version=version,
            versions=[version] if version is not None else [], why=why,
        )  # fmt: skip
        return decode_label(written)

    async def _run(
        self,
        head: Head,
        label: str,
        act: str,
        change: Change,
        action: Action,
        details: dict[str, tuple[Any, Any]],
        **more: Any,
    ) -> bytes:
        reply = await self._scripts.run(
            "prompt_experiment",
            [
                self._keys.prompt(head.owner, head.name),
                self._keys.ended_experiments(head.owner, head.name),
                self._keys.guarded,
                self._keys.tenant(head.owner),
            ],
            owner=head.owner,
            name=head.name,
            label=label,
            act=act,
            promotes=change.promotes or None,
            audit=prompt_entry(change.by, head.owner, head.name),
            action=action.value,
            details={member: [_text(old), _text(new)] for member, (old, new) in details.items()},
            most_past=MAX_PAST,
            **more,
        )
        match [part.decode() for part in reply]:
            case ["ok", _]:
                written: bytes = reply[1]
                return written
            case ["no_version", count]:
                path, message = (
                    "$.version" if act == "promote" else "$.variants",
                    f"the prompt has the versions 1 to {count}",
                )
                raise RefusedError("invalid_request", f"{path}: {message}", errors=((path, message),))
            case ["no_label"]:
                raise RefusedError("not_found", f"The prompt {head.name!r} has no label {label!r}.")
            case ["none_running"]:
                raise RefusedError("not_found", f"No experiment runs on the label {label!r}.")
            case ["stale"]:
                raise RefusedError("precondition_failed", "The experiment is not what was expected: read it again.")
            case other:
                raise refusal(head.owner, head.name, other)

    async def sums(self, owner: str, experiment: Experiment) -> list[ArmSums]:
        """The sums of its arms, in their order."""
        flat = await self._client.pipe.execute("HGETALL", self._keys.arms(owner, experiment.id))
        row = {name.decode(): float(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        return [
            ArmSums(
                int(row.get(f"{arm}|assigned", 0)),
                {
                    metric: Sums(*(row.get(f"{arm}|{metric.value}|{name}", 0.0) for name in _SUMS))
                    for metric in Metric
                    if f"{arm}|{metric.value}|n" in row
                },
            )
            for arm in range(len(experiment.variants))
        ]

    async def ended(self, head: Head, *, most: int = 100) -> list[Ended]:
        """Experiments on labels of a prompt that have ended, newest first, at most a hundred."""
        key = self._keys.ended_experiments(head.owner, head.name)
        rows = await self._client.pipe.execute("LRANGE", key, 0, most - 1)
        return [msgspec.json.decode(row, type=Ended) for row in rows]

    async def guarded(self) -> list[tuple[str, str, str]]:
        """Owner, prompt and label of each running experiment that has guardrails."""
        members = await self._client.pipe.execute("SMEMBERS", self._keys.guarded)
        return [(owner, name, label) for owner, name, label in (member.decode().split(" ") for member in members)]

    async def days(self, tenant: str, name: str, first: str, last: str) -> list[tuple[str, dict[str, int]]]:
        """The figures of a prompt's versions, by day (`YYYYMMDD`) from first to last."""
        days = await self._client.pipe.execute("ZRANGEBYSCORE", self._keys.prompt_days(tenant, name), first, last)
        found = []
        for raw in days:
            flat = await self._client.pipe.execute("HGETALL", self._keys.prompt_figures(tenant, name, raw.decode()))
            row = {field.decode(): int(value) for field, value in zip(flat[::2], flat[1::2], strict=True)}
            found.append((raw.decode(), row))
        return found


def running(head: Head, label: str) -> Experiment | None:
    """The experiment that runs on a label."""
    raw = head.experiments.get(label)
    return None if raw is None else _experiment(raw)


def _begun(head: Head, label: str, draft: ExperimentDraft, now_ms: int, by: str) -> Experiment:
    """A new experiment; the control is the variant that the label points at, or else the first."""
    versions = [variant.version for variant in draft.variants]
    of_label = head.labels[label].version if label in head.labels else 0
    return Experiment(
        id=new_id("exp", now_ms),
        label=label,
        salt=secrets.token_hex(16),
        variants=draft.variants,
        sticky_by=draft.sticky_by or StickyBy.USER,
        coverage=1 if draft.coverage is UNSET else draft.coverage,
        guardrails=draft.guardrails or [],
        control=versions.index(of_label) if of_label in versions else 0,
        started_ms=now_ms,
        by=by,
        note=draft.note or None,
    )


def _grown(known: Experiment, draft: ExperimentDraft) -> Experiment:
    """The experiment with another coverage, guardrails or note. Raises RefusedError `conflict` for what would move
    somebody who is in."""
    coverage = known.coverage if draft.coverage is UNSET else draft.coverage
    if draft.variants != known.variants or (draft.sticky_by or known.sticky_by) is not known.sticky_by:
        raise RefusedError(
            "conflict", "An experiment runs on this label; with other variants it would be another one: stop it first."
        )
    if coverage < known.coverage:
        raise RefusedError(
            "conflict",
            f"The coverage is {known.coverage:g} and only grows, so that nobody who is in is moved; stop it instead.",
        )
    return msgspec.structs.replace(
        known,
        coverage=coverage,
        guardrails=known.guardrails if draft.guardrails is UNSET else draft.guardrails,
        note=known.note if draft.note is UNSET else draft.note,
        rev=known.rev + 1,
    )


def _text(value: Any) -> str | bool:
    """A value of an audit entry as JSON; False for none."""
    return msgspec.json.encode(value).decode() if value is not None else False
