"""Does memory stay constant? Bytes per token of a process that runs the bundle, with an interval.

The steps run in a child process of their own (`child.py`), so that nothing but the session
can grow. What is judged is anonymous memory: pages of a mapped weights file fault in when they are
first touched (embedding rows, most of all), can be dropped again at any time, and are reported
apart. The fit and its interval are explained in `slope.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from retnet_edge.errors import InputError
from retnet_edge.runtime.memory.child import ROLLUP, MemorySamples
from retnet_edge.runtime.memory.slope import MIN_SAMPLES, Slope, fit_slope
from retnet_edge.runtime.session.threads import check_threads

SAMPLES = 500
FIRST_STEPS, MORE_STEPS = 20_000, 40_000
"""Steps where none are asked for. Over 20,000 one page of 4 KiB that stays keeps the interval below
a byte a token (`slope.py`); where the interval cannot tell, a new run takes 40,000."""
TIMED_STEPS = 400

Started = Callable[["subprocess.Popen[str]"], None]
CHILD_ENVIRONMENT = {
    # One heap, and blocks of 64 KiB up taken from and given back to the kernel one by one, so that
    # a buffer that was freed is no longer counted. A cache that grows by 8,192 bytes a token, with
    # ONNX Runtime's arena off, is fitted at 8,278 [8,150, 8,405] with these and at 8,603
    # [5,445, 11,760] without; with the arena on, at 28,137 [2,484, 53,789] with or without.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "PYTHONHASHSEED": "0",
}


class Memory(msgspec.Struct, frozen=True):
    """What one bundle's process held, in bytes; slopes in bytes per token.

    steps: measured after `warmup` more; other work may run beside them. anonymous and file_backed
    are the samples of the two kinds of memory at `tokens` steps. state_bytes: of the states at the
    end, beside what the manifest says of that position (state_bytes_manifest) and by how much it
    says they grow a token. base_bytes: resident before the bundle is opened; opened_bytes: after
    the warm-up. load_seconds: from the checked bundle to a session. step_milliseconds: quartiles of
    the steps' time. Both are those of a process alone on the machine where `time_alone` took them.
    """

    model: str
    steps: int
    warmup: int
    threads: int
    anonymous_slope: Slope
    file_backed_slope: Slope
    file_backed_growth: int
    state_bytes: int
    state_bytes_manifest: int
    state_bytes_per_token: int
    base_bytes: int
    base_anonymous_bytes: int
    opened_bytes: int
    tokens: list[int]
    anonymous: list[int]
    file_backed: list[int]
    load_seconds: float
    step_milliseconds: tuple[float, float, float]

    @property
    def tokens_per_second(self) -> float:
        """Of the median step."""
        return 1e3 / self.step_milliseconds[1]


def memory_supported() -> bool:
    """True where the kernel tells a process what it holds (Linux)."""
    return Path(ROLLUP).exists()


def summarise_memory(seen: MemorySamples, *, warmup: int, threads: int) -> Memory:
    """Fit the slopes of an observation."""
    low, middle, high = np.percentile(np.multiply(seen.step_seconds, 1e3), (25, 50, 75))
    return Memory(
        model=seen.model,
        steps=seen.tokens[-1] - warmup,
        warmup=warmup,
        threads=threads,
        anonymous_slope=fit_slope(seen.tokens, seen.anonymous),
        file_backed_slope=fit_slope(seen.tokens, seen.file_backed),
        file_backed_growth=seen.file_backed[-1] - seen.file_backed[0],
        state_bytes=seen.states,
        state_bytes_manifest=seen.states_expected,
        state_bytes_per_token=seen.states_per_token,
        base_bytes=seen.base,
        base_anonymous_bytes=seen.base_anonymous,
        opened_bytes=seen.opened,
        tokens=seen.tokens,
        anonymous=seen.anonymous,
        file_backed=seen.file_backed,
        load_seconds=seen.load_seconds,
        step_milliseconds=(float(low), float(middle), float(high)),
    )


def measure_memory(
    bundle_path: Path,
    steps: int | None = None,
    *,
    warmup: int = 500,
    threads: int = 1,
    backend: str | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
    started: Started = lambda child: None,
    environment: dict[str, str] = CHILD_ENVIRONMENT,
) -> Memory:
    """Run `steps` steps of the bundle in a child process and fit its growth.

    steps: None for as many as the interval needs (FIRST_STEPS, else MORE_STEPS in a new process).
    warmup: steps before the first sample (allocators settle). backend: see `open_session`.
    advance(n): called after n more steps. started: called with each child. environment: variables
    of the child. The child dies with this process, or as soon as this call is left. A child that
    holds 2 GiB and eight times the bundle's size stops there, and its growth is fitted all the
    same.

    Raises InputError where the system is not Linux, where `steps` gives fewer than 8 samples, and
    where the child could not run the bundle or was killed.
    """
    check_threads(threads)
    if steps is None:
        run = partial(
            measure_memory,
            bundle_path,
            warmup=warmup,
            threads=threads,
            backend=backend,
            started=started,
            environment=environment,
        )
        found = run(FIRST_STEPS, advance=advance)
        slope = found.anonymous_slope
        return found if slope.low <= 0 and slope.high < 1 else run(MORE_STEPS)
    if not memory_supported():
        raise InputError(f"memory is read from {ROLLUP}, which only Linux has")
    if steps < MIN_SAMPLES:
        raise InputError(f"memory steps must be {MIN_SAMPLES} or more, not {steps}")
    every = max(1, steps // SAMPLES)
    command = [sys.executable, "-m", "retnet_edge.runtime.memory.child", str(bundle_path)]
    command += [f"--steps={steps}", f"--warmup={warmup}", f"--every={every}"]
    command += [f"--threads={threads}", f"--parent={os.getpid()}"]
    command += [] if backend is None else [f"--backend={backend}"]
    seen = run_child(command, advance, started, environment)
    try:
        return summarise_memory(seen, warmup=warmup, threads=threads)
    except ValueError as error:
        raise InputError(f"{bundle_path}: memory could not be fitted: {error}") from error


def steps_at_first(steps: int | None) -> int:
    """The steps of the first, and mostly the only, run of `measure_memory`."""
    return FIRST_STEPS if steps is None else steps


def time_alone(memory: Memory, bundle_path: Path, backend: str | None = None) -> Memory:
    """`memory` with the times of a new process, which should have the machine for itself.

    It allocates as any process does: with blocks that come from the kernel one by one, a cache that
    is copied at every step takes five times as long. A state that grows is timed over as many steps
    as `memory` has, since they get slower. Raises InputError as `measure_memory` does.
    """
    alone = measure_memory(
        bundle_path,
        memory.steps if memory.state_bytes_per_token else TIMED_STEPS,
        warmup=50,
        threads=memory.threads,
        backend=backend,
        environment={},
    )
    return msgspec.structs.replace(
        memory, load_seconds=alone.load_seconds, step_milliseconds=alone.step_milliseconds
    )


def run_child(
    command: list[str],
    advance: Callable[[int], None],
    started: Started = lambda child: None,
    environment: dict[str, str] = CHILD_ENVIRONMENT,
) -> MemorySamples:
    """Run a child that prints as `child.py` does; returns its observation.

    Raises InputError with the last line of its standard error where it does not end well.
    """
    last = child_output(command, advance, environment, "memory", started)
    return msgspec.json.decode(last, type=MemorySamples)


def child_output(
    command: list[str],
    advance: Callable[[int], None],
    environment: dict[str, str],
    what: str,
    started: Started = lambda child: None,
) -> str:
    """Run a child that prints progress (lines of digits) and a result; returns its last line.

    environment: variables to set. advance(n): called with the progress since the last call. what:
    it measures. started(child): called when it runs. The child dies with this call. Raises
    InputError with the last line of its standard error where it does not end well.
    """
    last, done = "", 0
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
            text=True,
        )
        try:
            started(child)
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip().isdigit():
                    advance(int(line) - done)
                    done = int(line)
                else:
                    last = line
            status = child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if status != 0:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise InputError(f"the process that measures {what} {how}: {(said or ['no message'])[-1]}")
    return last
