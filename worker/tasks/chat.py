"""`chat`: a model's answer to a conversation, streamed as it is made."""

from __future__ import annotations

import msgspec

from shared.specs import ChatInput
from worker.context import JobContext
from worker.model.calls import ChatCall


class ChatResult(msgspec.Struct, frozen=True, rename="camel"):
    """The whole answer and why it ended (`stop`, `length`, …)."""

    text: str
    finish_reason: str


async def chat(spec: ChatInput, context: JobContext) -> ChatResult:
    """One model call; its text goes out as `delta` events. Raises JobError."""
    call = ChatCall(
        messages=[{"role": message.role, "content": message.content} for message in spec.messages],
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
    )
    finished = await context.complete("chat", call, on_text=context.report.text)
    return ChatResult(finished.text, finished.finish_reason)
