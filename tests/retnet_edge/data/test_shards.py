"""Shards: written whole or not at all, reused rightly, refused where they were changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import text_files
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import DOCUMENTS, SAVED, WRITERS, expected, files
from tokenizers import Tokenizer, models, pre_tokenizers

from retnet_edge.data import shards as module
from retnet_edge.data.dataset import Shards
from retnet_edge.data.encoding import Encoded, encode
from retnet_edge.data.shards import ShardManifest, ShardWriter, read_manifest, write_shards
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer
from retnet_edge.tokenizing.texts import TextEncoder

bpe = text_files.bpe
source = text_files.source


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


@settings(max_examples=60)
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
    assert sorted(files(folder)) == ["manifest.json", *(s.file for s in manifest.shards)]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_shards(
    name: str, source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    text = Shards(write_shards([source], bpe, tmp_path / "text", shard_tokens=1_000)).info
    path = WRITERS[name](tmp_path / name, DOCUMENTS)
    other = Shards(write_shards([path], bpe, tmp_path / "other", shard_tokens=1_000)).info
    assert other.shards == text.shards


@pytest.mark.parametrize(
    ("largest", "dtype"), [(40_000, "uint16"), (65_535, "uint16"), (65_536, "uint32")]
)
@pytest.mark.parametrize("holes", [False, True])
def test_every_id_fits_the_files(holes: bool, largest: int, dtype: str, tmp_path: Path) -> None:
    """uint16 holds 0 to 65,535; what counts is the largest id, not how many there are."""
    words = {END_OF_TEXT: 0, "low": 1, "high": largest}
    words |= {} if holes else {f"w{i}": i for i in range(2, largest)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="low"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "x.txt").write_text("low high low")
    shards = Shards(write_shards([tmp_path / "x.txt"], tokenizer, tmp_path / "x"))
    assert shards.info.dtype == dtype
    assert shards.tokens().tolist() == [1, largest, 1, 0]


def test_a_shard_of_the_usual_size_is_a_quarter_gibibyte() -> None:
    """2 bytes a token: a file that is copied and hashed in seconds."""
    assert 2 * module.SHARD_TOKENS == 256 * 1024 * 1024


def test_the_manifest_is_text_that_a_person_can_read(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """In folders that are made for it; what is read back is a value like a number or a string."""
    folder = write_shards([source], bpe, tmp_path / "not" / "yet" / "there")
    text = (folder / "manifest.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert len({read_manifest(folder), read_manifest(folder)}) == 1


def test_what_was_left_by_others_is_removed(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    parent = tmp_path / "data"
    for name in ("train.new", ".train.0123abcd.partial", "valid.new"):
        (parent / name).mkdir(parents=True)
        (parent / name / "shard-00000.bin").write_bytes(b"half")
    write_shards([source], bpe, parent / "train")
    assert sorted(os.listdir(parent)) == ["train", "valid.new"]


def test_a_writer_that_is_interrupted_leaves_no_file_open(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, ShardManifest(1, "uint16", "", (), ()), 10)
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="closed file"):
        writer.add(Encoded(np.array([1], np.uint16), np.array([1]), np.array([1])))


def test_sources_follow_each_other(source: Path, bpe: Tokenizer, tmp_path: Path) -> None:
    folder = write_shards([SAVED / "train", source], bpe, tmp_path / "both")
    assert Shards(folder).tokens().tolist() == expected(bpe, DOCUMENTS[:40] + DOCUMENTS)


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


def forget_rows(folder: Path) -> None:
    """Let a manifest say that its source was prose."""
    manifest = read_manifest(folder)
    (source,) = manifest.sources
    prose = msgspec.structs.replace(source, kind="text", field=None)
    forged = msgspec.structs.replace(manifest, sources=(prose,))
    forged = msgspec.structs.replace(forged, sha256=forged.own_sha256())
    (folder / "manifest.json").write_bytes(msgspec.json.encode(forged))


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
        forget_rows(folder)  # as version 0.1.0 read the same bytes under another name
        before = files(folder)
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
    for workers in (0, 257):
        sentence = f"{workers} workers: give at least 1 and at most 256"
        with pytest.raises(InputError, match=sentence):
            write_shards([source], bpe, tmp_path / "x", workers=workers)
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):  # 256 are allowed
        write_shards([tmp_path / "none.txt"], bpe, tmp_path / "x", workers=256)
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
    if what == "a source's field more":
        manifest.write_text(text.replace('"kind": ', '"more": 1, "kind": ', 1))
        return r"manifest\.json: not a manifest"
    if what == "a shard's field more":
        manifest.write_text(text.replace('"file": ', '"more": 1, "file": ', 1))
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


DAMAGE = ["no manifest", "half a manifest", "a field more", "a source's field more",
          "a shard's field more", "another schema", "other bytes of text", "a shard less",
          "a token less", "a bit"]  # fmt: skip


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
    if what == "a bit":
        Shards(folder)  # which looks at sizes only
    else:
        with pytest.raises(InputError, match=says):
            Shards(folder)
    write_shards([source], bpe, folder, shard_tokens=1_000, replace=False)
    assert files(folder) == whole


def test_a_manifest_of_64_mib_and_no_more(tmp_path: Path) -> None:
    """One of that size is looked into; a larger one is not read."""
    manifest, most = tmp_path / "manifest.json", 64 * 1024 * 1024
    for size, says in (
        (most, f"{manifest}: not a manifest of token shards: "),
        (
            most + 1,
            f"{manifest} has {most + 1} bytes; a manifest of token shards has at most {most}",
        ),
    ):
        with manifest.open("wb") as file:
            file.truncate(size)
        with pytest.raises(InputError) as caught:
            read_manifest(tmp_path)
        assert str(caught.value).startswith(says)


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


def test_encode_tells_where_documents_end(bpe: Tokenizer) -> None:
    """And that what a text says is none of them."""
    texts = ["naïve", "", f"a {END_OF_TEXT} b"]
    tokens, ends, text_bytes = encode(texts, TextEncoder(bpe), "uint16")
    starts = [0, *ends[:-1]]
    pieces = [tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
    assert [piece[-1] for piece in pieces] == [0, 0, 0]
    assert [piece.count(0) for piece in pieces] == [1, 1, 1]
    assert [bpe.decode(piece[:-1]) for piece in pieces] == texts
    assert text_bytes.tolist() == [6, 0, 17]


def test_the_manifest_names_an_end_that_is_not_the_usual(
    source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """And only that: shards of older versions stay those of the same inputs."""
    usual = bpe.token_to_id("<|endoftext|>")
    for end, wanted in ((None, None), (usual, None), (7, 7)):
        folder = write_shards([source], bpe, tmp_path / f"of-{end}", end=end)
        assert json.loads((folder / "manifest.json").read_text()).get("end_of_text") == wanted
