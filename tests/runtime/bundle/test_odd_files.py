"""Files of a bundle that are none, or far larger than they say: refused before they are read."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from retnet_edge.errors import InputError
from retnet_edge.files import file_entry, open_regular
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import digest


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(InputError) as caught:
        Bundle.open(path)
    for fragment in (str(path), *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin", "step.onnx", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_what_is_no_regular_file(kind: str, name: str, broken: Path) -> None:
    place = broken / name
    place.unlink()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            before = Path.cwd()
            os.chdir(broken)  # a socket's path may have 107 bytes
            try:
                made.bind(name)
            finally:
                os.chdir(before)
    elif kind == "folder":
        place.mkdir()
    else:
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        try:
            os.mknod(place, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("no device can be made here")
    refused(broken, name, "is not a regular file")


def test_a_file_that_turns_into_a_fifo_is_not_waited_for(broken: Path) -> None:
    """Between the look at a file and its opening."""
    (broken / "weights.bin").unlink()
    os.mkfifo(broken / "weights.bin")
    with pytest.raises(InputError, match="is not a regular file"):
        open_regular(broken / "weights.bin")
    with pytest.raises(InputError, match="is not a regular file"):
        file_entry(broken / "weights.bin")


def test_a_file_of_a_tebibyte_of_nothing_is_refused_before_it_is_hashed(broken: Path) -> None:
    with (broken / "weights.bin").open("r+b") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("the disk takes no file with so large a hole")
    refused(broken, f"has {1 << 40} bytes")
    raw = json.loads((broken / "manifest.json").read_bytes())
    raw["files"]["weights.bin"]["size"] = 1 << 40
    raw["manifest_sha256"] = digest(raw)
    (broken / "manifest.json").write_text(json.dumps(raw))
    refused(broken, "parameters takes at most")
