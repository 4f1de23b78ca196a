"""The process whose memory is measured: `python -m retnet_edge.runtime.memory.child …`.

It opens the bundle, runs steps on random tokens and reads its own /proc/self/smaps_rollup every so
many of them, into arrays that were allocated, and touched, before the first step: what grows is the
session, or nothing. Standard output carries progress (a line with the number of steps done) and
then one line of JSON, an `MemorySamples`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
import time
from importlib import import_module
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

ROLLUP = "/proc/self/smaps_rollup"
PR_SET_PDEATHSIG = 1
PR_SET_THP_DISABLE = 41
PROGRESS_LINES = 50
SPARE_BYTES = 2 * 2**30
LIBRARIES = {
    "onnxruntime": "onnxruntime",
    "executorch": "retnet_edge.runtime.backends.executorch.session",
    "native": "retnet_edge.runtime.backends.native.session",
}
"""What a process imports for a backend before a model is loaded."""


class Stepper(Protocol):
    """What is measured: anything that takes a token at a time."""

    def step(self, token: int, /) -> object:
        """Take one."""
        ...


class MemorySamples(msgspec.Struct, frozen=True):
    """Samples taken after `tokens[i]` steps, in bytes, and single readings of the same kind.

    anonymous: pages with no file behind them, shared ones and those swapped out included.
    file_backed: resident pages of mapped files. base: resident before the bundle was opened
    (Python, NumPy and the backend's library), and base_anonymous its share; opened: resident after
    the warm-up. states: bytes of the state arrays at the end, one copy; states_expected: what the
    manifest says of the same position, and states_per_token how much one more token adds.
    load_seconds: from the checked bundle to a session that can step. step_seconds: mean of the
    steps before each sample.
    """

    model: str
    tokens: list[int]
    anonymous: list[int]
    file_backed: list[int]
    base: int
    base_anonymous: int
    opened: int
    states: int
    states_expected: int
    states_per_token: int
    load_seconds: float
    step_seconds: list[float]


def read_rollup(fd: int, buffer: bytearray) -> tuple[int, int]:
    """(anonymous, file-backed) bytes of this process. `fd` is an open smaps_rollup."""
    size = os.preadv(fd, [buffer], 0)
    kib = dict.fromkeys((b"Rss", b"Anonymous", b"Pss_Shmem", b"Swap"), 0)
    for line in bytes(buffer[:size]).splitlines():
        name, _, rest = line.partition(b":")
        if name in kib:
            kib[name] = int(rest.split()[0])
    private = kib[b"Anonymous"] + kib[b"Pss_Shmem"]
    return 1024 * (private + kib[b"Swap"]), 1024 * (kib[b"Rss"] - private)


class MemorySampler:
    """Reads memory into rows of a preallocated array [samples, 2] (anonymous, file-backed).

    seconds [samples]: what the steps before each sample took, written by `sample_memory`.
    """

    def __init__(self, samples: int) -> None:
        self.fd = os.open(ROLLUP, os.O_RDONLY)
        self.buffer = bytearray(4096)
        self.sizes: NDArray[np.int64] = np.full((samples, 2), -1, dtype=np.int64)
        self.seconds: NDArray[np.float64] = np.full(samples, -1.0)
        self.taken = 0

    def now(self) -> tuple[int, int]:
        """(anonymous, file-backed) bytes at this moment, not recorded."""
        return read_rollup(self.fd, self.buffer)

    def take(self) -> int:
        """Record a sample; returns resident bytes."""
        anonymous, file_backed = self.now()
        self.sizes[self.taken] = anonymous, file_backed
        self.taken += 1
        return anonymous + file_backed


def sample_memory(
    session: Stepper,
    sampler: MemorySampler,
    *,
    vocab: int,
    warmup: int,
    every: int,
    limit: int,
    show_progress: bool = True,
) -> int:
    """Run `warmup` steps, then `every` steps a sample until the sampler is full.

    Stops early when more than `limit` bytes are resident: a leak must not take the machine down.
    Returns the resident bytes after the warm-up.
    """
    steps = every * len(sampler.sizes)
    tokens = np.random.default_rng(0).integers(vocab, size=warmup + steps)
    line = max(1, len(sampler.sizes) // PROGRESS_LINES)
    for token in tokens[:warmup]:
        session.step(int(token))
    for _ in range(3):  # what reading and printing allocate the first time
        sampler.now()
    if show_progress:
        print(0, flush=True)
    gc.collect()
    gc.freeze()
    opened = sum(sampler.now())
    for index in range(len(sampler.sizes)):
        start = warmup + index * every
        began = time.perf_counter()
        for token in tokens[start : start + every]:
            session.step(int(token))
        sampler.seconds[index] = (time.perf_counter() - began) / every
        resident = sampler.take()
        if show_progress and (index + 1) % line == 0:
            print((index + 1) * every, flush=True)
        if resident > limit:
            break
    return opened


def guard(parent: int | None, *, huge_pages: bool = False) -> None:
    """Die with the parent, leave Ctrl-C to it, dump no core, and take huge pages only if asked to.

    A huge page that the kernel makes out of small ones would count as growth.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if not huge_pages:
        libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        sys.exit("the parent process is gone")


def main(argv: list[str] | None = None) -> None:
    """The child's command line; see `memory.measure_memory` for the meaning of the numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--backend", default="onnxruntime")
    args = parser.parse_args(argv)
    guard(args.parent)

    # the base is the process with its libraries, before the model
    import_module(LIBRARIES[args.backend])

    from retnet_edge.errors import InputError
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.packed import open_bundle

    sampler = MemorySampler(args.steps // args.every)
    base_anonymous, base_files = sampler.now()
    try:
        bundle = open_bundle(args.bundle)
        began = time.perf_counter()
        session = open_session(bundle, threads=args.threads, backend=args.backend)
    except InputError as error:
        sys.exit(str(error))
    load_seconds = time.perf_counter() - began
    manifest = bundle.manifest
    total = args.warmup + args.steps
    files = sum(entry.size for entry in manifest.files.values())
    opened = sample_memory(
        session,
        sampler,
        vocab=manifest.model.vocab_size,
        warmup=args.warmup,
        every=args.every,
        limit=SPARE_BYTES + 8 * (files + manifest.state_bytes(total)),
    )
    sizes = sampler.sizes[: sampler.taken]
    position = session.position
    observation = MemorySamples(
        model=manifest.model.kind,
        tokens=[args.warmup + args.every * (i + 1) for i in range(sampler.taken)],
        anonymous=sizes[:, 0].tolist(),
        file_backed=sizes[:, 1].tolist(),
        base=base_anonymous + base_files,
        base_anonymous=base_anonymous,
        opened=opened,
        states=sum(state.nbytes for state in session.states()),
        states_expected=manifest.state_bytes(position),
        states_per_token=manifest.state_bytes(position + 1) - manifest.state_bytes(position),
        load_seconds=load_seconds,
        step_seconds=sampler.seconds[: sampler.taken].tolist(),
    )
    print(msgspec.json.encode(observation).decode(), flush=True)


if __name__ == "__main__":
    main()
