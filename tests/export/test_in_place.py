"""Past and next states in one memory: where a graph allows it, and that nothing changes then."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from micro_checkpoint import exported_once, random_tokens
from numpy.typing import NDArray

from retnet_edge.lowering.in_place import updates_in_place
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import with_state
from retnet_edge.quantize.recipes.schemes import StateScheme
from retnet_edge.runtime.backends.ort.session import OrtSession
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.batch import Batch

Logits = NDArray[np.float32]
TOKENS = random_tokens(1, 321)[0].tolist()


@pytest.fixture(scope="module", params=["fp32", "float32", "float16", "int8"])
def fused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The `ort` flavour, as exported and as int8 with each kind of state."""
    out = exported_once(tmp_path_factory.getbasetemp(), "base").bundle
    state: StateScheme | Literal["fp32"] = request.param
    if state != "fp32":
        recipe = with_state(find_recipe("int8"), state)
        folder = tmp_path_factory.mktemp("fused")
        out = quantize(out, folder / "q.edge", recipe=recipe, say=lambda _: None)
    return Bundle.open(out)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(exported_once(tmp_path_factory.getbasetemp(), "base", "portable").bundle)


def with_two_sets(bundle: Bundle) -> Bundle:
    graphs = [msgspec.structs.replace(g, states_in_place=False) for g in bundle.manifest.graphs]
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, graphs=tuple(graphs)))


def test_both_flavours_allow_it(fused: Bundle, portable: Bundle) -> None:
    for bundle in (fused, portable):
        assert all(graph.states_in_place for graph in bundle.manifest.graphs)


def test_a_session_computes_the_same_bits(fused: Bundle) -> None:
    _check_session(fused)


def test_so_does_one_of_the_portable_flavour(portable: Bundle) -> None:
    _check_session(portable)


def _check_session(bundle: Bundle) -> None:
    one, two = (OrtSession(b, threads=1) for b in (bundle, with_two_sets(bundle)))

    def check(ours: Logits, theirs: Logits) -> None:
        np.testing.assert_array_equal(ours, theirs)
        for state, other in zip(one.states(), two.states(), strict=True):
            np.testing.assert_array_equal(state, other)

    for token in TOKENS[:9]:
        check(one.step(token), two.step(token))
    check(one.prefill(TOKENS[9:300]), two.prefill(TOKENS[9:300]))
    for token in TOKENS[300:305]:
        check(one.step(token), two.step(token))


def test_a_batch_computes_the_same_bits(fused: Bundle) -> None:
    one, two = (Batch(b, 3, threads=1) for b in (fused, with_two_sets(fused)))
    for batch in (one, two):
        for start in (0, 40, 90):
            batch.prefill(batch.join(), TOKENS[start : start + 30])
        batch.leave(0)
    for token in TOKENS[:5]:
        ours, theirs = (batch.step({1: token, 2: token + 1}) for batch in (one, two))
        for sequence in (1, 2):
            np.testing.assert_array_equal(ours[sequence], theirs[sequence])
            for state, other in zip(
                one.snapshot(sequence).states, two.snapshot(sequence).states, strict=True
            ):
                np.testing.assert_array_equal(state, other)


def graph(*nodes: ir.Node, past: ir.Value, new: ir.Value, logits: ir.Value) -> ir.Model:
    inputs = [ir.Value(name="tokens"), ir.Value(name="position"), past]
    return ir.Model(ir.Graph(inputs, [logits, new], nodes=list(nodes)), ir_version=10)


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def recurrence(*, read_again: bool) -> ir.Model:
    """new = past · γ + x; the logits come from the new state, or from a view of the past one."""
    past, new, x = value("past", 4, 4), value("new", 4, 4), value("x", 4, 4)
    view = ir.node("Unsqueeze", [past])
    faded = ir.node("Mul", [view.outputs[0], value("gamma", 1)])
    made = ir.node("Add", [faded.outputs[0], x], outputs=[new])
    read = view.outputs[0] if read_again else new
    logits = ir.node("MatMul", [read, value("w", 4, 4)])
    return graph(view, faded, made, logits, past=past, new=new, logits=logits.outputs[0])


def test_a_past_state_that_is_read_beside_the_recurrence_forbids_it() -> None:
    assert updates_in_place(recurrence(read_again=False))
    assert not updates_in_place(recurrence(read_again=True))


@pytest.mark.parametrize(("operator", "allowed"), [("LinearAttention", True), ("MatMul", False)])
def test_a_writer_that_reads_it_has_to_be_the_fused_one(operator: str, *, allowed: bool) -> None:
    past, new, logits = value("past", 4, 4), value("new", 4, 4), value("logits", 4, 4)
    shape = ir.node("Shape", [past])  # reads no element
    node = ir.node(operator, [past, value("x", 4, 4)], outputs=[logits, new])
    model = graph(shape, node, past=past, new=new, logits=logits)
    assert updates_in_place(model) is allowed


def test_a_cache_that_grows_forbids_it() -> None:
    past, new, x = value("past", 1, "past"), value("new", 1, "total"), value("x", 1, 1)
    same = ir.node("Identity", [past])
    joined = ir.node("Concat", [same.outputs[0], x], {"axis": 1}, outputs=[new])
    logits = ir.node("Identity", [new])
    model = graph(same, joined, logits, past=past, new=new, logits=logits.outputs[0])
    assert not updates_in_place(model)
