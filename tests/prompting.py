"""What tests of prompts share."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.conftest import Answer, Stack

HELLO = [{"role": "system", "content": "You greet {{name}}."}]


def path_of(name: str, *rest: str) -> str:
    return "/".join([f"/api/prompts/{quote(name, safe='')}", *rest])


async def make(stack: Stack, name: str = "greeting", **more: Any) -> Any:
    key = more.pop("key", None)
    options = {"key": key} if key else {}
    answer = await stack.call("POST", "/api/prompts", {"name": name, "messages": HELLO, **more}, **options)
    assert answer.status == 201, answer.text
    return answer.json


async def version(stack: Stack, text: str, name: str = "greeting", **more: Any) -> int:
    body = {"messages": [{"role": "system", "content": text}], **more}
    answer = await stack.call("POST", path_of(name, "versions"), body)
    assert answer.status == 201, answer.text
    return int(answer.json["version"])


async def move(stack: Stack, to: int, label: str = "production", name: str = "greeting", **options: Any) -> Answer:
    body = {"version": to, **options.pop("body", {})}
    return await stack.call("PUT", path_of(name, "labels", label), body, **options)
