"""A worker as `python -m worker` runs it, whose chats go wrong in the ways of defects when the message says so. Each
way has the whole message in its hands, as code deep down has."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import warnings
from typing import Any

from shared.log import get_logger
from shared.specs import ChatInput
from worker.__main__ import main
from worker.context import JobContext
from worker.tasks import HANDLERS

log = get_logger()
kept: list[Any] = []


async def chat(spec: ChatInput, context: JobContext) -> Any:
    text = "".join(str(message.content) for message in spec.messages)
    for word, way in WAYS.items():
        if f"defect:{word} " in text:
            await way(text)
    return await HANDLERS["chat"](spec, context)


async def crash(text: str) -> None:
    raise RuntimeError(text)


async def crash_nested(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as error:
        raise ExceptionGroup(text, [ValueError(text), error]) from error


async def forgotten_task(text: str) -> None:
    async def fails() -> None:
        raise RuntimeError(text)

    task = asyncio.create_task(fails(), name=text)
    await asyncio.wait([task])
    del task


async def broken_callback(text: str) -> None:
    def fails() -> None:
        raise RuntimeError(text)

    asyncio.get_running_loop().call_soon(fails)
    await asyncio.sleep(0)


async def broken_thread(text: str) -> None:
    def fails() -> None:
        raise RuntimeError(text)

    thread = threading.Thread(target=fails, name=text)
    thread.start()
    thread.join()


async def library_line(text: str) -> None:
    logger = logging.getLogger("somebody.elses")
    logger.warning("cannot read %r", text)
    logger.warning(f"cannot read: {text}")
    logger.error('cannot read "%s"' % text, extra={"text": text})  # noqa: UP031
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("cannot read")


async def warning(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=1)


async def logged_value(text: str) -> None:
    """What is no JSON goes by its type."""

    class Held:
        def __repr__(self) -> str:
            return text

    log.warning("thing.held", thing=Held(), error=RuntimeError(text))


async def broken_finaliser(text: str) -> None:
    class Held:
        def __del__(self) -> None:
            raise RuntimeError(text)

    Held()


WAYS = {
    "crash": crash,
    "nested": crash_nested,
    "task": forgotten_task,
    "callback": broken_callback,
    "thread": broken_thread,
    "library": library_line,
    "warning": warning,
    "value": logged_value,
    "finaliser": broken_finaliser,
}

if __name__ == "__main__":
    sys.exit(main({**HANDLERS, "chat": chat}))
