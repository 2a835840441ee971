"""Reading the answer of an embeddings call: each vector stays the JSON that the model wrote, where that is what was
asked for. Servers that know no base64 (Ollama) send arrays instead; these are packed here, and the other way round."""

from __future__ import annotations

import base64
import binascii
import math
from array import array
from sys import byteorder

import msgspec

from shared.errors import BadOutput
from shared.stores.events import CallUsage
from worker.model.calls import Embedded, EmbeddingCall, Progress
from worker.model.stream import Usage

FLOAT_BYTES = 4


class _Entry(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Entry]
    usage: Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_floats = msgspec.json.Decoder(list[float]).decode
_decode_text = msgspec.json.Decoder(str).decode


def decode_vectors(body: bytes, call: EmbeddingCall, progress: Progress) -> Embedded:
    """The vectors in the order of the texts. `progress` learns the usage.

    Raises BadOutput when the answer does not fit the call, msgspec.DecodeError when it is no answer at all.
    """
    answer = _decode(body)
    stated = answer.usage.normalised() if answer.usage is not None else None
    progress.is_over = True
    if stated is not None:
        progress.stated = CallUsage(0, 0, stated.input_tokens)
    else:
        progress.stated = CallUsage(0, 0, progress.input_tokens, estimated=True)
    count = len(call.texts)
    if len(answer.data) != count:
        raise BadOutput(f"The model answered {len(answer.data)} vectors for {count} texts.")
    vectors: list[bytes | None] = [None] * count
    sizes = set()
    for place, entry in enumerate(answer.data):
        at = place if entry.index is None else entry.index
        if not 0 <= at < count or vectors[at] is not None:
            raise BadOutput("The model's vectors are not numbered as its texts were.")
        vectors[at], size = _as_asked(bytes(entry.embedding).strip(), call.encoding)
        sizes.add(size)
    if len(sizes) != 1 or 0 in sizes:
        raise BadOutput("The model's vectors differ in their dimensions.")
    (dimensions,) = sizes
    if call.dimensions is not None and dimensions != call.dimensions:
        raise BadOutput(f"The model's vectors have {dimensions} dimensions, not {call.dimensions}.")
    return Embedded([vector for vector in vectors if vector is not None], dimensions, progress.stated)


def _as_asked(raw: bytes, encoding: str) -> tuple[bytes, int]:
    """A vector as JSON of the encoding, and its dimensions."""
    if raw.startswith(b"["):
        numbers = _decode_floats(raw)
        if encoding == "float":
            return raw.translate(None, b" \n\r\t"), len(numbers)  # one line, whatever the model's taste
        packed = _finite(array("f", numbers))
        if byteorder == "big":
            packed.byteswap()
        return b'"' + base64.b64encode(packed.tobytes()) + b'"', len(packed)
    try:
        content = base64.b64decode(_decode_text(raw), validate=True)
    except (binascii.Error, msgspec.DecodeError):
        raise BadOutput("The model's vectors are neither arrays nor base64.") from None
    if len(content) % FLOAT_BYTES:
        raise BadOutput("The model's vectors are no arrays of 32-bit numbers.")
    floats = array("f", content)
    if byteorder == "big":
        floats.byteswap()
    _finite(floats)
    if encoding == "base64":
        return raw, len(floats)
    return msgspec.json.encode(floats.tolist()), len(floats)


def _finite(numbers: array[float]) -> array[float]:
    """The numbers, if all are: JSON has no others. Raises BadOutput."""
    if not math.isfinite(sum(numbers)):
        raise BadOutput("The model's vectors hold what is no number.")
    return numbers
