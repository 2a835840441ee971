"""A Redis server of our own: found on the PATH or fetched at set-up, on a private Unix socket, append-only, `always`,
`noeviction`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import redis

from shared.errors import ConfigurationError

MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 104 to 108
FETCHED = "redis/redis-server"


def find_server() -> str:
    """The server to run. Raises ConfigurationError with what to install when there is none of 6.2 or later."""
    fetched = Path(sys.prefix) / FETCHED
    seen = []
    for candidate in (shutil.which("redis-server"), shutil.which("valkey-server"), str(fetched)):
        if candidate is None or not Path(candidate).exists():
            continue
        version = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        match = re.search(r"v=(\d+)\.(\d+)", version)
        if match and (int(match[1]), int(match[2])) >= (6, 2):
            return candidate
        seen.append(f"{candidate} is too old or does not run")
    raise ConfigurationError(
        "no Redis server was found: install redis-server or valkey-server 6.2 or later "
        "(on Debian: apt-get install redis-server), or set REDIS_URL to a Redis" + "".join(f"; {text}" for text in seen)
    )


def socket_path(directory: Path) -> Path:
    """Where the socket lies: in the directory, or, where its path is too long for a socket, in a private one."""
    path = directory / "redis.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"errand-{os.getuid()}-{digest}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{private} belongs to another user")
    return private / "redis.sock"


def command(server: str, directory: Path, socket: Path) -> list[str]:
    """The command line of a durable server that listens on the socket only."""
    return [
        server,
        "--port", "0",
        "--unixsocket", str(socket),
        "--unixsocketperm", "700",
        "--dir", str(directory),
        "--appendonly", "yes",
        "--appendfsync", "always",
        "--maxmemory-policy", "noeviction",
        "--save", "",
        "--daemonize", "no",
        "--logfile", str(directory / "redis.log"),
    ]  # fmt: skip


def url_of(socket: Path) -> str:
    """The REDIS_URL of a socket."""
    return f"unix://{socket}"


def answers(socket: Path) -> bool:
    """Whether the server answers: it does not while it loads its data."""
    if not socket.exists():
        return False
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=1)
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
        return False
    finally:
        client.close()
