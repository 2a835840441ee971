"""Slow clients against a real API process: what honest ones notice, what an attacker costs, and when it is cut.

`python -m scripts.bench.slow_clients --attackers 200`: half a minute without and with attackers of each kind (header,
body, answer that is not read), who send a byte a second or take nothing. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiohttp

from scripts import embedded_redis
from scripts.children import Child
from scripts.probes import free_port

KEY = "ek_01M81SGW152PHX78GHNCJWQHRS_" + "a" * 43
HEADER = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: "
BODY = (
    f"POST /api/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    "Content-Length: 100000\r\n\r\n"
).encode()
UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 50


def resident_mb(pid: int) -> float:
    """Memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def attacker(port: int, kind: str, lives: list[float], stop: asyncio.Event) -> None:
    """One connection until it is cut, or the run ends."""
    began = time.monotonic()
    # A small buffer: what is not read waits in the API.
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
    writer.write({"header": HEADER, "body": BODY, "unread": UNREAD}[kind])
    try:
        while not stop.is_set():
            writer.write(b" " if kind == "body" else b"a")
            await asyncio.sleep(1)
            if writer.is_closing() or reader.at_eof():
                lives.append(time.monotonic() - began)
                return
            if kind != "unread" and reader._buffer:  # type: ignore[attr-defined]  # it was answered: 408
                lives.append(time.monotonic() - began)
                return
    except ConnectionError:
        lives.append(time.monotonic() - began)
    finally:
        writer.transport.abort()


async def honest(base: str, seconds: float) -> list[float]:
    """Latencies in ms of clients that ask for a list, 20 a second, on connections of their own."""
    found: list[float] = []
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            async with session.get(f"{base}/api/jobs", headers=headers) as response:
                await response.read()
                assert response.status == 200, response.status
            found.append((time.monotonic() - began) * 1_000)
            await asyncio.sleep(0.05)
    return sorted(found)


def row(name: str, latencies: list[float], extra: str = "") -> None:
    """One line of the result."""
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    print(f"{name:<22} honest p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  ({len(latencies)} requests){extra}", flush=True)


async def measure(attackers: int, seconds: float, bound_s: float) -> None:
    """Starts Redis and the API, and measures."""
    with tempfile.TemporaryDirectory(prefix="errand-slow-") as folder:
        directory = Path(folder)
        path = directory / "redis.sock"
        run = directory / "run"
        run.mkdir()
        port = free_port("127.0.0.1")
        environment = {
            **os.environ, "REDIS_URL": embedded_redis.url_of(path), "PORT": str(port), "ERRAND_ADMIN_KEY": KEY,
            "ERRAND_DATA_DIR": folder, "ERRAND_HEADER_SECONDS": str(bound_s), "ERRAND_BODY_SECONDS": str(bound_s),
            "ERRAND_SEND_SECONDS": str(bound_s), "ERRAND_REDIS_PREFIX": f"slow{secrets.token_hex(2)}:",
            "ERRAND_LOG_LEVEL": "warning",
        }  # fmt: skip
        server = embedded_redis.command(embedded_redis.find_server(), directory, path)
        redis = Child("redis", server, environment, run, 5)
        api = Child("api", [sys.executable, "-m", "api"], environment, run, 5)
        hurry, base = asyncio.Event(), f"http://127.0.0.1:{port}"
        try:
            with (directory / "log").open("ab") as log:
                await redis.start(log)
                await api.start(log)
            async with asyncio.timeout(60), aiohttp.ClientSession() as session:
                while True:
                    with suppress(aiohttp.ClientError):
                        async with session.get(f"{base}/healthz"):
                            break
                    await asyncio.sleep(0.1)
            assert api.process is not None
            row("no attack", await honest(base, seconds))
            for kind in ("header", "body", "unread"):
                before, stop, lives = resident_mb(api.process.pid), asyncio.Event(), list[float]()
                tasks = [asyncio.create_task(attacker(port, kind, lives, stop)) for _ in range(attackers)]
                await asyncio.sleep(min(2.0, bound_s / 2))
                peak = resident_mb(api.process.pid)
                latencies = await honest(base, seconds + bound_s + 6)
                stop.set()
                await asyncio.gather(*tasks, return_exceptions=True)
                lived = f"cut {len(lives)}/{attackers}"
                if lives:
                    lived += f" after {min(lives):.1f} to {max(lives):.1f} s"
                row(
                    f"{attackers} x slow {kind}",
                    latencies,
                    f"  {(peak - before) * 1_000 / attackers:.0f} kB each, {lived}",
                )
        finally:
            await api.stop(hurry=hurry)
            await redis.stop(hurry=hurry)


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(description="Slow clients against a real API process.")
    parser.add_argument("--attackers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--bound", type=float, default=10, help="header, body and send bound of the API, in seconds")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.attackers, arguments.seconds, arguments.bound))
    return 0


if __name__ == "__main__":
    sys.exit(main())
