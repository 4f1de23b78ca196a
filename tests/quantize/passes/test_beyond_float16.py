"""What 16 bits cannot hold, and what is not finite, is refused by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from micro_checkpoint import Exported, exported_once, write_variant
from safetensors.torch import load_file, save_file
from tiny_bundle import rewrite_manifest

from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.tuning.tune import tune
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle

LARGE = "blocks.1.ffn.out.weight"


def with_value(value: float, folder: Path) -> Path:
    """The base checkpoint with one weight of another value."""
    checkpoint = write_variant("base", folder)
    weights = load_file(checkpoint / "model.safetensors")
    weights[LARGE][3, 5] = value
    save_file(weights, checkpoint / "model.safetensors")
    return checkpoint


def exported(value: float, folder: Path) -> Path:
    return export(with_value(value, folder), folder / "fp32.edge", say=lambda _: None)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(70_000.0, tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(3.3999e38, tmp_path_factory.mktemp("larger"))


def refused(bundle: Path, out: Path, recipe: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        quantize(bundle, out, recipe=recipe, say=lambda _: None)
    assert not out.exists()


def test_a_weight_beyond_float16(large: Path, tmp_path: Path) -> None:
    refused(large, tmp_path / "q.edge", "fp16", rf"{LARGE} holds 70000, which float16 cannot")
    for recipe in ("bf16", "int8"):
        out = quantize(large, tmp_path / f"{recipe}.edge", recipe=recipe, say=lambda _: None)
        assert np.isfinite(open_session(Bundle.open(out), 1).step(3)).all()


@pytest.mark.parametrize("recipe", ["int4", "int4-weight"])
def test_a_scale_beyond_float16(larger: Path, tmp_path: Path, recipe: str) -> None:
    """Clipped, it would stand for other weights."""
    out = tmp_path / "q.edge"
    refused(larger, out, recipe, rf"{LARGE} holds 3.3999e\+38: the scale of a block of 4 bits")


def test_a_weight_beyond_bfloat16(larger: Path, tmp_path: Path) -> None:
    refused(larger, tmp_path / "q.edge", "bf16", rf"{LARGE} holds 3.3999e\+38, which bfloat16")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_that_is_not_finite_is_not_exported(value: float, tmp_path: Path) -> None:
    checkpoint = with_value(value, tmp_path)
    with pytest.raises(InputError, match=f"{LARGE} holds a value that is not finite"):
        export(checkpoint, tmp_path / "fp32.edge", say=lambda _: None)
    assert not (tmp_path / "fp32.edge").exists()


def poisoned(source: Path, out: Path, name: str) -> Path:
    """A copy of a bundle, its hashes mended, with one NaN in a constant of its prefill graph."""
    shutil.copytree(source, out)
    model = ir.load(out / "prefill.onnx")
    tensor = model.graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    with (out / "weights.bin").open("r+b") as file:
        file.seek(tensor.offset or 0)
        file.write(np.array([np.nan], dtype=tensor.dtype.numpy()).tobytes())
    rewrite_manifest(out, rehash=True)
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


def test_a_bundle_that_is_not_finite_is_not_quantized(base: Exported, tmp_path: Path) -> None:
    bundle = poisoned(base.bundle, tmp_path / "nan.edge", LARGE)
    for recipe in ("int8", "fp16", "int8-static"):
        said = rf"prefill\.onnx: {LARGE} holds a value that is not finite"
        refused(bundle, tmp_path / "q.edge", recipe, said)


def test_a_bundle_that_is_not_finite_is_not_tuned(base: Exported, tmp_path: Path) -> None:
    four = quantize(base.bundle, tmp_path / "int8.edge", recipe="int8", say=lambda _: None)
    bundle = poisoned(four, tmp_path / "nan.edge", f"{LARGE}.scales")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat " * 400)
    with pytest.raises(InputError, match=rf"\.onnx: {LARGE}\.scales holds a value that is not fin"):
        tune(bundle, tmp_path / "t.edge", checkpoint=base.checkpoint, data=[text])
    assert not (tmp_path / "t.edge").exists()
