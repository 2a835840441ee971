"""Logs: dotted past-tense events with fields, one canonical line per request and per attempt. Never prompts,
outputs or keys."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import msgspec
import structlog

MAX_FRAMES = 12
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(log_format: str, level: str, process: str) -> None:
    """Sets structlog up for this process, to standard error; `process` is bound to every line.

    Lines of libraries (asyncio, aiohttp, redis) go the same way, as event `library.logged`.
    """
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        bare_exception,
    ]
    renderer: Any
    if as_json:
        renderer = structlog.processors.JSONRenderer(serializer=_as_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)


def _as_json(line: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def bare_exception(_: Any, __: str, line: dict[str, Any]) -> dict[str, Any]:
    """An exception as its type and the places it passed: its text and local variables can hold prompts and keys."""
    info = line.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[1] is not None:
        frames = traceback.extract_tb(info[2])[-MAX_FRAMES:]
        line["exception"] = type(info[1]).__name__
        line["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return line


class _Forward(logging.Handler):
    """Hands what libraries log to structlog; of aiohttp's server only that it did, since it quotes requests."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        quoting = record.name.startswith("aiohttp.")
        message = str(record.msg) if quoting else record.getMessage()
        method("library.logged", logger=record.name, message=message[:500], exc_info=record.exc_info)


def get_logger() -> Any:
    """The logger of a module."""
    return structlog.get_logger()
