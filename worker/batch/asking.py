"""Asking a model for the vectors of one batch: request by request, repeated as the discipline says, split where one
text of many is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shared.errors import JobError, UpstreamRefused
from shared.specs import EmbeddingSource
from worker.batch.parts import Failure, Found
from worker.context import JobContext, leave
from worker.model.calls import Embedded, EmbeddingCall, Requests, estimate_text_tokens

SPLITTABLE: Final = frozenset({400, 413, 422})  # one text of many may be the reason
GIVE_UP_AFTER: Final = 8  # single texts refused and none ever taken: it is not the texts


class Verdict:
    """Whether it is a job's texts that are refused, or all that it asks for; one for all its batches."""

    def __init__(self) -> None:
        self._is_taken = False
        self._refused = 0

    def taken(self) -> None:
        """The model took texts of this job."""
        self._is_taken = True

    def refused(self, error: UpstreamRefused) -> None:
        """One text alone was refused. Raises the error when it does not seem to be the text's fault."""
        self._refused += 1
        if not self._is_taken and self._refused >= GIVE_UP_AFTER:
            raise error


class Asking:
    """The requests of one batch, one after another."""

    def __init__(
        self,
        context: JobContext,
        spec: EmbeddingSource,
        verdict: Verdict,
        requests: Requests,
        on_placed: Callable[[], None],
    ) -> None:
        """`on_placed` is called once: the batch is at the model, or needs it no more, and another may get ready."""
        self.dimensions: int | None = None
        self._context = context
        self._spec = spec
        self._verdict = verdict
        self._requests = requests
        self._on_placed: Callable[[], None] | None = on_placed

    def leave_the_ready(self) -> None:
        """See `on_placed`."""
        if self._on_placed is not None:
            self._on_placed()
            self._on_placed = None

    async def vectors(self, texts: list[str]) -> list[Found]:
        """A vector or a failure for each text. A request that is refused is split until the text is found that it is
        refused for."""
        if not texts:
            self.leave_the_ready()
            return []
        try:
            answer = await self._request(texts)
        except UpstreamRefused as error:
            if error.status not in SPLITTABLE:
                raise
            if len(texts) == 1:
                self._verdict.refused(error)
                return [Failure(error.code, error.message)]
            middle = len(texts) // 2
            return [*await self.vectors(texts[:middle]), *await self.vectors(texts[middle:])]
        self.dimensions = answer.dimensions
        return list(answer.vectors)

    async def _request(self, texts: list[str]) -> Embedded:
        """One request, repeated as `worker.model.discipline` says. Raises JobError."""
        context, spec = self._context, self._spec
        model = context.deps.model
        window = model.discipline.of(context.job.model).window
        tries = model.discipline.tries(context.job.model, windowed=True, alone=True)
        call = EmbeddingCall(texts, spec.dimensions, spec.encoding)
        estimate = sum(map(estimate_text_tokens, texts))
        while True:
            place = await window.enter(context.job.job_id)
            self.leave_the_ready()
            progress = self._requests.begin(estimate)
            try:
                answer = await model.embed(context.job.model, call, progress)
            except BaseException as error:
                leave(window, place, error)
                if not isinstance(error, JobError):
                    raise  # what was used so far is booked as it stands
                self._requests.end(wasted=True)
                if not await context.try_again(tries, error):
                    raise
                continue
            window.served(place)
            self._requests.end(wasted=False)
            self._verdict.taken()
            return answer
