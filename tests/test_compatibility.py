"""Files that an earlier version wrote: tests/data/compatibility, made at commit 56b6d65.

A checkpoint of random weights, its int8 bundle with a native plan, a state file of each backend
after 40 tokens, and what that version computed on it: `tokens` [40], states as in the files, and
the logits [vocab] of token 5 after them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from retnet_edge import load
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.reference import Float64Reference
from retnet_edge.runtime.backends.native.library import native_available
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.golden import replay_golden
from retnet_edge.runtime.text.snapshot import load_snapshot

OLD = Path(__file__).parent / "data" / "compatibility"
EXPECTED = np.load(OLD / "expected.npz")

# What kernels of other CPUs may round otherwise: an activation of int8 by one code.
SHARE = 5e-3


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Copied, since a verdict or prepared weights would be written into it or beside it."""
    return Bundle.open(shutil.copytree(OLD / "bundle", tmp_path / "old.edge"))


@pytest.mark.parametrize("backend", ["onnxruntime", "native"])
def test_a_state_file_holds_the_same_bits(bundle: Bundle, backend: str) -> None:
    snapshot = load_snapshot(OLD / f"{backend}.state", bundle)
    assert snapshot.position == 40
    assert snapshot.tokens == tuple(EXPECTED["tokens"].tolist())
    for index, state in enumerate(snapshot.states):
        np.testing.assert_array_equal(state, EXPECTED[f"{backend}_state_{index}"])


@pytest.mark.parametrize("backend", ["onnxruntime", "native"])
def test_a_bundle_goes_on_from_the_state(bundle: Bundle, backend: str) -> None:
    if backend == "native" and not native_available():
        pytest.skip("the native library was not built: it needs a C compiler (apt install gcc)")
    expected = EXPECTED[f"{backend}_logits"]
    model = load(bundle.path, backend=backend, threads=1)
    model.load_state(OLD / f"{backend}.state")
    atol = SHARE * np.abs(expected).max()
    np.testing.assert_allclose(model.session.step(5), expected, atol=atol)
    model.reset()
    model.session.prefill(EXPECTED["tokens"].tolist())
    np.testing.assert_allclose(model.session.step(5), expected, atol=atol)


def test_a_bundle_replays_its_golden_file(bundle: Bundle) -> None:
    golden = replay_golden(bundle, open_session(bundle, threads=1))
    assert golden.relative_state_error < 0.05


def test_a_checkpoint_is_read_and_exported_alike(bundle: Bundle, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(OLD / "checkpoint")
    bundle.check_made_from(checkpoint.path, checkpoint.weights_sha256())
    logits, _ = Float64Reference(checkpoint).run(EXPECTED["tokens"], None, 0)
    made = load(export(OLD / "checkpoint", tmp_path / "new.edge", say=lambda _: None), threads=1)
    found = made.session.prefill(EXPECTED["tokens"].tolist())
    np.testing.assert_allclose(found, logits[-1], atol=2e-4 * np.abs(logits[-1]).max())
    assert made.bundle.manifest.states == bundle.manifest.states
    assert made.bundle.manifest.model == bundle.manifest.model
