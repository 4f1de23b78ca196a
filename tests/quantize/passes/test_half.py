"""Weights in 16 bits: half the file, and the predictions of the rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from micro_checkpoint import VOCABULARY, Exported, exported_once

from retnet_edge.export.contract import Flavour
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.replay import run_steps

TOKENS = np.random.default_rng(7).integers(0, VOCABULARY, 40)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=["base", "untied"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), request.param)


@pytest.mark.parametrize("recipe", DTYPES)
def test_logits_are_those_of_the_rounded_weights(
    exported: Exported, tmp_path: Path, recipe: str
) -> None:
    out = quantize(exported.bundle, tmp_path / "q.edge", recipe=recipe, say=lambda _: None)
    model = load_checkpoint(exported.checkpoint).model
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(p.to(DTYPES[recipe]).float())
        expected = model.double()(torch.from_numpy(TOKENS)[None])[0][0].numpy()
        exact = exported.model(torch.from_numpy(TOKENS)[None])[0][0].numpy()
    session = open_session(Bundle.open(out), 1)
    found = run_steps(session, TOKENS)
    assert np.abs(found - expected).max() < 2e-4
    assert np.abs(exact - expected).max() > 1e-3
    session.reset()
    assert np.abs(session.prefill(TOKENS.tolist()).reshape(-1) - expected[-1]).max() < 2e-4


@pytest.mark.parametrize("recipe", DTYPES)
def test_the_file_is_half_as_large(exported: Exported, tmp_path: Path, recipe: str) -> None:
    """Matrices of a micro model lie on pages of 4,096 bytes each, so they are counted."""
    out = quantize(exported.bundle, tmp_path / "q.edge", recipe=recipe, say=lambda _: None)
    bundle = Bundle.open(out)
    tensors = bundle.manifest.quantization.tensors
    assert {t.scheme for t in tensors} == {"float16" if recipe == "fp16" else "bfloat16"}
    matrices = [-(-2 * int(np.prod(t.shape)) // 4096) * 4096 for t in tensors]
    assert (out / "weights.bin").stat().st_size <= sum(matrices) + 4096
    parity = measure_kernel_parity(bundle, TOKENS[:16])
    assert parity.logit_error_max <= 1e-4


@pytest.mark.parametrize("recipe", DTYPES)
@pytest.mark.parametrize("flavour", ["ort", "portable"])
def test_both_flavours_take_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, recipe: str, flavour: Flavour
) -> None:
    source = exported_once(tmp_path_factory.getbasetemp(), "base", flavour).bundle
    out = quantize(source, tmp_path / "q.edge", recipe=recipe, say=lambda _: None)
    logits = [run_steps(open_session(Bundle.open(path), 1), TOKENS) for path in (source, out)]
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.5
    before, after = (Bundle.open(path).manifest.graph("step") for path in (source, out))
    assert after.needs == before.needs
