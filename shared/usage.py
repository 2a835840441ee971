"""Usage: what was spent, by day, model, job type, prompt, end user and key. Sums of the rows that the scripts write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from shared.clock import parse_rfc3339
from shared.jobs import Output

NANO: Final = 1_000_000_000  # of a dollar
MAX_DAYS: Final = 400
DEFAULT_DAYS: Final = 30
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection: how a spreadsheet's formula begins


class Group(StrEnum):
    """What usage may be summed by."""

    DAY = "day"
    TENANT = "tenant"
    MODEL = "model"
    TYPE = "type"
    PROMPT = "prompt"
    USER = "user"
    KEY = "key"


class Order(StrEnum):
    """How rows are ordered, after their day."""

    NAME = "name"  # of the groups' members: where a row stands does not change while it grows
    TOKENS = "tokens"  # most first


class Amounts(msgspec.Struct, array_like=True):
    """The figures of a usage row, in the order in which they are stored: tokens, nano-USD, tokens without a price,
    calls that were estimated. `jobs` stands in a field of its own."""

    input: int = 0
    output: int = 0
    embedding: int = 0
    reused: int = 0
    wasted: int = 0
    nano: int = 0
    unpriced: int = 0
    estimated: int = 0
    jobs: int = 0

    @property
    def total(self) -> int:
        """All tokens; reused ones were spent before."""
        return self.input + self.output + self.embedding

    def add(self, other: Amounts) -> None:
        """Adds what another row holds."""
        self.input += other.input
        self.output += other.output
        self.embedding += other.embedding
        self.reused += other.reused
        self.wasted += other.wasted
        self.nano += other.nano
        self.unpriced += other.unpriced
        self.estimated += other.estimated
        self.jobs += other.jobs


class Cell(msgspec.Struct, frozen=True):
    """Where a stored row belongs; text is empty where there is nothing. `day` is `YYYYMMDD`."""

    day: str
    tenant: str
    model: str
    type: str
    prompt: str
    user: str
    key: str

    def member(self, group: Group) -> str:
        """What the cell is in a group."""
        text: str = getattr(self, group.value)
        return text


class UsageRow(Output, frozen=True, kw_only=True):
    """What was used by one group; the members of groups that were not asked for are absent, `prompt`, `user` and the
    like null where a job had none. `costUsd` is that of the calls with a known price, null where there were none;
    `unpricedTokens` are those of the others. `jobs` counts admissions. `totalTokens` is input + output + embedding,
    `wastedTokens` included and `reusedTokens` not."""

    day: str | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    prompt: str | UnsetType | None = UNSET
    user: str | UnsetType | None = UNSET
    key: str | UnsetType | None = UNSET
    jobs: int
    input_tokens: int
    output_tokens: int
    embedding_tokens: int
    total_tokens: int
    reused_tokens: int
    wasted_tokens: int
    cost_usd: float | None
    estimated: bool
    unpriced_tokens: int


class UsageQuery(msgspec.Struct, frozen=True):
    """Which rows to sum, and how: UTC days, both included; an empty text in `only` means jobs that have none."""

    first: date
    last: date
    groups: tuple[Group, ...]
    only: dict[Group, str] = {}

    def takes(self, cell: Cell) -> bool:
        """Whether the filters let a row through. A prompt's name stands for all its versions."""
        for group, wanted in self.only.items():
            found = cell.member(group)
            if found != wanted and not (group is Group.PROMPT and wanted and found.rpartition("@")[0] == wanted):
                return False
        return True


Key = tuple[str, ...]
Sums = dict[Key, Amounts]
Place = tuple[str, str, int, Key]
"""The order in which rows are, and what it looks at: the day, the tokens (0 when they do not count), the names."""


def amounts_of(value: str) -> Amounts:
    """A stored row's figures; what is missing counts as 0."""
    numbers = [int(text) for text in value.split()]
    return Amounts(*numbers[:8])


def sum_up(rows: Iterable[tuple[Cell, Amounts]], query: UsageQuery, sums: Sums) -> None:
    """Adds stored rows to the sums by group."""
    for cell, amounts in rows:
        if query.takes(cell):
            sums.setdefault(tuple(cell.member(group) for group in query.groups), Amounts()).add(amounts)


def ordered(sums: Sums, groups: Sequence[Group], order: Order) -> list[tuple[Key, Amounts]]:
    """By day, then as `order` says, then by name. Without groups there is one row, also of nothing."""
    if not groups:
        return [((), sums.get((), Amounts()))]
    return sorted(sums.items(), key=lambda item: place_of(item[0], item[1], groups, order))


def place_of(key: Key, amounts: Amounts, groups: Sequence[Group], order: Order) -> Place:
    """Where a row stands in the order."""
    day = key[groups.index(Group.DAY)] if Group.DAY in groups else ""
    return order.value, day, -amounts.total if order is Order.TOKENS else 0, key


def row_of(key: Key, amounts: Amounts, groups: Sequence[Group]) -> UsageRow:
    """A row as the API shows it."""
    members: dict[str, str | None] = {}
    for group, text in zip(groups, key, strict=True):
        members[group.value] = f"{text[:4]}-{text[4:6]}-{text[6:]}" if group is Group.DAY else text or None
    return UsageRow(
        **members,  # type: ignore[arg-type]  # day and tenant always have a text
        jobs=amounts.jobs,
        input_tokens=amounts.input,
        output_tokens=amounts.output,
        embedding_tokens=amounts.embedding,
        total_tokens=amounts.total,
        reused_tokens=amounts.reused,
        wasted_tokens=amounts.wasted,
        cost_usd=cost_usd(amounts),
        estimated=amounts.estimated > 0,
        unpriced_tokens=amounts.unpriced,
    )


def cost_usd(amounts: Amounts) -> float | None:
    """What the priced calls cost; None where there were none."""
    return amounts.nano / NANO if amounts.nano or amounts.total != amounts.unpriced else None


def day_of(text: str) -> date:
    """`YYYY-MM-DD`, or the UTC day of an RFC 3339 time. Raises ValueError."""
    # `fromisoformat` alone takes `20261122` and `2026-W47-1` too.
    if not _DAY.match(text):
        raise ValueError(f"{text[:40]!r} does not begin with a day of the form YYYY-MM-DD")
    if not _DAY.fullmatch(text):
        # A `+` of a zone arrives as a blank when the client did not escape it.
        return datetime.fromtimestamp(parse_rfc3339(text.replace(" ", "+")) / 1000, UTC).date()
    day = date.fromisoformat(text)
    if not 1970 <= day.year <= 2200:
        raise ValueError("a day is one from 1970 to 2200")
    return day


def day_name(day: date) -> str:
    """As the keys have it."""
    return f"{day:%Y%m%d}"


def span(first: date | None, last: date | None, today: date) -> tuple[date, date]:
    """The days that are meant: thirty up to `last` or today, or those from `first` on."""
    until = last or today
    return first or until - timedelta(days=DEFAULT_DAYS - 1), until


COLUMNS: Final = (
    "jobs", "inputTokens", "outputTokens", "embeddingTokens", "totalTokens", "reusedTokens", "wastedTokens", "costUsd",
    "estimated", "unpricedTokens",
)  # fmt: skip


def csv_of(rows: Sequence[tuple[Key, Amounts]], groups: Sequence[Group]) -> str:
    """The rows as RFC 4180 text with a head; all text is quoted, what is unknown is empty, and text that a spreadsheet
    would take for a formula has a `'` before it: names of end users and models are their clients'."""
    lines = [",".join(_quoted(name) for name in (*groups, *COLUMNS))]
    for key, amounts in rows:
        row = row_of(key, amounts, groups)
        texts = [_quoted(_harmless(getattr(row, group.value) or "")) for group in groups]
        cost = "" if row.cost_usd is None else f"{Decimal(amounts.nano).scaleb(-9):f}"
        numbers = [
            str(figure)
            for figure in (
                row.jobs, row.input_tokens, row.output_tokens, row.embedding_tokens, row.total_tokens,
                row.reused_tokens, row.wasted_tokens, cost, str(row.estimated).lower(), row.unpriced_tokens,
            )
        ]  # fmt: skip
        lines.append(",".join(texts + numbers))
    return "\r\n".join(lines) + "\r\n"


def _harmless(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
