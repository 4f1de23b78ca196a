"""Run a script in several processes, as torchrun does, and end them all in bounded time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

SECONDS = 150


def launch(
    processes: int, script: str | list[str], *arguments: str | Path, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """`script` (a file, or ["-m", module]) in `processes` processes; fails on another status."""
    command = [script] if isinstance(script, str) else script
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), *command, *map(str, arguments)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=SECONDS)
    finally:
        _end(child)
    assert child.returncode == status, f"status {child.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def _end(child: subprocess.Popen[str]) -> None:
    """SIGTERM lets torchrun end its workers, which are no longer of its process group."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
