"""All checks of one Redis, also of one that is out of reach."""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    NoPermissionError,
    RedisError,
)

from shared.diagnosis.findings import Check, State, Subject
from shared.diagnosis.redis_probe import read_redis
from shared.diagnosis.redis_rules import clock, judge
from shared.errors import ConfigurationError
from shared.keys import Keys
from shared.redis import OUTAGE, Redis
from shared.redis_url import redacted

REFUSALS: Final = (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)
START: Final = "Start Redis, or let REDIS_URL name one that runs; ./scripts/start brings one along."
ALLOW: Final = (
    "Let REDIS_URL have the right user and password; what this user must be allowed is in deploy/redis/users.acl."
)


async def check_redis(client: Redis, keys: Keys, *, allow_volatile: bool, who: str) -> tuple[Check, ...]:
    """The checks of this Redis, and of the clock of this host; `who` is the process that asks. Raises nothing: what
    Redis raises is what was found."""
    try:
        reading = await read_redis(client, keys)
    except ConfigurationError as error:
        return (_failed(str(error), "Upgrade Redis to 6.2 or later."),)
    except RedisError as error:
        # A refusal while redis-py connects is the cause of the error that it raises.
        if isinstance(error, REFUSALS) or isinstance(error.__cause__, REFUSALS):
            return (_failed(f"Redis refuses us: {_said(error)}", ALLOW),)
        if isinstance(error, OUTAGE):
            return (_failed(f"Redis is out of reach: {_said(error)}", START),)
        return (_failed(f"Redis refuses a command: {_said(error)}", ALLOW),)
    return (*judge(reading, allow_volatile=allow_volatile), clock(reading.offset_ms, reading.round_trip_ms, who))


def _failed(found: str, advice: str) -> Check:
    return Check(check=Subject.REDIS, state=State.FAIL, found=found, advice=(advice,))


def _said(error: Exception) -> str:
    return redacted(str(error) or type(error).__name__)[:300]
