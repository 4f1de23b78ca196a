"""How fast the machine reads memory: what decoding is measured by."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retnet_edge.runtime.session.threads import check_threads

READ_BYTES = 256 << 20  # several times a last-level cache


class ReadBandwidth:
    """Reads one array that no cache holds, by a dot product with itself, on some threads.

    Set OPENBLAS_NUM_THREADS=1 before NumPy is imported: the threads are made here.
    """

    def __init__(self, threads: int, size: int = READ_BYTES) -> None:
        """Allocate and touch `size` bytes. Raises InputError for threads that are not 1 to 256."""
        check_threads(threads)
        array = np.ones(size // 4, dtype=np.float32)
        self._size = array.nbytes
        self._parts = np.array_split(array, threads)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def gigabytes(self) -> float:
        """GB (10^9 bytes) a second of one pass."""
        began = time.perf_counter()
        if self._pool is None:
            np.dot(self._parts[0], self._parts[0])
        else:
            list(self._pool.map(lambda part: np.dot(part, part), self._parts))
        return self._size / (time.perf_counter() - began) / 1e9
