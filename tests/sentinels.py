"""Three real Redis servers and three real Sentinels on loopback, from the files in deploy/sentinel."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from scripts import embedded_redis
from scripts.probes import free_port

EXAMPLES = Path(__file__).parents[1] / "deploy" / "sentinel"
ERRAND = {"username": "errand", "password": "errand-password"}
OPERATOR = {"username": "operator", "password": "operator-password"}
PEER = {"username": "peer", "password": "peer-password"}


class Server:
    """A process of the topology."""

    def __init__(self, port: int, command: list[str], log: Path) -> None:
        self.port = port
        self.command = command
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def ask(self, *command: str, **user: str) -> Any:
        client = redis.Redis(port=self.port, socket_timeout=1, **(user or ERRAND))  # type: ignore[arg-type]
        try:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            client.close()


class Topology:
    """`servers`: data, the first starts as the primary. `sentinels`: three."""

    def __init__(self, directory: Path, *, replicas: int, down_after_ms: int = 1_000) -> None:
        server = embedded_redis.find_server()
        ports = list(dict.fromkeys(free_port("127.0.0.1") for _ in range(100)))[: replicas + 4]
        self.servers = [self._data(server, directory / f"data-{i}", port, ports[0]) for i, port in
                        enumerate(ports[: replicas + 1])]  # fmt: skip
        self.sentinels = [
            self._sentinel(server, directory / f"sentinel-{port}", port, ports[0], down_after_ms)
            for port in ports[replicas + 1 :]
        ]

    @staticmethod
    def _data(server: str, directory: Path, port: int, primary: int) -> Server:
        directory.mkdir(parents=True)
        (directory / "users.acl").write_text((EXAMPLES / "users.acl").read_text())
        text = (EXAMPLES / "redis.conf").read_text()
        text = text.replace("port 6379", f"port {port}").replace("/etc/redis", str(directory))
        text = text.replace("/var/lib/redis", str(directory)).replace("repl-diskless-sync yes", FAST_SYNC)
        if port != primary:
            text += f"replicaof 127.0.0.1 {primary}\n"
        (directory / "redis.conf").write_text(text)
        return Server(port, [server, str(directory / "redis.conf")], directory / "log")

    @staticmethod
    def _sentinel(server: str, directory: Path, port: int, primary: int, down_after_ms: int) -> Server:
        directory.mkdir(parents=True)
        text = (EXAMPLES / "sentinel.conf").read_text()
        text = text.replace("port 26379", f"port {port}").replace("/var/lib/redis", str(directory))
        text = text.replace("monitor errand redis-1 6379", f"monitor errand 127.0.0.1 {primary}")
        text = re.sub(r"(down-after-milliseconds errand) \d+", rf"\1 {down_after_ms}", text)
        text = re.sub(r"(failover-timeout errand) \d+", r"\1 6000", text)
        (directory / "sentinel.conf").write_text(text)
        return Server(port, [server, str(directory / "sentinel.conf"), "--sentinel"], directory / "log")

    @property
    def sentinel_hosts(self) -> str:
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    def url(self, options: str = "replicas=1") -> str:
        return (
            f"redis+sentinel://errand:errand-password@{self.sentinel_hosts}/errand/0"
            f"?sentinel_username=errand&sentinel_password=errand-asks&{options}"
        ).removesuffix("&")

    def start(self) -> None:
        """Returns when all replicas follow and all Sentinels know of everything."""
        for server in self.servers:
            server.start()
        until(lambda: self.servers[0].ask("ROLE")[2:] and len(self.servers[0].ask("ROLE")[2]) == len(self.servers) - 1)
        for sentinel in self.sentinels:
            sentinel.start()
        until(lambda: all(self.knows(sentinel) for sentinel in self.sentinels))

    def knows(self, sentinel: Server) -> bool:
        state = self._state(sentinel)
        return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (len(self.servers) - 1, 2)

    @staticmethod
    def _state(sentinel: Server) -> dict[str, str]:
        flat = [text.decode() for text in sentinel.ask("SENTINEL", "MASTER", "errand", **PEER)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def primary(self, *, unlike: Server | None = None) -> Server:
        """The primary that a majority of the Sentinels name, once it is another than `unlike`."""
        found: list[Server] = []

        def is_settled() -> bool:
            named = [int(self._state(sentinel)["port"]) for sentinel in self.sentinels]
            port = max(named, key=named.count)
            server = next(server for server in self.servers if server.port == port)
            found[:] = [server]
            return named.count(port) >= 2 and server is not unlike and server.ask("ROLE")[0] in (b"master", "master")

        until(is_settled)
        return found[0]

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            if server.process is not None:
                with suppress(ProcessLookupError):
                    server.signal(signal.SIGCONT)
                server.kill()


# Waiting for more replicas before a copy is sent is for networks.
FAST_SYNC = "repl-diskless-sync yes\nrepl-diskless-sync-delay 0\nrepl-ping-replica-period 1"


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError, OSError):
            if condition():
                return
        assert time.monotonic() < deadline, "the servers did not get there"
        time.sleep(0.05)
