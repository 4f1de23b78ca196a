"""Products and logits of quantized bundles beside NumPy's, recipe by recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import micro_quantized
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from micro_checkpoint import Exported
from micro_quantized import (
    EACH,
    KERNEL_BOUND,
    TOKENS,
    VARIANTS,
    Quantized,
    arrays,
    distance,
    edited,
    refused,
)
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize import kernel_parity
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.numerics.rounding import unpack
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import BlockInt, BlockInt4, BlockInt6, BlockInt8, Float32
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Tolerance
from retnet_edge.runtime.parity.replay import run_steps

exported = micro_quantized.exported
quantized = micro_quantized.quantized


@EACH
def test_kernel_parity(quantized: Quantized, variant: str, recipe: str) -> None:
    found = measure_kernel_parity(quantized(variant, recipe), TOKENS)
    assert found.tokens == len(TOKENS)
    # four in each of two layers, and the head; int8-dynamic has another for each tail
    assert found.products == (9 if recipe == "int8" else 18)
    assert found.product_error <= KERNEL_BOUND
    assert found.logit_error_median <= KERNEL_BOUND
    assert found.logit_error_median <= found.logit_error_max
    assert found.steps_within > 0.5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", ["int8-weight", "int4-weight"])
def test_kernel_parity_of_weight_recipes(quantized: Quantized, variant: str, recipe: str) -> None:
    found = measure_kernel_parity(quantized(variant, recipe), TOKENS)
    assert (found.tokens, found.products) == (len(TOKENS), 9)
    assert found.product_error <= KERNEL_BOUND
    assert found.logit_error_median <= KERNEL_BOUND


@pytest.mark.parametrize(
    ("scheme", "block"),
    [(s, b) for s in (BlockInt8, BlockInt6, BlockInt4) for b in s.blocks if b <= 128],
)
def test_kernel_parity_of_zero_points(
    exported: dict[str, Exported], tmp_path: Path, scheme: type[BlockInt], block: int
) -> None:
    rules = (Rule("blocks.*", scheme(block, symmetric=False)), Rule("*", BlockInt8(128)))
    recipe = Recipe("zeros", rules, find_recipe("int8").tolerance)
    out = quantize(exported["base"].bundle, tmp_path / "q", recipe=recipe, say=lambda text: None)
    found = measure_kernel_parity(Bundle.open(out), TOKENS[:16])
    assert found.product_error <= KERNEL_BOUND
    assert found.logit_error_median <= KERNEL_BOUND


def test_kernel_parity_of_an_fp32_bundle_has_no_products(exported: dict[str, Exported]) -> None:
    found = measure_kernel_parity(Bundle.open(exported["base"].bundle), TOKENS[:8])
    assert (found.products, found.product_error) == (0, 0.0)
    assert found.logit_error_max <= KERNEL_BOUND
    assert found.steps_within == 1.0


@pytest.mark.parametrize(
    ("recipe", "formula"),
    [("int8", "block_int8_product"), ("int8-dynamic", "dynamic_int8_product")],
)
def test_kernel_parity_sees_one_scale_that_is_off(
    quantized: Quantized, recipe: str, formula: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale of each matrix is 1 % larger in NumPy than in the graph."""
    right = getattr(kernel_parity, formula)

    def off(x: Any, codes: Any, scales: Any, *zeros: Any) -> Any:
        scales = scales.copy()
        scales.flat[0] *= np.float32(1.01)
        return right(x, codes, scales, *zeros)

    monkeypatch.setattr(kernel_parity, formula, off)
    found = measure_kernel_parity(quantized("untied", recipe), TOKENS[:8])
    assert found.product_error > 10 * KERNEL_BOUND


def test_kernel_parity_sees_another_kernel(quantized: Quantized, tmp_path: Path) -> None:
    """Activations in float32 (no accuracy_level) are not what the formula computes."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                for attribute in node.attribute:
                    if attribute.name == "accuracy_level":
                        attribute.i = 0

    bundle = edited(quantized("base", "int8").path, tmp_path / "b.edge", change)
    found = measure_kernel_parity(Bundle.open(bundle), TOKENS[:4])
    assert found.product_error > 10 * KERNEL_BOUND


def test_int4_is_calibrated_on_text_that_is_given_or_sampled(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    source, codes = exported["base"].bundle, {}
    text = tmp_path / "calibration.txt"
    text.write_text("The rain in Spain stays mainly in the plain. " * 200)
    for name, calibration in (("sampled", None), ("text", text)):
        said: list[str] = []
        out = quantize(
            source, tmp_path / name, recipe="int4", calibration=calibration, say=said.append
        )
        assert ("the model writes itself" in said[0]) == (calibration is None)
        bundle = Bundle.open(out)
        found = measure_kernel_parity(bundle, TOKENS[:16])
        assert found.product_error <= KERNEL_BOUND
        codes[name] = arrays(bundle.path, "step")["blocks.0.retention.qkvg.weight.codes"]
        step, prefill = arrays(out, "step"), arrays(out, "prefill")
        assert all(np.array_equal(step[n], prefill[n]) for n in step if n.endswith(".codes"))
    assert (codes["sampled"] != codes["text"]).any()


def test_an_embedding_with_zero_points_is_refused(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    recipe = Recipe("four", (Rule("*", BlockInt4(symmetric=False)),), find_recipe("int8").tolerance)
    sentence = refused(exported["base"].bundle, tmp_path / "q", recipe=recipe)
    assert "embedding.weight is looked up in, which needs symmetric codes" in sentence
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scheme", [BlockInt4(), BlockInt6(32)])
def test_an_embedding_of_few_bits(
    exported: dict[str, Exported], tmp_path: Path, variant: str, scheme: BlockInt
) -> None:
    """Looked up in and, where it is tied, multiplied with: the same codes."""
    recipe = Recipe("few", (Rule("*", scheme),), find_recipe("int8").tolerance)
    out = quantize(exported[variant].bundle, tmp_path / "q", recipe=recipe, say=lambda _: None)
    found = measure_kernel_parity(Bundle.open(out), TOKENS)
    assert found.product_error <= KERNEL_BOUND
    assert found.logit_error_median <= KERNEL_BOUND
    assert found.steps_within > 0.5
    constants = arrays(out, "step")
    levels = unpack(constants["embedding.weight.codes"], 4).astype(np.float32) - 8
    scales: NDArray[Any] = constants["embedding.weight.scales3"]
    assert scales.dtype == np.float32
    assert (scales == scales.astype(np.float16)).all()
    if scheme.bits == 6:
        levels = 4 * levels + unpack(constants["embedding.weight.low_codes"], 2) - 2
        scales = scales / 4
    rows = (levels * scales).reshape(len(levels), -1)
    weight = load_checkpoint(exported[variant].checkpoint).model.get_parameter("embedding.weight")
    away = np.abs(rows[:, : weight.shape[1]] - weight.detach().numpy())
    assert 0 < away.max() <= scales.max()


def test_a_mixed_recipe(exported: dict[str, Exported], tmp_path: Path) -> None:
    """The head and what is looked up stay float32; blocks of 32 elsewhere, over 52 inputs too."""
    rules = (Rule("head.*", Float32()), Rule("embed*", Float32()), Rule("blocks.*", BlockInt8(32)))
    tolerance = Tolerance(
        max_abs_logit_error=None, perplexity_ratio=3.0, mean_kl=1.0, top1_agreement=0.5
    )
    source = exported["untied"].bundle
    out = tmp_path / "mixed.edge"
    quantize(source, out, recipe=Recipe("mixed", rules, tolerance), say=lambda text: None)
    bundle = Bundle.open(out)
    assert bundle.manifest.quantization.recipe == "mixed"
    assert bundle.manifest.tolerance == tolerance
    for tensor in bundle.manifest.quantization.tensors:
        inside = tensor.weight.startswith("blocks.")
        assert tensor.scheme == ("int8-block32" if inside else "float32")
    before, after = arrays(source, "step"), arrays(out, "step")
    for name in ("head.weight", "embedding.weight"):
        np.testing.assert_array_equal(after[name], before[name])
    found = measure_kernel_parity(bundle, TOKENS[:16])
    assert found.products == 8
    assert found.product_error <= KERNEL_BOUND
    whole = open_session(Bundle.open(source), threads=1)
    small = open_session(bundle, threads=1)
    assert 1e-4 < distance(run_steps(small, TOKENS), run_steps(whole, TOKENS)) < 0.1


def test_a_product_that_no_scheme_makes() -> None:
    """Its codes come straight from an input, and nobody reads what it gives."""
    x, w = (ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8)) for name in ("x", "w"))
    node = ir.node("MatMulInteger", [x, w], name="odd")
    node.outputs[0].name = "y"
    graph = ir.Graph([x, w], node.outputs, nodes=[node], opset_imports={"": 21})
    with pytest.raises(InputError, match="MatMulInteger 'odd' stands in no product"):
        kernel_parity._products(ir.Model(graph, ir_version=10))
