"""An unusual tokenizer, tried in a process that can be given up, before this one loads it.

What a tokenizer does with a text is a program that its file brings along: regular expressions,
tables, rules upon rules. `structure.py` bounds each part; what they do together shows here, in a
process with a limit of time and memory (docs/decisions/0053).
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from retnet_edge.errors import InputError

CPU_SECONDS = 6
"""And one for each 4 MB of the file."""
WALL_SECONDS = 60
MEMORY = 1 << 30
"""Bytes of address space, and 32 for each byte of the file."""

_CHILD = Path(__file__).with_name("trial_child.py")
_REMEMBERED = 64


def try_tokenizer(raw: bytes, where: Path) -> None:
    """Raises InputError where loading or using it fails, takes too long or too much memory.

    Takes about 0.2 s; a file that passed is remembered while this process runs. Where Python cannot
    start itself, nothing is tried.
    """
    if sys.executable and (failed := _tried(raw)):
        raise InputError(f"{where}: not a tokenizer that can be used: {failed}")


@lru_cache(_REMEMBERED)
def _tried(raw: bytes) -> str:
    """What went wrong, or nothing."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONIOENCODING": "utf-8",
        "TOKENIZERS_PARALLELISM": "false",
    }
    limits = (CPU_SECONDS + len(raw) // (4 << 20), MEMORY + 32 * len(raw))
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), *map(str, limits)],
            input=raw,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {WALL_SECONDS} seconds for a few texts"
    if done.returncode == 0:
        return ""
    said = " ".join(done.stdout.decode("utf-8", "replace").split())
    if done.returncode > 0 and said:
        return said
    return (
        f"it ended its process within {limits[0]} seconds of computing and {limits[1] >> 20} MB "
        f"(status {done.returncode})"
    )
