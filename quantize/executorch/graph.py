"""Recipes applied to an ExecuTorch program: torchao's weights, lowered anew from the checkpoint.

A .pte holds its weights packed for XNNPACK and cannot be quantized afterwards, so the graph is made
again from the checkpoint that the fp32 bundle names. Activations of a quantized product are rounded
to int8 at run time, with a scale and a zero point for each row (XNNPACK's qd8 kernels), or with
ones that were measured on text (`static.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retnet_edge.errors import InputError
from retnet_edge.lowering.executorch_files import (
    delegation_line,
    executorch_graphs,
    lower_executorch,
    lowering_seconds,
)
from retnet_edge.lowering.xnnpack_graph import XnnpackGraph
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import progress, working
from retnet_edge.quantize.executorch.calibration import (
    LinearStatistics,
    calibration_text,
    collect_statistics,
)
from retnet_edge.quantize.executorch.static import static_module
from retnet_edge.quantize.numerics.group_gptq import quantize_groups
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import ChannelInt8, GroupInt4, StaticInt8
from retnet_edge.quiet import hushed
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import GraphSpec, QuantizedTensor

SLOWER = 1.5  # than lowering in float32, roughly


def write_quantized_programs(
    source: Bundle,
    checkpoint: str | Path | None,
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None],
    calibration: str | Path | None = None,
    text_field: str = "text",
) -> tuple[list[GraphSpec], list[QuantizedTensor]]:
    """Lower the programs of `source` again from its checkpoint, quantized, into `folder`.

    calibration: text, for a recipe that needs it (a table's: its `text_field`). Raises InputError
    where no checkpoint is given or it is not the one of the bundle, and for text that is too short.
    """
    if checkpoint is None:
        raise InputError(
            f"{source.path}: an ExecuTorch program is quantized from its checkpoint; give it with "
            "--checkpoint"
        )
    loaded = load_checkpoint(checkpoint)
    source.check_made_from(loaded.path, loaded.weights_sha256())
    assert isinstance(loaded.model, RetNet)
    model = loaded.model.eval()
    statistics: dict[str, LinearStatistics] = {}
    if recipe.calibrated and calibration is not None:
        contexts = calibration_text(
            loaded.tokenizer, Path(calibration), text_field, end=loaded.special.end
        )
        say(f"calibrating on {sum(ids.numel() for ids in contexts):,} tokens of {calibration}")
        statistics = _observe(model, recipe, contexts)
    rounded = _round_groups(model, recipe, statistics)
    specs, applied = [], []
    seconds = SLOWER * lowering_seconds(model.config.layers)
    for file, graph in executorch_graphs(model):
        with working(f"quantizing {file} ({recipe.name})", seconds, say):
            applied = quantize_graph(graph, recipe, rounded)
            static = {
                name: statistics[name]
                for tensor in applied
                for name in [tensor.weight.removesuffix(".weight")]
                if tensor.scheme == StaticInt8().name
            }
            states = source.manifest.states
            module = static_module(graph, static, states) if static else graph
            vocab = source.manifest.model.vocab_size
            specs.append(lower_executorch(module, graph.tokens, states, vocab, folder / file))
        say(delegation_line(specs[-1]))
    return specs, applied


def quantize_graph(
    graph: XnnpackGraph,
    recipe: Recipe,
    rounded: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> list[QuantizedTensor]:
    """Quantize the graph's matrices in place; what was done to each.

    rounded: integers and scales of every matrix in groups, by its module's name. Matrices with
    static activations are left to `static_module`. Raises InputError for a rule that no matrix
    matches, and a matrix that groups do not divide.
    """
    applied = []
    for name, module in graph.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        weight = f"{name}.weight"
        shape = tuple(module.weight.shape)
        rule = recipe.rule_for(weight)
        _apply(graph, name, module, rule, (rounded or {}).get(name))
        applied.append(QuantizedTensor(weight, rule.pattern, rule.scheme.name, shape))
    matched = {tensor.rule for tensor in applied}
    if idle := [rule.pattern for rule in recipe.rules if rule.pattern not in matched]:
        raise InputError(f"recipe {recipe.name}: the rule {idle[0]!r} decides about no matrix")
    return applied


def _observe(model: RetNet, recipe: Recipe, contexts: list[Tensor]) -> dict[str, LinearStatistics]:
    """What the linear maps that need it saw on text."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    schemes = {name: recipe.rule_for(f"{name}.weight").scheme for name in names}
    wanted = {name for name, s in schemes.items() if isinstance(s, GroupInt4 | StaticInt8)}
    grams = {name for name, s in schemes.items() if isinstance(s, GroupInt4)}
    return collect_statistics(model, contexts, wanted=wanted, grams=grams)


def _round_groups(
    model: RetNet, recipe: Recipe, statistics: Mapping[str, LinearStatistics]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Integers and scales of every matrix in groups, by its module's name."""
    found = {
        name: (module, scheme)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and isinstance(scheme := recipe.rule_for(f"{name}.weight").scheme, GroupInt4)
    }
    for name, (module, scheme) in found.items():
        _check_groups(name, module, scheme)
    rounded = {}
    total = sum(module.weight.numel() for module, _ in found.values())
    with progress("round in groups (weights)", total) as advance:
        for name, (module, scheme) in found.items():
            gram = statistics[name].gram
            assert gram is not None
            rounded[name] = quantize_groups(module.weight.detach(), gram, scheme.group)
            advance(module.weight.numel())
    return rounded


def _check_groups(name: str, module: nn.Linear, scheme: GroupInt4) -> None:
    width = module.in_features
    if width % scheme.group:
        raise InputError(
            f"{name}.weight has {width} inputs; groups of {scheme.group} do not divide them"
        )


def _apply(
    graph: XnnpackGraph,
    name: str,
    module: nn.Linear | nn.Embedding,
    rule: Rule,
    rounded: tuple[Tensor, Tensor] | None,
) -> None:
    with hushed():
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
        else:
            return
        if isinstance(module, nn.Embedding):
            config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
        else:
            config = Int8DynamicActivationIntxWeightConfig(
                weight_dtype=dtype, weight_granularity=granularity
            )
        quantize_(graph, config, lambda candidate, _: candidate is module)
    if rounded is not None:  # torchao's own rounding is to the nearest
        weight: Any = module.weight
        weight.qdata.copy_(rounded[0])
        weight.scale.copy_(rounded[1])
