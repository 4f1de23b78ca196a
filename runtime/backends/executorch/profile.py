"""Time by operator on ExecuTorch, from the event trace (ETDump) that its runtime writes.

A delegated operator bears the name of XNNPACK's kernel, such as "Fully Connected (NC, QDU8, F32,
QC8W) GEMM". XNNPACK counts whole microseconds and drops the rest, so an operator that takes less
than one counts as nothing, and its time is in the last entry, with the calls' own costs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retnet_edge.atomic import temporary_folder
from retnet_edge.errors import InputError
from retnet_edge.quiet import hushed
from retnet_edge.runtime.backends.executorch.program import load_program, save_trace, set_threads
from retnet_edge.runtime.backends.executorch.session import made_with
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.operators import WARMUP, OperatorTime
from retnet_edge.runtime.session.protocol import state_shape

OVERHEAD = "(between operators)"
RUN = "Method::execute"
_WRAPPERS = ("OPERATOR_CALL", "DELEGATE_CALL")  # around an operator's own event
_NATIVE = "native_call_"


def profile_steps(bundle: Bundle, *, steps: int, threads: int | None) -> list[OperatorTime]:
    """Time by operator of `steps` steps, each state fed back; see `profile.profile`."""
    set_threads(threads)
    spec = bundle.manifest.graph_for("executorch", "step")
    if spec is None:
        raise InputError(f"{bundle.path} has no step graph for executorch")
    program, method = load_program(bundle.file(spec.file), made_with(bundle), trace=True)
    rng = np.random.default_rng(0)
    states = [torch.zeros(state_shape(s, 0)) for s in bundle.manifest.states]
    for position in range(WARMUP + steps):
        token = torch.tensor([[int(rng.integers(bundle.manifest.model.vocab_size))]])
        _, *states = method((token, torch.tensor([position]), *states), clone_outputs=True)
    with temporary_folder() as folder:
        path = folder / "step.etdp"
        save_trace(program, path)
        return by_operator(_events(path), skip=WARMUP)


def by_operator(events: Iterable[tuple[str, list[float]]], skip: int = 0) -> list[OperatorTime]:
    """Sums over a trace's runs after the first `skip`, and what the runs took beyond them.

    events: (name, milliseconds of each run), the whole run's under RUN.
    """
    calls: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    total, runs = 0.0, 0
    for name, milliseconds in events:
        counted = milliseconds[skip:]
        if name == RUN:
            total, runs = 1e3 * sum(counted), len(counted)
        elif name not in _WRAPPERS and counted:
            operator = re.sub(r" #\d+$", "", name.removeprefix(_NATIVE))
            calls[operator] += len(counted)
            spent[operator] += 1e3 * sum(counted)
    found = [OperatorTime(name, calls[name], spent[name]) for name in calls]
    return [*found, OperatorTime(OVERHEAD, runs, max(0.0, total - sum(spent.values())))]


def _events(path: Path) -> list[tuple[str, list[float]]]:
    """The events of the runs in a trace file, through ExecuTorch's own reader."""
    from executorch.devtools import Inspector

    with hushed():  # there is no debug buffer: it would slow what is timed
        inspector: Any = Inspector(etdump_path=str(path))
    return [
        (event.name, list(event.perf_data.raw))
        for block in inspector.event_blocks
        if block.name == "Execute"
        for event in block.events
        if event.perf_data is not None
    ]
