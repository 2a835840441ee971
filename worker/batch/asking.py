"""Asking a model for the vectors of one batch: request by request, repeated as the discipline says, split where one
text of many is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from shared.errors import (
    BadOutput,
    JobError,
    LeaseLostError,
    OverLimit,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamUnavailable,
)
from shared.specs import EmbeddingOptions
from shared.stores.events import Blocked
from worker.batch.parts import Failure, Found
from worker.context import JobContext
from worker.limits import over_limit
from worker.model.calls import Embedded, EmbeddingCall, Requests
from worker.model.window import Place

SPLITTABLE: Final = frozenset({400, 413, 422, 500})  # one text of many may be the reason
GIVE_UP_AFTER: Final = 8  # single texts refused and none ever taken: it is not the texts


class Verdict:
    """What a job's batches have learned of it together."""

    def __init__(self) -> None:
        self.error: JobError | LeaseLostError | OverLimit | None = None  # why nothing more is asked
        self._is_taken = False
        self._refused = 0

    def taken(self) -> None:
        """The model took texts of this job."""
        self._is_taken = True

    def refused(self) -> bool:
        """One text alone was refused; whether it does not seem to be the text's fault."""
        self._refused += 1
        return not self._is_taken and self._refused >= GIVE_UP_AFTER


class _UnmadeError(Exception):
    """Not one text of a request has a vector: why, for each."""

    def __init__(self, error: JobError, failures: list[Found]) -> None:
        super().__init__(error.message)
        self.error = error
        self.failures = failures


class Asking:
    """The requests of one batch, one after another."""

    def __init__(
        self,
        context: JobContext,
        spec: EmbeddingOptions,
        verdict: Verdict,
        requests: Requests,
        tokens: Mapping[str, int],
        on_placed: Callable[[], None],
        model: str | None = None,
    ) -> None:
        """`tokens` of each text. `on_placed` is called once: the batch is at the model, or needs it no more, and
        another may get ready. `model` where it is not the job's."""
        self.dimensions: int | None = None
        self._context = context
        self._model = model or context.job.model
        self._spec = spec
        self._verdict = verdict
        self._requests = requests
        self._tokens = tokens
        self._on_placed: Callable[[], None] | None = on_placed

    def leave_the_ready(self) -> None:
        """See `on_placed`."""
        if self._on_placed is not None:
            self._on_placed()
            self._on_placed = None

    async def vectors(self, texts: list[str]) -> list[Found]:
        """A vector or a failure for each text. A request that fails for its texts is split until those are found.

        Raises JobError when it does not seem to be the texts: the model is out of order, or refuses all that is asked.
        """
        if not texts:
            self.leave_the_ready()
            return []
        try:
            return await self._split(texts, probe=texts[-1], is_whole=True)
        except _UnmadeError as unmade:
            if isinstance(unmade.error, UpstreamRefused):
                return unmade.failures
            raise unmade.error from None

    async def _split(self, texts: list[str], *, probe: str, is_whole: bool = False) -> list[Found]:
        """The same for a part of them; raises _UnmadeError when none of these texts has a vector."""
        try:
            answer = await self._request(texts, repeat=is_whole)
        except JobError as error:
            if not _may_be_the_texts(error):
                raise
            if len(texts) == 1:
                if isinstance(error, UpstreamRefused) and self._verdict.refused():
                    await self._request([probe])  # raises when another text is refused too
                raise _UnmadeError(error, [Failure(error.code, error.message)]) from None
            if is_whole and not isinstance(error, UpstreamRefused):
                await self._look_for_life(texts, error)
        else:
            self.dimensions = answer.dimensions
            return list(answer.vectors)
        middle = len(texts) // 2
        found: list[Found] = []
        unmade: list[_UnmadeError] = []
        for half in (texts[:middle], texts[middle:]):
            try:
                found += await self._split(half, probe=probe)
            except _UnmadeError as failed:
                found += failed.failures
                unmade.append(failed)
        if len(unmade) == 2:
            raise _UnmadeError(unmade[0].error, found)
        return found

    async def _look_for_life(self, texts: list[str], error: JobError) -> None:
        """A server that falls over a request may be out of order, or fall over one text: it is asked for the last and
        the first alone. Raises `error` when it gives neither."""
        for text in (texts[-1], texts[0]):
            try:
                await self._request([text], repeat=False)
                return
            except JobError as again:
                if not _may_be_the_texts(again):
                    raise
        raise error

    async def _request(self, texts: list[str], *, repeat: bool = True) -> Embedded:
        """One request, repeated as `worker.model.discipline` says; not for its failures, unless `repeat`. Raises
        JobError."""
        context, spec = self._context, self._spec
        model = context.deps.model
        window = model.discipline.of(self._model).window
        tries = model.discipline.tries(self._model, windowed=True, alone=True)
        call = EmbeddingCall(texts, spec.dimensions, spec.encoding)
        tokens = sum(self._tokens[text] for text in texts)
        while True:
            place = await Place.take(window, context.job.job_id)
            self.leave_the_ready()
            if self._verdict.error is not None:
                place.left()
                raise self._verdict.error
            try:
                answer = await self._place_request(call, tokens)
            except JobError as error:
                place.failed(error)
                self._requests.end(wasted=True)
                waits = repeat or isinstance(error, UpstreamRateLimited)
                if not waits or not await context.try_again(tries, error):
                    raise
                continue
            except BaseException as error:
                place.failed(error)  # what was used so far is booked as it stands
                raise
            place.served()
            self._requests.end(wasted=False)
            self._verdict.taken()
            return answer

    async def _place_request(self, call: EmbeddingCall, tokens: int) -> Embedded:
        context, requests = self._context, self._requests
        more = requests.usage().total + tokens - requests.reserved
        if more > 0:
            context.check_budget(more)
            granted = await context.journal.extend_texts(requests.call_id, requests.reserved, more)
            if isinstance(granted, Blocked):
                raise over_limit(granted, is_cut=True)
            requests.reserved = granted
        return await context.deps.model.embed(self._model, call, requests.begin(tokens))


def _may_be_the_texts(error: JobError) -> bool:
    """Whether a request may have failed for one of its texts: refused, a server that fell over it, or left it out."""
    if isinstance(error, UpstreamRefused | UpstreamUnavailable):
        return error.status in SPLITTABLE
    return isinstance(error, BadOutput)
