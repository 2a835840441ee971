"""Vectors as they are stored: a byte for each number, and a scale for each row. Rows have length one, or are zero."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

SCALE_BYTES: Final = 4
STEPS: Final = 127

Matrix = Any  # numpy.ndarray, float32, a row per vector


def unit(vectors: Matrix) -> Matrix:
    """The rows with length one; a row that is zero, or holds what is no number, becomes zero."""
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    good = np.isfinite(lengths) & (lengths > 0)
    return np.where(good, rows / np.where(good, lengths, 1), 0).astype(np.float32)


def to_bytes(vectors: Matrix) -> bytes:
    """A matrix as stored: int8 rows, then the scales (float32, little-endian)."""
    largest = np.abs(vectors).max(axis=1, initial=0)
    scales = (largest / STEPS).astype("<f4")
    steps = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    return bytes(steps.tobytes() + scales.tobytes())


def from_bytes(content: bytes, dimensions: int) -> Matrix:
    """The matrix, its rows again of length one."""
    count = len(content) // (dimensions + SCALE_BYTES)
    steps = np.frombuffer(content, dtype=np.int8, count=count * dimensions).reshape(count, dimensions)
    scales = np.frombuffer(content, dtype="<f4", offset=count * dimensions, count=count)
    return unit(steps.astype(np.float32) * (scales > 0)[:, None])
