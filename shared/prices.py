"""What tokens cost: the prices of `genai-prices` as they were when it was released, and the operator's own on top.

Nothing here goes to the network. A price that is not known is None, never 0.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

PICO_PER_MILLION: Final = 10**6  # a dollar per million tokens is so many pico-dollars per token
MOST_KNOWN: Final = 4_096  # prices that are kept; names come from clients
WINDOW_S: Final = 900  # dated prices begin and end at the quarter of an hour

# At a host that genai-prices does not know (a proxy, a local server), only names of models whose weights nobody else
# has mean what they say: `gpt-4o-mini` is OpenAI's, wherever it is asked; `llama3` and `gpt-oss` may be anybody's.
_MAKERS: Final = (
    ("openai", re.compile(r"(?:(?:openai|azure)/)?((?:chatgpt-|codex-|gpt-(?!oss)|o\d|text-embedding-).*)")),
    ("anthropic", re.compile(r"(?:anthropic/)?(claude-.*)")),
    ("google", re.compile(r"(?:(?:google|gemini|vertex_ai)/)?(gemini-.*)")),
)
_RELEASE: Final = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d|latest)$")

Dollars = Annotated[float, Meta(ge=0, le=10_000)]  # the scripts reckon in doubles; that stays exact


class Price(msgspec.Struct, frozen=True):
    """Pico-USD (10**-12 dollars) per token of input and of output. `version` says whose price it is."""

    input_pico: int
    output_pico: int
    version: str

    def cost_nano(self, input_tokens: int, output_tokens: int, embedding_tokens: int = 0) -> int:
        """Nano-USD of these tokens, rounded half up; those of embeddings cost as input."""
        pico = (input_tokens + embedding_tokens) * self.input_pico + output_tokens * self.output_pico
        return (pico + 500) // 1000


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price that the operator set: US dollars per million tokens."""

    input: Dollars
    output: Dollars


ModelPattern = Annotated[str, Meta(min_length=1, max_length=200)]


@lru_cache(maxsize=8)
def parse_prices(text: str) -> dict[ModelPattern, Override | None]:
    """The overrides by model or pattern, None where a price is unknown on purpose; none for an empty text.

    Raises ConfigurationError, which says where the text is wrong.
    """
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[ModelPattern, Override | None])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(f"ERRAND_PRICES is not valid: {error}") from None


class PriceBook:
    """Prices of models at one API. Making one loads the price list, which takes 0.2 s: make it at the start.

    `overrides` as ERRAND_PRICES has them; `base_url` of the API whose models are asked.

    A name has the price of the provider whose host it is, as genai-prices matches names there. At another host it has
    its maker's price, if it is exactly a closed model of OpenAI, Anthropic or Google (also as `openai/…`, with a date
    or `-latest`); any other is unknown there.
    """

    def __init__(self, overrides: str = "", base_url: str = "") -> None:
        # Here: the API has no use for the list, and imports this module for the type.
        from genai_prices import __version__
        from genai_prices.data_snapshot import get_snapshot

        self._version = f"genai-prices {__version__}"
        self._providers = get_snapshot().providers
        self._here = [one for one in self._providers if re.match(one.api_pattern, base_url, re.IGNORECASE)]
        # Most specific first: whole names, then by how much of the name is said.
        said = parse_prices(overrides)
        names = sorted(said, key=lambda name: ("*" in name, -len(name.replace("*", ""))))
        self._overrides = [(_pattern(name), _overridden(said[name])) for name in names]
        self._in_window = lru_cache(maxsize=MOST_KNOWN)(self._find)

    def price(self, model: str, at_s: float | None = None) -> Price | None:
        """The price of the model at `at_s` (Unix seconds; now), None when it is not known.

        It is that of plain tokens at the base tier: discounts (cached input, batches) and surcharges (long contexts,
        service tiers, per request) are not in it.
        """
        return self._in_window(model.strip().lower(), int((time.time() if at_s is None else at_s) // WINDOW_S))

    def _find(self, model: str, window: int) -> Price | None:
        for pattern, price in self._overrides:
            if pattern.fullmatch(model):
                return price
        at = datetime.fromtimestamp(window * WINDOW_S, UTC)
        found = (_of(info.get_prices(at), self._version) for info in self._infos(model))
        return next((price for price in found if price is not None), None)

    def _infos(self, model: str) -> Iterator[ModelInfo]:
        # Not the snapshot's own search: that remembers every name that it was ever asked for.
        if self._here:
            for provider in self._here:
                if info := provider.find_model(model, all_providers=self._providers):
                    yield info
            return
        for maker, names in _MAKERS:
            if named := names.fullmatch(model):
                yield from _exactly(named[1], next(one for one in self._providers if one.id == maker))


def _exactly(model: str, provider: Provider) -> Iterator[ModelInfo]:
    """The provider's model of exactly this name; its matches alone also take `claude-2-of-mine` for Anthropic's."""
    info = provider.find_model(model)
    if info is not None and {model, _RELEASE.sub("", model)} & set(_names(info)):
        yield info


def _names(info: ModelInfo) -> Iterator[str]:
    from genai_prices.types import ClauseEquals, ClauseOr

    yield info.id
    yield _RELEASE.sub("", info.id)
    for clause in info.match.or_ if isinstance(info.match, ClauseOr) else [info.match]:
        if isinstance(clause, ClauseEquals):
            yield clause.equals.lower()


def _of(prices: ModelPrice, version: str) -> Price | None:
    """None when input, or output that it makes, has no price by the token."""
    stated = {name for name, value in vars(prices).items() if value is not None}
    if "input_mtok" not in stated:
        return None
    if "output_mtok" in stated:
        return Price(_pico(prices.input_mtok), _pico(prices.output_mtok), version)
    if any(name.startswith("output") for name in stated):
        return None
    return Price(_pico(prices.input_mtok), 0, version)  # embeddings: there is no output


def _pico(price: object) -> int:
    """Dollars per million tokens in pico-dollars per token; of a price with tiers, the base."""
    dollars = getattr(price, "base", price)
    return int((Decimal(str(dollars)) * PICO_PER_MILLION).quantize(Decimal(1), ROUND_HALF_UP))


def _pattern(name: str) -> re.Pattern[str]:
    # Runs of stars are one: else a long name takes time without bound to fail.
    parts = re.split(r"\*+", name.strip().lower())
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL)


def _overridden(price: Override | None) -> Price | None:
    return None if price is None else Price(_pico(price.input), _pico(price.output), "override")
