"""Lowering to ONNX: `torch.onnx.export(dynamo=True)`, a clean graph, shared weights, checks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from retnet_edge.export.contract import Lowering
from retnet_edge.runtime.manifest import StateSpec

OPSET = 23
WEIGHTS_FILE = "weights.bin"
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where shape inference reads them
ALIGNMENT = 4096  # of a tensor in the weights file, so that it can be mapped by itself


def lower_onnx(lowering: Lowering, states: Sequence[StateSpec]) -> ir.Model:
    """The graph as an ONNX model whose inputs and outputs have the step contract's names."""
    with _quiet():
        program = torch.onnx.export(
            lowering.module.eval(),
            lowering.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["tokens", "position", *(state.input for state in states)],
            output_names=["logits", *(state.output for state in states)],
            dynamic_shapes=lowering.dynamic_shapes,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _strip(model)
    return model


def save_models(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write each model as `folder/<name>`, all their weights once into `folder/weights.bin`.

    Tensors of equal bytes share their place in the file, across graphs too.
    """
    places: dict[bytes, int] = {}
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for model in models.values():
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                assert tensor is not None, f"initializer {name} has no value"
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
        check(folder / file_name)


def check(path: Path) -> None:
    """The ONNX checker with strict shape inference. Raises what the checker raises."""
    onnx.checker.check_model(str(path), full_check=True)


def _strip(model: ir.Model) -> None:
    """Drop the exporter's traces (module paths, source lines of this machine)."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of things that are as they should be."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
