"""`make fuzz`: damage files of every kind, read them, and count what came of it.

    python -m fuzz --seconds 600                     both depths, ten minutes
    python -m fuzz --cases 100000 --depth shallow    as many, however long it takes
    python -m fuzz --replay runs/fuzz/found/x        one case that was kept
    python -m fuzz --replay plan:deep:0:17           one case, made anew

`tests`, `tests/helpers` and `tests/helpers/bundles` are on PYTHONPATH (see the Makefile). A case is
a target, a depth, a seed and a number, and everything random in it follows from these four.
Exit status: 0 where every case was done or refused in one sentence, 1 where one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count, cycle, islice
from pathlib import Path

from fuzz.findings import CASE_FILE, Findings
from fuzz.pool import Pool
from fuzz.scene import files_of, keep
from fuzz.seeds import ROOT, lacking, made
from fuzz.targets import TARGETS, Target, runnable, warm
from fuzz.worker import Case, Outcome, run_case

DEPTHS = ("shallow", "deep")
FOUND = ROOT / "runs" / "fuzz" / "found"
DEEP_SHARE = 0.6
"""Of the time, where both depths are asked for."""
SHALLOW_CASES_A_DEEP_ONE = 10


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, parsed."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="another one gives other cases")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, help="in all, the making of seeds left out")
    parser.add_argument("--cases", type=int, help="of a depth; with both, a tenth as many are deep")
    parser.add_argument("--targets", nargs="+", choices=names, default=names, metavar="TARGET")
    parser.add_argument("--depth", choices=(*DEPTHS, "both"), default="both")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds, after which it hangs")
    parser.add_argument("--seeds", type=Path, default=ROOT / "runs" / "fuzz" / "seeds")
    parser.add_argument("--found", type=Path, default=FOUND, help="where wrong cases are kept")
    parser.add_argument("--replay", metavar="CASE", help="a kept folder, or a case's coordinates")
    return parser.parse_args(arguments)


def schedule(
    targets: Sequence[Target], depth: str, seed: int, limit: int | None = None
) -> Iterator[Case]:
    """Cases of the targets in turn, each as often as its weight says; at most `limit` in all.

    A target's cases have numbers of their own, so that other targets beside it change none.
    """
    at = DEPTHS.index(depth)
    turn = [target.name for target in targets for _ in range(target.weights[at])]
    random.Random(0).shuffle(turn)
    names = cycle(turn) if limit is None else islice(cycle(turn), limit)
    numbers = {target.name: count() for target in targets}
    for name in names:
        yield Case(name, depth, seed, next(numbers[name]))


def check_whole(targets: Sequence[Target], seeds: Path, work: Path) -> None:
    """Every seed is read at both depths while it is whole: else a refusal would mean nothing."""
    for target in targets:
        for name in target.seeds:
            if not (seeds / name).is_dir():
                continue
            for depth in DEPTHS:
                folder = work / "whole"
                keep(seeds / name, folder)
                states = [path for path in files_of(folder) if path.endswith(".state")]
                outcome = run_case(folder, target, depth, states)
                if outcome.kind != "done":
                    sys.exit(f"the seed {name} is not read by {target.name}, {depth}: {outcome}")


def say(text: str) -> None:
    """At once, also into a pipe."""
    print(text, flush=True)


def fuzz(given: argparse.Namespace) -> int:
    """The whole run; the exit status."""
    kept = Path(given.replay or "", CASE_FILE)
    case: Case | None = None
    if given.replay:
        text = json.loads(kept.read_text())["case"] if kept.is_file() else given.replay
        case = Case.parse(text)
        given.targets = [case.target]
    chosen = [target for target in TARGETS if target.name in given.targets]
    wanted = {name for target in chosen for name in target.seeds}
    seeds = made(given.seeds, wanted)
    targets = {t.name: t for t in chosen if any(name in seeds for name in t.seeds)}
    for name in [name for name in targets if not runnable(name)]:
        say(f"left out: {name}, which needs torch or ExecuTorch to run")
        del targets[name]
    for name in sorted(wanted - seeds.keys()):
        say(f"left out: {name}, for want of {', '.join(lacking(name)) or 'its files'}")
    shared = Path("/dev/shm")
    parent = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    work = Path(tempfile.mkdtemp(prefix="retnet-edge-fuzz-", dir=parent))
    try:
        copied = work / "seeds"
        for name, path in seeds.items():
            shutil.copytree(path, copied / name)
        warm(targets)
        if case is not None:
            again = replay_kept if kept.is_file() else replay_anew
            return again(given, case, targets[case.target], copied, work)
        # a tokenizer that fills its batches starts threads, which a fork would lose
        check_whole([t for t in targets.values() if t.name != "tokenizer"], copied, work)
        return run(given, targets, copied, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(given: argparse.Namespace, targets: dict[str, Target], seeds: Path, work: Path) -> int:
    """Both depths or one; prints the table."""
    found = Findings(given.found)
    depths = DEPTHS if given.depth == "both" else (given.depth,)
    shares = {"shallow": 1 - DEEP_SHARE, "deep": DEEP_SHARE} if len(depths) == 2 else {}
    began = time.monotonic()
    pool = Pool(given.jobs, seeds, work, targets, found.add, seconds=given.limit)
    for depth in depths:
        limit = given.cases
        if limit is not None and depth == "deep" and len(depths) == 2:
            limit = -(-limit // SHALLOW_CASES_A_DEEP_ONE)
        until = float("inf")
        if given.seconds is not None:
            until = time.monotonic() + given.seconds * shares.get(depth, 1)
        elif limit is None:
            sys.exit("fuzz: give --seconds or --cases")
        pool.run(schedule(list(targets.values()), depth, given.seed, limit), until)
    say(found.table())
    say(f"seed {given.seed}, {given.jobs} job(s), {time.monotonic() - began:.0f} s")
    if found.wrong:
        say(f"\n{found.list_of_places()}\n\nOne again: python -m fuzz --replay PATH")
    return 1 if found.wrong else 0


def replay_kept(
    given: argparse.Namespace, case: Case, target: Target, seeds: Path, work: Path
) -> int:
    """In this process, so that a debugger or a sanitizer sees it; a traceback is shown whole."""
    folder = work / "kept" / case.target
    keep(Path(given.replay), folder)
    files = json.loads((folder / CASE_FILE).read_text())["files"]
    (folder / CASE_FILE).unlink()
    say(f"{case}: {', '.join(files)}")
    action = target.shallow if case.depth == "shallow" else target.deep
    action(folder, files)
    say("done")
    return 0


def replay_anew(
    given: argparse.Namespace, case: Case, target: Target, seeds: Path, work: Path
) -> int:
    """In a worker, from its coordinates; its files are kept whatever comes of it."""
    path = given.found / str(case).replace(":", "-")

    def finished(case: Case, outcome: Outcome, folder: Path) -> None:
        keep(folder, path)
        (path / CASE_FILE).write_text(json.dumps({"case": str(case), **asdict(outcome)}, indent=2))
        say(f"{outcome}\nits files: {path}")

    pool = Pool(1, seeds, work, {case.target: target}, finished, seconds=given.limit)
    pool.run(iter([case]), float("inf"))
    return 0


if __name__ == "__main__":
    sys.exit(fuzz(options(sys.argv[1:])))
