"""A Redis 8 for tests of vector sets: ERRAND_TEST_REDIS8, what scripts/redis8 fetched, or the PATH's."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from scripts import embedded_redis
from tests.conftest import RedisServer

FETCHED = Path(__file__).parents[1] / ".errand" / "redis8" / "redis-server"
MISSING = "no Redis 8: run ./scripts/redis8, or name a server in ERRAND_TEST_REDIS8"


def find() -> list[str] | None:
    """The command line of a Redis 8; None when there is none. The one that the environment names is taken as it is."""
    if named := os.environ.get("ERRAND_TEST_REDIS8"):
        return shlex.split(named)
    for candidate in (str(FETCHED), shutil.which("redis-server")):
        if candidate is not None and Path(candidate).exists():
            told = subprocess.run([candidate, "--version"], capture_output=True, text=True).stdout
            match = re.search(r"^Redis server v=(\d+)\.", told)
            if match is not None and int(match[1]) >= 8:
                return [candidate]
    return None


class Redis8Server(RedisServer):
    """A durable Redis 8."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        super().__init__(directory)
        self.command = command

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        options = embedded_redis.command("", self.directory, self.socket)[1:]
        self.process = subprocess.Popen([*self.command, *options])
        deadline = time.monotonic() + 20
        while not embedded_redis.answers(self.socket):
            assert self.process.poll() is None, f"{shlex.join(self.command)} has ended"
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)
