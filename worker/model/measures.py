"""What is measured of model calls, by the GenAI semantic conventions (metrics of the client, 2026)."""

from __future__ import annotations

from typing import Final

from shared.clock import monotonic_s
from shared.metrics import MODEL_FIRST, MODEL_SECONDS, MODEL_TOKENS
from shared.semconv import provider_of
from shared.settings import Settings
from worker.model.calls import Progress
from worker.model.discipline import parse_fallbacks

MOST_MODELS: Final = 30  # names that clients chose and that a model answered to; they are a label
OTHER: Final = "other"


class ModelNames:
    """Names of models as labels: those of the settings, the first others that answered, and `other` for the rest. A
    client can name any model, so a name is no label before a model has answered to it."""

    def __init__(self, settings: Settings) -> None:
        configured = {settings.default_model, settings.embedding_model}
        for model, others in parse_fallbacks(settings.fallback_models).items():
            configured.update((model, *others))
        self._known = configured - {"", "*"}
        self._most = len(self._known) + MOST_MODELS

    def answered(self, model: str) -> None:
        """A model of this name exists."""
        if model not in self._known and len(self._known) < self._most and len(model) <= 200:
            self._known.add(model)

    def label(self, model: str) -> str:
        """The label."""
        return model if model in self._known else OTHER


class Measures:
    """The metrics of one worker's model calls."""

    def __init__(self, settings: Settings) -> None:
        self.names = ModelNames(settings)
        self._provider = provider_of(settings.openai_base_url)

    def ended(self, operation: str, model: str, progress: Progress, started_s: float, error_type: str) -> None:
        """A call is over; `error_type` is empty when it was answered."""
        if not error_type:
            self.names.answered(model)
        labels = (operation, self._provider, self.names.label(model))
        MODEL_SECONDS.labels(*labels, error_type).observe(monotonic_s() - started_s)
        if progress.first_s is not None and progress.first_s >= started_s:
            MODEL_FIRST.labels(*labels).observe(progress.first_s - started_s)
        usage = progress.usage()
        # A call that was refused at the door has used nothing: that is no call of zero tokens.
        if read := usage.input_tokens + usage.embedding_tokens:
            MODEL_TOKENS.labels(*labels, "input").observe(read)
        if usage.output_tokens:
            MODEL_TOKENS.labels(*labels, "output").observe(usage.output_tokens)
