"""How documents go to the tokenizer, and what is told of how far the work is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import text_files
from conftest import child_processes
from text_files import DOCUMENTS, WRITERS, files
from tokenizers import Tokenizer

from retnet_edge import progress as progress_module
from retnet_edge.data import shards as module
from retnet_edge.data.encoding import Encoded, encode_groups
from retnet_edge.data.shards import read_manifest, write_shards

bpe = text_files.bpe
source = text_files.source


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every group of documents that goes to the tokenizer from here on."""
    found: list[list[str]] = []

    def seen(groups: Iterable[list[str]], tokenizer: Tokenizer, *rest: object) -> Iterator[Encoded]:
        def each() -> Iterator[list[str]]:
            for group in groups:
                found.append(group)
                yield group

        return encode_groups(each(), tokenizer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode_groups", seen)
    return found


@pytest.mark.parametrize("most", [1, 100, 101, 300])
def test_documents_are_grouped_and_the_bytes_read_are_told(
    most: int,
    groups: list[list[str]],
    bpe: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group ends with the document that brings it to `most` characters, across files too.

    What is told adds up to the size of the files, and never runs ahead of what was read.
    """
    texts = [["a" * 50, "b" * 50, "c" * 30, "d" * 120, "e" * 99], ["f", "g" * 100, "h" * 7]]
    paths = [WRITERS["x.txt"](tmp_path / f"{i}.txt", part) for i, part in enumerate(texts)]
    bytes_of = [path.stat().st_size for path in paths]
    told: list[list[int]] = []

    @contextmanager
    def heard(label: str, total: int) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        told.append(steps)
        with progress_module.progress(label, total) as advance:

            def both(n: int) -> None:
                steps.append(n)
                advance(n)

            yield both

    monkeypatch.setattr(module, "GROUP_CHARACTERS", most)
    monkeypatch.setattr(module, "progress", heard)
    write_shards(paths, bpe, tmp_path / "x")

    wanted: list[list[str]] = [[]]
    for text in (text.strip() for part in texts for text in part):
        wanted[-1].append(text)
        if sum(map(len, wanted[-1])) >= most:
            wanted.append([])
    stripped = [[text.strip() for text in group] for group in groups]
    assert stripped == [group for group in wanted if group]
    (steps,) = told
    assert min(steps) >= 0
    assert sum(steps) == sum(bytes_of)
    assert bytes_of[0] in np.cumsum(steps)


def test_many_short_documents_are_one_group(
    groups: list[list[str]], source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """A process's turn for each document would take longer than its work."""
    write_shards([source], bpe, tmp_path / "x")
    assert [len(group) for group in groups] == [len(DOCUMENTS)]


def test_a_script_that_asks_for_no_workers_starts_no_process(
    source: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lack `if __name__ == "__main__"`, which a process that is started would need."""
    started: list[set[str]] = []

    def seen(groups: Iterable[list[str]], *rest: object) -> Iterator[Encoded]:
        for some in encode_groups(groups, *rest):  # type: ignore[arg-type]
            started.append(child_processes() - before)
            yield some

    before = child_processes()
    monkeypatch.setattr(module, "encode_groups", seen)
    write_shards([source], bpe, tmp_path / "x")
    assert started
    assert not any(started)
    write_shards([source], bpe, tmp_path / "y", workers=2)
    assert started[-1]


def test_hashing_the_shards_tells_how_far_it_is(
    source: Path,
    bpe: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As for shards of gigabytes, in bytes; nothing is told where nothing is hashed."""
    folder = write_shards([source], bpe, tmp_path / "train", shard_tokens=1_000)
    size = sum(len(raw) for name, raw in files(folder).items() if name.endswith(".bin"))
    monkeypatch.setattr(progress_module, "HASHED_IN_A_SECOND", 1)
    monkeypatch.setattr(progress_module, "LEAST_SECONDS", 0.0)
    capsys.readouterr()
    read_manifest(folder)
    assert capsys.readouterr().err == ""
    read_manifest(folder, check_hashes=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"check train (bytes): {size} of {size}, took ")
