"""The processes whose speed and memory are measured: `python -m retnet_edge.runtime.bench.child`.

Standard output carries progress (a line with the work done, see `BenchJob.cost`) and then one line
of JSON.
Speed and memory get processes of their own: copies of states that speed keeps are no memory of the
bundle's. Tests of one process are run in turns, so that what changes in the machine meanwhile
meets all of them alike.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from retnet_edge.errors import InputError
from retnet_edge.runtime.bench.records import Load, MemoryUse, quartiles
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.session.machine import OtherLoad

LATER_LOADS = 3
MEMORY_STEPS = 64
DECODE_COST = 5  # tokens of a prompt are fed while one is decoded, roughly
SCATTER = 7919  # a prime
FILL_TOKENS = 1024  # fed to a session between two looks at the clock while it gets to its depth


class BenchCase(msgspec.Struct, frozen=True):
    """One thing to time; see `BenchRow`."""

    test: Literal["prompt", "generate"]
    tokens: int
    depth: int
    batch: int = 1

    @property
    def cost(self) -> int:
        """See `BenchJob.cost`."""
        return self.tokens * (1 if self.test == "prompt" else DECODE_COST)


class BenchJob(msgspec.Struct, frozen=True):
    """What a child is asked to do; `memory`: measure memory instead of time."""

    bundle: str
    backend: Backend
    threads: int
    tests: list[BenchCase]
    repetitions: int
    parent: int
    memory: bool = False
    load: bool = False

    @property
    def cost(self) -> int:
        """Of all that the child does, in tokens of a prompt that take as long, roughly."""
        if self.memory:
            longest = max((test.tokens for test in self.tests if test.test == "prompt"), default=0)
            return longest + DECODE_COST * MEMORY_STEPS
        fill = max(test.depth for test in self.tests)
        return fill + (self.repetitions + 1) * sum(test.cost for test in self.tests)


class Times(msgspec.Struct, frozen=True):
    """Seconds of each test, `[test][repetition]`; other_cores by test; bandwidth in GB/s."""

    seconds: list[list[float]]
    other_cores: list[float | None]
    bandwidth: list[float]
    load: Load | None = None


def measure_times(work: BenchJob) -> Times:
    """Run every test once to warm up, then `repetitions` times, all tests in turn."""
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bench.read_bandwidth import ReadBandwidth
    from retnet_edge.runtime.bundle.packed import open_bundle
    from retnet_edge.runtime.text.batch import Batch
    from retnet_edge.runtime.text.snapshot import Snapshot

    load = measure_load(work) if work.load else None
    done = 0
    bundle = open_bundle(work.bundle)
    session = open_session(bundle, threads=work.threads, backend=work.backend)
    vocab = bundle.manifest.model.vocab_size
    rng = np.random.default_rng(0)
    starts = {}
    for depth in sorted({test.depth for test in work.tests}):
        while session.position < depth:
            missing = min(FILL_TOKENS, depth - session.position)
            session.prefill(rng.integers(vocab, size=missing).tolist())
            done += missing
            print(done, flush=True)
        starts[depth] = Snapshot.of(session)
    batches = {n: Batch(bundle, n, threads=work.threads) for n in _batches(work)}
    bandwidth = ReadBandwidth(work.threads)
    bandwidth.gigabytes()
    seconds: list[list[float]] = [[] for _ in work.tests]
    loads: list[list[float]] = [[] for _ in work.tests]
    read: list[float] = []
    for repetition in range(work.repetitions + 1):
        for index, test in enumerate(work.tests):
            tokens = rng.integers(vocab, size=test.tokens).tolist()
            start = starts[test.depth]
            start.restore(session)
            batch = batches.get(test.batch)
            rows = [batch.join(start) for _ in range(test.batch)] if batch else []
            other = OtherLoad()
            began = time.perf_counter()
            if test.test == "prompt":
                int(session.prefill(tokens).argmax())
            elif batch is not None:
                for token in tokens:
                    batch.step(dict.fromkeys(rows, token))
            else:
                for token in tokens:
                    session.step(token)
            took = time.perf_counter() - began
            for row in rows:
                assert batch is not None
                batch.leave(row)
            if repetition:
                seconds[index].append(took)
                if (cores := other.cores()) is not None:
                    loads[index].append(cores * took)
            done += test.cost
            print(done, flush=True)
        read.append(bandwidth.gigabytes())
    # weighed by time: a tick of the kernel's counters is longer than a short repetition
    cores_by_test = [
        sum(loads[i]) / sum(seconds[i]) if len(loads[i]) == len(seconds[i]) else None
        for i in range(len(work.tests))
    ]
    return Times(seconds, cores_by_test, read[1:], load)


def _batches(work: BenchJob) -> list[int]:
    return sorted({test.batch for test in work.tests if test.batch > 1})


def measure_load(work: BenchJob) -> Load:
    """Times to the first logits of both graphs: in this fresh process, and again."""
    _drop_cached(Path(work.bundle))
    first = _open_once(work)
    return Load(first, quartiles([_open_once(work) for _ in range(LATER_LOADS)]))


def _open_once(work: BenchJob) -> float:
    """Milliseconds."""
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.packed import open_bundle

    began = time.perf_counter()
    bundle = open_bundle(work.bundle)
    session = open_session(bundle, threads=work.threads, backend=work.backend)
    session.step(0)
    session.prefill([0] * 128)
    return 1e3 * (time.perf_counter() - began)


def _drop_cached(folder: Path) -> None:
    """Ask the kernel to forget the files' pages (it keeps those that a process has mapped)."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_use(work: BenchJob) -> MemoryUse:
    """Memory after the longest prompt of the tests and some steps."""
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.packed import open_bundle
    from retnet_edge.runtime.memory.child import MemorySampler

    sampler = MemorySampler(1)
    base = sum(sampler.now())
    bundle = open_bundle(work.bundle)
    session = open_session(bundle, threads=work.threads, backend=work.backend)
    longest = max((test.tokens for test in work.tests if test.test == "prompt"), default=0)
    # Spread over the vocabulary, without NumPy's generators: their 0.8 MB are none of a bundle's.
    tokens = np.arange(longest + MEMORY_STEPS) * SCATTER % bundle.manifest.model.vocab_size
    if longest:
        session.prefill(tokens[:longest].tolist())
    for token in tokens[longest:].tolist():
        session.step(token)
    anonymous, file_backed = sampler.now()
    return MemoryUse(base, anonymous + file_backed, anonymous, file_backed, _peak())


def _peak() -> int:
    """Highest resident bytes of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def main() -> None:
    """The child: its work is the one argument, as JSON."""
    from retnet_edge.runtime.memory.child import LIBRARIES, guard

    work = msgspec.json.decode(sys.argv[1], type=BenchJob)
    guard(work.parent, huge_pages=True)
    import_module(LIBRARIES[work.backend])
    try:
        result = measure_use(work) if work.memory else measure_times(work)
    except InputError as error:
        sys.exit(str(error))
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
