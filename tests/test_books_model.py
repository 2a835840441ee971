"""The books against a plain model of them: random histories of calls that are reserved, extended, settled, lost, late.

After each step the counters, what is reserved, the ledger, the usage rows and the jobs' own figures must be what the
model says. Redis time cannot be moved: a window turns by making the counters belong to one that is over.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shared.errors import LeaseLostError, RefusedError
from shared.keys import Keys
from shared.policy import encode_policy
from shared.prices import Price
from shared.stores.events import Begun, Blocked, CallUsage, EventsStore, Reservation
from shared.stores.jobs import Claimed, JobsStore, Settlement
from shared.tenants import Budget, KeyLimits, Limits, Period
from tests.histories import Bench, bench_in, run_histories

EXAMPLES = 60
PICK = st.integers(0, 10**6)
TENANT, KEYS, USERS = "ten_a", ("key_a", "key_b"), (None, "ann", "bob: 100%/é")
PRICES = {"m": Price(1_500_000, 6_000_000, "p1"), "free": None, "odd": Price(37_500, 333_333, "p2")}
FIGURES = ["tok_in", "tok_out", "tok_embed", "tok_wasted", "cost_nano", "tok_unpriced"]
SHORT = {Period.DAY: "d", Period.MONTH: "m", Period.TOTAL: "t"}


class Book:
    """A scope's counters."""

    def __init__(self, limits: KeyLimits | None) -> None:
        self.limits = limits
        self.tokens = Counter[str]()
        self.nano = Counter[str]()
        self.held_tokens = 0
        self.held_nano = 0

    def count(self, tokens: int, nano: int) -> None:
        for period in "dmt":
            self.tokens[period] += tokens
            self.nano[period] += nano

    @property
    def caps(self) -> list[tuple[str, str, int]]:
        """Hard limits as (unit, period, limit)."""
        found = []
        for budget in (self.limits and self.limits.budgets) or ():
            if budget.hard_tokens is not None:
                found.append(("t", SHORT[budget.period], budget.hard_tokens))
            if budget.hard_usd is not None:
                found.append(("n", SHORT[budget.period], round(budget.hard_usd * 10**9)))
        return found

    def used(self, unit: str, period: str) -> int:
        return (self.tokens if unit == "t" else self.nano)[period]

    def held(self, unit: str) -> int:
        return self.held_tokens if unit == "t" else self.held_nano


class Call:
    """A call that was begun, and what the books say of it."""

    def __init__(self, claim: Claimed, step: str, call: str, model: str, tokens: int, bound: int | None) -> None:
        self.claim, self.step, self.id, self.model, self.tokens, self.bound = claim, step, call, model, tokens, bound
        self.embeds = False
        self.seen = 0
        self.state = "open"  # open, guessed, exact
        self.booked = (0, 0, 0)  # input, output, nano
        self.scopes: list[str] = []
        self.held_output = 0


def nano(price: Price | None, tokens: int, output: int) -> int:
    return price.cost_nano(tokens, output) if price else 0


class Machine(RuleBasedStateMachine):
    """Draws what happens, does it, and compares."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.do, self.client = bench.do, bench.client
        self.keys = Keys(f"b{secrets.token_hex(4)}:")
        self.store, self.events = JobsStore(bench.client, self.keys), EventsStore(bench.client, self.keys)
        self.ticks = itertools.count(1)
        self.books: dict[str, Book] = {}
        self.claims: list[Claimed] = []
        self.lost: set[tuple[str, int]] = set()
        self.calls: list[Call] = []
        self.sizes: dict[str, tuple[float, int]] = {}
        self.told = Counter[str]()

    # -- set up ------------------------------------------------------------------------------------------------------

    @initialize(
        tenant=st.lists(
            st.tuples(
                st.sampled_from(list(Period)),
                st.none() | st.integers(0, 3_000),
                st.none() | st.floats(0, 0.01),
                st.booleans(),
            ),
            max_size=3,
            unique_by=lambda row: row[0],
        ),
        key=st.none() | st.integers(0, 1_500),
        user=st.none() | st.integers(0, 1_500),
    )
    def limits(
        self, tenant: list[tuple[Period, int | None, float | None, bool]], key: int | None, user: int | None
    ) -> None:
        budgets = [
            Budget(
                period=period, hard_tokens=tokens, hard_usd=usd, soft_tokens=tokens // 2 if tokens and soft else None
            )
            for period, tokens, usd, soft in tenant
            if tokens is not None or usd is not None
        ]
        each = KeyLimits(budgets=[Budget(period=Period.DAY, hard_tokens=user)]) if user is not None else None
        of_key = KeyLimits(budgets=[Budget(period=Period.TOTAL, hard_tokens=key)]) if key is not None else KeyLimits()
        limits = Limits(budgets=budgets or None, per_user=each)
        fields: dict[str, Any] = {"id": TENANT, "policy": encode_policy(limits)}
        self.do(self.client.hset(self.keys.tenant(TENANT), mapping={k: v for k, v in fields.items() if v}))  # type: ignore[arg-type]
        if (policy := encode_policy(of_key)) is not None:
            self.do(self.client.hset(self.keys.api_key(KEYS[0]), "policy", policy))  # type: ignore[arg-type]
        self.books = {TENANT: Book(limits), KEYS[0]: Book(of_key), KEYS[1]: Book(None)}
        for name in USERS[1:]:
            self.books[f"{TENANT}:u:{name}"] = Book(each)

    def scopes(self, claim: Claimed) -> list[str]:
        return [TENANT, claim.key] + ([f"{TENANT}:u:{claim.user}"] if claim.user else [])

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), user=st.sampled_from(USERS))
    def start_job(self, key: str, user: str | None) -> None:
        spent = any(book.used(unit, period) >= limit for name in (TENANT, key, f"{TENANT}:u:{user}")
                    if (book := self.books.get(name)) for unit, period, limit in book.caps)  # fmt: skip
        record = {"type": "chat", "spec": "{}", "model": "m", "est": 1, "key": key, "retention_ms": 10**9, "grant": 3,
                  "max_attempts": 100, **({"user": user} if user else {})}  # fmt: skip
        work = self.store.admit(tenant=TENANT, lane="interactive", record=record, class_ms=0, expires_in_ms=10**9)  # type: ignore[arg-type]
        if spent:
            with pytest.raises(RefusedError) as refused:
                self.do(work)
            assert refused.value.code == "budget_exhausted"
            return
        self.do(work)
        (claim,), _ = self.do(self.store.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=10**7))
        assert (claim.key, claim.user) == (key, user or "")
        self.claims.append(claim)

    def expected(self, scopes: list[str], model: str, tokens: int, most: int, *, embeds: bool) -> int | str:
        """How much output a call is granted, or `spent` or `held`."""
        price = PRICES[model]
        if embeds:
            return self.expected_of_texts(scopes, price, tokens)
        size, calls = self.sizes.get(model, (None, 0))
        wish = math.ceil(size) if size is not None else 128
        if calls < 20:
            wish = max(wish, 128)
        if most:
            wish = min(wish, most)
        care = 1 if most and most <= wish else 4 if calls < 20 else 2 if calls < 60 else 1.125
        granted: float = wish
        for name in scopes:
            book = self.books[name]
            for unit, period, limit in book.caps:
                if unit == "n" and price is None:
                    return "unpriced"
                left, held = limit - book.used(unit, period), book.held(unit)
                least, need = tokens + 1, tokens + wish
                if unit == "n":
                    least, need = nano(price, tokens, 1), nano(price, tokens, wish)
                if left < max(1, least):
                    return "spent"
                if held <= 0:
                    if need > left:
                        fits = left - tokens
                        if unit == "n":
                            assert price is not None  # see above
                            fits = math.floor((left * 1000 - tokens * price.input_pico) / price.output_pico)
                        granted = min(granted, fits)
                elif held * care + max(need, need * care / 2) > left:
                    return "held"
        return max(1, int(granted))

    def expected_of_texts(self, scopes: list[str], price: Price | None, tokens: int) -> int | str:
        """Texts to embed fit whole, or not at all."""
        for name in scopes:
            for unit, period, limit in self.books[name].caps:
                if unit == "n" and price is None:
                    return "unpriced"
                left, held = limit - self.books[name].used(unit, period), self.books[name].held(unit)
                need = tokens if unit == "t" else nano(price, tokens, 0)
                if left < max(1, need):
                    return "spent"
                if held + need > left:
                    return "held"
        return 0

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, model=st.sampled_from(sorted(PRICES)), tokens=st.integers(1, 400),
          most=st.sampled_from((0, 0, 5, 200)), twice=st.booleans(), embeds=st.booleans())  # fmt: skip
    def begin(self, pick: int, model: str, tokens: int, most: int, twice: bool, embeds: bool) -> None:
        claim = self.claims[pick % len(self.claims)]
        number = next(self.ticks)
        wanted = Reservation(model, tokens, embeds=embeds, most=0 if embeds else most, price=PRICES[model])
        scopes = self.scopes(claim)
        awaited = self.expected(scopes, model, tokens, most, embeds=embeds)
        for again in (False, True) if twice else (False,):
            try:
                begun = self.do(self.events.begin_step(
                    claim, "w", step=f"s{number}", label=f"s{number}", call=f"c{number}", reserve=wanted))  # fmt: skip
            except LeaseLostError:
                assert (claim.job_id, claim.lease) in self.lost
                return
            assert (claim.job_id, claim.lease) not in self.lost
            if isinstance(begun, Blocked):
                assert begun.kind == awaited
                self.check_refusal(begun, tokens if embeds else tokens + 1)
                return
            assert isinstance(begun, Begun)
            assert isinstance(awaited, int), awaited
            limited = [name for name in scopes if (found := self.books[name].limits) and found.budgets]
            assert begun.bound == (awaited if limited and not embeds else None)
            if again:
                continue
            call = Call(claim, f"s{number}", f"c{number}", model, tokens, begun.bound)
            call.embeds = embeds
            call.scopes, call.held_output = limited, awaited
            for name in limited:
                self.books[name].held_tokens += tokens + awaited
                self.books[name].held_nano += nano(PRICES[model], tokens, awaited)
            self.calls.append(call)

    def check_refusal(self, blocked: Blocked, least: int) -> None:
        """What is more than a whole limit never frees by itself; a total never does."""
        why = blocked.why
        if blocked.kind != "spent" or why.unit == "usd":
            return
        assert why.frees_at is None if why.period == "total" or least > why.limit else why.frees_at is not None

    def open_calls(self) -> list[Call]:
        return [call for call in self.calls if call.state == "open"]

    @precondition(lambda self: any(call.bound is not None for call in self.open_calls()))
    @rule(pick=PICK, more=st.integers(0, 80))
    def extend(self, pick: int, more: int) -> None:
        calls = [call for call in self.open_calls() if call.bound is not None]
        call = calls[pick % len(calls)]
        assert call.bound is not None
        call.seen = max(call.seen, call.bound - 40 + more)
        price = PRICES[call.model]
        wish = max(call.bound, call.seen) + 64 - call.bound
        blocked = False
        for name in self.scopes(call.claim):
            book = self.books[name]
            for unit, period, limit in book.caps:
                left = limit - book.used(unit, period) - book.held(unit)
                fits = left if unit == "t" else math.floor(left * 1000 / price.output_pico) if price else wish
                wish = min(wish, fits)
                blocked = blocked or wish < 1
        found = self.do(self.events.extend(call.claim, "w", call=call.id, seen=call.seen, bound=call.bound))
        self.learn(call.model, call.seen, is_over=False)
        if isinstance(found, Blocked):
            assert blocked
            return
        assert not blocked
        assert found == call.bound + wish
        for name in call.scopes:
            self.books[name].held_tokens += wish
            before, after = (nano(price, call.tokens, output) for output in (call.bound, found))
            self.books[name].held_nano += after - before
        call.bound = call.held_output = found

    @precondition(lambda self: any(call.embeds for call in self.open_calls()))
    @rule(pick=PICK, more=st.integers(1, 300), twice=st.booleans())
    def extend_texts(self, pick: int, more: int, twice: bool) -> None:
        """A second request of a step for vectors: its texts fit whole, or not at all."""
        calls = [call for call in self.open_calls() if call.embeds]
        call = calls[pick % len(calls)]
        price, blocked = PRICES[call.model], False
        for name in self.scopes(call.claim):
            book = self.books[name]
            for unit, period, limit in book.caps:
                left = limit - book.used(unit, period) - book.held(unit)
                if unit == "n":
                    left = math.floor(left * 1000 / price.input_pico) if price else more
                blocked = blocked or left < more
        for _ in range(2 if twice and not blocked else 1):
            found = self.do(self.events.extend(call.claim, "w", call=call.id, seen=0, bound=call.tokens, embeds=more))
            assert isinstance(found, Blocked) if blocked else found == call.tokens + more
        if blocked:
            return
        for name in call.scopes:
            self.books[name].held_tokens += more
            self.books[name].held_nano += nano(price, call.tokens + more, 0) - nano(price, call.tokens, 0)
        call.tokens += more

    def learn(self, model: str, output: int, *, is_over: bool) -> None:
        size, calls = self.sizes.get(model, (None, 0))
        if calls < 20:
            size = max(size or 1, output)
        elif not is_over:
            return
        else:
            assert size is not None
            step = max(2, size * 0.1)
            size = min(output, size + 0.9 * step) if output > size else max(output, size - 0.1 * step)
        self.sizes[model] = (float(f"{max(1, size):.2f}"), min(calls + 1, 60) if is_over else calls)

    def settle(self, call: Call, tokens: int, output: int, cost: int, state: str) -> None:
        """The books take a call's figures, or the difference to what they had."""
        if call.state == "open":
            for name in call.scopes:
                self.books[name].held_tokens -= call.tokens + call.held_output
                self.books[name].held_nano -= nano(PRICES[call.model], call.tokens, call.held_output)
        before = call.booked
        for name in self.scopes(call.claim):
            self.books[name].count(tokens + output - before[0] - before[1], cost - before[2])
        call.booked, call.state = (tokens, output, cost), state

    @precondition(lambda self: self.calls)
    @rule(pick=PICK, tokens=st.integers(0, 400), output=st.integers(0, 300), works=st.booleans(),
          estimated=st.booleans(), twice=st.booleans())  # fmt: skip
    def finish(self, pick: int, tokens: int, output: int, works: bool, estimated: bool, twice: bool) -> None:
        """A call ends: in time, again, or long after its lease was lost."""
        call = self.calls[::-1][pick % len(self.calls)]
        output = 0 if call.embeds else output
        usage = CallUsage(tokens, output, estimated=estimated)
        if call.embeds:
            usage = CallUsage(0, 0, tokens, estimated=estimated)
        for _ in range(2 if twice else 1):
            lost = (call.claim.job_id, call.claim.lease) in self.lost
            try:
                self.do(self.events.finish_step(
                    call.claim, "w", step=call.step, label=call.step, call=call.id, usage=usage,
                    result=b"{}" if works else None, wasted=0 if works else usage.total, model=call.model,
                    price=PRICES[call.model]))  # fmt: skip
                assert not lost or call.state == "exact"
            except LeaseLostError:
                assert lost
            if call.state != "exact":
                if works and output and not estimated:
                    self.learn(call.model, output, is_over=True)
                self.settle(call, tokens, output, nano(PRICES[call.model], tokens, output), "exact")

    @precondition(lambda self: len(self.claims) > len(self.lost))
    @rule(pick=PICK, how=st.sampled_from(("reaped", "retry", "failed")))
    def let_go(self, pick: int, how: str) -> None:
        """A worker is lost, or an attempt ends with calls still open."""
        held = [claim for claim in self.claims if (claim.job_id, claim.lease) not in self.lost]
        claim = held[pick % len(held)]
        if how == "reaped":
            self.do(self.client.zadd(self.keys.leases, {claim.job_id: 1}))
            self.do(self.store.reap(1_000))
            self.do(self.store.cancel(TENANT, claim.job_id))  # it is queued again
        else:
            error = '{"code":"internal","message":"x","retryable":true}'
            self.do(self.store.settle("w", [Settlement(claim.job_id, claim.lease, how, error=error, delay_ms=10**8)]))
        self.lost.add((claim.job_id, claim.lease))
        for call in self.open_calls():
            if call.claim is claim:
                cost = nano(PRICES[call.model], call.tokens, call.seen)
                self.settle(call, call.tokens, call.seen, cost, "guessed")

    @rule(period=st.sampled_from("dm"), name=PICK)
    def turn(self, period: str, name: int) -> None:
        """The window of one scope turns."""
        scope = sorted(self.books)[name % len(self.books)]
        if self.do(self.client.exists(self.keys.books(scope))):
            self.do(self.client.hset(self.keys.books(scope), period, "2001"))  # type: ignore[arg-type]
            self.books[scope].tokens[period] = self.books[scope].nano[period] = 0

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not self.books:
            return
        for scope, book in self.books.items():
            raw = {k.decode(): v.decode() for k, v in self.do(self.client.hgetall(self.keys.books(scope))).items()}  # type: ignore[arg-type]
            for period in "dmt":
                if raw.get(period, "") == "2001":
                    continue
                assert int(raw.get(f"{period}t", 0)) == book.tokens[period], (scope, period)
                assert int(raw.get(f"{period}n", 0)) == book.nano[period], (scope, period)
            assert (int(raw.get("ht", 0)), int(raw.get("hn", 0))) == (book.held_tokens, book.held_nano), scope
        self.check_ledger()

    def check_ledger(self) -> None:
        """Ledger, usage rows and the jobs' own figures are the same sums."""
        totals, jobs = Counter[str](), dict[str, Counter[str]]()
        for _, fields in self.do(self.client.xrange(self.keys.ledger(TENANT))):
            line = {name.decode(): value.decode() for name, value in fields.items()}
            sums = jobs.setdefault(line["j"], Counter())
            for name in "ioew":
                sums[name] += int(line[name])
            sums["n"] += int(line["n"] or 0)
            sums["q"] += 0 if line["n"] else int(line["i"]) + int(line["o"]) + int(line["e"])
        for sums in jobs.values():
            totals.update({name: value for name, value in sums.items() if value})
        assert totals["i"] + totals["o"] + totals["e"] == self.books[TENANT].tokens["t"]
        assert totals["n"] == self.books[TENANT].nano["t"]
        rows = Counter[str]()
        for key in self.do(self.client.keys(f"{self.keys.prefix}usage:{TENANT}:*")):
            for field, value in self.do(self.client.hgetall(key)).items():  # type: ignore[arg-type]
                if not field.startswith(b"#"):
                    assert json.loads(field)[1] == "chat"
                    rows.update(dict(zip("ioerwnqx", map(int, value.split()), strict=True)))
        assert all(rows[name] == totals[name] for name in "ioewnq")
        for job_id, sums in jobs.items():
            raw = self.do(
                self.client.hmget(  # type: ignore[arg-type]
                    self.keys.job(job_id), FIGURES
                )
            )
            assert [int(value or 0) for value in raw] == [sums[name] for name in "ioewnq"]


@pytest.fixture
def bench(short_dir: Path) -> Iterator[Bench]:
    with bench_in(short_dir / "books-model") as made:
        yield made


def test_the_books_do_as_the_model(bench: Bench) -> None:
    run_histories(lambda: Machine(bench), EXAMPLES)
