"""The native backend: what it computes, to the bit where it promises that."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import native_bundles
import numpy as np
import pytest
import torch
from micro_checkpoint import VOCABULARY, Exported, random_states, reference
from model_table import decode_table
from native_bundles import SCHEMES, TOKENS, Export, Quantized, silent
from numpy.typing import NDArray

from retnet_edge.cli import main
from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.pipeline.build import build
from retnet_edge.quantize.tuning.tune import TuneOptions, tune
from retnet_edge.runtime.backends.native.library import STAGES, Sequence
from retnet_edge.runtime.backends.native.plan import (
    Data,
    FileRange,
    Plan,
    PlannedMatrix,
)
from retnet_edge.runtime.backends.native.session import NativeSession, open_model
from retnet_edge.runtime.backends.profile import profile
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bench.bench import bench
from retnet_edge.runtime.bench.traffic import step_weight_bytes
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.memory.memory import measure_memory, memory_supported

pytestmark = native_bundles.NEEDS_THE_LIBRARY
exported = native_bundles.exported
quantized = native_bundles.quantized
CASES = [("base", name) for name in ("int8", "int4-weight", *SCHEMES)] + [
    (variant, "int8-weight") for variant in ("untied", "mlp gelu", "z_n", "affine")
]


def plan_of(bundle: Bundle) -> Plan:
    return decode_table(bundle.file("native.table").read_bytes())


def weights_of(bundle: Bundle, matrix: PlannedMatrix) -> NDArray[np.float64]:
    """The matrix that a plan describes, by the definition of its layout."""

    def read(data: Data, dtype: str) -> NDArray[Any]:
        if isinstance(data, FileRange):
            return np.fromfile(
                bundle.file("weights.bin"), np.uint8, count=data.size, offset=data.offset
            ).view(dtype)
        return np.frombuffer(data, dtype)

    def unpacked(data: Data, count: int) -> NDArray[np.float64]:
        codes = read(data, "uint8").reshape(matrix.rows, -1)
        if matrix.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(matrix.rows, -1)
        return codes[:, :count].astype(np.float64)

    blocks = matrix.blocks
    codes = unpacked(matrix.codes, blocks * matrix.block).reshape(matrix.rows, blocks, -1)
    zeros: Any = 2 ** (matrix.bits - 1)
    if matrix.zeros is not None:
        zeros = unpacked(matrix.zeros, blocks)[..., None]
    scales = read(matrix.scales, matrix.scale_dtype).reshape(matrix.rows, blocks, 1)
    weights: NDArray[np.float64] = (codes - zeros) * scales.astype(np.float64)
    return weights.reshape(matrix.rows, -1)[:, : matrix.inputs]


def exact_model(bundle: Bundle, exported: Exported) -> Any:
    """The checkpoint's model in float64 with the bundle's weights in place of its own."""
    plan = plan_of(bundle)
    weights = {"embedding.weight": plan.embedding, "head.weight": plan.head}
    for i, layer in enumerate(plan.layers):
        weights[f"blocks.{i}.retention.qkvg.weight"] = layer.qkvg
        weights[f"blocks.{i}.retention.out.weight"] = layer.out
        weights[f"blocks.{i}.ffn.inner.weight"] = layer.inner
        weights[f"blocks.{i}.ffn.out.weight"] = layer.down
    model = copy.deepcopy(exported.model)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, matrix in weights.items():
            if name in own:
                own[name].copy_(torch.from_numpy(weights_of(bundle, matrix)))
    return model


@pytest.mark.parametrize(("variant", "recipe"), CASES)
@pytest.mark.parametrize("kernels", [None, "plain"])
def test_the_bundles_weights_in_float64(
    exported: Export, quantized: Quantized, variant: str, recipe: str, kernels: str | None
) -> None:
    """What is left between the two is the rounding of activations: to 16 bits beside weights of 8,
    to 8 in blocks beside weights of 4."""
    bundle = quantized(variant, recipe)
    source = exported(variant)
    model = exact_model(bundle, source)
    config = source.model.config
    assert isinstance(config, RetNetConfig)
    states = random_states(config, 1)
    session = NativeSession(bundle, threads=1, kernels=kernels)
    position = 1_000_003
    session.load_states(states, position)
    expected, after = reference(model, np.array([TOKENS[:37]]), states, position)
    found = session.prefill(TOKENS[:37])
    eight = plan_of(bundle).layers[0].qkvg.bits == 8
    bound = 1e-3 if eight else 5e-2
    assert np.abs(found - expected[0]).max() < bound * np.abs(expected).max()
    for state, wanted in zip(session.states(), after, strict=True):
        assert np.abs(state - wanted).max() < bound * np.abs(wanted).max()
    assert session.position == position + 37


@pytest.mark.parametrize("recipe", ["int8", "int4-weight", "4 asymmetric"])
@pytest.mark.parametrize("kernels", [None, "plain"])
def test_a_prompt_gives_the_bits_of_its_tokens_on_any_threads(
    quantized: Quantized, recipe: str, kernels: str | None
) -> None:
    bundle = quantized("base", recipe)
    count = 300 if kernels is None else 40
    alone = NativeSession(bundle, threads=1, kernels=kernels)
    for token in TOKENS[:count]:
        logits = alone.step(token)
    for threads, pieces in ((1, [count]), (2, [count]), (3, [1, 2, 17, count - 20])):
        session = NativeSession(bundle, threads=threads, kernels=kernels)
        start = 0
        for piece in pieces:
            together = session.prefill(TOKENS[start : start + piece])
            start += piece
        np.testing.assert_array_equal(together, logits)
        for one, other in zip(session.states(), alone.states(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_fork_a_roll_back_and_another_backends_state(quantized: Quantized) -> None:
    bundle = quantized()
    session, fork = NativeSession(bundle, threads=1), NativeSession(bundle, threads=2)
    session.prefill(TOKENS[:50])
    kept, position = session.states(), session.position
    first = [session.step(token).copy() for token in TOKENS[50:60]]
    session.load_states(kept, position)
    fork.load_states(kept, position)
    for token, logits in zip(TOKENS[50:60], first, strict=True):
        np.testing.assert_array_equal(session.step(token), logits)
        np.testing.assert_array_equal(fork.step(token), logits)
    onnx = open_session(bundle, 1, "onnxruntime")
    onnx.prefill(TOKENS[:50])
    fork.load_states(onnx.states(), onnx.position)
    # ONNX Runtime rounds activations to 8 bits, which a random model makes much of
    assert np.linalg.norm(fork.step(TOKENS[50]) - first[0]) < 0.1 * np.linalg.norm(first[0])
    session.reset()
    assert session.position == 0
    assert not any(state.any() for state in session.states())


def test_sessions_of_many_threads_at_once(quantized: Quantized) -> None:
    """Threads of one session wait for their next task while another's run."""
    bundle = quantized()
    sessions = [NativeSession(bundle, threads=threads) for threads in (4, 3, 1)]
    for token in TOKENS[:200]:
        logits = [session.step(token).copy() for session in sessions]
        for other in logits[1:]:
            np.testing.assert_array_equal(other, logits[0])


def test_two_threads_on_one_sequence(quantized: Quantized) -> None:
    """One call at a time, under whatever a session does itself: the other is told, and changes
    nothing. (check_callers.c has it under a thread sanitizer.)"""
    model = open_model(quantized())
    tokens = np.array(TOKENS[:256], dtype=np.int32)
    refused = []

    def feed(sequence: Sequence) -> None:
        while True:
            try:
                sequence.feed(tokens.ctypes.data, tokens.size)
                return
            except InputError as error:
                refused.append(str(error))

    alone = Sequence(model, 2)
    for _ in range(6):
        feed(alone)
    assert not refused
    while not refused:
        shared = Sequence(model, 2)
        with ThreadPoolExecutor(3) as pool:
            for task in [pool.submit(feed, shared) for _ in range(6)]:
                task.result(timeout=120)
        np.testing.assert_array_equal(shared.states(), alone.states())
        np.testing.assert_array_equal(shared.logits(), alone.logits())
    assert "in use by another thread" in refused[0]


def test_what_is_not_finite_shows(quantized: Quantized) -> None:
    session = NativeSession(quantized(), threads=1)
    for bad in (np.nan, np.inf):
        states = session.states()
        states[0][0, 0, 0, 0] = bad
        session.load_states(states, 1)
        assert not np.isfinite(session.step(1)).any()
        session.reset()
        assert np.isfinite(session.step(1)).all()


def test_tokens_that_are_none(quantized: Quantized) -> None:
    session = NativeSession(quantized(), threads=1)
    with pytest.raises(InputError, match="0 tokens"):
        session.prefill([])
    for bad in (-1, VOCABULARY):
        with pytest.raises(InputError, match="out of range"):
            session.step(bad)
        with pytest.raises(InputError, match="out of range"):
            session.prefill([1, bad])
    assert session.position == 0
    with pytest.raises(InputError, match="threads is 0"):
        NativeSession(quantized(), threads=0)
    with pytest.raises(InputError, match="the kernels sse9"):
        NativeSession(quantized(), threads=1, kernels="sse9")


@pytest.mark.parametrize("variant", ["base", "untied"])
def test_the_weights_lie_in_the_bundle_once(quantized: Quantized, variant: str) -> None:
    bundle = quantized(variant, "int8-weight")
    manifest = bundle.manifest
    assert manifest.backends == ("onnxruntime", "native")
    assert manifest.files_of("native") == ("native.table", "weights.bin")
    plan = plan_of(bundle)
    assert (plan.head == plan.embedding) == (variant == "base")
    # the graphs keep tensors of less than 1 KiB to themselves, which no step_weight_bytes counts
    read = step_weight_bytes(bundle, "native")
    assert 0 < read - step_weight_bytes(bundle, "onnxruntime") < 0.1 * read


def test_bench_and_profile(quantized: Quantized) -> None:
    bundle = quantized()
    spent = profile(bundle, steps=20, threads=1, backend="native")
    assert [operator.name for operator in spent] == list(STAGES)
    assert all(operator.microseconds > 0 for operator in spent)
    figures = bench(
        bundle.path, prompt=[9], generate=[4], depth=[0], threads=[1, 2], repetitions=2,
        backend="native",
    )  # fmt: skip
    assert figures.backend == "native"
    assert len(figures.rows) == 4
    with pytest.raises(InputError, match="batch is 2; native runs one sequence"):
        bench(
            bundle.path, prompt=[], generate=[4], depth=[0], threads=[1], repetitions=1,
            batch=[1, 2], backend="native",
        )  # fmt: skip


@pytest.mark.skipif(not memory_supported(), reason="memory is read on Linux")
def test_memory_does_not_grow(quantized: Quantized) -> None:
    # Enough steps that a page or two, which the allocator may take late, is far below the limit.
    memory = measure_memory(quantized().path, 100_000, warmup=2_000, backend="native")
    assert memory.anonymous_slope.high < 1.0


def test_build_verifies_it(tmp_path: Path, exported: Export) -> None:
    checkpoint = exported("base").checkpoint
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog sat by the door.\n\n" * 40)
    verdict = build(
        checkpoint, tmp_path / "m.edge", text=text, native=True, tokens=256, context=64,
        memory_steps=0, baseline=False, say=silent,
    )  # fmt: skip
    onnx, native = verdict.backends
    assert (onnx.backend, native.backend) == ("onnxruntime", "native")
    assert native.parity.figures.mean_kl < onnx.parity.figures.mean_kl
    assert [operator.name for operator in native.operators] == list(STAGES)


def test_a_tuned_bundle_keeps_its_plan(
    exported: Export, quantized: Quantized, tmp_path: Path
) -> None:
    bundle = quantized("base", "int4-weight")
    checkpoint = exported("base").checkpoint
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog sat by the door.\n\n" * 60)
    options = TuneOptions(steps=3, batch=2, seq_len=32, lr=0.05)
    tune(
        bundle.path, tmp_path / "t.edge", checkpoint=checkpoint, data=[text], options=options,
        say=silent,
    )  # fmt: skip
    tuned = Bundle.open(tmp_path / "t.edge")
    assert tuned.manifest.backends == ("onnxruntime", "native")
    onnx, native = open_session(tuned, 1), open_session(tuned, 1, "native")
    found, before = native.prefill(TOKENS[:20]).copy(), onnx.prefill(TOKENS[:20])
    assert np.linalg.norm(found - before) < 0.1 * np.linalg.norm(before)
    assert (open_session(bundle, 1, "native").prefill(TOKENS[:20]) != found).any()


def test_the_commands(exported: Export, quantized: Quantized, tmp_path: Path, capsys: Any) -> None:
    bundle = quantized()
    assert main(["info", str(bundle.path)]) == 0
    assert "step and prefill for native, on weights.bin" in " ".join(
        capsys.readouterr().out.split()
    )
    options = ["--prompt", "The cat", "--max-tokens", "5", "--threads", "1"]
    assert main(["generate", str(bundle.path), "--backend", "native", *options]) == 0
    source = exported("base").bundle
    out = tmp_path / "q.edge"
    assert main(["quantize", str(source), str(out), "--recipe", "int4-weight", "--native"]) == 0
    assert Bundle.open(out).manifest.backends == ("onnxruntime", "native")
