"""What `errand doctor` finds out by itself, where no API tells it."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from typing import Final
from urllib.parse import urlsplit

from shared.diagnosis.blob_checks import check_space
from shared.diagnosis.findings import Check, State, Subject
from shared.diagnosis.redis_checks import check_redis
from shared.errors import ConfigurationError
from shared.keys import Keys
from shared.redis import connect
from shared.redis_url import redacted
from shared.settings import Settings
from shared.version import our_version
from shared.workers import ModelState
from worker.model.client import Model

CONNECT_S: Final = 2.0
PACKAGES: Final = ("aiohttp", "arq", "msgspec", "openai", "redis")
LEAST_PYTHON: Final = (3, 11)


async def local_checks(url: str, *, is_there: bool) -> list[Check]:
    """The checks from this host. `url`: where the API was looked for; `is_there`: it answers, though it tells
    nothing."""
    checks = [python()]
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        checks.append(
            Check(
                check=Subject.SETTINGS,
                state=State.FAIL,
                found=redacted(str(error)),
                advice=("Correct this environment variable; docs/reference/settings.md has them all.",),
            )
        )
        settings = None
    else:
        checks.append(Check(check=Subject.SETTINGS, state=State.OK, found="are valid"))
    if not is_there:
        checks.append(await port(url))
    if settings is None:
        return checks
    if not settings.blobs and not is_there:
        checks.append(await check_space(settings.data_dir, needed_bytes=settings.max_upload_bytes))
    if os.environ.get("REDIS_URL"):
        checks.extend(await redis(settings))
    if os.environ.get("OPENAI_BASE_URL"):
        checks.append(await model(settings))
    return checks


def python() -> Check:
    """The interpreter and the packages that everything stands on."""
    found = [f"Errand {our_version()}", f"Python {platform.python_version()}"]
    missing = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    advice = []
    if sys.version_info < LEAST_PYTHON:
        advice.append("Use Python 3.11 or later.")
    if missing:
        advice.append(f"Install what is missing ({', '.join(missing)}) with: ./scripts/start, or pip install errand")
    state = State.FAIL if advice else State.OK
    return Check(check=Subject.PYTHON, state=state, found=", ".join(found), advice=tuple(advice))


async def port(url: str) -> Check:
    """Whether somebody listens where the API should be."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    number = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, number)
    except (OSError, TimeoutError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Check(check=Subject.PORT, state=State.OK, found=f"nothing listens on port {number} of {host} ({reason})")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Check(
        check=Subject.PORT,
        state=State.FAIL,
        found=f"port {number} of {host} is taken by something else than a healthy Errand",
        advice=(f"See who it is with `ss -ltnp 'sport = :{number}'`, and end it; or let PORT name another port.",),
    )


async def redis(settings: Settings) -> tuple[Check, ...]:
    """The checks of the Redis that REDIS_URL names."""
    try:
        client = connect(settings.redis_url)
    except ConfigurationError as error:
        advice = ("Correct REDIS_URL; its forms are in docs/reference/settings.md.",)
        return (Check(check=Subject.REDIS, state=State.FAIL, found=str(error), advice=advice),)
    try:
        return await check_redis(
            client,
            Keys(settings.redis_prefix),
            allow_volatile=settings.allow_volatile,
            who="this host's clock",
        )
    finally:
        await client.aclose()


async def model(settings: Settings) -> Check:
    """Whether the model's server lists its models, which nobody bills."""
    where = redacted(settings.openai_base_url)
    try:
        client = Model(settings)
    except ConfigurationError as error:
        advice = ("Correct OPENAI_BASE_URL.",)
        return Check(check=Subject.MODEL, state=State.FAIL, found=redacted(str(error)), advice=advice)
    try:
        seen = await client.health.ask()
    finally:
        await client.close()
    if seen.state is ModelState.REACHABLE:
        return Check(check=Subject.MODEL, state=State.OK, found=f"{where} answers")
    advice = (
        ("Set OPENAI_API_KEY to a key that this model takes.",)
        if seen.state is ModelState.REFUSED
        else ("Is OPENAI_BASE_URL right, with its /v1, and does the server run?",)
    )
    found = f"{where}: {seen.error or 'nothing is known of it'}"
    return Check(check=Subject.MODEL, state=State.FAIL, found=found, advice=advice)
