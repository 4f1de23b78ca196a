"""What takes seconds to make and no test changes: once in a run, whichever worker asks first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def made_once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by `make(folder)` in one of the processes that ask for it.

    `folder` is a session's `getbasetemp()`; the workers of pytest-xdist share the one above it.
    $RETNET_EDGE_MADE_ONCE is a folder that several runs share: tests/mutation sets it for modules
    that make nothing of what lies there. What `make` raises, each process that asks sees.
    """
    root = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    shared = Path(os.environ.get("RETNET_EDGE_MADE_ONCE", root / "made-once"))
    shared.mkdir(exist_ok=True)
    target, partial = shared / name, shared / f"{name}.partial"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial.mkdir()
            make(partial)
            partial.rename(target)
    return target
