"""The store of a job's events and journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from shared.errors import LeaseLostError
from shared.events import Event, NewEvent, from_log
from shared.keys import Keys
from shared.redis import Redis, Scripts, as_outage
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


class Unsure(msgspec.Struct, frozen=True):
    """A step that must not be repeated unasked was begun as `call`, and it is not known how that ended."""

    call: str


class Append(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events of one attempt, as `append.lua` takes them: pairs of type and JSON object. `batch` numbers the writes of
    the lease: the same number again (a repeat after a lost answer) writes nothing. `progress` is JSON."""

    job: str
    lease: int
    batch: int
    events: list[tuple[str, str]]
    progress: str | None = None


class EventsStore:
    """Reads and fenced writes of logs and journals. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.scripts = Scripts(client, keys.prefix)

    async def read(self, job_id: str, *, after: int, limit: int = 500) -> list[Event]:
        """Events with a number above `after`, oldest first, at most `limit`."""
        start = f"({after}-0" if after else "-"
        key = self.keys.log(job_id)
        try:
            entries = await self.client.pipe.execute("XRANGE", key, start, "+", "COUNT", limit)
        except ResponseError as error:
            raise as_outage(error) from None
        return [from_log(entry_id, fields) for entry_id, fields in entries]

    async def append(self, worker: str, jobs: Sequence[Append]) -> list[int]:
        """Adds events of running attempts, all in one step; per attempt the number of its last event, or -1 when its
        lease is lost."""
        return [int(seq) for seq in await self.scripts.run("append", [], worker=worker, jobs=jobs)]

    async def append_one(
        self, claimed: Claimed, worker: str, batch: int, events: Sequence[NewEvent], progress: Any = None
    ) -> int:
        """`append` for one attempt. Raises LeaseLostError."""
        told = [(event.type, msgspec.json.encode(event.data).decode()) for event in events]
        stage = msgspec.json.encode(progress).decode() if progress is not None else None
        (seq,) = await self.append(worker, [Append(claimed.job_id, claimed.lease, batch, told, stage)])
        if seq < 0:
            raise LeaseLostError(claimed.job_id)
        return seq

    async def answer(self, claimed: Claimed, request_id: str) -> bytes | None:
        """A person's answer to a question of the job, as JSON; None when there is none yet."""
        value: bytes | None = await self.client.pipe.execute(
            "HGET", self.keys.journal(claimed.job_id), f"answer:{request_id}"
        )
        return value

    async def begin_step(
        self,
        claimed: Claimed,
        worker: str,
        *,
        step: str,
        label: str,
        call: str,
        tokens: int,
        embeds: bool = False,
        once: bool = False,
        again_after: str | None = None,
    ) -> bytes | Unsure | None:
        """The journaled result of a step, or None after it was marked as started. `tokens` estimates its input, which
        is to be embedded when it `embeds`. With
        `once` a step that was started before, other than as the call `again_after`, is Unsure and left as it is.

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
            embeds=embeds,
            once=once,
            again_after=again_after,
        )
        if reply[0] == b"lost":
            raise LeaseLostError(claimed.job_id)
        if reply[0] == b"unsure":
            return Unsure(reply[1].decode())
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
        wasted: int = 0,
        keep_mark: bool = False,
        part: tuple[int, str] | None = None,
    ) -> None:
        """Books a call and, with a result, journals it; once per `call` id. `wasted` tokens of its usage bought
        nothing. Without a result the step may be begun anew, unless `keep_mark`. `part` (number, `<size_bytes> <blob
        key>`) is the part of the job's output that the result stands for: it is kept when the result is.

        Raises LeaseLostError after booking.
        """
        reply = await self.scripts.run(
            "finish_step",
            [
                self.keys.job(claimed.job_id),
                self.keys.journal(claimed.job_id),
                self.keys.open_calls(claimed.job_id),
                self.keys.output(claimed.job_id),
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
            keep_mark=keep_mark,
            part=part[0] if part else None,
            part_value=part[1] if part else None,
        )
        if int(reply) == 0:
            raise LeaseLostError(claimed.job_id)
