"""Plain arq's worker process of the benchmarks: a job that does nothing, or sleeps; `result stored` as arq does it.

python -m scripts.bench.arq_worker SLOTS POLL_S SLEEP_S
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any, cast

import redis.asyncio as redis_asyncio
from arq import func
from arq.connections import ArqRedis
from arq.worker import Worker

QUEUE = "bench-arq"


async def serve(slots: int, poll_s: float, sleep_s: float) -> None:
    """Runs until it is killed."""

    async def noop(_: Any) -> dict[str, bool]:
        if sleep_s:
            await asyncio.sleep(sleep_s)
        return {"done": True}

    pool: Any = ArqRedis(connection_pool=redis_asyncio.ConnectionPool.from_url(os.environ["REDIS_URL"]))
    worker = Worker(
        functions=[func(cast(Any, noop), name="noop")], redis_pool=pool, queue_name=QUEUE, poll_delay=poll_s,
        max_jobs=slots, handle_signals=False,
    )  # fmt: skip
    await worker.async_run()


if __name__ == "__main__":
    logging.getLogger("arq").setLevel(logging.ERROR)
    run = asyncio.run
    if sys.argv[4:] == ["uvloop"]:
        import uvloop

        run = uvloop.run
    run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
