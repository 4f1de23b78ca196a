"""What a head shape costs on the device: three shapes of one model, int8, in turns in one process.

    python -m benchmarks.speed.head_shapes --folder /tmp/shapes

d_model 768, 15 layers, vocabulary 32,000, 130.8M parameters each; heads × key dim × value dim is
3 × 256 × 512, 6 × 128 × 256 and 12 × 64 × 128. Weights are fresh: what a step costs does not depend
on them. Bundles stay in `--folder`, and are used again when they are there. What the shapes are
worth in quality stands in docs/results.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retnet_edge.config import retnet_config
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import build_model, write_checkpoint
from retnet_edge.presets import preset
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bench.records import Quartiles, quartiles
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.machine import OtherLoad
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.snapshot import Snapshot
from retnet_edge.tokenizer import load_tokenizer

HEADS = (3, 6, 12)
VOCABULARY = 32_000
TOKENIZER = Path("checkpoints/edge-15m/tokenizer.json")


def make(folder: Path, heads: int, recipe: str) -> Bundle:
    """The int8 bundle of one shape."""
    out = folder / f"heads-{heads}-{recipe}.edge"
    if not out.exists():
        base = preset("edge-135m", VOCABULARY)
        config = retnet_config(
            vocab_size=VOCABULARY,
            d_model=base.d_model,
            layers=base.layers,
            heads=heads,
            ffn_dim=base.ffn_dim,
        )
        torch.manual_seed(0)
        bpe = load_tokenizer(TOKENIZER)
        bpe.add_tokens([f"<extra {i}>" for i in range(VOCABULARY - bpe.get_vocab_size())])
        checkpoint, exported = folder / f"heads-{heads}", folder / f"heads-{heads}.edge"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, build_model(config), bpe)
        export(checkpoint, exported, say=lambda _: None)
        quantize(exported, out, recipe=recipe, say=lambda _: None)
    return Bundle.open(out)


def milliseconds(session: Session, start: Snapshot, tokens: list[int], *, prompt: bool) -> float:
    """Of a step, or of the whole prompt."""
    start.restore(session)
    began = time.perf_counter()
    if prompt:
        session.prefill(tokens)
        return 1e3 * (time.perf_counter() - began)
    for token in tokens:
        session.step(token)
    return 1e3 * (time.perf_counter() - began) / len(tokens)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4096)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCABULARY, size=args.steps).tolist()
    prompt = rng.integers(VOCABULARY, size=args.prompt).tolist()
    sessions, starts = {}, {}
    for heads in HEADS:
        session = open_session(make(args.folder, heads, args.recipe), threads=args.threads)
        empty = Snapshot.of(session)
        session.prefill(rng.integers(VOCABULARY, size=args.depth).tolist())
        sessions[heads], starts[heads] = session, (empty, Snapshot.of(session))
    times: dict[tuple[int, str], list[float]] = {}
    watch = OtherLoad()
    for turn in range(args.rounds + 1):
        for heads, session in sessions.items():
            empty, deep = starts[heads]
            for name, value in (
                ("step", milliseconds(session, empty, tokens, prompt=False)),
                ("deep", milliseconds(session, deep, tokens, prompt=False)),
                ("prompt", milliseconds(session, empty, prompt, prompt=True)),
            ):
                if turn:
                    times.setdefault((heads, name), []).append(value)
    table = Table(
        "heads × key × value",
        "state, MB",
        "ms a step, depth 0",
        f"depth {args.depth:,}",
        f"prompt of {args.prompt}, tokens/s",
    )
    for heads, session in sessions.items():
        found = {name: quartiles(times[heads, name]) for name in ("step", "deep", "prompt")}
        table.add_row(
            f"{heads} × {768 // heads} × {1536 // heads}",
            f"{session.state_bytes / 1e6:.1f}",
            _text(found["step"]),
            _text(found["deep"]),
            f"{1e3 * args.prompt / found['prompt'].median:.0f}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"other processes kept {watch.cores() or 0:.1f} cores busy meanwhile")


def _text(value: Quartiles) -> str:
    return f"{value.median:.2f} ({value.low:.2f} – {value.high:.2f})"


if __name__ == "__main__":
    main()
