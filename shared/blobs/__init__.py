"""Blobs: files, extracted texts and outputs, behind one interface; in a local directory, or in S3."""

from __future__ import annotations

from shared.blobs.interface import CHUNK_BYTES, BlobMissingError, Blobs, BlobTooLargeError, Stored
from shared.blobs.local import LocalBlobs
from shared.blobs.s3 import S3Blobs
from shared.settings import Settings

__all__ = [
    "CHUNK_BYTES",
    "BlobMissingError",
    "BlobTooLargeError",
    "Blobs",
    "LocalBlobs",
    "S3Blobs",
    "Stored",
    "blobs_of",
]


def blobs_of(settings: Settings, *, patience_s: float = 30.0) -> Blobs:
    """The place for blobs that the settings name; one elsewhere is asked again for `patience_s`. Raises
    ConfigurationError."""
    if settings.blobs:
        return S3Blobs(settings.blobs, patience_s=patience_s)
    return LocalBlobs(settings.data_dir / "blobs")
