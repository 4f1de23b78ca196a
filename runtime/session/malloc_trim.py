"""Giving memory that was freed back to the system, which the C library does not do by itself."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Return free pages of the C heap to the kernel (glibc; elsewhere nothing happens)."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
