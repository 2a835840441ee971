"""What the tests share that draw random histories: a Redis without waiting for its disk, and how a history is run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from shared.redis import Redis, connect
from tests.conftest import RedisServer

STEPS = int(os.environ.get("LUA_MODEL_STEPS", "40"))
PHASES = [phase for phase in Phase if phase is not Phase.explain]  # which takes minutes here
T = TypeVar("T")


class Bench:
    """The Redis and the event loop that all histories share."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.client: Redis = connect(url)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def close(self) -> None:
        self.do(self.client.aclose())
        self.loop.close()


@contextmanager
def bench_in(directory: Path) -> Iterator[Bench]:
    """A Redis of its own, without waiting for its disk."""
    server = RedisServer(directory)
    server.start()
    made = Bench(server.url)
    made.do(made.client.config_set("appendfsync", "no"))
    try:
        yield made
    finally:
        made.close()
        server.stop()


def run_histories(machine: Callable[[], RuleBasedStateMachine], examples: int) -> None:
    """Runs so many random histories (or as many as LUA_MODEL_EXAMPLES says) of LUA_MODEL_STEPS steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("LUA_MODEL_EXAMPLES", examples)),
            stateful_step_count=STEPS,
            deadline=None,
            phases=PHASES,
            derandomize=False,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
