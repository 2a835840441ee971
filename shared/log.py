"""Logs: dotted past-tense events with fields, one canonical line per request and per attempt. Never prompts,
outputs or keys."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

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
    ]
    renderer: Any
    if as_json:
        # Without local variables: those hold prompts and keys.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
        shared += [structlog.processors.ExceptionRenderer(frames)]
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
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


class _Forward(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method("library.logged", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


def get_logger() -> Any:
    """The logger of a module."""
    return structlog.get_logger()
