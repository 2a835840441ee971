"""What the figures of a Redis mean. Pure: a reading in, checks out."""

from __future__ import annotations

import re
from typing import Final

from shared.diagnosis.findings import Check, State, Subject, bytes_text
from shared.diagnosis.redis_probe import RedisReading

# The Lua engine's use after free of October 2025: whoever may run a script may run anything. The first release of each
# line that mends it; later lines have the mend from their start.
HOLE: Final = "CVE-2025-49844"
MENDED: Final = {
    "Redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "Valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
GOAL_MS: Final = 1.0  # p99 of a durable write: what the latencies in docs/proof.md presume
SLOW_PING_MS: Final = 5.0
DEAD_SLOW_MS: Final = 100.0
NEAR: Final = 0.8  # of a bound
AT: Final = 0.95
FRAGMENTED: Final = 1.5
WASTED_BYTES: Final = 256 * 1024 * 1024  # less than that is a small Redis's overhead, no fragmentation
SKEW_WARN_MS: Final = 1_000
SKEW_FAIL_MS: Final = 60_000
BEHIND_BYTES: Final = 16 * 1024 * 1024


def judge(reading: RedisReading, *, allow_volatile: bool) -> tuple[Check, ...]:
    """All checks of a Redis; `allow_volatile` as in the settings."""
    return (
        version(reading),
        durability(reading, allow_volatile=allow_volatile),
        persistence(reading),
        memory(reading),
        clients(reading),
        replication(reading),
        latency(reading),
        fsync(reading),
    )


def version(reading: RedisReading) -> Check:
    """Whether this release of the server has a known hole."""
    name = f"{reading.product} {reading.version}"
    numbers = [int(part) for part in re.findall(r"\d+", reading.version)[:3]]
    line, patch = (numbers[0], numbers[1]), numbers[2] if len(numbers) > 2 else 0
    mended = MENDED[reading.product]
    if line > max(mended) or patch >= mended.get(line, patch + 1):
        return Check(check=Subject.REDIS, state=State.OK, found=name)
    first = ".".join(map(str, (*line, mended[line]))) if line in mended else "a line that is still maintained"
    return Check(
        check=Subject.REDIS,
        state=State.WARN,
        found=f"{name} is a release in which a script can break out of Lua ({HOLE})",
        advice=(
            f"Upgrade it to {first} or later. A distribution may have mended it under the same number: look for "
            f"{HOLE} in its package's changelog.",
        ),
    )


def durability(reading: RedisReading, *, allow_volatile: bool) -> Check:
    """Whether what this Redis acknowledges survives its end."""
    wrong, unknown = reading.durability.wrong, reading.durability.unknown
    if wrong:
        accepted = ", which ERRAND_ALLOW_VOLATILE=1 accepts" if allow_volatile else ""
        return Check(
            check=Subject.DURABILITY,
            state=State.WARN if allow_volatile else State.FAIL,
            found=f"this Redis can lose what it acknowledged{accepted}",
            advice=wrong + unknown,
        )
    if unknown:
        found = "it cannot be read whether this Redis keeps what it acknowledges"
        return Check(check=Subject.DURABILITY, state=State.WARN, found=found, advice=unknown)
    found = "every acknowledged write is on disk (appendonly yes, appendfsync always, noeviction)"
    return Check(check=Subject.DURABILITY, state=State.OK, found=found)


def persistence(reading: RedisReading) -> Check:
    """Whether Redis's last writes to its disk went well."""
    state, found, advice = State.OK, [], []
    if reading.aof_write not in (None, "ok"):
        state = State.FAIL
        found.append("the last write of the append-only file failed, and writes are refused")
        advice.append("Look at Redis's log and at `df` of its directory: mostly its disk is full.")
    if reading.aof_rewrite not in (None, "ok"):
        state = max(state, State.WARN, key=list(State).index)
        found.append("the last rewrite of the append-only file failed: it grows")
        advice.append("Make room on Redis's disk and in its memory, then: redis-cli BGREWRITEAOF")
    if reading.snapshot not in (None, "ok"):
        state = max(state, State.WARN, key=list(State).index)
        found.append("the last snapshot failed; with save points Redis then refuses writes")
        advice.append("Make room on Redis's disk, then: redis-cli BGSAVE. The log of jobs needs no snapshots.")
    text = "; ".join(found) or "the append-only file was written, rewritten and saved without an error"
    return Check(check=Subject.PERSISTENCE, state=state, found=text, advice=tuple(advice))


def memory(reading: RedisReading) -> Check:
    """Whether Redis has room for more jobs."""
    used, bound = reading.used_bytes, reading.bound_bytes or reading.machine_bytes
    figures = {"usedBytes": float(used)}
    where = "maxmemory" if reading.bound_bytes else "the machine's memory"
    found, advice, state = [f"{bytes_text(used)} in use"], [], State.OK
    if bound:
        figures["boundBytes"] = float(bound)
        found = [f"{bytes_text(used)} of {bytes_text(bound)} in use ({where})"]
        if used >= NEAR * bound:
            state = State.FAIL if used >= AT * bound else State.WARN
            advice.append(
                "When it is full, every new job is refused. Raise it with: redis-cli CONFIG SET maxmemory BYTES; or "
                "keep jobs for a shorter time with ERRAND_RETENTION_SECONDS."
            )
    resident = reading.resident_bytes or 0
    if used and resident > FRAGMENTED * used and resident - used > WASTED_BYTES:
        state = max(state, State.WARN, key=list(State).index)
        found.append(f"{bytes_text(resident)} taken from the machine (fragmentation {resident / used:.1f})")
        advice.append("Let Redis tidy up with: redis-cli CONFIG SET activedefrag yes; or restart it at a quiet time.")
    if reading.evicted:
        state = max(state, State.WARN, key=list(State).index)
        found.append(f"{reading.evicted} keys were evicted since it started, perhaps jobs of ours")
        advice.append(
            "redis-cli CONFIG SET maxmemory-policy noeviction; then `errand books check`, and redis-cli CONFIG "
            "RESETSTAT, which forgets the count"
        )
        figures["evictedKeys"] = float(reading.evicted)
    return Check(check=Subject.MEMORY, state=state, found="; ".join(found), advice=tuple(advice), figures=figures)


def clients(reading: RedisReading) -> Check:
    """Whether Redis takes more connections."""
    bound, count = reading.clients_bound, reading.clients
    found = f"{count} connections" + (f" of {bound}" if bound else "")
    figures = {"connected": float(count)}
    if bound and count >= NEAR * bound:
        return Check(
            check=Subject.CLIENTS,
            state=State.FAIL if count >= AT * bound else State.WARN,
            found=f"{found}; beyond, processes cannot connect",
            advice=("redis-cli CONFIG SET maxclients N, and `ulimit -n` of Redis above that",),
            figures=figures,
        )
    return Check(check=Subject.CLIENTS, state=State.OK, found=found, figures=figures)


def replication(reading: RedisReading) -> Check:
    """Whether this is a primary, with the replicas that it should have."""
    if not reading.is_primary:
        return Check(
            check=Subject.REPLICATION,
            state=State.FAIL,
            found="this server is a replica, which takes no writes",
            advice=("Let REDIS_URL name the primary, or the Sentinels: redis+sentinel://s1,s2,s3/NAME/0",),
        )
    online = [one for one in reading.replicas if one.is_online]
    wanted = reading.replicas_wanted
    if len(online) < wanted:
        return Check(
            check=Subject.REPLICATION,
            state=State.FAIL,
            found=f"{len(online)} replicas are online, and REDIS_URL wants {wanted} for every write",
            advice=("Start the replica, or lower ?replicas= in REDIS_URL",),
        )
    behind = max((one.behind_bytes for one in online), default=0)
    waiting = len(reading.replicas) - len(online)
    if waiting or behind > BEHIND_BYTES:
        return Check(
            check=Subject.REPLICATION,
            state=State.WARN,
            found=f"{len(online)} replicas online, {waiting} not yet, the last {bytes_text(behind)} behind",
            advice=("See `redis-cli INFO replication`, and Redis's log on the replica",),
        )
    count = f"{len(online)} replica{'s' if len(online) > 1 else ''}" if online else "no replica"
    found = f"a primary with {count}"
    return Check(check=Subject.REPLICATION, state=State.OK, found=found)


def latency(reading: RedisReading) -> Check:
    """How fast Redis answers what asks for nothing."""
    ping = reading.ping
    figures = {"p50Ms": ping.p50_ms, "p99Ms": ping.p99_ms}
    found = f"PING p50 {ping.p50_ms:.2f} ms, p99 {ping.p99_ms:.2f} ms"
    if ping.p99_ms <= SLOW_PING_MS:
        return Check(check=Subject.LATENCY, state=State.OK, found=found, figures=figures)
    return Check(
        check=Subject.LATENCY,
        state=State.FAIL if ping.p50_ms > DEAD_SLOW_MS else State.WARN,
        found=found,
        advice=(
            "Put Redis near the API and the workers. When it is near, look for slow commands of others with "
            "`redis-cli SLOWLOG GET 10`, and for a machine that is short of CPU.",
        ),
        figures=figures,
    )


def fsync(reading: RedisReading) -> Check:
    """How long a write takes until it is durable, and whether that is the disk's time or the way's."""
    if reading.write is None:
        return Check(
            check=Subject.FSYNC,
            state=State.FAIL,
            found=f"Redis refuses writes: {reading.write_refusal}",
            advice=("Mend what Redis says there; until then no job is taken in.",),
        )
    write, read = reading.write, reading.read
    disk_ms = max(0.0, write.p99_ms - read.p99_ms)
    figures = {
        "writeP50Ms": write.p50_ms,
        "writeP99Ms": write.p99_ms,
        "readP50Ms": read.p50_ms,
        "readP99Ms": read.p99_ms,
    }
    found = (
        f"a durable write takes p50 {write.p50_ms:.2f} ms, p99 {write.p99_ms:.2f} ms; a read p50 {read.p50_ms:.2f} ms, "
        f"p99 {read.p99_ms:.2f} ms"
    )
    if write.p99_ms <= GOAL_MS:
        return Check(check=Subject.FSYNC, state=State.OK, found=found, figures=figures)
    if disk_ms >= write.p99_ms / 2:
        limit = "the disk is the limit"
        advice = (
            "Put Redis's directory on a disk with power-loss protection, for example a local NVMe. "
            "Each job waits for it; the goal is a p99 of 1 ms."
        )
    else:
        limit = "the way to Redis or its load is the limit, not the disk"
        advice = "Put Redis near the API and the workers, and give it a CPU of its own; the goal is a p99 of 1 ms."
    return Check(
        check=Subject.FSYNC,
        state=State.FAIL if write.p50_ms > DEAD_SLOW_MS else State.WARN,
        found=f"{found}: {limit}",
        advice=(advice,),
        figures=figures,
    )


def clock(offset_ms: int, round_trip_ms: float, who: str) -> Check:
    """A host's clock against Redis's; `who` it is of."""
    error_ms = round_trip_ms / 2
    if abs(offset_ms) <= max(1.0, error_ms):
        found = f"{who} agrees with Redis's"
    else:
        found = f"{who} is {abs(offset_ms)} ms {'ahead of' if offset_ms > 0 else 'behind'} Redis's"
    figures = {"offsetMs": float(offset_ms)}
    if abs(offset_ms) - error_ms < SKEW_WARN_MS:
        return Check(check=Subject.CLOCK, state=State.OK, found=found, figures=figures)
    return Check(
        check=Subject.CLOCK,
        state=State.FAIL if abs(offset_ms) >= SKEW_FAIL_MS else State.WARN,
        found=found,
        advice=(
            "Let all hosts follow one time: `timedatectl set-ntp true`, or chrony. Errand stores Redis's time; webhook "
            "signatures, traces, logs and TLS go by the host's.",
        ),
        figures=figures,
    )
