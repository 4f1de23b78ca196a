"""A whole verification of a bundle, and what an interrupted one leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import Tiny, file_size_limit
from numpy.typing import NDArray
from tiny_bundle import TinyModel, write_tiny_bundle
from verification_samples import golden_arrays, save

from retnet_edge.atomic import replace_file
from retnet_edge.errors import InputError
from retnet_edge.runtime import verify as module
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest, Tolerance
from retnet_edge.runtime.bundle.writer import update_manifest
from retnet_edge.runtime.memory.memory import memory_supported
from retnet_edge.runtime.parity.golden import GOLDEN_FILE
from retnet_edge.runtime.report.verdict import Verdict
from retnet_edge.runtime.verify import measure_baseline, verify, write_verdict

pytestmark = pytest.mark.skipif(not memory_supported(), reason="needs /proc/self/smaps_rollup")

# The tiny graph takes its angles in float32, which at position 1,000,000 is not good enough.
LOOSE = Tolerance(max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=1.0, top1_agreement=1.0)
STRICT = msgspec.structs.replace(LOOSE, max_abs_logit_error=2e-4)


class TinyReference:
    """The tiny model in float64, in one piece from the first token of its state on."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model

    def run(
        self, tokens: NDArray[np.int64], states: list[NDArray[np.float64]] | None, position: int
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        m = self.model
        state = np.zeros((m.heads, m.key, m.value)) if states is None else states[0][0]
        rows = []
        for offset, token in enumerate(tokens):
            logits, state = m.retention([int(token)], state, position + offset)
            rows.append(logits)
        return np.stack(rows), [state[None]]


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, TinyModel]:
    path = tmp_path / "tiny.edge"
    model = write_tiny_bundle(path)
    update_manifest(Bundle.open(path), tolerance=LOOSE)
    return path, model


def run(bundle: tuple[Path, TinyModel], **options: Any) -> Verdict:
    path, model = bundle
    contexts = [np.random.default_rng(0).integers(model.vocab, size=300)]
    options = {"reference": TinyReference(model), "memory_steps": 2_000, "threads": 1, **options}
    return verify(path, contexts=contexts, **options)


def test_a_good_bundle_is_verified_and_says_so(
    bundle: tuple[Path, TinyModel], tiny_transformer: Tiny
) -> None:
    seen: list[int] = []

    # 2,000 steps are too few to bound a page more or less: this is about the plumbing
    loose = msgspec.structs.replace(LOOSE, memory_bytes_per_token=100.0)
    update_manifest(Bundle.open(bundle[0]), tolerance=loose)
    verdict = run(
        bundle,
        baseline=measure_baseline(tiny_transformer.path, 2_000, seen.append),
        advance=seen.append,
    )
    assert verdict.reasons == ()
    assert verdict.backends[0].parity.figures.max_abs_logit_error < 1e-4
    assert verdict.backends[0].parity.prefill is not None
    assert verdict.backends[0].memory is not None
    assert verdict.baseline is not None
    assert (
        verdict.backends[0].memory.state_bytes
        == verdict.backends[0].memory.state_bytes_manifest
        > 0
    )
    assert verdict.baseline.state_bytes_per_token > 0
    assert verdict.baseline.state_bytes == verdict.baseline.state_bytes_manifest
    assert sum(seen) == 300 + 2_000 + 1_500

    opened = Bundle.open(bundle[0])
    assert opened.manifest.verification.status == "verified"
    assert opened.manifest.verification.report == "reports/report.html"
    parity = json.loads(opened.file("reports/parity.json").read_bytes())
    assert parity["onnxruntime"]["figures"]["tokens"] == 300
    memory = json.loads(opened.file("reports/memory.json").read_bytes())
    assert len(memory["onnxruntime"]["anonymous"]) == len(memory["onnxruntime"]["tokens"])
    assert memory["baseline"]["model"] == "transformer"
    operators = json.loads(opened.file("reports/profile.json").read_bytes())["onnxruntime"]
    assert operators == msgspec.to_builtins(list(verdict.backends[0].operators))
    assert "MatMul" in {operator["name"] for operator in operators}
    assert "Time by operator" in opened.file("reports/report.html").read_text()
    assert "tiny.edge: <span" in opened.file("reports/report.html").read_text()


def test_a_reference_of_other_weights_makes_it_unverified(bundle: tuple[Path, TinyModel]) -> None:
    other = TinyReference(TinyModel(bundle[1].vocab, seed=1))
    verdict = run(bundle, reference=other)
    assert any(reason.startswith("perplexity ratio") for reason in verdict.reasons)
    manifest = Bundle.open(bundle[0]).manifest
    assert manifest.verification.status == "unverified"
    assert manifest.verification.reasons == verdict.reasons


def test_a_far_position_in_float32_is_caught(bundle: tuple[Path, TinyModel]) -> None:
    update_manifest(Bundle.open(bundle[0]), tolerance=STRICT)
    reasons = run(bundle).reasons
    far = [r for r in reasons if r.startswith("largest logit error at position 1,000,000 after 10")]
    assert far
    assert not any("at position 10 " in reason for reason in reasons)


@pytest.mark.parametrize("tolerance", [LOOSE, STRICT])
def test_golden_runs_are_reported_and_judged_where_logit_errors_are(
    tolerance: Tolerance, bundle: tuple[Path, TinyModel]
) -> None:
    """The `far` run of golden_arrays is not one of position 1,000,000; `near` is right."""
    save(bundle[0] / GOLDEN_FILE, golden_arrays(bundle[1]))
    update_manifest(Bundle.open(bundle[0]), tolerance=tolerance)
    verdict = run(bundle)
    opened = Bundle.open(bundle[0])
    golden = json.loads(opened.file("reports/parity.json").read_bytes())["onnxruntime"]["golden"]
    assert golden == msgspec.to_builtins(verdict.backends[0].parity.golden)
    assert golden["near_logit_error"] < 1e-4 < golden["far_logit_error"]
    assert "golden.npz: states, relative" in opened.file("reports/report.html").read_text()
    reasons = [reason for reason in verdict.reasons if reason.startswith("golden.npz")]
    assert len(reasons) == (1 if tolerance is STRICT else 0)
    assert all("at position 1,000,000 is" in reason for reason in reasons)


def test_a_bundle_without_memory_figures_is_not_verified(
    bundle: tuple[Path, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "memory_supported", lambda: False)
    verdict = run(bundle)
    assert verdict.backends[0].memory is None
    assert verdict.reasons == ("memory was not measured",)


def test_an_interrupted_second_run_leaves_a_bundle_that_opens(
    bundle: tuple[Path, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = run(bundle)
    for stop_at in range(5):  # the manifest without reports, then four reports
        writes = 0

        def interrupted(path: Path, content: bytes, stop_at: int = stop_at) -> None:
            nonlocal writes
            if writes == stop_at:
                path.with_name(f".{path.name}.0123beef.partial").write_bytes(b"half")
                raise KeyboardInterrupt
            writes += 1
            replace_file(path, content)

        changed = msgspec.structs.replace(verdict, reasons=(f"reason {stop_at}",))
        with monkeypatch.context() as patch:
            patch.setattr(module, "replace_file", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_verdict(Bundle.open(bundle[0]), changed)
        left = Bundle.open(bundle[0]).manifest.verification
        assert (left.reasons == ("verification was interrupted",)) == (stop_at > 0)
        write_verdict(Bundle.open(bundle[0]), changed)
        assert Bundle.open(bundle[0]).manifest.verification.reasons == changed.reasons
        assert not list(bundle[0].rglob("*.partial"))


def test_a_full_disk_is_one_sentence_and_leaves_a_bundle_that_opens(
    bundle: tuple[Path, TinyModel],
) -> None:
    verdict = run(bundle)
    before = Bundle.open(bundle[0]).manifest

    def left(limit: int) -> Manifest:
        with file_size_limit(limit), pytest.raises(InputError) as caught:
            write_verdict(Bundle.open(bundle[0]), verdict)
        assert str(caught.value).startswith(f"{bundle[0]}: disk full")
        assert not list(bundle[0].rglob("*.partial"))
        return Bundle.open(bundle[0]).manifest

    assert left(100) == before
    interrupted = left(bundle[0].joinpath("reports/report.html").stat().st_size - 1)
    assert interrupted.verification.reasons == ("verification was interrupted",)
    assert not any(name.startswith("reports/") for name in interrupted.files)
    write_verdict(Bundle.open(bundle[0]), verdict)
    assert Bundle.open(bundle[0]).manifest == before
