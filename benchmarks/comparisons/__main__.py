"""The paper's comparisons on one GPU: a queue of training runs through the project's own trainer.

    python -m benchmarks.comparisons run --train train.txt --valid valid.txt --out OUT --until 540
    python -m benchmarks.comparisons merge OUT/comparisons.jsonl
    python -m benchmarks.comparisons heads          # head shapes: CPU milliseconds a token

`run` trains what has no result yet under --results, several processes at once, in order of value
(runs.py), and starts nothing that those done say it cannot finish before --until. Call
it again for the rest. OUT/comparisons.jsonl always holds every result known; `merge` takes it apart
into the committed files. `benchmarks.results_page` makes docs/results.md of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.comparisons.queue import Queue
from benchmarks.comparisons.records import Failed, Record, merge, read_folder, write_records
from benchmarks.comparisons.runs import Run, close_candidates, further_seeds, parameters_of, planned
from benchmarks.comparisons.training import (
    Settings,
    checked_options,
    shards,
    train_one,
    train_options,
)
from retnet_edge.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "comparisons"
CHECKPOINT = ROOT / "checkpoints" / "edge-15m"
COMBINED = "comparisons.jsonl"
LEARNING_RATES = {"10m": 2e-3, "25m": 1.5e-3, "60m": 1e-3, "shape": 1.5e-3}


def closest_pair(records: dict[str, Record]) -> tuple[Run, Run] | None:
    """Of the pairs that are done, the one whose held-out losses differ least."""
    gaps: dict[tuple[Run, Run], float] = {}
    for pair in close_candidates():
        one, other = (records[run.name].result if run.name in records else None for run in pair)
        if one and other:
            gaps[pair] = abs(one.loss - other.loss)
    return min(gaps, key=lambda pair: gaps[pair]) if gaps else None


def missing(records: dict[str, Record], only: list[str]) -> list[Run]:
    """Runs without a result, in order; further seeds once all candidates for them are done."""
    runs = planned()
    candidates = {run for pair in close_candidates() for run in pair}
    pair = closest_pair(records)
    if pair and all(run.name in records for run in candidates if _wanted(run, only)):
        runs += further_seeds(pair)
    return [run for run in runs if run.name not in records and _wanted(run, only)]


def _wanted(run: Run, only: list[str]) -> bool:
    return any(fnmatch.fnmatch(run.name, pattern) for pattern in only)


def check_alike(settings: Settings, records: dict[str, Record]) -> None:
    """Raises InputError where a result was made with other options than it would be now."""
    runs = {run.name: run for run in planned()}
    for pair in close_candidates():
        runs |= {run.name: run for run in further_seeds(pair)}
    for name, record in records.items():
        if name not in runs:
            continue
        wanted = train_options(settings, runs[name])
        for option, value in wanted.items():
            if record.about.options[option] != value:
                raise InputError(
                    f"{settings.results}/{name}.jsonl was made with {option} "
                    f"{record.about.options[option]}, not {value}: give the same options or "
                    "another --results"
                )


def run_queue(settings: Settings, *, out: Path | None, only: list[str], until: float) -> int:
    """Train what is missing; how many runs have no result yet at the end."""
    results = Path(settings.results)
    records = read_folder(results)
    check_alike(settings, records)
    for run in planned():
        checked_options(settings, run)
    began = time.monotonic()
    print("tokenizing", flush=True)
    shards(settings)
    path = Path(settings.work) / "settings.json"
    path.write_bytes(msgspec.json.encode(settings))

    def command(run: Run) -> list[str]:
        one = [sys.executable, "-m", "benchmarks.comparisons", "one", run.name]
        return [*one, "--settings", str(path)]

    def finished(run: Run) -> None:
        known = read_folder(results)
        if out is not None:
            write_records(out / COMBINED, known.values())
        record = known.get(run.name)
        if record is not None:
            print(sentence(record), flush=True)

    if out is not None and records:
        write_records(out / COMBINED, records.values())
    queue = Queue(
        command=command,
        log=lambda run: Path(settings.work) / f"{run.name}.log",
        records=lambda: read_folder(results),
        todo=lambda known: missing(known, only),
        finished=finished,
        parameters=lambda run: parameters_of(run, 8192, smoke=settings.smoke),
        environment=_environment(settings),
        parallel=settings.parallel,
        deadline=began + until,
    )
    queue.run()
    return len(missing(read_folder(results), only))


def _environment(settings: Settings) -> dict[str, str]:
    """One compiler cache for all; each process its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // settings.parallel)
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "TORCHINDUCTOR_CACHE_DIR": str(Path(settings.work) / "inductor"),
        "OMP_NUM_THREADS": str(threads),
    }


def sentence(record: Record) -> str:
    """A line on one run."""
    about, end = record.about, record.end
    if isinstance(end, Failed):
        return f"{about.run}: failed after {end.wall_seconds:.0f} s: {end.reason}"
    return (
        f"{about.run}: {about.parameters / 1e6:.1f}M parameters, {end.tokens / 1e6:.0f}M tokens, "
        f"held-out perplexity {end.perplexity:.3f}, {end.bits_per_byte:.4f} bits a byte, "
        f"{end.tokens_per_second:,.0f} tokens/s, {end.wall_seconds:.0f} s"
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for."""
    import torch

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = dict(LEARNING_RATES)
    for item in args.lr:
        size, _, value = item.partition("=")
        if size not in rates or not value:
            raise InputError(f"--lr {item}: give SIZE=RATE, SIZE one of {', '.join(rates)}")
        try:
            rates[size] = float(value)
        except ValueError as error:
            raise InputError(f"--lr {item}: {value} is no number") from error
    if args.parallel < 1:
        raise InputError(f"--parallel {args.parallel}: at least one process is needed")
    on_gpu = device.startswith("cuda")
    return Settings(
        train=str(args.train),
        valid=str(args.valid),
        heldout=str(args.heldout),
        tokenizer=str(args.tokenizer),
        work=str(args.work.resolve()),
        results=str(args.results.resolve()),
        tokens=args.tokens or (1_024 if args.smoke else 100_000_000),
        step_tokens=args.step_tokens or (256 if args.smoke else 32_768),
        learning_rates=rates,
        dropout=args.dropout,
        device=device,
        precision="bfloat16" if on_gpu else "float32",
        compile=on_gpu and not args.no_compile,
        parallel=args.parallel,
        smoke=args.smoke,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.comparisons", description=(__doc__ or "").split("\n\n")[0]
    )
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="train what has no result yet")
    run.add_argument("--train", type=Path, required=True, help="text, or text in .xz")
    run.add_argument("--valid", type=Path, required=True, help="text of the validation curve")
    run.add_argument("--heldout", type=Path, default=CHECKPOINT / "heldout.txt")
    run.add_argument("--tokenizer", type=Path, default=CHECKPOINT / "tokenizer.json")
    run.add_argument("--work", type=Path, default=Path("/tmp/comparisons"), help="shards, runs")
    run.add_argument("--results", type=Path, default=RESULTS, help="one file a run")
    run.add_argument("--out", type=Path, help=f"folder that gets {COMBINED}")
    run.add_argument("--only", default="*", help="names or patterns of runs, with commas")
    run.add_argument("--until", type=float, default=float("inf"), help="seconds from now")
    run.add_argument("--parallel", type=int, default=3, help="processes on the device at once")
    run.add_argument("--tokens", type=int, help="that each run sees (100M)")
    run.add_argument("--step-tokens", type=int, help="in a step, whatever the context (32768)")
    run.add_argument("--lr", action="append", default=[], metavar="SIZE=RATE")
    run.add_argument("--dropout", type=float, default=0.1)
    run.add_argument("--device", default="auto")
    run.add_argument("--no-compile", action="store_true")
    run.add_argument("--smoke", action="store_true", help="tiny models, short texts, few steps")

    listed = commands.add_parser("list", help="the runs in order, and which have a result")
    listed.add_argument("--results", type=Path, default=RESULTS)

    one = commands.add_parser("one", help="one run in this process (what `run` starts)")
    one.add_argument("name")
    one.add_argument("--settings", type=Path, required=True)

    joined = commands.add_parser("merge", help="joined files into one file a run")
    joined.add_argument("files", type=Path, nargs="+")
    joined.add_argument("--results", type=Path, default=RESULTS)

    heads = commands.add_parser("heads", help="CPU milliseconds a token of the two head shapes")
    heads.add_argument("--results", type=Path, default=RESULTS)
    heads.add_argument("--tokenizer", type=Path, default=CHECKPOINT / "tokenizer.json")
    heads.add_argument("--rounds", type=int, default=15)
    heads.add_argument("--steps", type=int, default=200)
    heads.add_argument("--smoke", action="store_true")
    return top


def find_run(name: str) -> Run:
    """The run of a name."""
    runs = planned()
    for pair in close_candidates():
        runs += further_seeds(pair)
    for run in runs:
        if run.name == name:
            return run
    raise InputError(f"no run is called {name}; see `python -m benchmarks.comparisons list`")


def main() -> int:
    """Exit status 1: runs are left to do. 2: bad input."""
    args = parser().parse_args()
    try:
        if args.command == "one":
            settings = msgspec.json.decode(args.settings.read_bytes(), type=Settings)
            train_one(settings, find_run(args.name))
        elif args.command == "merge":
            print("\n".join(merge(args.files, args.results)))
        elif args.command == "list":
            records = read_folder(args.results)
            for run in planned():
                print(sentence(records[run.name]) if run.name in records else f"{run.name}: to do")
        elif args.command == "heads":
            from benchmarks.comparisons.head_shapes import measure

            measure(args.results, args.tokenizer, args.rounds, args.steps, smoke=args.smoke)
        else:
            left = run_queue(
                settings_of(args), out=args.out, only=args.only.split(","), until=args.until
            )
            print(f"{left} runs without a result")
            return 1 if left else 0
    except InputError as error:
        print(f"comparisons: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
