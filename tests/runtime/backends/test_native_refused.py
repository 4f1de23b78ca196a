"""What the native backend refuses: recipes, graphs, models, and plans that do not hold up."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import native_bundles
import pytest
from micro_checkpoint import VOCABULARY, exported_once
from model_table import changed, decode_table, header_of
from native_bundles import Export, Quantized, mixed, silent
from tiny_bundle import rewrite_manifest

from retnet_edge.errors import InputError
from retnet_edge.pipeline.build import build
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.schemes import BlockInt6, BlockInt8, Float32
from retnet_edge.runtime.backends.native import library as native_library
from retnet_edge.runtime.backends.native.session import open_model
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import digest

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


def copied_to(bundle: Bundle, folder: Path) -> Path:
    folder.mkdir()
    for path in bundle.path.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def damaged(bundle: Bundle, folder: Path, change: Callable[[Any], None]) -> Bundle:
    """A copy with its plan as older versions wrote it, changed; its manifest agrees with it."""
    copied = copied_to(bundle, folder / "damaged.edge")
    table = copied / "native.table"
    plan = json.loads(msgspec.json.encode(decode_table(table.read_bytes())))
    table.unlink()
    change(plan)
    (copied / "native.json").write_text(json.dumps(plan))
    files = {
        name.replace("native.table", "native.json"): entry
        for name, entry in bundle.manifest.files.items()
    }
    graphs = tuple(
        msgspec.structs.replace(graph, file=graph.file.replace("native.table", "native.json"))
        for graph in bundle.manifest.graphs
    )
    rewrite_manifest(copied, rehash=True, files=files, graphs=graphs)
    return Bundle.open(copied)


def with_table(bundle: Bundle, folder: Path, change: Callable[[bytes], bytes]) -> Bundle:
    """A copy whose table was changed, and whose manifest agrees with it."""
    copied = copied_to(bundle, folder / "table.edge")
    table = copied / "native.table"
    table.write_bytes(change(table.read_bytes()))
    rewrite_manifest(copied, rehash=True)
    return Bundle.open(copied)


def test_a_plan_of_an_older_version(quantized: Quantized, tmp_path: Path) -> None:
    old = open_session(damaged(quantized(), tmp_path, lambda p: None), threads=1, backend="native")
    new = open_session(quantized(), threads=1, backend="native")
    assert old.prefill([1, 2, 3]).tobytes() == new.prefill([1, 2, 3]).tobytes()


def of_layer(index: int, at: int, *numbers: int) -> Callable[[bytes], bytes]:
    """int32 numbers at a byte of a layer's record."""

    def change(table: bytes) -> bytes:
        start = header_of(table)["layers_offset"] + 456 * index + at
        put = struct.pack(f"<{len(numbers)}i", *numbers)
        return table[:start] + put + table[start + len(put) :]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:100], "native.table: it has 100 bytes; at least 328 are needed"),
        (lambda t: t[:-8], r"native.table: it has \d+ bytes, and says \d+"),
        (lambda t: t + bytes(8), r"native.table: it has \d+ bytes, and says \d+"),
        (lambda t: changed(t, version=2), "native.table: its version is 2"),
        (lambda t: changed(t, flags=6), "native.table: flags is 6, and 1 in the manifest's conf"),
        (lambda t: changed(t, layer_count=1), "layers is 1, and 2 in the manifest's"),
        (lambda t: changed(t, d_model=63), "d_model is 63, and 64 in the manifest's"),
        (lambda t: changed(t, heads=3), "heads is 3, and 2 in the manifest's"),
        (lambda t: changed(t, key_dim=12), "key_head_dim is 12, and 10 in the manifest's"),
        (lambda t: changed(t, value_dim=15), "value_head_dim is 15, and 14 in the manifest's"),
        (lambda t: changed(t, ffn_dim=1), "ffn_dim is 1, and "),
        (lambda t: changed(t, vocab_size=383), "vocab_size is 383, and 384 in the manifest's"),
        (lambda t: changed(t, decay=1), "decay is 1, and 0 in the manifest's"),
        (lambda t: changed(t, conv_width=4), "convolution is 4, and 0 in the manifest's"),
        (lambda t: changed(t, norm_eps=0.5), "norm_eps is 0.5, and 1e-06 in the manifest's"),
        (lambda t: changed(t, head_norm_eps=0.5), "head_norm_eps is 0.5, and 1e-06 in the man"),
        (
            lambda t: changed(t, gammas_offset=header_of(t)["frequencies_offset"]),
            "its gammas are not those of the manifest's configuration",
        ),
        (
            lambda t: changed(t, frequencies_offset=header_of(t)["gammas_offset"]),
            "its thetas are not those of the manifest's configuration",
        ),
        (lambda t: changed(t, layers_offset=2**40), "2 layers lie at byte 1099511627776"),
        (lambda t: changed(t, own_bytes=2**63), "own bytes lie at byte"),
        (of_layer(0, 72 + 72, 5), r"layer 0 qkvg is \[5, 64\]; the model says"),
        (of_layer(1, 72 + 96 + 84, 160), "layer 1 out has blocks of 160; allowed are 32, 64"),
    ],
)
def test_tables_that_do_not_hold_up(
    quantized: Quantized, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    """What C refuses is in check_refused.c as well, in every field."""
    bundle = with_table(quantized(), tmp_path, change)
    with pytest.raises(InputError, match=message) as caught:
        open_session(bundle, threads=1, backend="native")
    assert "\n" not in str(caught.value)
    assert open_session(bundle, threads=1).step(1).shape == (VOCABULARY,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(version=2), "version is 2; this one reads 1"),
        (lambda p: p.update(extra=1), "not a valid plan"),
        (lambda p: p["layers"].pop(), "1 layers; the model has 2"),
        (lambda p: p["head"]["codes"].update(offset=2**40), "head: codes lies at bytes"),
        (lambda p: p["head"]["codes"].update(size=64), "head: codes has 64 bytes; its shape"),
        (lambda p: p["head"].update(block=512), "head has blocks of 512"),
        (lambda p: p["head"].update(block=96), "head has blocks of 96; .* 32, 64, 128 and 256"),
        (lambda p: p["layers"][0]["out"].update(block=160, bits=4), "out has blocks of 160"),
        (lambda p: p["layers"][1]["down"].update(block=224), "layer 1 down has blocks of 224"),
        (lambda p: p["head"].update(bits=6), "not a valid plan"),
        (lambda p: p["head"]["scales"].update(offset=2), "scales lies at byte 2; numbers of 4"),
        (lambda p: p.update(final_norm={"offset": 5, "size": 256}), "final_norm lies at byte 5"),
        (
            lambda p: p["layers"][1].update(head_norm=base64.b64encode(b"\xff" * 56).decode()),
            "layer 1: head_norm holds what is no finite number",
        ),
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


@pytest.mark.parametrize(
    "put", [b'"\xff": 1, "', b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "']
)
def test_a_plan_that_is_odd_text(quantized: Quantized, tmp_path: Path, put: bytes) -> None:
    copied = damaged(quantized(), tmp_path, lambda plan: None).path
    raw = (copied / "native.json").read_bytes()
    (copied / "native.json").write_bytes(raw.replace(b'"', put, 1))
    rewrite_manifest(copied, rehash=True)
    with pytest.raises(InputError, match="not a valid plan"):
        open_session(Bundle.open(copied), threads=1, backend="native")


def resized(change: Callable[[list[Any]], list[Any]]) -> Callable[[dict[str, Any]], None]:
    """Changes the states' records, and the graphs' that have to agree with them."""

    def edit(raw: dict[str, Any]) -> None:
        raw["states"] = change(raw["states"])
        for graph in raw["graphs"]:
            graph["inputs"][2:] = change(graph["inputs"][2:])
            graph["outputs"][1:] = change(graph["outputs"][1:])

    return edit


def one_number(records: list[Any]) -> list[Any]:
    return [record | {"shape": [record["shape"][0], 1, 1, 1]} for record in records]


def vocabulary(size: int) -> Callable[[dict[str, Any]], None]:
    def edit(raw: dict[str, Any]) -> None:
        raw["model"]["vocab_size"] = size
        for graph in raw["graphs"]:
            graph["outputs"][0]["shape"][1] = size

    return edit


def configured(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """None: without the key."""

    def edit(raw: dict[str, Any]) -> None:
        config = raw["model"]["config"] | changes
        raw["model"]["config"] = {k: v for k, v in config.items() if v is not None}

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (resized(one_number), r"'state_0' has shape \[batch, 1, 1, 1\]; the model's configuration"),
        (resized(lambda records: records[:1]), "1 states; the model's configuration has 2 layers"),
        (resized(lambda records: []), "0 states; the model's configuration has 2 layers"),
        (vocabulary(VOCABULARY - 1), "vocab_size is 383, and 384 in the model's configuration"),
        (vocabulary(VOCABULARY + 1), "vocab_size is 385, and 384 in the model's configuration"),
        (configured(layers=1), "2 states; the model's configuration has 1 layers"),
        (configured(vocab_size=383), "vocab_size is 384, and 383 in the model's configuration"),
        (configured(value_head_dim=7), r"configuration says \[batch, 2, 10, 7\]"),
        # what the shapes say nothing about, and what the native backend asks for beyond the others
        (
            configured(d_model=32),
            "native.table: d_model is 64, and 32 in the manifest's",
        ),
        (configured(ffn_dim=26), "native.table: ffn_dim is 52, and 26 in the manifest's"),
        (configured(ffn="mlp"), "native.table: flags is 1, and 0 in the manifest's"),
        (configured(gammas=[0.5, 0.75]), "native.table: its gammas are not those of the manifest"),
        (configured(layers=None), "manifest.json: not a valid model configuration"),
        (configured(vocab_size=None), "manifest.json: not a valid model configuration"),
        (configured(gammas=[0.5, 1.5]), "gammas holds 1.5; a decay lies in"),
        (configured(gammas=[0.5]), "gammas has 1 values; 2 heads need one each"),
        (configured(thetas=[1.0] * 4), "thetas has 4 values"),
        (configured(norm_eps=1e-300), "norm_eps is 1e-06, and 0 in the manifest's"),
        (configured(head_norm_eps=1e-60), "head_norm_eps is 1e-06, and 0 in the manifest's"),
    ],
)
def test_manifests_of_another_model(
    quantized: Quantized, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Its hash mended: what it says is held against the plan, and against itself."""
    source = quantized()
    copied = tmp_path / "changed.edge"
    copied.mkdir()
    for path in source.path.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    raw = json.loads((copied / "manifest.json").read_bytes())
    change(raw)
    raw["manifest_sha256"] = digest(raw)
    (copied / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as caught:
        open_session(Bundle.open(copied), threads=1, backend="native")
    assert "\n" not in str(caught.value)


def test_threads_that_native_refuses_itself(quantized: Quantized) -> None:
    """Past the check in Python."""
    model = open_model(quantized())
    for bad in (0, 257, 100_000):
        with pytest.raises(InputError, match="the number of threads is not 1 to 256"):
            native_library.Sequence(model, bad)


def test_an_empty_file_of_weights(quantized: Quantized, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(quantized().path, tmp_path / "empty.edge"))
    for name in ("weights.bin", "step.onnx", "prefill.onnx"):
        (copied / name).unlink()
    (copied / "weights.bin").write_bytes(b"")
    manifest = quantized().manifest
    graphs = tuple(graph for graph in manifest.graphs if graph.backend == "native")
    files = {n: f for n, f in manifest.files.items() if n not in ("step.onnx", "prefill.onnx")}
    rewrite_manifest(copied, rehash=True, graphs=graphs, files=files)
    with pytest.raises(InputError, match=r"weights.bin is empty; it should hold the weights"):
        open_session(Bundle.open(copied), threads=1, backend="native")
