"""Recipes applied to an ExecuTorch program: torchao's weights, lowered anew from the checkpoint.

A .pte holds its weights packed for XNNPACK and cannot be quantized afterwards, so the graph is made
again from the checkpoint that the fp32 bundle names. Activations of every quantized product are
rounded to int8 at run time, with a scale and a zero point for each row (XNNPACK's qd8 kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from retnet_edge.checkpoint import load_checkpoint
from retnet_edge.errors import InputError
from retnet_edge.executorch_files import (
    delegation_line,
    executorch_graphs,
    lower_executorch,
    quiet,
)
from retnet_edge.model import RetNet
from retnet_edge.quantize.recipe import ChannelInt8, GroupInt4, Recipe, Rule
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.manifest import GraphSpec, QuantizedTensor
from retnet_edge.xnnpack_graph import XnnpackGraph


def write_quantized_programs(
    source: Bundle,
    checkpoint: str | Path | None,
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[GraphSpec], list[QuantizedTensor]]:
    """Lower the programs of `source` again from its checkpoint, quantized, into `folder`.

    Raises InputError where no checkpoint is given, or it is not the one of the bundle.
    """
    if checkpoint is None:
        raise InputError(
            f"{source.path}: an ExecuTorch program is quantized from its checkpoint; give it with "
            "--checkpoint"
        )
    loaded = load_checkpoint(checkpoint)
    if loaded.weights_sha256() != source.manifest.provenance.checkpoint_sha256:
        raise InputError(
            f"{source.path} was not made from {checkpoint}: the weights' SHA-256 differ"
        )
    assert isinstance(loaded.model, RetNet)
    specs, applied = [], []
    for file, graph in executorch_graphs(loaded.model):
        say(f"quantizing {file} ({recipe.name})")
        applied = quantize_graph(graph, recipe)
        vocab = source.manifest.model.vocab_size
        specs.append(lower_executorch(graph, source.manifest.states, vocab, folder / file))
        say(delegation_line(specs[-1]))
    return specs, applied


def quantize_graph(graph: XnnpackGraph, recipe: Recipe) -> list[QuantizedTensor]:
    """Quantize the graph's matrices in place; what was done to each.

    Raises InputError for a rule that no matrix matches, and a matrix that groups do not divide.
    """
    applied = []
    for name, module in graph.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        weight = f"{name}.weight"
        shape = tuple(module.weight.shape)
        rule = recipe.rule_for(weight)
        _apply(graph, name, module, rule)
        applied.append(QuantizedTensor(weight, rule.pattern, rule.scheme.name, shape))
    matched = {tensor.rule for tensor in applied}
    if idle := [rule.pattern for rule in recipe.rules if rule.pattern not in matched]:
        raise InputError(f"recipe {recipe.name}: the rule {idle[0]!r} decides about no matrix")
    return applied


def _apply(graph: XnnpackGraph, name: str, module: nn.Linear | nn.Embedding, rule: Rule) -> None:
    with quiet():
        from torchao.quantization import (
            Int8DynamicActivationIntxWeightConfig,
            IntxWeightOnlyConfig,
            quantize_,
        )
        from torchao.quantization.granularity import PerAxis, PerGroup

        scheme = rule.scheme
        if isinstance(scheme, ChannelInt8):
            dtype, granularity = torch.int8, PerAxis(0)
        elif isinstance(scheme, GroupInt4):
            dtype, granularity = torch.int4, PerGroup(scheme.group)  # type: ignore[attr-defined]
            width = module.weight.shape[1]
            if width % scheme.group:
                raise InputError(
                    f"{name}.weight has {width} inputs; groups of {scheme.group} do not divide them"
                )
        else:
            return
        if isinstance(module, nn.Embedding):
            config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
        else:
            config = Int8DynamicActivationIntxWeightConfig(
                weight_dtype=dtype, weight_granularity=granularity
            )
        quantize_(graph, config, lambda candidate, _: candidate is module)
