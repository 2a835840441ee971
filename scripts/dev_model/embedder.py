"""Vectors from the weights inside wordllama's wheel, made for batches."""

from __future__ import annotations

import base64
import pathlib
import threading
from typing import Any, Final

BATCH: Final = 256  # texts that are summed at a time: more would make the table of their tokens large


class Embedder:
    """wordllama's tokenizer and table, loaded at the first use."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, Any] | None = None
        self._loading = threading.Lock()

    def embed(self, texts: list[str], dimensions: int) -> Any:
        """Unit vectors, float32, a row per text: its tokens' vectors added, cut to `dimensions`.

        What wordllama's own `embed` gives (a mean has the same direction), in half the time.
        """
        import numpy

        tokenizer, table = self._load()
        vectors = numpy.empty((len(texts), dimensions), dtype=numpy.float32)
        for start in range(0, len(texts), BATCH):
            batch = tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
            ids = [numpy.array(entry.ids, dtype=numpy.int64) for entry in batch]
            rows = numpy.repeat(numpy.arange(len(ids)), list(map(len, ids)))
            used, places = numpy.unique(numpy.concatenate(ids), return_inverse=True)
            # How often each text has each token, times the tokens' vectors: a product of matrices is the fastest sum.
            cells = numpy.bincount(rows * len(used) + places, minlength=len(ids) * len(used))
            counts = cells.reshape(len(ids), len(used)).astype(numpy.float32)
            tokens = table[numpy.minimum(used, len(table) - 1), :dimensions]
            vectors[start : start + len(ids)] = counts @ tokens
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
