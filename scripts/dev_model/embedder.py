"""Vectors from the weights inside wordllama's wheel, made for batches."""

from __future__ import annotations

import base64
import itertools
import pathlib
import threading
from typing import Any, Final

BATCH: Final = 256  # texts that are looked up at a time: their token vectors fit the processor's cache


class Embedder:
    """wordllama's tokenizer and table, loaded at the first use."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, Any] | None = None
        self._loading = threading.Lock()

    def embed(self, texts: list[str], dimensions: int) -> Any:
        """Unit vectors, float32, a row per text: the mean of its tokens' vectors, cut to `dimensions`.

        The same as wordllama's own `embed`, which spends most of its time on padding to the longest text.
        """
        import numpy

        tokenizer, table = self._load()
        vectors = numpy.zeros((len(texts), dimensions), dtype=numpy.float32)
        for start in range(0, len(texts), BATCH):
            encoded = [entry.ids for entry in tokenizer.encode_batch_fast(texts[start : start + BATCH])]
            lengths = numpy.fromiter(map(len, encoded), dtype=numpy.int64, count=len(encoded))
            ids = numpy.fromiter(itertools.chain.from_iterable(encoded), dtype=numpy.int64, count=int(lengths.sum()))
            filled = numpy.flatnonzero(lengths)
            if filled.size:
                starts = (lengths.cumsum() - lengths)[filled]
                rows = table[numpy.minimum(ids, len(table) - 1), :dimensions]
                vectors[start + filled] = numpy.add.reduceat(rows, starts, axis=0)
        norms = numpy.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / numpy.where(norms == 0, 1, norms)

    def _load(self) -> tuple[Any, Any]:
        with self._loading:
            if self._loaded is None:
                import wordllama

                folder = pathlib.Path(wordllama.__file__).parent
                model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
                model.tokenizer.no_padding()
                self._loaded = model.tokenizer, model.embedding
        return self._loaded


def coded(vectors: Any, encoding: str) -> list[Any]:
    """The vectors as they stand in an answer: little-endian floats in base64, or lists of numbers."""
    if encoding == "base64":
        return [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]
    listed: list[Any] = vectors.tolist()
    return listed
