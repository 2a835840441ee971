"""The version of this release; pyproject.toml reads it from here."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.2.0"


def our_version() -> str:
    """The version of the source that runs."""
    return VERSION
