"""The store of a job's events and journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shared.errors import LeaseLostError
from shared.events import Event, NewEvent, from_log
from shared.keys import Keys
from shared.redis import Redis, Scripts, shielded
from shared.stores.jobs import Claimed


class CallUsage(msgspec.Struct, frozen=True):
    """Tokens of one model call; `estimated` when the provider did not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    embedding_tokens: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """All tokens of the call."""
        return self.input_tokens + self.output_tokens + self.embedding_tokens


class EventsStore:
    """Reads and fenced writes of logs and journals. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.scripts = Scripts(client, keys.prefix)

    async def read(self, job_id: str, *, after: int, limit: int = 500) -> list[Event]:
        """Events with a number above `after`, oldest first, at most `limit`."""
        start = f"({after}-0" if after else "-"
        entries: Any = await shielded(self.client.xrange(self.keys.log(job_id), start, "+", limit))
        return [from_log(entry_id, fields) for entry_id, fields in entries]

    async def append(
        self,
        claimed: Claimed,
        worker: str,
        batch: int,
        events: Sequence[NewEvent],
        progress: dict[str, Any] | None = None,
    ) -> int:
        """Adds events of the running attempt; the number of the last. The same `batch` number again (a repeat after
        a lost answer) writes nothing. Raises LeaseLostError."""
        seq = await self.scripts.run(
            "append",
            [self.keys.job(claimed.job_id), self.keys.log(claimed.job_id)],
            job=claimed.job_id,
            worker=worker,
            lease=claimed.lease,
            batch=batch,
            events=[(event.type, msgspec.json.encode(event.data).decode()) for event in events],
            progress=msgspec.json.encode(progress).decode() if progress is not None else None,
        )
        if int(seq) < 0:
            raise LeaseLostError(claimed.job_id)
        return int(seq)

    async def begin_step(
        self, claimed: Claimed, worker: str, *, step: str, label: str, call: str, tokens: int
    ) -> bytes | None:
        """The journaled result of a step, or None after it was marked as started. `tokens` estimates its input.

        Raises LeaseLostError.
        """
        reply = await self.scripts.run(
            "begin_step",
            [
                self.keys.job(claimed.job_id),
                self.keys.journal(claimed.job_id),
                self.keys.open_calls(claimed.job_id),
            ],
            job=claimed.job_id,
            worker=worker,
            lease=claimed.lease,
            step=step,
            label=label,
            call=call,
            tokens=tokens,
        )
        if reply[0] == b"lost":
            raise LeaseLostError(claimed.job_id)
        return reply[1] if reply[0] == b"done" else None

    async def finish_step(
        self,
        claimed: Claimed,
        worker: str,
        *,
        step: str,
        label: str,
        call: str,
        usage: CallUsage,
        result: bytes | None,
        wasted: bool = False,
    ) -> None:
        """Books a call and, with a result, journals it; once per `call` id. Raises LeaseLostError after booking."""
        reply = await self.scripts.run(
            "finish_step",
            [
                self.keys.job(claimed.job_id),
                self.keys.journal(claimed.job_id),
                self.keys.open_calls(claimed.job_id),
            ],
            job=claimed.job_id,
            worker=worker,
            lease=claimed.lease,
            step=step,
            label=label,
            call=call,
            result=result.decode() if result is not None else None,
            tok_in=usage.input_tokens,
            tok_out=usage.output_tokens,
            tok_embed=usage.embedding_tokens,
            estimated=usage.estimated,
            wasted=wasted,
        )
        if int(reply) == 0:
            raise LeaseLostError(claimed.job_id)
