"""What the native backend refuses: recipes, graphs, models, and plans that do not hold up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import native_bundles
import pytest
from micro_checkpoint import VOCABULARY, exported_once
from native_bundles import Export, Quantized, mixed, silent
from tiny_bundle import rewrite_manifest

from retnet_edge.errors import InputError
from retnet_edge.pipeline.build import build
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.schemes import BlockInt6, BlockInt8, Float32
from retnet_edge.runtime.backends.native import library as native_library
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle

pytestmark = native_bundles.NEEDS_THE_LIBRARY
exported = native_bundles.exported
quantized = native_bundles.quantized


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("int8-dynamic", {}, "is int8-dynamic-tail1.5; the native backend takes blocks"),
        (mixed("six", BlockInt6()), {}, "rule '.*' is int6-block128; the native backend takes"),
        (mixed("some float", Float32()), {}, "is float32; the native backend takes blocks of 8 or"),
        (mixed("sixteen", BlockInt8(block=16)), {}, "layer 0 qkvg has blocks of 16"),
        ("int8", {"state": "int8"}, "keeps its states in int8; the native backend keeps float32"),
    ],
)
def test_refused_recipes(
    exported: Export, tmp_path: Path, recipe: Any, options: dict[str, Any], message: str
) -> None:
    bundle = exported("base").bundle
    with pytest.raises(InputError, match=message):
        quantize(bundle, tmp_path / "q.edge", recipe=recipe, native=True, say=silent, **options)
    assert not list(tmp_path.iterdir())


def test_refused_graphs(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Of the portable flavour, whose products are no MatMulNBits."""
    portable = exported_once(tmp_path_factory.getbasetemp(), "base", "portable").bundle
    with pytest.raises(InputError, match="the native backend"):
        quantize(portable, tmp_path / "q.edge", recipe="int8", native=True, say=silent)
    assert not (tmp_path / "q.edge").exists()


def test_refused_models(exported: Export, tmp_path: Path) -> None:
    other = exported("transformer")
    with pytest.raises(InputError, match="runs RetNets, and this is a transformer"):
        quantize(other.bundle, tmp_path / "q.edge", recipe="int8", native=True, say=silent)
    assert not (tmp_path / "q.edge").exists()
    with pytest.raises(InputError, match="native needs a recipe of 4 or 8 bits"):
        build(tmp_path, tmp_path / "b.edge", text=tmp_path, recipe="fp32", native=True)
    with pytest.raises(InputError, match="has no graphs for native; it has: onnxruntime"):
        open_session(Bundle.open(exported("base").bundle), backend="native")


def test_without_the_library(
    exported: Export, quantized: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = quantized()
    monkeypatch.setattr(native_library, "_LIBRARY", None)
    with pytest.raises(InputError, match="for want of a C compiler"):
        open_session(bundle, backend="native")
    source = exported("base").bundle
    with pytest.raises(InputError, match="for want of a C compiler"):
        quantize(source, tmp_path / "q.edge", recipe="int8", native=True, say=silent)
    assert open_session(bundle, threads=1).step(1).shape == (VOCABULARY,)


def damaged(bundle: Bundle, folder: Path, change: Callable[[Any], None]) -> Bundle:
    """A copy whose plan was changed, and whose manifest agrees with it."""
    copied = folder / "damaged.edge"
    copied.mkdir()
    for path in bundle.path.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    plan = json.loads((copied / "native.json").read_bytes())
    change(plan)
    (copied / "native.json").write_text(json.dumps(plan))
    rewrite_manifest(copied, rehash=True)
    return Bundle.open(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(version=2), "version is 2; this one reads 1"),
        (lambda p: p.update(extra=1), "not a valid plan"),
        (lambda p: p["layers"].pop(), "1 layers; the model has 2"),
        (lambda p: p["head"]["codes"].update(offset=2**40), "head: codes lies at bytes"),
        (lambda p: p["head"]["codes"].update(size=64), "head: codes has 64 bytes; its shape"),
        (lambda p: p["head"].update(block=512), "head has blocks of 512"),
        (lambda p: p["head"].update(bits=6), "not a valid plan"),
        (lambda p: p["layers"][1]["out"].update(inputs=29), "layer 1 out is"),
        (lambda p: p.update(final_norm="AAAA"), "final_norm has 3 bytes; its shape needs 256"),
    ],
)
def test_plans_that_do_not_hold_up(
    quantized: Quantized, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    bundle = damaged(quantized(), tmp_path, change)
    with pytest.raises(InputError, match=message):
        open_session(bundle, threads=1, backend="native")
    assert open_session(bundle, threads=1).step(1).shape == (VOCABULARY,)
