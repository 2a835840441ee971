"""Signatures of Standard Webhooks 1.0.0 (standardwebhooks.com, `v1`: HMAC-SHA256): made by couriers, checked by
`errand webhooks listen`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from shared.errors import ErrandError

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32  # the specification allows 24 to 64
TOLERANCE_S: Final = 300.0  # as the official libraries


class BadSignatureError(ErrandError):
    """A request does not come from whom it should, or was made too long ago."""


def new_secret() -> str:
    """A new secret in the form in which receivers take it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, at_s: int, body: bytes) -> str:
    """`v1,<base64>` over `<id>.<timestamp>.<body>`."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{message_id}.{at_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def signed_headers(keys: Sequence[str], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The three headers; a signature for each of the secrets that live, the newest first."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(sign(key, message_id, at_s, body) for key in keys),
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> str:
    """The message's id. `headers` by their lower-case names. Raises BadSignatureError."""
    try:
        message_id, at, given = (headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise BadSignatureError(f"the header {error} is missing") from None
    at_s = None
    with suppress(ValueError):
        at_s = int(at)
    if at_s is None or abs(now_s - at_s) > TOLERANCE_S:
        raise BadSignatureError("the timestamp is too old or too new")
    expected = sign(secret, message_id, at_s, body)
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in given.split(" ")):
        raise BadSignatureError("no signature fits this secret and body")
    return message_id
