"""Time by operator on ONNX Runtime, from the JSON trace of its profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from retnet_edge.atomic import temporary_folder
from retnet_edge.errors import DISK_FULL, InputError
from retnet_edge.runtime.backends.ort.graph import load_graph, main_graph
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.operators import WARMUP, OperatorTime
from retnet_edge.runtime.session.protocol import state_shape

OVERHEAD = "(between operators)"


def profile_steps(bundle: Bundle, *, steps: int, threads: int | None) -> list[OperatorTime]:
    """Time by operator type of `steps` steps, each state fed back; see `profile.profile`."""
    rng = np.random.default_rng(0)
    with temporary_folder() as folder:
        graph = load_graph(bundle, main_graph(bundle)[0], threads, profile=folder / "step")
        states = [np.zeros(state_shape(s, 0), dtype=s.dtype) for s in bundle.manifest.states]
        for position in range(WARMUP + steps):
            feeds: dict[str, Any] = {
                "tokens": rng.integers(bundle.manifest.model.vocab_size, size=(1, 1)),
                "position": np.array([position], dtype=np.int64),
            }
            feeds |= {s.input: x for s, x in zip(bundle.manifest.states, states, strict=True)}
            names = [s.output for s in bundle.manifest.states]
            states = graph.run(["logits", *names], feeds)[1:]
        path = Path(graph.end_profiling())
        try:
            trace = json.loads(path.read_text())
        except json.JSONDecodeError as error:  # ONNX Runtime does not say that it could not write
            raise InputError(f"{path}: {DISK_FULL}: the profile is cut off") from error
    return by_operator(trace, skip=WARMUP)


def by_operator(trace: Iterable[dict[str, Any]], skip: int = 0) -> list[OperatorTime]:
    """Sums over a trace's runs after the first `skip`, and what the runs took beyond them."""
    calls: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    runs = sorted(
        (event for event in trace if event.get("name") == "model_run"), key=lambda e: e["ts"]
    )
    counted = runs[skip:]
    start = counted[0]["ts"] if counted else 0
    for event in trace:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if event["ts"] >= start:
            name = event["args"]["op_name"]
            calls[name] += 1
            spent[name] += event["dur"]
    between = sum(run["dur"] for run in counted) - sum(spent.values())
    found = [OperatorTime(name, calls[name], spent[name]) for name in calls]
    return [*found, OperatorTime(OVERHEAD, len(counted), max(0.0, between))]
