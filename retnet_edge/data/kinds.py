"""What a file of texts is, by its name and by how it begins; a sentence where these disagree.

The packing (gzip, zstd) is told by the bytes alone. Names tell rows from prose, and where a name
says nothing (`corpus`, `part-7`) the first two lines do.
"""

from __future__ import annotations

import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

import msgspec

from retnet_edge.errors import InputError

Kind = Literal["text", "text.gz", "text.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]

HEAD = 1 << 16  # bytes, unpacked, that tell what a file is
BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"

_PACKINGS = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd"}
_PACKED_NAMES = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst"}
_CALLED = {"gz": "gzip", "zst": "zstd"}
_NAMES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
# No text begins so; what these are called, and how they become a text.
_FOREIGN = {
    b"\xff\xfe\x00\x00": "UTF-32: convert it (iconv -f UTF-32 -t UTF-8)",
    b"\x00\x00\xfe\xff": "UTF-32: convert it (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: convert it (iconv -f UTF-16 -t UTF-8)",
    b"\xfd7zXZ\x00": "an xz archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"ARROW1\x00\x00": "an Arrow file (Feather): save it as Parquet",
    b"SQLite format 3\x00": "an SQLite database: write its texts into a .jsonl",
    b"%PDF-": "a PDF: take the text out of it",
}
_TAR = (257, b"ustar")  # where a tar archive says what it is
_PARQUET = b"PAR1"
_START = 16  # bytes, as they lie there, that tell a packing
_LONGEST_ROW = 1 << 26  # bytes, of a first line that is looked at


def kind_of(path: Path) -> Kind:
    """The kind of a regular file. Raises InputError where it cannot be read, is of no kind known,
    or is another one than its name says."""
    name = path.name.lower()
    packed_name = next((name[-len(s) :] for s in _PACKED_NAMES if name.endswith(s)), "")
    said = next((kind for s, kind in _NAMES.items() if _bare(name, packed_name).endswith(s)), None)
    try:
        if not path.is_file():
            raise InputError(
                f"{path}: cannot be read: a pipe or a device, where a regular file is needed (it "
                "is read more than once)"
            )
        with path.open("rb") as raw:
            start = raw.read(_START)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    packing = next((kind for kind, magic in _PACKINGS.items() if start.startswith(magic)), "")
    if packed_name and not packing and start:
        called = _CALLED[_PACKED_NAMES[packed_name]]
        raise InputError(
            f"{path}: not whole {called}, as its name says: it begins with {_shown(start)}"
        )
    if said in ("parquet", "arrow"):
        if packing:
            raise InputError(f"{path}: packed by {_CALLED[packing]}: unpack it ({said} is read so)")
        _check_text(path, start if said == "arrow" else b"")
        return cast(Kind, said)
    head = _head(path, packing)
    if not packing and head.startswith(_PARQUET) and _ends_with(path, _PARQUET):
        return "parquet"
    _check_text(path, head)
    if said is None or said == "text":
        rows = _fields(head)
        if said == "text" and rows:
            raise InputError(
                f"{path}: named as prose, but its lines are JSON objects with the fields "
                f"{', '.join(map(repr, rows))}: call it .jsonl, and name one with --text-field"
            )
        said = "jsonl" if rows else "text"
    found = f"{said}.{packing}" if packing else said
    assert found in get_args(Kind), found
    return cast(Kind, found)


@contextmanager
def unpacked(
    path: Path, packing: str, raw: BinaryIO, where: Callable[[], str] = str
) -> Iterator[BinaryIO]:
    """The bytes of an open file behind its packing ("", "gz" or "zst"); where: for its errors.

    Raises InputError, in the block too, where they are not whole, and where zstd needs pyarrow.
    """
    try:
        if packing == "gz":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif packing == "zst":
            (pyarrow,) = import_pyarrow(path, "pyarrow")
            stream: Any = pyarrow.CompressedInputStream(raw, "zstd")
            yield cast(BinaryIO, io.BufferedReader(stream, HEAD))
        else:
            yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {where()}not whole gzip: {error}") from error
    except OSError as error:
        if packing == "zst" and error.errno is None:  # pyarrow's own
            said = " ".join(str(error).split())
            raise InputError(f"{path}: {where()}not whole zstd: {said}") from error
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def import_pyarrow(path: Path, *modules: str) -> list[Any]:
    """Modules of pyarrow. Raises InputError, saying what reading `path` needs, without it."""
    try:
        return [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs pyarrow: pip install 'retnet-edge[data]'"
        ) from error


def _bare(name: str, packed_name: str) -> str:
    return name.removesuffix(packed_name) if packed_name else name


def _head(path: Path, packing: str) -> bytes:
    """The beginning; of what begins like a row, two whole lines if it can be."""
    with path.open("rb") as raw, unpacked(path, packing, raw) as file:
        head = file.read(HEAD)
        while (
            head.lstrip().startswith(b"{")
            and head.strip().count(b"\n") < 2
            and len(head) < _LONGEST_ROW
            and (more := file.read(len(head)))
        ):
            head += more
        return head


def _ends_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as raw:
        raw.seek(-len(magic), 2)
        return raw.read() == magic


def _check_text(path: Path, head: bytes) -> None:
    at, tar = _TAR
    found = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
    if head[at : at + len(tar)] == tar:
        found = "a tar archive: unpack it"
    if found is not None:
        raise InputError(f"{path}: not UTF-8 text but {found}")


def _fields(head: bytes) -> list[str]:
    """The fields of the first line's JSON object, where the first two lines are whole objects."""
    lines = head.removeprefix(BYTE_ORDER_MARK.encode()).split(b"\n")
    if len(head) >= HEAD:
        lines = lines[:-1]  # which may go on
    rows = [line for line in lines if line.strip()][:2]
    try:
        objects = [msgspec.json.decode(row) for row in rows]
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return []
    return list(objects[0]) if objects and all(isinstance(o, dict) for o in objects) else []


def _shown(start: bytes) -> str:
    return repr(start.decode("utf-8", "backslashreplace"))
