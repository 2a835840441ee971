"""Buying vectors: for the texts of a job in batches, each one journaled step, and for one query."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from shared.collections import Calibration, IndexSpec
from shared.errors import BadOutput, JobError, LeaseLostError, OverLimit
from shared.specs import EmbeddingOptions
from shared.stores.events import Reservation
from worker.batch.asking import Asking, Verdict
from worker.batch.parts import Failure, Found
from worker.batch.plan import Plan
from worker.context import JobContext
from worker.journal import Step
from worker.model.calls import EmbeddingCall, Requests, estimate_text_tokens
from worker.search.calibration import measure, texts
from worker.search.quantised import from_bytes, to_bytes, unit

BATCHES: Final = 32  # of one job under way; what the model takes bounds them further

Matrix = Any  # numpy.ndarray, float32, a row per vector


class Bought(NamedTuple):
    """Vectors by the hash of their text, as they are stored (int8 row and scale; empty where the model refused the
    text), and their dimensions (None when there was nothing to buy)."""

    rows: dict[bytes, bytes]
    dimensions: int | None
    refused: dict[bytes, str]


class _Made(msgspec.Struct, frozen=True):
    """A batch as it is journaled: its vectors are staged beside."""

    dimensions: int | None
    refused: dict[int, str] = {}


class Embedder:
    """Buys vectors for one job, with the model of one index version."""

    def __init__(self, context: JobContext, spec: IndexSpec, label: str) -> None:
        self._context = context
        self._spec = spec
        self._label = label
        self._store = context.deps.indexes
        self._verdict = Verdict()
        self._options = EmbeddingOptions(dimensions=spec.asked or None, encoding="base64")
        self._slots = asyncio.Semaphore(BATCHES)

    async def buy(self, wanted: Mapping[bytes, str], told: Callable[[int], None] = lambda done: None) -> Bought:
        """Vectors for texts by their hash; `told` hears how many are there. What this job has bought before, in
        whatever attempt, is not bought again. Raises JobError."""
        hashes = list(wanted)
        there = await self._staged(hashes)
        rows = {name: row for name, row in zip(hashes, there, strict=True) if row}
        refused: dict[bytes, str] = {}
        dimensions: int | None = None
        missing = [name for name in hashes if name not in rows]
        done = len(rows)
        told(done)

        async def one(batch: list[bytes]) -> None:
            nonlocal dimensions, done
            async with self._slots:
                made, bought = await self._batch(batch, [wanted[name] for name in batch])
            rows.update(bought)
            if made.dimensions is not None:
                if dimensions not in (None, made.dimensions):
                    raise BadOutput(f"The model changed its dimensions from {dimensions} to {made.dimensions}.")
                dimensions = made.dimensions
            refused.update({batch[place]: reason for place, reason in made.refused.items()})
            done += len(batch)
            told(done)

        try:
            async with asyncio.TaskGroup() as group:
                for batch in self._batches(missing, wanted):
                    group.create_task(one(batch))
        except* (JobError, LeaseLostError, OverLimit) as failed:
            raise first_of(failed) from None
        rows |= dict.fromkeys(refused, b"")
        if dimensions is None and any(rows.values()):
            dimensions = len(next(row for row in rows.values() if row)) - 4
        return Bought(rows, dimensions, refused)

    async def _staged(self, hashes: Sequence[bytes]) -> list[bytes | None]:
        job = self._context.job
        return await self._store.staged(job.tenant, job.job_id, self._spec.marks, hashes)

    def _batches(self, missing: Sequence[bytes], wanted: Mapping[bytes, str]) -> list[list[bytes]]:
        settings = self._context.deps.settings
        plan = Plan.of(
            self._spec.dimensions or None,
            "base64",
            most_items=settings.embedding_items,
            most_tokens=settings.embedding_tokens,
        )
        batches: list[list[bytes]] = []
        tokens = plan.tokens + 1
        for name in missing:
            needs = estimate_text_tokens(wanted[name])
            if not batches or tokens + needs > plan.tokens or len(batches[-1]) >= plan.items:
                batches.append([])
                tokens = 0
            batches[-1].append(name)
            tokens += needs
        return batches

    async def _batch(self, batch: Sequence[bytes], wanted: Sequence[str]) -> tuple[_Made, dict[bytes, bytes]]:
        """A journaled step, and its vectors, which are staged before it is. They are not read back: whoever shares a
        text with this batch may have put it into the index and unstaged it meanwhile."""
        context, model = self._context, self._spec.model
        identity = hashlib.sha256(msgspec.json.encode([model, self._spec.dimensions, wanted])).digest()
        label = f"{self._label}/{hashlib.sha256(b''.join(batch)).hexdigest()[:8]}"
        tokens = dict(zip(wanted, await context.deps.counter.texts(model, list(wanted)), strict=True))
        while True:
            requests = Requests(sum(tokens.values()))
            asking = Asking(context, self._options, self._verdict, requests, tokens, lambda: None, model)
            rows: dict[bytes, bytes] = {}

            async def make(
                step: Step, _: Any, requests: Requests = requests, asking: Asking = asking, rows: Any = rows
            ) -> bytes:
                try:
                    found = await asking.vectors(list(wanted))
                finally:
                    step.wasted_tokens = requests.wasted_tokens
                    if requests.requests == 1:
                        step.input_bytes = sum(len(text.encode("utf-8", "replace")) for text in wanted)
                refused = {at: one.message for at, one in enumerate(found) if isinstance(one, Failure)}
                rows.update(await asyncio.to_thread(_rows, batch, found))
                if rows:
                    await self._store.stage(context.job.tenant, context.job.job_id, self._spec.marks, rows)
                return msgspec.json.encode(_Made(asking.dimensions, refused))

            reserve = Reservation(model, requests.reserved, True, price=context.deps.prices.price(model), waits=True)
            try:
                journaled, reused = await context.step(label, identity, reserve, make, progress=requests)
            except JobError as error:
                error.step = error.step or label
                raise
            made = msgspec.json.decode(journaled, type=_Made)
            if not reused:
                return made, rows
            good = [name for at, name in enumerate(batch) if at not in made.refused]
            there = {name: row for name, row in zip(good, await self._staged(good), strict=True) if row}
            if len(there) == len(good):
                return made, there
            # It was journaled, but what it bought is gone (staged for a day only): it is bought again.
            label += "/again"


def first_of(failed: BaseException) -> BaseException:
    """The first of the errors of a group of tasks."""
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    return failed


def _floats(found: Sequence[bytes]) -> Matrix:
    return unit(np.stack([np.frombuffer(base64.b64decode(msgspec.json.decode(one)), dtype="<f4") for one in found]))


def _rows(batch: Sequence[bytes], found: Sequence[Found]) -> dict[bytes, bytes]:
    good = [(name, one) for name, one in zip(batch, found, strict=True) if isinstance(one, bytes)]
    if not good:
        return {}
    matrix = _floats([one for _, one in good])
    return {name: to_bytes(matrix[at : at + 1]) for at, (name, _) in enumerate(good)}


def matrix_of(rows: Sequence[bytes], dimensions: int) -> Matrix:
    """Stored rows as a matrix; zeros for one that is empty."""
    matrix = np.zeros((len(rows), dimensions), dtype=np.float32)
    for at, row in enumerate(rows):
        if row:
            matrix[at] = from_bytes(row, dimensions)[0]
    return matrix


async def calibrate(context: JobContext, spec: IndexSpec) -> Calibration:
    """What this model's cosines mean, measured once for the installation. Raises JobError."""
    store, marks = context.deps.indexes, spec.query_marks
    known = await store.calibration(marks)
    if known is not None:
        return known
    wanted = texts(spec.query_prefix, spec.document_prefix)
    named = {hashlib.blake2b(text.encode(), digest_size=12).digest(): text for text in wanted}
    embedder = Embedder(context, spec, "calibrate")
    bought = await embedder.buy(named)
    if bought.dimensions is None or bought.refused:
        raise BadOutput("The embedding model did not embed the texts by which its cosines are measured.")
    matrix = matrix_of([bought.rows[name] for name in named], bought.dimensions)
    found = measure(matrix)
    await store.note_calibration(marks, found)
    await store.unstage(context.job.tenant, context.job.job_id, spec.marks)
    return found


async def embed_query(context: JobContext, spec: IndexSpec, query: str) -> Matrix:
    """The vector of a query, of length one: a journaled step. Raises JobError, BudgetExhausted and OverLimit."""
    text, model = spec.query_prefix + query, spec.model
    call = EmbeddingCall([text], spec.asked or None, "base64")
    (tokens,) = await context.deps.counter.texts(model, [text])
    tries = context.deps.model.discipline.tries(model, alone=True)
    identity = hashlib.sha256(msgspec.json.encode([model, spec.dimensions, text])).digest()
    while True:
        requests = Requests(tokens)

        async def make(step: Step, _: Any, requests: Requests = requests) -> bytes:
            wasted = True
            try:
                answer = await context.deps.model.embed(model, call, requests.begin(tokens))
                wasted = False
            finally:
                requests.end(wasted=wasted)
            step.input_bytes = len(text.encode("utf-8", "replace"))
            return answer.vectors[0]

        reserve = Reservation(model, tokens, embeds=True, price=context.deps.prices.price(model))
        try:
            label = f"embed/{model}"
            journaled, _ = await context.step(label, identity, reserve, make, progress=requests)
            break
        except JobError as error:
            error.step = error.step or label
            if not await context.try_again(tries, error):
                raise
    vector = _floats([journaled])[0]
    if len(vector) != spec.dimensions:
        raise BadOutput(f"The model {model} gives {len(vector)} dimensions now; the index has {spec.dimensions}.")
    return vector
