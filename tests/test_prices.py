"""Prices: exact integers, dated, None when unknown; the operator's own go first."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from shared.prices import MOST_KNOWN, Price, PriceBook, parse_prices
from shared.settings import Settings

OPENAI = "https://api.openai.com/v1"
LOCAL = "http://localhost:4000/v1"
AT_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
VERSION = PriceBook()._version


def day(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_a_price_is_in_pico_dollars_a_token() -> None:
    """gpt-4o-mini costs 0.15 dollars a million in, and 0.60 out."""
    book = PriceBook(base_url=OPENAI)
    assert book.price("gpt-4o-mini", AT_S) == Price(150_000, 600_000, VERSION)
    assert book.price("gpt-4o-2024-08-06", AT_S) == Price(2_500_000, 10_000_000, VERSION)
    assert book.price("text-embedding-3-small", AT_S) == Price(20_000, 0, VERSION)
    assert VERSION.startswith("genai-prices 0.")


def test_cost_is_rounded_half_up() -> None:
    price = Price(150_000, 600_000, "v")
    assert price.cost_nano(1_000_000, 1_000_000) == 750_000_000
    assert price.cost_nano(0, 0, 10) == 1_500
    assert [Price(500, 0, "v").cost_nano(tokens, 0) for tokens in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert Price(499, 0, "v").cost_nano(1, 0) == 0


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**9))
def test_cost_has_no_error_of_floats(input_pico: int, output_pico: int, read: int, written: int) -> None:
    exact = read * input_pico + written * output_pico
    assert abs(Price(input_pico, output_pico, "v").cost_nano(read, written) * 1000 - exact) <= 500


def test_a_price_has_its_date() -> None:
    """o3 became cheaper on 10 June 2025."""
    book = PriceBook(base_url=OPENAI)
    before, after = (book.price("o3", day(text)) for text in ("2025-06-09T23:59:59", "2025-06-10"))
    assert before == Price(10_000_000, 40_000_000, VERSION)
    assert after == Price(2_000_000, 8_000_000, VERSION)


def test_a_price_has_its_time_of_day() -> None:
    """deepseek-reasoner had a price for the night until September 2025, from 16:30 to 00:30."""
    book = PriceBook(base_url="https://api.deepseek.com/v1")
    early, late = (book.price("deepseek-reasoner", day(f"2025-07-01T{text}")) for text in ("00:20", "00:40"))
    assert early is not None
    assert late is not None
    assert early.input_pico != late.input_pico


def test_of_tiers_the_base_counts() -> None:
    """gemini-2.5-pro costs 1.25 dollars a million up to 200,000 tokens, and more above: that is not booked."""
    price = PriceBook(base_url="https://generativelanguage.googleapis.com/v1beta/openai").price("gemini-2.5-pro", AT_S)
    assert price == Price(1_250_000, 10_000_000, VERSION)


@pytest.mark.parametrize("base_url", [OPENAI, LOCAL, "", "https://llm.example.com/v1"])
@pytest.mark.parametrize("model", ["llama3", "llama3.1:8b", "mixtral", "dev", "", "*", "gpt-4o-mine", "x" * 10_000])
def test_what_is_unknown_has_no_price(base_url: str, model: str) -> None:
    assert PriceBook(base_url=base_url).price(model, AT_S) is None


@pytest.mark.parametrize(
    "model",
    "gpt-4o-mini openai/gpt-4o-mini azure/gpt-4o-mini gpt-4o-mini-2024-07-18 GPT-4o-mini claude-sonnet-4-5 "
    "claude-sonnet-4-5-20250929 anthropic/claude-sonnet-4-5 gemini-2.5-pro gemini/gemini-2.5-flash o3 "
    "text-embedding-3-small".split(),
)
def test_a_proxy_serves_closed_models_at_their_makers_price(model: str) -> None:
    """Given a host that nobody knows, a name that only one maker can serve has that maker's price."""
    assert PriceBook(base_url=LOCAL).price(model, AT_S) is not None


@pytest.mark.parametrize(
    "model",
    "gpt-oss-20b openai/gpt-oss-120b grok-2 deepseek-chat mistral-small-latest command-r claude-2-of-mine "
    "my-claude-sonnet-4-5 gemini-2.5-pro-distill gemma-3 someone/gpt-4o-mini gpt-4o-mini-lora "
    "meta-llama/llama-3.3-70b-instruct".split(),
)
def test_a_local_server_gets_no_clouds_price(model: str) -> None:
    """Weights that anybody may have, and names that only look like a maker's, have no price at an unknown host."""
    assert PriceBook(base_url=LOCAL).price(model, AT_S) is None


def test_a_known_host_has_its_own_prices() -> None:
    """The host says who is paid: the same name may cost something else there, or be unknown."""
    groq = PriceBook(base_url="https://api.groq.com/openai/v1")
    assert groq.price("openai/gpt-oss-120b", AT_S) is not None
    assert groq.price("gpt-4o-mini", AT_S) is None
    azure = PriceBook(base_url="https://acme.openai.azure.com/openai/v1")
    assert azure.price("gpt-4o-mini", AT_S) is not None
    assert PriceBook(base_url="https://openrouter.ai/api/v1").price("openai/gpt-4o-mini", AT_S) is not None


def test_the_operators_prices_go_first() -> None:
    """The most specific pattern wins, whatever the order; null makes a price unknown, 0 is a price."""
    book = PriceBook(
        json.dumps({
            "*": {"input": 9, "output": 9},
            "llama*": {"input": 0, "output": 0},
            "llama3*70b": {"input": 0.1, "output": 0.3},
            "llama3": {"input": 0.07, "output": 0.000001},
            "gpt-4o*": None,
        }),
        OPENAI,
    )  # fmt: skip
    assert book.price("llama3") == Price(70_000, 1, "override")
    assert book.price("Llama3.1:70b") == Price(100_000, 300_000, "override")
    assert book.price("llama2") == Price(0, 0, "override")
    assert book.price("gpt-4o-mini") is None
    assert book.price("o3") == Price(9_000_000, 9_000_000, "override")


def test_the_dots_of_a_name_are_dots() -> None:
    book = PriceBook('{"gpt-4.1*": {"input": 1, "output": 1}}', LOCAL)
    assert book.price("gpt-4x1") is None
    assert book.price("gpt-4.1-nano") == Price(1_000_000, 1_000_000, "override")


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"m": 1}', '{"m": {"input": 1}}', '{"m": {"input": -1, "output": 1}}', '{"": null}',
        '{"m": {"input": "1", "output": 1}}', '{"m": {"input": 1, "output": 1, "x": 1}}',
        '{"m": {"input": 1e9, "output": 1}}', '{"m": {"input": NaN, "output": 1}}',
    ],
)  # fmt: skip
def test_wrong_prices_stop_the_start(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ERRAND_PRICES"):
        Settings.load({"ERRAND_PRICES": text})


def test_prices_are_a_setting() -> None:
    assert Settings.load({}).prices == ""
    assert parse_prices(" ") == {}
    loaded = Settings.load({"ERRAND_PRICES": '{"m": {"input": 1, "output": 2}}'})
    assert PriceBook(loaded.prices).price("m") == Price(1_000_000, 2_000_000, "override")


def test_names_from_clients_are_not_kept_without_bound() -> None:
    """Neither here nor in the library, and asking again is a look-up."""
    from genai_prices.data_snapshot import get_snapshot

    book = PriceBook("", LOCAL)
    for number in range(MOST_KNOWN + 10):
        book.price(f"m{number}", AT_S)
    assert book._in_window.cache_info().currsize == MOST_KNOWN
    snapshot = get_snapshot()
    assert not any((snapshot._lookup_cache, snapshot._provider_cache, snapshot._provider_misses))
    book.price("gpt-4o-mini", AT_S)
    before = book._in_window.cache_info().hits
    assert book.price("gpt-4o-mini", AT_S + 60) is not None
    assert book._in_window.cache_info().hits == before + 1


def test_prices_need_no_network_and_the_type_no_list() -> None:
    """In a process where every connection fails there are prices; importing the module alone loads none."""
    script = (
        "import sys, socket, shared.prices as p\n"
        "assert 'genai_prices' not in sys.modules\n"
        "def no(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = no\n"
        "print(p.PriceBook('', 'https://api.openai.com/v1').price('gpt-4o-mini').input_pico)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "150000"), run.stderr
