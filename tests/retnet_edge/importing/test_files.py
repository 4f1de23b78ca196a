"""Folders that are no checkpoint: one sentence each, and nothing is waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retnet_edge.errors import InputError
from retnet_edge.importing.checkpoint import detect_format
from retnet_edge.importing.files import read_fields, read_source_weights

MOST_BYTES = 1 << 40


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, MOST_BYTES)


ODD: dict[str, Callable[[Path], None]] = {
    "folder": folder,
    "fifo": os.mkfifo,
    "loop": loop,
    "device": device,
    "sparse": sparse,
}


def source(path: Path) -> Path:
    (path / "config.json").write_text("{}")
    save_file({"w": torch.ones(2)}, path / "part.safetensors")
    return path


def refused(read: Callable[[Path], object], where: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(where)
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize("kind", ODD)
def test_a_configuration_that_is_no_file(kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / "config.json")
    refused(read_fields, tmp_path, "config.json")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_weights_that_are_no_file(name: str, kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / name)
    refused(read_source_weights, tmp_path, name)


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "device"])
def test_a_pickle_that_is_no_file(kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / "pytorch_model.bin")
    refused(read_source_weights, tmp_path, "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "device", "sparse"])
def test_a_shard_that_is_no_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text('{"weight_map": {"w": "s.safetensors"}}')
    ODD[kind](tmp_path / "s.safetensors")
    refused(read_source_weights, tmp_path, "s.safetensors")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"w": "x" * 5_000}, "which is not there"),
        ({"w": "a\0b"}, "which is not there"),
        ({"w": ""}, "which is not there"),
        ({"w": ".."}, "which is not there"),
        ({"w": "a/b"}, "which is no file beside it"),
        ({"w": None}, "not an index"),
        ({"w": ["part.safetensors"]}, "not an index"),
        ([], "not an index"),
        ({}, "names no weights file"),
    ],
)
def test_an_index_that_names_no_file(weights: object, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    refused(read_source_weights, source(tmp_path), "m.safetensors.index.json", sentence)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"weight_map":' * 50_000, b"\xff", b"[]"])
def test_an_index_that_is_none(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").write_bytes(raw)
    refused(read_source_weights, source(tmp_path), "not an index of weights files")


def test_a_file_of_no_weights(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    refused(lambda path: detect_format(read_source_weights(path)), tmp_path, "no weights at all")


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for path in list(source(blobs).iterdir()):
        (snapshot / path.name).symlink_to(path)
    assert read_fields(snapshot) == {}
    assert read_source_weights(snapshot).names() == ["w"]
