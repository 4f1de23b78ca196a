"""How many threads compute: one a core that nothing else needs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from retnet_edge.errors import InputError
from retnet_edge.runtime.session.cpu_quota import cpu_quota
from retnet_edge.runtime.session.machine import OtherLoad

MOST_THREADS = 256
"""Threads that can be asked for: more than any machine's memory feeds, and few enough to start."""

_MAX_DEFAULT_THREADS = 4  # more wait for memory, and for each other
_LOOK_SECONDS = 0.05


_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


def check_thread_variables() -> None:
    """Raises InputError where a variable of the environment tells a library under us (PyTorch,
    NumPy, the tokenizer) to start more than `MOST_THREADS` threads."""
    for name in _VARIABLES:
        for number in os.environ.get(name, "").split(","):
            digits = number.strip()
            if digits.isdecimal() and int(digits[:9]) > MOST_THREADS:
                raise InputError(
                    f"{name} is {digits[:20]} in the environment; at most {MOST_THREADS} threads "
                    "are allowed"
                )


def checked_threads(threads: int | None) -> int:
    """`threads`, or `default_threads` for None. Raises InputError as `check_threads` does."""
    check_threads(threads)
    return threads or default_threads()


def check_threads(threads: int | None) -> None:
    """Raises InputError unless None or 1 to `MOST_THREADS`; and as `check_thread_variables`."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads}; at least 1 and at most {MOST_THREADS} are allowed")
    check_thread_variables()


def default_threads() -> int:
    """One a physical core that other work leaves free, at most 4; it looks for 50 ms.

    No more than the CPU time that a container may use (`cpu_quota`): more threads would use it up
    sooner, and all wait for the next period. A step ends when its slowest thread does: one that
    waits for a core that something else keeps busy holds up all.
    """
    watch = OtherLoad()
    time.sleep(_LOOK_SECONDS)
    return threads_for(physical_cores(), watch.cores(), cpu_quota())


def threads_for(cores: int, busy: float | None, quota: float | None = None) -> int:
    """Threads for a machine of `cores` of which `busy` (None: unknown) are taken.

    quota: cores' worth of time that this process may use (None: all).
    """
    allowed = _MAX_DEFAULT_THREADS if quota is None else min(int(quota), _MAX_DEFAULT_THREADS)
    return max(1, min(cores - round(busy or 0.0), allowed))


def physical_cores() -> int:
    """Physical cores that this process may run on (logical ones where the system does not say)."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)
