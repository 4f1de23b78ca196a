"""How a graph is described in the manifest: read off the graph itself."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from retnet_edge.runtime.manifest import Dtype, GraphSpec, TensorSpec

_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
}


def graph_spec(file: str, kind: Literal["step", "prefill"], model: ir.Model) -> GraphSpec:
    """The manifest's record of an ONNX graph whose large tensors lie in external files."""
    external = {
        value.const_value.location
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return GraphSpec(
        file=file,
        kind=kind,
        backend="onnxruntime",
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        external_data=tuple(sorted(str(location) for location in external)),
        operator_sets={domain or "ai.onnx": v for domain, v in model.opset_imports.items()},
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, _DTYPES[value.dtype], dims)
