"""Shards: written whole or not at all, the same for any number of processes, reused rightly."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import SAVED, WRITERS
from tokenizers import Tokenizer, models

from retnet_edge.data import shards as module
from retnet_edge.data.dataset import Shards
from retnet_edge.data.encoding import Encoded, encode, encode_groups
from retnet_edge.data.shards import ShardManifest, ShardWriter, read_manifest, write_shards
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer

DOCUMENTS = [f"Document {i}: the naïve café was closed on day {i * 7}." for i in range(600)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, 400)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join(DOCUMENTS), encoding="utf-8")
    return path


def expected(bpe: Tokenizer, texts: list[str]) -> list[int]:
    return [i for text in texts for i in (*bpe.encode(text).ids, 0)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_are_the_documents_each_with_an_end(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """Each of the size asked but the last; counts and hashes against the files themselves."""
    folder = write_shards([source], bpe, tmp_path / "data" / "train", shard_tokens=1_000)
    wanted = expected(bpe, DOCUMENTS)
    shards = Shards(folder)
    assert shards.tokens().tolist() == wanted
    info = shards.info
    assert (info.dtype, info.tokens) == ("uint16", len(wanted))
    assert info.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert [s.tokens for s in info.shards[:-1]] == [1_000] * (len(wanted) // 1_000)
    lengths = [len(bpe.encode(text).ids) + 1 for text in DOCUMENTS]
    ends = np.cumsum(lengths)
    for number, shard in enumerate(info.shards):
        raw = (folder / shard.file).read_bytes()
        assert len(raw) == 2 * shard.tokens
        assert hashlib.sha256(raw).hexdigest() == shard.sha256
        inside = (ends > 1_000 * number) & (ends <= 1_000 * (number + 1))
        texts = [text for text, here in zip(DOCUMENTS, inside, strict=True) if here]
        assert shard.text_bytes == sum(len(text.encode()) for text in texts)
    assert sorted(files(folder)) == ["manifest.json", *(s.file for s in info.shards)]
    (about,) = info.sources
    raw = source.read_bytes()
    assert (about.name, about.kind, about.field, about.size) == ("text.txt", "text", None, len(raw))
    assert about.sha256 == hashlib.sha256(raw).hexdigest()
    assert info.tokenizer_sha256 == hashlib.sha256(bpe.to_str().encode()).hexdigest()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=6), st.integers(1, 30)
)
def test_cuts_lose_no_token_and_no_byte(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]], shard_tokens: int
) -> None:
    """Documents of any lengths in any groups; document i has 100 + i bytes."""
    folder = tmp_path_factory.mktemp("cuts")
    writer = ShardWriter(folder, ShardManifest(1, "uint16", "", (), ()), shard_tokens)
    first = 0
    ends: list[int] = []
    for lengths in groups:
        tokens = np.arange(first, first + sum(lengths), dtype=np.uint16)
        sizes = np.array([100 + len(ends) + i for i in range(len(lengths))])
        writer.add(Encoded(tokens, np.cumsum(lengths), sizes))
        ends += [first + int(end) for end in np.cumsum(lengths)]
        first += sum(lengths)
    manifest = writer.close()
    assert read_manifest(folder, check_hashes=True) == manifest
    written = np.concatenate(
        [np.zeros(0, np.uint16)]
        + [np.fromfile(folder / shard.file, np.uint16) for shard in manifest.shards]
    )
    assert np.array_equal(written, np.arange(first))
    assert all(0 < shard.tokens <= shard_tokens for shard in manifest.shards)
    for number, shard in enumerate(manifest.shards):
        low, high = number * shard_tokens, number * shard_tokens + shard.tokens
        assert shard.text_bytes == sum(100 + i for i, e in enumerate(ends) if low < e <= high)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_shards(
    name: str, source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    text = Shards(write_shards([source], bpe, tmp_path / "text", shard_tokens=1_000)).info
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    other = Shards(write_shards([path], bpe, tmp_path / "other", shard_tokens=1_000)).info
    assert other.shards == text.shards


def test_sources_follow_each_other(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    folder = write_shards([SAVED / "train", source], bpe, tmp_path / "both")
    assert Shards(folder).tokens().tolist() == expected(bpe, DOCUMENTS[:40] + DOCUMENTS)


def test_the_number_of_processes_cannot_be_seen(
    source: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest included; with more groups than are in flight, and other groups too."""
    one, two, three = (tmp_path / name for name in "123")
    write_shards([source, SAVED / "train"], bpe, one, shard_tokens=1_000)
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 500)
    write_shards([source, SAVED / "train"], bpe, two, shard_tokens=1_000, workers=2)
    write_shards([source, SAVED / "train"], bpe, three, shard_tokens=1_000, workers=3)
    assert files(one) == files(two) == files(three)
    assert len(files(one)) > 10


def mark(folder: Path) -> int:
    """Set the manifest's time to one that a new manifest cannot have."""
    os.utime(folder / "manifest.json", ns=(1_000, 1_000))
    return 1_000


def test_shards_are_kept_while_their_inputs_are_the_same(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """Whatever the source is called, however many workers, and with another field for text."""
    folder = write_shards([source], bpe, tmp_path / "train")
    marked = mark(folder)
    moved = source.rename(tmp_path / "moved.txt")
    same = Tokenizer.from_str(bpe.to_str())
    write_shards([moved], same, folder, workers=2, text_field="body", replace=False)
    assert (folder / "manifest.json").stat().st_mtime_ns == marked


@pytest.mark.parametrize("what", ["text", "tokenizer", "another source", "kind", "field"])
def test_shards_are_made_anew_when_their_inputs_change(
    bpe: Tokenizer, tmp_path: Path, what: str
) -> None:
    """Or refused, where a run has begun with them."""
    source = WRITERS["x.jsonl"](tmp_path / "x.jsonl", DOCUMENTS)
    folder = write_shards([source], bpe, tmp_path / "train")
    before = files(folder)
    sources, field = [source], "text"
    if what == "text":
        source.write_text('{"text": "Quite another text."}\n')
    elif what == "tokenizer":
        bpe = train_tokenizer(DOCUMENTS, 300)
    elif what == "another source":
        sources.append(tmp_path / "second.txt")
        sources[1].write_text("Second.")
    elif what == "kind":
        sources = [source.rename(tmp_path / "x.txt")]
    else:
        field = "meta"
        source.write_text('{"text": "a", "meta": "b"}\n')
        write_shards([source], bpe, folder)
        before = files(folder)
    with pytest.raises(InputError, match=r"train: the run was begun with other text or another"):
        write_shards(sources, bpe, folder, text_field=field, replace=False)
    assert files(folder) == before
    write_shards(sources, bpe, folder, text_field=field)
    fresh = write_shards(sources, bpe, tmp_path / "fresh", text_field=field)
    assert files(folder) == files(fresh) != before


def test_a_bad_source_leaves_the_old_shards(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    folder = write_shards([source], bpe, tmp_path / "data" / "train")
    before = files(folder)
    wrong = tmp_path / "bad.txt"
    wrong.write_bytes(b"good\n" + b"\xff\xff")
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"bad\.txt: not UTF-8"):
            write_shards([source, wrong], bpe, folder, workers=workers)
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        write_shards([tmp_path / "none.txt"], bpe, folder)
    assert files(folder) == before
    assert os.listdir(folder.parent) == ["train"]


def test_what_cannot_be_tokenized(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no <\|endoftext\|> token"):
        write_shards([source], Tokenizer(models.BPE()), tmp_path / "x")
    with pytest.raises(InputError, match=r"0 workers: give at least 1"):
        write_shards([source], bpe, tmp_path / "x", workers=0)
    empty = WRITERS["dataset"](tmp_path / "empty", [])
    with pytest.raises(InputError, match=r"empty: no text in 'text'"):
        write_shards([empty], bpe, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def damage(what: str, folder: Path) -> str:
    """Change something; returns what the refusal says."""
    manifest, shard = folder / "manifest.json", folder / "shard-00001.bin"
    raw = bytearray(shard.read_bytes())
    text = manifest.read_text()
    if what == "no manifest":
        manifest.unlink()
        return r"manifest\.json: cannot be read"
    if what == "half a manifest":
        manifest.write_text(text[: len(text) // 2])
        return r"manifest\.json: not a manifest"
    if what == "a field more":
        manifest.write_text(text.replace('"schema": 1,', '"schema": 1, "more": 1,'))
        return r"manifest\.json: not a manifest"
    if what == "another schema":
        manifest.write_text(text.replace('"schema": 1,', '"schema": 2,'))
        return r"manifest\.json: not a manifest"
    if what == "other bytes of text":
        manifest.write_text(text.replace('"text_bytes": ', '"text_bytes": 1', 1))
        return r"manifest\.json: was changed"
    if what == "a shard less":
        shard.unlink()
        return r"shard-00001\.bin: the manifest lists this shard, which is missing"
    if what == "a token less":
        shard.write_bytes(raw[:-2])
        return r"shard-00001\.bin: holds 1998 bytes, the manifest says 2000"
    raw[77] ^= 1
    shard.write_bytes(raw)
    return r"shard-00001\.bin: was changed: its SHA-256"


DAMAGE = ["no manifest", "half a manifest", "a field more", "another schema",
          "other bytes of text", "a shard less", "a token less", "a bit"]  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_shards_are_refused_and_made_anew(
    what: str, source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    folder = write_shards([source], bpe, tmp_path / "train", shard_tokens=1_000)
    whole = files(folder)
    says = damage(what, folder)
    with pytest.raises(InputError, match=says) as caught:
        read_manifest(folder, check_hashes=True)
    assert "\n" not in str(caught.value)
    if what != "a bit":
        with pytest.raises(InputError, match=says):
            Shards(folder)
    write_shards([source], bpe, folder, shard_tokens=1_000, replace=False)
    assert files(folder) == whole


def test_a_manifest_cannot_name_a_file_elsewhere(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """Even one whose own hash is right."""
    folder = write_shards([source], bpe, tmp_path / "train")
    manifest = read_manifest(folder)
    (tmp_path / "train" / "shard-00000.bin").rename(tmp_path / "elsewhere.bin")
    (shard,) = manifest.shards
    moved = msgspec.structs.replace(shard, file="../elsewhere.bin")
    forged = msgspec.structs.replace(manifest, shards=(moved,))
    forged = msgspec.structs.replace(forged, sha256=forged.own_sha256())
    (folder / "manifest.json").write_bytes(msgspec.json.encode(forged))
    with pytest.raises(InputError, match=r"elsewhere\.bin: the manifest lists this shard"):
        Shards(folder)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from retnet_edge.data import shards
from retnet_edge import atomic
from retnet_edge.tokenizer import load_tokenizer

moment, source, tokenizer, folder = sys.argv[1], *map(Path, sys.argv[2:])

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def half_removed(path, ignore_errors=False):
    if path == folder:
        next(path.glob("shard-00002*")).unlink()
        kill()

if moment == "between shards":
    real = shards.ShardWriter._close
    def close(self):
        real(self)
        if len(self.shards) == 3:
            kill()
    shards.ShardWriter._close = close
elif moment == "before the manifest":
    shards.ShardManifest.own_sha256 = kill
elif moment == "before the first rename":
    atomic._sync_tree = kill
elif moment == "while the old is removed":
    shards.shutil.rmtree = half_removed
elif moment == "before the second rename":
    real = Path.rename
    Path.rename = lambda self, to: kill() if to == folder else real(self, to)
shards.write_shards([source], load_tokenizer(tokenizer), folder, shard_tokens=1_000)
"""
MOMENTS = {  # whether the old shards are whole afterwards
    "between shards": True,
    "before the manifest": True,
    "before the first rename": True,
    "while the old is removed": False,
    "before the second rename": False,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_writer_leaves_the_old_shards_or_none(
    moment: str, source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """And the next one makes them, and leaves nothing else."""
    bpe.save(str(tmp_path / "tokenizer.json"))
    old = tmp_path / "old.txt"
    old.write_text("An old text. " * 2_000)
    folder = write_shards([old], bpe, tmp_path / "data" / "train", shard_tokens=1_000)
    before = files(folder)
    command = [sys.executable, "-c", KILLED, moment]
    paths = [source, tmp_path / "tokenizer.json", folder]
    done = subprocess.run([*command, *map(str, paths)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if MOMENTS[moment]:
        assert files(folder) == before
    else:
        with pytest.raises(InputError):
            Shards(folder)
    write_shards([source], bpe, folder, shard_tokens=1_000)
    assert Shards(folder).tokens().tolist() == expected(bpe, DOCUMENTS)
    assert os.listdir(folder.parent) == ["train"]


def test_a_process_that_dies_is_a_sentence(bpe: Tokenizer) -> None:
    def groups() -> Iterator[list[str]]:
        yield DOCUMENTS[:10]
        for _ in range(10):
            yield DOCUMENTS[:10]
            for child in multiprocessing.active_children():
                assert child.pid is not None
                with contextlib.suppress(ProcessLookupError):  # it died the round before
                    os.kill(child.pid, signal.SIGKILL)
                child.join()

    with pytest.raises(InputError, match=r"one of 2 tokenizing processes died"):
        for _ in encode_groups(groups(), bpe, "uint16", 2):
            pass


ENDLESS = """
import itertools, multiprocessing, sys
from pathlib import Path
from retnet_edge.data.encoding import encode_groups
from retnet_edge.tokenizer import load_tokenizer

bpe = load_tokenizer(Path(sys.argv[1]))
for _ in encode_groups(itertools.repeat(["a text"] * 10), bpe, "uint16", 2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def test_processes_end_when_their_parent_was_killed(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(str(path))
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert children
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlived its parent by a minute"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Running still; not a zombie that nobody has collected yet."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_encode_tells_where_documents_end(bpe: Tokenizer) -> None:
    texts = ["naïve", "", f"a {END_OF_TEXT} b"]
    tokens, ends, text_bytes = encode(texts, bpe, "uint16")
    starts = [0, *ends[:-1]]
    pieces = [tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
    assert pieces == [[*bpe.encode(text).ids, 0] for text in texts]
    assert text_bytes.tolist() == [6, 0, 17]
