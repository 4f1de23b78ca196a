"""Decode and prefill speed of all backends on one checkpoint, interleaved in one run.

    python -m benchmarks.speed.backends checkpoints/edge-15m --calibration text.txt
    python -m benchmarks.speed.backends --preset edge-135m --calibration text.txt

For every recipe that a backend can express: milliseconds a step (median of rounds, and its
quartiles), that over ONNX Runtime's int8, prompt tokens a second, load time, bytes of the step's
files, anonymous memory of the process that it takes. ExecuTorch's number of threads belongs to the
process, so each number of threads is a pass of its own over all sessions. A preset is made with
random weights, which take as long as trained ones.

Bundles are kept in --cache, since lowering them takes minutes; remove it after a change of the
graphs. --profile adds where a step spends its time on ExecuTorch, one table a recipe.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.speed.steps import in_turns
from retnet_edge.data.sources import find_sources, read_texts
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import build_model, load_checkpoint, write_checkpoint
from retnet_edge.presets import preset
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.runtime.backends.native.library import native_available
from retnet_edge.runtime.backends.profile import profile
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.tokenizer import train_tokenizer

BACKENDS: dict[str, Backend] = {"onnx": "onnxruntime", "executorch": "executorch"}
COLUMNS = (
    "recipe",
    "backend",
    "threads",
    "ms a step [quartiles]",
    "tokens/s",
    "of ORT int8",
    "prompt tokens/s",
    "load s",
    "MB",
    "anonymous MB",
)
ROUNDS = 21
ROUND_SECONDS = 0.2  # of each session
PROMPT = 512
VOCABULARY = 32_000
SHOWN = 10  # operators of a profile
PROFILE_STEPS = 100

NATIVE = ("int8", "int8-weight", "int4", "int4-weight")
"""Recipes whose ONNX bundles get a native plan too."""

Key = tuple[str, Backend]


def prompt_speed(session: Session) -> float:
    """Tokens a second of a prompt of 512."""
    tokens = np.random.default_rng(0).integers(0, 256, PROMPT).tolist()
    session.prefill(tokens)  # loads the graph
    began = time.perf_counter()
    session.prefill(tokens)
    return PROMPT / (time.perf_counter() - began)


def random_checkpoint(name: str, text: Path, folder: Path) -> Path:
    """A checkpoint of a preset with random weights and a tokenizer trained on `text`.

    A text too short for the whole vocabulary leaves entries that no text becomes.
    """
    out = folder / "checkpoint"
    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    documents = read_texts(find_sources([text]), "text")
    tokenizer: Tokenizer = train_tokenizer(documents, VOCABULARY)
    missing = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<|unused-{index}|>" for index in range(missing)])
    torch.manual_seed(0)
    write_checkpoint(out, build_model(preset(name, VOCABULARY)), tokenizer)
    return out


def bundles(
    checkpoint: Path, calibration: Path | None, folder: Path, wanted: list[str], backends: list[str]
) -> dict[Key, Path]:
    """Every recipe wanted of every backend: (recipe, backend) -> bundle; what is there is kept."""
    found: dict[Key, Path] = {}
    for name, backend in BACKENDS.items():
        if name not in backends:
            continue
        exported = folder / f"fp32-{name}"
        if not exported.is_dir():
            export(checkpoint, exported, to=(name,), say=print_flushed)
        found["fp32", backend] = exported
        for recipe in RECIPES[backend]:
            if recipe.name not in ("int8", *wanted):  # int8 is what the others are compared with
                continue
            out = folder / f"{recipe.name}-{name}"
            native = backend == "onnxruntime" and recipe.name in NATIVE and native_available()
            if not out.is_dir():
                quantize(
                    exported,
                    out,
                    recipe=recipe,
                    checkpoint=checkpoint,
                    calibration=calibration,
                    native=native,
                    say=print_flushed,
                )
            found[recipe.name, backend] = out
            if native:
                found[recipe.name, "native"] = out
    return dict(sorted(found.items()))


def print_flushed(text: str) -> None:
    """Progress, as it comes."""
    print(text, flush=True)


def anonymous_bytes() -> int:
    """Of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    return 0


def one_pass(made: dict[Key, Path], threads: int) -> None:
    """The rows of one number of threads."""
    sessions, loaded, grown = {}, {}, {}
    for key, path in made.items():
        bundle = Bundle.open(path)
        before = anonymous_bytes()
        began = time.perf_counter()
        sessions[key] = open_session(bundle, threads, key[1])
        loaded[key] = time.perf_counter() - began
        sessions[key].step(0)
        grown[key] = anonymous_bytes() - before
    times = in_turns(sessions, ROUNDS, ROUND_SECONDS)
    base = statistics.median(times["int8", "onnxruntime"])
    for (recipe, backend), taken in times.items():
        key = (recipe, backend)
        low, middle, high = statistics.quantiles(taken, n=4)
        manifest = Bundle.open(made[key]).manifest
        size = sum(manifest.files[file].size for file in manifest.files_of(backend))
        print_flushed(
            f"| {recipe} | {backend} | {threads} | {middle:.2f} [{low:.2f}, {high:.2f}] | "
            f"{1e3 / middle:.0f} | {base / middle:.2f} | {prompt_speed(sessions[key]):.0f} | "
            f"{loaded[key]:.2f} | {size / 1e6:.1f} | {grown[key] / 1e6:.1f} |"
        )
    sessions.clear()
    gc.collect()


def print_profiles(made: dict[Key, Path], threads: int) -> None:
    """Where an ExecuTorch step spends its time, by recipe."""
    for (recipe, backend), path in made.items():
        if backend != "executorch":
            continue
        operators = profile(
            Bundle.open(path), steps=PROFILE_STEPS, threads=threads, backend=backend
        )
        total = sum(operator.microseconds for operator in operators)
        print(f"\n{recipe}, {threads} thread(s): {total / PROFILE_STEPS:.0f} µs a step\n")
        print("| operator | calls a step | µs a step | share |\n|---|---|---|---|")
        for operator in sorted(operators, key=lambda o: -o.microseconds)[:SHOWN]:
            print_flushed(
                f"| {operator.name} | {operator.calls / PROFILE_STEPS:.0f} | "
                f"{operator.microseconds / PROFILE_STEPS:.1f} | "
                f"{100 * operator.microseconds / total:.1f} % |"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--preset", help="random weights in place of a checkpoint: edge-135m …")
    parser.add_argument("--calibration", type=Path, required=True, help="text")
    known = sorted({recipe.name for recipes in RECIPES.values() for recipe in recipes})
    parser.add_argument("--recipes", nargs="+", choices=known, default=known)
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cache", type=Path, default=Path("runs/backends"))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--build-only", action="store_true", help="make the bundles, measure none")
    args = parser.parse_args()
    if (args.checkpoint is None) == (args.preset is None):
        parser.error("give either a checkpoint or --preset")
    if args.preset is None:
        checkpoint = args.checkpoint
        folder = args.cache / load_checkpoint(checkpoint).weights_sha256()[:12]
    else:
        folder = args.cache / args.preset
        checkpoint = random_checkpoint(args.preset, args.calibration, folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = bundles(checkpoint, args.calibration, folder, args.recipes, args.backends)
    if args.build_only:
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for threads in args.threads:
        one_pass(made, threads)
    if args.profile:
        print_profiles(made, args.threads[0])


if __name__ == "__main__":
    main()
