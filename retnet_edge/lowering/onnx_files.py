"""ONNX graphs as files of a bundle: weights shared, checked, and described for the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from retnet_edge.errors import InputError
from retnet_edge.lowering.in_place import updates_in_place
from retnet_edge.progress import hashing
from retnet_edge.runtime.bundle.manifest import Dtype, GraphSpec, TensorSpec

WEIGHTS_FILE = "weights.bin"
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where shape inference reads them
_FUSED = "com.microsoft.LinearAttention"
_PORTABLE_SET = 18
ALIGNMENT = 4096  # of a tensor in the weights file, so that it can be mapped by itself

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
}


def save_models(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write each model as `folder/<name>`, all their weights once into `folder/weights.bin`.

    Tensors of equal bytes share their place in the file, across graphs too. Every graph passes
    the ONNX checker with shape inference, else its error is raised. Raises InputError as
    `check_finite` does.
    """
    for file_name, model in models.items():
        check_finite(model, file_name)
    places: dict[bytes, int] = {}
    sizes = [
        value.const_value.nbytes
        for model in models.values()
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    with (
        hashing("write weights", sum(sizes)) as advance,
        (folder / WEIGHTS_FILE).open("wb") as file,
    ):
        for model in models.values():
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                assert tensor is not None, f"initializer {name} has no value"
                advance(tensor.nbytes)
                if tensor.nbytes < INLINE_BYTES:
                    continue
                raw = tensor.tobytes()
                digest = hashlib.sha256(raw).digest()
                if digest not in places:
                    file.write(b"\0" * (-file.tell() % ALIGNMENT))
                    places[digest] = file.tell()
                    file.write(raw)
                value.const_value = ir.ExternalTensor(
                    WEIGHTS_FILE,
                    offset=places[digest],
                    length=len(raw),
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=name,
                    base_dir=folder,
                )
    for file_name, model in models.items():
        ir.save(model, folder / file_name)
        onnx.checker.check_model(str(folder / file_name), full_check=True)


def check_finite(model: ir.Model, where: str) -> None:
    """Raises InputError, naming `where` and the constant, for a NaN or an infinity in a graph.

    Single numbers may be infinite: a graph can mask with one.
    """
    for name, value in model.graph.initializers.items():
        if value.dtype in _FLOATS and value.const_value is not None:
            array = value.const_value.numpy()
            if array.ndim and not np.isfinite(array).all():
                raise InputError(f"{where}: {name} holds a value that is not finite")


def graph_spec(file: str, kind: Literal["step", "prefill"], model: ir.Model) -> GraphSpec:
    """The manifest's record of a graph whose large tensors lie in external files."""
    external = {
        str(value.const_value.location)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    operators = _operators(model)
    return GraphSpec(
        file=file,
        kind=kind,
        backend="onnxruntime",
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        external_data=tuple(sorted(external)),
        operator_sets={domain or "ai.onnx": v for domain, v in model.opset_imports.items()},
        operators=operators,
        needs=_needs(model, operators),
        serves_step=kind == "prefill" and _FUSED in operators,
        states_in_place=updates_in_place(model),
    )


def _operators(model: ir.Model) -> tuple[str, ...]:
    nodes = model.graph.all_nodes()
    return tuple(sorted({".".join(filter(None, (n.domain, n.op_type))) for n in nodes}))


def _needs(model: ir.Model, operators: Sequence[str]) -> str:
    """The oldest ONNX Runtime with the graph's operators on the CPU, and its operator set."""
    if any("." in name for name in operators) or model.opset_imports[""] > _PORTABLE_SET:
        return "onnxruntime 1.32"
    return "onnxruntime 1.15"


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, _DTYPES[value.dtype], dims)
