"""The store of the log of searches: what was searched and found, what was said of it, and its erasure."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from shared.clock import rfc3339
from shared.errors import RefusedError
from shared.ids import id_time_ms, is_id, time_part
from shared.jobs import JobRow, UsageView, usage_of
from shared.keys import Keys
from shared.redis import Redis, Scripts, redis_now_ms
from shared.search import SEARCH_ID, Feedback, LoggedSearch, NewSearchFeedback, SearchRecord
from shared.search_log import (
    FeedbackGiven,
    Head,
    Line,
    SearchErased,
    Wanted,
    bounded,
    chunks_of,
    documents_of,
    feedback_of,
    fits,
    head_of,
    logged,
    without,
)
from shared.stores.jobs import mismatch

BATCH: Final = 200  # heads that are read at a time
MAX_SCANNED: Final = 2_000  # searches that one page looks at for those that a filter wants
PAGE: Final = 50  # searches of one call that erases: some sixty commands each, about 5 ms
TRIM: Final = 20  # searches that a write takes out whose retention is over
MARK_MS: Final = 86_400_000  # how long an erased search cannot be written again by a late worker
WAIT_S: Final = 2.0  # for jobs that have written their search, and have not ended yet
LOOK_S: Final = 0.1

_KIND: Final = f"{SEARCH_ID}_"
_record: Final = msgspec.json.Decoder(SearchRecord).decode
_head: Final = msgspec.json.Decoder(Head).decode
_votes: Final = msgspec.json.Decoder(dict[str, dict[str, int]]).decode


class SearchesStore:
    """Searches of all tenants. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self._scripts = Scripts(client, keys.prefix)

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def write(self, tenant: str, record: SearchRecord, retention_s: float) -> bool:
        """Writes a search, once, without what refers to documents that do not exist any more. False when nothing is
        kept: its retention is over (0: there is no log), or the tenant is being deleted."""
        retention_ms = round(retention_s * 1000)
        record = bounded(record)
        while True:
            fields = {
                "record": msgspec.json.encode(record).decode(),
                "head": msgspec.json.encode(head_of(record)).decode(),
                "job": record.job_id,
                **({"failed": "1"} if record.error is not msgspec.UNSET else {}),
            }
            reply = await self._scripts.run(
                "search_write",
                [self.keys.search(record.search_id), self.keys.tenant(tenant)],
                tenant=tenant,
                kind=_KIND,
                retention_ms=retention_ms,
                trim=TRIM,
                search=record.search_id if retention_ms > 0 else None,
                at_ms=id_time_ms(record.search_id),
                documents=documents_of(record),
                fields=fields if retention_ms > 0 else None,
                mark=_mark(record.user) if record.user else None,
            )
            outcome, *gone = _texts(reply)
            if outcome != "gone":
                return outcome == "ok"
            record = without(record, set(gone))  # the next round names fewer documents

    async def usage(self, job_id: str) -> UsageView:
        """What the job of a search has used so far."""
        names = ("tok_in", "tok_out", "tok_embed", "tok_reused", "tok_wasted", "cost_nano", "estimated")
        values = await self.client.pipe.execute("HMGET", self.keys.job(job_id), *names)
        return usage_of(JobRow.from_reply(values, names))

    # -- reads ---------------------------------------------------------------------------------------------------

    async def search(self, tenant: str, search_id: str) -> LoggedSearch:
        """One search with its feedback. Raises RefusedError `not_found`."""
        record, feedback, _ = await self._read(tenant, search_id)
        return logged(record, feedback)

    async def _read(self, tenant: str, search_id: str) -> tuple[SearchRecord, Feedback, str]:
        row: list[bytes | None] = [None, None]
        if is_id(SEARCH_ID, search_id):
            names = ["tenant", "record", "rev", "helpful", "unhelpful", "votes"]
            row = await self.client.hmget(self.keys.search(search_id), names)  # type: ignore[misc]
        if row[0] != tenant.encode() or row[1] is None:
            raise RefusedError("not_found", f"There is no search {search_id[:64]!r}.")
        return _record(row[1]), _said(*row[3:]), (row[2] or b"0").decode()

    async def page(
        self,
        tenant: str,
        wanted: Wanted,
        *,
        limit: int,
        after: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
    ) -> tuple[list[msgspec.Raw], str | None]:
        """One page, newest first, of searches from `from_ms` on and before `to_ms`, each a LoggedSearch as JSON; and
        the cursor of the next, None at the end. With filters a page may be short though there are more."""
        found: list[str] = []
        scanned, cursor = 0, None
        async for lines in self._lines(tenant, after=after, from_ms=from_ms, to_ms=to_ms):
            for search_id, line in lines:
                if len(found) == limit or scanned == MAX_SCANNED:
                    return await self._logged(tenant, found), cursor
                scanned, cursor = scanned + 1, search_id
                if line is not None and fits(line, wanted):
                    found.append(search_id)
        return await self._logged(tenant, found), None

    async def newest(
        self, tenant: str, most: int, *, from_ms: int | None = None, to_ms: int | None = None
    ) -> tuple[list[Line], bool]:
        """The newest `most` searches of a time, without their records; and whether there are more."""
        found: list[Line] = []
        async for lines in self._lines(tenant, from_ms=from_ms, to_ms=to_ms):
            found += [line for _, line in lines if line is not None]
            if len(found) > most:
                return found[:most], True
        return found, False

    async def _lines(
        self, tenant: str, *, after: str | None = None, from_ms: int | None = None, to_ms: int | None = None
    ) -> AsyncIterator[list[tuple[str, Line | None]]]:
        """The ids of a time, newest first, each with its line, None where that is gone; portion by portion."""
        high = "+" if to_ms is None else f"({_KIND}{time_part(to_ms)}"
        low = "-" if from_ms is None else f"[{_KIND}{time_part(from_ms)}"
        if after is not None:
            high = f"({after}" if high == "+" else min(high, f"({after}")
        while True:
            index = self.keys.searches(tenant)
            ids = _texts(await self.client.zrevrangebylex(index, high, low, 0, BATCH))
            rows = await self._rows(ids, ["head", "helpful", "unhelpful", "votes"])
            yield [
                (search_id, Line(search_id, _head(row[0]), _said(*row[1:])) if row[0] is not None else None)
                for search_id, row in zip(ids, rows, strict=True)
            ]
            if len(ids) < BATCH:
                return
            high = f"({ids[-1]}"

    async def _rows(self, ids: list[str], names: list[str]) -> list[list[Any]]:
        async with self.client.pipeline(transaction=False) as pipe:
            for search_id in ids:
                pipe.hmget(self.keys.search(search_id), names)
            return await pipe.execute() if ids else []

    async def _logged(self, tenant: str, ids: list[str]) -> list[msgspec.Raw]:
        rows = await self._rows(ids, ["tenant", "record", "helpful", "unhelpful", "votes"])
        return [_spliced(row[1], _said(*row[2:])) for row in rows if row[0] == tenant.encode() and row[1] is not None]

    # -- feedback ------------------------------------------------------------------------------------------------

    async def add_feedback(
        self,
        tenant: str,
        search_id: str,
        given: NewSearchFeedback,
        unit: str | None = None,
        *,
        idem_key: str | None = None,
        idem_body: str | None = None,
    ) -> tuple[FeedbackGiven, bool]:
        """Notes what somebody says of a search; whether it was noted before under this idempotency key. `unit` is who
        says it: what they say later of the same replaces it; None: each one counts.

        Raises RefusedError `not_found`, `invalid_request` when the chunk is none of the search's candidates,
        `idempotency_mismatch`."""
        chunk = given.chunk_id
        while True:
            record, _, rev = await self._read(tenant, search_id)
            if chunk is not None and all(one.chunk_id != chunk for one in record.candidates):
                wrong = "is none of the chunks that this search considered"
                raise RefusedError("invalid_request", f"$.chunkId: {wrong}", errors=(("$.chunkId", wrong),))
            reply = await self._scripts.run(
                "search_feedback",
                [self.keys.search(search_id), idem_key or self.keys.idem(tenant, "-")],
                tenant=tenant,
                rev=rev,
                good=given.helpful if chunk is None else given.relevant,
                chunk=chunk,
                unit=_mark(f"{unit} {chunk or ''}") if unit else None,
                idem_body=idem_body if idem_key else None,
            )
            match [part.decode() for part in reply]:
                case ["ok", now, replayed, helpful, unhelpful, votes]:
                    noted = feedback_of(int(helpful), int(unhelpful), _votes(votes))
                    at = rfc3339(int(now))
                    return FeedbackGiven(search_id=search_id, created_at=at, feedback=noted), replayed == "1"
                case ["mismatch"]:
                    raise mismatch()
                case _:  # `again`, or it is gone: the next read says so
                    continue

    # -- erasure -------------------------------------------------------------------------------------------------

    async def erase(self, tenant: str, search_id: str) -> SearchErased:
        """Erases a search, and the texts in its job. Raises RefusedError `not_found`."""
        record, _, _ = await self._read(tenant, search_id)
        _, running = await self._erase(tenant, self.keys.searches(tenant), [{"id": search_id}])
        await self._let_go(tenant, running)
        now_ms = await redis_now_ms(self.client)
        return SearchErased(search_id=search_id, job_id=record.job_id, erased_at=rfc3339(now_ms))

    async def erase_user(self, tenant: str, user: str) -> int:
        """Erases all searches of a user, and the texts in their jobs; how many there were."""
        index, erased = self.keys.searches_of_user(tenant, _mark(user)), 0
        running: list[dict[str, Any]] = []
        while ids := await self._first(index):
            count, more = await self._erase(tenant, index, [{"id": search_id} for search_id in ids])
            erased, running = erased + count, running + more
        await self._let_go(tenant, running)
        return erased

    async def erase_document(self, tenant: str, document_id: str) -> int:
        """Takes a document out of all searches that considered it, and the texts out of their jobs; how many there
        were. The document's record must be gone before: then no search is written any more that refers to it."""
        index, blanked = self.keys.searches_of_document(tenant, document_id), 0
        running: list[dict[str, Any]] = []
        while ids := await self._first(index):
            rows = await self._rows(ids, ["record", "rev"])
            searches = [_blanked(search_id, row, document_id) for search_id, row in zip(ids, rows, strict=True)]
            count, more = await self._erase(tenant, index, searches)
            blanked, running = blanked + count, running + more
        await self._let_go(tenant, running)
        return blanked

    async def _first(self, index: str) -> list[str]:
        return _texts(await self.client.zrangebylex(index, "-", "+", 0, PAGE))

    async def _erase(
        self, tenant: str, index: str, searches: list[dict[str, Any]], jobs: list[dict[str, Any]] | None = None
    ) -> tuple[int, list[dict[str, Any]]]:
        reply = await self._scripts.run(
            "search_erase",
            [index, self.keys.retention],
            tenant=tenant,
            kind=_KIND,
            mark_ms=MARK_MS,
            searches=searches,
            jobs=jobs or [],
        )
        flat = _texts(reply[1])
        running = [{"id": job, "whole": whole == "1"} for job, whole in zip(flat[::2], flat[1::2], strict=True)]
        return int(reply[0]), running

    async def _let_go(self, tenant: str, running: list[dict[str, Any]]) -> None:
        """A job writes its search just before it ends: then its result has the texts."""
        for _ in range(round(WAIT_S / LOOK_S)):
            if not running:
                return
            await asyncio.sleep(LOOK_S)
            _, left = await self._erase(tenant, self.keys.searches(tenant), [], running[:PAGE])
            running = left + running[PAGE:]


def _blanked(search_id: str, row: list[bytes | None], document_id: str) -> dict[str, Any]:
    """A search without a document, as `search_erase` takes it; one that is gone only leaves the index."""
    if row[0] is None:
        return {"id": search_id}
    record = _record(row[0])
    left = without(record, {document_id})
    return {
        "id": search_id,
        "rev": (row[1] or b"0").decode(),
        "record": msgspec.json.encode(left).decode(),
        "head": msgspec.json.encode(head_of(left)).decode(),
        "docs": " ".join(documents_of(left)),
        "chunks": chunks_of(record, document_id),
    }


def _spliced(record: bytes, feedback: Feedback) -> msgspec.Raw:
    """As `logged`; a page of long records is not decoded for it."""
    return msgspec.Raw(record[:-1] + b',"feedback":' + msgspec.json.encode(feedback) + b"}")


def _said(helpful: bytes | None, unhelpful: bytes | None, votes: bytes | None) -> Feedback:
    return feedback_of(int(helpful or 0), int(unhelpful or 0), _votes(votes or b"{}"))


def _mark(text: str) -> str:
    """Whom or what a stored name stands for, without telling it."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _texts(raw: list[bytes]) -> list[str]:
    return [part.decode() for part in raw]
