"""A model that answers what a test has written down: the OpenAI HTTP API on loopback, one reply per request, in order.

A reply is a text; a list of `call(...)`; `(text, [calls])`; a dict with `status` and `code` for an error, or with
`delay_s` and `reply`; or a function of the request's body that gives one of these. The last reply is repeated.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from tests.loopback import Loopback


def call(name: str, arguments: dict[str, Any] | str, call_id: str | None = None) -> dict[str, Any]:
    """A tool call; `arguments` as text are sent as they are."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id, "name": name, "arguments": written}


class ScriptedModel(Loopback):
    """The server, its replies, and the requests that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self._numbers = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    def says(self, *replies: Any) -> None:
        """From now on these."""
        self.replies = list(replies)
        self.requests.clear()

    def last_result(self, number: int = -1) -> list[str]:
        """The tool results in a request, in their order."""
        messages = self.requests[number]["messages"]
        return [message["content"] for message in messages if message["role"] == "tool"]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply):
            reply = reply(body)
        if isinstance(reply, dict) and "delay_s" in reply:
            await asyncio.sleep(reply["delay_s"])
            reply = reply["reply"]
        if isinstance(reply, dict):
            error = {"message": reply.get("message", "scripted"), "code": reply.get("code"), "type": "error"}
            return web.json_response({"error": error}, status=reply["status"])
        text, calls = (reply, []) if isinstance(reply, str) else ("", reply) if isinstance(reply, list) else reply
        return await self._stream(request, body, text, calls)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], text: str, calls: list[dict[str, Any]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(delta: dict[str, Any], finish: str | None = None) -> None:
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
                     "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}  # fmt: skip
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        made = 0
        for word in text.split(" ") if text else ():
            await send({"content": word if not made else " " + word})
            made += 1
            if body.get("max_tokens") and made >= body["max_tokens"]:
                break
        for index, wanted in enumerate(calls):
            self._numbers += 1
            call_id = wanted["id"] or f"call_{self._numbers}"
            await send({"tool_calls": [{"index": index, "id": call_id, "type": "function",
                                        "function": {"name": wanted["name"], "arguments": ""}}]})  # fmt: skip
            for piece in (wanted["arguments"][:5], wanted["arguments"][5:]):
                await send({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        await send({}, "tool_calls" if calls else "stop")
        given = sum(len(message.get("content") or "") for message in body["messages"]) // 4
        made += sum(len(wanted["arguments"]) // 4 + 1 for wanted in calls)
        usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        return response
