"""vLLM's server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.dev_model.answer import Answer
from scripts.dev_model.profiles.openai import Chunk, OpenAI

PIECES_PER_DELTA = 3  # of a call's arguments: its parsers send what has come since the last look
KINDS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError"}


class Vllm(OpenAI):
    """`vllm serve` with a parser for tools and one for reasoning.

    - the first chunk's `content: ""`: https://github.com/vllm-project/vllm/issues/27572
    - `delta.reasoning_content` before the answer: https://github.com/open-webui/open-webui/pull/16687
    - a tool call's name in one delta, its arguments in several, ids `chatcmpl-tool-…`:
      https://github.com/vllm-project/vllm/issues/9693, https://github.com/InternLM/lmdeploy/issues/3412
    - `stop_reason`, `token_ids`, `prompt_logprobs`, `kv_transfer_params`, all null: the response models of
      https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/openai/chat_completion/protocol.py
    - the type of a 429 is assumed: vLLM itself never refuses for its load
    - errors are flat, their `code` is the status as a number: https://github.com/meta-llama/llama-verifications/issues/58
    """

    name = "vllm"
    reasoning = "The user asks for what the given text says."
    call_prefix = "chatcmpl-tool-"

    def frame(self, model: str) -> dict[str, Any]:
        """No tier and no fingerprint."""
        frame = super().frame(model)
        return {name: frame[name] for name in ("id", "created", "model")}

    def whole(self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]:
        """With members of its own."""
        extras = ("service_tier", "system_fingerprint", "prompt_logprobs", "prompt_token_ids", "kv_transfer_params")
        return super().whole(frame, answer, usage) | dict.fromkeys(extras)

    def choice(self, answer: Answer) -> dict[str, Any]:
        """All members of a message, empty ones too."""
        choice = super().choice(answer) | {"stop_reason": None, "token_ids": None}
        empty: dict[str, Any] = {"tool_calls": [], "annotations": None, "audio": None, "function_call": None}
        choice["message"] = empty | choice["message"] | {"annotations": None}
        choice["message"]["reasoning_content"] = "".join(answer.reasoning) or None
        return choice

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Without details."""
        return {**usage, "prompt_tokens_details": None}

    def stream(
        self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None, options: dict[str, Any]
    ) -> Iterator[Chunk]:
        """Members that are not set are not sent."""
        frame = {**frame, "object": "chat.completion.chunk"}
        for delta, finish, tokens in self.deltas(answer):
            yield Chunk({**frame, "choices": [self.part(delta, finish)]}, tokens)
        if usage is not None:
            yield Chunk({**frame, "choices": [], "usage": usage})

    def part(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        """With members of its own."""
        return super().part(delta, finish) | ({"stop_reason": None} if finish else {}) | {"token_ids": None}

    def deltas(self, answer: Answer) -> Iterator[tuple[dict[str, Any], str | None, int]]:
        """What was thought comes first."""
        yield {"role": "assistant", "content": ""}, None, 0
        for text, tokens in answer.chunks(answer.reasoning):
            yield {"reasoning_content": text}, None, tokens
        for text, tokens in answer.chunks(answer.pieces):
            yield {"content": text}, None, tokens
        for index, call in enumerate(answer.calls):
            yield {"tool_calls": [self.call(call) | {"index": index, "function": {"name": call.name}}]}, None, 0
            for text, tokens in answer.chunks(call.pieces, PIECES_PER_DELTA):
                yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}, None, tokens
        yield {"content": ""}, answer.finish, 0

    def error(
        self, status: int, message: str, kind: str, code: str | None, param: str | None, path: str
    ) -> dict[str, Any]:
        """Flat."""
        kind = KINDS.get(status, "InternalServerError")
        return {"object": "error", "message": message, "type": kind, "param": None, "code": status}
