"""Packed weights: the same figures, taken only where they fit, and refused when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny, file_size_limit
from micro_checkpoint import exported_once, random_tokens

from retnet_edge import cli
from retnet_edge.errors import InputError
from retnet_edge.export.export import FLAVOURS
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.runtime.backends.ort.graph import main_graph
from retnet_edge.runtime.backends.ort.prepacked import (
    PACKED_FILE,
    RECORD_FILE,
    find_prepared,
    prepared_folder,
)
from retnet_edge.runtime.backends.ort.prepare import prepare
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle, not prepared."""
    folder = tmp_path_factory.mktemp("made")
    exported = exported_once(tmp_path_factory.getbasetemp(), "base")
    return quantize(exported.bundle, folder / "int8.edge", say=lambda _: None)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "int8.edge"))


def figures(path: Path) -> list[object]:
    session = open_session(Bundle.open(path), threads=1)
    tokens = random_tokens(1, 300)[0].tolist()
    logits = [session.prefill(tokens).copy(), *(session.step(t).copy() for t in tokens[:5])]
    return [*logits, *session.states()]


def test_a_prepared_bundle_computes_the_same_bits(bundle: Path) -> None:
    before = figures(bundle)
    folder = prepare(bundle, say=lambda _: None)
    assert folder == bundle.with_name("int8.edge.prepared")
    opened = Bundle.open(bundle)
    assert find_prepared(opened, "prefill.onnx") == folder / "graph.onnx"
    assert find_prepared(opened, "step.onnx") is None
    for mine, other in zip(figures(bundle), before, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.fixture(scope="module", params=FLAVOURS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of one flavour; no test changes it."""
    return exported_once(tmp_path_factory.getbasetemp(), "base", request.param).bundle


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES["onnxruntime"]])
def test_every_recipe_and_flavour_computes_the_same_bits(
    exported: Path, recipe: str, tmp_path: Path
) -> None:
    if recipe == "int8-static-16" and "portable" in exported.parent.name:
        pytest.skip("quantize refuses it: ONNX 18 lacks its operators (test_static_bundles.py)")
    path = quantize(exported, tmp_path / "q.edge", recipe=recipe, say=lambda _: None)
    before = figures(path)
    prepare(path, say=lambda _: None)
    opened = Bundle.open(path)
    assert find_prepared(opened, main_graph(opened)[1].file) is not None
    for mine, other in zip(figures(path), before, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_preparing_again_replaces_the_folder(bundle: Path) -> None:
    folder = prepare(bundle, say=lambda _: None)
    (folder / "left over").write_text("x")
    assert cli.main(["prepare", str(bundle)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["graph.onnx", PACKED_FILE, RECORD_FILE]
    )
    assert sorted(path.name for path in bundle.parent.iterdir()) == [bundle.name, folder.name]


@pytest.mark.parametrize("field", ["machine", "onnxruntime", "bundle", "graph", "version"])
def test_what_was_packed_for_something_else_is_passed_over(field: str, bundle: Path) -> None:
    before = figures(bundle)
    record = prepare(bundle, say=lambda _: None) / RECORD_FILE
    content = json.loads(record.read_text())
    content["key"][field] = 1 if field == "version" else "0" * 64
    record.write_text(json.dumps(content))
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None
    np.testing.assert_array_equal(figures(bundle)[0], before[0])


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_a_record_that_is_none_is_passed_over(content: bytes, bundle: Path) -> None:
    (prepare(bundle, say=lambda _: None) / RECORD_FILE).write_bytes(content)
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None


def test_damaged_weights_are_refused(bundle: Path) -> None:
    packed = prepare(bundle, say=lambda _: None) / PACKED_FILE
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 1
    for content in (bytes(raw), bytes(raw[:-1])):
        packed.write_bytes(content)
        with pytest.raises(InputError, match=r"was changed since .*prepare .* again"):
            open_session(Bundle.open(bundle))


def test_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    packed = prepare(bundle, say=lambda _: None) / PACKED_FILE
    packed.rename(tmp_path / "elsewhere")
    packed.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a symlink"):
        open_session(Bundle.open(bundle))


def test_a_full_disk_leaves_nothing(bundle: Path) -> None:
    with file_size_limit(20_000), pytest.raises(InputError, match=r"disk full|cannot pack"):
        prepare(bundle, say=lambda _: None)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_graph_that_is_none_is_one_sentence(broken: Path, tiny: Tiny) -> None:
    assert prepared_folder(tiny.open()).name == "tiny.edge.prepared"
    assert cli.main(["prepare", str(broken / "weights.bin")]) == 2
