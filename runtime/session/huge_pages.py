"""Weights on huge pages: a step reads every weight once, and 4 KiB pages make it wait for the TLB.

ONNX Runtime allocates with malloc, which does not ask for huge pages. Linux 6.1 and newer can
change the pages of memory that is already filled (`MADV_COLLAPSE`); elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_MADV_COLLAPSE = 25
_HUGE = 2 << 20
_LEAST = 4 << 20  # smaller regions hold no weights worth the call

Region = tuple[int, int]


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Put anonymous memory that the block has mapped, and filled, on huge pages where possible.

    2 MiB blocks of which nothing was touched stay empty, so little is added to what is resident.
    """
    before = set(large_regions())
    yield
    collapse(region for region in large_regions() if region not in before)


def large_regions() -> list[Region]:
    """Private anonymous writable regions of this process, (start, end), of 4 MiB or more."""
    found = []
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        span, mode, _, device, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        anonymous = device == "00:00" and name in ([], ["[heap]"])
        if mode == "rw-p" and anonymous and end - start >= _LEAST:
            found.append((start, end))
    return found


def collapse(regions: Iterator[Region]) -> None:
    """Ask for huge pages; a refusal changes nothing."""
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in regions:
        first, last = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if last > first:
            madvise(first, last - first, _MADV_COLLAPSE)
