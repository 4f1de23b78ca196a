"""Does a manifest describe graphs of the step contract? Checked before a backend loads them.

inputs   tokens int64 [batch, T] (T = 1 in the step graph), position int64 [batch], the states
outputs  logits float32 [batch, vocabulary] of the last token, then the next states

And are states and vocabulary those of the model's configuration, as far as it names them?
"""

from __future__ import annotations

from pathlib import Path

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import Backend, GraphSpec, Manifest, StateSpec, TensorSpec
from retnet_edge.runtime.bundle.state_values import value_specs

_STATE_BYTES = 4 << 30  # of one sequence; a growing state counts with one token
_NUMBERS = ("vocab_size", "layers", "heads", "key_head_dim", "value_head_dim")
_Shape = tuple[int | str, ...]


def check_contract(manifest: Manifest, where: Path) -> None:
    """Raises InputError, naming `where`, the tensor and what the contract says, on a difference.

    Axes named "batch" and "past" mean what StateSpec says; every other named axis of a graph is
    compared as "some name".
    """
    _check_states(manifest.states, where)
    _check_config(manifest, where)
    if not manifest.graphs:
        raise InputError(f"{where}: graphs is empty: a bundle has at least one step graph")
    for graph in manifest.graphs:
        tokens: _Shape = ("batch", 1 if graph.kind == "step" else "T")
        _compare(
            graph,
            "inputs",
            [("tokens", "int64", tokens), ("position", "int64", ("batch",))]
            + [(s.input, s.dtype, s.shape) for s in manifest.states],
            where,
        )
        _compare(
            graph,
            "outputs",
            [("logits", "float32", ("batch", manifest.model.vocab_size))]
            + [(s.output, s.dtype, s.shape) for s in manifest.states],
            where,
        )


def _check_states(states: tuple[StateSpec, ...], where: Path) -> None:
    names = [s.input for s in states] + [s.output for s in states]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{where}: states name {twice[0]!r} twice; a tensor belongs to one state")
    total = 0
    for state in states:
        named = [dim for dim in state.shape[1:] if isinstance(dim, str)]
        if not state.shape or state.shape[0] != "batch" or named not in ([], ["past"]):
            raise InputError(
                f"{where}: the state {state.input!r} has shape {_show(state.shape)}; allowed is "
                "[batch, numbers …] with at most one axis named past"
            )
        total += state.bytes_at(1)
    for index, state in enumerate(states):
        if state.dtype == "int8":
            _check_scales(state, states[index + 1 : index + 3], where)
    if total > _STATE_BYTES:
        raise InputError(
            f"{where}: the states take {total} bytes a sequence; at most {_STATE_BYTES} are allowed"
        )


def _check_scales(state: StateSpec, after: tuple[StateSpec, ...], where: Path) -> None:
    """An int8 state [batch, heads, keys, values] is followed by a scale a key and one a value."""
    wanted = [(*state.shape[:-1], 1), (*state.shape[:-2], 1, *state.shape[-1:])]
    if [(scale.dtype, scale.shape) for scale in after] != [("float32", one) for one in wanted]:
        raise InputError(
            f"{where}: the state {state.input!r} is int8 {_show(state.shape)}; float32 scales "
            f"{_show(wanted[0])} and {_show(wanted[1])} have to follow it"
        )


def _check_config(manifest: Manifest, where: Path) -> None:
    """Vocabulary, and the number and shapes of the states' values, against `model.config`."""
    model, values = manifest.model, value_specs(manifest.states)
    says: dict[str, int] = {}
    for name in _NUMBERS:
        value = model.config.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{where}: {name} of the model's configuration is no whole number")
        if name in model.config:
            says[name] = value
    if (vocabulary := says.get("vocab_size", model.vocab_size)) != model.vocab_size:
        raise InputError(
            f"{where}: vocab_size is {model.vocab_size}, and {vocabulary} in the model's "
            "configuration"
        )
    grows = model.kind == "transformer"
    if "layers" in says and says["layers"] * (2 if grows else 1) != len(values):
        raise InputError(
            f"{where}: {len(values)} states; the model's configuration has {says['layers']} "
            f"layers, {'two states' if grows else 'one state'} each"
        )
    heads, keys, values_dim = (says.get(name) for name in _NUMBERS[2:])
    shape = ("batch", heads, "past", keys) if grows else ("batch", heads, keys, values_dim)
    for state in values:
        if not _agrees(state.shape, shape):
            known = tuple("any" if dim is None else dim for dim in shape)
            raise InputError(
                f"{where}: the state {state.input!r} has shape {_show(state.shape)}; the model's "
                f"configuration says {_show(known)}"
            )


def _agrees(shape: _Shape, says: tuple[object, ...]) -> bool:
    """What a configuration leaves open (None) may be anything."""
    return len(shape) == len(says) and all(
        dim == wanted for dim, wanted in zip(shape, says, strict=True) if wanted is not None
    )


def _compare(
    graph: GraphSpec,
    side: str,
    expected: list[tuple[str, str, _Shape]],
    where: Path,
) -> None:
    """The graph's inputs or outputs, in their order, are those of the contract."""
    specs: tuple[TensorSpec, ...] = getattr(graph, side)
    found = [spec.name for spec in specs]
    names = [name for name, *_ in expected]
    if found != names:
        raise InputError(
            f"{where}: {graph.file} has the {side} {', '.join(found) or 'none'}; the step contract "
            f"says {', '.join(names)}"
        )
    for spec, (name, dtype, shape) in zip(specs, expected, strict=True):
        shape = _known(shape, graph.backend)
        if spec.dtype != dtype or not _fits(spec.shape, shape):
            raise InputError(
                f"{where}: {graph.file} has {name} as {spec.dtype} {_show(spec.shape)}; the step "
                f"contract says {dtype} {_show(shape)}"
            )


def _known(shape: _Shape, backend: Backend) -> _Shape:
    """A shape of the contract as graphs of a backend have it: elsewhere than in ONNX Runtime batch
    is 1, and in ExecuTorch a prefill's T is a number."""
    known: dict[int | str, int | str] = {} if backend == "onnxruntime" else {"batch": 1}
    if backend == "executorch":
        known["T"] = "T > 1"
    return tuple(known.get(dim, dim) for dim in shape)


def _fits(found: _Shape, expected: _Shape) -> bool:
    """Numbers and "batch" are equal, "T > 1" is a number; other names stand for each other."""

    def kind(dim: int | str) -> int | str:
        return dim if isinstance(dim, int) or dim == "batch" else "named"

    return len(found) == len(expected) and all(
        isinstance(dim, int) and dim > 1 if wanted == "T > 1" else kind(dim) == kind(wanted)
        for dim, wanted in zip(found, expected, strict=True)
    )


def _show(shape: _Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
