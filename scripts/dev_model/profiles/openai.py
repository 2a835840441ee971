"""OpenAI's own wire format, which the other profiles change."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from scripts.dev_model.answer import Answer, ToolCall

_numbers = itertools.count(1)


class Chunk(NamedTuple):
    """One event of a stream, and how many of the answer's tokens it carries."""

    payload: dict[str, Any]
    tokens: int = 0


class OpenAI:
    """api.openai.com.

    - `obfuscation` pads each chunk unless `stream_options.include_obfuscation` is false; `service_tier`:
      recorded in https://github.com/ENTERPILOT/GoModel/pull/46, https://github.com/openai/openai-node/pull/2423
    - with `include_usage` all chunks have `usage: null` but the last, whose `choices` are empty:
      https://platform.openai.com/docs/api-reference/chat/create#chat_create-stream_options
    - a tool call's name first, its arguments in small pieces: https://github.com/vllm-project/vllm/issues/9693
    - errors: https://github.com/crewAIInc/crewAI-examples/issues/121 (context),
      https://github.com/jorge-menjivar/unsaged/issues/53 (rate)
    """

    name: ClassVar[str] = "openai"
    fence_json: ClassVar[bool] = False  # JSON comes inside of Markdown
    reasoning: ClassVar[str] = ""  # what the model thinks before it answers
    floats_only: ClassVar[bool] = False  # `encoding_format: base64` is passed over
    call_prefix: ClassVar[str] = "call_"

    def frame(self, model: str) -> dict[str, Any]:
        """What every answer and chunk begins with."""
        return {
            "id": f"chatcmpl-dev{next(_numbers)}",
            "created": int(time.time()),
            "model": model,
            "service_tier": "default",
            "system_fingerprint": "errand-dev",
        }

    def whole(self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None) -> dict[str, Any]:
        """An unstreamed answer."""
        body = {**frame, "object": "chat.completion", "choices": [self.choice(answer)]}
        return body if usage is None else {**body, "usage": self.usage(usage)}

    def choice(self, answer: Answer) -> dict[str, Any]:
        """The choice of an unstreamed answer."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None, "annotations": []}
        if answer.calls:
            message["tool_calls"] = [self.call(call) for call in answer.calls]
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}

    def call(self, call: ToolCall) -> dict[str, Any]:
        """A whole tool call."""
        return {
            "id": self.call_prefix + call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Usage with its details."""
        return {
            **usage,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def stream(
        self, frame: dict[str, Any], answer: Answer, usage: dict[str, Any] | None, options: dict[str, Any]
    ) -> Iterator[Chunk]:
        """The events of a streamed answer; `usage` only if it is to be sent; `options` are the `stream_options`."""
        frame = {**frame, "object": "chat.completion.chunk"}
        frame |= {"usage": None} if options.get("include_usage") else {}
        for number, (delta, finish, tokens) in enumerate(self.deltas(answer)):
            chunk = {**frame, "choices": [self.part(delta, finish)]}
            if options.get("include_obfuscation") is not False:
                digest = hashlib.blake2b(b"%d" % number, digest_size=8).hexdigest()
                chunk["obfuscation"] = digest[: 1 + int(digest[0], 16)]
            yield Chunk(chunk, tokens)
        if usage is not None:
            yield Chunk({**frame, "choices": [], "usage": self.usage(usage)})

    def part(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        """The choice of a chunk."""
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    def deltas(self, answer: Answer) -> Iterator[tuple[dict[str, Any], str | None, int]]:
        """Each delta with its finish reason and its tokens."""
        silent = answer.calls and answer.content is None
        yield {"role": "assistant", "content": None if silent else "", "refusal": None}, None, 0
        for text, tokens in answer.chunks(answer.pieces):
            yield {"content": text}, None, tokens
        for index, call in enumerate(answer.calls):
            head = self.call(call) | {"index": index, "function": {"name": call.name, "arguments": ""}}
            yield {"tool_calls": [head]}, None, 0
            for text, tokens in answer.chunks(call.pieces):
                yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}, None, tokens
        yield {}, answer.finish, 0

    def embeddings(self, model: str, vectors: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        """The answer of the embeddings endpoint."""
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        body: dict[str, Any] = {"object": "list", "data": data, "model": model}
        return body if usage is None else {**body, "usage": usage}

    def error(
        self, status: int, message: str, kind: str, code: str | None, param: str | None, path: str
    ) -> dict[str, Any]:
        """The body of an error."""
        return {"error": {"message": message, "type": kind, "param": param, "code": code}}
