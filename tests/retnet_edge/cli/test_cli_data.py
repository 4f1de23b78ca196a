"""`retnet-edge train` on every kind of data, as a user meets it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retnet_edge import cli
from retnet_edge.config import encode_config, retnet_config

SENTENCES = ["The cat sat on the mat.", "The dog sat by the door, and the cat slept."] * 40
SAVED = Path(__file__).parents[2] / "data" / "saved_dataset"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration and the text as JSON lines and as Parquet, in the column `body`."""
    config = retnet_config(vocab_size=384, d_model=32, layers=1, heads=2, ffn_dim=48)
    (tmp_path / "config.json").write_bytes(encode_config(config))
    rows = "".join(json.dumps({"body": text}) + "\n" for text in SENTENCES)
    (tmp_path / "x.jsonl").write_text(rows)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    pq.write_table(pa.table({"body": SENTENCES}), tmp_path / "x.parquet")
    return tmp_path


def train(folder: Path, data: list[Path], valid: Path, *arguments: str) -> int:
    """Four steps into folder/out."""
    paths = [word for path in data for word in ("--data", str(path))]
    size = ["--steps", "4", "--batch", "2", "--seq-len", "16", "--vocab-size", "270"]
    fixed = ["--model", str(folder / "config.json"), "--device", "cpu", "--no-tensorboard"]
    out = ["--out", str(folder / "out"), "--valid", str(valid)]
    return cli.main(["train", *out, *paths, *size, *fixed, *arguments])


def test_a_run_on_files_of_several_kinds_by_two_processes(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retnet_edge.progress.LEAST_SECONDS", 0.0)
    data = [folder / name for name in ("x.jsonl", "x.jsonl.gz", "x.parquet")]
    arguments = ["--text-field", "body", "--workers", "2"]
    assert train(folder, data, folder / "x.parquet", *arguments) == 0
    said = capfd.readouterr()
    assert said.out.startswith(f"{folder / 'out' / 'checkpoint'}: held-out perplexity ")
    assert "tokenize train (bytes read): " in said.err
    manifest = json.loads((folder / "out" / "data" / "train" / "manifest.json").read_text())
    assert [(s["name"], s["kind"], s["field"]) for s in manifest["sources"]] == [
        ("x.jsonl", "jsonl", "body"),
        ("x.jsonl.gz", "jsonl.gz", "body"),
        ("x.parquet", "parquet", "body"),
    ]
    assert manifest["shards"][0]["text_bytes"] == 3 * sum(map(len, SENTENCES))


def test_a_run_on_saved_datasets(folder: Path) -> None:
    assert train(folder, [SAVED / "train"], SAVED / "validation") == 0


def test_a_begun_run_does_not_go_on_with_other_text(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its samples would come in another order, some of them twice."""
    assert train(folder, [SAVED / "train"], SAVED / "validation") == 0
    capfd.readouterr()
    assert train(folder, [SAVED / "validation"], SAVED / "validation") == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"retnet-edge: {folder}/out/data/train: the run was begun with other")


REFUSED = {
    "x.jsonl": "/x.jsonl: line 1: Object missing required field `text` (--text-field names",
    "x.parquet": "/x.parquet: no column 'text'; it has 'body': name one with --text-field",
    "cut.jsonl.gz": "/cut.jsonl.gz: not whole gzip: ",
    "late.jsonl": "/late.jsonl: line 81: JSON is malformed",
    "latin.txt": "/latin.txt: not UTF-8 text",
    "empty.jsonl": "/empty.jsonl: holds no text in 'text'",
    "nothing": "/nothing: cannot be read: a directory without state.json",
    "splits": ": holds a dataset's splits (train, validation); name one of them",
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_is_one_sentence_and_leaves_nothing(
    name: str, workers: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the mistake is met only after the work has begun."""
    rows = "".join(json.dumps({"text": text}) + "\n" for text in SENTENCES).encode()
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(rows)[:-20])
    (folder / "late.jsonl").write_bytes(rows + b'{"text": }\n')
    (folder / "latin.txt").write_bytes(b"fine\n" * 50_000 + b"caf\xe9")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "nothing").mkdir()
    path = SAVED if name == "splits" else folder / name
    assert train(folder, [path], SAVED / "validation", "--workers", workers) == 2
    said = capfd.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("retnet-edge: ")]
    assert line.startswith(f"retnet-edge: {path}{REFUSED[name].removeprefix('/' + name)}")
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1] == line
    assert not (folder / "out").exists()


def test_workers_below_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(folder, [SAVED / "train"], SAVED / "validation", "--workers", "0") == 2
    assert "--workers" in capfd.readouterr().err
