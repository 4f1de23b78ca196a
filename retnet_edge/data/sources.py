"""Documents out of what a command names: text, JSON lines, Parquet, a folder of `datasets`.

Every command that reads text reads it here: train, tune, verify, build, quantize, its search.

Files are read as streams: at any time one document, or one batch of rows, is in memory. The rows of
a table are documents as they stand; those without any text are left out, as they are in text files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from retnet_edge.data.kinds import Kind, import_pyarrow, kind_of
from retnet_edge.data.lines import json_rows, prose
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry, read_input

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"
ROWS_AT_ONCE = 1024
_INFO_BYTES = 64 << 20
# What closes an Arrow IPC stream: without it, a file cut off between two batches reads as whole.
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

T = TypeVar("T")


class Source(NamedTuple):
    """One file of documents; `name` tells it from others without saying where it lies."""

    path: Path
    kind: Kind
    name: str

    @property
    def has_fields(self) -> bool:
        """Whether --text-field says where the text is."""
        return not self.kind.startswith("text")

    @property
    def packing(self) -> str:
        """What the file is packed by: "gz", "zst", or "" where it is not."""
        return self.kind.partition(".")[2]

    def size(self) -> int:
        """Bytes. Raises InputError where the file cannot be read."""
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error

    def sha256(self, advance: Callable[[int], None] = lambda n: None) -> str:
        """Of the file as it lies there; advance(n): n more bytes were read.

        Raises InputError where it cannot be read.
        """
        try:
            return file_entry(self.path, advance).sha256
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error


class Document(NamedTuple):
    """A text, and how many bytes of its file had been read by then (for progress only)."""

    text: str
    position: int


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """What `Dataset.save_to_disk` writes as state.json, as far as it matters here."""

    data_files: list[_DataFile] = msgspec.field(name="_data_files")


class _Splits(msgspec.Struct):
    splits: list[str]


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """The files that `paths` stand for, in order; a folder of `datasets` holds several.

    Raises InputError where a path is missing, or a directory that is no saved dataset.
    """
    return [source for path in paths for source in _sources(path)]


def read_source(source: Source, field: str) -> Iterator[Document]:
    """The documents of one file, `field` being the column of a table that holds them.

    Raises InputError, naming the file and the line or row, for what cannot be read or is no text,
    and where there is no text at all, except in one file of a dataset's several.
    """
    found = False
    for document in _documents(source, field):
        if document.text.strip():
            found = True
            yield document
    if not found and source.kind != "arrow":
        where = f" in {field!r}" if source.has_fields else ""
        raise InputError(f"{source.path}: holds no text{where}")


def read_texts(
    sources: Iterable[Source], field: str, advance: Callable[[int], None] = lambda n: None
) -> Iterator[str]:
    """The texts of all documents, one source after the other. Raises as `read_source`.

    advance(n): n more bytes were read, all in all the sizes of the sources.
    """
    for source in sources:
        shown, size = 0, source.size()
        for document in read_source(source, field):
            if document.position > shown:
                advance(min(document.position, size) - shown)
                shown = min(document.position, size)
            yield document.text
        advance(size - shown)


def check_readable(path: Path, field: str) -> None:
    """Raises InputError where `path` is missing, of no known kind, or does not begin with text."""
    if next(read_texts(find_sources([path]), field), None) is None:
        raise InputError(f"{path}: holds no text in {field!r}")


def _sources(path: Path) -> list[Source]:
    if path.is_dir():
        return _dataset(path)
    if not path.exists():
        raise InputError(f"{path}: cannot be read: No such file or directory")
    return [Source(path, kind_of(path), path.name)]


def _dataset(folder: Path) -> list[Source]:
    """The .arrow files that state.json lists, in its order."""
    if (folder / SPLITS_FILE).is_file():
        splits = _decoded(folder / SPLITS_FILE, _Splits).splits
        raise InputError(
            f"{folder}: holds a dataset's splits ({', '.join(splits)}); name one of them, "
            f"such as {folder / (splits[0] if splits else 'train')}"
        )
    if not (folder / STATE_FILE).is_file():
        raise InputError(
            f"{folder}: cannot be read: a directory without {STATE_FILE}, which is no dataset "
            "written by save_to_disk"
        )
    names = [file.filename for file in _decoded(folder / STATE_FILE, _State).data_files]
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{folder / STATE_FILE}: {name!r} is not the name of a file beside it")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: cannot be read: {STATE_FILE} lists no such file")
    if not names:
        raise InputError(f"{folder}: holds no text: {STATE_FILE} lists no file")
    return [Source(folder / name, "arrow", f"{folder.name}/{name}") for name in names]


def _decoded(path: Path, kind: type[T]) -> T:
    raw = read_input(path, _INFO_BYTES, "a file of a saved dataset")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a file of a saved dataset: {error}") from error


def _documents(source: Source, field: str) -> Iterator[Document]:
    if source.kind == "parquet":
        yield from _parquet(source, field)
    elif source.kind == "arrow":
        yield from _arrow(source, field)
    elif source.has_fields:
        yield from map(Document._make, json_rows(source.path, source.packing, field))
    else:
        yield from map(Document._make, prose(source.path, source.packing))


def _parquet(source: Source, field: str) -> Iterator[Document]:
    pyarrow, parquet = import_pyarrow(source.path, "pyarrow", "pyarrow.parquet")
    size, first = source.size(), 0
    try:
        # not buffered ahead: that would be a row group, which may be the whole file
        with parquet.ParquetFile(source.path, pre_buffer=False) as file:
            _check_column(source, file.schema_arrow, field)
            rows = file.metadata.num_rows
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[field]):
                for text in _strings(source, batch.column(field), first, field):
                    yield Document(text, size * first // rows)
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source.path}: not a whole Parquet file: {_one_line(error)}") from error


def _arrow(source: Source, field: str) -> Iterator[Document]:
    """An Arrow IPC stream, which is what `datasets` writes."""
    pyarrow, ipc = import_pyarrow(source.path, "pyarrow", "pyarrow.ipc")
    first = 0
    try:
        with source.path.open("rb") as raw:
            raw.seek(-min(source.size(), len(END_OF_STREAM)), 2)
            if raw.read() != END_OF_STREAM:
                raise InputError(f"{source.path}: not a whole Arrow stream: its end is missing")
        with pyarrow.memory_map(str(source.path)) as file, ipc.open_stream(file) as stream:
            _check_column(source, stream.schema, field)
            for batch in stream:
                for text in _strings(source, batch.column(field), first, field):
                    yield Document(text, file.tell())
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source.path}: not a whole Arrow stream: {_one_line(error)}") from error


def _check_column(source: Source, schema: Any, field: str) -> None:
    if schema.names.count(field) != 1:
        raise InputError(
            f"{source.path}: no column {field!r}; it has {', '.join(map(repr, schema.names))}: "
            "name one with --text-field"
        )


def _strings(source: Source, column: Any, first: int, field: str) -> Iterator[str]:
    """The values of a column whose first is row `first` (counted from 0) of the file."""
    try:
        column.validate(full=True)  # offsets and UTF-8: readers trust what they find
    except ValueError as error:
        raise InputError(
            f"{source.path}: in the {len(column)} rows from row {first}: {_one_line(error)}"
        ) from error
    for row, value in enumerate(column.to_pylist()):
        if not isinstance(value, str):
            found = "null" if value is None else f"a value of type {column.type}"
            raise InputError(
                f"{source.path}: row {first + row}: {field!r} is {found}, not a string"
            )
        yield value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
