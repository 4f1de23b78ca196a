"""Recipes as optimum's QuantizationConfig: what it can express is applied, the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from optimum_parts import INSTALLED, TIED, UNTIED, run_tokens, write

from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.lowering.onnx_files import save_models
from retnet_edge.quantize.quantize import apply_recipe
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import DynamicInt8, Float32

if not INSTALLED:
    pytest.skip("optimum is not installed: make test-optimum", allow_module_level=True)

from retnet_edge.integrations.optimum.recipes import (
    nearest_recipe,
    quantization_config,
    quantize_step,
)

CONFIGS = {"tied": TIED, "untied": UNTIED}
TOLERANCE = find_recipe("int8-dynamic").tolerance


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Step graphs of our own export."""
    folder = tmp_path_factory.mktemp("graphs")
    return {
        name: export(write(folder / name, config), folder / f"{name}.edge", say=lambda _: None)
        / "step.onnx"
        for name, config in CONFIGS.items()
    }


def logits(graph: Path) -> NDArray[np.float32]:
    tokens = np.random.default_rng(0).integers(1, 270, (4, 24))
    return np.stack([out["logits"] for out in run_tokens(graph, tokens)])


def rms(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


@pytest.mark.parametrize("name", CONFIGS)
def test_nearest_recipe_is_applied(graphs: dict[str, Path], name: str, tmp_path: Path) -> None:
    recipe = nearest_recipe("int8-dynamic")
    assert recipe.name == "int8-dynamic-optimum"
    quantized = quantize_step(recipe, graphs[name], tmp_path / "theirs")
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {
        "step_quantized.onnx",
        "ort_config.json",
    }
    model = onnx.load(quantized)
    integer = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    head = 0 if name == "tied" else 1
    assert len(integer) == 4 * TIED.layers + head
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    assert kept["embedding.weight"].data_type == onnx.TensorProto.FLOAT
    for node in integer:
        codes, zero = kept[node.input[1]], onnx.numpy_helper.to_array(kept[node.input[3]])
        assert codes.data_type == onnx.TensorProto.UINT8
        assert zero.shape == (codes.dims[1],), "a scale for each output"

    ours = ir.load(graphs[name])
    apply_recipe(ours, recipe, name)
    (tmp_path / "ours").mkdir()
    save_models({"step.onnx": ours}, tmp_path / "ours")
    exact = logits(graphs[name])
    theirs = rms(logits(quantized) - exact) / rms(exact)
    own = rms(logits(tmp_path / "ours" / "step.onnx") - exact) / rms(exact)
    assert 0 < theirs < 1.5 * own < 0.1


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            "int8",
            r"rule '\[eh\]\*.weight' \(int8-block128-tail2\) for embedding.weight: "
            "it has one scale",
        ),
        ("int8-dynamic", r"rule '\*' \(int8-dynamic-tail1.5\) for embedding.weight: .* tail"),
        (
            Recipe("plain", (Rule("*", DynamicInt8()),), TOLERANCE),
            r"rule '\*' \(int8-dynamic\) for embedding.weight: .* looked up",
        ),
        (
            Recipe(
                "tails",
                (Rule("embedding.weight", Float32()), Rule("*", DynamicInt8(tail=2.0))),
                TOLERANCE,
            ),
            r"rule '\*' \(int8-dynamic-tail2\) for blocks.0.retention.qkvg.weight: .* tail",
        ),
        (Recipe("nothing", (Rule("*", Float32()),), TOLERANCE), "quantizes no matrix"),
    ],
)
def test_what_optimum_cannot_express_is_refused(
    graphs: dict[str, Path], recipe: str | Recipe, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        quantize_step(recipe, graphs["tied"], tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_rules_that_only_tails_told_apart_become_one() -> None:
    """One of them would decide about no matrix of a tied model."""
    rules = (
        Rule("*.out.weight", DynamicInt8(tail=2.0)),
        Rule("[eh]*.weight", DynamicInt8(tail=1.5)),
        Rule("*", DynamicInt8()),
    )
    found = nearest_recipe(Recipe("tails", rules, TOLERANCE))
    assert found.rules == (Rule("embedding.weight", Float32()), Rule("*", DynamicInt8()))


def test_nearest_recipe_of_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="nothing near the scheme int8-block128"):
        nearest_recipe("int8")


def test_a_recipe_by_layer_names_its_nodes(graphs: dict[str, Path]) -> None:
    rules = (Rule("blocks.1.*", DynamicInt8()), Rule("*", Float32()))
    config = quantization_config(Recipe("second", rules, TOLERANCE), graphs["untied"])
    nodes = {node.name: node for node in onnx.load(graphs["untied"]).graph.node}
    read = {nodes[name].input[1] for name in config.nodes_to_quantize}
    assert read == {
        f"blocks.1.{matrix}.weight"
        for matrix in ("retention.qkvg", "retention.out", "ffn.inner", "ffn.out")
    }
