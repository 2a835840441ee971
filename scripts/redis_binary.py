"""Which Redis server to run. Standard library only: set-up asks it before anything is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

FETCHED = "redis/redis-server"  # below the virtual environment
MIN_VERSION = (6, 2)
ADVICE = (
    "install redis-server or valkey-server 6.2 or later (on Debian: apt-get install redis-server), "
    "or set REDIS_URL to a Redis"
)


def usable(server: str | Path) -> bool:
    """Whether this server runs here and is 6.2 or later."""
    try:
        found = subprocess.run([server, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = re.search(r"v=(\d+)\.(\d+)", found.stdout)
    return match is not None and (int(match[1]), int(match[2])) >= MIN_VERSION


def find(venv: Path) -> str | None:
    """redis-server or valkey-server on the PATH, else the one fetched at set-up; None when there is none."""
    for candidate in (shutil.which("redis-server"), shutil.which("valkey-server"), str(venv / FETCHED)):
        if candidate is not None and usable(candidate):
            return candidate
    return None
