"""Files inside a folder that is not trusted: which names are allowed, and what bytes hash to."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from retnet_edge.errors import InputError

# Letters that mean the same on every system and to every backend. ONNX Runtime gives names such
# as "*/_ORT_MEM_ADDR_/*" a meaning of their own, so the list says what is allowed, not what is not.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_CHUNK = 1 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and SHA-256 (hex) of a file."""

    size: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    sha256: Sha256


def check_name(name: str, where: str | Path) -> str:
    """`name` itself where it is a plain relative path such as "reports/parity.json".

    Raises InputError, naming `where` and `name`, for an absolute path, "..", a backslash, a hidden
    file and anything outside letters, digits, ".", "_" and "-".
    """
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise InputError(
            f"{where}: the file name {name!r} is not allowed: a bundle's files are plain relative "
            "paths of letters, digits, '.', '_' and '-' inside the bundle"
        )
    return name


def regular_file(root: Path, name: str, where: str | Path) -> Path:
    """Path of the file `name` of the bundle at `root`, looked at without following links.

    Raises InputError for a name that check_name refuses, a missing file, a symlink (the file or a
    folder on the way to it) and anything that is not a regular file.
    """
    path = root
    for part in check_name(name, where).split("/"):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{where}: the file {name!r} is missing from the bundle") from None
        if stat.S_ISLNK(mode):
            raise InputError(
                f"{path} is a symlink: a bundle holds regular files only. The cache of the Hugging "
                "Face hub is made of links: download it with local_dir= "
                "(hf download OWNER/NAME --local-dir FOLDER), which makes files"
            )
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file: a bundle holds regular files only")
    return path


def file_entry(path: Path, advance: Callable[[int], None] = lambda n: None) -> FileEntry:
    """Size in bytes and SHA-256 of a file, read in chunks of 1 MiB; advance(n): n more bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            advance(len(chunk))
    return FileEntry(size=size, sha256=digest.hexdigest())
