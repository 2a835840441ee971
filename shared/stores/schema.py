"""The stored form: which releases can read what stands in this Redis (docs/upgrading.md)."""

from __future__ import annotations

from typing import Final

from shared.errors import ConfigurationError
from shared.keys import Keys
from shared.log import get_logger
from shared.redis import OUTAGE, Scripts, connect
from shared.settings import Settings

log = get_logger()

READS: Final = 1  # the newest stored form that this release reads
WRITES: Final = 1  # the oldest form whose readers can read all that this release writes; 1 is that of release 0.1.0


async def require_readable(settings: Settings, *, reads: int = READS, writes: int = WRITES) -> int:
    """The check at every start, and the mark that this release writes here. Returns the form that stands in this Redis.

    Raises ConfigurationError when a newer release has written what this one cannot read; nothing is changed then. While
    Redis is away nothing is known: 0, and the process starts.
    """
    client, keys = connect(settings.redis_url), Keys(settings.redis_prefix)
    try:
        stored = int(await Scripts(client, keys.prefix).run("schema", [keys.schema], reads=reads, writes=writes))
    except OUTAGE as error:
        log.warning("schema.not_checked", error=str(error))
        return 0
    finally:
        await client.aclose()
    if stored > reads:
        raise ConfigurationError(
            f"This Redis holds data of form {stored}, and this release reads forms up to {reads}: a newer release of "
            "Errand has written here. Run that release, or restore a backup from before (docs/upgrading.md)."
        )
    return stored
