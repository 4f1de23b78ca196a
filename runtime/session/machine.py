"""The machine under a measurement: its name, and what else runs on it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)  # idle, iowait
_GUEST_FIELDS = (8, 9)  # counted in user and nice already


def processor() -> str:
    """The CPU's name, as Linux says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class OtherLoad:
    """How many cores other processes kept busy, from the kernel's counters of all CPU time."""

    def __init__(self) -> None:
        """Start to count."""
        self._began = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def cores(self) -> float | None:
        """Cores busy with other work since the start (None: the system does not say)."""
        busy = _busy_seconds()
        wall = time.perf_counter() - self._began
        if busy is None or self._busy is None or wall <= 0:
            return None
        other = (busy - self._busy) - (_own_seconds() - self._own)
        return max(0.0, other / wall)


def _busy_seconds() -> float | None:
    """CPU time of all processes since the machine started, time stolen by a host included."""
    try:
        numbers = [int(field) for field in _STAT.read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return None
    skipped = (*_IDLE_FIELDS, *_GUEST_FIELDS)
    busy = sum(value for index, value in enumerate(numbers) if index not in skipped)
    return busy / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
