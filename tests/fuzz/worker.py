"""One case, run to its end: what came of it, how long it took and how much memory.

A worker is a forked child that runs many cases, one after another, and writes a line of JSON before
and after each, so that its death names the case. What its libraries print goes into its own log.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from fuzz import scene
from fuzz.targets import Target

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ADDRESS_SPACE = 16 << 30
"""What a worker may map beyond what it has mapped at its start: a backstop for the machine."""
MEMORY_FACTOR, MEMORY_BYTES = 4, 200 << 20

# The last words of a library that found no memory: not its own fault, and not a crash.
_NO_MEMORY = ("memory allocation of", "bad_alloc", "out of memory", "cannot allocate memory")


@dataclass(frozen=True)
class Case:
    """A case is its coordinates: everything random in it follows from them."""

    target: str
    depth: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.target}:{self.depth}:{self.seed}:{self.number}"

    def random(self) -> Random:
        """The case's own generator, the same on every machine and version of Python."""
        return Random(str(self))

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that `str` gives. Raises ValueError."""
        target, depth, seed, number = text.split(":")
        return cls(target, depth, int(seed), int(number))


@dataclass
class Outcome:
    """kind: "done" and "refused" are right; "crash", "hang", "exception" and "memory" are not.

    where: what tells one fault from another; text: the first words of what was said. seconds and
    mebibytes: of the case alone.
    """

    kind: str
    where: str = ""
    text: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0
    files: tuple[str, ...] = ()
    done: bool = False


def prepare_case(case: Case, target: Target, seeds: Path, folder: Path) -> tuple[str, ...]:
    """Lay a seed's files into `folder` and damage them; the damaged files."""
    rng = case.random()
    present = [name for name in target.seeds if (seeds / name).is_dir()]
    shutil.rmtree(folder, ignore_errors=True)
    scene.lay(seeds / rng.choice(present), folder)
    return tuple(scene.damage_some(folder, target.files, rng))


def run_case(folder: Path, target: Target, depth: str, files: Sequence[str]) -> Outcome:
    """Read the folder's files as the target does, and say what came of it."""
    from retnet_edge.errors import InputError

    allowed = scene.size_of(folder) * MEMORY_FACTOR + MEMORY_BYTES
    action = target.shallow if depth == "shallow" else target.deep
    _forget_peak()
    before, began = _status("VmRSS"), time.process_time()
    outcome = Outcome("done", files=tuple(files))
    try:
        action(folder, files)
    except InputError as error:
        outcome.kind, outcome.text = "refused", str(error)[:300]
    except MemoryError as error:
        outcome.kind, outcome.text = "memory", repr(error)[:300]
        outcome.where = f"MemoryError {_place(error.__traceback__)}"
    except BaseException as error:  # a panic of a Rust library is no Exception
        outcome.kind, outcome.text = "exception", repr(error)[:300]
        outcome.where = f"{type(error).__name__} {_place(error.__traceback__)}"
        if outcome.kind == "exception" and any(word in repr(error) for word in _NO_MEMORY):
            outcome.kind = "memory"
    outcome.seconds = time.process_time() - began
    used = (_status("VmHWM") - before) * 1024
    outcome.mebibytes = used / 2**20
    if used > allowed and outcome.kind in ("done", "refused"):
        outcome.where = f"{outcome.kind} {outcome.text[-60:]}"
        outcome.kind = "memory"
        outcome.text = f"{used >> 20} MiB where {allowed >> 20} are allowed; {outcome.text}"[:300]
    return outcome


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the product, or of the library that it called first."""
    frames = traceback.extract_tb(trace)
    inside = [f for f in frames if _ours(f.filename)]
    frame = inside[-1] if inside else frames[-1]
    return f"{os.path.relpath(os.path.realpath(frame.filename), ROOT)}:{frame.name}"


def _ours(name: str) -> bool:
    path = Path(name).resolve()
    inside = ROOT in path.parents and HERE not in path.parents and ".venv" not in path.parts
    return inside and path.is_file()


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def serve(
    read: int, write: int, log: Path, seeds: Path, folder: Path, targets: dict[str, Target]
) -> None:
    """Run the cases whose names come in, one a line, until no more come; never returns."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    out = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    kept = os.fdopen(os.dup(out), "w")  # stays where a library closes or redirects 2
    faulthandler.enable(kept)
    faulthandler.register(signal.SIGUSR1, kept)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") * 1024 + ADDRESS_SPACE,) * 2)
    with os.fdopen(read) as cases:
        for line in cases:
            case = Case.parse(line.strip())
            os.ftruncate(out, 0)
            os.lseek(out, 0, os.SEEK_SET)
            target = targets[case.target]
            try:
                files = prepare_case(case, target, seeds, folder)
            except BaseException:  # a fault of the fuzzer, which ends the run
                _tell(write, {"broken": f"{case}\n{traceback.format_exc()}"})
                raise
            size = scene.size_of(folder)
            _tell(write, {"begin": str(case), "files": files, "size": size})
            outcome = run_case(folder, target, case.depth, files)
            # a fault's folder is left for the parent to keep, which says when to go on
            gc.collect(0)
            _tell(write, {"end": str(case), "outcome": asdict(outcome)})
    os._exit(0)


def _tell(write: int, message: dict[str, Any]) -> None:
    os.write(write, json.dumps(message).encode() + b"\n")


def say_why(status: int, log: Path) -> tuple[str, str, str]:
    """(kind, where, text) of a worker that ended by itself, from its status and its log."""
    raw = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    text = " ".join(raw.split())[:300]
    if any(word in raw.lower() for word in _NO_MEMORY):
        return "memory", f"no memory {place_in_log(raw)}", text
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return "crash", f"{name} {place_in_log(raw)}", text
    return "crash", f"exit {os.waitstatus_to_exitcode(status)} {place_in_log(raw)}", text


def place_in_log(text: str) -> str:
    """The innermost line of the product in what faulthandler printed, innermost first."""
    current = text[text.rfind("(most recent call first)") :]
    for line in current.splitlines():
        if line.strip().startswith('File "') and '", line ' in line:
            name, _, rest = line.strip().removeprefix('File "').partition('", line ')
            if _ours(name):
                place = os.path.relpath(os.path.realpath(name), ROOT)
                return f"{place}:{rest.partition(' in ')[2]}"
    return ""
