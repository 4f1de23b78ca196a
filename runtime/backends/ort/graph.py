"""Loading a bundle's graph into ONNX Runtime, with errors that a user can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import onnxruntime

from retnet_edge.errors import InputError, one_line
from retnet_edge.runtime.backends.ort.prepacked import find_prepared
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import GraphSpec, Manifest
from retnet_edge.runtime.session.huge_pages import huge_pages
from retnet_edge.runtime.session.malloc_trim import trim_heap
from retnet_edge.runtime.session.threads import checked_threads

DISABLE_QDQ_FUSION = ("session.disable_quant_qdq", "1")
"""Run QuantizeLinear and DequantizeLinear as they are written. ONNX Runtime would join a MatMul and
its 8-bit weights to an operator that rounds the activations to int8, whatever they were."""
_FATAL = 4  # every error is also raised, and the caller says it in a sentence


def main_graph(bundle: Bundle) -> tuple[Literal["step", "prefill"], GraphSpec]:
    """The graph that a session steps with: the prefill graph where it serves both.

    Raises InputError where the bundle has no graph for ONNX Runtime.
    """
    manifest = bundle.manifest
    prefill = manifest.graph_for("onnxruntime", "prefill")
    step = manifest.graph_for("onnxruntime", "step")
    if prefill is not None and prefill.serves_step:
        return "prefill", prefill
    if step is None:
        has = ", ".join(f"{g.kind} for {g.backend}" for g in bundle.manifest.graphs)
        raise InputError(f"{bundle.path} has no step graph for onnxruntime (it has: {has})")
    return "step", step


def has_int16_activations(manifest: Manifest) -> bool:
    """True where a matrix has activations of 16 bits."""
    return any(t.scheme.startswith("int8-qdq16") for t in manifest.quantization.tensors)


def batch_shares_scales(manifest: Manifest) -> bool:
    """True where activations get one scale a call: sequences in one would change each other."""
    return any(t.scheme.startswith("int8-dynamic") for t in manifest.quantization.tensors)


def load_graph(
    bundle: Bundle,
    kind: Literal["step", "prefill"],
    threads: int | None,
    *,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """The graph, ready to run on `threads` CPU threads (None: see `default_threads`).

    profile: start of the name of the file that ONNX Runtime's profiler is to write.

    Raises InputError where the bundle has no such graph, threads is below 1, ONNX Runtime refuses
    the file, or the file's inputs and outputs are not those of the manifest.
    """
    graph = bundle.manifest.graph_for("onnxruntime", kind)
    if graph is None:
        has = ", ".join(f"{g.kind} for {g.backend}" for g in bundle.manifest.graphs)
        raise InputError(f"{bundle.path} has no {kind} graph for onnxruntime (it has: {has})")
    packed = find_prepared(bundle, graph.file)
    path = packed or bundle.file(graph.file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = checked_threads(threads)
    options.inter_op_num_threads = 1
    # Threads that spin between two nodes take the cores of everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if has_int16_activations(bundle.manifest):
        options.add_session_config_entry(*DISABLE_QDQ_FUSION)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    # A pattern would be kept for every length of a prompt, and gains nothing.
    options.enable_mem_pattern = False
    # The arena keeps what a growing cache has outgrown; fixed states allocate nothing anyway.
    if any(state.growing_axis is not None for state in bundle.manifest.states):
        options.enable_cpu_mem_arena = False
    try:
        with huge_pages():
            session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load the graph: "
            f"{one_line(error)}"
        ) from error
    trim_heap()  # of what reading the tokenizer and the graph left
    for side, specs, found in (
        ("input", graph.inputs, session.get_inputs()),
        ("output", graph.outputs, session.get_outputs()),
    ):
        listed = {spec.name: spec.dtype for spec in specs}
        actual = {node.name: _numpy_name(node.type) for node in found}
        if listed != actual:
            raise InputError(f"{path} has the {side}s {actual}; the manifest says {listed}")
    return session


def run_with_binding(session: Any, binding: Any, path: Path, options: Any = None) -> None:
    """Run with a binding. Raises InputError where the graph fails on what the manifest promised."""
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:
        raise InputError(f"{path}: the graph failed while running: {one_line(error)}") from error


def arena_shrinkage() -> Any:
    """Options of a run after which ONNX Runtime's arena gives back what the run needed."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _numpy_name(onnx_type: str) -> str:
    """NumPy's name of a type such as "tensor(float)"."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
