"""Files that are not trusted: which names are allowed, how they are opened, what they hash to."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

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


def open_regular(path: Path, *, links: bool = False) -> BinaryIO:
    """`path` opened for reading, unbuffered, where it is a regular file; links: or leads to one.

    Never waits, as opening a FIFO would, and never reads from a device. Raises InputError where it
    is anything else than a regular file, and OSError where it cannot be opened.
    """
    if not links and path.is_symlink():
        raise InputError(f"{path} is a symlink: a bundle holds regular files only")
    # Windows knows none of them but the binary one
    named = ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC") + (() if links else ("O_NOFOLLOW",))
    flags = os.O_RDONLY
    for name in named:
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_regular(path: Path, most: int, what: str, *, links: bool = False) -> bytes:
    """The content of a regular file of at most `most` bytes; what: "a manifest", for the sentence.

    links: or of one that `path` leads to. Raises InputError where it is larger, and as
    `open_regular` does.
    """
    with open_regular(path, links=links) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise InputError(f"{path} has {size} bytes; {what} has at most {most}")
        content = bytearray()
        while len(content) <= most and (chunk := file.read(_CHUNK)):
            content += chunk
    return bytes(content[: most + 1])


def read_input(path: Path, most: int, what: str) -> bytes:
    """As `read_regular`, of a file that a user names or leaves in a folder: links are followed.

    The hub's cache is made of links. Raises InputError for whatever is wrong with it, missing too.
    """
    try:
        return read_regular(path, most, what, links=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def input_size(path: Path) -> int:
    """Bytes of such a file, for a library that opens it itself and would wait for a FIFO.

    Raises InputError where it cannot be opened, or is anything else than a regular file.
    """
    try:
        with open_regular(path, links=True) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def file_entry(path: Path, advance: Callable[[int], None] = lambda n: None) -> FileEntry:
    """Size in bytes and SHA-256 of a file, read in chunks of 1 MiB; advance(n): n more bytes.

    Raises InputError where it is not a regular file.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path, links=True) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            advance(len(chunk))
    return FileEntry(size=size, sha256=digest.hexdigest())
