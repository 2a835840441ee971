"""The ledger summed up: what counters, usage rows and jobs must say, and where they say something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from shared.jobs import Output

MAX_LISTED: Final = 1_000  # differences of a tenant that an answer lists
DAY_MS: Final = 86_400_000
_VERSIONED: Final = re.compile(r"(.*)@[0-9]+", re.DOTALL)

Field = tuple[str, str, str, str, str]  # model, type, prompt, user, key

AMOUNTS: Final = (
    "inputTokens", "outputTokens", "embeddingTokens", "wastedTokens", "costNano", "unpricedTokens", "estimatedCalls",
)  # fmt: skip
COUNTERS: Final = ("dayTokens", "dayNano", "monthTokens", "monthNano", "totalTokens", "totalNano")


class Difference(Output, frozen=True):
    """One figure that is not what the ledger says. `what`: `counter` (of a scope), `usage` (a day's row), `job` (its
    record) or `held` (what is reserved; then `ledger` is the sum over the calls under way)."""

    what: str
    id: str
    member: str
    stored: int
    ledger: int


class TenantBooks(Output, frozen=True):
    """A tenant's ledger in sum, and what differs from it: all of `found`, of which the first are listed."""

    tenant_id: str
    calls: int
    tokens: int
    cost_usd: float | None
    found: int
    differences: list[Difference]


class BooksReport(Output, frozen=True):
    """What a check or a rebuild of the books came to."""

    ok: bool
    tenants: list[TenantBooks]


class Entry(msgspec.Struct, frozen=True):
    """A ledger entry. `amounts` in the order of AMOUNTS, a correction's are differences."""

    at_ms: int
    job: str
    field: Field
    amounts: tuple[int, int, int, int, int, int, int]
    is_priced: bool
    is_call: bool

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(self.amounts[:3])


def entry_of(flat: Sequence[bytes]) -> Entry:
    """From a stream entry's fields and values."""
    row = {name: value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    read, made, embedded = int(row[b"i"]), int(row[b"o"]), int(row[b"e"])
    nano, corrects = row[b"n"], row[b"z"] == "1"
    return Entry(
        int(row[b"a"]),
        row[b"j"],
        (row[b"m"], row[b"ty"], row[b"p"], row[b"u"], row[b"k"]),
        (
            read,
            made,
            embedded,
            int(row[b"w"]),
            int(nano or 0),
            0 if nano else read + made + embedded,
            (row[b"x"] == "1") - corrects,
        ),
        bool(nano),
        not corrects,
    )


def scopes_of(tenant: str, field: Field) -> Iterator[str]:
    """Whose counters a call stands in."""
    _, _, prompt, user, key = field
    yield tenant
    if key:
        yield key
    if user:
        yield f"{tenant}:u:{user}"
    if prompt:
        if versioned := _VERSIONED.fullmatch(prompt):
            yield f"{tenant}:p:{versioned[1]}"
        yield f"{tenant}:p:{prompt}"


def window_of(at_ms: int) -> tuple[str, str]:
    """The names of the UTC day and month of a time."""
    day = f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y%m%d}"
    return day, day[:6]


class Counters(msgspec.Struct):
    """A scope's counters, and the windows of the first four."""

    day: str = ""
    month: str = ""
    figures: list[int] = msgspec.field(default_factory=lambda: [0] * len(COUNTERS))

    def add(self, day: str, month: str, tokens: int, nano: int) -> None:
        """A call, as `count` in lib/books.lua does it."""
        if day != self.day:
            self.day, self.figures[0], self.figures[1] = day, 0, 0
        if month != self.month:
            self.month, self.figures[2], self.figures[3] = month, 0, 0
        for place in (0, 2, 4):
            self.figures[place] += tokens
            self.figures[place + 1] += nano

    def within(self, day: str, month: str) -> list[int]:
        """The figures as they are in these windows: 0 in those that have turned since."""
        in_day, in_month = day == self.day, month == self.month
        return [
            figure if in_window else 0
            for figure, in_window in zip(self.figures, (in_day, in_day, in_month, in_month, True, True), strict=True)
        ]


class Sums:
    """A tenant's ledger up to some entry, in sum."""

    def __init__(self, tenant: str, jobs: Iterable[str] = ()) -> None:
        """`jobs`: those that there are; of others nothing is kept."""
        self.tenant = tenant
        self.scopes: dict[str, Counters] = {}
        self.days: dict[str, dict[Field, list[int]]] = {}
        self.jobs: dict[str, list[int]] = {job: [0] * len(AMOUNTS) for job in jobs}
        self.calls = self.tokens = self.nano = 0
        self.is_priced = False
        self._windows: dict[int, tuple[str, str]] = {}

    def add(self, entry: Entry) -> None:
        """One entry more."""
        number = entry.at_ms // DAY_MS
        if number not in self._windows:
            self._windows[number] = window_of(entry.at_ms)
        day, month = self._windows[number]
        tokens, nano = entry.tokens, entry.amounts[4]
        for scope in scopes_of(self.tenant, entry.field):
            self.scopes.setdefault(scope, Counters()).add(day, month, tokens, nano)
        _add(self.days.setdefault(day, {}).setdefault(entry.field, [0] * len(AMOUNTS)), entry.amounts)
        if entry.job in self.jobs:
            _add(self.jobs[entry.job], entry.amounts)
        self.calls += entry.is_call
        self.tokens += tokens
        self.nano += nano
        self.is_priced = self.is_priced or entry.is_priced


def _add(sums: list[int], amounts: Sequence[int]) -> None:
    for place, amount in enumerate(amounts):
        sums[place] += amount


def counter_differences(scope: str, sums: Counters, stored: Sequence[bytes]) -> list[Difference]:
    """Of a scope as `reconcile.lua` lists it: its counters, then what is reserved."""
    day, month = stored[0].decode(), stored[1].decode()
    figures = [_number(text) for text in stored[2:]]
    found = []
    # A window may have turned without a call, never back.
    for member, name, known in (("day", day, sums.day), ("month", month, sums.month)):
        if name < known:
            found.append(Difference("counter", scope, member, _number(name.encode()), int(known)))
    expected = sums.within(max(day, sums.day), max(month, sums.month))
    for member, figure, ledger in zip(COUNTERS, figures, expected, strict=False):
        if figure != ledger:
            found.append(Difference("counter", scope, member, figure, ledger))
    for member, figure, held in zip(("tokens", "nano"), figures[6:8], figures[8:10], strict=True):
        if figure != held:
            found.append(Difference("held", scope, member, figure, held))
    return found


def row_differences(
    day: str, sums: Mapping[Field, Sequence[int]], stored: Mapping[Field, Sequence[int]]
) -> list[Difference]:
    """Of a day's usage rows, their figures in the order of AMOUNTS."""
    found = []
    for field in {**sums, **stored}:
        known, ledger = stored.get(field, (0,) * len(AMOUNTS)), sums.get(field, (0,) * len(AMOUNTS))
        name = f"{day} {msgspec.json.encode(field).decode()}"
        found += _differences("usage", name, known, ledger)
    return found


def job_differences(job: str, sums: Sequence[int], stored: Sequence[bytes]) -> list[Difference]:
    """Of a job's record as `reconcile.lua` lists it."""
    return _differences("job", job, [_number(text) for text in stored[1:]], sums)


def _differences(what: str, name: str, stored: Sequence[int], ledger: Sequence[int]) -> list[Difference]:
    return [
        Difference(what, name, member, have, want)
        for member, have, want in zip(AMOUNTS, stored, ledger, strict=True)
        if have != want
    ]


def _number(text: bytes) -> int:
    """What a figure says; what is none counts as -1, which no figure is: it differs."""
    try:
        return int(text or b"0")
    except ValueError:
        return -1


def row_amounts(value: bytes) -> list[int]:
    """A stored usage row in the order of AMOUNTS, without what was reused."""
    figures = [_number(text) for text in value.split()]
    figures = (figures + [0] * 8)[:8]
    return figures[:3] + figures[4:]


def books_of(sums: Sums, differences: Sequence[Difference]) -> TenantBooks:
    """As the API shows them."""
    return TenantBooks(
        tenant_id=sums.tenant,
        calls=sums.calls,
        tokens=sums.tokens,
        cost_usd=sums.nano / 1e9 if sums.is_priced else None,
        found=len(differences),
        differences=list(differences[:MAX_LISTED]),
    )
