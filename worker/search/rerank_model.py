"""A chat model as the re-ranker: it reads all passages at once and rates each. Listwise, as in Sun et al., "Is ChatGPT
Good at Search?" (EMNLP 2023), but with a relevance per passage, which a bare order does not give.

A passage can say what it likes: it stands between tags as data, and all that comes back are numbers of passages that
were given and their relevance. The worst that one can do is to move sources that were found anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from shared.errors import BadOutput
from shared.prompt_names import RERANK
from shared.settings import Settings
from worker.context import JobContext
from worker.fencing import as_data, fenced
from worker.model.calls import ChatCall
from worker.model.objects import object_schema, parse_object

HIGHEST: Final = 10
SCHEMA: Final = object_schema(
    {
        "ranking": {
            "type": "array",
            "description": "One entry for each passage, the most relevant first",
            "items": object_schema(
                {
                    "passage": {"type": "integer", "description": "The number of the passage"},
                    "relevance": {
                        "type": "integer",
                        "description": "How well it answers the query: 0 (not at all) to 10 (fully)",
                    },
                }
            ),
        }
    }
)


class ModelReranker:
    """The job's own model, with the prompt `errand/search/rerank`."""

    name = "model"

    def __init__(self, settings: Settings) -> None:
        self._most = settings.rerank_characters

    async def rank(self, query: str, texts: Sequence[str], context: JobContext) -> list[float]:
        """The relevance (0..1) of each text; 0 where the model named none. One journaled and booked call. Raises
        JobError, OverLimit and LeaseLostError."""
        said = await context.wording.of(RERANK)
        passages = "\n\n".join(
            f"Passage {number}:\n{fenced('passage', as_data(text[: self._most]))}"
            for number, text in enumerate(texts, 1)
        )
        call = ChatCall(
            messages=[*said.messages, {"role": "user", "content": f"{fenced('query', query)}\n\n{passages}"}],
            schema=SCHEMA,
            strict=True,
            temperature=said.temperature(0.0),
        )
        finished = await context.complete("rerank", call, accept=partial(ranking_of, count=len(texts)))
        return ranking_of(finished.text, len(texts))

    async def aclose(self) -> None:
        """Nothing is open."""


def ranking_of(text: str, count: int) -> list[float]:
    """The relevance (0..1) of each of `count` passages in a model's answer. What it left out has 0, numbers that no
    passage has are passed over, the first of several counts. Raises BadOutput when no passage is rated, or one on
    another scale: then nothing of the answer can be trusted."""
    answer = parse_object(text).get("ranking")
    found: dict[int, float] = {}
    for entry in answer if isinstance(answer, list) else []:
        number, rated = (entry.get("passage"), entry.get("relevance")) if isinstance(entry, dict) else (None, None)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count:
            continue
        if isinstance(rated, bool) or not isinstance(rated, int | float):
            continue
        if not 0 <= rated <= HIGHEST:
            raise BadOutput(f"The model rated a passage {rated:g}, not 0 to {HIGHEST}.")
        found.setdefault(number, rated / HIGHEST)
    if not found:
        raise BadOutput("The model's answer rates none of the passages.")
    return [found.get(number, 0.0) for number in range(1, count + 1)]
