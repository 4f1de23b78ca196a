"""The error after every block: small where nothing is wrong, and from the block that is on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from micro_checkpoint import BASE, VOCABULARY, Exported, exported_once
from onnx import numpy_helper

from retnet_edge.export.contract import Flavour
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.reference import Float64Reference
from retnet_edge.pipeline.block_errors import measure_block_errors
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.writer import write_manifest

TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, 300)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@pytest.fixture(scope="module")
def reference(exported: Exported) -> Float64Reference:
    return Float64Reference(load_checkpoint(exported.checkpoint))


def errors(bundle: Path, reference: Float64Reference) -> list[float]:
    found = measure_block_errors(Bundle.open(bundle), reference.block_outputs(TOKENS), TOKENS)
    assert [error.block for error in found] == list(range(len(found)))
    return [error.relative for error in found]


def test_the_reference_sees_the_residual_stream(reference: Float64Reference) -> None:
    """The last block's goes through the final norm and the head to the logits."""
    streams = reference.block_outputs(TOKENS)
    assert [x.shape for x in streams] == [(300, BASE.d_model)] * BASE.layers
    model = reference._model
    with torch.no_grad():
        logits = model.head(model.final_norm(torch.from_numpy(streams[-1])))
    expected, _ = reference.run(TOKENS, None, 0)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flavour", ["ort", "portable"])
def test_graphs_of_both_flavours_name_their_blocks(
    tmp_path_factory: pytest.TempPathFactory, flavour: Flavour
) -> None:
    made = exported_once(tmp_path_factory.getbasetemp(), "base", flavour)
    found = errors(made.bundle, Float64Reference(load_checkpoint(made.checkpoint)))
    assert len(found) == BASE.layers
    assert 0 < max(found) < 1e-5


def test_int8_moves_every_block(
    exported: Exported, reference: Float64Reference, tmp_path: Path
) -> None:
    out = quantize(exported.bundle, tmp_path / "q.edge", recipe="int8", say=lambda _: None)
    found = errors(out, reference)
    assert len(found) == BASE.layers
    assert all(1e-4 < error < 0.1 for error in found)


def test_a_wrong_block_shows_from_there_on(
    exported: Exported, reference: Float64Reference, tmp_path: Path
) -> None:
    source = Bundle.open(exported.bundle)
    model = onnx.load(str(exported.bundle / "prefill.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name == "blocks.1.ffn_norm.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    broken = tmp_path / "b.edge"
    broken.mkdir()
    for name in source.manifest.files:
        (broken / name).write_bytes(source.file(name).read_bytes())
    onnx.save(model, str(broken / "prefill.onnx"))
    write_manifest(broken, source.manifest)
    first, second = errors(broken, reference)
    assert first < 1e-5
    assert second > 1e-2


def test_a_graph_without_the_names_is_not_measured(
    exported: Exported, reference: Float64Reference, tmp_path: Path
) -> None:
    source = Bundle.open(exported.bundle)
    model = ir.load(exported.bundle / "prefill.onnx")
    for node in model.graph:
        for value in node.outputs:
            if value.name == "blocks.0":
                value.name = "something"
    old = tmp_path / "o.edge"
    old.mkdir()
    for name in source.manifest.files:
        (old / name).write_bytes(source.file(name).read_bytes())
    ir.save(model, old / "prefill.onnx")
    write_manifest(old, source.manifest)
    assert measure_block_errors(Bundle.open(old), reference.block_outputs(TOKENS), TOKENS) == ()
