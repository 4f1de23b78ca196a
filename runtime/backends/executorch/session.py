"""A session on ExecuTorch: programs mapped from their files, states allocated once.

ExecuTorch's Python runtime hands tensors over as torch tensors, so this room is the one of the
runtime that imports torch; the backend's own wheel requires it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.executorch.program import load_program, set_threads
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.one_sequence import OneSequence, check_seen, one_caller
from retnet_edge.runtime.session.protocol import State, check_states, check_tokens, state_shape

_Described = tuple[str | int, ...]  # dtype, dimensions
_DTYPES = {4: "int64", 6: "float32"}  # ExecuTorch's ScalarType


class ExecuTorchSession(OneSequence):
    """One sequence on ExecuTorch; see `Session` for what the methods promise.

    A prompt goes through prefill.pte in pieces of just the T that it was made for; the rest goes
    through the step, token by token.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """`threads`: of all ExecuTorch programs in this process, see `open_session`.

        Raises InputError where the program cannot be loaded or is not what the manifest says.
        """
        super().__init__()
        set_threads(threads)
        self._bundle = bundle
        self._specs = bundle.manifest.states
        self._states = [torch.zeros(state_shape(spec, 0)) for spec in self._specs]
        self._token = torch.zeros(1, 1, dtype=torch.int64)
        self._position = torch.zeros(1, dtype=torch.int64)
        self._logits = torch.zeros(1, bundle.manifest.model.vocab_size)
        self._view: NDArray[np.float32] = self._logits.numpy()[0]
        self._view.flags.writeable = False
        self._step = self._load("step")
        self._prefill: Any = None
        spec = bundle.manifest.graph_for("executorch", "prefill")
        self._span = 0 if spec is None else int(spec.inputs[0].shape[1])

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return int(self._position)

    @property
    def state_bytes(self) -> int:
        """Bytes of one copy of the states."""
        return sum(state.nbytes for state in self._states)

    @one_caller
    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        for state in self._states:
            state.zero_()
        self._position.zero_()
        self._seen = set()

    @one_caller
    def step(self, token: int) -> NDArray[np.float32]:
        """Feed one token; a read-only view [vocab] that the next call overwrites."""
        if not 0 <= token < len(self._view):
            check_tokens([token], len(self._view))
        self._token[0, 0] = token
        self._run(self._step, self._token)
        self._seen.add(token)
        return self._view

    @one_caller
    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed tokens: whole spans of the prefill program, then steps."""
        ids = check_tokens(tokens, len(self._view))
        whole = ids.size // self._span * self._span if self._span else 0
        if whole and self._prefill is None:
            self._prefill = self._load("prefill")
        for start in range(0, whole, self._span or 1):
            span = ids[:, start : start + self._span]
            self._run(self._prefill, torch.from_numpy(span.copy()))
            self._seen.update(span[0].tolist())
        for token in ids[0, whole:]:
            self.step(int(token))
        return self._view

    @one_caller
    def states(self) -> list[State]:
        """Copies of the states, each [1, heads, key_dim, value_dim]."""
        return [state.numpy().copy() for state in self._states]

    @one_caller
    def load_states(
        self, states: Sequence[State], position: int, seen: Collection[int] = ()
    ) -> None:
        """Copy `states` in and continue at `position`; see `Session`."""
        checked = check_states(states, position, self._specs)
        known = check_seen(seen, len(self._view))
        for buffer, state in zip(self._states, checked, strict=True):
            buffer.copy_(torch.from_numpy(state))
        self._position[0] = position
        self._seen = known

    def _run(self, method: Any, tokens: torch.Tensor) -> None:
        """One call. Outputs are views of the program's own memory, copied out before the next."""
        try:
            logits, *states = method((tokens, self._position, *self._states), clone_outputs=False)
        except RuntimeError as error:
            raise InputError(f"{self._bundle.path}: ExecuTorch could not run: {error}") from error
        self._logits.copy_(logits)
        for buffer, state in zip(self._states, states, strict=True):
            buffer.copy_(state)
        self._position += tokens.shape[1]

    def _load(self, kind: Literal["step", "prefill"]) -> Any:
        spec = self._bundle.manifest.graph_for("executorch", kind)
        if spec is None:
            has = ", ".join(f"{g.kind} for {g.backend}" for g in self._bundle.manifest.graphs)
            raise InputError(f"{self._bundle.path} has no {kind} graph for executorch ({has})")
        path = self._bundle.file(spec.file)
        _, method = load_program(path, made_with(self._bundle))
        meta = method.method_meta()
        for side, specs, count, read in (
            ("input", spec.inputs, meta.num_inputs(), meta.input_tensor_meta),
            ("output", spec.outputs, meta.num_outputs(), meta.output_tensor_meta),
        ):
            found = [_described(read(index)) for index in range(count)]
            wanted: list[_Described] = [(t.dtype, *(int(dim) for dim in t.shape)) for t in specs]
            for index, (is_, says) in enumerate(itertools.zip_longest(found, wanted)):
                if is_ != says:
                    name = specs[index].name if index < len(specs) else f"{side} {index}"
                    raise InputError(
                        f"{path}: the program's {name} is {_show(is_)}; the manifest says "
                        f"{_show(says)}"
                    )
        return method


def made_with(bundle: Bundle) -> str:
    """The version of ExecuTorch that made the bundle's programs."""
    return bundle.manifest.provenance.versions.get("executorch", "(unknown)")


def _described(info: Any) -> _Described:
    """(dtype, dimensions …) of a program's input or output."""
    return _DTYPES.get(info.dtype(), f"dtype {info.dtype()}"), *info.sizes()


def _show(tensor: _Described | None) -> str:
    return "missing" if tensor is None else f"{tensor[0]} {list(tensor[1:])}"
