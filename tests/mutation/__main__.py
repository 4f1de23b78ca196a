"""Mutation testing: put one small fault at a time into a module and see whether its tests fail.

`python tests/mutation --help`; `make mutation` installs what it needs beside the virtual
environment. Every fault runs in a process of its own, forked from one that has loaded the outside
libraries, with the faulty source in the module's place: the working tree is never changed. Faults
that change nothing are listed with the reason in `equivalent.toml`.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

from mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")

# Module -> its tests, the quickest first. What is not named here has no mutation figure.
TESTS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("modules.toml").read_text())
LIBRARIES = [
    "numpy",
    "msgspec",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "torch",
    "torch._dynamo",  # which the first optimizer loads
    "torch.distributed.fsdp",
    "pyarrow.parquet",
    "pytest",
    "hypothesis",
]
# Modules that take no part in making a bundle: their faults are tried on bundles made once.
MAKE_NO_BUNDLE = ("runtime/text/",)


class FaultySource(SourceFileLoader):
    """Loads a module from another source than the one on disk."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class FaultyModule(importlib.abc.MetaPathFinder):
    """Finds one module by itself, and leaves all others to the usual finders."""

    def __init__(self, loader: FaultySource) -> None:
        self.loader = loader

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.loader.path, loader=self.loader
        )


def module_name(file: str) -> str:
    parts = Path(file).with_suffix("").parts
    return ".".join(parts if parts[0] == "retnet_edge" else ("retnet_edge", *parts))


def run_tests(file: str, source: str, tests: list[str]) -> int:
    """In a forked child: the exit status of pytest with `source` in place of `file`."""
    import pytest

    os.setpgrp()
    loader = FaultySource(module_name(file), str(ROOT / file))
    loader.source = source
    sys.meta_path.insert(0, FaultyModule(loader))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if not file.startswith(MAKE_NO_BUNDLE):
        os.environ.pop("RETNET_EDGE_MADE_ONCE")
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    return int(pytest.main([*options, *tests]))


class Jobs:
    """At most `count` children at a time; each is killed with its group after `seconds`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.running: dict[int, tuple[Mutant, float, float]] = {}

    def start(self, mutant: Mutant, seconds: float) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(run_tests(mutant.file, mutant.source, TESTS[mutant.file]))
        self.running[pid] = (mutant, time.monotonic(), seconds)

    def wait(self) -> tuple[Mutant, str, float]:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self.running:
                mutant, since, _ = self.running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                outcome = {0: "survived", 1: "killed", 2: "killed"}.get(code, f"status {code}")
                return mutant, outcome, time.monotonic() - since
            for child, (mutant, since, seconds) in list(self.running.items()):
                if time.monotonic() - since > seconds:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    del self.running[child]
                    return mutant, "killed by time", seconds
            time.sleep(0.01)


def known_equivalents() -> dict[tuple[str, str, str], str]:
    rows = tomllib.loads(EQUIVALENT.read_text())["mutant"] if EQUIVALENT.exists() else []
    return {(row["file"], row["before"], row["after"]): row["why"] for row in rows}


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python tests/mutation")
    parser.add_argument("files", nargs="*", help="modules (default: all of modules.toml)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--sample", type=float, default=1.0, help="share of the faults to try")
    parser.add_argument("--again", type=Path, help="only what survived in this earlier --out")
    parser.add_argument("--seconds", type=float, default=1e9, help="start none after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutation.jsonl")
    options = parser.parse_args(arguments)
    options.files = options.files or list(TESTS)
    if unknown := set(options.files) - set(TESTS):
        parser.error(f"{sorted(unknown)}: modules.toml names no tests of it")
    return options


def time_limits(files: list[str], jobs: Jobs) -> dict[str, float]:
    """Seconds that each module's tests may take; ends the program where they fail as they are."""
    limits = {}
    waiting = list(files)
    while waiting or jobs.running:
        if waiting and len(jobs.running) < jobs.count:
            file = waiting.pop(0)
            jobs.start(Mutant(file, 0, "none", "", "", (ROOT / file).read_text()), 900.0)
            continue
        mutant, outcome, spent = jobs.wait()
        if outcome != "survived":
            sys.exit(f"{mutant.file}: its tests fail without a fault ({outcome})")
        limits[mutant.file] = 10 + 3 * spent
        print(f"{mutant.file}: {spent:.1f} s", flush=True)
    return limits


def faults(options: argparse.Namespace) -> list[Mutant]:
    found = [mutant for file in options.files for mutant in mutants_of(ROOT, file)]
    if options.again:
        rows = [json.loads(line) for line in options.again.read_text().splitlines()]
        alive = {(r["file"], r["before"], r["after"]) for r in rows if r["outcome"] == "survived"}
        found = [mutant for mutant in found if mutant.key in alive]
    if options.sample < 1:
        found = random.Random(0).sample(found, round(options.sample * len(found)))
    return found


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mutation-") as made_once:
        os.environ["RETNET_EDGE_MADE_ONCE"] = made_once
        return judged(options_of(sys.argv[1:]))


def judged(options: argparse.Namespace) -> int:
    """Try the faults, and print and store what came of each; the exit status."""
    os.chdir(ROOT)
    sys.path[0] = str(ROOT)
    for library in LIBRARIES:
        __import__(library)
    began = time.monotonic()
    equivalent = known_equivalents()
    jobs = Jobs(options.jobs)
    limits = time_limits(options.files, jobs)
    todo = sorted(faults(options), key=lambda mutant: -limits[mutant.file])
    waiting = list(reversed(todo))
    counts: Counter[tuple[str, str]] = Counter()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as log:
        while True:
            if time.monotonic() - began > options.seconds:
                waiting.clear()
            if waiting and len(jobs.running) < jobs.count:
                mutant = waiting.pop()
                jobs.start(mutant, limits[mutant.file])
                continue
            if not jobs.running:
                break
            done, outcome, spent = jobs.wait()
            if outcome == "survived" and done.key in equivalent:
                outcome = "equivalent"
            row = {"file": done.file, "line": done.line, "kind": done.kind, "before": done.before}
            row |= {"after": done.after, "outcome": outcome, "seconds": round(spent, 1)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            if outcome == "survived":
                print(f"{done.file}:{done.line}: {done.before}  ->  {done.after}", flush=True)
            kind = outcome if outcome in ("survived", "equivalent") else "killed"
            counts[done.file, kind] += 1
    print(f"{'module':46} {'killed':>7} {'equal':>6} {'alive':>6}  score")
    total: Counter[str] = Counter()
    for file in options.files:
        row_of = {kind: counts[file, kind] for kind in ("killed", "equivalent", "survived")}
        total.update(row_of)
        report(file, row_of)
    report("all", total)
    spent = time.monotonic() - began
    print(f"{total.total()} of {len(todo)} faults, {options.jobs} jobs, {spent / 60:.1f} min")
    return 0


def report(name: str, row: Mapping[str, int]) -> None:
    judged = row["killed"] + row["survived"]
    score = f"{100 * row['killed'] / judged:5.1f} %" if judged else ""
    print(f"{name:46} {row['killed']:7} {row['equivalent']:6} {row['survived']:6}  {score}")


if __name__ == "__main__":
    sys.exit(main())
