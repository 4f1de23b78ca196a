"""Documents out of what `--data` names: text, JSON lines, Parquet, a folder of `datasets`.

Files are read as streams: at any time one document, or one batch of rows, is in memory. The rows of
a table are documents as they stand; those without any text are left out, as they are in text files.
"""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.files import file_entry
from retnet_edge.tokenizer import read_documents

Kind = Literal["text", "jsonl", "jsonl.gz", "parquet", "arrow"]

STATE_FILE = "state.json"
SPLITS_FILE = "dataset_dict.json"
ROWS_AT_ONCE = 1024
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
        return self.kind != "text"

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
    readers = {
        "text": lambda source, _: _text(source),
        "jsonl": _json_lines,
        "jsonl.gz": _json_lines,
        "parquet": _parquet,
        "arrow": _arrow,
    }
    found = False
    for document in readers[source.kind](source, field):
        if document.text.strip():
            found = True
            yield document
    if not found and source.kind != "arrow":
        raise InputError(f"{source.path}: holds no text in {field!r}")


def read_texts(sources: Iterable[Source], field: str) -> Iterator[str]:
    """The texts of all documents, one source after the other. Raises as `read_source`."""
    for source in sources:
        for document in read_source(source, field):
            yield document.text


def check_readable(path: Path, field: str) -> None:
    """Raises InputError where `path` is missing, of no known kind, or does not begin with text."""
    if next(read_texts(find_sources([path]), field), None) is None:
        raise InputError(f"{path}: holds no text in {field!r}")


def _sources(path: Path) -> list[Source]:
    if path.is_dir():
        return _dataset(path)
    if not path.exists():
        raise InputError(f"{path}: cannot be read: No such file or directory")
    name = path.name.lower()
    kinds: tuple[Kind, ...] = ("jsonl", "jsonl.gz", "parquet")
    return [Source(path, next((k for k in kinds if name.endswith("." + k)), "text"), path.name)]


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
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a file of a saved dataset: {error}") from error


def _text(source: Source) -> Iterator[Document]:
    position = 0
    for text in read_documents(source.path):
        position += len(text.encode())
        yield Document(text, position)


def _json_lines(source: Source, field: str) -> Iterator[Document]:
    """One JSON object a line; lines that hold only white space are left out."""
    row: Any = msgspec.defstruct("Row", [("text", str)], rename={"text": field})
    decoder = msgspec.json.Decoder(row)
    packed, number = source.kind == "jsonl.gz", 0
    try:
        with source.path.open("rb") as raw:
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(lines, 1):  # noqa: B007 - the errors name it
                if line.strip():
                    yield Document(decoder.decode(line).text, raw.tell())
    except UnicodeDecodeError as error:
        raise InputError(f"{source.path}: line {number}: not UTF-8 text") from error
    except msgspec.ValidationError as error:
        raise InputError(
            f"{source.path}: line {number}: {error} (--text-field names the field with the text)"
        ) from error
    except msgspec.DecodeError as error:
        raise InputError(f"{source.path}: line {number}: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{source.path}: after line {number}: not whole gzip: {error}") from error
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read: {error.strerror}") from error


def _parquet(source: Source, field: str) -> Iterator[Document]:
    pyarrow, parquet = _pyarrow(source, "pyarrow"), _pyarrow(source, "pyarrow.parquet")
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
    pyarrow, ipc = _pyarrow(source, "pyarrow"), _pyarrow(source, "pyarrow.ipc")
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


def _pyarrow(source: Source, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{source.path}: reading it needs pyarrow: pip install 'retnet-edge[data]'"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
