"""`batch-embedding`: vectors for a list of texts of any length, as NDJSON.

The input is read as a stream and cut into batches (`worker.batch.plan`). Each batch is one journaled step whose part of
the output is written before the step is; a retry makes only what is missing, and asks again for items that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from shared.batch import MAX_LINE_BYTES
from shared.batch import lines as lines_of
from shared.blobs import BlobMissingError
from shared.clock import monotonic_s
from shared.errors import BadOutput, InternalError, InvalidInput, JobError, LeaseLostError, OverLimit, UpstreamRefused
from shared.jobs import Output
from shared.log import get_logger
from shared.specs import EmbeddingSource
from shared.stores.events import Reservation
from shared.stores.outputs import part_key
from worker.batch.asking import Asking, Verdict
from worker.batch.parts import Failure, Found, Parts, render
from worker.batch.plan import Batch, Plan, Planner
from worker.context import JobContext
from worker.journal import Step
from worker.model.calls import Requests

log = get_logger()

LINES_AT_ONCE: Final = 256
BYTES_AT_ONCE: Final = 1024 * 1024
MEMORY_BYTES: Final = 192 * 1024 * 1024  # of batches under way, about
LEAST_ALIVE: Final = 4
READY: Final = 8  # batches begun beyond those at the model: a place that comes free waits for no journal
TELL_EVERY_S: Final = 0.5


class EmbeddingResult(Output, frozen=True):
    """`count` items, of which `failed` have an error in place of a vector; `output` is the path of the lines."""

    count: int
    failed: int
    dimensions: int | None
    output: str


class _Done(msgspec.Struct, frozen=True):
    """A finished batch, as it is journaled. `run` made it last; `failed` counts its lines without a vector, `again`
    those of them that a retry may mend."""

    key: str
    size_bytes: int
    lines: int
    failed: int
    again: int
    dimensions: int | None
    run: int
    reason: str | None = None


async def embed_batch(spec: EmbeddingSource, context: JobContext) -> EmbeddingResult:
    """Embeds all texts. The job fails when not one of them could be embedded. Raises JobError."""
    context.report.progress(0.0, "embed", "Reading the input")
    work = _Work(spec, context, await _plan(spec, context))
    planner = Planner(work.plan)
    try:
        await work.run(planner)
    finally:
        planner.close()
    if not work.count:
        raise InvalidInput("The input has no lines.")
    if work.failed == work.count:
        raise (UpstreamRefused if work.refused else InvalidInput)(
            f"None of the {work.count} items could be embedded; the first: {work.reason}"
        )
    return EmbeddingResult(
        count=work.count,
        failed=work.failed,
        dimensions=work.dimensions,
        output=f"/api/jobs/{context.job.job_id}/output",
    )


async def _plan(spec: EmbeddingSource, context: JobContext) -> Plan:
    """The plan of the job's first attempt: later ones keep to it, whatever the settings say by then."""
    settings = context.deps.settings

    async def make(_: Step) -> bytes:
        return msgspec.json.encode(
            Plan.of(
                spec.dimensions,
                spec.encoding,
                most_items=settings.embedding_items,
                most_tokens=settings.embedding_tokens,
            )
        )

    journaled, _ = await context.journal.step("plan", b"", make)
    return msgspec.json.decode(journaled, type=Plan)


class _Work:
    """One attempt at a batch job: its batches under way, and what has come of them."""

    def __init__(self, spec: EmbeddingSource, context: JobContext, plan: Plan) -> None:
        self.plan = plan
        self.count = 0
        self.failed = 0
        self.refused = 0
        self.reason: str | None = None
        self.dimensions: int | None = None
        self._spec = spec
        self._context = context
        self._parts = Parts(context.deps.blobs)
        self._ended: dict[int, asyncio.Event] = {}
        self._verdict = Verdict()
        self._read_bytes = 0
        self._total_bytes = 0
        self._told_at_s = 0.0
        per_batch = 2 * (plan.answer_bytes + plan.tokens * 4)
        alive = min(context.deps.settings.model_max_in_flight, max(LEAST_ALIVE, MEMORY_BYTES // per_batch))
        self._alive = asyncio.Semaphore(alive)
        self._ready = asyncio.Semaphore(READY)

    async def run(self, planner: Planner) -> None:
        """Works through the input. An error stops the reading; what is under way ends first, and is kept."""
        async with asyncio.TaskGroup() as group:
            try:
                await self._read(group, planner)
            except BlobMissingError:
                self._fail(InvalidInput("The input was deleted."))
            except JobError as error:
                self._fail(error)  # the blob store, for example: what is under way ends first
        if self._verdict.error is not None:
            raise self._verdict.error
        self._read_bytes = self._total_bytes
        self._tell(force=True)

    def _fail(self, error: JobError | LeaseLostError | OverLimit) -> None:
        """The job ends with this error, if it is the first; nothing more is asked."""
        self._verdict.error = self._verdict.error or error

    async def _read(self, group: asyncio.TaskGroup, planner: Planner) -> None:
        blobs, blob = self._context.deps.blobs, self._spec.blob
        self._total_bytes = await blobs.size(blob)
        async with aclosing(blobs.stream(blob)) as stream:
            async for lines in _some(lines_of(stream, max_line_bytes=MAX_LINE_BYTES)):
                await self._start(group, await asyncio.to_thread(planner.add, lines))
                if self._verdict.error is not None:
                    return
        await self._start(group, planner.rest())

    async def _start(self, group: asyncio.TaskGroup, batches: Sequence[Batch]) -> None:
        for batch in batches:
            await self._alive.acquire()
            if self._verdict.error is not None:
                return
            self._ended[batch.number] = asyncio.Event()
            group.create_task(self._carry_out(batch))

    async def _carry_out(self, batch: Batch) -> None:
        """One batch, from its request to its part; errors are noted for `run`."""
        try:
            if self._verdict.error is None:
                self._count(batch, await self._one(batch))
        except (JobError, LeaseLostError, OverLimit) as error:
            self._fail(error)
        except BlobMissingError as error:
            self._fail(InvalidInput(f"A part of the job's output was deleted: {error}"))
        except Exception as error:
            log.exception("batch.failed", job=self._context.job.job_id, batch=batch.number)
            self._fail(InternalError(f"A batch could not be carried out ({type(error).__name__}); the log has more."))
        finally:
            self._ended[batch.number].set()
            self._alive.release()

    def _count(self, batch: Batch, done: _Done) -> None:
        self.count += done.lines
        self.failed += done.failed
        self.refused += done.again
        self.reason = self.reason or done.reason
        if done.dimensions is not None:
            self._agree(done.dimensions)
            self._verdict.taken()
        self._read_bytes += batch.input_bytes
        self._tell()

    def _agree(self, dimensions: int) -> None:
        """All vectors of a job have the same dimensions. Raises BadOutput: then this one is not journaled."""
        self.dimensions = self.dimensions or dimensions
        if self.dimensions != dimensions:
            raise BadOutput(f"The model changed its dimensions from {self.dimensions} to {dimensions}.")

    def _tell(self, *, force: bool = False) -> None:
        if not force and monotonic_s() - self._told_at_s < TELL_EVERY_S:
            return
        self._told_at_s = monotonic_s()
        share = min(1.0, self._read_bytes / self._total_bytes) if self._total_bytes else 1.0
        failed = f", {self.failed} failed" if self.failed else ""
        self._context.report.progress(share, "embed", f"Finished {self.count} items{failed}")

    # -- one batch -----------------------------------------------------------------------------------------------

    async def _one(self, batch: Batch) -> _Done:
        """A batch that is in the journal already, or its step."""
        spec, context = self._spec, self._context
        identity = batch.identity(context.job.model, spec.dimensions, spec.encoding)
        label = f"batch/{batch.number + 1}"
        done, reused = await self._step(label, batch, identity, None)
        if reused:
            self._parts.known(batch.number, done.key, done.size_bytes)
        # A person asked for another run: items that the model refused get another chance. Each such try stands in the
        # journal behind the one before.
        while reused and done.again and done.run < context.job.run:
            done, reused = await self._step(f"{label}/again", batch, identity + msgspec.json.encode(done), done)
            self._parts.known(batch.number, done.key, done.size_bytes)
        return done

    async def _step(self, label: str, batch: Batch, identity: bytes, before: _Done | None) -> tuple[_Done, bool]:
        context = self._context
        model, counter = context.job.model, context.deps.counter
        tokens = dict(zip(batch.texts, await counter.texts(model, batch.texts), strict=True))

        requests = Requests(sum(tokens.values()))
        asking = Asking(context, self._spec, self._verdict, requests, tokens, self._ready.release)

        async def make(step: Step, _: Any) -> bytes:
            try:
                return await self._make(step, batch, before, asking)
            finally:
                step.wasted_tokens = requests.wasted_tokens
                if requests.requests == 1 and before is None:
                    step.input_bytes = sum(len(text.encode("utf-8", "replace")) for text in batch.texts)

        await self._ready.acquire()
        try:
            price = context.deps.prices.price(model)
            reserve = Reservation(model, requests.reserved, embeds=True, price=price, waits=True)
            journaled, reused = await context.step(label, identity, reserve, make, progress=requests)
        except JobError as error:
            error.step = error.step or label
            raise
        finally:
            asking.leave_the_ready()
        return msgspec.json.decode(journaled, type=_Done), reused

    async def _make(self, step: Step, batch: Batch, before: _Done | None, asking: Asking) -> bytes:
        """Makes a batch's part; with `before`, only the lines that failed then."""
        job = self._context.job
        found: list[Found | None] = [None] * len(batch.entries)
        if before is not None:
            found = [row if not _again(row) else None for row in await self._parts.lines(batch.number)]
        wanted = [entry for entry, row in zip(batch.entries, found, strict=True) if row is None]
        own = [entry for entry in wanted if entry.own is not None]
        vectors = await asking.vectors([batch.texts[entry.own] for entry in own if entry.own is not None])
        if asking.dimensions is not None:
            self._agree(asking.dimensions)
        first = batch.entries[0].index
        for entry, vector in zip(own, vectors, strict=True):
            found[entry.index - first] = vector
        for entry in wanted:
            if entry.error is not None:
                found[entry.index - first] = Failure("invalid_input", entry.error)
            elif entry.like is not None:
                found[entry.index - first] = await self._like(batch, entry.like, found)
        rows = [row for row in found if row is not None]
        lines = [render(entry, row) for entry, row in zip(batch.entries, rows, strict=True)]
        key = part_key(job.tenant, job.job_id, batch.number)
        part = await self._parts.write(batch.number, key, lines)
        step.part = (batch.number, f"{part.size_bytes} {key}")
        failures = [row for row in rows if isinstance(row, Failure)]
        dimensions = asking.dimensions or (before.dimensions if before is not None else None)
        return msgspec.json.encode(
            _Done(
                key,
                part.size_bytes,
                len(rows),
                len(failures),
                sum(map(_again, rows)),
                dimensions,
                job.run,
                failures[0].message if failures else None,
            )
        )

    async def _like(self, batch: Batch, place: tuple[int, int], found: Sequence[Found | None]) -> Found:
        """What the line says where the same text stood first: in this batch, or in one before it."""
        number, line = place
        if number == batch.number:
            row = found[line]
            assert row is not None
            return row
        await self._ended[number].wait()
        if self._verdict.error is not None:
            raise self._verdict.error
        return await self._parts.line(number, line)


def _again(row: Found) -> bool:
    """Whether a retry may mend it: the model refused it; a bad line stays bad."""
    return isinstance(row, Failure) and row.code != InvalidInput.code


async def _some(lines: AsyncIterator[Any]) -> AsyncIterator[list[Any]]:
    """Lines, some hundred at a time."""
    group: list[Any] = []
    size = 0
    async for line in lines:
        group.append(line)
        size += len(line) if isinstance(line, bytes) else 0
        if len(group) >= LINES_AT_ONCE or size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
