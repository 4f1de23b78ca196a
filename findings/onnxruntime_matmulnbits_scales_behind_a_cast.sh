#!/usr/bin/env bash
# ONNX Runtime 1.32.0, com.microsoft.MatMulNBits on the CPU, accuracy_level 4 (int8 arithmetic).
#
# One would guess that a graph optimization changes the time of a model and not what it computes.
# Where the scales stand behind a Cast from float16, a product's weights are packed when the session
# is made, before anybody has computed the Cast: unless constant folding has turned it into a
# constant, they are packed without scales, and every output is 0. No error, no warning. With the
# same scales as a float32 constant all levels agree.
#
# Seen on an Intel Xeon, 1 December 2026, one thread, 4 bits in blocks of 32, largest output by level:
#   behind a Cast: disabled 0.000, basic 1.716, extended 1.716, all 1.716
#   as a constant: disabled 1.716, basic 1.716, extended 1.716, all 1.716
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

K, N, BLOCK = 128, 64, 32
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 1, K)).astype(np.float32)
codes = rng.integers(0, 256, size=(N, K // BLOCK, BLOCK // 2), dtype=np.uint8)
scales = (0.01 * (1 + rng.random((N, K // BLOCK)))).astype(np.float16)
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def largest_output(behind_a_cast: bool, level: str) -> float:
    nodes, stored = [], scales if behind_a_cast else scales.astype(np.float32)
    if behind_a_cast:
        nodes = [helper.make_node("Cast", ["stored"], ["scales"], to=TensorProto.FLOAT)]
    product = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=K, N=N, bits=4, block_size=BLOCK, accuracy_level=4,
    )
    graph = helper.make_graph(
        [*nodes, product], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, N])],
        [
            numpy_helper.from_array(codes, "codes"),
            numpy_helper.from_array(stored, "stored" if behind_a_cast else "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    return float(np.abs(session.run(None, {"x": x})[0]).max())


found = {cast: {level: largest_output(cast, level) for level in LEVELS} for cast in (True, False)}
for cast, outputs in found.items():
    print("behind a Cast:" if cast else "as a constant:", end=" ")
    print(", ".join(f"{level} {output:.3f}" for level, output in outputs.items()))
assert found[True].pop("disabled") == 0, "the unfolded Cast is taken into account now"
assert min(*found[True].values(), *found[False].values()) > 1, "another level gives zeros"
PY
