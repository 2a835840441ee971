"""Azure OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.dev_model.answer import Answer
from scripts.dev_model.profiles.openai import Chunk, OpenAI

SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
OPERATIONS = {"chat": "ChatCompletions_Create", "embeddings": "Embeddings_Create"}
PROMPT = [{"prompt_index": 0, "content_filter_results": SAFE}]


class Azure(OpenAI):
    """A deployment of Azure OpenAI with its default content filter.

    - a first chunk without choices, id, model and object, which tells of the filter:
      https://github.com/mlflow/mlflow/issues/12767, https://github.com/pydantic/pydantic-ai/issues/2943
    - `content_filter_results` in each choice, empty where there is no text:
      https://github.com/langchain4j/langchain4j/issues/2385
    - rate errors have only `code: "429"` and a message:
      https://github.com/assafelovic/gpt-researcher/issues/936
    """

    name = "azure"

    def choice(self, answer: Answer) -> dict[str, Any]:
        """With the filter's results."""
        return super().choice(answer) | {"content_filter_results": SAFE if answer.content else {}}

    def part(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        """With the filter's results."""
        return super().part(delta, finish) | {"content_filter_results": SAFE if delta.get("content") else {}}

    def whole(self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]:
        """With the filter's results of the prompt."""
        return super().whole(_untiered(frame), answer, usage) | {"prompt_filter_results": PROMPT}

    def stream(
        self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None, options: dict[str, Any]
    ) -> Iterator[Chunk]:
        """The filter speaks first."""
        empty = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
        yield Chunk({**empty, "prompt_filter_results": PROMPT})
        yield from super().stream(_untiered(frame), answer, usage, {**options, "include_obfuscation": False})

    def error(
        self, status: int, message: str, kind: str, code: str | None, param: str | None, path: str
    ) -> dict[str, Any]:
        """The gateway words limits, the model behind it all else."""
        if status != 429:
            return super().error(status, message, kind, code, param, path)
        told = (
            f"Requests to the {OPERATIONS[path]} Operation under Azure OpenAI API version 2024-10-21 have exceeded "
            f"call rate limit of your current OpenAI S0 pricing tier. {message}"
        )
        return {"error": {"code": "429", "message": told}}


def _untiered(frame: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name != "service_tier"}
