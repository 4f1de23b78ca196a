"""Sessions on real (tiny) graphs, against float64."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from conftest import Tiny
from tiny_bundle import rewrite_manifest

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.ort.kv_session import KvSession
from retnet_edge.runtime.backends.ort.session import OrtSession
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.session.threads import default_threads, physical_cores, threads_for

TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 300, size=2_100)]
TOLERANCE = 2e-4


def open_tiny(tiny: Tiny) -> Session:
    return open_session(tiny.open(), threads=1)


@pytest.fixture(params=["tiny", "tiny_transformer"])
def any_tiny(request: pytest.FixtureRequest) -> Tiny:
    made: Tiny = request.getfixturevalue(request.param)
    return made


def test_the_state_decides_which_session(tiny: Tiny, tiny_transformer: Tiny) -> None:
    assert isinstance(open_tiny(tiny), OrtSession)
    assert isinstance(open_tiny(tiny_transformer), KvSession)


def test_steps_equal_float64(tiny: Tiny) -> None:
    session = open_tiny(tiny)
    state = np.zeros((2, 4, 6))
    for n, token in enumerate(TOKENS[:101]):
        assert session.position == n
        logits = session.step(token)
        expected, state = tiny.model.retention([token], state, n)
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
        np.testing.assert_allclose(session.states()[0][0], state, atol=TOLERANCE)


def test_attention_steps_equal_float64(tiny_transformer: Tiny) -> None:
    session = open_tiny(tiny_transformer)
    for n in range(40):
        logits = session.step(TOKENS[n])
        expected = tiny_transformer.model.attention(TOKENS[: n + 1])
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
        assert session.state_bytes == sum(state.nbytes for state in session.states())
        assert session.states()[0].shape == (1, 2, n + 1, 4)


@pytest.mark.parametrize("length", [1, 2, 7, 1023, 1024, 1025, 2100])
def test_a_prefill_equals_as_many_steps(length: int, any_tiny: Tiny) -> None:
    stepped, filled = open_tiny(any_tiny), open_tiny(any_tiny)
    for token in TOKENS[:length]:
        expected = stepped.step(token)
    np.testing.assert_allclose(filled.prefill(TOKENS[:length]), expected, atol=TOLERANCE)
    assert filled.position == length
    for state, other in zip(filled.states(), stepped.states(), strict=True):
        np.testing.assert_allclose(state, other, atol=TOLERANCE)
    # and both go on alike, which a prefill that left the wrong buffer current would not
    for token in TOKENS[:3]:
        np.testing.assert_allclose(filled.step(token), stepped.step(token), atol=TOLERANCE)


def test_steps_and_prefills_in_turn(any_tiny: Tiny) -> None:
    mixed, stepped = open_tiny(any_tiny), open_tiny(any_tiny)
    at = 0
    for size in (1, 5, 1, 1, 8, 2, 1):
        logits = mixed.prefill(TOKENS[at : at + size])
        for token in TOKENS[at : at + size]:
            expected = stepped.step(token)
        at += size
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE)


def test_reset_and_replay_are_bitwise_equal(any_tiny: Tiny) -> None:
    session = open_tiny(any_tiny)
    first = [session.step(token).copy() for token in TOKENS[:9]]
    session.reset()
    assert session.position == 0
    again = [session.step(token).copy() for token in TOKENS[:9]]
    np.testing.assert_array_equal(first, again)


def test_states_saved_and_loaded(any_tiny: Tiny) -> None:
    session = open_tiny(any_tiny)
    session.prefill(TOKENS[:20])
    saved = session.states()
    expected = [session.step(token).copy() for token in TOKENS[20:25]]
    other = open_tiny(any_tiny)
    other.step(3)
    other.load_states(saved, 20)
    for state in saved:  # they were copied in
        state.fill(7)
    np.testing.assert_array_equal(expected, [other.step(t).copy() for t in TOKENS[20:25]])
    assert other.position == 25


def test_states_that_do_not_fit(any_tiny: Tiny) -> None:
    session = open_tiny(any_tiny)
    session.prefill(TOKENS[:4])
    states = session.states()
    with pytest.raises(InputError, match="states were given; this bundle has"):
        session.load_states([*states, states[0]], 4)
    with pytest.raises(InputError, match=r"is float64 \[1, 2, 4, .*is float32"):
        session.load_states([state.astype(np.float64) for state in states], 4)
    with pytest.raises(InputError, match=r"\[1, 2, 4\]; after 4 tokens"):
        session.load_states([state[..., 0] for state in states], 4)
    with pytest.raises(InputError, match="position is -1"):
        session.load_states(states, -1)
    assert session.position == 4


def test_a_growing_state_must_be_as_long_as_its_position(tiny_transformer: Tiny) -> None:
    session = open_tiny(tiny_transformer)
    session.prefill(TOKENS[:4])
    with pytest.raises(InputError, match="after 5 tokens"):
        session.load_states(session.states(), 5)


def test_tokens_that_are_none(any_tiny: Tiny) -> None:
    session = open_tiny(any_tiny)
    with pytest.raises(InputError, match="0 tokens; at least one"):
        session.prefill([])
    for bad in (-1, 300):
        with pytest.raises(InputError, match=f"token id {bad} is out of range.* 0 to 299"):
            session.step(bad)
        with pytest.raises(InputError, match=f"token id {bad} is out of range"):
            session.prefill([1, bad])
    assert session.position == 0


def test_logits_are_a_view_that_nobody_can_write(any_tiny: Tiny) -> None:
    session = open_tiny(any_tiny)
    logits = session.step(1)
    assert logits.shape == (300,)
    assert logits.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        logits[0] = 0
    first = logits.copy()
    session.step(2)
    assert not np.array_equal(first, logits)


def test_a_step_allocates_no_python_memory(tiny: Tiny) -> None:
    session = open_tiny(tiny)
    for token in TOKENS[:100]:
        session.step(token)
    tracemalloc.start()
    session.step(1)
    before = tracemalloc.get_traced_memory()[0]
    for token in TOKENS[:1000]:
        session.step(token)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500


def test_the_two_state_sets_never_move(tiny: Tiny) -> None:
    session = OrtSession(tiny.open(), threads=1)
    addresses = {state.ctypes.data for buffers in session._buffers for state in buffers}
    session.prefill(TOKENS[:50])
    for token in TOKENS[:5]:
        session.step(token)
    session.reset()
    assert {s.ctypes.data for buffers in session._buffers for s in buffers} == addresses
    assert session.state_bytes == tiny.open().manifest.state_bytes(55)


def test_two_sessions_share_nothing(tiny: Tiny) -> None:
    bundle = tiny.open()
    one, two, alone = (open_session(bundle, threads=1) for _ in range(3))
    for token in TOKENS[:10]:
        mine = one.step(token).copy()
        two.step(token + 1 if token < 299 else 0)
        np.testing.assert_array_equal(mine, alone.step(token))


def test_without_a_prefill_graph_a_prompt_is_stepped(broken: Path, tiny: Tiny) -> None:
    rewrite_manifest(broken, graphs=tuple(g for g in tiny.open().manifest.graphs[:1]))
    session = open_session(Bundle.open(broken), threads=1)
    expected = open_tiny(tiny).prefill(TOKENS[:9])
    np.testing.assert_allclose(session.prefill(TOKENS[:9]), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("cores", "busy", "threads"),
    [(1, 0.0, 1), (2, 0.2, 2), (2, 1.0, 1), (2, 5.0, 1), (8, 0.0, 4), (8, 5.6, 2), (2, None, 2)],
)
def test_threads_go_where_cores_are_free(cores: int, busy: float | None, threads: int) -> None:
    assert threads_for(cores, busy) == threads


def test_threads(tiny: Tiny) -> None:
    assert 1 <= default_threads() <= physical_cores()
    np.testing.assert_allclose(
        open_session(tiny.open()).step(5), open_session(tiny.open(), threads=2).step(5), atol=1e-5
    )
    with pytest.raises(InputError, match="threads is 0; at least 1"):
        open_session(tiny.open(), threads=0)


def test_a_graph_of_another_vocabulary(broken: Path) -> None:
    """The logits' buffer is as long as the manifest says, and the graph's number is another."""
    manifest = Bundle.open(broken).manifest
    graphs = [
        msgspec.structs.replace(
            graph,
            outputs=(
                msgspec.structs.replace(graph.outputs[0], shape=("batch", 301)),
                *graph.outputs[1:],
            ),
        )
        for graph in manifest.graphs
    ]
    model = msgspec.structs.replace(manifest.model, vocab_size=301)
    rewrite_manifest(broken, graphs=tuple(graphs), model=model)
    message = r"step.onnx has the output logits as \['batch', 300\]; the manifest says .*301"
    with pytest.raises(InputError, match=message):
        open_session(Bundle.open(broken), threads=1)


def test_no_graph_for_this_runtime(broken: Path, tiny: Tiny) -> None:
    with pytest.raises(InputError, match="has no graphs for executorch; it has: onnxruntime"):
        open_session(tiny.open(), backend="executorch")
    prefill = tuple(g for g in tiny.open().manifest.graphs if g.kind == "prefill")
    rewrite_manifest(broken, graphs=prefill)
    with pytest.raises(InputError, match=r"no step graph for onnxruntime .*prefill for onnx"):
        open_session(Bundle.open(broken))


def change_graph(bundle: Path, name: str, **node: str) -> None:
    """Change an attribute of the last node of a graph, and make the manifest match."""
    model = onnx.load_model(bundle / name, load_external_data=False)
    for key, value in node.items():
        if key == "opset":
            model.opset_import[0].version = int(value)
        elif key == "output":
            model.graph.node[-1].output[0] = value
            model.graph.output[0].name = value
        else:
            setattr(model.graph.node[-1], key, value)
    (bundle / name).write_bytes(model.SerializeToString())
    rewrite_manifest(bundle, rehash=True)


def test_an_operator_that_the_runtime_does_not_know(
    broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change_graph(broken, "step.onnx", op_type="FromTheFuture")
    with pytest.raises(InputError) as caught:
        open_session(Bundle.open(broken))
    sentence = str(caught.value)
    assert "\n" not in sentence
    for fragment in (str(broken / "step.onnx"), "ONNX Runtime 1.", "FromTheFuture"):
        assert fragment in sentence
    assert capfd.readouterr().err == ""


def test_an_operator_set_that_the_runtime_does_not_know(broken: Path) -> None:
    change_graph(broken, "step.onnx", opset="999")
    with pytest.raises(InputError, match=r"step\.onnx: ONNX Runtime .* cannot load .*999"):
        open_session(Bundle.open(broken))


def test_a_graph_that_is_not_what_the_manifest_says(broken: Path) -> None:
    change_graph(broken, "step.onnx", output="other")
    with pytest.raises(InputError, match=r"has the outputs .*'other'.*; the manifest says"):
        open_session(Bundle.open(broken))


def test_a_graph_that_fails_while_running(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load_model(broken / "step.onnx", load_external_data=False)
    axis = next(t for t in model.graph.initializer if t.name == "one")  # T is tokens' shape[one]
    axis.CopyFrom(onnx.numpy_helper.from_array(np.array(5), "one"))
    (broken / "step.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(broken, rehash=True)
    with pytest.raises(InputError, match="the graph failed while running") as caught:
        open_session(Bundle.open(broken)).step(1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "module",
    [
        "backends.select",
        "backends.ort.session",
        "backends.ort.kv_session",
        "text.model",
        "bundle.bundle",
    ],
)
def test_no_torch(module: str) -> None:
    script = f"import sys, retnet_edge.runtime.{module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
