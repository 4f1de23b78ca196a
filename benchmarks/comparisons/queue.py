"""Several training processes on one device, in order, none started that cannot end in time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.comparisons.records import Record
from benchmarks.comparisons.runs import Run

POLL_SECONDS = 0.2
MARGIN = 1.1
LOG_LINES = 6
MOST_CRASHES = 3


@dataclass
class Queue:
    """`todo(records)` is asked for the missing runs, best first, whenever a place is free.

    command, log: of a run's process. records: what is done. finished: called after each process.
    parameters: about how many a run's model has. deadline: of `time.monotonic()`; what still runs
    then is ended.
    """

    command: Callable[[Run], list[str]]
    log: Callable[[Run], Path]
    records: Callable[[], dict[str, Record]]
    todo: Callable[[dict[str, Record]], list[Run]]
    finished: Callable[[Run], None]
    parameters: Callable[[Run], int]
    environment: dict[str, str]
    parallel: int
    deadline: float
    _running: dict[Run, tuple[subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=dict)
    _tried: set[Run] = field(default_factory=set)
    _crashes: int = 0

    def run(self) -> None:
        """Return when nothing runs and nothing more can be started, or runs crash in a row."""
        try:
            while True:
                if self._crashes >= MOST_CRASHES:
                    print(f"{self._crashes} runs in a row crashed: stopping")
                    return
                self._start_some()
                if not self._running:
                    return
                if time.monotonic() > self.deadline:
                    print(f"out of time: {', '.join(run.name for run in self._running)} ended")
                    return
                time.sleep(POLL_SECONDS)
                self._collect()
        finally:
            self._end_all()

    def _start_some(self) -> None:
        records = self.records()
        for run in self.todo(records):
            if len(self._running) >= self.parallel:
                return
            if run in self._tried:
                continue
            seconds = expected_seconds(run, self.parameters(run), list(records.values()))
            if time.monotonic() + MARGIN * seconds > self.deadline:
                continue
            self._tried.add(run)
            file = self.log(run).open("wb")
            process = subprocess.Popen(
                self.command(run), stdout=file, stderr=subprocess.STDOUT, env=self.environment
            )
            self._running[run] = (process, file)
            print(f"{run.name}: started, {seconds:.0f} s expected", flush=True)

    def _collect(self) -> None:
        for run, (process, file) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[run]
            file.close()
            self._crashes = self._crashes + 1 if process.returncode else 0
            if process.returncode:
                lines = self.log(run).read_text(errors="replace").splitlines()[-LOG_LINES:]
                print(f"{run.name}: exit status {process.returncode}", *lines, sep="\n  ")
            self.finished(run)

    def _end_all(self) -> None:
        for process, file in self._running.values():
            process.kill()
            process.wait()
            file.close()
        self._running.clear()


def expected_seconds(run: Run, parameters: int, done: list[Record]) -> float:
    """Wall seconds of `run`, which has `parameters`, from runs done alike: 0 where none are.

    As those of its size took at most; else on a line through those of other sizes, seconds against
    parameters; else in proportion to parameters.
    """
    points = [(r.about.size, r.about.parameters, r.end.wall_seconds) for r in done if r.result]
    same = [seconds for size, _, seconds in points if size == run.size]
    if same:
        return max(same)
    if not points:
        return 0.0
    sizes, seconds = (np.array([p[i] for p in points], dtype=float) for i in (1, 2))
    if len({size for size, *_ in points}) > 1:
        slope, fixed = np.polyfit(sizes, seconds, 1)
        if slope > 0:
            return max(float(slope * parameters + fixed), float(seconds.min()))
    return float((seconds * np.maximum(1.0, parameters / sizes)).max())
