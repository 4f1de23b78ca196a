"""How every session of ONNX Runtime is configured: one place, so that none computes otherwise."""

from __future__ import annotations

import onnxruntime

from retnet_edge.runtime.bundle.manifest import Manifest

DISABLE_QDQ_FUSION = ("session.disable_quant_qdq", "1")
"""Run QuantizeLinear and DequantizeLinear as they are written. ONNX Runtime would join a MatMul and
its 8-bit weights to an operator that rounds the activations to int8, whatever they were."""

_FATAL = 4  # every error is also raised, and the caller says it in a sentence


def has_int16_activations(manifest: Manifest) -> bool:
    """True where a matrix has activations of 16 bits."""
    return any(t.scheme.startswith("int8-qdq16") for t in manifest.quantization.tensors)


def session_options(manifest: Manifest, threads: int = 1) -> onnxruntime.SessionOptions:
    """Options for the graphs of a bundle with this manifest, packed or not, on `threads` threads.

    Whoever makes a session adds to them what does not change a result.
    """
    return plain_options(
        keep_qdq=has_int16_activations(manifest),
        threads=threads,
        growing=any(state.growing_axis is not None for state in manifest.states),
    )


def plain_options(
    *, keep_qdq: bool, threads: int = 1, growing: bool = False
) -> onnxruntime.SessionOptions:
    """The same for a graph without a manifest.

    keep_qdq: see DISABLE_QDQ_FUSION. growing: a state grows with every token.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between two nodes take the cores of everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if keep_qdq:
        options.add_session_config_entry(*DISABLE_QDQ_FUSION)
    # A pattern would be kept for every length of a prompt, and gains nothing.
    options.enable_mem_pattern = False
    # The arena keeps what a growing cache has outgrown; fixed states allocate nothing anyway.
    if growing:
        options.enable_cpu_mem_arena = False
    return options
