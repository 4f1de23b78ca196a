"""A bundle is taken apart in every way that can be thought of; each time one sentence comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from conftest import Tiny
from tiny_bundle import rewrite_manifest, write_tiny_bundle

from retnet_edge.errors import InputError
from retnet_edge.pipeline.info import info
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest, decode, digest, encode
from retnet_edge.runtime.bundle.writer import update_manifest
from retnet_edge.runtime.text.snapshot import load_snapshot


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(InputError) as caught:
        Bundle.open(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for fragment in (str(path), *fragments):
        assert fragment in sentence


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change manifest.json as JSON, past the writer's own checks; its digest is mended."""
    raw = json.loads((path / "manifest.json").read_bytes())
    change(raw)
    raw["manifest_sha256"] = digest(raw)
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


def configured(**config: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["model"].update(config={"heads": 2, **config})


def test_a_model_of_another_size(broken: Path) -> None:
    """States and vocabulary are the configuration's, in whatever it names."""
    edit(broken, configured(layers=1, key_head_dim=4, value_head_dim=6, vocab_size=300, more="x"))
    Bundle.open(broken)
    for config, complaint in (
        ({"layers": 2}, "1 states; the model's configuration has 2 layers, one state each"),
        ({"heads": 3}, "shape [batch, 2, 4, 6]; the model's configuration says [batch, 3, any"),
        ({"key_head_dim": 5}, "the model's configuration says [batch, 2, 5, any]"),
        ({"value_head_dim": 4}, "the model's configuration says [batch, 2, any, 4]"),
        ({"vocab_size": 299}, "vocab_size is 300, and 299 in the model's configuration"),
        ({"layers": "1"}, "layers of the model's configuration is no whole number"),
    ):
        edit(broken, configured(**config))
        refused(broken, complaint)


def test_a_transformer_of_another_size(tiny_transformer: Tiny, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_transformer.path, tmp_path / "broken.edge"))
    for config, complaint in (
        ({"layers": 2}, "2 states; the model's configuration has 2 layers, two states each"),
        ({"heads": 3}, "the model's configuration says [batch, 3, past, any]"),
        ({"key_head_dim": 5}, "the model's configuration says [batch, 2, past, 5]"),
    ):
        edit(broken, configured(**config))
        refused(broken, complaint)


def test_scales_of_an_int8_state(broken: Path) -> None:
    edit(broken, lambda raw: raw["states"][0].update(dtype="int8"))
    refused(
        broken, "is int8 [batch, 2, 4, 6]; float32 scales [batch, 2, 4, 1] and [batch, 2, 1, 6]"
    )


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


CHANGED = [
    lambda raw: raw["model"]["config"].update(head_norm_eps=0.5),
    lambda raw: raw["tokenizer"].update(end_of_text=1),
    lambda raw: raw["verification"].update(status="verified"),
    lambda raw: raw["tolerance"].update(mean_kl=0.5),
]


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_manifest_is_noticed(change: Callable[[Any], None], broken: Path) -> None:
    raw = json.loads((broken / "manifest.json").read_bytes())
    change(raw)
    (broken / "manifest.json").write_text(json.dumps(raw))
    refused(broken, "manifest.json was changed since it was written", digest(raw))


def test_the_digest_is_of_the_text_and_not_of_its_layout(broken: Path) -> None:
    before = Bundle.open(broken).manifest
    raw = json.loads((broken / "manifest.json").read_bytes())
    (broken / "manifest.json").write_text(json.dumps(dict(reversed(raw.items()))))
    assert Bundle.open(broken).manifest == before


def test_a_manifest_without_a_digest_is_read_and_info_says_so(broken: Path) -> None:
    assert info(broken)["bundle"]["manifest sha256"] == Bundle.open(broken).manifest.manifest_sha256
    raw = json.loads((broken / "manifest.json").read_bytes())
    del raw["manifest_sha256"]
    (broken / "manifest.json").write_text(json.dumps(raw))
    assert "older version" in info(broken)["bundle"]["manifest sha256"]
    # and one that is written again has one
    manifest = Bundle.open(broken).manifest
    assert manifest.manifest_sha256 is None
    assert decode(encode(manifest), "").manifest_sha256 == digest(raw)


@pytest.mark.parametrize("change", CHANGED[:1])
def test_the_fingerprint_covers_what_is_computed(
    change: Callable[[Any], None], broken: Path
) -> None:
    before = Bundle.open(broken)
    edit(broken, change)
    after = Bundle.open(broken)
    assert after.fingerprint != before.fingerprint
    assert not after.has_fingerprint(before.fingerprint)
    edit(broken, lambda raw: raw["verification"].update(reasons=["another verdict"]))
    assert Bundle.open(broken).fingerprint == after.fingerprint


def put(text: str, place: str) -> Callable[[bytes], bytes]:
    """Put JSON in place of a number of the manifest."""
    return lambda raw: raw.replace(place.encode(), f"{place.split(':')[0]}: {text}".encode(), 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: b"\xff" + raw, "byte 0xff at byte 0 is not UTF-8"),
        (lambda raw: raw.replace(b"retnet", b"ret\xffnet", 1), "is not UTF-8"),
        (put("[" * 200_000 + "]" * 200_000, '"heads": 2'), "nested deeper than 32"),
        (put("[" * 40 + "]" * 40, '"heads": 2'), "nested deeper than 32"),
        (put("NaN", '"heads": 2'), "not a valid manifest"),
        (put("Infinity", '"heads": 2'), "not a valid manifest"),
        (put("1e999", '"heads": 2'), "out of range"),
        (put("9" * 5000, '"heads": 2'), "out of range"),
        (put('2, "heads": 2', '"heads": 2'), "the key 'heads' stands twice"),
        (put("-1", '"end_of_text": 0'), "end_of_text"),
        (put("1" + "0" * 30, '"end_of_text": 0'), "end_of_text"),
        (put(str(2**63), '"end_of_text": 0'), "end_of_text"),
        (put(str(2**32), '"end_of_text": 0'), "end_of_text"),
    ],
)
def test_a_manifest_that_is_odd_is_one_sentence(
    change: Callable[[bytes], bytes], words: str, broken: Path
) -> None:
    raw = (broken / "manifest.json").read_bytes()
    changed = change(raw)
    assert changed != raw
    (broken / "manifest.json").write_bytes(changed)
    refused(broken, "manifest.json", words)


def test_an_old_bundle_and_its_state_files_live_on_after_a_verdict(tmp_path: Path) -> None:
    """A verdict gives an old manifest its digest; states saved before are its own still."""
    old = Path(__file__).parents[2] / "data" / "compatibility"
    path = shutil.copytree(old / "bundle", tmp_path / "old.edge")
    assert Bundle.open(path).manifest.manifest_sha256 is None
    bundle = update_manifest(Bundle.open(path))
    assert bundle.manifest.manifest_sha256 is not None
    assert load_snapshot(old / "onnxruntime.state", Bundle.open(path)).position == 40
