"""Where a step of the native backend spends its time: by what it computes."""

from __future__ import annotations

from retnet_edge.runtime.backends.native.library import STAGES
from retnet_edge.runtime.backends.native.session import NativeSession
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.operators import WARMUP, OperatorTime


def profile_steps(bundle: Bundle, *, steps: int, threads: int | None) -> list[OperatorTime]:
    """Time by stage of `steps` steps; see `profile.profile`."""
    session = NativeSession(bundle, threads=threads)
    for _ in range(WARMUP):
        session.step(0)
    before = session.sequence.seconds()
    for _ in range(steps):
        session.step(0)
    layers = bundle.manifest.model.config["layers"]
    found = zip(STAGES, session.sequence.seconds() - before, strict=True)
    return [
        OperatorTime(name, steps * (1 if name == "head" else layers), 1e6 * float(seconds))
        for name, seconds in found
    ]
