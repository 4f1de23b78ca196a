"""What holds for every recipe and flavour: prepared or not, optimized or not, batched or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from micro_checkpoint import exported_once, random_tokens
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.export.export import FLAVOURS
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.runtime.backends.ort.graph import batch_shares_scales, main_graph
from retnet_edge.runtime.backends.ort.options import session_options
from retnet_edge.runtime.backends.ort.prepacked import find_prepared
from retnet_edge.runtime.backends.ort.prepare import prepare
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.state_values import state_values
from retnet_edge.runtime.session.protocol import state_shape
from retnet_edge.runtime.text.batch import Batch

RECIPES_AND_STATES = [
    *((recipe.name, "float32") for recipe in RECIPES["onnxruntime"]),
    ("int8", "float16"),
    ("int8", "int8"),
    ("int4-weight", "int8"),
]
LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
TOKENS = random_tokens(1, 300)[0].tolist()
ROWS = 4
Floats = NDArray[np.float64]


@pytest.fixture(scope="module", params=FLAVOURS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of one flavour; no test changes it."""
    return exported_once(tmp_path_factory.getbasetemp(), "base", request.param).bundle


@pytest.fixture(scope="module", params=RECIPES_AND_STATES, ids="-".join)
def path(
    request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A quantized bundle of each recipe, flavour and state."""
    recipe, state = request.param
    if recipe == "int8-static-16" and "portable" in exported.parent.name:
        pytest.skip("quantize refuses it: ONNX 18 lacks its operators (test_static_bundles.py)")
    folder = tmp_path_factory.mktemp("quantized")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat by the door\n" * 60)
    needs = recipe == "int4" or recipe.startswith("int8-static")
    return quantize(
        exported,
        folder / "q.edge",
        recipe=recipe,
        state=state,
        calibration=text if needs else None,
        say=lambda _: None,
    )


def figures(path: Path) -> list[NDArray[Any]]:
    session = open_session(Bundle.open(path), threads=1)
    logits = [session.prefill(TOKENS).copy(), *(session.step(t).copy() for t in TOKENS[:5])]
    return [*logits, *session.states()]


def run_at(bundle: Bundle, level: Any) -> list[Floats]:
    """Logits of a prompt and three steps, and the states, at a level of optimization."""
    options = session_options(bundle.manifest, 1)
    options.graph_optimization_level = level
    graphs = {
        kind: onnxruntime.InferenceSession(
            str(bundle.file(bundle.manifest.graph(kind).file)), options, ["CPUExecutionProvider"]
        )
        for kind in ("prefill", "step")
    }
    specs = bundle.manifest.states
    states = [np.zeros(state_shape(spec, 0), dtype=spec.dtype) for spec in specs]
    found, position = [], 0
    for kind, tokens in (("prefill", TOKENS[:20]), *(("step", [token]) for token in TOKENS[20:23])):
        feeds = {"tokens": np.array([tokens]), "position": np.array([position])}
        feeds |= {spec.input: state for spec, state in zip(specs, states, strict=True)}
        names = ["logits", *(spec.output for spec in specs)]
        logits, *states = graphs[kind].run(names, feeds)
        position += len(tokens)
        found.append(logits.astype(np.float64))
    return [*found, *state_values(states)]


def test_every_level_of_optimization_computes_the_same(path: Path) -> None:
    """Hosts other than ours fold no constants and fuse no operators, or do."""
    bundle = Bundle.open(path)
    wanted = run_at(bundle, LEVELS[-1])
    assert all(np.abs(values).max() > 1e-3 for values in wanted)
    for level in LEVELS[:-1]:
        for found, values in zip(run_at(bundle, level), wanted, strict=True):
            assert np.abs(found - values).max() < 1e-3 * np.abs(values).max(), level


def test_a_prepared_bundle_computes_the_same_bits(path: Path) -> None:
    before = figures(path)
    prepare(path, say=lambda _: None)
    opened = Bundle.open(path)
    assert find_prepared(opened, main_graph(opened)[1].file) is not None
    for mine, other in zip(figures(path), before, strict=True):
        np.testing.assert_array_equal(mine, other)


def batched(bundle: Bundle, count: int, row: int, neighbours: list[int]) -> list[NDArray[Any]]:
    """Logits and states of the sequence in row `row` of `count`, beside others."""
    batch = Batch(bundle, ROWS, threads=1)
    numbers = [batch.join() for _ in range(count)]
    mine = numbers[row]
    for i, number in enumerate(numbers):
        if number != mine:
            batch.prefill(number, neighbours[10 * i : 10 * i + 15])
    found = [batch.prefill(mine, TOKENS[:33]).copy()]
    for t in range(8):
        fed = {number: neighbours[60 + 10 * i + t] for i, number in enumerate(numbers)}
        found.append(batch.step(fed | {mine: TOKENS[33 + t]})[mine].copy())
    return [*found, *state_values(batch.leave(mine).states)]


def test_what_neighbours_are_changes_no_bit_and_how_many_only_rounding(path: Path) -> None:
    """As docs/how-to/run.md says, of every recipe that a batch takes."""
    bundle = Bundle.open(path)
    if batch_shares_scales(bundle.manifest):
        with pytest.raises(InputError, match="quantizes the activations of a whole batch"):
            Batch(bundle, 2)
        return
    if main_graph(bundle)[0] != "prefill":
        with pytest.raises(InputError, match="no graph that takes both"):
            Batch(bundle, 2)
        return
    alone = batched(bundle, 1, 0, TOKENS)
    for count, row in ((2, 0), (3, 2), (4, 1)):
        one, other = (batched(bundle, count, row, TOKENS[n:]) for n in (100, 170))
        for mine, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, wanted)
        for mine, wanted in zip(one, alone, strict=True):
            np.testing.assert_allclose(mine, wanted, atol=5e-3 * np.abs(wanted).max())
