"""Quantized bundles of micro models: what is in them, what they compute, what was left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import micro_quantized
import numpy as np
import onnx
import onnx_ir as ir
from micro_checkpoint import Exported
from micro_quantized import EACH, TOKENS, Quantized, arrays, distance, edited, refused
from onnx import TensorProto, helper

from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.graphs.block_tensors import read_blocks, write_blocks
from retnet_edge.quantize.numerics.rounding import quantize_blocks, quantize_channels
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import BlockInt8, Float32
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.writer import update_manifest
from retnet_edge.runtime.parity.replay import run_steps

exported = micro_quantized.exported
quantized = micro_quantized.quantized


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and time of change of every file."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def initializers(bundle: Path, kind: str) -> dict[str, onnx.TensorProto]:
    model = onnx.load(str(bundle / f"{kind}.onnx"), load_external_data=False)
    return {tensor.name: tensor for tensor in model.graph.initializer}


def checkpoint_matrices(source: Exported) -> dict[str, tuple[int, ...]]:
    """Name -> [outputs, inputs] of every matrix of the checkpoint; qkvg and the like are one."""
    model = load_checkpoint(source.checkpoint).model
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim == 2}


@EACH
def test_every_matrix_is_quantized(
    quantized: Quantized, exported: dict[str, Exported], variant: str, recipe: str
) -> None:
    bundle = quantized(variant, recipe)
    tensors = bundle.manifest.quantization.tensors
    assert bundle.manifest.quantization.recipe == recipe
    matrices = checkpoint_matrices(exported[variant])
    parameters = sum(int(np.prod(shape)) for shape in matrices.values())
    assert sum(int(np.prod(t.shape)) for t in tensors) == parameters
    assert len({t.weight for t in tensors}) == len(tensors)
    assert "embedding.weight" in {t.weight for t in tensors}
    assert ("head.weight" in {t.weight for t in tensors}) == (variant == "untied")
    for tensor in tensors:
        tailed = tensor.weight.endswith(".out.weight") or not tensor.weight.startswith("blocks.")
        block = "int8-block128-tail2" if tailed else "int8-block128"
        assert tensor.scheme == (block if recipe == "int8" else "int8-dynamic-tail1.5")
    for kind in ("step", "prefill"):
        left = [
            tensor.name
            for tensor in initializers(bundle.path, kind).values()
            if tensor.data_type == TensorProto.FLOAT and tensor.name.endswith("weight")
            if len(tensor.dims) == 2
        ]
        assert left == []


@EACH
def test_the_codes_on_disk_are_those_of_the_fp32_weights(
    quantized: Quantized, exported: dict[str, Exported], variant: str, recipe: str
) -> None:
    bundle = quantized(variant, recipe)
    weights = arrays(exported[variant].bundle, "step")
    for kind in ("step", "prefill"):
        found = arrays(bundle.path, kind)
        for tensor in bundle.manifest.quantization.tensors:
            weight = weights[tensor.weight]
            weight = weight if tensor.weight == "embedding.weight" else weight.T
            assert weight.shape == tensor.shape
            if recipe == "int8":
                codes, scales = quantize_blocks(weight, 128)
            else:
                codes, scales = quantize_channels(weight)
                codes = codes.T
            np.testing.assert_array_equal(found[f"{tensor.weight}.codes"], codes)
            if f"{tensor.weight}.scales" in found:
                np.testing.assert_array_equal(found[f"{tensor.weight}.scales"], scales)
            else:  # a lookup alone reads them with the rank of its codes
                np.testing.assert_array_equal(found[f"{tensor.weight}.scales3"][..., 0], scales)


@EACH
def test_codes_lie_once_in_one_weights_file(
    quantized: Quantized, variant: str, recipe: str
) -> None:
    bundle = quantized(variant, recipe)
    assert [p.name for p in bundle.path.glob("*.bin")] == ["weights.bin"]
    raw = (bundle.path / "weights.bin").read_bytes()
    places: dict[str, set[str]] = {}
    for kind in ("step", "prefill"):
        graph = bundle.manifest.graph("step" if kind == "step" else "prefill")
        assert graph.external_data == ("weights.bin",)
        for name, tensor in initializers(bundle.path, kind).items():
            if name.endswith(".codes"):
                where = {entry.key: entry.value for entry in tensor.external_data}
                assert where["location"] == "weights.bin"
                places.setdefault(name, set()).add(where["offset"])
    assert places.keys() == {f"{t.weight}.codes" for t in bundle.manifest.quantization.tensors}
    assert all(len(offsets) == 1 for offsets in places.values())
    codes = arrays(bundle.path, "step")
    for name in places:
        assert raw.count(codes[name].tobytes()) == 1
    assert (bundle.path / "step.onnx").stat().st_size < 100_000


def test_scales_are_constants_that_the_kernels_take(quantized: Quantized) -> None:
    """No Cast stands before a kernel: where a host does not fold it, all outputs would be 0."""
    bundle = quantized("base", "int4-weight")
    stored = arrays(bundle.path, "step")
    graph = onnx.load(str(bundle.file("step.onnx")), load_external_data=False).graph
    kernels = [n for n in graph.node if n.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    assert len(kernels) > 8
    for node in kernels:
        scales = stored[node.input[2]]
        assert scales.dtype == np.float32
        if node.op_type == "MatMulNBits" and node.input[2].startswith("blocks."):
            # of 4 bits: on the grid of float16 still
            np.testing.assert_array_equal(scales, scales.astype(np.float16))


def with_casts(model: ir.Model) -> None:
    """Scales as some older versions stored them: float16, and a Cast in the graph."""
    for name, value in list(model.graph.initializers.items()):
        if name.endswith(".scales") and name.startswith("blocks."):
            assert value.const_value is not None
            halves = value.const_value.numpy().astype(np.float16)
            value.const_value = ir.tensor(halves, name=name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            for node, index in list(value.uses()):
                if node is not cast:
                    node.replace_input_with(index, cast.outputs[0])
            model.graph.insert_before(model.graph[0], cast)


def test_blocks_of_an_older_bundle_are_read(quantized: Quantized) -> None:
    """And where they are written again, nothing is cast any more."""
    model = ir.load(quantized("base", "int4-weight").file("step.onnx"))
    wanted = read_blocks(model)
    casts = sum(node.op_type == "Cast" for node in model.graph)
    with_casts(model)
    assert sum(node.op_type == "Cast" for node in model.graph) > casts
    found = read_blocks(model)
    assert found.keys() == wanted.keys()
    for name, blocks in found.items():
        np.testing.assert_array_equal(blocks.scales, wanted[name].scales)
    write_blocks(model, {n: replace(b, scales=b.scales * 2) for n, b in found.items()})
    doubled = read_blocks(model)
    for name, blocks in doubled.items():
        np.testing.assert_array_equal(blocks.scales, 2 * wanted[name].scales)
    assert sum(node.op_type == "Cast" for node in model.graph) == casts
    scales = [node.inputs[2] for node in model.graph if node.op_type == "MatMulNBits"]
    assert all(v is not None and v.dtype == ir.DataType.FLOAT for v in scales)


@EACH
def test_logits_are_near_those_of_fp32(
    quantized: Quantized, exported: dict[str, Exported], variant: str, recipe: str
) -> None:
    """A weight is off by at most 1/254 of its block's largest, an activation alike: per product
    some 0.5 % of noise, over nine products and a recurrence a few percent. A wrong scale, a
    transposed matrix or a shifted zero point gives 100 %.
    """
    whole = open_session(Bundle.open(exported[variant].bundle), threads=1)
    small = open_session(quantized(variant, recipe), threads=1)
    wanted, found = run_steps(whole, TOKENS), run_steps(small, TOKENS)
    assert 1e-4 < distance(found, wanted) < 0.1
    for state, other in zip(small.states(), whole.states(), strict=True):
        assert distance(state, other) < 0.1
    whole.reset()
    small.reset()
    assert distance(small.prefill(TOKENS.tolist()), whole.prefill(TOKENS.tolist())) < 0.1


@EACH
def test_the_rest_of_the_bundle(
    quantized: Quantized, exported: dict[str, Exported], variant: str, recipe: str
) -> None:
    bundle, source = quantized(variant, recipe), Bundle.open(exported[variant].bundle)
    assert bundle.manifest.tolerance == find_recipe(recipe).tolerance
    assert bundle.manifest.verification.status == "unverified"
    for field in ("model", "states", "tokenizer", "provenance"):
        assert getattr(bundle.manifest, field) == getattr(source.manifest, field)
    for graph, before in zip(bundle.manifest.graphs, source.manifest.graphs, strict=True):
        assert (graph.inputs, graph.outputs) == (before.inputs, before.outputs)
    assert bundle.manifest.files.keys() == source.manifest.files.keys()
    for name in ("tokenizer.json", "golden.npz"):
        assert bundle.manifest.files[name] == source.manifest.files[name]


def test_the_bundle_that_is_quantized_is_only_read(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    """Its reports, which are about other figures, are not taken over."""
    source = tmp_path / "fp32.edge"
    shutil.copytree(exported["base"].bundle, source)
    (source / "reports").mkdir()
    (source / "reports/report.html").write_text("<html></html>")
    update_manifest(Bundle.open(source))
    before = snapshot(source)
    out = quantize(source, tmp_path / "q.edge", say=lambda text: None)
    assert snapshot(source) == before
    assert sorted(os.listdir(tmp_path)) == ["fp32.edge", "q.edge"]
    assert not any(name.startswith("reports/") for name in Bundle.open(out).manifest.files)
    assert (
        out.joinpath("weights.bin").stat().st_size < source.joinpath("weights.bin").stat().st_size
    )


def test_the_same_bundle_gives_the_same_bytes(
    quantized: Quantized, exported: dict[str, Exported], tmp_path: Path
) -> None:
    first = quantized("base", "int8").path
    again = quantize(exported["base"].bundle, tmp_path / "again.edge", say=lambda text: None)
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_what_is_refused_leaves_nothing(
    exported: dict[str, Exported], quantized: Quantized, tmp_path: Path
) -> None:
    whole, small = exported["base"].bundle, quantized("base", "int8").path
    out = tmp_path / "q.edge"
    unknown = "unknown recipe 'int3'; known for onnxruntime: int8, int8-dynamic"
    assert refused(whole, out, recipe="int3").startswith(unknown)
    assert refused(small, out) == (
        f"{small} is quantized already (int8); give the fp32 bundle that it was made from"
    )
    assert "exists already" in refused(whole, small)
    tolerance = find_recipe("int8").tolerance
    idle = Recipe("idle", (Rule("*", BlockInt8()), Rule("tail.*", Float32())), tolerance)
    assert refused(whole, out, recipe=idle) == (
        "recipe idle: the rule 'tail.*' decides about no matrix"
    )
    partial = Recipe("partial", (Rule("blocks.*", BlockInt8()),), tolerance)
    assert "no rule matches the weight embedding.weight" in refused(whole, out, recipe=partial)


def test_a_matrix_that_cannot_be_quantized_is_named(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    name = "blocks.1.ffn.out.weight"

    def read_once_more(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Abs", [name], ["unused"]))

    bundle = edited(exported["base"].bundle, tmp_path / "b.edge", read_once_more)
    sentence = refused(bundle, tmp_path / "q.edge")
    assert sentence.startswith(f"step.onnx: {name} was not quantized: Abs reads it")
