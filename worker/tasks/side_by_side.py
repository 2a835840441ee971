"""Work side by side, of which an error that a retry may mend stops nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from shared.errors import JobError, LeaseLostError, OverLimit

T = TypeVar("T")


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in their order. When one raises JobError, LeaseLostError or OverLimit the others end first, so that
    what they finish is journaled and not paid again; then the first of these errors is raised."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_noted(one)) for one in work]
    outcomes = [task.result() for task in running]
    for outcome in outcomes:
        if isinstance(outcome, JobError | LeaseLostError | OverLimit):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, JobError | LeaseLostError | OverLimit)]


async def _noted(work: Coroutine[Any, Any, T]) -> T | JobError | LeaseLostError | OverLimit:
    try:
        return await work
    except (JobError, LeaseLostError, OverLimit) as error:
        return error
