"""Faults put in on purpose, one target each, run as `make fuzz` runs its own: what is told of them.

`python -m fuzz.planted FOLDER` prints JSON: name -> [kind, place and text].
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fuzz.findings import Findings
from fuzz.pool import Pool
from fuzz.targets import Action, Target
from fuzz.worker import Case, Outcome

LIMIT = 1.0
MIB = 1 << 20
SLEEP = "86399.125"  # as nobody else does


def _fine(case: Path, files: Sequence[str]) -> None:
    assert (case / "file.json").exists() or files


def _refused(case: Path, files: Sequence[str]) -> None:
    from retnet_edge.errors import InputError

    raise InputError("the file holds a 7 where 8 is allowed")


def _segfault(case: Path, files: Sequence[str]) -> None:
    ctypes.string_at(8)


def _abort(case: Path, files: Sequence[str]) -> None:
    os.abort()


def _leaves(case: Path, files: Sequence[str]) -> NoReturn:
    os._exit(3)


def _computes_on(case: Path, files: Sequence[str]) -> None:
    while True:
        pass


def _waits_on(case: Path, files: Sequence[str]) -> None:
    os.mkfifo(case / "fifo")
    (case / "fifo").read_bytes()


def _child_waits(case: Path, files: Sequence[str]) -> None:
    subprocess.run(["sleep", SLEEP], check=True)


def _foreign(case: Path, files: Sequence[str]) -> None:
    raise KeyError("weights")


class _Panic(BaseException):
    """What a library in Rust raises where it panics: no Exception."""


def _panic(case: Path, files: Sequence[str]) -> None:
    raise _Panic("no entry found for key")


def _takes_much(case: Path, files: Sequence[str]) -> None:
    assert len(b"\1" * (300 * MIB)) > 0


def _takes_more_and_more(case: Path, files: Sequence[str]) -> None:
    kept = []
    while True:
        kept.append(b"\1" * (20 * MIB))
        time.sleep(0.01)


def _asks_for_all(case: Path, files: Sequence[str]) -> None:
    bytearray(1 << 45)


PLANTED: dict[str, Action] = {
    "fine": _fine,
    "refused": _refused,
    "segfault": _segfault,
    "abort": _abort,
    "leaves": _leaves,
    "computes on": _computes_on,
    "waits on": _waits_on,
    "child waits": _child_waits,
    "foreign": _foreign,
    "panic": _panic,
    "takes much": _takes_much,
    "takes more and more": _takes_more_and_more,
    "asks for all": _asks_for_all,
}


def main(work: Path) -> None:
    """Two cases of each, so that a worker goes on or is replaced in between."""
    import retnet_edge.errors  # noqa: F401 - before the fork, as `warm` does

    (work / "seeds" / "planted").mkdir(parents=True)
    (work / "seeds" / "planted" / "file.json").write_text('{"a": [1, 2, {"b": "c"}]}')
    targets = {
        name: Target(name, ("planted",), ("file.json",), action, action, (1, 1))
        for name, action in PLANTED.items()
    }
    said: dict[str, list[tuple[str, str]]] = {name: [] for name in PLANTED}
    found = Findings(work / "found")

    def finished(case: Case, outcome: Outcome, folder: Path) -> None:
        said[case.target].append((outcome.kind, f"{outcome.where} {outcome.text}"))
        found.add(case, outcome, folder)

    cases = [Case(name, "deep", 0, number) for number in range(2) for name in PLANTED]
    pool = Pool(2, work / "seeds", work, targets, finished, seconds=LIMIT)
    pool.run(iter(cases), float("inf"))
    children = subprocess.run(["pgrep", "-f", f"sleep {SLEEP}"], capture_output=True, check=False)
    print(json.dumps({"said": said, "wrong": found.wrong, "left": children.stdout.decode()}))


if __name__ == "__main__":
    signal.alarm(300)
    main(Path(sys.argv[1]))
