"""The store of deliveries to webhooks: what couriers take and report, and what the API lists and sends again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.clock import parse_rfc3339, rfc3339
from shared.errors import RefusedError
from shared.ids import is_id, random_part, time_part
from shared.keys import Keys
from shared.log import get_logger
from shared.redis import Redis
from shared.stores.jobs import mismatch
from shared.stores.records import RecordsStore
from shared.webhook_payload import payload
from shared.webhook_signing import new_secret
from shared.webhooks import (
    LIST_FIELDS,
    REPLAY_LIMIT,
    DeliveryDetail,
    DeliveryView,
    Due,
    Ended,
    Replay,
    Replayed,
    SecretView,
    attempts_of,
    members_of,
)

log = get_logger()

DELIVERY: Final = "dlv"  # prefix of the ids
LIST_SCAN: Final = 5_000  # deliveries that one list call looks at, at most
REPAIR_LIMIT: Final = 100
_TEST_KEPT_MS: Final = 86_400_000


class Taken(msgspec.Struct, frozen=True):
    """What a courier was given. `next_ms` is when there is more, None when nothing is known of; `unsent` deliveries
    were ended without a request: they were too old, or their URL was gone."""

    now_ms: int
    due: list[Due]
    next_ms: int | None
    unsent: int


class WebhooksStore(RecordsStore):
    """Deliveries, and the secrets that sign them. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        super().__init__(client, keys.prefix)
        self.keys = keys

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def claim(self, *, count: int, share: int, each: int, held: Mapping[str, int], lease_ms: int) -> Taken:
        """Up to `count` deliveries that are due: of one tenant so many that this process holds at most `share`, of one
        endpoint so many that `each` are under way over all workers. `held` is what this process holds, by tenant."""
        now, first, packed, unsent = await self.scripts.run(
            "hook_claim", [self.keys.hooks], count=count, share=share, each=each, held=held, lease_ms=lease_ms
        )
        now_ms, first_ms = int(now), float(first)
        next_ms = max(0, round(first_ms) - now_ms) if first_ms >= 0 else None
        return Taken(now_ms, _due(packed), next_ms, int(unsent))

    async def done(self, ended: Sequence[Ended], *, each: int) -> list[str]:
        """Notes what became of deliveries that this process was given: `ok` or `lost`. Safe to repeat; `each` as in
        `claim`."""
        states = await self.scripts.run("hook_done", [self.keys.hooks], ended=ended, each=each)
        return [state.decode() for state in states]

    async def repair(self) -> tuple[int, int]:
        """Notes the deliveries of jobs that a process ended which knows of no webhooks: how many were looked at, and
        noted."""
        looked, noted = await self.scripts.run("hook_repair", [self.keys.hooked], limit=REPAIR_LIMIT)
        return int(looked), int(noted)

    # -- the API's side ------------------------------------------------------------------------------------------

    async def listed(
        self, tenant: str, *, limit: int, after: str | None, status: str | None, job_id: str | None
    ) -> tuple[list[DeliveryView], str | None]:
        """One page, newest first, and the cursor of the next (None at the end). A page of one job's deliveries of a
        status may be short although more follow."""
        source = self.keys.deliveries(tenant, status)
        if job_id is not None:
            source = self.keys.deliveries_of_job(tenant, job_id)
        last, more, rows = await self.scripts.run(
            "hook_list",
            [source],
            tenant=tenant,
            high=f"({after}" if after is not None else "+",
            limit=limit,
            scan=LIST_SCAN,
            fields=LIST_FIELDS,
            status=status,
        )
        found = [
            {name: value.decode() for name, value in zip(LIST_FIELDS, row, strict=True) if value is not None}
            for row in rows
        ]
        return [DeliveryView(**members_of(row)) for row in found], last.decode() if more == b"1" else None

    async def show(self, tenant: str, delivery_id: str) -> DeliveryDetail:
        """A delivery. Raises RefusedError `not_found`."""
        row = await self.get(self.keys.delivery(tenant, delivery_id)) if is_id(DELIVERY, delivery_id) else None
        if row is None or "status" not in row:
            raise delivery_not_found(delivery_id)
        body = payload(
            row["type"],
            int(row["at_ms"]),
            row.get("row", ""),
            int(row.get("seq") or 0),
            int(row.get("result_bytes") or 0),
            row.get("data", ""),
        )
        return DeliveryDetail(
            **members_of(row), history=attempts_of(row.get("attempts", "")), payload=msgspec.Raw(body)
        )

    async def replay(self, tenant: str, delivery_id: str, *, idem_digest: str | None, idem_body: str | None) -> bool:
        """Sends a delivery again; whether that was an earlier request's doing. Raises RefusedError `not_found`,
        `idempotency_mismatch`."""
        if not is_id(DELIVERY, delivery_id):
            raise delivery_not_found(delivery_id)
        reply = await self._replay(tenant, "failed", idem_digest, idem_body, id=delivery_id)
        if reply[0] == b"none":
            raise delivery_not_found(delivery_id)
        return bool(reply[3] == b"1")

    async def replay_all(
        self, tenant: str, wanted: Replay, *, idem_digest: str | None, idem_body: str | None
    ) -> tuple[Replayed, bool]:
        """Sends up to REPLAY_LIMIT deliveries again, the oldest first; and whether that was an earlier request's doing.
        Raises RefusedError."""
        low = f"[{DELIVERY}_{_bound('since', wanted.since)}" if wanted.since is not None else "-"
        if wanted.after is not None:
            if not is_id(DELIVERY, wanted.after):
                raise _bad("after", "is no cursor of this call")
            low = f"({wanted.after}"
        high = f"({DELIVERY}_{_bound('until', wanted.until)}" if wanted.until is not None else "+"
        reply = await self._replay(
            tenant, wanted.status, idem_digest, idem_body, low=low, high=high, limit=REPLAY_LIMIT
        )
        following = reply[2].decode() or None
        done = Replayed(replayed=int(reply[1]), has_more=following is not None, next=following)
        return done, reply[3] == b"1"

    async def _replay(
        self, tenant: str, status: str, idem_digest: str | None, idem_body: str | None, **wanted: Any
    ) -> Any:
        reply = await self.scripts.run(
            "hook_replay",
            [self.keys.idem(tenant, idem_digest or "-"), self.keys.deliveries(tenant, status)],
            tenant=tenant,
            idem_body=idem_body if idem_digest else None,
            **wanted,
        )
        if reply[0] == b"mismatch":
            raise mismatch()
        return reply

    async def test(
        self, tenant: str, url: str, mark: str, *, keep_ms: int, idem_digest: str | None, idem_body: str | None
    ) -> tuple[str, bool]:
        """Notes a delivery of `webhook.test`: its id, and whether it was noted by an earlier request. Raises
        RefusedError."""
        reply = await self.scripts.run(
            "hook_test",
            [self.keys.idem(tenant, idem_digest or "-"), self.keys.tenant(tenant)],
            tenant=tenant,
            url=url,
            mark=mark,
            keep_ms=min(keep_ms, _TEST_KEPT_MS),
            random=random_part(),
            idem_body=idem_body if idem_digest else None,
        )
        _require_tenant(reply)
        return reply[1].decode(), reply[2] == b"1"

    async def secret(self, tenant: str) -> SecretView:
        """The tenant's secret, made now if there was none. Raises RefusedError."""
        return (await self._secret(tenant))[0]

    async def rotate(
        self,
        tenant: str,
        *,
        overlap_ms: int,
        audit: Mapping[str, Any],
        idem_digest: str | None,
        idem_body: str | None,
    ) -> tuple[SecretView, bool]:
        """A new secret; the one so far signs too for `overlap_ms`. With a key that was used: the secret as it is now.
        Raises RefusedError."""
        return await self._secret(
            tenant, idem_digest, rotate=True, overlap_ms=overlap_ms, audit=audit, idem_body=idem_body
        )

    async def _secret(
        self, tenant: str, idem_digest: str | None = None, *, idem_body: str | None = None, **wanted: Any
    ) -> tuple[SecretView, bool]:
        reply = await self.scripts.run(
            "hook_secret",
            [self.keys.hook_secret(tenant), self.keys.tenant(tenant), self.keys.idem(tenant, idem_digest or "-")],
            fresh=new_secret(),
            idem_body=idem_body if idem_digest else None,
            **wanted,
        )
        _require_tenant(reply)
        _, secret, since, until, replayed = (part.decode() for part in reply)
        view = SecretView(secret=secret, created_at=rfc3339(int(since)))
        if until:
            view = msgspec.structs.replace(view, previous_expires_at=rfc3339(int(until)))
        return view, replayed == "1"


def delivery_not_found(delivery_id: str) -> RefusedError:
    """The refusal for a delivery that does not exist (any more), or is another tenant's."""
    return RefusedError("not_found", f"There is no delivery {delivery_id[:64]!r}.")


def _require_tenant(reply: Any) -> None:
    if reply[0] == b"mismatch":
        raise mismatch()
    if reply[0] != b"ok":
        raise RefusedError("unauthenticated", "The key's tenant does not exist any more.")


def _bad(member: str, message: str) -> RefusedError:
    path = f"$.{member}"
    return RefusedError("invalid_request", f"{path}: {message}", errors=((path, message),))


def _bound(member: str, text: str) -> str:
    try:
        return time_part(parse_rfc3339(text))
    except ValueError as error:
        raise _bad(member, f"must be an RFC 3339 time: {error}") from None


_decode_due = msgspec.msgpack.Decoder(list[Due]).decode


def _due(packed: bytes) -> list[Due]:
    """Deliveries of a claim. One that cannot be read is left to its lease: nothing else suffers."""
    try:
        return _decode_due(packed)
    except msgspec.DecodeError:
        found = []
        for raw in msgspec.msgpack.decode(packed, type=list[msgspec.Raw]):
            try:
                found.append(msgspec.msgpack.decode(raw, type=Due))
            except msgspec.DecodeError as error:
                log.error("webhook.unreadable", error=str(error))
        return found
