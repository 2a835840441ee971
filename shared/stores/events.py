"""The store of a job's events and journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from shared.errors import LeaseLostError
from shared.events import Event, NewEvent, from_log
from shared.keys import Keys
from shared.limits import Why, crossed_of, why_of
from shared.prices import Price
from shared.redis import Redis, Scripts, as_outage
from shared.stores.jobs import Claimed, note_crossed


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


class Begun(msgspec.Struct, frozen=True):
    """A step that was marked as started. `bound`: output tokens that are reserved for its call, None where nothing
    limits it; `ratio`: bytes per token of the model as learned, None where nothing was."""

    bound: int | None = None
    ratio: float | None = None


class Blocked(msgspec.Struct, frozen=True):
    """A call that a limit keeps from being made, or from going on: `kind` is `rate`, `held` (behind what others have
    reserved), `spent` (at a hard limit) or `unpriced` (a hard limit in money, and no price of the model)."""

    kind: str
    why: Why


class Reservation(msgspec.Struct, frozen=True):
    """What is reserved for the model call of a step: `tokens` of input, which is to be embedded when it `embeds`, and
    of output at most `most` (0: no bound). `waits`: it is not sent yet when its step begins (`dispatched` says so)."""

    model: str
    tokens: int
    embeds: bool = False
    most: int = 0
    price: Price | None = None
    waits: bool = False


class Unsure(msgspec.Struct, frozen=True):
    """A step that must not be repeated unasked was begun as `call`, and it is not known how that ended."""

    call: str


class Append(msgspec.Struct, frozen=True, omit_defaults=True):
    """Events of one attempt, as `append.lua` takes them: pairs of type and JSON object. `batch` numbers the writes of
    the lease: the same number again (a repeat after a lost answer) writes nothing. `progress` is JSON; `seen` output
    tokens of calls under way."""

    job: str
    lease: int
    batch: int
    events: list[tuple[str, str]]
    progress: str | None = None
    seen: list[tuple[str, int]] | None = None


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
        reserve: Reservation | None = None,
        once: bool = False,
        again_after: str | None = None,
    ) -> bytes | Begun | Unsure | Blocked:
        """The journaled result of a step, or Begun after it was marked as started and its model call reserved. With
        `once` a step that was started before, other than as the call `again_after`, is Unsure and left as it is; so is
        one whose call a limit blocks.

        Raises LeaseLostError.
        """
        wanted: dict[str, Any] = {}
        if reserve is not None:
            price = reserve.price
            wanted = {
                "model": reserve.model,
                "tokens": reserve.tokens,
                "embeds": reserve.embeds,
                "most": reserve.most,
                "waits": reserve.waits or None,
                "input_pico": price.input_pico if price else None,
                "output_pico": price.output_pico if price else None,
                "price_version": price.version if price else None,
            }
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
            once=once,
            again_after=again_after,
            **wanted,
        )
        match reply[0]:
            case b"lost":
                raise LeaseLostError(claimed.job_id)
            case b"unsure":
                return Unsure(reply[1].decode())
            case b"done":
                result: bytes = reply[1]
                return result
            case b"rate" | b"held" | b"spent" | b"unpriced":
                return Blocked(reply[0].decode(), why_of(reply[1]))
        bound = int(reply[1])
        return Begun(bound if bound >= 0 else None, float(reply[2]) if reply[2] else None)

    async def dispatched(self, claimed: Claimed, call: str) -> None:
        """A call that was begun as one that `waits` is sent to the model now."""
        await self.scripts.run("dispatched", [self.keys.open_calls(claimed.job_id)], call=call)

    async def extend(
        self, claimed: Claimed, worker: str, *, call: str, seen: int, bound: int, embeds: int | None = None
    ) -> int | Blocked:
        """Reserves more for a call under way: a slice of output, when it has made `seen` tokens and may make `bound`;
        or `embeds` tokens of texts beside the `bound` that it has. The new bound, or why there is none.

        Raises LeaseLostError.
        """
        reply = await self.scripts.run(
            "extend",
            [self.keys.job(claimed.job_id), self.keys.open_calls(claimed.job_id)],
            worker=worker,
            lease=claimed.lease,
            call=call,
            seen=seen,
            bound=bound,
            embeds=embeds,
        )
        if reply[0] == b"ok":
            return int(reply[1])
        if reply[0] == b"lost":
            raise LeaseLostError(claimed.job_id)
        return Blocked(reply[0].decode(), why_of(reply[1]))

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
        model: str = "",
        price: Price | None = None,
        input_bytes: int = 0,
    ) -> None:
        """Books a call of `model` and, with a result, journals it; once per `call` id. `wasted` tokens of its usage
        bought nothing; its cost is unknown without a `price`. From `input_bytes` (of what was counted as input) it is
        learned how many make a token of this model. Without a result the step may be begun anew, unless `keep_mark`.
        `part` (number, `<size_bytes> <blob key>`) is the part of the job's output that the result stands for: it is
        kept when the result is.

        Raises LeaseLostError after booking.
        """
        written, crossed = await self.scripts.run(
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
            cost_nano=price.cost_nano(usage.input_tokens, usage.output_tokens, usage.embedding_tokens)
            if price
            else None,
            price_version=price.version if price else None,
            model=model,
            input_bytes=input_bytes,
            keep_mark=keep_mark,
            part=part[0] if part else None,
            part_value=part[1] if part else None,
        )
        note_crossed(crossed_of(crossed))
        if int(written) == 0:
            raise LeaseLostError(claimed.job_id)
