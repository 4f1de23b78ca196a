"""ExecuTorch programs are the float64 model too, in one subgraph, behind the same commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import executorch_bundles
import numpy as np
import pytest
import torch
from micro_checkpoint import VARIANTS, VOCABULARY, random_tokens, write_variant

from retnet_edge import cli
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.lowering.executorch_files import PREFILL_TOKENS
from retnet_edge.lowering.xnnpack_graph import XnnpackGraph
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.profile import profile
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.memory.memory import memory_supported

checkpoint = executorch_bundles.checkpoint
both = executorch_bundles.both
int8 = executorch_bundles.int8

TOLERANCE = 2e-5
OUTSIDE = {
    "aten_add_tensor",
    "aten_embedding_default",
    "aten_fmod_scalar",
    "aten_mul_tensor",
    "aten_unsqueeze_copy_default",
    "dim_order_ops__to_dim_order_copy_default",
}
"""The look-up, and n·θ in whole turns, in float64."""


def reference(checkpoint: Path) -> RetNet:
    model = load_checkpoint(checkpoint).model
    assert isinstance(model, RetNet)
    return model.double()


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "transformer"])
@pytest.mark.parametrize("tokens", [1, 5, PREFILL_TOKENS])
def test_the_graph_is_the_model(name: str, tokens: int, tmp_path: Path) -> None:
    """In PyTorch, from states that are not zero, at positions near 0 and near a million."""
    model = load_checkpoint(write_variant(name, tmp_path)).model
    assert isinstance(model, RetNet)
    graph = XnnpackGraph(model, tokens)
    ids = torch.from_numpy(random_tokens(1, tokens))
    states = [torch.randn_like(state) for state in model.initial_states(1)]
    exact = model.double()
    for position in (0, 3, 1_000_003):
        n = torch.tensor([position])
        with torch.no_grad():
            logits, *following = graph(ids, n, *states)
            wanted, after = exact(ids, states=[s.double() for s in states], position=n)
        assert (logits - wanted[:, -1]).abs().max() < TOLERANCE * wanted.abs().max()
        for found, state in zip(following, after, strict=True):
            assert (found - state).abs().max() < TOLERANCE * state.abs().max()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_a_session_is_the_model(both: Path, checkpoint: Path, length: int) -> None:
    """Prompts with and without a rest, steps after them, at the start and at a million."""
    session = open_session(Bundle.open(both), threads=1, backend="executorch")
    model = reference(checkpoint)
    ids = random_tokens(1, length + 3)
    for start in (0, 1_000_000):
        session.load_states([np.zeros_like(state) for state in session.states()], start)
        found = session.prefill(ids[0, :length].tolist()).copy()
        with torch.no_grad():
            wanted, _ = model(torch.from_numpy(ids), position=torch.tensor([start]))
        exact = wanted[0].numpy()
        largest = np.abs(exact).max()
        assert np.abs(found - exact[length - 1]).max() < TOLERANCE * largest
        for index in range(length, length + 3):
            assert np.abs(session.step(ids[0, index]) - exact[index]).max() < TOLERANCE * largest
        assert session.position == start + length + 3


def test_a_state_continues_under_the_other_backend(both: Path) -> None:
    """Same names, shapes and scale: whatever ran the first half, the second is the same."""
    bundle = Bundle.open(both)
    ids = random_tokens(1, 90)[0].tolist()
    outcomes = []
    for first, second in (("executorch", "onnxruntime"), ("onnxruntime", "executorch")):
        begun = open_session(bundle, threads=1, backend=first)
        begun.prefill(ids[:80])
        session = open_session(bundle, threads=1, backend=second)
        session.load_states(begun.states(), begun.position)
        outcomes.append((session.prefill(ids[80:]).copy(), session.states()))
    (logits, states), (other, other_states) = outcomes
    assert np.abs(logits - other).max() < TOLERANCE * np.abs(logits).max()
    for one, two in zip(states, other_states, strict=True):
        assert np.abs(one - two).max() < TOLERANCE * np.abs(one).max()


def test_states_are_copies_and_reset_empties_them(both: Path) -> None:
    session = open_session(Bundle.open(both), threads=1, backend="executorch")
    session.prefill([1, 2, 3])
    fork = session.states()
    kept = [state.copy() for state in fork]
    once = session.step(4).copy()
    session.step(5)
    assert all(np.array_equal(a, b) for a, b in zip(fork, kept, strict=True))
    session.load_states(fork, 3)
    assert np.array_equal(session.step(4), once)
    assert session.state_bytes == sum(state.nbytes for state in fork)
    session.reset()
    assert session.position == 0
    assert all(not state.any() for state in session.states())


def test_one_subgraph_and_nothing_new_outside(both: Path, int8: Path) -> None:
    """A change that adds an operator that XNNPACK does not take fails here."""
    for path in (both, int8):
        graphs = [g for g in Bundle.open(path).manifest.graphs if g.backend == "executorch"]
        assert [graph.kind for graph in graphs] == ["step", "prefill"]
        for graph in graphs:
            assert graph.delegation is not None
            assert graph.delegation.subgraphs == 1
            assert graph.delegation.rest.keys() - {"torchao_dequantize_affine_default"} == OUTSIDE
            assert graph.delegation.share > 0.95


def test_the_state_of_a_program_does_not_overlap_its_next_state(both: Path) -> None:
    """In Java outputs are not copied: planned places of inputs and outputs must be apart."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import Tensor

    graphs = {graph.file: graph for graph in Bundle.open(both).manifest.graphs}
    for file in ("step.pte", "prefill.pte"):
        plan = deserialize_pte_binary((both / file).read_bytes()).program.execution_plan[0]
        assert graphs[file].planned_bytes == sum(plan.non_const_buffer_sizes) > 0

        def places(indices: list[int], plan: Any = plan) -> list[tuple[int, int]]:
            found = []
            for index in indices:
                value = plan.values[index].val
                info = value.allocation_info if isinstance(value, Tensor) else None
                if info is not None:
                    size = 4 * int(np.prod(value.sizes))
                    found.append((info.memory_offset_low, info.memory_offset_low + size))
            return found

        states, following = places(list(plan.inputs[2:])), places(list(plan.outputs[1:]))
        assert len(states) == len(following) == 2
        for begin, end in states:
            for other, until in following:
                assert end <= other or until <= begin


def test_int8_is_near_and_smaller(both: Path, int8: Path) -> None:
    bundle = Bundle.open(int8)
    assert bundle.manifest.quantization.recipe == "int8"
    schemes = {t.weight: t.scheme for t in bundle.manifest.quantization.tensors}
    assert schemes["embedding.weight"] == "int8-channel"
    ids = random_tokens(1, 70)[0].tolist()
    exact = open_session(Bundle.open(both), threads=1, backend="executorch").prefill(ids)
    found = open_session(bundle, threads=1, backend="executorch").prefill(ids)
    assert 1e-5 < np.abs(found - exact).max() / np.abs(exact).max() < 0.2
    assert (int8 / "step.pte").stat().st_size < 0.6 * (both / "step.pte").stat().st_size


def test_generate_chooses_the_backend(both: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for backend in ("onnxruntime", "executorch"):
        arguments = ["generate", str(both), "-p", "the", "-n", "20", "--temperature", "0"]
        assert cli.main([*arguments, "--backend", backend]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]
    assert Bundle.open(both).manifest.model.vocab_size == VOCABULARY


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English that the micro tokenizer knows, some thousand tokens of it."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"the {a} of the {b}, and {b} was {a}.\n" for a in WORDS for b in WORDS]
    path.write_text("".join(lines), encoding="utf-8")
    return path


WORDS = ("sea", "whale", "house", "people", "country", "year", "law", "ship", "day", "state")


@pytest.mark.slow
def test_calibrated_recipes(both: Path, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """One subgraph, no operator outside that float32 has inside, and near the float32 program."""
    tokenizer = load_checkpoint(checkpoint).tokenizer
    ids = tokenizer.encode(text.read_text(encoding="utf-8")[-400:]).ids[:70]  # within the ranges
    exact = open_session(Bundle.open(both), threads=1, backend="executorch").prefill(ids)
    source = export(checkpoint, tmp_path / "fp32.edge", to=("executorch",), say=lambda _: None)
    for recipe, scheme in (("int8-static", "int8-static"), ("int4", "int4-group32-gptq")):
        with pytest.raises(InputError, match=f"recipe {recipe} is calibrated on text; give a file"):
            quantize(source, tmp_path / "no", recipe=recipe, checkpoint=checkpoint)
        out = tmp_path / f"{recipe}.edge"
        options = {"recipe": recipe, "checkpoint": checkpoint, "calibration": text}
        bundle = Bundle.open(quantize(source, out, say=lambda _: None, **options))  # type: ignore[arg-type]
        schemes = {t.weight: t.scheme for t in bundle.manifest.quantization.tensors}
        assert schemes["blocks.0.retention.qkvg.weight"] == scheme
        assert schemes["blocks.1.ffn.out.weight"] == schemes["head.weight"] == "int8-channel"
        for graph in bundle.manifest.graphs:
            assert graph.delegation is not None
            assert graph.delegation.subgraphs == 1
            assert graph.delegation.rest.keys() - {"torchao_dequantize_affine_default"} == OUTSIDE
        session = open_session(bundle, threads=1)
        found = session.prefill(ids).copy()
        assert 1e-5 < np.abs(found - exact).max() / np.abs(exact).max() < 0.3
        session.reset()
        for token in ids:
            stepped = session.step(token)
        # one set of ranges and scales: the step and the prefill are the same function
        assert np.abs(stepped - found).max() < 0.1 * np.abs(exact).max()
    assert not (tmp_path / "no").exists()


@pytest.mark.skipif(not memory_supported(), reason="needs /proc/self/smaps_rollup")
@pytest.mark.slow
def test_verify_shows_both_backends_and_several_bundles(
    both: Path, int8: Path, checkpoint: Path, text: Path, tmp_path: Path, capfd: Any
) -> None:
    """A column a backend of a bundle; each held to its own tolerance; a page of them all."""
    copies = []
    for path in (both, int8):
        copies.append(tmp_path / path.name)
        shutil.copytree(path, copies[-1])
    page = tmp_path / "page.html"
    options = ["--checkpoint", str(checkpoint), "--text", str(text), "--no-baseline", "--threads=1"]
    options += ["--tokens", "300", "--context", "150", "--memory-steps", "800"]
    cli.main(["verify", *map(str, copies), *options, "--json", "--report", str(page)])
    shown = json.loads(capfd.readouterr().out)
    assert list(shown["bundles"]) == [str(path) for path in copies]
    for verdict in shown["bundles"].values():
        first, second = verdict["backends"]
        assert (first["backend"], second["backend"]) == ("onnxruntime", "executorch")
        assert first["planned_bytes"] is None
        assert second["planned_bytes"] > second["memory"]["state_bytes"]
        for measured in (first, second):
            assert measured["memory"]["load_seconds"] > 0
            assert measured["memory"]["step_milliseconds"][1] > 0
        (between,) = verdict["between"]
        assert between["figures"]["tokens"] == 150
    fp32 = shown["bundles"][str(copies[0])]
    assert fp32["between"][0]["figures"]["max_abs_logit_error"] < 1e-4
    errors = [m["parity"]["figures"]["max_abs_logit_error"] for m in fp32["backends"]]
    assert 0 < max(errors) < 2e-4
    assert shown["between"] == []  # fp32 and int8 are two recipes
    words = page.read_text(encoding="utf-8")
    for expected in (
        "Side by side",
        f"{copies[1].name} · executorch",
        "planned by the step&#39;s own",
    ):
        assert expected in words
    report = Bundle.open(copies[0]).file("reports/report.html").read_text(encoding="utf-8")
    assert "executorch: Figures and their bounds" in report


def test_verify_of_one_backend_leaves_the_bundle_unverified(
    both: Path, checkpoint: Path, text: Path, tmp_path: Path, capfd: Any
) -> None:
    copy = tmp_path / "copy.edge"
    shutil.copytree(both, copy)
    options = ["--checkpoint", str(checkpoint), "--text", str(text), "--no-baseline", "--threads=1"]
    options += ["--tokens", "100", "--context", "50", "--memory-steps", "100"]
    assert cli.main(["verify", str(copy), *options, "--backend", "onnxruntime", "--json"]) == 1
    verdict = json.loads(capfd.readouterr().out)
    assert [m["backend"] for m in verdict["backends"]] == ["onnxruntime"]
    assert "executorch was not measured" in verdict["reasons"]
    assert Bundle.open(copy).manifest.verification.status == "unverified"


def test_a_step_by_operator(both: Path) -> None:
    """XNNPACK's kernels and ExecuTorch's own operators, each called as often as the graph says."""
    operators = profile(Bundle.open(both), steps=20, threads=1, backend="executorch")
    calls = {operator.name: operator.calls for operator in operators}
    products = sum(count for name, count in calls.items() if name.startswith("Fully Connected"))
    assert products == 20 * (2 * 4 + 1)  # qkvg, out, inner, out of two blocks; the head
    assert calls["embedding.out"] == calls["(between operators)"] == 20
    assert all(operator.microseconds >= 0 for operator in operators)
