"""Our bundles beside llama.cpp at equal numbers of parameters, interleaved in one run.

    make bench-peers
    python -m benchmarks.peers measure --bundles runs/backends/edge-135m --out peers.json
    python -m benchmarks.peers page        # docs/peers.md from benchmarks/results/peers.json

Every contender is a process of its own, all alive at once and one of them working at a time: at
each depth (tokens before) a round of steps of each in turn, `--rounds` times; then prompts
likewise. What it takes to get from one depth to the next is kept as well. The machine's read
bandwidth is measured between rounds. The file is written after every depth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "peers.json"
PEERS = ("llama-q8_0", "llama-q4_0", "rwkv7-q8_0", "mamba2-q8_0")
OURS = ("int8", "int8-native", "int4", "int4-native")
DEPTHS = (0, 2048, 8192)
PROMPTS = (512,)
ROUND_SECONDS = 0.25

Row = dict[str, Any]


class Contender:
    """A process that answers `process.serve`'s commands."""

    def __init__(self, name: str, command: list[str]) -> None:
        """Start it and wait until it has loaded. Raises RuntimeError where it ends instead."""
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._answer()["ready"]

    def ask(self, command: str, count: int = 0) -> Any:
        """Its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, count]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Close its input and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            last = self._process.stderr.read().strip().splitlines()[-1:]
            self._process.wait()
            self._close()
            raise RuntimeError(f"{self.name} ended: {' '.join(last) or 'without a word'}")
        return json.loads(line)


def command(name: str, args: argparse.Namespace, threads: int) -> list[str]:
    """How a contender's process is started."""
    if name in PEERS:
        context = max(*args.depths, *args.prompts) + 1024
        file = args.gguf / f"{name}.gguf"
        numbers = [threads, context, args.fill_threads or threads]
        return [
            str(args.peers_python),
            "-m",
            "benchmarks.peers.llama",
            str(file),
            *map(str, numbers),
        ]
    recipe, native, _ = name.partition("-native")
    bundle = args.bundles / f"{recipe}-onnx"
    ours = [sys.executable, "-m", "benchmarks.peers.ours"]
    return [*ours, str(bundle), str(threads), native[1:] or "onnxruntime"]


def spread(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values * 3
    return [float(f"{x:.5g}") for x in statistics.quantiles(values, n=4)]


def measure(args: argparse.Namespace) -> None:
    """All rows, to `--out`."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # ReadBandwidth makes its own threads
    from retnet_edge.runtime.bench.read_bandwidth import ReadBandwidth

    rows: list[Row] = []
    read: dict[int, list[float]] = {}
    began = time.strftime("%Y-%m-%d %H:%M")
    for threads in args.threads:
        bandwidth = ReadBandwidth(threads)
        bandwidth.gigabytes()
        read[threads] = []
        running = [Contender(n, command(n, args, threads)) for n in (*args.ours, *args.peers)]
        steps = {}
        for one in running:
            one.ask("start")
            one.ask("decode", 3)
            took = one.ask("decode", 10)["seconds"] / 10
            steps[one.name] = max(2, round(ROUND_SECONDS / took))
            one.ask("start")

        def write() -> None:
            told = {
                "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
                "machine": f"{processor()}, {platform.system()}; {began}",
                "bandwidth GB/s": {str(n): spread(v) for n, v in read.items() if v},
                "rows": rows,
            }
            args.out.write_text(json.dumps(told, indent=1) + "\n")

        before = 0
        for depth in sorted(args.depths):
            filled = {one.name: one.ask("advance", depth)["seconds"] for one in running}
            rates: dict[str, list[float]] = {one.name: [] for one in running}
            for _ in range(args.rounds):
                for one in running:
                    seconds = one.ask("decode", steps[one.name])["seconds"]
                    rates[one.name].append(steps[one.name] / seconds)
                read[threads].append(bandwidth.gigabytes())
            for one in running:
                used = one.ask("memory")
                timed = depth > before and not (args.fill_threads and one.name in PEERS)
                rows.append(
                    {
                        "contender": one.name,
                        "threads": threads,
                        "test": "decode",
                        "depth": depth,
                        "tokens/s": spread(rates[one.name]),
                        "resident MB": round(used["resident"] / 1e6, 1),
                        "anonymous MB": round(used["anonymous"] / 1e6, 1),
                        "prompt tokens/s from the depth before": (
                            round((depth - before) / filled[one.name]) if timed else None
                        ),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
            write()
            before = depth
        for prompt in args.prompts:
            rates = {one.name: [] for one in running}
            for number in range(args.prompt_rounds + 1):
                for one in running:
                    seconds = one.ask("prompt", prompt)["seconds"]
                    if number:
                        rates[one.name].append(prompt / seconds)
            for one in running:
                rows.append(
                    {
                        "contender": one.name,
                        "threads": threads,
                        "test": "prompt",
                        "depth": prompt,
                        "tokens/s": spread(rates[one.name]),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
            write()
        for one in running:
            one.end()


def processor() -> str:
    """Its name, as the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("what", choices=["measure", "page"])
    parser.add_argument("--bundles", type=Path, default=Path("runs/backends/edge-135m"))
    parser.add_argument("--gguf", type=Path, default=Path("runs/peers"))
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--ours", nargs="*", default=OURS, choices=OURS)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--prompts", nargs="*", type=int, default=PROMPTS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--fill-threads", type=int, help="llama.cpp's between depths, whose rate is not kept then"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--prompt-rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.what == "measure":
        measure(args)
    else:
        from benchmarks.peers.page import write_page

        print(write_page(args.out, ROOT / "docs"))


if __name__ == "__main__":
    main()
