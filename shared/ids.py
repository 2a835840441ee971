"""Identifiers and API keys.

An id is a prefix and a ULID: 10 characters of Redis time (48 bit, milliseconds) and 16 of chance (80 bit),
in Crockford's base 32, so ids sort by creation. Job ids get their time part inside `admit.lua`, to the microsecond:
jobs of one tenant and class that come within a millisecond still start in the order in which they came.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from typing import Final

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_LENGTH: Final = 43  # 43 base-62 characters carry 256 bits

ULID: Final = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
_ULID = re.compile(ULID)
_PYTHONS: Final = str.maketrans(CROCKFORD, "0123456789abcdefghijklmnopqrstuv")  # the digits that `int` knows
_API_KEY = re.compile(f"ek_({ULID})_([0-9A-Za-z]{{20,128}})")


def time_part(at_ms: int) -> str:
    """The ten characters of a ULID that carry `at_ms` (Unix milliseconds)."""
    text = ""
    for _ in range(10):
        at_ms, digit = divmod(at_ms, 32)
        text = CROCKFORD[digit] + text
    return text


def random_part() -> str:
    """The sixteen characters of a ULID that are chance (80 bits from the operating system)."""
    number = int.from_bytes(os.urandom(10))
    return "".join(CROCKFORD[(number >> shift) & 31] for shift in range(75, -5, -5))


def new_id(prefix: str, now_ms: int) -> str:
    """A new id such as `doc_01J…`; `now_ms` is Redis time."""
    return f"{prefix}_{time_part(now_ms)}{random_part()}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` has the form of an id with this prefix."""
    return text.startswith(prefix + "_") and _ULID.fullmatch(text, len(prefix) + 1) is not None


def id_time_ms(identifier: str) -> int:
    """The creation time inside an id, in Unix milliseconds."""
    return int(identifier.rpartition("_")[2][:10].translate(_PYTHONS), 32)


def new_api_key(now_ms: int) -> tuple[str, str]:
    """A new key as (key id, the full key that is shown once)."""
    ulid = time_part(now_ms) + random_part()
    return f"key_{ulid}", f"ek_{ulid}_{new_secret()}"


def new_secret() -> str:
    """The secret part of a key."""
    return "".join(secrets.choice(BASE62) for _ in range(SECRET_LENGTH))


def parse_api_key(text: str) -> tuple[str, str] | None:
    """A presented key as (key id, secret), or None when it has not the form `ek_<ULID>_<base62>`."""
    match = _API_KEY.fullmatch(text)
    return (f"key_{match[1]}", match[2]) if match else None


def hash_secret(secret: str) -> str:
    """What is stored of a secret. One round of SHA-256 suffices: the secret has 256 bits of its own."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def same_secret(secret: str, stored_hash: str) -> bool:
    """Whether a presented secret is the stored one, compared in constant time."""
    return hmac.compare_digest(hash_secret(secret), stored_hash)


def secret_mark(stored_hash: str) -> str:
    """How processes name a secret among themselves: the beginning of its hash (lib/keys.lua)."""
    return stored_hash[:16]
