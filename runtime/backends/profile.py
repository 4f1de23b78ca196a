"""Where a step spends its time: by operator, as the backend's own profiler tells it."""

from __future__ import annotations

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import choose_backend
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.operators import OperatorTime


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
    if chosen == "executorch":
        from retnet_edge.runtime.backends.executorch.profile import profile_steps
    elif chosen == "native":
        from retnet_edge.runtime.backends.native.profile import profile_steps
    else:
        from retnet_edge.runtime.backends.ort.profile import profile_steps
    return profile_steps(bundle, steps=steps, threads=threads)
