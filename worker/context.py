"""What a task gets: its job, the model, the journal, the report. A task returns a Result or raises; it never writes
state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from shared.blobs import Blobs
from shared.errors import BudgetExhausted, JobError, NeedsInput
from shared.settings import Settings
from shared.stores.documents import DocumentsStore
from shared.stores.jobs import Claimed
from worker.documents.library import Library
from worker.journal import Journal, Step
from worker.model.client import ChatCall, Completion, Model, Progress
from worker.report import Report
from worker.tools.registry import Toolbox


class Deps(msgspec.Struct, frozen=True):
    """What all jobs of a worker share."""

    settings: Settings
    model: Model
    blobs: Blobs
    documents: DocumentsStore
    library: Library
    tools: Toolbox


class Finished(msgspec.Struct, frozen=True):
    """A completion as it is journaled."""

    text: str
    finish_reason: str


class JobContext:
    """One attempt of one job, as its task sees it."""

    def __init__(self, claimed: Claimed, deps: Deps, journal: Journal, report: Report) -> None:
        self.job = claimed
        self.deps = deps
        self.journal = journal
        self.report = report
        self.open_calls: list[Progress] = []

    @property
    def tokens(self) -> int:
        """Tokens of the job so far, those of the calls under way included."""
        return self.journal.tokens_spent + sum(progress.usage().total for progress in self.open_calls)

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
    ) -> Finished:
        """One model call as a journaled step `label`.

        `on_text` gets the answer as it comes, also when it comes from the journal. `accept` looks at the whole answer
        and raises BadOutput when it has not the asked form: then it is booked, but not journaled, so that a retry asks
        again. Raises JobError with `step` set, and LeaseLostError.
        """
        progress = Progress(call)
        self._check_budget(progress.input_tokens)
        # In the same breath as the check: calls beside this one see it as reserved.
        self.open_calls.append(progress)

        def close() -> None:
            if progress in self.open_calls:
                self.open_calls.remove(progress)

        def heard(text: str) -> None:
            if on_text is not None:
                on_text(text)
            self._check_budget()

        async def ask(step: Step) -> bytes:
            step.usage, step.on_spent = progress.usage, close
            try:
                completion: Completion = await self.deps.model.complete(self.job.model, call, progress, heard)
            finally:
                await self.report.flush()
            if accept is not None:
                accept(completion.text)
            return msgspec.json.encode(Finished(completion.text, completion.finish_reason))

        try:
            identity = msgspec.json.encode([self.job.model, call])
            journaled, reused = await self.journal.step(label, identity, progress.input_tokens, ask)
        except JobError as error:
            error.step = error.step or label
            raise
        finally:
            close()
        finished = msgspec.json.decode(journaled, type=Finished)
        if reused and on_text is not None:
            on_text(finished.text)
        return finished

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

    def _check_budget(self, ahead: int = 0) -> None:
        """Before each call (`ahead` estimates it) and at each piece of an answer: the stream is closed there."""
        budget = self.job.token_budget
        if budget is not None and self.tokens_reserved + ahead > budget:
            raise BudgetExhausted(f"The job's tokenBudget of {budget} is spent: {self.tokens} tokens were used.")
