"""REDIS_URL, read: one server, or a primary that Sentinels know.

    redis://user:password@host:6379/0
    rediss://…                                      the same over TLS
    unix:///run/redis.sock
    redis+sentinel://user:password@s1:26379,s2:26379,s3:26379/mymaster/0
    rediss+sentinel://…                             primary and Sentinels over TLS

What stands after `?` are options of redis-py's connection (`ssl_ca_certs=…`) and ours: `replicas=1`,
`sentinel_username=…`, `sentinel_password=…`.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec
from redis.asyncio.connection import parse_url

from shared.errors import ConfigurationError

SENTINEL_PORT: Final = 26379
MAX_REPLICAS: Final = 5
_FOLLOWING: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_SECRETS: Final = re.compile(r"(//).*@|(password=)[^&]*")


class Address(msgspec.Struct, frozen=True):
    """Where Redis is. `options` are redis-py's for a connection; with `sentinels` (host, port) they have no host, and
    `service` is the name by which the Sentinels know the primary. `replicas`: how many must have confirmed a write
    before it counts."""

    options: dict[str, Any]
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: dict[str, Any] = {}
    replicas: int = 0


def read_address(url: str) -> Address:
    """Raises ConfigurationError, which names what is wrong and shows no password."""
    try:
        return _read(url)
    except (ValueError, TypeError) as error:
        # What the library says of a port may be a piece of a password.
        why = "a port is a number, and / # ? in a password are %2F %23 %3F" if "Port" in str(error) else error
        raise ConfigurationError(f"REDIS_URL={redacted(url)!r} is not a Redis address: {why}") from None


def redacted(url: str) -> str:
    """The URL without its passwords."""
    return _SECRETS.sub(lambda match: "//…@" if match[1] else f"{match[2]}…", url)


def _read(url: str) -> Address:
    parts = urlsplit(url)
    scheme = _FOLLOWING.get(parts.scheme, parts.scheme)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    replicas = int(query.pop("replicas", "0"))
    if not 0 <= replicas <= MAX_REPLICAS:
        raise ValueError(f"replicas is 0 to {MAX_REPLICAS}")
    sentinel_user = query.pop("sentinel_username", None)
    sentinel_password = query.pop("sentinel_password", None)
    if scheme == parts.scheme:
        if sentinel_user is not None or sentinel_password is not None:
            raise ValueError("only redis+sentinel:// has Sentinels")
        return Address({**parse_url(parts._replace(query=urlencode(query)).geturl())}, replicas=replicas)

    userinfo, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("redis+sentinel://HOST:26379,…/NAME needs the NAME that the Sentinels give the primary")
    if db and not db.isdecimal():
        raise ValueError(f"{db!r} is not the number of a database")
    plain = f"{scheme}://{userinfo + '@' if userinfo else ''}primary:1/{quote(db)}?{urlencode(query)}"
    options: dict[str, Any] = {**parse_url(plain)}
    del options["host"], options["port"]
    # Sentinels have their own users, and no databases; TLS is the same for both.
    theirs = {key: value for key, value in options.items() if key.startswith("ssl") or key == "connection_class"}
    if sentinel_user is not None:
        theirs["username"] = sentinel_user
    if sentinel_password is not None:
        theirs["password"] = sentinel_password
    return Address(options, tuple(_sentinel(host) for host in hosts.split(",")), unquote(service), theirs, replicas)


def _sentinel(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("redis+sentinel:// needs the hosts of the Sentinels, with commas between")
    return parts.hostname, SENTINEL_PORT if parts.port is None else parts.port
