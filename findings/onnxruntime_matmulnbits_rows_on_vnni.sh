#!/usr/bin/env bash
# ONNX Runtime 1.32.0, com.microsoft.MatMulNBits on the CPU, accuracy_level 4 (int8 arithmetic).
#
# One would guess that a row of a product does not depend on how many other rows are multiplied in
# the same call. On CPUs with AVX-512 VNNI it does, for 8-bit and 4-bit weights in blocks of 128: a
# row alone (M = 1) and the same row among others (M > 1) differ in their last bits, by about 3e-7
# of the largest output. In blocks of 32 they are equal. With AVX2 alone 8 bits are equal for both.
# A network that quantizes activations between two such products turns that into a whole code now
# and then, so "batched equals alone" holds within a code and not to the bit.
#
# Seen on an Intel Xeon with AVX-512 VNNI, 30 November 2026, one thread:
#   8 bits, block 32: 0.0e+00; 8 bits, block 128: 2.7e-07
#   4 bits, block 32: 0.0e+00; 4 bits, block 128: 2.8e-07
# On a CPU without AVX-512 VNNI this script says so and ends with 0: nothing to see there.
set -euo pipefail
grep -qw avx512_vnni /proc/cpuinfo || { echo 'no AVX-512 VNNI here: not run'; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

K, N, ROWS = 256, 512, 6
rng = np.random.default_rng(0)
rows = rng.standard_normal((ROWS, 1, K)).astype(np.float32)


def largest_difference(bits: int, block: int) -> float:
    codes = rng.integers(0, 256, size=(N, K // block, block * bits // 8), dtype=np.uint8)
    scales = (0.01 * rng.random((N, K // block))).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=K, N=N, bits=bits, block_size=block, accuracy_level=4,
    )
    graph = helper.make_graph(
        [node], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1, N])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    together = session.run(None, {"x": rows})[0]
    alone = np.concatenate([session.run(None, {"x": rows[i : i + 1]})[0] for i in range(ROWS)])
    return float(np.abs(together - alone).max() / np.abs(alone).max())


found = {(b, s): largest_difference(b, s) for b in (8, 4) for s in (32, 128)}
print("onnxruntime", onnxruntime.__version__)
for (bits, block), value in found.items():
    print(f"{bits} bits, block {block}: {value:.1e}")
assert found[8, 32] == 0 and 0 < found[8, 128] < 1e-6, "8 bits behave otherwise now"
assert found[4, 32] == 0 and 0 < found[4, 128] < 1e-6, "4 bits behave otherwise now"
PY
