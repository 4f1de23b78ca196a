"""Command lines in processes that are forked from a warm one, which has imported everything.

A command that is killed at a random moment would else spend most of its life importing torch.
`python warm_commands.py` reads a JSON list of arguments a line, answers with the child's id, and
with its status once it has ended (negative: the signal).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class WarmCommands:
    """The warm process, and one command at a time in it."""

    def __init__(self, log: Path, **environment: str) -> None:
        """log: the file that takes what commands print."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.log = log

    def __enter__(self) -> Self:
        """The commands themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the warm process."""
        self._process.kill()
        self._process.communicate()

    def run(
        self, arguments: Sequence[str | Path], kill_after: float | None = None
    ) -> tuple[int, float]:
        """Status of a command line and the seconds that it took; killed after so many, if given."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        start = time.monotonic()
        timer = None
        if kill_after is not None:
            timer = threading.Timer(kill_after, lambda: os.kill(pid, signal.SIGKILL))
            timer.start()
        status = int(self._process.stdout.readline())
        if timer is not None:
            timer.cancel()
            timer.join()
        self._process.stdin.write("\n")  # from here on the id may be another process's
        self._process.stdin.flush()
        self._process.stdout.readline()
        return status, time.monotonic() - start


def _serve(log: Path) -> None:
    import retnet_edge.cli as cli
    import retnet_edge.data.shards
    import retnet_edge.pipeline.build
    import retnet_edge.quantize.search
    import retnet_edge.quantize.tuning.tune
    import retnet_edge.runtime.backends.ort.prepare
    import retnet_edge.runtime.backends.ort.session
    import retnet_edge.training.train  # noqa: F401 - all of them, so that children have them

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            with log.open("ab") as file:
                for descriptor in (1, 2):
                    os.dup2(file.fileno(), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os._exit(cli.main(json.loads(line)))
        print(pid, flush=True)
        # not reaped before the other side has put its timer away: until then the id is its own
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        print(code, flush=True)
        sys.stdin.readline()
        os.waitpid(pid, 0)
        print("reaped", flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
