"""Packed weights: the same figures, taken only where they fit, and refused when damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import Tiny, file_size_limit
from micro_checkpoint import exported_once, random_tokens

from retnet_edge import cli
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.ort.prepacked import (
    GRAPH_FILE,
    PACKED_FILE,
    RECORD_FILE,
    find_prepared,
    machine_secret,
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
    with file_size_limit(20_000), pytest.raises(InputError, match=r"disk full"):
        prepare(bundle, say=lambda _: None)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_graph_that_is_none_is_one_sentence(broken: Path, tiny: Tiny) -> None:
    assert prepared_folder(tiny.open()).name == "tiny.edge.prepared"
    assert cli.main(["prepare", str(broken / "weights.bin")]) == 2


def test_a_full_disk_is_one_sentence(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And no trace of ONNX Runtime's before it."""
    with file_size_limit(20_000):
        assert cli.main(["prepare", str(bundle)]) == 2
    packing, sentence = capfd.readouterr().err.splitlines()
    assert packing.startswith("packing")
    assert "disk full" in sentence
    assert ".cc:" not in sentence


def mended(folder: Path, **changes: object) -> None:
    """What whoever makes a folder by hand can do: every hash fits."""
    record = json.loads((folder / RECORD_FILE).read_text())
    record["files"] = {
        name: msgspec.to_builtins(file_entry(folder / name)) for name in (GRAPH_FILE, PACKED_FILE)
    }
    (folder / RECORD_FILE).write_text(json.dumps(record | changes))


def test_other_weights_with_mended_hashes_are_passed_over(bundle: Path) -> None:
    before = figures(bundle)
    folder = prepare(bundle, say=lambda _: None)
    raw = bytearray((folder / PACKED_FILE).read_bytes())
    raw[:: len(raw) // 1000] = bytes(len(raw[:: len(raw) // 1000]))
    (folder / PACKED_FILE).write_bytes(raw)
    mended(folder)
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None
    for mine, other in zip(figures(bundle), before, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_folder_that_another_user_prepared_is_passed_over(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
        prepare(bundle, say=lambda _: None)
        assert find_prepared(Bundle.open(bundle), "prefill.onnx") is not None
        key = tmp_path / "other" / "retnet-edge" / "prepare.key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert machine_secret() == key.read_bytes()
        key.chmod(0o644)  # somebody else could have read it
        assert machine_secret() is None
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None
    prepare(bundle, say=lambda _: None)
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is not None


def test_a_seal_of_other_letters_is_passed_over(bundle: Path) -> None:
    """Its key fits; strings that are not ASCII cannot be compared in constant time."""
    folder = prepare(bundle, say=lambda _: None)
    record = json.loads((folder / RECORD_FILE).read_bytes())
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is not None
    for seal in ("é" * 64, record["seal"][:-1] + "١", record["seal"][:-1], ""):
        (folder / RECORD_FILE).write_text(json.dumps(record | {"seal": seal}))
        assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None


def test_a_secret_that_cannot_be_kept_is_one_sentence(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"prepare\.key: the secret .* XDG_STATE_HOME"):
        prepare(bundle, say=lambda _: None)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "large"])
def test_a_record_that_is_no_file_of_ours_is_passed_over(
    kind: str, bundle: Path, tmp_path: Path
) -> None:
    record = prepare(bundle, say=lambda _: None) / RECORD_FILE
    moved = record.rename(tmp_path / "record")
    if kind == "fifo":
        os.mkfifo(record)
    elif kind == "link":
        record.symlink_to(moved)
    elif kind == "folder":
        record.mkdir()
    else:
        record.write_bytes(moved.read_bytes())
        os.truncate(record, 1 << 40)
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None


@pytest.mark.parametrize("name", [GRAPH_FILE, PACKED_FILE, RECORD_FILE])
def test_what_a_kill_left_of_a_folder_is_passed_over_and_replaced(name: str, bundle: Path) -> None:
    """As older versions could, which removed the folder before they renamed the new one."""
    folder = prepare(bundle, say=lambda _: None)
    (folder / name).unlink()
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None
    figures(bundle)
    prepare(bundle, say=lambda _: None)
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is not None


def test_something_else_in_the_folders_place_is_replaced(bundle: Path) -> None:
    prepared_folder(Bundle.open(bundle)).write_text("x")
    assert find_prepared(Bundle.open(bundle), "prefill.onnx") is None
    prepare(bundle, say=lambda _: None)
    assert sorted(os.listdir(bundle.parent)) == [bundle.name, f"{bundle.name}.prepared"]
