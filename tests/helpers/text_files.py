"""Documents as every kind of file that training text may be, and what shards hold of them.

Files of tests take the fixtures by assignment, `source = text_files.source`: an imported name would
be hidden by their own parameters.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer

SAVED = Path(__file__).parents[1] / "data" / "saved_dataset"
DOCUMENTS = [f"Document {i}: the naïve café was closed on day {i * 7}." for i in range(600)]


def write_text(path: Path, texts: list[str]) -> Path:
    path.write_text(f"\n{END_OF_TEXT}\n".join(texts), encoding="utf-8")
    return path


def write_json_lines(path: Path, texts: list[str], field: str = "text") -> Path:
    """Every other row as ASCII with escapes, fields before and after the text."""
    rows = (
        json.dumps({"id": i, field: text, "meta": {"a": [i, None]}}, ensure_ascii=bool(i % 2))
        for i, text in enumerate(texts)
    )
    raw = "\n".join(rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_parquet(path: Path, texts: list[str], field: str = "text") -> Path:
    table = pa.table({"id": list(range(len(texts))), field: texts})
    pq.write_table(table, path, row_group_size=7)
    return path


def write_dataset(folder: Path, texts: list[str], field: str = "text") -> Path:
    """As `datasets` does, with more rows a batch than are read at once."""
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    table = pa.table({field: texts})
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=3000)
    return folder


WRITERS: dict[str, Callable[[Path, list[str]], Path]] = {
    "x.txt": write_text,
    "x.jsonl": write_json_lines,
    "X.JSONL": write_json_lines,
    "x.jsonl.gz": write_json_lines,
    "x.parquet": write_parquet,
    "dataset": write_dataset,
}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 400)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", DOCUMENTS)


def expected(bpe: Tokenizer, texts: list[str]) -> list[int]:
    return [i for text in texts for i in (*bpe.encode(text).ids, 0)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
