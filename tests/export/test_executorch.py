"""ExecuTorch programs are the float64 model too, in one subgraph, behind the same commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from micro_checkpoint import VARIANTS, VOCABULARY, random_tokens, write_variant

from retnet_edge import cli
from retnet_edge.checkpoint import load_checkpoint
from retnet_edge.errors import InputError
from retnet_edge.executorch_files import PREFILL_TOKENS
from retnet_edge.export.export import export
from retnet_edge.model import RetNet
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.manifest import MANIFEST_FILE, decode, encode
from retnet_edge.runtime.session import open_session
from retnet_edge.runtime.writer import write_manifest
from retnet_edge.xnnpack_graph import XnnpackGraph

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant("base", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fp32 bundle for both backends."""
    out = tmp_path_factory.mktemp("both") / "both.edge"
    return export(checkpoint, out, to=("onnx", "executorch"), say=lambda _: None)


@pytest.fixture(scope="module")
def int8(both: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "int8.edge"
    return quantize(both, out, recipe="int8", checkpoint=checkpoint, say=lambda _: None)


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

    for file in ("step.pte", "prefill.pte"):
        plan = deserialize_pte_binary((both / file).read_bytes()).program.execution_plan[0]

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


def test_what_is_refused(both: Path, int8: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Each one sentence; nothing is left."""
    out = tmp_path / "out.edge"
    with pytest.raises(InputError, match="is quantized from its checkpoint; give it with --check"):
        quantize(both, out, recipe="int8", say=lambda _: None)
    other = write_variant("affine", tmp_path / "other")
    with pytest.raises(InputError, match="was not made from"):
        quantize(both, out, recipe="int8", checkpoint=other, say=lambda _: None)
    with pytest.raises(InputError, match="recipe 'int4' is for executorch; known for onnxruntime"):
        quantize(both, out, recipe="int4", checkpoint=checkpoint, say=lambda _: None)
    with pytest.raises(InputError, match=r"unknown backend 'tflite'; --to takes: onnx, executorch"):
        export(checkpoint, out, to=("tflite",))
    transformer = write_variant("transformer", tmp_path / "transformer")
    with pytest.raises(InputError, match="Transformer baseline is exported to onnx only"):
        export(transformer, out, to=("executorch",))
    assert not out.exists()


def damaged(both: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the bundle with its step.pte replaced and the manifest telling the new hash."""

    shutil.copytree(both, folder)
    for name, raw in changes.items():
        (folder / f"{name}.pte").write_bytes(raw)
    manifest = decode((folder / MANIFEST_FILE).read_bytes(), "")
    write_manifest(folder, manifest)
    return folder


def test_programs_that_are_damaged_or_of_another_model(both: Path, tmp_path: Path) -> None:
    raw = (both / "step.pte").read_bytes()

    mutated = tmp_path / "mutated"
    shutil.copytree(both, mutated)
    (mutated / "step.pte").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(InputError, match=r"step\.pte was changed: its SHA-256 is"):
        Bundle.open(mutated)
    cut = damaged(both, tmp_path / "cut", step=raw[:1000])
    with pytest.raises(InputError, match=r"step\.pte: ExecuTorch [\d.]+ cannot load the program"):
        open_session(Bundle.open(cut), backend="executorch")
    newer = damaged(both, tmp_path / "newer", step=raw[:4] + b"ET99" + raw[8:])
    with pytest.raises(InputError, match=r"step\.pte: ExecuTorch [\d.]+ cannot load the program"):
        open_session(Bundle.open(newer), backend="executorch")
    swapped = damaged(both, tmp_path / "swapped", step=(both / "prefill.pte").read_bytes())
    with pytest.raises(InputError, match=r"the inputs have the shapes .*the manifest says"):
        open_session(Bundle.open(swapped), backend="executorch")


def test_a_manifest_whose_program_has_another_shape(both: Path, tmp_path: Path) -> None:

    folder = tmp_path / "bundle"
    shutil.copytree(both, folder)
    manifest = decode((folder / MANIFEST_FILE).read_bytes(), "")
    graphs = []
    for graph in manifest.graphs:
        if graph.file == "step.pte":
            wide = msgspec.structs.replace(graph.inputs[2], shape=(2, 2, 10, 14))
            graph = msgspec.structs.replace(
                graph, inputs=(*graph.inputs[:2], wide, *graph.inputs[3:])
            )
        graphs.append(graph)
    changed = msgspec.structs.replace(manifest, graphs=tuple(graphs))
    (folder / MANIFEST_FILE).write_bytes(encode(changed))
    with pytest.raises(InputError, match=r"step\.pte has state_0 as float32 \[2, 2, 10, 14\]"):
        Bundle.open(folder)


def test_generate_chooses_the_backend(both: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for backend in ("onnxruntime", "executorch"):
        arguments = ["generate", str(both), "-p", "the", "-n", "20", "--temperature", "0"]
        assert cli.main([*arguments, "--backend", backend]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1]
    assert Bundle.open(both).manifest.model.vocab_size == VOCABULARY
