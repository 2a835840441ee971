"""A Redis server of our own: found on the PATH or fetched at set-up, on a private Unix socket, append-only, `always`,
`noeviction`."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import redis

from scripts import redis_binary
from shared.errors import ConfigurationError

MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 104 to 108


def find_server() -> str:
    """The server to run. Raises ConfigurationError with what to install when there is none of 6.2 or later."""
    server = redis_binary.find(Path(sys.prefix))
    if server is None:
        raise ConfigurationError(f"no Redis server was found: {redis_binary.ADVICE}")
    return server


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
    return f"unix://{quote(str(socket))}"


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


def shut_down(socket: Path) -> None:
    """Ends a server that answers on the socket, in order: its data is on the disk already."""
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=10)
    try:
        client.shutdown()
    except (redis.ConnectionError, redis.TimeoutError):
        pass
    finally:
        client.close()
