"""Loading a bundle's graph into ONNX Runtime, with errors that a user can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from retnet_edge.errors import InputError, one_line
from retnet_edge.runtime.backends.ort.options import session_options
from retnet_edge.runtime.backends.ort.prepacked import find_prepared
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import GraphSpec, Manifest
from retnet_edge.runtime.session.huge_pages import huge_pages
from retnet_edge.runtime.session.malloc_trim import trim_heap
from retnet_edge.runtime.session.threads import checked_threads


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
    options = session_options(bundle.manifest, checked_threads(threads))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
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
        shapes = {node.name: node.shape for node in found}
        for spec in specs:
            if not _fits(shapes[spec.name], spec.shape):
                raise InputError(
                    f"{path} has the {side} {spec.name} as {shapes[spec.name]}; the manifest says "
                    f"{list(spec.shape)}"
                )
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


def _fits(found: Sequence[int | str | None], says: Sequence[int | str]) -> bool:
    """Every number of the graph is the manifest's; what it leaves open is seen when it runs."""
    return len(found) == len(says) and all(
        dim == wanted for dim, wanted in zip(found, says, strict=True) if isinstance(dim, int)
    )


def _numpy_name(onnx_type: str) -> str:
    """NumPy's name of a type such as "tensor(float)"."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
