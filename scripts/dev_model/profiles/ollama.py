"""Ollama's OpenAI-compatible endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.dev_model.answer import Answer
from scripts.dev_model.profiles.openai import Chunk, OpenAI

KINDS = {400: "invalid_request_error", 404: "not_found_error"}


class Ollama(OpenAI):
    """An older Ollama, from 0.4.7 on, with its faults: later ones have mended most of them.

    - the role in each delta; `fp_ollama`: https://github.com/ollama/ollama/pull/5915
    - a tool call whole in one delta, `index: 0` in all of them: https://github.com/ollama/ollama/issues/15457
      (before 0.4.7 there was no index: https://github.com/ollama/ollama/issues/7881)
    - a stream with tool calls finishes as `stop`: https://github.com/ollama/ollama/pull/7963
    - no usage in streams, floats for `encoding_format: base64`: assumed of servers before either was there; today's
      code has both, https://github.com/ollama/ollama/blob/main/openai/openai.go and middleware/openai.go
    - JSON in a code fence, from models that its grammar does not hold: https://github.com/ollama/ollama/issues/15595
    """

    name = "ollama"
    fence_json = True
    floats_only = True

    def frame(self, model: str) -> dict[str, Any]:
        """A fingerprint of its own."""
        frame = super().frame(model)
        del frame["service_tier"]
        return frame | {"system_fingerprint": "fp_ollama"}

    def choice(self, answer: Answer) -> dict[str, Any]:
        """Only what there is."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content or ""}
        if answer.calls:
            message["tool_calls"] = [self.call(call) | {"index": 0} for call in answer.calls]
        return {"index": 0, "message": message, "finish_reason": answer.finish}

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Without details."""
        return usage

    def stream(
        self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None, options: dict[str, Any]
    ) -> Iterator[Chunk]:
        """No usage, whatever was asked."""
        frame = {**frame, "object": "chat.completion.chunk"}
        for delta, finish, tokens in self.deltas(answer):
            choice = {"index": 0, "delta": {"role": "assistant", "content": ""} | delta, "finish_reason": finish}
            yield Chunk({**frame, "choices": [choice]}, tokens)

    def deltas(self, answer: Answer) -> Iterator[tuple[dict[str, Any], str | None, int]]:
        """Calls in one piece."""
        for text, tokens in answer.chunks(answer.pieces):
            yield {"content": text}, None, tokens
        for call in answer.calls:
            yield {"tool_calls": [self.call(call) | {"index": 0}]}, None, len(call.pieces)
        yield {}, "stop" if answer.calls else answer.finish, 0

    def error(
        self, status: int, message: str, kind: str, code: str | None, param: str | None, path: str
    ) -> dict[str, Any]:
        """Its own types, never a code."""
        return {"error": {"message": message, "type": KINDS.get(status, "api_error"), "param": None, "code": None}}
