"""What is left in Redis when everything is over: each key by its kind, and whether its lifetime lets it be."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final

import redis

from shared.keys import KEY_KINDS, KeyKind

PREFIX: Final = "errand:"
SCAN: Final = 2_000
EXAMPLES: Final = 3

# The beginnings of what shared.keys.KEY_KINDS says of lifetimes. `stays`: while its tenant, or the installation, is
# there; `timed`: it must have a time to live; `goes`: nothing of it may be left when no job, call or document is.
STAYS: Final = ("for ever", "as the tenant", "until it is deleted", "until revoked", "the newest", "as the workers",
                "as the version")  # fmt: skip
TIMED: Final = (
    "10 s",
    "24 h",
    "30 days",
    "90 days",
    "15 s",
    "a day",
    "until 90 days",
    "until its buckets",
    "until its retention",
)
GOES: Final = ("until retention ends", "as the record", "while", "as its members", "as its documents",
               "as the entry", "as the index version", "until deleted")  # fmt: skip
# Of these the lifetime is that of members with a time of their own, or of a collection that its tenant keeps.
TIMED_FORMS: Final = (
    "searches:{tenantId}",
    "searchuser:{tenantId}:{hash}",
    "searchdoc:{tenantId}:{documentId}",
    "deliveries:{tenantId}",
    "deliveries:{tenantId}:{status}",
    "jobdeliveries:{tenantId}:{jobId}",
    # Before they are in an index: of a job that was lost in the middle.
    "pack:{tenantId}:{documentId}:{version}:{revision}",
    "vectors:{tenantId}:{documentId}:{version}:{revision}:{name}",
)
LIVE: Final = ("workers:{lane}", "fleet", "idle:{lane}", "worker:{workerId}")
COLLECTIONS: Final = ("collection:{tenantId}:{name}",)


def fate(kind: KeyKind) -> str:
    """`stays`, `timed` or `goes`. Raises ValueError for a lifetime that nobody has thought of here."""
    if kind.form in TIMED_FORMS:
        return "timed"
    if kind.form in LIVE or kind.form in COLLECTIONS:
        return "stays"
    for word, beginnings in (("stays", STAYS), ("timed", TIMED), ("goes", GOES)):
        if kind.lifetime.startswith(beginnings):
            return word
    raise ValueError(f"no rule for keys that live {kind.lifetime!r} ({kind.form})")


def _pattern(form: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]*\})", form)
    last = max((place for place, part in enumerate(parts) if part.startswith("{")), default=-1)
    text = ""
    for place, part in enumerate(parts):
        if not part.startswith("{"):
            text += re.escape(part)
        elif part == "{lane}":
            text += "(?:interactive|batch)"
        elif part == "{scope}" or place == last:
            text += ".+"
        else:
            text += "[^:]+"
    return re.compile(text, re.DOTALL)


_STORED: Final = [kind for kind in KEY_KINDS if kind.type != "channel"]
# The most literal first: `q:{lane}:served` before `q:{lane}:{tenantId}`.
_PATTERNS: Final = sorted(
    ((_pattern(kind.form), kind) for kind in _STORED),
    key=lambda pair: -len(re.sub(r"\{[^}]*\}", "", pair[1].form)),
)


def kind_of(name: str) -> KeyKind | None:
    """The kind of a key, given without the prefix; None for one that is not documented."""
    return next((kind for pattern, kind in _PATTERNS if pattern.fullmatch(name)), None)


class Leftovers:
    """A look at all keys."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def counts(self) -> Counter[str]:
        """Keys by the form of their kind."""
        found: Counter[str] = Counter()
        for name in self._names():
            kind = kind_of(name)
            found[kind.form if kind is not None else name] += 1
        return found

    def _names(self) -> Iterable[str]:
        for name in self._client.scan_iter(f"{PREFIX}*", count=SCAN):
            yield name.decode("utf-8", "replace").removeprefix(PREFIX)

    def hasten(self) -> None:
        """Has the retention of all that is final be over now, as time would."""
        for job_id in self._client.zrange(f"{PREFIX}retention", 0, -1):
            self._client.zadd(f"{PREFIX}retention", {job_id: 1}, xx=True)

    def is_swept(self) -> bool:
        """Whether what is over is removed, blobs too."""
        return not self._client.exists(f"{PREFIX}retention", f"{PREFIX}trash")

    def wrong(self) -> list[str]:
        """Kinds of keys that should not be there, with examples."""
        found: dict[str, list[str]] = defaultdict(list)
        for name in self._names():
            kind = kind_of(name)
            if kind is None:
                found["no kind of shared.keys"].append(name)
            elif fate(kind) == "goes":
                found[f"{kind.form} ({kind.lifetime})"].append(name)
            elif fate(kind) == "timed" and kind.form not in LIVE and self._client.ttl(PREFIX + name) == -1:
                found[f"{kind.form} ({kind.lifetime}) without a time to live"].append(name)
        return [f"{len(names)} of {kind}: {', '.join(sorted(names)[:EXAMPLES])}" for kind, names in found.items()]

    def traces(self, tenants: Iterable[str]) -> list[str]:
        """Keys that have one of these tenants in their name or in what they hold, apart from the audit log."""
        marks = [tenant.encode() for tenant in tenants]
        found = []
        for name in self._names():
            if name == "audit":
                continue
            held = name.encode() + self._held(PREFIX + name)
            found += [f"{name} has {mark.decode()}" for mark in marks if mark in held]
        return found

    def _held(self, name: str) -> bytes:
        read = {
            b"string": lambda: self._client.get(name),
            b"hash": lambda: self._client.hgetall(name),
            b"list": lambda: self._client.lrange(name, 0, -1),
            b"set": lambda: self._client.smembers(name),
            b"zset": lambda: self._client.zrange(name, 0, -1),
            b"stream": lambda: self._client.xrange(name),
        }.get(self._client.type(name))
        return repr(read()).encode() if read is not None else b""

    def bare_bytes(self) -> int:
        """Redis's memory without what its keys take: connections, scripts, buffers."""
        used = int(self._client.info("memory")["used_memory"])
        names = list(self._client.scan_iter("*", count=SCAN))
        held = 0
        for start in range(0, len(names), SCAN):
            pipe = self._client.pipeline(transaction=False)
            for name in names[start : start + SCAN]:
                pipe.memory_usage(name, samples=0)
            held += sum(size or 0 for size in pipe.execute())
        return used - held
