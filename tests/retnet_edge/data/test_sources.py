"""Documents out of every kind of file: the same texts, and a sentence for what is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import SAVED, WRITERS, write_dataset, write_json_lines, write_parquet

from retnet_edge.data.sources import (
    END_OF_STREAM,
    check_readable,
    find_sources,
    read_source,
    read_texts,
)
from retnet_edge.errors import InputError

DOCUMENTS = [f"Document {i}: the naïve café was closed on day {i * 7}." for i in range(40)]


def texts_of(*paths: Path, field: str = "text") -> list[str]:
    return list(read_texts(find_sources(paths), field))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    texts = [f"Text {i}\nof 'two' lines, \"ünï\\code\" 🙂" for i in range(5_000)]
    assert texts_of(WRITERS[name](tmp_path / name, texts)) == texts


def test_the_folder_that_the_datasets_library_saved() -> None:
    assert texts_of(SAVED / "train") == DOCUMENTS
    names = [source.name for source in find_sources([SAVED / "train"])]
    assert names == [f"train/data-0000{i}-of-00003.arrow" for i in range(3)]
    held_out = [text.replace("Document", "Held out") for text in DOCUMENTS[:5]]
    assert texts_of(SAVED / "train", SAVED / "validation") == DOCUMENTS + held_out


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_rows_of_tables_are_kept_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """White space around them too; but rows of white space only are no documents."""
    folder = tmp_path_factory.mktemp("any")
    wanted = [*(text for text in texts if text.strip()), "last"]
    for name, write in WRITERS.items():
        if name != "x.txt":
            assert texts_of(write(folder / name, [*texts, "last"])) == wanted, name


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "dataset"])
@pytest.mark.parametrize("field", ["class", "with space", "a.b", "naïve"])
def test_another_field(name: str, field: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, ["x"], field)  # type: ignore[call-arg]
    assert texts_of(path, field=field) == ["x"]
    with pytest.raises(InputError, match="--text-field"):
        texts_of(path)


@pytest.mark.parametrize("name", WRITERS)
def test_positions_grow_to_the_file_s_size_at_most(name: str, tmp_path: Path) -> None:
    (source,) = find_sources([WRITERS[name](tmp_path / name, DOCUMENTS * 100)])
    positions = [document.position for document in read_source(source, "text")]
    assert positions == sorted(positions)
    assert source.size() / 2 < positions[-1] <= source.size()


def bad(what: str, folder: Path) -> Path:
    """A source that cannot be used."""
    whole = {name: write(folder / name, DOCUMENTS * 50) for name, write in WRITERS.items()}
    raw = {name: path.read_bytes() for name, path in whole.items() if path.is_file()}
    lines = b'{"text": "a"}\n\n{"text": "b"}\n'
    content = {
        "malformed.jsonl": lines + b'{"text": "c\n',
        "trailing.jsonl": lines + b'{"text": "c"} {"text": "d"}\n',
        "missing.jsonl": lines + b'{"txt": "c"}\n',
        "number.jsonl": lines + b'{"text": 3}\n',
        "null.jsonl": lines + b'{"text": null}\n',
        "array.jsonl": lines + b'["text"]\n',
        "latin.jsonl": lines + '{"text": "café"}\n'.encode("latin-1"),
        "surrogate.jsonl": lines + b'{"text": "\\ud800"}\n',
        "empty.jsonl": b"",
        "blank.jsonl": b'\n{"text": "  "}\n',
        "cut.jsonl.gz": raw["x.jsonl.gz"][: len(raw["x.jsonl.gz"]) // 2],
        "cut_before_its_sum.jsonl.gz": raw["x.jsonl.gz"][:-4],
        "plain.jsonl.gz": raw["x.jsonl"],
        "empty.jsonl.gz": b"",
        "cut.parquet": raw["x.parquet"][:-100],
        "empty.parquet": b"",
        "text.parquet": raw["x.txt"],
        "latin.txt": "café".encode("latin-1"),
        "empty.txt": b"",
    }
    if what in content:
        (folder / what).write_bytes(content[what])
    elif what in ("null.parquet", "number.parquet", "no_rows.parquet"):
        texts: dict[str, list[str | int | None]] = {
            "null.parquet": ["a"] * 8 + [None],
            "number.parquet": [1, 2],
            "no_rows.parquet": [],
        }
        pq.write_table(pa.table({"text": texts[what]}), folder / what)
    elif what == "field.parquet":
        write_parquet(folder / what, ["x"], "body")
    elif what == "folder":
        (folder / what).mkdir()
    elif what == "splits":
        shutil.copytree(SAVED, folder / what)
    elif what != "none":
        shutil.copytree(SAVED / "train", folder / what)
        file = folder / what / "data-00001-of-00003.arrow"
        whole_file = file.read_bytes()
        if what == "cut":
            file.write_bytes(whole_file[:-9])
        elif what == "cut_with_an_end":
            file.write_bytes(whole_file[:-200] + END_OF_STREAM)
        elif what == "a_file_less":
            file.unlink()
        elif what == "not_utf8":
            place = whole_file.index(b"Document 14")
            file.write_bytes(whole_file[:place] + b"\xff" + whole_file[place + 1 :])
        elif what == "elsewhere":
            state = {"_data_files": [{"filename": "../x.arrow"}]}
            (folder / what / "state.json").write_text(json.dumps(state))
        elif what == "no_list":
            (folder / what / "state.json").write_text("{}")
    return folder / what


BAD = {
    "malformed.jsonl": r": line 4: JSON is malformed",
    "trailing.jsonl": r": line 4: JSON is malformed",
    "missing.jsonl": r": line 4: Object missing required field `text` \(--text-field",
    "number.jsonl": r": line 4: Expected `str`, got `int`",
    "null.jsonl": r": line 4: Expected `str`, got `null`",
    "array.jsonl": r": line 4: Expected `object`, got `array`",
    "latin.jsonl": r": line 4: not UTF-8 text",
    "surrogate.jsonl": r": line 4: ",
    "empty.jsonl": r": holds no text in 'text'",
    "blank.jsonl": r": holds no text in 'text'",
    "cut.jsonl.gz": r": after line \d+: not whole gzip",
    "cut_before_its_sum.jsonl.gz": r": after line 1999: not whole gzip",
    "plain.jsonl.gz": r": not whole gzip, as its name says: it begins with",
    "empty.jsonl.gz": r": holds no text in 'text'",
    "cut.parquet": r": not a whole Parquet file",
    "empty.parquet": r": not a whole Parquet file",
    "text.parquet": r": not a whole Parquet file",
    "null.parquet": r": row 8: 'text' is null, not a string",
    "number.parquet": r": row 0: 'text' is a value of type int64, not a string",
    "no_rows.parquet": r": holds no text in 'text'",
    "field.parquet": r": no column 'text'; it has 'id', 'body': name one with --text-field",
    "latin.txt": r": not UTF-8 text",
    "empty.txt": r": holds no text$",
    "none": r": cannot be read: No such file",
    "folder": r": cannot be read: a directory without state\.json",
    "splits": r": holds a dataset's splits \(train, validation\); name one .* such as \S+/train$",
    "cut": r"/data-00001-of-00003\.arrow: not a whole Arrow stream: its end is missing",
    "cut_with_an_end": r"/data-00001-of-00003\.arrow: not a whole Arrow stream",
    "a_file_less": r"/data-00001-of-00003\.arrow: cannot be read: state\.json lists no such file",
    "not_utf8": r"/data-00001-of-00003\.arrow: in the 13 rows from row 0: Invalid UTF8 .* index 0",
    "elsewhere": r"/state\.json: '\.\./x\.arrow' is not the name of a file beside it",
    "no_list": r"/state\.json: not a file of a saved dataset",
}


@pytest.mark.parametrize("what", BAD)
def test_a_source_that_cannot_be_used_is_one_sentence(what: str, tmp_path: Path) -> None:
    path = bad(what, tmp_path)
    with pytest.raises(InputError, match=f"^{path}{BAD[what]}") as caught:
        texts_of(path)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_a_row_holds_no_text(tmp_path: Path) -> None:
    """One of its files may be empty, all of them not."""
    path = write_dataset(tmp_path / "d", [])
    with pytest.raises(InputError, match="^" + str(path) + ": holds no text in 'text'"):
        check_readable(path, "text")


def test_pyarrow_is_needed_for_tables_only(tmp_path: Path) -> None:
    """In a process that cannot import it."""
    write_json_lines(tmp_path / "x.jsonl", ["a"])
    write_parquet(tmp_path / "x.parquet", ["a"])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from retnet_edge.data.sources import check_readable\n"
        "check_readable(Path('x.jsonl'), 'text')\n"
        "try:\n    check_readable(Path('x.parquet'), 'text')\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    wanted = "x.parquet: reading it needs pyarrow: pip install 'retnet-edge[data]'\n"
    assert done.stdout == wanted
