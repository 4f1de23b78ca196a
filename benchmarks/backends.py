"""Decode and prefill speed of both backends on one checkpoint, interleaved in one run.

    python benchmarks/backends.py checkpoints/edge-15m

For every recipe that a backend can express: milliseconds a step (median of rounds, and its
quartiles), prompt tokens a second, load time, bytes of the step's files. ExecuTorch's number of
threads belongs to the process, so each number of threads is a pass of its own over all sessions.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipe import RECIPES
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.manifest import Backend
from retnet_edge.runtime.session import Session, open_session

BACKENDS: dict[str, Backend] = {"onnx": "onnxruntime", "executorch": "executorch"}
COLUMNS = (
    "recipe",
    "backend",
    "threads",
    "ms a step [quartiles]",
    "tokens/s",
    "prompt tokens/s",
    "load s",
    "MB",
)
ROUNDS = 21
STEPS = 100
PROMPT = 512


def step_milliseconds(session: Session) -> float:
    """Of one step, averaged over a round."""
    began = time.perf_counter()
    for token in range(STEPS):
        session.step(token)
    return (time.perf_counter() - began) / STEPS * 1e3


def prompt_speed(session: Session) -> float:
    """Tokens a second of a prompt of 512."""
    tokens = np.random.default_rng(0).integers(0, 256, PROMPT).tolist()
    session.prefill(tokens)  # loads the graph
    began = time.perf_counter()
    session.prefill(tokens)
    return PROMPT / (time.perf_counter() - began)


def bundles(checkpoint: Path, folder: Path) -> dict[tuple[str, Backend], Path]:
    """Every recipe of every backend: (recipe, backend) -> bundle."""
    found = {}
    for name, backend in BACKENDS.items():
        exported = export(checkpoint, folder / f"fp32-{name}", to=(name,), say=lambda _: None)
        found["fp32", backend] = exported
        for recipe in RECIPES[backend]:
            out = folder / f"{recipe.name}-{name}"
            quantize(exported, out, recipe=recipe, checkpoint=checkpoint, say=lambda _: None)
            found[recipe.name, backend] = out
    return dict(sorted(found.items()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = bundles(args.checkpoint, Path(folder))
        print(f"| {' | '.join(COLUMNS)} |")
        print("|---" * len(COLUMNS) + "|")
        for threads in args.threads:
            sessions, loaded = {}, {}
            for key, path in made.items():
                began = time.perf_counter()
                sessions[key] = open_session(Bundle.open(path), threads)
                loaded[key] = time.perf_counter() - began
            times: dict[tuple[str, Backend], list[float]] = {key: [] for key in sessions}
            for _ in range(ROUNDS):
                for key, session in sessions.items():
                    times[key].append(step_milliseconds(session))
            for (recipe, backend), taken in times.items():
                key = (recipe, backend)
                low, middle, high = statistics.quantiles(taken, n=4)
                manifest = Bundle.open(made[key]).manifest
                graph = manifest.graph("step")
                size = sum(manifest.files[f].size for f in (graph.file, *graph.external_data))
                print(
                    f"| {recipe} | {backend} | {threads} | {middle:.2f} [{low:.2f}, {high:.2f}] | "
                    f"{1e3 / middle:.0f} | {prompt_speed(sessions[key]):.0f} | {loaded[key]:.2f} | "
                    f"{size / 1e6:.1f} |",
                    flush=True,
                )
            del sessions
            gc.collect()


if __name__ == "__main__":
    main()
