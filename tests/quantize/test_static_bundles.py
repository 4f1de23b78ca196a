"""Static recipes and states in fewer bits in both flavours of graphs: kernels and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from micro_checkpoint import exported_once

from retnet_edge.errors import InputError
from retnet_edge.export.contract import Flavour
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.schemes import StateScheme
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.replay import run_steps

TOKENS = np.random.default_rng(5).integers(0, 384, 48)
FLAVOURS: list[Flavour] = ["ort", "portable"]


@pytest.fixture(scope="module", params=FLAVOURS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(
        exported_once(tmp_path_factory.getbasetemp(), "untied", request.param).bundle
    )


def is_portable(bundle: Bundle) -> bool:
    return all(g.operator_sets == {"ai.onnx": 18} for g in bundle.manifest.graphs)


@pytest.mark.parametrize("state", ["float32", "float16", "int8"])
@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic"])
def test_kernels_and_both_graphs(
    exported: Bundle, tmp_path: Path, recipe: str, state: StateScheme
) -> None:
    out = quantize(
        exported.path, tmp_path / "q.edge", recipe=recipe, state=state, say=lambda _: None
    )
    bundle = Bundle.open(out)
    assert is_portable(bundle) == is_portable(exported)
    found = measure_kernel_parity(bundle, TOKENS)
    # four matrices in each of two layers, and a head; int8-static splits two of the four, and
    # int8-dynamic everything
    assert found.products == (18 if recipe == "int8-dynamic" else 13)
    assert found.product_error <= 1e-4
    assert found.logit_error_median <= 1e-4
    plain, stepped, prompted = (open_session(b, threads=1) for b in (exported, bundle, bundle))
    wanted = run_steps(plain, TOKENS)[-1]
    assert np.linalg.norm(run_steps(stepped, TOKENS)[-1] - wanted) <= 0.2 * np.linalg.norm(wanted)
    logits = prompted.prefill(TOKENS.tolist())
    assert np.linalg.norm(logits - wanted) <= 0.2 * np.linalg.norm(wanted)


def test_sixteen_bits(exported: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "q.edge"
    if is_portable(exported):
        with pytest.raises(InputError, match="16-bit activations, which ONNX has since"):
            quantize(exported.path, out, recipe="int8-static-16", say=lambda _: None)
        assert not out.exists()
        return
    quantize(exported.path, out, recipe="int8-static-16", say=lambda _: None)
    found = measure_kernel_parity(Bundle.open(out), TOKENS)
    assert found.int16_activations
    assert found.product_error <= 1e-4
    assert found.logit_error_median <= 5e-3
