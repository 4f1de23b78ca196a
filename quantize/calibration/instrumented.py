"""Running a bundle's graph with values exposed that it keeps to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from retnet_edge.quantize.graphs.edit import matmul_inputs
from retnet_edge.runtime.backends.ort.options import has_int16_activations, plain_options
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import state_shape
from retnet_edge.runtime.session.threads import check_threads

Array = NDArray[Any]


class InstrumentedGraph:
    """A step graph in ONNX Runtime that also returns some inner values, token after token."""

    def __init__(
        self, bundle: Bundle, model: ir.Model, values: Iterable[ir.Value], threads: int = 0
    ) -> None:
        """`model` is the bundle's step graph, loaded; `values` of it become outputs.

        threads: 0 is one a core. Raises InputError for a number that is no other than that and
        not 1 to `MOST_THREADS`.
        """
        if threads:
            check_threads(threads)
        known = {id(value) for value in model.graph.outputs}
        model.graph.outputs.extend(v for v in dict.fromkeys(values) if id(v) not in known)
        self._states = bundle.manifest.states
        self._session = _session(
            model, keep_qdq=has_int16_activations(bundle.manifest), threads=threads
        )
        self._names = [value.name for value in self._session.get_outputs()]

    def zero_states(self, sequences: int = 1) -> dict[str, Array]:
        """The empty states of some sequences, by input name; a cache is 0 tokens long."""
        return {
            spec.input: np.zeros((sequences, *state_shape(spec, 0)[1:]), dtype=spec.dtype)
            for spec in self._states
        }

    def run(
        self, tokens: int | Array, position: int, states: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """One call, of a token or of tokens [B, T] of sequences at the same position.

        Returns everything that the graph returns, by name, and the next states.
        """
        feeds = step_feeds(tokens, position, states)
        found = dict(zip(self._names, self._session.run(None, feeds), strict=True))
        return found, {spec.input: found[spec.output] for spec in self._states}


def tap_inputs(
    bundle: Bundle, kind: Literal["step", "prefill"], wanted: Callable[[str], bool]
) -> tuple[InstrumentedGraph, dict[str, str]] | None:
    """The bundle's graph of that kind, returning what each weight wanted is multiplied with, and
    under which name, by the weight's. None where no weight is wanted.
    """
    file = bundle.manifest.graph(kind).file
    model = ir.load(bundle.file(file))
    taps = matmul_inputs(model, file, wanted)
    if not taps:
        return None
    graph = InstrumentedGraph(bundle, model, taps.values())
    return graph, {weight: str(value.name) for weight, value in taps.items()}


def step_feeds(tokens: int | Array, position: int, states: dict[str, Array]) -> dict[str, Array]:
    """The inputs of a graph: one token of one sequence, or tokens [B, T]."""
    ids = np.atleast_2d(np.asarray(tokens, dtype=np.int64))
    return {"tokens": ids, "position": np.full(len(ids), position, dtype=np.int64), **states}


def _session(model: ir.Model, *, keep_qdq: bool, threads: int) -> onnxruntime.InferenceSession:
    """A session whose weights are handed over in memory: a graph may not hold 2 GiB of them."""
    options = plain_options(keep_qdq=keep_qdq, threads=threads)
    weights = {
        name: _ort_value(value.const_value)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    options.add_external_initializers(list(weights), list(weights.values()))
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def _ort_value(tensor: ir.ExternalTensor) -> onnxruntime.OrtValue:
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.BFLOAT16:  # NumPy has none of its own
        bits = array.view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, tensor.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
