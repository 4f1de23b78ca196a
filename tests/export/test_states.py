"""On exported graphs of every recipe: what is stored, forked or rolled back goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from micro_checkpoint import exported_once, random_tokens, write_variant
from numpy.typing import NDArray

from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

BACKENDS = {"onnx": "onnxruntime", "executorch": "executorch"}
FORMS: list[object] = [("onnx", "fp32")]
FORMS += [("onnx", recipe.name) for recipe in RECIPES["onnxruntime"]]
FORMS += [
    pytest.param(("executorch", recipe), marks=pytest.mark.slow) for recipe in ("fp32", "int8")
]
TOKENS = random_tokens(1, 321)[0].tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant("base", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(form))
def bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    to, recipe = request.param
    if to == "executorch":
        pytest.importorskip("executorch")
    folder = tmp_path_factory.mktemp("bundle")
    if to == "onnx":
        out = exported_once(tmp_path_factory.getbasetemp(), "base").bundle
    else:
        out = export(checkpoint, folder / "fp32.edge", to=(to,), say=lambda _: None)
    if recipe != "fp32":
        out = quantize(
            out, folder / "q.edge", recipe=recipe, checkpoint=checkpoint, say=lambda _: None
        )
    return Bundle.open(out)


def run(session: Session, tokens: list[int]) -> list[NDArray[np.float32]]:
    """Steps, then a prompt long enough for a prefill program, then steps."""
    found = [session.step(token).copy() for token in tokens[:5]]
    found.append(session.prefill(tokens[5:90]).copy())
    return [*found, *(session.step(token).copy() for token in tokens[90:95])]


def test_states_go_on_bit_for_bit(bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(bundle, threads=1)
    session.prefill(TOKENS[:200])
    kept = Snapshot.of(session)
    save_snapshot(kept, bundle, tmp_path / "x.state")
    expected, after = run(session, TOKENS[200:300]), session.states()

    kept.restore(session)  # roll back
    np.testing.assert_array_equal(expected, run(session, TOKENS[200:300]))

    fork = open_session(bundle, threads=1)
    run(fork, TOKENS[:100])
    kept.restore(fork)
    np.testing.assert_array_equal(expected, run(fork, TOKENS[200:300]))

    loaded = open_session(bundle, threads=1)
    load_snapshot(tmp_path / "x.state", bundle).restore(loaded)
    np.testing.assert_array_equal(expected, run(loaded, TOKENS[200:300]))
    for mine, other in zip(loaded.states(), after, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_nothing_of_an_earlier_request_is_left(bundle: Bundle) -> None:
    session, fresh = open_session(bundle, threads=1), open_session(bundle, threads=1)
    run(session, TOKENS[100:200])
    session.reset()
    np.testing.assert_array_equal(run(session, TOKENS[:100]), run(fresh, TOKENS[:100]))


@pytest.mark.slow
def test_a_state_of_one_backend_is_a_state_of_the_other(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    out = export(checkpoint, tmp_path / "both.edge", to=("onnx", "executorch"), say=lambda _: None)
    bundle = Bundle.open(out)
    one = open_session(bundle, threads=1, backend="onnxruntime")
    one.prefill(TOKENS[:200])
    save_snapshot(Snapshot.of(one), bundle, tmp_path / "x.state")
    two = open_session(bundle, threads=1, backend="executorch")
    load_snapshot(tmp_path / "x.state", bundle).restore(two)
    for a, b in zip(run(one, TOKENS[200:300]), run(two, TOKENS[200:300]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())
