"""A bundle is taken apart in every way that can be thought of; each time one sentence comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from conftest import Tiny
from tiny_bundle import rewrite_manifest, write_tiny_bundle

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(InputError) as caught:
        Bundle.open(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for fragment in (str(path), *fragments):
        assert fragment in sentence


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change manifest.json as JSON, past the writer's own checks."""
    raw = json.loads((path / "manifest.json").read_bytes())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def test_a_sound_bundle_opens(tiny: Tiny) -> None:
    bundle = tiny.open()
    assert bundle.file("weights.bin").stat().st_size == bundle.manifest.files["weights.bin"].size
    assert bundle.tokenizer().get_vocab_size() == tiny.model.vocab
    assert bundle.bytes_on_disk == sum(p.stat().st_size for p in tiny.path.iterdir())
    with pytest.raises(InputError, match="lists no file 'other'"):
        bundle.file("other")


def test_a_growing_state_opens(tiny_transformer: Tiny) -> None:
    manifest = tiny_transformer.open().manifest
    assert manifest.state_bytes(10) == 10 * 4 * 2 * (4 + 6)


def test_no_bundle_there(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist")
    refused(tmp_path, "has no manifest.json")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")


def test_schema(broken: Path) -> None:
    rewrite_manifest(broken, schema_version=99)
    refused(broken, "schema_version is 99", "reads 1")


def test_manifest_that_is_no_json(broken: Path) -> None:
    (broken / "manifest.json").write_text("{")
    refused(broken, "not a valid manifest")


def test_a_huge_manifest_is_not_read(broken: Path) -> None:
    with (broken / "manifest.json").open("r+b") as file:
        file.truncate(1 << 30)
    refused(broken, "a manifest has at most")


def test_a_changed_byte(broken: Path) -> None:
    raw = bytearray((broken / "weights.bin").read_bytes())
    raw[1000] ^= 1
    (broken / "weights.bin").write_bytes(raw)
    refused(broken, "weights.bin was changed", "SHA-256")


def test_a_changed_size(broken: Path) -> None:
    with (broken / "weights.bin").open("ab") as file:
        file.write(b"x")
    refused(broken, "weights.bin has 24897 bytes; the manifest says 24896")


def test_a_missing_file(broken: Path) -> None:
    (broken / "weights.bin").unlink()
    refused(broken, "'weights.bin' is missing")


def test_a_truncated_graph_with_a_matching_hash(broken: Path) -> None:
    raw = (broken / "step.onnx").read_bytes()
    (broken / "step.onnx").write_bytes(raw[: len(raw) // 2])
    rewrite_manifest(broken, rehash=True)
    refused(broken, "step.onnx is truncated or not an ONNX graph")


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "/etc/passwd", "a/../../x", "..\\x", "*/_ORT_MEM_ADDR_/*", "weights.bin\0"],
)
def test_external_data_outside(location: str, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"\0" * 30000)
    model = onnx.load_model(broken / "step.onnx", load_external_data=False)
    external = next(t for t in model.graph.initializer if t.external_data)
    external.external_data[0].value = location
    (broken / "step.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(broken, rehash=True)
    refused(broken, "step.onnx", "is not allowed", "inside the bundle")


def test_external_data_that_the_manifest_does_not_list(broken: Path, tiny: Tiny) -> None:
    graphs = tuple(
        msgspec.structs.replace(graph, external_data=()) for graph in tiny.open().manifest.graphs
    )
    rewrite_manifest(broken, graphs=graphs)
    refused(broken, "step.onnx", "'weights.bin', which the manifest does not list")


def test_external_data_past_the_end_of_its_file(broken: Path) -> None:
    (broken / "weights.bin").write_bytes(b"\0" * 100)
    rewrite_manifest(broken, rehash=True)
    refused(broken, "of 'weights.bin', which has 100")


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json"])
def test_a_symlink(name: str, broken: Path, tmp_path: Path) -> None:
    (broken / name).rename(tmp_path / "elsewhere")
    (broken / name).symlink_to(tmp_path / "elsewhere")
    refused(broken, f"{name} is a symlink")


def test_a_folder_that_is_a_symlink(broken: Path, tmp_path: Path) -> None:
    (broken / "reports").mkdir()
    (broken / "reports/a.json").write_text("{}")
    rewrite_manifest(broken, rehash=True)
    Bundle.open(broken)
    (broken / "reports").rename(tmp_path / "elsewhere")
    (broken / "reports").symlink_to(tmp_path / "elsewhere")
    refused(broken, "reports is a symlink")


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a//b", ".hidden", "a\\b", "a\0b", "C:x", "a/..", "é"]
)
def test_file_names(name: str, broken: Path) -> None:
    edit(broken, lambda raw: raw["files"].update({name: raw["files"]["weights.bin"]}))
    refused(broken, repr(name), "is not allowed")


@pytest.mark.parametrize("name", ["tokenizer.json", "step.onnx", "weights.bin"])
def test_a_file_that_is_used_but_not_listed(name: str, broken: Path) -> None:
    edit(broken, lambda raw: raw["files"].pop(name))
    refused(broken, f"{name!r} (", "is not listed in files")


def test_tokenizer_larger_than_the_vocabulary(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", vocab=299)
    refused(tmp_path / "b", "does not match the vocabulary", "300 tokens", "the model 299")


def test_tokenizer_smaller_by_more_than_padding(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "padded", vocab=384)
    Bundle.open(tmp_path / "padded")
    write_tiny_bundle(tmp_path / "b", vocab=385)
    refused(tmp_path / "b", "the model 385, where 300 to 384 are allowed")


def test_a_tokenizer_that_is_none(broken: Path) -> None:
    (broken / "tokenizer.json").write_text("{}")
    rewrite_manifest(broken, rehash=True)
    refused(broken, "tokenizer.json: not a tokenizer file: Object missing required field")


def test_end_of_text_without_a_token(broken: Path) -> None:
    edit(broken, lambda raw: raw["tokenizer"].update(end_of_text=300))
    refused(broken, "has no token 300")


def test_a_state_that_is_too_large(broken: Path) -> None:
    huge = ["batch", 2, 50_000, 50_000]

    def grow(raw: dict[str, Any]) -> None:
        raw["states"][0]["shape"] = huge

    edit(broken, grow)
    refused(broken, "20000000000 bytes a sequence", "at most 4294967296")


@pytest.mark.parametrize("shape", [[], [1, 2, 4, 6], ["batch", "x"], ["batch", "past", "past"]])
def test_state_shapes(shape: list[int | str], broken: Path) -> None:
    edit(broken, lambda raw: raw["states"][0].update(shape=shape))
    refused(broken, "the state 'state_0' has shape", "allowed is")


def _first_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda raw: change(raw["graphs"][0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda g: g["inputs"].pop(), "has the inputs tokens, position; the step contract says"),
        (lambda g: g["outputs"].reverse(), "has the outputs next_state_0, logits"),
        (lambda g: g["inputs"][0].update(dtype="int8"), "has tokens as int8 [batch, 1]"),
        (lambda g: g["inputs"][0].update(shape=["batch", 2]), "[batch, 2]; the step contract"),
        (lambda g: g["outputs"][0].update(shape=["batch", 7]), "float32 [batch, 300]"),
        (lambda g: g["inputs"][2].update(shape=["batch", 2, 6, 4]), "state_0 as float32"),
    ],
)
def test_the_step_contract(
    change: Callable[[dict[str, Any]], None], complaint: str, broken: Path
) -> None:
    edit(broken, _first_graph(change))
    refused(broken, "step.onnx", complaint)


def test_no_graphs(broken: Path) -> None:
    edit(broken, lambda raw: raw.update(graphs=[]))
    refused(broken, "graphs is empty")


def test_two_states_of_one_name(broken: Path) -> None:
    edit(broken, lambda raw: raw["states"].append(raw["states"][0]))
    refused(broken, "states name 'next_state_0' twice")


def test_the_manifest_comes_back_as_it_was(tiny: Tiny) -> None:
    manifest = tiny.open().manifest
    assert isinstance(manifest, Manifest)
    assert manifest.states[0].shape == ("batch", 2, 4, 6)
