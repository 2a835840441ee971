"""`python -m api`: serves until SIGINT or SIGTERM. Exit code 2 when a setting, the port or Redis is wrong."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from api.app import create_app
from api.keys import DOORS, TENANTS
from api.server import EdgeRunner
from shared import tracing
from shared.errors import ConfigurationError
from shared.ids import new_api_key
from shared.log import configure, get_logger
from shared.metrics import count_tasks
from shared.redis import OUTAGE, connect, redis_now_ms, wait_until_durable
from shared.settings import Settings
from shared.stores.schema import require_readable

log = get_logger()

SHUTDOWN_S = 5.0
MANY_FILES = 65_536
FEW_FILES = 2_048


async def admin_key(settings: Settings) -> str:
    """The admin key: the setting, or the file in the data directory, made (mode 0600) at the first start."""
    if settings.admin_key:
        return settings.admin_key
    client = connect(settings.redis_url)
    try:
        _, fresh = new_api_key(await redis_now_ms(client))
    finally:
        await client.aclose()
    try:
        return await asyncio.to_thread(keep_admin_key, settings.data_dir / "admin.key", fresh)
    except OSError as error:
        raise ConfigurationError(f"The admin key cannot be kept in {settings.data_dir}: {error}") from None


def keep_admin_key(path: Path, fresh: str) -> str:
    """The key in the file; `fresh` is written there first when there is none. Raises OSError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{secrets.token_hex(8)}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(fresh + "\n")
            file.flush()
            os.fsync(file.fileno())
        # The first of several processes wins; the others read what it wrote.
        with suppress(FileExistsError):
            os.link(aside, path)
            log.info("admin_key.created", path=str(path.resolve()))
        aside.unlink()
    return path.read_text().strip()


async def serve(settings: Settings) -> None:
    """Runs the API until a signal. Raises ConfigurationError."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    count_tasks(asyncio.get_running_loop())
    found = await wait_until_durable(settings.redis_url, allow_volatile=settings.allow_volatile)
    await require_readable(settings)
    for text in (*found.unknown, *found.wrong):
        log.warning("redis.durability_doubted", detail=text)
    app = create_app(settings)
    key, warned = await admin_key(settings), False
    while not stop.is_set():
        try:
            await app[TENANTS].ensure_admin(key)
            break
        except OUTAGE as error:
            # Redis is away, or full: that passes, and a start must not end for it.
            if not warned:
                log.warning("start.waits_for_redis", error=str(error))
            warned = True
            await asyncio.sleep(0.5)
    runner = EdgeRunner(app, settings, shutdown_timeout=SHUTDOWN_S, doors=app[DOORS])
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise ConfigurationError(
                    f"The API cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno)}. "
                    "Set PORT or HOST."
                ) from None
            raise
        host, port = runner.addresses[0][:2]
        log.info("api.started", url=f"http://{host}:{port}")
        # What stands now stays. The rest is collected in small portions: with thousands of streams the collector's own
        # thresholds stop the loop for a third of a second while they come; these for 13 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 10, 100)
        await stop.wait()
        log.info("api.stopping")
    finally:
        await runner.cleanup()
    log.info("api.stopped")


def raise_open_files() -> int:
    """Raises this process's bound of open files as far as it may; the bound. Each open stream is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MANY_FILES if soft == resource.RLIM_INFINITY else soft


def main() -> int:
    """The process. Returns its exit code."""
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    configure(settings.log_format, settings.log_level, "api")
    try:
        tracing.configure(settings, "api")
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    open_files = raise_open_files()
    if open_files < FEW_FILES:
        log.warning("open_files.few", limit=open_files, detail="each stream needs one; raise it with ulimit -n")
    try:
        import uvloop

        run = uvloop.run
    except ImportError:  # no wheel for this platform: asyncio's own loop does the same, more slowly
        run = asyncio.run  # type: ignore[assignment]
    try:
        run(serve(settings))
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    finally:
        tracing.close(tracing.CLOSE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
