"""`retnet-edge quantize`: a recipe applied to an fp32 bundle makes a new bundle."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retnet_edge.atomic import new_folder
from retnet_edge.data.contexts import calibration_contexts
from retnet_edge.errors import InputError
from retnet_edge.lowering.onnx_files import check_finite, graph_spec, save_models
from retnet_edge.progress import progress
from retnet_edge.quantize.calibration.activations import input_rms
from retnet_edge.quantize.calibration.statistics import (
    ActivationStatistics,
    input_grams,
    input_samples,
    sampled_contexts,
)
from retnet_edge.quantize.graphs.edit import drop_unused, weight_matrices
from retnet_edge.quantize.native_plan import check_native, write_native_plan
from retnet_edge.quantize.numerics.rounding import BlockQuantized
from retnet_edge.quantize.passes.blocks import apply_blocks, quantize_weight
from retnet_edge.quantize.passes.dynamic_int8 import apply_dynamic_int8
from retnet_edge.quantize.passes.half import apply_half
from retnet_edge.quantize.passes.states import quantize_states, state_specs
from retnet_edge.quantize.passes.static_int8 import apply_static_int8
from retnet_edge.quantize.recipes.recipe import (
    Recipe,
    check_backend,
    check_calibration,
    check_graphs,
)
from retnet_edge.quantize.recipes.schemes import (
    BlockInt,
    DynamicInt8,
    Float32,
    Half,
    StateScheme,
    StaticInt8Qdq,
)
from retnet_edge.quantize.recipes.toml_file import recipes_for
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import (
    NOT_VERIFIED,
    Backend,
    GraphSpec,
    Quantization,
    QuantizedTensor,
)
from retnet_edge.runtime.bundle.writer import write_manifest


def quantize(
    bundle: str | Path,
    out: str | Path,
    *,
    recipe: str | Recipe = "int8",
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    state: StateScheme = "float32",
    native: bool = False,
    text_field: str = "text",
    say: Callable[[str], None] = print,
) -> Path:
    """Apply `recipe` to an fp32 bundle, into a new bundle at `out`; `bundle` is only read.

    A name stands for the recipe of that name of each backend in the bundle, or, where it ends in
    .toml, for a file (`recipes/toml_file.py`). checkpoint: what the bundle was made from, which
    ExecuTorch programs need. calibration: text for the recipes that are calibrated on it, which in
    a table stands in `text_field`. state: what states are rounded to between calls, where the
    recipe does not say. native: plan the weights of the ONNX graphs for the native backend too.
    Raises InputError for a bundle that does not open or is quantized already, an unknown recipe or
    one that a graph cannot take, a matrix that a rule names and no pass can quantize, a rule that
    names no matrix, and an `out` that exists.
    """
    source, out = Bundle.open(bundle), Path(out)
    recipes = recipes_for(recipe, source.manifest.backends, state)
    with new_folder(out) as folder:
        write_quantized(
            source,
            recipes,
            folder,
            say,
            checkpoint,
            calibration,
            native=native,
            text_field=text_field,
        )
    return out


def write_quantized(
    source: Bundle,
    recipes: Mapping[Backend, Recipe],
    folder: Path,
    say: Callable[[str], None],
    checkpoint: str | Path | None = None,
    calibration: str | Path | None = None,
    *,
    native: bool = False,
    text_field: str = "text",
) -> None:
    """Write every file of the quantized bundle into an existing folder."""
    manifest = source.manifest
    check_recipes(recipes, calibration, native=native)
    for recipe in recipes.values():
        check_graphs(recipe, manifest)
    check_unquantized(source)
    for graph in manifest.graphs:
        if graph.backend == "onnxruntime":  # before text is written with them
            check_finite(ir.load(source.file(graph.file)), str(source.file(graph.file)))
    graphs: list[GraphSpec] = []
    applied: list[QuantizedTensor] = []
    for backend, recipe in recipes.items():
        states = manifest.states
        if backend == "executorch":
            from retnet_edge.quantize.executorch.graph import write_quantized_programs

            written = write_quantized_programs(
                source, checkpoint, recipe, folder, say, calibration, text_field
            )
        else:
            written = _write_quantized_onnx(
                source, recipe, folder, say, calibration, text_field, native=native
            )
            states = state_specs(manifest.states, recipe.state)
        graphs += written[0]
        applied += written[1]
    copy_unchanged(source, folder)
    chosen = list(recipes.values())
    write_manifest(
        folder,
        msgspec.structs.replace(
            manifest,
            graphs=tuple(graphs),
            states=states,
            quantization=Quantization(chosen[0].name, tuple(applied)),
            tolerance=chosen[0].tolerance,
            tolerances={
                backend: recipe.tolerance
                for backend, recipe in recipes.items()
                if recipe.tolerance != chosen[0].tolerance
            },
            verification=NOT_VERIFIED,
        ),
    )


def check_recipes(
    recipes: Mapping[Backend, Recipe], calibration: str | Path | None, *, native: bool
) -> None:
    """What shows without a bundle. Raises InputError for a recipe that its backend, or the native
    one where it is asked for, cannot take, and for one that needs text where none is given."""
    for backend, recipe in recipes.items():
        check_backend(recipe, backend)
        check_calibration(recipe, calibration)
    if native:
        check_native(recipes)


def copy_unchanged(source: Bundle, folder: Path) -> None:
    """Copy what is neither graph, weights nor report of a bundle into another's folder."""
    graphs = source.manifest.graphs
    written = {name for graph in graphs for name in (graph.file, *graph.external_data)}
    for name in source.manifest.files:
        if name not in written and not name.startswith("reports/"):
            shutil.copyfile(source.file(name), folder / name)


def check_unquantized(source: Bundle) -> None:
    """Raises InputError for a bundle that is quantized."""
    recipe = source.manifest.quantization.recipe
    if recipe != "fp32":
        raise InputError(
            f"{source.path} is quantized already ({recipe}); give the fp32 bundle that it was made "
            "from"
        )


def _write_quantized_onnx(
    source: Bundle,
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None],
    calibration: str | Path | None,
    text_field: str,
    *,
    native: bool = False,
) -> tuple[list[GraphSpec], list[QuantizedTensor]]:
    rms = input_rms(source, lambda weight: recipe.outlier_threshold_of(weight) is not None)
    grams: dict[str, NDArray[np.float64]] = {}
    samples: dict[str, ActivationStatistics] = {}
    if recipe.uses_gptq or recipe.uses_samples:
        contexts = contexts_of(source, calibration, say, text_field)
        grams = input_grams(source, recipe.gptq_of, contexts)
        samples = input_samples(source, recipe.sampled, contexts)
    rounded: dict[str, BlockQuantized] = {}
    models: dict[str, ir.Model] = {}
    applied: dict[str, QuantizedTensor] = {}
    kinds = {g.file: g.kind for g in source.manifest.graphs if g.backend == "onnxruntime"}
    for file, kind in kinds.items():
        say(f"quantizing {kind} ({recipe.name})")
        model = ir.load(source.file(file))
        weights = sum(math.prod(w.matrix().shape) for w in weight_matrices(model, file))
        with progress(f"quantize {kind} (weights)", weights) as advance:
            for tensor in apply_recipe(model, recipe, file, rms, grams, rounded, samples, advance):
                applied[tensor.weight] = tensor
        quantize_states(model, source.manifest.states, recipe.state)
        models[file] = model
    save_models(models, folder)
    specs = [graph_spec(file, kind, models[file]) for file, kind in kinds.items()]
    before = {graph.file: graph.needs for graph in source.manifest.graphs}
    for spec in specs:
        if spec.needs != before[spec.file]:
            say(f"{spec.file} needed {before[spec.file]}; with {recipe.name} it needs {spec.needs}")
    if native:
        specs += write_native_plan(models, specs, source.manifest.model, folder)
    return specs, list(applied.values())


def contexts_of(
    source: Bundle,
    calibration: str | Path | None,
    say: Callable[[str], None],
    text_field: str = "text",
) -> NDArray[np.int64]:
    """Contexts [B, T] of the calibration text, or of text that the model writes.

    Raises InputError for a text that is too short or cannot be read.
    """
    if calibration is None:
        say("calibrating on text that the model writes itself")
        return sampled_contexts(source)
    contexts = calibration_contexts(
        source.tokenizer(),
        Path(calibration),
        text_field,
        end=source.manifest.tokenizer.end_of_text,
    )
    say(f"calibrating on {contexts.size:,} tokens of {calibration}")
    return contexts


def apply_recipe(
    model: ir.Model,
    recipe: Recipe,
    where: str,
    rms: Mapping[str, float] | None = None,
    grams: Mapping[str, NDArray[np.float64]] | None = None,
    rounded: dict[str, BlockQuantized] | None = None,
    samples: Mapping[str, ActivationStatistics] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> list[QuantizedTensor]:
    """Quantize a graph in place; what was done to each matrix.

    rms: root mean square of the inputs of every matrix whose scheme has a tail, by name.
    grams: second moments of the inputs of every matrix that GPTQ rounds. rounded: what matrices in
    blocks became, read and added to, so that a second graph of the same weights takes them over.
    samples: what matrices of static or smoothed schemes are multiplied with. advance(n): called
    after n more weights.

    Raises InputError naming a matrix that is still float32 though a rule says otherwise, and a
    rule that no matrix of the graph matches.
    """
    rms, grams, samples = rms or {}, grams or {}, samples or {}
    rounded = {} if rounded is None else rounded
    applied = []
    for weight in weight_matrices(model, where):
        rule = recipe.rule_for(weight.name)
        shape = tuple(int(dim) for dim in weight.matrix().shape)
        if isinstance(rule.scheme, BlockInt):
            blocks = rounded.get(weight.name)
            if blocks is None:
                blocks = quantize_weight(weight, rule.scheme, grams.get(weight.name))
                rounded[weight.name] = blocks
            apply_blocks(model, weight, rule.scheme, blocks, rms)
        elif isinstance(rule.scheme, DynamicInt8):
            apply_dynamic_int8(model, weight, rule.scheme, rms, samples.get(weight.name))
        elif isinstance(rule.scheme, StaticInt8Qdq):
            apply_static_int8(model, weight, rule.scheme, samples.get(weight.name))
        elif isinstance(rule.scheme, Half):
            apply_half(model, weight, rule.scheme)
        elif not isinstance(rule.scheme, Float32):
            raise InputError(f"{where}: {rule.scheme.name} is no scheme of ONNX graphs")
        drop_unused(model, weight)
        applied.append(QuantizedTensor(weight.name, rule.pattern, rule.scheme.name, shape))
        advance(math.prod(shape))
    for tensor in applied:
        if tensor.scheme != "float32" and tensor.weight in model.graph.initializers:
            raise InputError(
                f"{where}: {tensor.weight} was not quantized: it is still read as float32"
            )
    matched = {tensor.rule for tensor in applied}
    if idle := [rule.pattern for rule in recipe.rules if rule.pattern not in matched]:
        raise InputError(f"recipe {recipe.name}: the rule {idle[0]!r} decides about no matrix")
    return applied
