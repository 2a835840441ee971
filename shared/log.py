"""Logs: dotted past-tense events with fields, one canonical line per request and per attempt. Never prompts,
outputs or keys."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final

import msgspec
import structlog

from shared import scope

MAX_FRAMES = 12
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Libraries whose lines name addresses and states, never what passes through them.
QUOTE_NOTHING: Final = ("redis", "obstore", "urllib3")
_WARNED: Final = re.compile(r"[^\n]*?:\d+: \w+")


def configure(log_format: str, level: str, process: str) -> None:
    """Sets structlog up for this process, to standard error; `process` stands in every line, and so does what is under
    way (`shared.scope`).

    Lines of libraries (asyncio, aiohttp, redis) go the same way, as event `library.logged`; what nobody caught goes as
    `process.crashed` or `thread.crashed`.
    """
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())

    def placed(_: Any, __: str, line: dict[str, Any]) -> dict[str, Any]:
        scope.place(line)
        line["process"] = process
        return line

    shared: list[Any] = [
        placed,
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
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # Python's own would print the text of the exception, which can hold anything.
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed
    sys.unraisablehook = _unraisable


def _as_json(line: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(line, enc_hook=_type_name).decode()


def _type_name(value: Any) -> str:
    """Of what is no JSON: a representation could hold anything."""
    return f"<{type(value).__name__}>"


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
    """Hands what libraries log to structlog: the text where it quotes nothing, else its template or its first words."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        method = log.error if record.levelno >= logging.ERROR else log.warning
        method(
            "library.logged",
            logger=record.name,
            message=library_text(record)[:500],
            place=f"{record.pathname}:{record.lineno}",
            exc_info=record.exc_info,
        )


def library_text(record: logging.LogRecord) -> str:
    """What may be shown of a library's line. Its arguments can quote requests and answers, and so can a text that comes
    without arguments, since it may have been put together before: of that the part up to the first colon or quote.
    asyncio shows the results and errors of tasks, a line each, after a first line of its own."""
    if record.name.partition(".")[0] in QUOTE_NOTHING:
        return record.getMessage()
    text = str(record.msg)
    if record.name == "py.warnings":
        found = _WARNED.match(record.getMessage())
        return found[0] if found else "a warning"
    if record.args:
        return text
    first = text.partition("\n")[0]
    return first[: min((place for mark in ":'\"{[(<=" if (place := first.find(mark)) >= 0), default=80)][:80]


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger().critical("process.crashed", exc_info=(kind, error, trace))


def _thread_crashed(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
        info = (given.exc_type, given.exc_value, given.exc_traceback)
        structlog.get_logger().error("thread.crashed", exc_info=info)


def _unraisable(given: Any) -> None:
    if given.exc_value is not None:
        info = (given.exc_type, given.exc_value, given.exc_traceback)
        structlog.get_logger().error("exception.ignored", exc_info=info)


def get_logger() -> Any:
    """The logger of a module."""
    return structlog.get_logger()
