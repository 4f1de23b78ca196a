"""What a head shape costs on a CPU: state bytes, and milliseconds of an exported fp32 step.

Few wide heads hold a larger state than many narrow ones of the same total width; a step reads and
writes all of it. The weights are fresh: what a step costs does not depend on them.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.comparisons.head_shape_records import ShapeCost, ShapeCosts, write_costs
from benchmarks.comparisons.runs import Run, config_of
from retnet_edge.config import RetNetConfig
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import build_model, write_checkpoint
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.tokenizer import load_tokenizer

SHAPES = (Run("wide-heads", "shape"), Run("retnet", "shape"))


def measure(results: Path, tokenizer: Path, rounds: int, steps: int, *, smoke: bool) -> None:
    """Export both shapes, time their steps in turns, write and print what was found."""
    bpe = load_tokenizer(tokenizer)
    entries = -(-bpe.get_vocab_size() // 128) * 128
    configs: dict[str, RetNetConfig] = {}
    sessions: dict[str, Session] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in SHAPES:
            config = config_of(run, entries, smoke=smoke)
            assert isinstance(config, RetNetConfig)
            checkpoint = Path(folder) / run.name
            checkpoint.mkdir()
            write_checkpoint(checkpoint, build_model(config), bpe)
            bundle = export(checkpoint, Path(folder) / f"{run.name}.edge", say=lambda text: None)
            configs[run.name] = config
            sessions[run.name] = open_session(Bundle.open(bundle), threads=1)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for session in sessions.values():
            milliseconds(session, steps)
        for _ in range(rounds):
            for name, session in sessions.items():
                times[name].append(milliseconds(session, steps))
    shapes = []
    for name, config in configs.items():
        first, median, third = statistics.quantiles(times[name], n=4, method="inclusive")
        shapes.append(
            ShapeCost(
                run=name,
                heads=config.heads,
                key_head_dim=config.key_head_dim,
                value_head_dim=config.value_head_dim,
                state_bytes=sessions[name].state_bytes,
                milliseconds=median,
                quartiles=(first, third),
            )
        )
        print(
            f"{name}: {config.heads} x {config.key_head_dim} x {config.value_head_dim}, "
            f"{shapes[-1].state_bytes:,} bytes of state, {median:.3f} ms a token "
            f"({first:.3f} to {third:.3f})"
        )
    write_costs(results, ShapeCosts(processor(), 1, rounds, steps, shapes))


def milliseconds(session: Session, steps: int) -> float:
    """Of one step, averaged over a round."""
    began = time.perf_counter()
    for token in range(steps):
        session.step(token)
    return (time.perf_counter() - began) / steps * 1e3


def processor() -> str:
    """The CPU's name, as Linux says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
