"""The workers and who watches over them: a case that takes too long or too much is ended.

The parent starts no thread, and has imported what the targets need, before it forks.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.targets import Target
from fuzz.worker import (
    MEMORY_BYTES,
    MEMORY_FACTOR,
    Case,
    Outcome,
    place_in_log,
    say_why,
    serve,
)

TICK = 0.2
WALL_FACTOR = 6
"""On a busy machine a case gets its seconds of the CPU late."""
CASES_A_WORKER = 3000
"""Then a new one: what leaks a little does not add up."""
MEMORY_SLACK = 256 << 20
GRACE = 0.3

Finished = Callable[[Case, Outcome, Path], None]


@dataclass
class _Worker:
    pid: int
    send: int
    receive: int
    folder: Path
    log: Path
    case: Case | None = None
    files: tuple[str, ...] = ()
    began: float = 0.0
    cpu: float = 0.0
    busy: tuple[float, float] = (0.0, 0.0)
    resident: int = 0
    allowed: int = 0
    done: int = 0
    unread: bytes = field(default=b"", repr=False)


class Pool:
    """`jobs` workers on the seeds; every case's outcome goes to `finished`, with its folder."""

    def __init__(
        self,
        jobs: int,
        seeds: Path,
        work: Path,
        targets: dict[str, Target],
        finished: Finished,
        *,
        seconds: float = 10.0,
    ) -> None:
        """seconds: of the CPU, or of waiting for something, after which a case hangs, or
        WALL_FACTOR as many of the clock."""
        self._jobs, self._seeds, self._work, self._targets = jobs, seeds, work, targets
        self._finished, self._seconds = finished, seconds
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._names = iter(range(10**9))

    def run(self, cases: Iterator[Case], until: float) -> None:
        """Run cases until there are no more, or until `until` (of time.monotonic)."""
        try:
            for _ in range(self._jobs):
                self._start()
            for worker in list(self._workers):
                self._next(worker, cases, until)
            while self._workers:
                for key, _ in self._selector.select(TICK):
                    self._read(key.data, cases, until)
                for worker in list(self._workers):
                    self._watch(worker, cases, until)
        finally:
            for worker in self._workers:
                os.killpg(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)

    def _start(self) -> _Worker:
        name = next(self._names)
        theirs, ours = os.pipe()
        receive, write = os.pipe()
        folder, log = self._work / f"case-{name}", self._work / f"log-{name}"
        pid = os.fork()
        if pid == 0:
            for worker in self._workers:
                os.close(worker.send)
                os.close(worker.receive)
            os.close(ours)
            os.close(receive)
            try:
                serve(theirs, write, log, self._seeds, folder, self._targets)
            finally:
                os._exit(99)
        os.close(theirs)
        os.close(write)
        worker = _Worker(pid, ours, receive, folder, log)
        self._workers.append(worker)
        self._selector.register(receive, selectors.EVENT_READ, worker)
        return worker

    def _next(self, worker: _Worker, cases: Iterator[Case], until: float) -> None:
        worker.case = next(cases, None) if time.monotonic() < until else None
        if worker.case is None:
            self._end(worker)
            return
        worker.began, worker.cpu, worker.allowed = time.monotonic(), _cpu(worker.pid), 0
        os.write(worker.send, f"{worker.case}\n".encode())

    def _end(self, worker: _Worker) -> int:
        """Take leave of a worker; its exit status. It may have ended by itself."""
        self._selector.unregister(worker.receive)
        os.close(worker.send)
        os.close(worker.receive)
        self._workers.remove(worker)
        status = os.waitpid(worker.pid, 0)[1]
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)  # what it started and left behind
        shutil.rmtree(worker.folder, ignore_errors=True)
        return status

    def _read(self, worker: _Worker, cases: Iterator[Case], until: float) -> None:
        got = os.read(worker.receive, 1 << 16)
        if not got:
            self._died(worker, cases, until)
            return
        *lines, worker.unread = (worker.unread + got).split(b"\n")
        for line in lines:
            self._told(worker, json.loads(line), cases, until)

    def _told(
        self, worker: _Worker, message: dict[str, Any], cases: Iterator[Case], until: float
    ) -> None:
        assert worker.case is not None
        if "broken" in message:
            raise RuntimeError(f"the fuzzer failed at {message['broken']}")
        if "begin" in message:
            worker.files = tuple(message["files"])
            worker.began, worker.cpu = time.monotonic(), _cpu(worker.pid)
            worker.resident = _resident(worker.pid)
            worker.allowed = worker.resident + message["size"] * MEMORY_FACTOR + MEMORY_BYTES
            return
        outcome = Outcome(**{**message["outcome"], "files": tuple(message["outcome"]["files"])})
        if outcome.seconds > self._seconds:
            outcome = Outcome(
                "hang", f"ended after all, {outcome.kind}", outcome.text, outcome.seconds
            )
        self._finished(worker.case, outcome, worker.folder)
        worker.done += 1
        if worker.done >= CASES_A_WORKER:
            self._end(worker)
            worker = self._start()
        self._next(worker, cases, until)

    def _died(self, worker: _Worker, cases: Iterator[Case], until: float) -> None:
        """The pipe's other end is closed: the worker has ended, in the midst of its case."""
        case = worker.case
        assert case is not None
        kept = worker.folder.with_suffix(".dead")
        if worker.folder.exists():
            worker.folder.rename(kept)
        kind, where, text = say_why(self._end(worker), worker.log)
        self._finished(case, Outcome(kind, where, text, files=worker.files), kept)
        shutil.rmtree(kept, ignore_errors=True)
        self._next(self._start(), cases, until)

    def _watch(self, worker: _Worker, cases: Iterator[Case], until: float) -> None:
        if worker not in self._workers or worker.case is None:
            return
        now, used = time.monotonic(), _cpu(worker.pid)
        clock, cpu, resident = now - worker.began, used - worker.cpu, _resident(worker.pid)
        if used != worker.busy[1] or _runnable(worker.pid) or worker.busy[0] < worker.began:
            worker.busy = (now, used)
        waited = now - worker.busy[0]
        if max(cpu, waited, clock / WALL_FACTOR) > self._seconds:
            self._give_up(
                worker, "hang", f"{cpu:.1f} s of the CPU, {clock:.1f} s in all", cases, until
            )
        elif worker.allowed and resident > worker.allowed + MEMORY_SLACK:
            text = f"{(resident - worker.resident) >> 20} MiB and growing"
            self._give_up(worker, "memory", text, cases, until)

    def _give_up(
        self, worker: _Worker, kind: str, text: str, cases: Iterator[Case], until: float
    ) -> None:
        """End a worker in the midst of its case, having asked where it is."""
        case = worker.case
        assert case is not None
        os.kill(worker.pid, signal.SIGUSR1)
        time.sleep(GRACE)
        log = worker.log.read_bytes()[-20_000:].decode("utf-8", "replace")
        os.killpg(worker.pid, signal.SIGKILL)
        kept = worker.folder.with_suffix(".dead")
        worker.folder.rename(kept)
        self._end(worker)
        outcome = Outcome(kind, place_in_log(log), text, files=worker.files)
        self._finished(case, outcome, kept)
        shutil.rmtree(kept, ignore_errors=True)
        self._next(self._start(), cases, until)


def _cpu(pid: int) -> float:
    """Seconds of the CPU that a process has used, with its children that have ended."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = raw.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _runnable(pid: int) -> bool:
    """One of its threads computes, or would if it were let: it waits for nothing else."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(path.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return "R" in states


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
