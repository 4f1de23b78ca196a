"""Milliseconds a step of several bundles, in turns in one process, and over the first one's.

    python -m benchmarks.speed.steps INT8.edge INT4.edge MIXED.edge --threads 1

Median (quartiles) of rounds; every round steps each bundle for about `--seconds`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bench.records import quartiles
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.machine import OtherLoad
from retnet_edge.runtime.session.protocol import Session

WARM_UP = 5
Key = TypeVar("Key")


def step_milliseconds(session: Session, steps: int) -> float:
    """Of one step, averaged over `steps`."""
    began = time.perf_counter()
    for token in range(steps):
        session.step(token)
    return 1e3 * (time.perf_counter() - began) / steps


def in_turns(sessions: dict[Key, Session], rounds: int, seconds: float) -> dict[Key, list[float]]:
    """Milliseconds a step of each, round by round; a round takes each for about `seconds`."""
    steps = {
        key: max(3, int(1e3 * seconds / step_milliseconds(session, WARM_UP)))
        for key, session in sessions.items()
    }
    found: dict[Key, list[float]] = {key: [] for key in sessions}
    for _ in range(rounds):
        for key, session in sessions.items():
            found[key].append(step_milliseconds(session, steps[key]))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=[None], help="of each bundle")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.2)
    args = parser.parse_args()
    watch = OtherLoad()
    sessions = {
        f"{path.name} {backend or ''}".strip(): open_session(
            Bundle.open(path), args.threads, backend
        )
        for path in args.bundles
        for backend in args.backends
    }
    found = in_turns(sessions, args.rounds, args.seconds)
    base = next(iter(found))
    first = found[base]
    table = Table("bundle", "ms a step", f"of {base}'s")
    for name, values in found.items():
        of = quartiles(values)
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        table.add_row(name, f"{of.median:.3f} ({of.low:.3f} – {of.high:.3f})", f"{ratio:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"other processes kept {watch.cores() or 0:.1f} cores busy meanwhile")


if __name__ == "__main__":
    main()
