"""What a limit says when it holds something up, as the scripts put it and as people read it."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from shared.clock import rfc3339
from shared.errors import RefusedError
from shared.jobs import LimitDetail
from shared.metrics import BUDGETS_REFUSED, RATES_REFUSED
from shared.policy import NANO

# Lua's JSON has fourteen digits: from 10^14 (100,000 USD in nano) on a whole number comes in exponent form.
Figure = int | float
LAST_MS: Final = 253_402_300_799_999  # the end of the year 9999


class Why(msgspec.Struct, frozen=True, rename="camel"):
    """A limit that is reached, as `lib/limits.lua` writes it. Money is in nano-USD, `waitUs` in microseconds."""

    scope: str
    id: str
    unit: str
    limit: Figure
    used: Figure
    reserved: Figure
    remaining: Figure
    period: str | None = None
    frees_at: Figure | None = None  # ms
    burst: Figure | None = None
    requested: float | None = None
    wait_us: float | None = None
    behind: bool = False  # a call larger than the burst goes first
    revision: str | None = None

    @property
    def wait_s(self) -> float:
        """Seconds until a rate has room; 0 for a budget."""
        return (self.wait_us or 0) / 1e6


_decode: Final = msgspec.json.Decoder(Why).decode


def why_of(text: str | bytes) -> Why:
    """From a script's reply."""
    return _decode(text)


def _amount(why: Why, value: float) -> int | float:
    return value / NANO if why.unit == "usd" else round(value)


def detail_of(why: Why, now_ms: int | None = None) -> LimitDetail:
    """As the API shows it; `now_ms` for the time at which a rate frees."""
    frees = why.frees_at
    if why.wait_us is not None and now_ms is not None:
        frees = now_ms + math.ceil(why.wait_us / 1000)
    return LimitDetail(
        scope=why.scope,
        id=why.id.partition(":")[2][2:] if why.scope in ("user", "prompt") else why.id,
        unit=why.unit,
        period=why.period or "minute",
        limit=_amount(why, why.limit),
        used=_amount(why, why.used),
        reserved=_amount(why, why.reserved),
        remaining=_amount(why, why.remaining),
        frees_at=_moment(frees),
    )


def _moment(at_ms: Figure | None) -> str | None:
    """When a limit frees; None for never, or after the year 9999."""
    return rfc3339(round(at_ms)) if at_ms is not None and at_ms <= LAST_MS else None


def sentence_of(why: Why) -> str:
    """The same in words."""
    owner = {"tenant": "The tenant", "key": "The key", "user": "The end user", "prompt": "The prompt"}[why.scope]
    if why.wait_us is not None:
        return (
            f"{owner} may have {why.limit:,.0f} {why.unit} per minute, {why.burst or why.limit:,.0f} at once; "
            f"{why.remaining:,.0f} are left and {math.ceil(why.requested or 1):,} were asked for. "
            f"{'A larger call goes first. ' if why.behind else ''}There is room in {why.wait_us / 1e6:.3f} s."
        )
    window = {"day": "today", "month": "this month", "total": "in all"}[why.period or "total"]

    def shown(value: float) -> str:
        return f"{value / NANO:.6f} USD" if why.unit == "usd" else f"{value:,.0f} tokens"

    moment = _moment(why.frees_at)
    frees = f" It is free again at {moment}." if moment is not None else ""
    if why.requested is not None:
        frees = f" This needs {shown(why.requested)} or more, which never fits: the limit would have to be raised."
    return (
        f"{owner} may spend {shown(why.limit)} {window}: {shown(why.used)} are used, {shown(why.reserved)} reserved, "
        f"{shown(why.remaining)} left.{frees}"
    )


def members_of(detail: LimitDetail) -> dict[str, Any]:
    """Members of a problem object, by their names in Python."""
    return msgspec.structs.asdict(detail)


def budget_refused(why: Why) -> RefusedError:
    """The refusal of new work at a hard limit. Repeating does not help: SDKs are told so."""
    BUDGETS_REFUSED.labels(why.scope, why.period or "total", why.unit).inc()
    return RefusedError(
        "budget_exhausted", sentence_of(why), headers={"x-should-retry": "false"}, members=members_of(detail_of(why))
    )


def rate_refused(why: Why, now_ms: int | None = None) -> RefusedError:
    """The refusal of a request over its rate; it has spent nothing."""
    RATES_REFUSED.labels(why.scope, why.unit).inc()
    return RefusedError(
        "rate_limited",
        sentence_of(why),
        headers=retry_headers(why.wait_s),
        members=members_of(detail_of(why, now_ms)),
    )


def retry_headers(wait_s: float) -> dict[str, str]:
    """When to come again: whole seconds, rounded up, and exactly in ms as OpenAI's SDKs read it."""
    return {"Retry-After": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(max(1, math.ceil(wait_s * 1000)))}


class Rate(msgspec.Struct, frozen=True, rename="camel"):
    """How a rate stands: `resetUs` until it is full again."""

    scope: str
    limit: Figure
    burst: Figure
    remaining: Figure
    reset_us: Figure


class SoftCrossed(msgspec.Struct, frozen=True, rename="camel"):
    """A soft limit that is crossed. Money in nano-USD. `id` of the scope: a tenant or key, or `ten_…:u:<user>`."""

    scope: str
    period: str
    unit: str
    used: Figure
    soft: Figure
    hard: Figure | None = None
    id: str = ""

    @property
    def owner(self) -> str:
        """The tenant or key whose limit it is, or whose user's or prompt's: what may stand in a log."""
        return self.id.partition(":")[0]


class Standing(msgspec.Struct, frozen=True, rename="camel"):
    """How the limits of a request stand, for its answer's headers."""

    requests: Rate | None = None
    tokens: Rate | None = None
    warnings: list[SoftCrossed] = []


_decode_standing: Final = msgspec.json.Decoder(Standing).decode
_decode_crossed: Final = msgspec.json.Decoder(list[SoftCrossed]).decode


def standing_of(text: str) -> Standing | None:
    """From a script's reply; None without limits."""
    return _decode_standing(text) if text else None


def crossed_of(text: str | bytes) -> list[SoftCrossed]:
    """From a script's reply."""
    return [] if text in ("[]", b"[]") else _decode_crossed(text)


def limit_headers(standing: Standing | None) -> dict[str, str]:
    """`RateLimit` and its policy (draft-ietf-httpapi-ratelimit-headers), the same as OpenAI sends it, and warnings."""
    if standing is None:
        return {}
    headers: dict[str, str] = {}
    policies, states = [], []
    for name, rate in (("requests", standing.requests), ("tokens", standing.tokens)):
        if rate is None:
            continue
        full_s = rate.reset_us / 1e6
        # What is left is of the quota: where more than a minute allows may come at once, the window is longer.
        quota = max(rate.limit, rate.burst)
        policies.append(f'"{name}";q={quota:.0f};w={math.ceil(60 * quota / rate.limit)}')
        states.append(f'"{name}";r={rate.remaining:.0f};t={math.ceil(full_s)}')
        headers[f"x-ratelimit-limit-{name}"] = f"{quota:.0f}"
        headers[f"x-ratelimit-remaining-{name}"] = f"{rate.remaining:.0f}"
        headers[f"x-ratelimit-reset-{name}"] = _duration(full_s)
    if policies:
        headers["RateLimit-Policy"] = ", ".join(policies)
        headers["RateLimit"] = ", ".join(states)
    if standing.warnings:
        headers["X-Usage-Warning"] = ", ".join(map(_warning, standing.warnings))
    return headers


def _warning(crossed: SoftCrossed) -> str:
    def shown(value: Figure | None) -> str:
        if value is None:
            return "none"
        return f"{value / NANO:.6f}" if crossed.unit == "usd" else f"{value:.0f}"

    name = f"{crossed.scope}-{crossed.period}-{crossed.unit}"
    return f"{name}; used={shown(crossed.used)}; soft={shown(crossed.soft)}; hard={shown(crossed.hard)}"


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(minutes)}m{text}" if minutes else text
