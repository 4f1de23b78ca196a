"""Tuning a quantized bundle: where it starts, what it learns, what it leaves alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from micro_checkpoint import VOCABULARY, Exported, exported_once, write_variant

from retnet_edge.cli import main
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.graphs.block_tensors import read_blocks
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.numerics.rounding import BlockQuantized, round_blocks
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.tuning.trainable_blocks import TrainableBlocks
from retnet_edge.quantize.tuning.tune import TuneOptions, kl_divergence, lr_factor, tune
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.replay import run_steps

OPTIONS = TuneOptions(steps=30, batch=4, seq_len=64, lr=0.02)
TEXT = "The cat sat on the mat, and the dog sat by the door of the old house.\n\n" * 60


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def int4(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int4") / "int4.edge"
    return quantize(exported.bundle, out, recipe="int4-weight", say=silent)


@pytest.fixture(scope="module")
def tuned(
    exported: Exported, int4: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "tuned.edge"
    return tune(int4, out, checkpoint=exported.checkpoint, data=[text], options=OPTIONS, say=silent)


def blocks_in(bundle: Path, kind: str = "step") -> dict[str, BlockQuantized]:
    return read_blocks(ir.load(bundle / f"{kind}.onnx"))


def kl_of(exported: Exported, bundle: Path) -> float:
    """To the float model, of its weights alone, on the text."""
    source = load_checkpoint(exported.checkpoint)
    model = source.model.eval()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    weights = {
        name: torch.from_numpy(blocks.matrix(shapes[name][1]))
        for name, blocks in blocks_in(bundle).items()
    }
    tokens = torch.tensor([source.tokenizer.encode(TEXT).ids[:200]])
    with torch.no_grad():
        return float(kl_divergence(model, weights, tokens))


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (6, True), (8, True)])
@pytest.mark.parametrize("inputs", [64, 52])
def test_it_starts_as_the_bundle_is(bits: int, symmetric: bool, inputs: int) -> None:
    """With latents inside the cells of the codes, also of codes that are not the nearest."""
    weight = np.random.default_rng(1).standard_normal((24, inputs)).astype(np.float32)
    blocks = round_blocks(weight, 32, bits, symmetric=symmetric)
    codes = blocks.codes.copy()
    codes[3, 0, 5] = min(codes[3, 0, 5] + 2, 2**bits - 1)
    blocks = BlockQuantized(codes, blocks.scales, blocks.zeros, bits)
    matrix = TrainableBlocks(blocks, torch.from_numpy(weight))
    found = matrix.blocks()
    np.testing.assert_array_equal(found.codes, blocks.codes)
    np.testing.assert_array_equal(found.scales, blocks.scales)
    np.testing.assert_array_equal(found.zeros, blocks.zeros)
    np.testing.assert_allclose(matrix().detach().numpy(), blocks.matrix(inputs), atol=1e-6)
    assert (matrix.latent - matrix.latent.round()).abs().max() <= 0.4901


def test_what_the_graph_stores_is_what_was_trained() -> None:
    weight = torch.randn(24, 52, generator=torch.Generator().manual_seed(2))
    matrix = TrainableBlocks(round_blocks(weight.numpy(), 32, 4, symmetric=False), weight)
    before = matrix.blocks()
    with torch.no_grad():
        matrix.latent.add_(torch.randn(matrix.latent.shape))
        matrix.log_scale.add_(0.1)
    after = matrix.blocks()
    assert (after.codes != before.codes).mean() > 0.1
    np.testing.assert_allclose(after.scales, before.scales * np.exp(0.1), rtol=2.0**-11)
    np.testing.assert_array_equal(after.scales, after.scales.astype(np.float16))
    np.testing.assert_allclose(after.matrix(52), matrix().detach().numpy(), atol=1e-6)


def test_scales_of_8_bits_are_not_rounded() -> None:
    weight = torch.randn(24, 52, generator=torch.Generator().manual_seed(2))
    matrix = TrainableBlocks(round_blocks(weight.numpy(), 32, 8, symmetric=True), weight)
    before = matrix.blocks()
    with torch.no_grad():
        matrix.log_scale.add_(0.1)
    np.testing.assert_allclose(matrix.blocks().scales, before.scales * np.exp(0.1), rtol=1e-6)


def test_gradients_reach_codes_and_scales() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    matrix = TrainableBlocks(round_blocks(weight.numpy(), 32, 4, symmetric=True), weight)
    (matrix() * torch.ones(8, 32)).sum().backward()
    assert matrix.latent.grad is not None
    assert matrix.log_scale.grad is not None
    inside = (matrix.latent > 0) & (matrix.latent < 15)
    scales = matrix.scales[..., None].expand_as(matrix.latent)
    torch.testing.assert_close(matrix.latent.grad[inside], scales[inside])
    torch.testing.assert_close(matrix.log_scale.grad[:, 0], matrix().sum(1).detach())


def test_tuning_brings_the_bundle_closer_to_its_model(
    exported: Exported, int4: Path, tuned: Path
) -> None:
    before, after = kl_of(exported, int4), kl_of(exported, tuned)
    assert before > 1e-3
    assert after < 0.8 * before


def test_the_graphs_compute_what_their_constants_say(int4: Path, tuned: Path) -> None:
    bundle = Bundle.open(tuned)
    step, prefill, first = blocks_in(tuned), blocks_in(tuned, "prefill"), blocks_in(int4)
    assert step.keys() == prefill.keys() == first.keys()
    for name, blocks in step.items():
        np.testing.assert_array_equal(blocks.codes, prefill[name].codes)
        np.testing.assert_array_equal(blocks.scales, prefill[name].scales)
        np.testing.assert_array_equal(blocks.zeros, first[name].zeros)
        assert (blocks.codes != first[name].codes).any(), name
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, 40)
    found = measure_kernel_parity(bundle, tokens)
    assert found.product_error <= 1e-4
    assert found.logit_error_median <= 1e-4
    stepped, filled = open_session(bundle, 1), open_session(bundle, 1)
    logits = run_steps(stepped, tokens)[-1]
    assert np.abs(filled.prefill(tokens.tolist()).reshape(-1) - logits).max() <= 0.05
    assert (tuned / "weights.bin").stat().st_size == (int4 / "weights.bin").stat().st_size


def test_the_manifest_says_tuned(int4: Path, tuned: Path) -> None:
    before, after = Bundle.open(int4).manifest, Bundle.open(tuned).manifest
    assert after.quantization.recipe == "int4-weight-tuned"
    schemes = [t.scheme for t in after.quantization.tensors]
    assert schemes == [f"{t.scheme}-tuned" for t in before.quantization.tensors]
    assert after.tolerance == before.tolerance
    assert after.provenance == before.provenance
    assert after.verification.status == "unverified"


def test_the_same_seed_gives_the_same_bundle(
    exported: Exported, int4: Path, text: Path, tmp_path: Path
) -> None:
    options = msgspec.structs.replace(OPTIONS, steps=3)
    weights: list[bytes] = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(weights)}.edge"
        chosen = msgspec.structs.replace(options, seed=seed)
        tune(int4, out, checkpoint=exported.checkpoint, data=[text], options=chosen, say=silent)
        weights.append((out / "weights.bin").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_kl_that_is_not_finite_leaves_nothing(
    exported: Exported, int4: Path, text: Path, tmp_path: Path
) -> None:
    options = msgspec.structs.replace(OPTIONS, steps=10, lr=1e6)
    with pytest.raises(CheckFailed, match="the KL is nan by step"):
        tune(
            int4,
            tmp_path / "t.edge",
            checkpoint=exported.checkpoint,
            data=[text],
            options=options,
            say=silent,
        )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_tuned_is_refused(
    exported: Exported, int4: Path, text: Path, tmp_path: Path
) -> None:
    dynamic = quantize(exported.bundle, tmp_path / "d.edge", recipe="int8-dynamic", say=silent)
    other = write_variant("untied", tmp_path / "other")
    short = tmp_path / "short.txt"
    short.write_text("The cat sat.")
    out = tmp_path / "t.edge"
    for bundle, checkpoint, data, sentence in (
        (exported.bundle, exported.checkpoint, text, "no matrix of recipe fp32 is in blocks"),
        (dynamic, exported.checkpoint, text, "no matrix of recipe int8-dynamic is in blocks"),
        (int4, other, text, "was not made from"),
        (int4, exported.checkpoint, tmp_path / "none.txt", "none.txt"),
        (int4, exported.checkpoint, short, "are too few for sequences of 64"),
    ):
        with pytest.raises(InputError, match=sentence):
            tune(bundle, out, checkpoint=checkpoint, data=[data], options=OPTIONS, say=silent)
        assert not out.exists()
    with pytest.raises(InputError, match="exists already"):
        tune(int4, dynamic, checkpoint=exported.checkpoint, data=[text], say=silent)


def test_the_rate_rises_and_falls() -> None:
    rates = [lr_factor(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] < 1e-3
    assert lr_factor(0, 1) == 1.0


def test_the_command(
    exported: Exported, int4: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.edge"
    given = ["tune", str(int4), str(out), "--checkpoint", str(exported.checkpoint)]
    given += ["--data", str(text), "--batch", "2", "--seq-len", "32", "--device", "cpu"]
    assert main([*given, "--steps", "2"]) == 0
    said = capfd.readouterr()
    assert said.out == f"wrote {out}\n"
    assert "step 2/2  KL " in said.err
    assert Bundle.open(out).manifest.quantization.recipe == "int4-weight-tuned"
    assert main([*given, "--steps", "2"]) == 2
    assert "exists already" in capfd.readouterr().err
    assert main([*given, "--steps", "0"]) == 2
