"""The worker process of the benchmarks: `python -m worker` with a job type that does nothing, or sleeps.

The type is registered with the engine as any is; claim, lease, fencing, record, events, settlement, logs and metrics
run as always. `BENCH_SLEEP_S` is how long a job sleeps; `BENCH_COUNT` a file that gets the id of each run to
its end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import msgspec

from worker.__main__ import main
from worker.context import JobContext

SLEEP_S = float(os.environ.get("BENCH_SLEEP_S", "0"))
COUNT = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if (path := os.environ.get("BENCH_COUNT")) else 0


class Done(msgspec.Struct):
    """The result of a job that does nothing."""

    done: bool = True


async def noop(_: Any, context: JobContext) -> Done:
    """The task."""
    if SLEEP_S:
        await asyncio.sleep(SLEEP_S)
    if COUNT:
        # One write of a few bytes to a file opened for appending: whole, and there after a SIGKILL.
        os.write(COUNT, f"{context.job.job_id}\n".encode())
    return Done()


if __name__ == "__main__":
    sys.exit(main({"chat": noop}))
