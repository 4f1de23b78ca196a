"""A plan is read off a graph that may be anybody's: what cannot be read is said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import native_bundles
import onnx_ir as ir
import pytest
from native_bundles import Quantized

from retnet_edge.errors import InputError
from retnet_edge.quantize.native_plan import write_native_plan

pytestmark = native_bundles.NEEDS_THE_LIBRARY
exported = native_bundles.exported
quantized = native_bundles.quantized


def first_product(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "MatMulNBits")


def made_elsewhere(model: ir.Model) -> None:
    """The scales come out of a node that is no cast."""
    node = first_product(model)
    made = ir.node("Identity", [node.inputs[2]])
    made.outputs[0].name = "made"
    model.graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])


def one_less(model: ir.Model) -> None:
    node = first_product(model)
    node.op_type = "Other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: first_product(m).attributes.pop("bits"), "MatMulNBits .* does not say its bits"),
        (lambda m: first_product(m).attributes.pop("N"), "MatMulNBits .* does not say its N"),
        (lambda m: first_product(m).attributes.pop("block_size"), "does not say its block_size"),
        (made_elsewhere, r"cannot multiply with blocks.0.retention.qkvg.weight: codes and scales"),
        (one_less, "reads 9 products and 7 norms off the step graph of 2 layers; this one has 8"),
    ],
)
def test_graphs_that_hold_no_plan(
    quantized: Quantized, tmp_path: Path, change: Callable[[ir.Model], None], message: str
) -> None:
    bundle = quantized("base", "int8-weight")
    step = bundle.manifest.graph("step")
    model = ir.load(bundle.file(step.file))
    change(model)
    with pytest.raises(InputError, match=message):
        write_native_plan({step.file: model}, [step], bundle.manifest.model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_number_of_layers(quantized: Quantized, tmp_path: Path) -> None:
    bundle = quantized("base", "int8-weight")
    step = bundle.manifest.graph("step")
    models = {step.file: ir.load(bundle.file(step.file))}
    (tmp_path / "weights.bin").symlink_to(bundle.file("weights.bin"))
    write_native_plan(models, [step], bundle.manifest.model, tmp_path)
    assert (tmp_path / "native.table").read_bytes() == bundle.file("native.table").read_bytes()
    config = bundle.manifest.model.config | {"layers": 3}
    spec = msgspec.structs.replace(bundle.manifest.model, config=config)
    with pytest.raises(InputError, match=r"reads 13 products and 10 norms .* 3 layers; this one"):
        write_native_plan(models, [step], spec, tmp_path)
