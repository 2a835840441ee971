"""What W3C Trace Context says of `traceparent` and `tracestate`, case by case (w3.org/TR/trace-context)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.trace_context import MOST_STATE_CHARACTERS, TraceContext, context_of, parse_parent, parse_state

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-ff"),  # flags that we do not know go on unchanged
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GOOD.upper(), None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}-01-", None),
        (f"00-{TRACE}-{SPAN}-01-what", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}g-{SPAN}-01", None),
        (f"0-{TRACE}-{SPAN}-01", None),
        (f" {GOOD}", None),
        (f"{GOOD}\n", None),
        ("", None),
        # A later version: the part that all share, as version 00, with the flags that we know.
        (f"01-{TRACE}-{SPAN}-01", GOOD),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-holds", GOOD),
        (f"cc-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 500}", None),
        (f"cc-{'0' * 32}-{SPAN}-01", None),
    ],
)
def test_a_traceparent_is_taken_strictly(text: str, kept: str | None) -> None:
    assert parse_parent(text) == kept


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["a=1,b=2"], "a=1,b=2"),
        ([" a=1 ,\tb=2", "c=3"], "a=1,b=2,c=3"),
        (["a=1,,b=2,"], "a=1,b=2"),
        (["tenant@system=x y"], "tenant@system=x y"),
        (["1a@b=1"], "1a@b=1"),
        ([""], ""),
        (["a=1,a=2"], ""),
        (["a"], ""),
        (["A=1"], ""),
        (["a="], ""),
        (["a=b=c"], ""),
        (["a=\x01"], ""),
        (["a=é"], ""),
        (["a@=1"], ""),
        ([",".join(f"k{n}=1" for n in range(32))], ",".join(f"k{n}=1" for n in range(32))),
        ([",".join(f"k{n}=1" for n in range(33))], ""),
        # Too long: members over 128 characters go first, then those at the end.
        ([f"a=1,long={'x' * 200},b={'y' * 120},c={'z' * 120},d={'w' * 120},e={'v' * 100}"],
         f"a=1,b={'y' * 120},c={'z' * 120},d={'w' * 120},e={'v' * 100}"),
        ([",".join(f"k{n}={'x' * 60}" for n in range(10))], ",".join(f"k{n}={'x' * 60}" for n in range(8))),
        (["a=" + "x" * 9_000], ""),
    ],
)  # fmt: skip
def test_a_tracestate_is_taken_whole_or_not_at_all(values: list[str], kept: str) -> None:
    assert parse_state(values) == kept


def test_the_state_counts_only_with_its_parent() -> None:
    """Two parents are none, and a state without a valid parent is none."""
    assert context_of([GOOD], ["a=1", "b=2"]) == TraceContext(GOOD, "a=1,b=2")
    assert context_of([GOOD, GOOD], ["a=1"]) is None
    assert context_of(["x"], ["a=1"]) is None
    assert context_of([], ["a=1"]) is None
    assert context_of([GOOD], ["A"]) == TraceContext(GOOD)
    both = TraceContext(GOOD, "a=1")
    assert (both.trace_id, both.span_id, both.flags) == (TRACE, SPAN, 1)
    assert both.headers == {"traceparent": GOOD, "tracestate": "a=1"}
    assert TraceContext(GOOD).headers == {"traceparent": GOOD}


@given(st.lists(st.text(max_size=700), max_size=4))
def test_any_state_is_bounded_and_stays_as_it_is(values: list[str]) -> None:
    """What is kept is kept again, and is never longer than the bound."""
    kept = parse_state(values)
    assert len(kept) <= MOST_STATE_CHARACTERS
    assert parse_state([kept]) == kept


@given(st.text(max_size=80))
def test_any_parent_is_none_or_of_version_00(text: str) -> None:
    kept = parse_parent(text)
    assert kept is None or parse_parent(kept) == kept
