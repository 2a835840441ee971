"""Search: the index in memory, ranking, re-ranking, answers."""

import os

# One thread for each product of matrices: searches run side by side, and a worker has other work too.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
