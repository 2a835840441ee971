"""What a task gets: its job, the model, the journal, the report. A task returns a Result or raises; it never writes
state."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from shared.blobs import Blobs
from shared.clock import monotonic_s
from shared.errors import BudgetExhausted, JobError, NeedsInput
from shared.jobs import LimitDetail
from shared.metrics import COST, MODEL_FALLBACKS, MODEL_RETRIES, TOKENS_UNPRICED
from shared.prices import PriceBook
from shared.prompt_versions import Versions
from shared.settings import Settings
from shared.stores.documents import DocumentsStore
from shared.stores.erasure import ErasureStore
from shared.stores.events import Reservation
from shared.stores.indexes import IndexesStore
from shared.stores.jobs import Claimed
from shared.stores.searches import SearchesStore
from shared.tokens import TokenCounter
from worker.documents.library import Library
from worker.journal import BlockedError, Journal, Step, UnsureError, step_name
from worker.limits import Allowance, Patience
from worker.model.calls import ChatCall, Completion, Progress, ToolCall
from worker.model.client import Model
from worker.model.discipline import Tries
from worker.model.window import Place
from worker.report import Report
from worker.search.engines import VectorEngine
from worker.search.replica import Replicas
from worker.search.texts import Texts
from worker.tools.registry import Toolbox
from worker.wording import Said, Wording

YES: Final = frozenset({"yes", "y", "true", "approve", "approved", "ok"})
NO: Final = frozenset({"no", "n", "false"})


class Deps(msgspec.Struct, frozen=True):
    """What all jobs of a worker share."""

    settings: Settings
    model: Model
    blobs: Blobs
    documents: DocumentsStore
    erasures: ErasureStore
    library: Library
    tools: Toolbox
    counter: TokenCounter
    prices: PriceBook
    versions: Versions
    indexes: IndexesStore
    engines: Mapping[str, VectorEngine]
    replicas: Replicas
    texts: Texts
    reranker: Any  # worker.search.rerank.Reranker, which needs this module; None for none
    searches: SearchesStore


class Finished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A completion as it is journaled; `ms` is the time that the model took, `model` the one that answered."""

    text: str
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: int = 0
    ms: int = 0
    model: str = ""


class JobContext:
    """One attempt of one job, as its task sees it."""

    def __init__(self, claimed: Claimed, deps: Deps, journal: Journal, report: Report) -> None:
        self.job = claimed
        self.deps = deps
        self.journal = journal
        self.worker = journal.worker
        self.report = report
        self.wording = Wording(claimed.type, (), None, deps.versions)  # what its prompts say
        self.open_calls: list[Progress] = []
        self.ends_s = monotonic_s() + claimed.timeout_s  # when the attempt's time is over, monotonic
        report.seen = self.seen

    @property
    def tokens(self) -> int:
        """Tokens of the job so far, those of the calls under way included."""
        return self.journal.tokens_spent + sum(progress.usage().total for progress in self.open_calls)

    def seen(self) -> list[tuple[str, int]]:
        """Output tokens of the calls under way, by call id: what is booked of them if this worker is lost."""
        return [
            (progress.call_id, made) for progress in self.open_calls if (made := progress.made) and progress.call_id
        ]

    @property
    def tokens_reserved(self) -> int:
        """As `tokens`, but with at least the estimate of each call under way, from the moment it was allowed."""
        under_way = sum(max(progress.input_tokens, progress.usage().total) for progress in self.open_calls)
        return self.journal.tokens_spent + under_way

    async def complete(
        self,
        label: str,
        call: ChatCall,
        *,
        on_text: Callable[[str], None] | None = None,
        accept: Callable[[str], Any] | None = None,
        windowed: bool = False,
        keep_back: int = 0,
        known_by: bytes | None = None,
    ) -> Finished:
        """One model call as a journaled step `label`, repeated as `worker.model.discipline` says.

        `on_text` gets the answer as it comes, also when it comes from the journal. `accept` looks at the whole answer
        and raises BadOutput when it has not the asked form: then it is booked, but not journaled, so that a retry asks
        again. `windowed`: it is one of many, and keeps to what the model takes without saying 429. `keep_back` tokens
        of the job's budget are not for this call. `known_by`: what the journal knows it by, when that is not the whole
        call. Raises JobError with `step` set, and LeaseLostError.
        """
        # Not the model: a person may retry with another one, and then what is left goes to that.
        identity = msgspec.json.encode(call) if known_by is None else known_by
        tries = self.deps.model.discipline.tries(self.job.model, windowed=windowed)
        shown = False

        def heard(text: str) -> None:
            nonlocal shown
            if on_text is not None and text:
                shown = True
                on_text(text)
            self.check_budget(0, keep_back)

        async def ask(step: Step, progress: Progress) -> bytes:
            started_s = monotonic_s()
            try:
                allowance = Allowance(self.journal, step, progress, self.report if on_text is not None else None)
                try:
                    answer: Completion = await self.deps.model.complete(tries.model, call, progress, heard, allowance)
                finally:
                    await allowance.close()
            finally:
                await self.report.flush()
            if accept is not None:
                accept(answer.text)
            return msgspec.json.encode(
                Finished(
                    answer.text,
                    answer.finish_reason,
                    answer.tool_calls,
                    answer.usage.total,
                    round((monotonic_s() - started_s) * 1000),
                    answer.model,
                )
            )

        while True:
            try:
                journaled, reused = await self._try(label, identity, call, ask, tries, windowed, keep_back)
                break
            except JobError as error:
                error.step = error.step or label
                if shown or not await self.try_again(tries, error):
                    raise
        finished = msgspec.json.decode(journaled, type=Finished)
        if reused and on_text is not None and finished.text:
            on_text(finished.text)
        return finished

    async def _try(
        self,
        label: str,
        identity: bytes,
        call: ChatCall,
        ask: Callable[[Step, Progress], Awaitable[bytes]],
        tries: Tries,
        windowed: bool,
        keep_back: int,
    ) -> tuple[bytes, bool]:
        """One try, as a step of its own in the books."""
        reserve = await self._reservation(tries.model, call)

        async def made(step: Step, progress: Progress) -> bytes:
            if not self.deps.counter.is_known(tries.model):
                step.input_bytes = self.deps.counter.chat_bytes(call.messages, call.schema, call.tools)
            return await ask(step, progress)

        if not windowed:
            return await self.step(label, identity, reserve, made, keep_back)

        window = self.deps.model.discipline.of(tries.model).window
        patience = Patience(self.job.lane, self.ends_s)
        while True:
            place = await Place.take(window, self.job.job_id)
            try:
                progress = Progress(reserve.tokens, self.deps.counter.quick(reserve.model))
                result = await self._step(label, identity, reserve, made, keep_back, progress)
            except BlockedError as error:
                place.left()  # others need not wait for this job's limits
                await patience.wait(error.blocked)
                continue
            except BaseException as error:
                place.failed(error)
                raise
            if result[1]:
                place.left()  # it came from the journal
            else:
                place.served()
            return result

    async def try_again(self, tries: Tries, error: JobError) -> bool:
        """Waits until the next try; False when there is none."""
        before = tries.model
        wait_s = tries.after(error)
        if wait_s is None or monotonic_s() + wait_s > self.ends_s:
            return False
        MODEL_RETRIES.labels(error.code).inc()
        if tries.model != before:
            MODEL_FALLBACKS.inc()
            self.report.event(
                "job.warning", code="model_fallback", message=f"{before}: {error.message} Asking {tries.model} instead."
            )
        if wait_s:
            await asyncio.sleep(wait_s)
        return True

    async def step(
        self,
        label: str,
        identity: bytes,
        reserve: Reservation,
        make: Callable[[Step, Progress], Awaitable[bytes]],
        keep_back: int = 0,
        progress: Progress | None = None,
    ) -> tuple[bytes, bool]:
        """A journaled step that calls a model: its result, and whether it was there. It waits a little for limits.

        `make` returns the JSON to journal. Raises what it raises; BudgetExhausted, OverLimit, LeaseLostError.
        """
        patience = Patience(self.job.lane, self.ends_s)
        while True:
            try:
                fresh = progress or Progress(reserve.tokens, self.deps.counter.quick(reserve.model))
                return await self._step(label, identity, reserve, make, keep_back, fresh)
            except BlockedError as error:
                await patience.wait(error.blocked)

    async def _step(
        self,
        label: str,
        identity: bytes,
        reserve: Reservation,
        make: Callable[[Step, Progress], Awaitable[bytes]],
        keep_back: int,
        progress: Progress,
    ) -> tuple[bytes, bool]:
        """The same at once. Raises BlockedError when a limit keeps it from being made just now."""

        async def call(step: Step) -> bytes:
            # Here, not before: what is in the journal costs nothing more.
            self.check_budget(progress.input_tokens, keep_back)
            with self._open(progress) as close:
                step.usage, step.on_spent, progress.call_id = progress.usage, close, step.call_id
                if reserve.waits:
                    progress.on_dispatch = partial(self.journal.dispatched, step.call_id)
                if step.ratio is not None:
                    self.deps.counter.learn(reserve.model, step.ratio)
                try:
                    return await make(step, progress)
                finally:
                    self._count_cost(reserve, progress)

        return await self.journal.step(label, identity, call, reserve=reserve)

    def _count_cost(self, reserve: Reservation, progress: Progress) -> None:
        """What a call cost by the price that it is booked with."""
        usage = progress.usage()
        if reserve.price is not None:
            nano = reserve.price.cost_nano(usage.input_tokens, usage.output_tokens, usage.embedding_tokens)
            COST.labels(self.deps.model.measures.names.label(reserve.model)).inc(nano / 1e9)
        else:
            TOKENS_UNPRICED.inc(usage.total)

    async def _reservation(self, model: str, call: ChatCall) -> Reservation:
        """What a completion needs of the books."""
        tokens = await self.deps.counter.chat(model, call.messages, schema=call.schema, tools=call.tools)
        return Reservation(model, tokens, most=call.max_tokens or 0, price=self.deps.prices.price(model))

    @contextmanager
    def _open(self, progress: Progress) -> Iterator[Callable[[], None]]:
        """In the same breath as the check of the budget: calls beside this one see it as reserved."""
        self.open_calls.append(progress)

        def close() -> None:
            if progress in self.open_calls:
                self.open_calls.remove(progress)

        try:
            yield close
        finally:
            close()

    async def act(
        self, label: str, identity: bytes, make: Callable[[str], Awaitable[bytes]], *, once: bool, what: str
    ) -> tuple[bytes, bool]:
        """A journaled step that acts on the world and spends no tokens; `make` gets a key that is the same at each try.

        With `once`, when a worker was lost in the middle of it, a person is asked whether it happened: `what` says it.
        Raises what `make` raises; NeedsInput, LeaseLostError.
        """
        key = hashlib.sha256(f"{self.job.job_id} {step_name(label, identity)}".encode()).hexdigest()[:32]
        again_after = None
        asked = 0
        while True:
            try:
                return await self.journal.step(label, identity, lambda _: make(key), once=once, again_after=again_after)
            except UnsureError as unsure:
                asked += 1
                answer = await self.ask_person(
                    f"{label}/{unsure.call}/{asked}",
                    f"A worker was lost while it did this, and it must not happen twice: {what}. Did it happen? "
                    "Answer true (then it is taken as done) or false (then it is done now)."
                    + (" The last answer was neither." if asked > 1 else ""),
                )
                if not is_yes(answer) and not is_no(answer):
                    continue
                again_after = unsure.call
                if is_yes(answer):
                    return await self.journal.step(
                        label, identity, partial(_told, answer), once=once, again_after=again_after
                    )

    async def ask_person(self, label: str, question: str) -> Any:
        """A person's answer (any JSON value) to a question; `label` is its place in the job.

        Without an answer yet it raises NeedsInput, which the task lets pass: the job waits without a slot, and the task
        is run again when the answer is there.
        """
        request_id = f"{label}:{hashlib.sha256(question.encode()).hexdigest()[:16]}"
        found = await self.journal.answer(request_id)
        if found is None:
            raise NeedsInput(request_id, question)
        return msgspec.json.decode(found)

    def check_budget(self, ahead: int = 0, keep_back: int = 0) -> None:
        """Before each call (`ahead` estimates it) and at each piece of an answer: the stream is closed there."""
        budget = self.job.token_budget
        if budget is not None and self.tokens_reserved + ahead > budget - keep_back:
            raise self._budget_spent(budget, ahead, keep_back)

    def _budget_spent(self, budget: int, ahead: int, keep_back: int) -> BudgetExhausted:
        used = self.tokens
        reserved = self.tokens_reserved - used
        needs = f" and the next call reads {ahead}" if ahead else ""
        kept = f", {keep_back} are kept for the end" if keep_back else ""
        error = BudgetExhausted(
            f"The job's tokenBudget allows {budget} tokens: {used} are used, {reserved} reserved{kept}{needs}."
        )
        error.limit = LimitDetail(
            scope="job",
            id=self.job.job_id,
            unit="tokens",
            period="total",
            limit=budget,
            used=used,
            reserved=reserved,
            remaining=max(0, budget - used - reserved),
            frees_at=None,
        )
        return error


class Bounded:
    """The model for a task with many calls side by side: at most so many at a time, fewer when it says 429."""

    def __init__(self, context: JobContext, most: int, said: Mapping[str, Said] | None = None) -> None:
        """`said` are the prompts of the task, by their names."""
        self.settings = context.deps.settings
        self.said = said or {}
        self._context = context
        self._slots = asyncio.Semaphore(most)

    async def complete(self, label: str, call: ChatCall, *, accept: Callable[[str], Any] | None = None) -> Finished:
        """As that of JobContext."""
        async with self._slots:
            return await self._context.complete(label, call, accept=accept, windowed=True)


def is_yes(answer: Any) -> bool:
    """Whether a person's answer means yes."""
    return answer is True or (isinstance(answer, str) and answer.strip().casefold().rstrip(".!") in YES)


def is_no(answer: Any) -> bool:
    """Whether a person's answer means no."""
    return answer is False or (isinstance(answer, str) and answer.strip().casefold().rstrip(".!") in NO)


async def _told(answer: Any, _: Step) -> bytes:
    return msgspec.json.encode({"told": "A person says that this was done.", "answer": answer})
