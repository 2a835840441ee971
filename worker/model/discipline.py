"""Which model is asked, how often, and when again: the state of each model, and the tries of one call.

The rules, in one place: a call is repeated in its attempt only while nothing of its answer was shown; the model's own
wish for a time counts; what stays out of reach gives way to the next fallback model; all else is the job's error.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Final

from shared.clock import monotonic_s
from shared.errors import CircuitOpen, JobError, UpstreamRateLimited, UpstreamUnavailable
from shared.settings import Settings
from worker.model.breaker import Breaker
from worker.model.window import Window

MAX_RETRY_AFTER_S: Final = 3_600.0  # a model's wish above this is cut; the try then simply fails again
MOST_STATES: Final = 2_000  # models that a worker remembers
PATIENCE_S: Final = 120.0  # batch work that hears nothing but 429 for so long gives its slot back


class ModelState:
    """What a worker knows of one model."""

    def __init__(self, model: str, settings: Settings) -> None:
        self.breaker = Breaker(model, failures=settings.model_breaker_failures, open_s=settings.model_breaker_seconds)
        self.window = Window(settings.model_max_in_flight)


class Discipline:
    """The states of all models that a worker has asked, and the order of fallbacks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._states: OrderedDict[str, ModelState] = OrderedDict()
        self._fallbacks = parse_fallbacks(settings.fallback_models)

    def of(self, model: str) -> ModelState:
        """The state of a model."""
        state = self._states.get(model)
        if state is None:
            state = self._states[model] = ModelState(model, self._settings)
            self._make_room()
        self._states.move_to_end(model)
        return state

    def _make_room(self) -> None:
        """Clients name models as they like: those that nobody asks just now are forgotten, the oldest first."""
        if len(self._states) > MOST_STATES:
            idle = next((name for name, state in self._states.items() if state.window.is_idle), None)
            if idle is not None:
                del self._states[idle]

    def tries(self, model: str, *, windowed: bool = False, alone: bool = False) -> Tries:
        """The tries of a call that names this model; `windowed` when it keeps to the model's window, `alone` when no
        other may answer (vectors of two models cannot be compared)."""
        rest = () if alone else self._fallbacks.get(model, self._fallbacks.get("*", ()))
        models = tuple(dict.fromkeys((model, *rest)))
        return Tries(self._settings, self, models, windowed=windowed)


class Tries:
    """The tries of one call: `model` is the one to ask now."""

    def __init__(self, settings: Settings, discipline: Discipline, models: tuple[str, ...], *, windowed: bool) -> None:
        self._settings = settings
        self._discipline = discipline
        self._models = models
        self._windowed = windowed
        self._at = 0
        self._failed = 0  # tries of this model
        self._refused_since_s: float | None = None  # monotonic; of the first 429

    @property
    def model(self) -> str:
        """The model to ask now."""
        return self._models[self._at]

    @property
    def is_fallback(self) -> bool:
        """Whether that is another than the job named."""
        return self._at > 0

    def after(self, error: JobError) -> float | None:
        """Seconds until the next try, after one that failed without showing anything; None when there is none."""
        if not isinstance(error, UpstreamUnavailable | UpstreamRateLimited):
            return None
        if self._windowed and isinstance(error, UpstreamRateLimited) and not self._is_out_of_patience():
            return 0.0  # the window makes it wait
        self._failed += 1
        if not isinstance(error, CircuitOpen) and self._failed <= self._settings.model_retries:
            wait_s = backoff_s(error, self._failed, self._settings, random.random())  # noqa: S311 - jitter
            if wait_s <= self._settings.model_retry_wait_seconds:
                return wait_s
        if self._at + 1 < len(self._models):
            self._at += 1
            self._failed = 0
            self._refused_since_s = None
            return 0.0
        return None

    def _is_out_of_patience(self) -> bool:
        """Whether this call, and all others of the model, have heard nothing but 429 for long."""
        now_s = monotonic_s()
        self._refused_since_s = self._refused_since_s or now_s
        return now_s - max(self._refused_since_s, self._discipline.of(self.model).window.served_at_s) > PATIENCE_S


def backoff_s(error: JobError, tries: int, settings: Settings, chance: float) -> float:
    """Seconds until the next try: doubling from the base, between half and all of it; the model's own wish wins when it
    is longer (equal jitter: Brooker, "Exponential Backoff And Jitter", AWS 2015). A connection that was found dead is
    made anew at once."""
    if tries == 1 and isinstance(error, UpstreamUnavailable) and error.at_once:
        return 0.0
    full = min(settings.retry_max_seconds, settings.retry_base_seconds * 2.0 ** min(tries - 1, 30))
    wait_s = full / 2 + chance * full / 2
    if error.retry_after_s is not None:
        wait_s = max(wait_s, min(error.retry_after_s, MAX_RETRY_AFTER_S) * (1 + 0.1 * chance))
    return wait_s


def parse_fallbacks(text: str) -> dict[str, tuple[str, ...]]:
    """`a=b,c;d=e` as a table: a model (or `*`) and those to ask after it, in order."""
    table = {}
    for entry in text.split(";"):
        model, _, rest = entry.partition("=")
        if model.strip():
            table[model.strip()] = tuple(name.strip() for name in rest.split(",") if name.strip())
    return table
