"""Records of comparison runs that nobody trained, for what is computed from records."""

from __future__ import annotations

import math

import msgspec

from benchmarks.comparisons.records import About, Curve, Failed, Record, Result
from benchmarks.comparisons.runs import Run, config_of, parameters_of
from retnet_edge.config import RetNetConfig, encode_config


def record(run: Run, loss: float, *, seconds: float = 60.0, reason: str = "") -> Record:
    """A run whose held-out loss is `loss` nats a token, at four bytes a token."""
    config = config_of(run, 8192)
    about = About(
        run=run.name,
        variant=run.variant,
        size=run.size,
        context=run.context,
        seed=run.seed,
        parameters=parameters_of(run, 8192),
        state_bytes=config.state_bytes() if isinstance(config, RetNetConfig) else 0,
        options={
            "steps": 100,
            "batch": 2048 // run.context,
            "seq_len": run.context,
            "lr": 0.002,
            "warmup": 5,
            "clip": 1.0,
            "dropout": 0.1,
            "precision": "bfloat16",
        },
        config=msgspec.json.decode(encode_config(config)),
        train_tokens=50_000,
        device="a GPU",
        torch="2.11.0",
        parallel=3,
    )
    bits = loss / math.log(2.0) / 4.0
    curve = [
        Curve(run.name, step, step * 2048, loss + 2.0, loss + 1.0 / step, 1.1 * bits, 1e6)
        for step in (50, 100)
    ]
    if reason:
        return Record(about, curve[:1], Failed(run.name, seconds, reason))
    end = Result(run.name, 204_800, seconds, 1e6, loss, math.exp(loss), bits)
    return Record(about, curve, end)


def records(losses: dict[Run, float]) -> dict[str, Record]:
    """Records by name."""
    return {run.name: record(run, loss) for run, loss in losses.items()}
