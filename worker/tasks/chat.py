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
    """One model call, the prompt before the conversation; its text goes out as `delta` events. Raises JobError."""
    said = await context.wording.main()
    parameters = said.parameters
    call = ChatCall(
        messages=[
            *said.messages,
            *({"role": message.role, "content": message.content} for message in spec.messages),
        ],
        max_tokens=parameters.max_tokens if spec.max_tokens is None else spec.max_tokens,
        temperature=parameters.temperature if spec.temperature is None else spec.temperature,
    )
    finished = await context.complete("chat", call, on_text=context.report.text)
    return ChatResult(finished.text, finished.finish_reason)
