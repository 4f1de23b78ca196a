"""Recipes in optimum's words: a `QuantizationConfig` for `ORTQuantizer`, or one sentence why not.

What optimum 0.1 has for weights is one scale for a tensor or for each output, by ONNX Runtime's
own tools, in the MatMul nodes that read a matrix directly. That is `DynamicInt8` without a tail.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnxruntime.quantization import QuantFormat, QuantizationMode, QuantType
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import QuantizationConfig
from transformers import PretrainedConfig

from retnet_edge.errors import InputError
from retnet_edge.quantize.graphs.edit import Weight, weight_matrices
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import DynamicInt8, Float32


def quantization_config(recipe: str | Recipe, graph: str | Path) -> QuantizationConfig:
    """`recipe` for `graph`, an ONNX step or prefill graph with our names, as optimum says it.

    The nodes to quantize are named one by one, since optimum's own choice would take the embedding
    and the transpose of a tied head too. Raises InputError, one sentence with the matrix and the
    rule, at the first thing that optimum cannot express; `nearest_recipe` is then what it can.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = []
    for weight in weight_matrices(ir.load(graph), str(graph)):
        rule = recipe.rule_for(weight.name)
        if isinstance(rule.scheme, Float32):
            continue
        if why := _why_not(weight, rule):
            raise InputError(
                f"recipe {recipe.name}: optimum cannot express the rule {rule.pattern!r} "
                f"({rule.scheme.name}) for {weight.name}: {why}"
            )
        chosen += [str(node.name) for node in weight.matmuls]
    if not chosen:
        raise InputError(f"recipe {recipe.name} quantizes no matrix of {graph}")
    return QuantizationConfig(
        is_static=False,
        format=QuantFormat.QOperator,
        mode=QuantizationMode.IntegerOps,
        activations_dtype=QuantType.QUInt8,
        weights_dtype=QuantType.QUInt8,  # signed ones saturate on CPUs without VNNI
        weights_symmetric=True,
        per_channel=True,
        nodes_to_quantize=chosen,
        operators_to_quantize=["MatMul"],
    )


def _why_not(weight: Weight, rule: Rule) -> str:
    if not isinstance(rule.scheme, DynamicInt8):
        return "it has one scale for a tensor or for each output, and not this scheme"
    if rule.scheme.tail is not None:
        return "it does not split a product in two for the tail of its input"
    if weight.gathers or weight.transposed:
        return "it quantizes matrices that a MatMul reads directly, and this one is looked up"
    return ""


def nearest_recipe(recipe: str | Recipe) -> Recipe:
    """`recipe` without what optimum lacks: no tails, the embedding (and a tied head) float32.

    Not the same recipe, so its name says so; what is lost is measured in docs/optimum.md. Raises
    InputError where another scheme than `DynamicInt8` is left, which has no near one.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    rules = [Rule("embedding.weight", Float32())]
    for rule in recipe.rules:
        if isinstance(rule.scheme, DynamicInt8):
            rules.append(replace(rule, scheme=DynamicInt8()))
        elif isinstance(rule.scheme, Float32):
            rules.append(rule)
        else:
            raise InputError(
                f"recipe {recipe.name}: optimum has nothing near the scheme {rule.scheme.name} of "
                f"the rule {rule.pattern!r}; int8-dynamic is the recipe that it comes near to"
            )
    # rules that differed in their tails alone, one of which may decide about no matrix any more
    while rules[-1].pattern == "*" and len(rules) > 1 and rules[-2].scheme == rules[-1].scheme:
        del rules[-2]
    return replace(recipe, name=f"{recipe.name}-optimum", rules=tuple(rules))


def quantize_step(recipe: str | Recipe, graph: str | Path, out: str | Path) -> Path:
    """Apply `recipe` to `graph` with `ORTQuantizer`; the path of the new graph in folder `out`.

    Raises InputError as `quantization_config` does, before anything is written.
    """
    graph, out = Path(graph), Path(out)
    config = quantization_config(recipe, graph)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        # not what optimum saves beside them: where a folder has no config.json, transformers
        # takes a configuration and a tokenizer that the folder's name reminds it of
        ORTQuantizer(graph, PretrainedConfig()).quantize(config, folder)
        for name in (f"{graph.stem}_quantized.onnx", "ort_config.json"):
            (Path(folder) / name).replace(out / name)
    return out / f"{graph.stem}_quantized.onnx"
