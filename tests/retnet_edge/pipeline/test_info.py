"""`info` of a checkpoint whose files were damaged: one sentence each."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from retnet_edge.errors import InputError
from retnet_edge.pipeline.info import info

WHOLE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(folder: Path, header: bytes, config: bytes = b'{"layers": 2, "thetas": [1.0]}') -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    content = struct.pack("<Q", len(header)) + header + bytes(24)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def tensor(**changes: Any) -> bytes:
    return json.dumps({"__metadata__": {"format": "pt"}, "w": {**WHOLE, **changes}}).encode()


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        info(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


def test_of_a_whole_one(tmp_path: Path) -> None:
    facts = info(write(tmp_path / "c", tensor()))
    assert facts["config"] == {"layers": 2}
    assert facts["checkpoint"]["parameters"] == 6
    assert facts["checkpoint"]["dtypes"] == "F32"


@pytest.mark.parametrize("dtype", [None, ["F32"], {"F32": 1}, 4])
def test_a_dtype_that_is_no_text(dtype: Any, tmp_path: Path) -> None:
    refused(write(tmp_path / "c", tensor(dtype=dtype)), "model.safetensors", "'w'", "`$.dtype`")


@pytest.mark.parametrize("name", ["dtype", "shape", "data_offsets"])
def test_a_tensor_that_lacks_a_field(name: str, tmp_path: Path) -> None:
    header = {"w": {key: value for key, value in WHOLE.items() if key != name}}
    refused(write(tmp_path / "c", json.dumps(header).encode()), "'w'", name)


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"w":' * 100_000, b'{"w": ' + b"[" * 100_000, b"[]", b"\xff", b"{"]
)
def test_a_header_that_is_none(header: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "c", header), "model.safetensors: cannot be read as safetensors")


def test_weights_that_the_header_does_not_say(tmp_path: Path) -> None:
    refused(write(tmp_path / "c", tensor(data_offsets=[0, 2**40])), "24 bytes", str(2**40))


@pytest.mark.parametrize(
    "config", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"[" * 100_000, b"[1]", b"\xff"]
)
def test_a_configuration_that_is_none(config: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "c", tensor(), config), "config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "c", tensor())
    path = folder / name
    path.unlink()
    path.mkdir()
    refused(folder, name, "not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(folder, name, "not a regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(folder, name, "not a regular file")


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    folder = write(tmp_path / "c", tensor())
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert info(folder)["checkpoint"]["parameters"] == 6
