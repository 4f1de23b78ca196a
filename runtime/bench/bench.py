"""`retnet-edge bench`: how fast a bundle is, and what memory it takes, on this machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import backend_version, choose_backend
from retnet_edge.runtime.bench.child import BenchCase, BenchJob, Times
from retnet_edge.runtime.bench.records import Bench, BenchRow, Load, MemoryUse, Quartiles, quartiles
from retnet_edge.runtime.bench.traffic import step_bytes, step_weight_bytes
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.packed import open_bundle
from retnet_edge.runtime.memory.memory import child_output, memory_supported
from retnet_edge.runtime.session.machine import processor
from retnet_edge.runtime.session.threads import check_threads, default_threads, physical_cores

_T = TypeVar("_T")
DISTURBING_CORES = 0.1
# NumPy's own threads would read beside those that measure the bandwidth.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def bench(
    bundle: str | Path,
    *,
    prompt: Sequence[int] = (512,),
    generate: Sequence[int] = (128,),
    depth: Sequence[int] = (0,),
    threads: Sequence[int] = (),
    batch: Sequence[int] = (1,),
    repetitions: int = 5,
    backend: str | None = None,
    memory: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bench:
    """Time prompts and decoding of every length at every depth, on each number of threads.

    prompt, generate: lengths in tokens (none: do not test). depth: tokens that the state has seen
    before. threads: () for the number that a session chooses by itself. batch: sequences that are
    decoded in one step; prompts are fed to one. repetitions: of every test,
    after one that is not counted. progress(done, total): of all work, in parts that take about as
    long (`BenchJob.cost`); called with 0 first. Every number of threads has a process of its own,
    and memory another one, on the first number of threads.

    Raises InputError for a bundle that does not open or run, for a length or a depth that is
    negative, for batch or repetitions below 1, threads that are not 1 to 256, for a bundle that
    cannot run a batch, and where nothing is asked for.
    """
    opened = open_bundle(bundle)
    chosen = choose_backend(opened, backend)
    for what, numbers, least in (
        ("prompt", prompt, 1),
        ("generate", generate, 1),
        ("depth", depth, 0),
        ("batch", batch, 1),
        ("repetitions", [repetitions], 1),
    ):
        for bad in [number for number in numbers if number < least][:1]:
            raise InputError(f"{what} is {bad}; at least {least} is needed")
    tests = []
    for start in dict.fromkeys(depth):
        tests += [BenchCase("prompt", tokens, start) for tokens in dict.fromkeys(prompt)]
        for tokens in dict.fromkeys(generate):
            tests += [BenchCase("generate", tokens, start, rows) for rows in dict.fromkeys(batch)]
    if not tests:
        raise InputError("nothing to measure: give a prompt or a generate length, and a depth")
    for count in threads:
        check_threads(count)
    if chosen != "onnxruntime" and set(batch) != {1}:
        raise InputError(f"batch is {max(batch)}; {chosen} runs one sequence")
    counts = list(dict.fromkeys(threads)) or [default_threads()]
    jobs = [
        BenchJob(str(bundle), chosen, count, tests, repetitions, os.getpid(), load=number == 0)
        for number, count in enumerate(counts)
    ]
    memory_job = None
    if memory and memory_supported():
        memory_job = BenchJob(str(bundle), chosen, counts[0], tests, 0, os.getpid(), memory=True)
    total = sum(job.cost for job in jobs) + (0 if memory_job is None else memory_job.cost)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    rows: list[BenchRow] = []
    bandwidth: dict[int, Quartiles] = {}
    load: Load | None = None
    advance(0)
    weights = step_weight_bytes(opened, chosen)
    for job in jobs:
        times = _child(job, advance, Times)
        load = load or times.load
        bandwidth[job.threads] = quartiles(times.bandwidth)
        rows += _rows(opened, weights, job, times)
    used = None
    if memory_job is not None:
        used = _child(memory_job, lambda n: None, MemoryUse)
        advance(memory_job.cost)
    assert load is not None
    manifest = opened.manifest
    return Bench(
        bundle=Path(bundle).resolve().name,
        model=manifest.model.kind,
        parameters=manifest.model.parameters,
        recipe=manifest.quantization.recipe,
        backend=chosen,
        processor=processor(),
        cores=physical_cores(),
        weights_bytes=weights,
        state_bytes=manifest.state_bytes(1),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("retnet-edge", "numpy")},
            chosen: backend_version(chosen),
        },
        bandwidth=bandwidth,
        load=load,
        memory=used,
        rows=rows,
        warnings=_warnings(rows),
    )


def _rows(bundle: Bundle, weights: int, work: BenchJob, times: Times) -> list[BenchRow]:
    read = max(times.bandwidth)  # what the machine can do, when nothing is in the way
    rows = []
    for test, seconds, other in zip(work.tests, times.seconds, times.other_cores, strict=True):
        gigabytes = share = None
        steps = test.tokens if test.test == "generate" else 1
        each = quartiles([1e3 * s / steps for s in seconds])
        if test.test == "generate":
            middle = test.depth + test.tokens // 2
            moved = step_bytes(bundle, weights, position=middle, batch=test.batch)
            gigabytes = moved / each.median / 1e6
            share = gigabytes / read
        rows.append(
            BenchRow(
                test=test.test,
                tokens=test.tokens,
                depth=test.depth,
                batch=test.batch,
                threads=work.threads,
                rate=quartiles([test.tokens * test.batch / s for s in seconds]),
                milliseconds=each,
                gigabytes=gigabytes,
                share=share,
                other_cores=other,
            )
        )
    return rows


def _warnings(rows: Sequence[BenchRow]) -> list[str]:
    """What a reader of the figures has to know."""
    known = [row.other_cores for row in rows if row.other_cores is not None]
    warnings = []
    if known and max(known) > DISTURBING_CORES:
        warnings.append(
            f"other processes kept up to {max(known):.1f} cores busy meanwhile: the figures are of "
            "a disturbed machine"
        )
    if len(known) < len(rows):
        warnings.append("this system does not say how busy other processes keep it")
    if any(row.share is not None and row.share > 1 for row in rows):
        warnings.append(
            "a share above 100 %: part of the weights stays in a cache, which is faster than memory"
        )
    wobbly = [row for row in rows if row.rate.high - row.rate.low > 0.1 * row.rate.median]
    if wobbly:
        warnings.append(
            f"the quartiles of {len(wobbly)} of {len(rows)} tests lie more than 10 % apart"
        )
    return warnings


def _child(work: BenchJob, advance: Callable[[int], None], result: type[_T]) -> _T:
    command = [sys.executable, "-m", "retnet_edge.runtime.bench.child"]
    command.append(msgspec.json.encode(work).decode())
    last = child_output(command, advance, _ENVIRONMENT, "speed")
    return msgspec.json.decode(last, type=result)
