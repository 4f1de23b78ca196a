"""How large the inputs of products are in a bundle, and bundles whose every input is split."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs_by_hand import TOLERANCE
from micro_checkpoint import Exported, exported_once
from numpy.typing import NDArray
from torch import Tensor, nn

from retnet_edge.errors import InputError
from retnet_edge.model.retnet import RetNet
from retnet_edge.quantize.calibration import instrumented
from retnet_edge.quantize.calibration.activations import TOKENS, input_rms
from retnet_edge.quantize.calibration.instrumented import InstrumentedGraph
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import BlockInt8, DynamicInt8
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.writer import write_manifest
from retnet_edge.runtime.parity.replay import run_steps
from retnet_edge.runtime.session.protocol import Session

VARIANTS = ("untied", "transformer")  # whose head is tied
EACH = pytest.mark.parametrize("variant", VARIANTS)
SCHEMES = pytest.mark.parametrize("scheme", [BlockInt8, DynamicInt8])
KERNEL_BOUND = 1e-4

Variant = Callable[[str], Exported]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """A variant's fp32 bundle, made when it is asked for; no test changes it."""
    return lambda name: exported_once(tmp_path_factory.getbasetemp(), name)


def everything(weight: str) -> bool:
    return True


def sampled(session: Session, vocabulary: int) -> list[int]:
    """The text that the model writes itself, drawn by inverting its distribution."""
    rng = np.random.default_rng(0)
    tokens = [int(rng.integers(vocabulary))]
    while len(tokens) < TOKENS:
        logits = session.step(tokens[-1]).reshape(-1).astype(np.float64)
        sums = np.cumsum(np.exp(logits - logits.max()))
        tokens.append(int(np.searchsorted(sums / sums[-1], rng.random(), side="right")))
    return tokens


@torch.no_grad()
def linear_inputs(source: Exported, tokens: list[int]) -> dict[str, float]:
    """Root mean square of what every nn.Linear of the float64 model is given, by weight."""
    seen: dict[str, float] = {}
    model = source.model

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = float(inputs[0].square().mean().sqrt())

        return hook

    tied = model.head.weight is model.embedding.weight
    names = {
        name: "embedding.weight" if tied and name == "head" else f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    hooks = [model.get_submodule(n).register_forward_pre_hook(note(w)) for n, w in names.items()]
    options = {"form": "recurrent"} if isinstance(model, RetNet) else {}
    model(torch.tensor([tokens]), **options)
    for hook in hooks:
        hook.remove()
    return seen


@EACH
def test_values_are_those_of_the_float64_model_on_the_same_text(
    variant: str, exported: Variant
) -> None:
    """Every product's, the head's among them; a matrix that is only looked up has none."""
    source = exported(variant)
    bundle = Bundle.open(source.bundle)
    tokens = sampled(open_session(bundle, threads=1), bundle.manifest.model.vocab_size)
    wanted = linear_inputs(source, tokens)
    found = input_rms(bundle, everything)
    assert found.keys() == wanted.keys()
    assert len(found) == 9  # four in each of two layers, and the head
    assert ("embedding.weight" in found) == (variant != "untied")
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-4)
    other = linear_inputs(source, tokens[: TOKENS // 2])
    assert any(value != pytest.approx(other[name], rel=1e-3) for name, value in found.items())


def test_the_weights_wanted_and_no_others(exported: Variant) -> None:
    """What else is observed changes nothing, and a second run gives the same to the bit."""
    bundle = Bundle.open(exported("untied").bundle)
    asked: list[str] = []

    def wanted(weight: str) -> bool:
        asked.append(weight)
        return weight.endswith(".out.weight")

    found = input_rms(bundle, wanted)
    assert found.keys() == {f"blocks.{i}.{part}.out.weight" for i in (0, 1)
                            for part in ("retention", "ffn")}  # fmt: skip
    assert len(asked) == len(set(asked)) == 10  # the embedding, too
    assert input_rms(bundle, wanted) == found
    whole = input_rms(bundle, everything)
    assert {name: whole[name] for name in found} == pytest.approx(found, rel=1e-5)


@EACH
def test_nothing_wanted_needs_no_session(
    variant: str, exported: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding that is only looked up is no product's, and needs none either."""
    bundle = Bundle.open(exported(variant).bundle)

    def build(*args: Any) -> Any:
        raise AssertionError("a session was built")

    monkeypatch.setattr(instrumented, "InstrumentedGraph", build)
    assert input_rms(bundle, lambda weight: False) == {}
    if variant == "untied":
        assert input_rms(bundle, lambda weight: weight == "embedding.weight") == {}
    else:
        with pytest.raises(AssertionError, match="a session was built"):
            input_rms(bundle, lambda weight: weight == "embedding.weight")


def test_the_bundle_is_only_read(exported: Variant, tmp_path: Path) -> None:
    """And the values exposed are outputs of the graph in memory alone."""
    path = tmp_path / "b.edge"
    shutil.copytree(exported("untied").bundle, path)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    bundle = Bundle.open(path)
    input_rms(bundle, everything)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before
    assert Bundle.open(path).manifest == bundle.manifest


def test_inputs_that_are_all_zero_count_as_one(exported: Variant, tmp_path: Path) -> None:
    """A model of zeros, whose tails are as its bodies are: nothing is divided by their rms."""
    path = tmp_path / "zeros.edge"
    shutil.copytree(exported("untied").bundle, path)
    weights = path / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    write_manifest(path, Bundle.open(exported("untied").bundle).manifest)
    found = input_rms(Bundle.open(path), everything)
    assert len(found) == 9
    assert set(found.values()) == {1.0}


@EACH
def test_an_exposed_step_is_the_step(variant: str, exported: Variant) -> None:
    """The same logits and states as in the runtime's session, from the empty state on."""
    bundle = Bundle.open(exported(variant).bundle)
    model = ir.load(bundle.file(bundle.manifest.graph("step").file))
    inner = [node.outputs[0] for node in model.graph if node.op_type == "MatMul"][:2]
    step = InstrumentedGraph(bundle, model, [*inner, inner[0], model.graph.outputs[0]])
    states = step.zero_states()
    tokens = np.random.default_rng(1).integers(0, 384, 12)
    session = open_session(bundle, threads=1)
    wanted = run_steps(session, tokens)
    for position, token in enumerate(tokens):
        found, states = step.run(int(token), position, states)
        np.testing.assert_allclose(found["logits"][0], wanted[position], rtol=1e-4, atol=1e-5)
        assert {str(value.name) for value in inner} <= found.keys()
    for spec, state in zip(bundle.manifest.states, session.states(), strict=True):
        np.testing.assert_allclose(states[spec.input], state, rtol=1e-4, atol=1e-5)


@EACH
@SCHEMES
@pytest.mark.parametrize("tail", [1.0, 1e3])
def test_a_bundle_whose_every_input_is_split(
    variant: str,
    scheme: type[BlockInt8 | DynamicInt8],
    tail: float,
    exported: Variant,
    tmp_path: Path,
) -> None:
    """The kernels do what their formulas say, with tails that are all zero too; the model is near
    that of fp32, in steps and in a prefill.
    """
    source = Bundle.open(exported(variant).bundle)
    everywhere = Recipe("everywhere", (Rule("*", scheme(tail=tail)),), TOLERANCE)
    out = quantize(source.path, tmp_path / "q.edge", recipe=everywhere, say=lambda text: None)
    bundle = Bundle.open(out)
    schemes = {tensor.scheme for tensor in bundle.manifest.quantization.tensors}
    assert schemes == {scheme(tail=tail).name}
    tokens = np.random.default_rng(6).integers(0, 384, 16)
    found = measure_kernel_parity(bundle, tokens)
    assert found.products == (9 if scheme is BlockInt8 else 18)
    assert found.product_error <= KERNEL_BOUND
    assert found.logit_error_median <= KERNEL_BOUND
    whole, small = open_session(source, threads=1), open_session(bundle, threads=1)
    assert 1e-4 < distance(run_steps(small, tokens), run_steps(whole, tokens)) < 0.1
    if variant != "transformer":  # whose bundle has no prefill graph
        whole.reset()
        small.reset()
        # one scale for all 16 inputs of a product of int8-dynamic
        assert distance(small.prefill(tokens.tolist()), whole.prefill(tokens.tolist())) < 0.2


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_the_baseline_is_quantized_by_the_built_in_recipes(
    recipe: str, exported: Variant, tmp_path: Path
) -> None:
    out = quantize(
        exported("transformer").bundle, tmp_path / "q.edge", recipe=recipe, say=lambda text: None
    )
    tokens = np.random.default_rng(7).integers(0, 384, 16)
    found = measure_kernel_parity(Bundle.open(out), tokens)
    assert found.products == (9 if recipe == "int8" else 18)
    assert found.product_error <= KERNEL_BOUND


def test_a_weight_that_no_rule_matches_is_refused_before_the_sampling(
    exported: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instrumented, "InstrumentedGraph", None)
    partial = Recipe("partial", (Rule("*.out.weight", BlockInt8(tail=2.0)),), TOLERANCE)
    with pytest.raises(InputError, match=r"recipe partial: no rule matches the weight"):
        quantize(exported("untied").bundle, tmp_path / "q.edge", recipe=partial)
    assert not list(tmp_path.iterdir())
