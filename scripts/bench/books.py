"""What the books cost: Redis time, round trips and CPU of a call's admission and settlement.

    ./scripts/run python -m scripts.bench.books [--calls 2000] [--rounds 3]

One call is admit, claim, begin_step, (extend,) finish_step and settle, by the stores that API and worker use, 20 at a
time, on a Redis with `appendfsync always`. `limits` has rates and budgets with soft and hard limits of tenant, key and
end user, and raises its bound twice in mid-stream; `books` has none (ledger, counters and usage rows are written all
the same, as they always are); `off` is the same scripts without the books, made here for the comparison only. Redis
time is that of its own command statistics; CPU is that of this client. Medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import uvloop

import shared.redis
from scripts.bench.common import durable_redis, fsync_probe
from shared.keys import Keys
from shared.policy import encode_policy
from shared.prices import Price
from shared.redis import Redis, connect
from shared.specs import Lane
from shared.stores.events import Begun, CallUsage, EventsStore, Reservation
from shared.stores.jobs import Claimed, JobsStore, Settlement
from shared.tenants import Budget, KeyLimits, Limits, Period

AT_ONCE = 20
TENANT, KEY, USER = "ten_bench", "key_bench", "ann"
PRICE = Price(150_000, 600_000, "bench")
BUDGETS = [
    Budget(period=period, soft_tokens=10**13, hard_tokens=10**14, soft_usd=8e6, hard_usd=9e6) for period in Period
]
EACH = KeyLimits(requests_per_minute=10**9, tokens_per_minute=10**11, budgets=BUDGETS)
FULL = Limits(requests_per_minute=10**9, tokens_per_minute=10**11, budgets=BUDGETS, per_user=EACH)

# The books without what they write: for `off`.
SILENT = """
local FIRST_OUTPUT, SLICE, KNOWN_CALLS, WARNED = 128, 64, 20, {}
local function nano_of() return 0 end
local function room(_, _, wish) return wish end
local function care_of() return 1 end
local function reserve() end
local function usage_row() end
local function usual_output() return nil, 0 end
local function learn_output() end
local function let_go() end
local function book(job_id, key, job, call, i, o, e, w, n)
  job.tok_in = redis.call('HINCRBY', key, 'tok_in', int(i))
  job.tok_out = redis.call('HINCRBY', key, 'tok_out', int(o))
  job.tok_embed = redis.call('HINCRBY', key, 'tok_embed', int(e))
  if w ~= 0 then redis.call('HINCRBY', key, 'tok_wasted', int(w)) end
end
"""
NO_LIMITS = """
local WINDOW, NOW_US, UNITS = {}, 0, {}
local function policy_of() return nil end
local function scopes_of() return {} end
local function tenant_policy() return nil end
local function rate_check() return nil, {} end
local function rate_write() end
local function admit_limits() return nil end
local function standing() return '' end
local function gcra() return 0, 0 end
local function tat_of() return 0 end
local function usage_field() return '' end
"""


def without_books(source: Callable[[str], str]) -> Callable[[str], str]:
    """The scripts' source with the two libraries silent, and without the count of jobs at admission."""
    libraries = {}
    for name in ("limits", "books"):
        text = source_of_library(name)
        libraries[text] = NO_LIMITS if name == "limits" else SILENT

    def made(name: str) -> str:
        text = source(name)
        for library, silent in libraries.items():
            text = text.replace(library, silent)
        return re.sub(r"if redis\.call\('HINCRBY', P \.\. 'usage:'.*?\nend\n", "", text, flags=re.DOTALL)

    return made


def source_of_library(name: str) -> str:
    """The text of `shared/lua/lib/<name>.lua`."""
    from importlib import resources

    return (resources.files("shared") / "lua" / "lib" / f"{name}.lua").read_text()


class Bench:
    """One kind of round: its own prefix in the Redis of the run."""

    def __init__(self, client: Redis, prefix: str, *, limited: bool) -> None:
        self.client, self.keys = client, Keys(prefix)
        self.jobs, self.events = JobsStore(client, self.keys), EventsStore(client, self.keys)
        self.limited = limited

    async def start(self) -> None:
        """The tenant and its key."""
        fields = {"id": TENANT}
        if self.limited:
            fields["policy"] = encode_policy(FULL) or ""
            await self.client.hset(self.keys.api_key(KEY), "policy", encode_policy(EACH) or "")  # type: ignore[misc]
        await self.client.hset(self.keys.tenant(TENANT), mapping=fields)  # type: ignore[misc]

    async def admit(self, _: int) -> None:
        """A job."""
        record = {
            "type": "chat", "spec": "{}", "model": "bench", "est": 50, "key": KEY, "user": USER, "retention_ms": 10**9,
            "grant": 3, "max_attempts": 3, "timeout_ms": 60_000,
        }  # fmt: skip
        await self.jobs.admit(tenant=TENANT, lane=Lane.INTERACTIVE, record=record, class_ms=0, expires_in_ms=10**9)

    async def begin(self, claimed: Claimed) -> None:
        """Its call is reserved."""
        begun = await self.events.begin_step(
            claimed, "w", step="s", label="s", call=claimed.job_id,
            reserve=Reservation("bench", 50, most=0, price=PRICE),
        )  # fmt: skip
        assert isinstance(begun, Begun)
        assert (begun.bound is not None) == self.limited

    async def extend(self, claimed: Claimed) -> None:
        """Twice more output."""
        bound = 128
        for _ in range(2):
            granted = await self.events.extend(claimed, "w", call=claimed.job_id, seen=bound, bound=bound)
            assert isinstance(granted, int)
            bound = granted

    async def finish(self, claimed: Claimed) -> None:
        """Its end is booked."""
        await self.events.finish_step(
            claimed, "w", step="s", label="s", call=claimed.job_id, usage=CallUsage(50, 200), result=b'{"text":"x"}',
            model="bench", price=PRICE,
        )  # fmt: skip

    async def settle(self, claimed: Claimed) -> None:
        """The job ends."""
        await self.jobs.settle("w", [Settlement(claimed.job_id, claimed.lease, "complete", result="{}")])


async def measured(bench: Bench, work: Callable[[Any], Any], items: list[Any]) -> tuple[float, float, float]:
    """(µs of Redis, commands, µs of CPU here) for each of the items, AT_ONCE at a time."""
    await bench.client.config_resetstat()
    left = iter(items)

    async def one() -> None:
        for item in left:
            await work(item)

    before = time.process_time()
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    cpu = time.process_time() - before
    stats = await bench.client.info("commandstats")
    scripts = [row for name, row in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval")]
    calls = sum(row["calls"] for row in scripts)
    spent = sum(row["usec"] for row in scripts)
    return spent / len(items), calls / len(items), cpu * 1e6 / len(items)


async def round_of(client: Redis, name: str, number: int, calls: int) -> dict[str, tuple[float, float, float]]:
    """All phases of one round."""
    bench = Bench(client, f"{name}{number}:", limited=name == "limits")
    await bench.start()
    found = {"admit": await measured(bench, bench.admit, list(range(calls)))}
    claimed: list[Claimed] = []
    while len(claimed) < calls:
        jobs, _ = await bench.jobs.claim(worker="w", lanes=[("interactive", 100)], count=100, lease_ms=10**7)
        claimed += jobs
    found["begin"] = await measured(bench, bench.begin, claimed)
    if bench.limited:
        found["extend"] = await measured(bench, bench.extend, claimed)
    found["finish"] = await measured(bench, bench.finish, claimed)
    found["settle"] = await measured(bench, bench.settle, claimed)
    return found


async def run(url: str, calls: int, rounds: int) -> dict[str, list[dict[str, tuple[float, float, float]]]]:
    """All rounds, the kinds in turn."""
    found: dict[str, list[dict[str, tuple[float, float, float]]]] = {"limits": [], "books": [], "off": []}
    source = shared.redis.script_source
    silent = without_books(source)
    for number in range(rounds + 1):
        for name in found:
            setattr(shared.redis, "script_source", silent if name == "off" else source)  # noqa: B010 - for this run
            client = connect(url)
            result = await round_of(client, name, number, calls if number else 200)
            await client.aclose()
            if number:  # the first warms
                found[name].append(result)
    setattr(shared.redis, "script_source", source)  # noqa: B010
    return found


async def ledger_bytes(url: str) -> float:
    """Memory of one line of the ledger, in a stream of many."""
    client = connect(url)
    key = Keys("limits1:").ledger(TENANT)
    size = int(await client.memory_usage(key, samples=0) or 0)
    lines = int(await client.xlen(key))
    await client.aclose()
    return size / lines


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.books", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2_000, help="of each round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind (default %(default)s)")
    arguments = parser.parse_args()
    with durable_redis() as url:
        found = uvloop.run(run(url, arguments.calls, arguments.rounds))
        size = asyncio.run(ledger_bytes(url))
    print(f"{'per call':<8}  {'limits':^34}  {'books':^34}  {'off':^34}")
    print(f"{'':<8}  " + "  ".join(f"{'Redis µs':>9} {'commands':>10} {'CPU µs':>12} " for _ in found))
    sums = {name: [0.0, 0.0, 0.0] for name in found}
    for phase in ("admit", "begin", "extend", "finish", "settle"):
        cells = []
        for name, rounds in found.items():
            if phase not in rounds[0]:
                cells.append(" " * 34)
                continue
            values = [statistics.median(one[phase][place] for one in rounds) for place in range(3)]
            sums[name] = [total + value for total, value in zip(sums[name], values, strict=True)]
            cells.append(f"{values[0]:>9.0f} {values[1]:>10.2f} {values[2]:>12.0f} ")
        print(f"{phase:<8}  " + "  ".join(cells))
    print(f"{'all':<8}  " + "  ".join(f"{row[0]:>9.0f} {row[1]:>10.2f} {row[2]:>12.0f} " for row in sums.values()))
    limits, books, off = (sums[name] for name in ("limits", "books", "off"))
    print(
        f"books alone {books[0] / off[0]:.2f} x the Redis time of off, with all limits {limits[0] / off[0]:.2f} x; "
        f"CPU {books[2] / off[2]:.2f} x and {limits[2] / off[2]:.2f} x; {size:.0f} bytes a line of the ledger"
    )
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
