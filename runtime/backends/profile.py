"""Where a step spends its time: by operator, as the backend's own profiler tells it."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.session import choose_backend

WARMUP = 10  # steps that are not counted
_MODULES = {
    "onnxruntime": "retnet_edge.runtime.ort_profile",
    "executorch": "retnet_edge.runtime.et_profile",
    "native": "retnet_edge.runtime.native_profile",
}


class OperatorTime(msgspec.Struct, frozen=True):
    """All calls of one operator in a run of some steps."""

    name: str
    calls: int
    microseconds: float


class ProfileSteps(Protocol):
    """What a backend's module (such as `ort_profile`) offers under the name profile_steps."""

    def __call__(self, bundle: Bundle, *, steps: int, threads: int | None) -> list[OperatorTime]:
        """Time by operator of `steps` steps, after WARMUP that are not counted."""
        ...


def profile(
    bundle: Bundle, *, steps: int = 100, threads: int | None = None, backend: str | None = None
) -> list[OperatorTime]:
    """Time by operator of `steps` decode steps on `backend` (None: the bundle's first).

    One entry's name is in brackets: what the backend itself needs between operators. Raises
    InputError for a bundle that does not run, and steps or threads below 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 is needed")
    chosen = choose_backend(bundle, backend)
    module = import_module(_MODULES[chosen])
    run = cast(ProfileSteps, module.profile_steps)
    return run(bundle, steps=steps, threads=threads)
