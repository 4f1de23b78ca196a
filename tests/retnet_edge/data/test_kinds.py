"""What a file is: by its name, by its first bytes, and what is said where these disagree."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from retnet_edge.data.contexts import calibration_contexts, text_contexts
from retnet_edge.data.kinds import kind_of
from retnet_edge.data.sources import find_sources, read_texts
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import train_tokenizer

TEXTS = [f"Row {i}: the naïve café, \n and a second line." for i in range(300)]
ROWS = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
PROSE = b"A first line.\nA second one.\n" * 200


def zstd(raw: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(raw, asbytes=True)
    return packed


def texts_of(path: Path) -> list[str]:
    return list(read_texts(find_sources([path]), "text"))


PACKED = {"": bytes, ".gz": gzip.compress, ".gzip": gzip.compress, ".zst": zstd, ".zstd": zstd}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "A.JSON", "corpus", "a.train", "part-0.of-2"]
)
def test_json_lines_under_any_name(name: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / (name + packing)
    path.write_bytes(PACKED[packing](ROWS))
    assert texts_of(path) == TEXTS
    assert kind_of(path).startswith("jsonl")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "corpus", "a.dat"])
def test_prose_under_any_name(name: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / (name + packing)
    path.write_bytes(PACKED[packing](PROSE))
    assert texts_of(path) == [PROSE.decode().strip()]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_packing_is_told_without_its_name(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    for name, content, texts in [
        ("a.jsonl", ROWS, TEXTS),
        ("a.txt", PROSE, [PROSE.decode().strip()]),
    ]:
        (tmp_path / name).write_bytes(pack(content))
        assert texts_of(tmp_path / name) == texts
        two = pack(content) + pack(b"\n" + content)  # members of one file
        (tmp_path / name).write_bytes(two)
        assert "".join(texts_of(tmp_path / name)).startswith(texts[0])
        assert len("".join(texts_of(tmp_path / name))) >= 2 * len("".join(texts))


def test_a_packed_file_that_was_cut_off(tmp_path: Path) -> None:
    for name, packed, called in [("gz", gzip.compress(ROWS), "gzip"), ("zst", zstd(ROWS), "zstd")]:
        path = tmp_path / f"a.jsonl.{name}"
        path.write_bytes(packed[:-5])
        with pytest.raises(InputError, match=rf"^{path}: .*not whole {called}") as caught:
            texts_of(path)
        assert "\n" not in str(caught.value)


def test_a_long_first_row_is_a_row(tmp_path: Path) -> None:
    """Longer than the head that is looked at; under a name that says nothing."""
    texts = ["a" * 200_000, "b"]
    path = tmp_path / "corpus"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert texts_of(path) == texts


@pytest.mark.parametrize("name", ["corpus", "a.data"])
def test_parquet_and_rows_need_no_name(name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / name)
    assert texts_of(tmp_path / name) == TEXTS


def test_a_text_that_begins_like_something_else_is_text(tmp_path: Path) -> None:
    for text in ("PAR1 is no golf score", "{ so it began", '{"a": 1}\nand then prose', "[1] x"):
        (tmp_path / "corpus").write_text(text)
        assert texts_of(tmp_path / "corpus") == [text]


def zipped(raw: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.txt", raw)
    return held.getvalue()


def tarred(raw: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
    return held.getvalue()


def feather(raw: bytes) -> bytes:
    held = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"text": [raw.decode()]}), held)
    return held.getvalue()


REFUSED = {
    "a.txt": (ROWS, r"its lines are JSON objects with the fields 'id', 'text': call it \.jsonl"),
    "b.txt": (PROSE.decode().encode("utf-16"), r"not UTF-8 text but UTF-16: convert it \(iconv"),
    "b.jsonl": (ROWS.decode().encode("utf-16"), r"not UTF-8 text but UTF-16: convert it"),
    "c.txt": (PROSE.decode().encode("utf-32"), r"not UTF-8 text but UTF-32: convert it"),
    "d.txt.xz": (lzma.compress(PROSE), r"not UTF-8 text but an xz archive: unpack it"),
    "d.txt.bz2": (bz2.compress(PROSE), r"not UTF-8 text but a bzip2 archive: unpack it"),
    "d.zip": (zipped(PROSE), r"not UTF-8 text but a zip archive: unpack it"),
    "d.tar": (tarred(PROSE), r"not UTF-8 text but a tar archive: unpack it"),
    "d.tar.gz": (gzip.compress(tarred(PROSE)), r"not UTF-8 text but a tar archive: unpack it"),
    "e.arrow": (feather(PROSE), r"but an Arrow file \(Feather\): save it as Parquet"),
    "e.feather": (feather(PROSE), r"but an Arrow file \(Feather\): save it as Parquet"),
    "f.pdf": (b"%PDF-1.7\n%\xe2\xe3\n", r"not UTF-8 text but a PDF"),
    "g.jsonl.gz": (ROWS, r"not whole gzip, as its name says: it begins with '\{\"id\": 0"),
    "g.txt.zst": (PROSE, r"not whole zstd, as its name says: it begins with 'A first"),
    "h.parquet": (gzip.compress(b"PAR1"), r"packed by gzip: unpack it \(parquet is read so\)"),
    "i.jsonl": (PROSE, r"line 1: JSON is malformed.*: a line begins with 'A first line\.'"),
    "i.json": (b'[{"text": "a"}]', r"line 1: Expected `object`, got `array`.*`jq -c '\.\[\]'`"),
    "j.json": (b'{\n "text": "a"\n}', r"line 1: .*JSON over several lines or in an array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_was_seen(name: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: .*{sentence}") as caught:
        texts_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(InputError, match=f"^{path}: cannot be read: a pipe or a device"):
            find_sources([path])


def test_verification_and_calibration_read_what_training_reads(tmp_path: Path) -> None:
    """The same contexts out of prose, rows, packed rows and a column of another name."""
    bpe = train_tokenizer(TEXTS, 300)
    end = "\n<|endoftext|>\n"
    (tmp_path / "a.txt").write_text(end.join(TEXTS), encoding="utf-8")
    (tmp_path / "a.json").write_bytes(ROWS)
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(ROWS))
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    prose = text_contexts(bpe, tmp_path / "a.txt", 2048, 256)
    assert len(prose) == 8
    for name, field in [("a.json", "text"), ("a.jsonl.zst", "text"), ("a.parquet", "body")]:
        rows = text_contexts(bpe, tmp_path / name, 2048, 256, field)
        assert [ids.tolist() for ids in rows] == [ids.tolist() for ids in prose]
        assert (
            calibration_contexts(bpe, tmp_path / name, field).tolist()
            == calibration_contexts(bpe, tmp_path / "a.txt").tolist()
        )
    with pytest.raises(InputError, match=r"no column 'text'; it has 'body'"):
        text_contexts(bpe, tmp_path / "a.parquet", 2048, 256)
