"""Tokens a second of `retnet-edge train` on 1, 2, … GPUs, and what a resumed run makes of it.

    python -m benchmarks.training.scaling --gpus 1 2 --out scaling.json
    python -m benchmarks.training.scaling --gpus 1 2 --smoke --device cpu     # gloo, seconds

Every row is the product's own command under torchrun (FSDP2; at one GPU alone, without it), with
training text that is repeated to the length a sequence needs. Rates are the medians of the
intervals after the first, in which blocks are compiled. Efficiency is the rate over N times that of
one GPU. The file is written after every row, so a machine that is lost takes only the row at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.training.speed import retnet
from retnet_edge.config import encode_config
from retnet_edge.training.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "edge-15m"
INTERVAL, INTERVALS = 4, 4
SECONDS = 240
BYTES_A_TOKEN = 10
"""More than two tokens of this text have: training text must hold two sequences."""


class Case(msgspec.Struct, frozen=True):
    """One row: `rows` sequences a group of `context` GPUs."""

    size: str
    seq: int
    rows: int
    gpus: int
    context: int = 1
    recompute: bool = False
    precision: str = ""


def cases(gpus: list[int], *, smoke: bool) -> list[Case]:
    """Weak scaling of two sizes at 8k tokens a sequence, then one long sequence over all GPUs.

    The last one is what resumed runs are compared with: in float32, where they differ the least.
    """
    most = max(gpus)
    if smoke:
        weak = [Case("tiny", 64, 2, n) for n in gpus]
        long = [Case("tiny", 512, 1, n, n, recompute=True) for n in gpus]
        return weak + long + [Case("tiny", 64, 1, most, precision="float32")]
    weak = [Case(size, 8192, rows, n) for size, rows in (("400m", 4), ("1.3b", 2)) for n in gpus]
    long = [Case("400m", seq, 1, n, n, recompute=True) for seq in (65_536, 262_144) for n in gpus]
    return weak + long + [Case("400m", 8192, 1, most, recompute=True, precision="float32")]


def command(case: Case, work: Path, out: Path, device: str, steps: int) -> list[str]:
    """`retnet-edge train` of a case under torchrun."""
    model = work / f"{case.size}.json"
    model.write_bytes(encode_config(retnet(case.size)))
    whole = (CHECKPOINT / "heldout.txt").read_text()
    needed = BYTES_A_TOKEN * (case.seq + 1)
    text, valid = work / f"text-{case.seq}.txt", work / f"valid-{case.seq}.txt"
    repeated = "\n".join([whole] * -(-needed // len(whole)))
    text.write_text(repeated)
    valid.write_text(repeated[:needed])  # short: what is timed is training
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.gpus)]
    options = {
        "--out": out,
        "--data": text,
        "--valid": valid,
        "--tokenizer": CHECKPOINT / "tokenizer.json",
        "--model": model,
        "--steps": steps,
        "--batch": case.rows * case.gpus // case.context,
        "--seq-len": case.seq,
        "--context-parallel": case.context,
        "--eval-every": INTERVAL,
        "--save-every": INTERVAL * INTERVALS // 2,
        "--device": device,
    }
    flags = [str(part) for pair in options.items() for part in pair]
    more = ["--no-tensorboard", *(["--recompute"] if case.recompute else [])]
    if case.precision:
        more += ["--precision", case.precision]
    return [sys.executable, *launch, "-m", "retnet_edge.cli", "train", *flags, *more]


def train(arguments: list[str]) -> str:
    """Run it in bounded time; its last line where it fails, else nothing."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    child = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "4"},
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode == 0:
        return ""
    lines = said.splitlines()
    told = [line for line in lines if line.startswith("retnet-edge:")]
    errors = [line for line in lines if "Error" in line]
    return (told or errors or lines)[0][:300]


def measure(case: Case, work: Path, device: str) -> dict[str, Any]:
    """A row, with the losses of all intervals; `failed` says why there are none."""
    out = work / "-".join(str(part) for part in msgspec.structs.astuple(case))
    row: dict[str, Any] = msgspec.structs.asdict(case)
    began = time.perf_counter()
    failed = train(command(case, work, out, device, INTERVAL * INTERVALS))
    row["wall s"] = round(time.perf_counter() - began)
    if failed:
        return {**row, "failed": failed}
    metrics = read_metrics(out / METRICS_FILE)
    row["tokens/s"] = round(statistics.median(m["tokens_per_second"] for m in metrics[1:]))
    row["losses"] = [round(m["train_loss"], 6) for m in metrics]
    return row


def resumed(case: Case, gpus: int, work: Path, device: str) -> dict[str, Any]:
    """The second half of a finished `case` from its checkpoint, on another number of GPUs."""
    done = work / "-".join(str(part) for part in msgspec.structs.astuple(case))
    out = work / f"resumed-{case.gpus}-on-{gpus}"
    shutil.copytree(done, out)
    shutil.rmtree(out / "checkpoint")
    fewer = msgspec.structs.replace(
        case, gpus=gpus, context=min(case.context, gpus), rows=case.rows * case.gpus // gpus
    )
    failed = train(command(fewer, work, out, device, INTERVAL * INTERVALS))
    row: dict[str, Any] = {"written on": case.gpus, "resumed on": gpus, "size": case.size}
    row["precision"] = case.precision
    if failed:
        return {**row, "failed": failed}
    half = INTERVALS // 2
    before, after = (
        [m["train_loss"] for m in read_metrics(path / METRICS_FILE)][half:] for path in (done, out)
    )
    row["losses"] = [round(x, 6) for x in after]
    row["largest difference"] = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return row


def main() -> None:
    """Run every case and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds from now")
    parser.add_argument("--smoke", action="store_true", help="tiny models")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    deadline = time.monotonic() + args.until
    rows: list[dict[str, Any]] = []
    resumes: list[dict[str, Any]] = []

    def write(row: dict[str, Any], table: list[dict[str, Any]]) -> None:
        table.append(row)
        print(json.dumps(row), flush=True)
        if args.out is not None:
            command = " ".join(["python -m benchmarks.training.scaling", *sys.argv[1:]])
            told = {"command": command, "device": _device(args.device)}
            args.out.write_text(json.dumps({**told, "rows": rows, "resumed": resumes}, indent=1))

    alone: dict[tuple[str, int], float] = {}
    most = max(args.gpus)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for case in cases(args.gpus, smoke=args.smoke):
            if time.monotonic() > deadline:
                print("out of time", flush=True)
                return
            row = measure(case, work, args.device)
            if case.precision:
                if "failed" in row:
                    write(row, resumes)
                    continue
                for gpus in sorted({most, most // 2, 1} - {0}):
                    write(resumed(case, gpus, work, args.device), resumes)
                continue
            if "tokens/s" in row and case.gpus == 1:
                alone[case.size, case.seq] = row["tokens/s"]
            if "tokens/s" in row and (case.size, case.seq) in alone:
                one = alone[case.size, case.seq]
                row["efficiency"] = round(row["tokens/s"] / (case.gpus * one), 3)
            write(row, rows)


def _device(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"CPU, torch {torch.__version__}"


if __name__ == "__main__":
    main()
