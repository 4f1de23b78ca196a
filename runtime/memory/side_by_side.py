"""Memory measured in child processes while this process goes on with something else."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from retnet_edge.runtime.memory.memory import Memory, measure_memory
from retnet_edge.runtime.session.threads import physical_cores


class SideBySide:
    """Runs of `measure_memory`, as many at once as there are cores beside this process's own.

    When the block is left, by an exception or Ctrl-C too, children that still run are ended. What
    is measured is memory; times are those of processes that share the machine (`time_alone`).
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max(1, physical_cores() - 1), "memory")
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[str]] = []
        self._left = False

    def __enter__(self) -> Self:
        return self

    def measure(
        self,
        bundle_path: Path,
        steps: int | None,
        *,
        backend: str | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Future[Memory]:
        """Begin a measurement on one thread; the future holds it, or what `measure_memory` raised.

        advance(n): called after n more steps, never twice at once.
        """
        return self._pool.submit(
            measure_memory,
            bundle_path,
            steps,
            backend=backend,
            advance=self.one_at_a_time(advance),
            started=self._started,
        )

    def one_at_a_time(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """`advance` for several threads, of which only one calls it at a time."""

        def forward(count: int) -> None:
            with self._lock:
                advance(count)

        return forward

    def _started(self, child: subprocess.Popen[str]) -> None:
        with self._lock:
            self._children.append(child)
            if self._left:
                child.kill()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._left = True
            for child in self._children:
                if child.poll() is None:
                    child.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
