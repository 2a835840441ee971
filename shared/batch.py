"""Batch files: one text per line (NDJSON), and how they are read without ever holding one whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

MEDIA_TYPE: Final = "application/x-ndjson"
HEAD_BYTES: Final = 64 * 1024  # of a file, by which its kind is decided
MAX_LINE_BYTES: Final = 1024 * 1024  # of a line that is read; no model embeds so long a text

_MARK: Final = b"\xef\xbb\xbf"  # the byte order mark of UTF-8
_BLANK: Final = b" \t\r"


class BatchItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text of a batch, with the name that its owner gave it."""

    text: str
    id: str | None = None


class LineTooLong(msgspec.Struct, frozen=True):
    """Stands for a line that was passed over: it had more bytes than are read of one."""

    size_bytes: int


_decode: Final = msgspec.json.Decoder(str | BatchItem).decode


def read_line(line: bytes) -> BatchItem:
    """The text of one line: a JSON string, or an object `{"id"?, "text"}`. Raises ValueError with a sentence."""
    try:
        found: Any = _decode(line)
    except msgspec.ValidationError as error:
        raise ValueError(f'The line must be a JSON string or {{"id", "text"}}: {error}.') from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The line is not JSON: {error}.") from None
    item = BatchItem(found) if isinstance(found, str) else found
    if not item.text:
        raise ValueError("The text is empty.")
    return item


def is_batch(head: bytes, *, whole: bool) -> bool:
    """Whether a file is a batch file, by its first HEAD_BYTES (`whole`: it has no more): its first line is a text, and
    so are more of its lines than are not; single bad lines are told in the output. A line that the head cuts does not
    count."""
    *found, last = head.removeprefix(_MARK).split(b"\n")
    if whole:
        found.append(last)
    verdicts = [_is_item(line) for line in found if line.strip(_BLANK)]
    return bool(verdicts) and verdicts[0] and 2 * sum(verdicts) > len(verdicts)


def _is_item(line: bytes) -> bool:
    try:
        _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


async def lines(chunks: AsyncIterator[bytes], *, max_line_bytes: int) -> AsyncIterator[bytes | LineTooLong]:
    """The lines of a file that arrives in pieces, without their ends and without blank ones; of a line over
    `max_line_bytes` only how long it was. Holds one line and one piece at a time."""
    pieces: list[bytes] = []
    size, is_first = 0, True

    def close() -> bytes | LineTooLong:
        nonlocal size, is_first
        if size > max_line_bytes + len(_MARK) + 1:
            line: bytes | LineTooLong = LineTooLong(size)
        else:
            text = b"".join(pieces)
            text = (text.removeprefix(_MARK) if is_first else text).strip(_BLANK)
            line = text if len(text) <= max_line_bytes else LineTooLong(len(text))
        pieces.clear()
        size, is_first = 0, False
        return line

    def add(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size <= max_line_bytes + len(_MARK) + 1:
            pieces.append(piece)
        else:
            pieces.clear()

    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            add(piece)
            if line := close():
                yield line
        add(rest)
    if line := close():
        yield line
