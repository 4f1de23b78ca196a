"""Packed files: what is in them, that they run as their bundle does, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import native_bundles
import numpy as np
import pytest
from model_table import decode_table
from native_bundles import TOKENS, Export, Quantized, silent

import retnet_edge
from retnet_edge.cli import main
from retnet_edge.errors import InputError
from retnet_edge.pipeline.verify import verify
from retnet_edge.runtime.backends.native.library import Model
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle import packed
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.packed import PackedBundle, open_bundle
from retnet_edge.runtime.packed.pack import pack
from retnet_edge.runtime.parity.golden import golden_arrays, read_golden, replay_golden
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

pytestmark = native_bundles.NEEDS_THE_LIBRARY
exported = native_bundles.exported
quantized = native_bundles.quantized
OLD = Path(__file__).parents[2] / "data" / "compatibility" / "bundle"


@pytest.fixture(scope="module")
def file(quantized: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test changes it."""
    folder = tmp_path_factory.mktemp("packed")
    for name, text in (("licence", "Free to use. ©"), ("card", "# A card"), ("chat", "{{ x }}")):
        (folder / name).write_text(text)
    return pack(
        quantized().path,
        folder / "a.retnet",
        licence=folder / "licence",
        card=folder / "card",
        chat_template=folder / "chat",
        say=silent,
    )


def opened(path: Path) -> PackedBundle:
    bundle = open_bundle(path)
    assert isinstance(bundle, PackedBundle)
    return bundle


def header_of(raw: bytes) -> dict[str, Any]:
    names = ("magic", "version", "header_bytes", "file_bytes", "sections", "reserved")
    return dict(zip(names, packed.HEADER.unpack_from(raw)[:6], strict=True))


def records_of(raw: bytes) -> list[list[Any]]:
    """[kind, version, offset, bytes, reserved, sha256] of every section."""
    count = header_of(raw)["sections"]
    found = raw[packed.HEADER.size :][: count * packed.SECTION.size]
    return [list(record) for record in packed.SECTION.iter_unpack(found)]


def mended(raw: bytes, records: list[list[Any]] | None = None, **header: Any) -> bytes:
    """With other records or header fields, and hashes that fit."""
    records = records_of(raw) if records is None else records
    fields = {**header_of(raw), **header}
    size = fields["file_bytes"]
    packed_records = b"".join(
        packed.SECTION.pack(*r[:5], hashlib.sha256(raw[r[2] : r[2] + r[3]]).digest())
        for r in records
    )
    label = packed.HEADER.unpack_from(raw)[6]
    start = packed.HEADER.pack(*fields.values(), label, bytes(32))
    assert size is not None
    digest = hashlib.sha256(start + packed_records).digest()
    return start[:-32] + digest + packed_records + raw[len(start) + len(packed_records) :]


def test_the_file_runs_as_its_bundle_does(quantized: Quantized, file: Path, tmp_path: Path) -> None:
    bundle, other = quantized(), opened(file)
    first = open_session(bundle, threads=2, backend="native")
    second = open_session(other, threads=1)
    for token in TOKENS[:40]:
        np.testing.assert_array_equal(first.step(token), second.step(token))
    np.testing.assert_array_equal(first.prefill(TOKENS), second.prefill(TOKENS))
    # states cross both ways
    save_snapshot(Snapshot.of(first), bundle, tmp_path / "a.state")
    save_snapshot(Snapshot.of(second), other, tmp_path / "b.state")
    load_snapshot(tmp_path / "a.state", other).restore(second)
    load_snapshot(tmp_path / "b.state", bundle).restore(first)
    np.testing.assert_array_equal(first.step(1), second.step(1))
    texts = [
        list(retnet_edge.load(path, backend="native").generate("The whale", max_tokens=20))
        for path in (bundle.path, file)
    ]
    assert texts[0] == texts[1]


def test_what_is_in_it(quantized: Quantized, file: Path) -> None:
    """By the layout in native/format.h, and by what C finds."""
    bundle, raw = quantized(), file.read_bytes()
    assert header_of(raw) == {
        "magic": b"RETNETPK",
        "version": 1,
        "header_bytes": 96 + 64 * len(records_of(raw)),
        "file_bytes": len(raw),
        "sections": len(records_of(raw)),
        "reserved": 0,
    }
    assert raw[32:64].hex() == bundle.fingerprint
    contents = {r[0]: raw[r[2] : r[2] + r[3]] for r in records_of(raw)}
    places = {r[0]: r[2] for r in records_of(raw)}
    assert places[packed.WEIGHTS] % 16384 == 0
    assert all(place % 64 == 0 for place in places.values())
    assert contents[packed.WEIGHTS] == bundle.file("weights.bin").read_bytes()
    table = contents[packed.TABLE]
    assert decode_table(table) == decode_table(bundle.file("native.table").read_bytes())
    assert contents[packed.TOKENIZER_JSON] == bundle.file("tokenizer.json").read_bytes()
    assert contents[packed.LICENCE].decode() == "Free to use. ©"
    model = Model.open(file)
    for kind in (packed.LICENCE, packed.CARD, packed.CHAT_TEMPLATE, packed.GOLDEN, packed.TABLE):
        assert model.section(kind) == contents[kind] == opened(file).section(kind)
    assert model.section(77) is None
    assert opened(file).section(77) is None
    assert bytes(model.info.fingerprint).hex() == bundle.fingerprint
    ends = bundle.manifest.tokenizer.ends
    generation = contents[packed.GENERATION]
    assert struct.unpack_from("<II", generation) == (1, len(ends))
    assert struct.unpack_from(f"<{len(ends)}i", generation, 56) == ends
    assert model.info.begin_token == -1


def test_the_golden_replay(quantized: Quantized, file: Path) -> None:
    bundle, other = quantized(), opened(file)
    arrays = read_golden(bundle.file("golden.npz"), bundle.manifest)
    found = golden_arrays(other)
    assert found is not None
    assert arrays.keys() == found.keys()
    for name, array in arrays.items():
        assert array.dtype == found[name].dtype
        np.testing.assert_array_equal(array, found[name])
    session = open_session(other, threads=1)
    assert replay_golden(other, session) == replay_golden(
        bundle, open_session(bundle, threads=1, backend="native")
    )


def test_commands_take_it(
    quantized: Quantized, exported: Export, file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "b.retnet"
    assert main(["pack", str(quantized().path), str(out)]) == 0
    assert main(["info", "--json", str(out)]) == 0
    facts = json.loads(capsys.readouterr().out.split("MB\n", 1)[1])
    assert facts["sections"]["weights"] == quantized().manifest.files["weights.bin"].size
    assert list(facts["graphs"]) == ["native.table"]
    text = tmp_path / "held.txt"
    text.write_text("A text of some words. " * 40)
    before = out.read_bytes()
    verdict = verify(
        out,
        checkpoint=exported("base").checkpoint,
        text=text,
        tokens=64,
        context=32,
        memory_steps=0,
        say=silent,
    )
    (measured,) = verdict.backends
    assert measured.parity.golden is not None
    assert measured.parity.golden.near_logit_error < 0.5
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b.retnet", "held.txt"]


def test_a_bundle_of_an_older_version(tmp_path: Path) -> None:
    path = pack(OLD, tmp_path / "old.retnet", say=silent)
    old = open_session(Bundle.open(OLD), threads=1, backend="native")
    new = open_session(open_bundle(path), threads=1)
    np.testing.assert_array_equal(old.prefill([1, 2, 3]), new.prefill([1, 2, 3]))


def test_what_is_not_packed(
    exported: Export, quantized: Quantized, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no native plan: make one with retnet-edge quantize"):
        pack(exported("base").bundle, tmp_path / "a.retnet", say=silent)
    with pytest.raises(InputError, match="exists already"):
        pack(quantized().path, file, say=silent)
    with pytest.raises(InputError, match=r"is not a directory: a\.retnet cannot be made in it"):
        pack(quantized().path, tmp_path / "none" / "a.retnet", say=silent)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="latin is not UTF-8: byte 3 begins no character"):
        pack(quantized().path, tmp_path / "a.retnet", licence=tmp_path / "latin", say=silent)
    with pytest.raises(InputError, match="cannot be read"):
        pack(quantized().path, tmp_path / "a.retnet", card=tmp_path / "none", say=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["latin"]


def changed_record(kind: int, /, **fields: int) -> Callable[[bytes], bytes]:
    names = {"kind": 0, "version": 1, "offset": 2, "bytes": 3}

    def change(raw: bytes) -> bytes:
        records = records_of(raw)
        for record in records:
            if record[0] == kind:
                for name, value in fields.items():
                    record[names[name]] = value
                break
        return mended(raw, records)

    return change


def flipped(kind: int) -> Callable[[bytes], bytes]:
    """One bit of a section."""

    def change(raw: bytes) -> bytes:
        at = next(r[2] for r in records_of(raw) if r[0] == kind) + 5
        return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]

    return change


def of_generation(at: int, put: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        start = next(r[2] for r in records_of(raw) if r[0] == packed.GENERATION) + at
        return mended(raw[:start] + put + raw[start + len(put) :])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"", "empty"),
        (lambda raw: b"RETNETXX" + raw[8:], "does not begin with RETNETPK"),
        (lambda raw: raw[:95], "does not begin with RETNETPK"),
        (lambda raw: raw[:200], "the file has 200 bytes; its header says"),
        (lambda raw: raw[:-1], "its header says"),
        (lambda raw: raw + b"\0", "its header says"),
        (lambda raw: mended(raw, version=2), "the file's version is 2; this library reads 1"),
        (lambda raw: mended(raw, sections=65), "the file has 65 sections; at most 64 are allowed"),
        (lambda raw: mended(raw, header_bytes=96), "and a header of 96"),
        (lambda raw: raw[:40] + b"\x55" + raw[41:], "header was changed: its SHA-256 does not fit"),
        (flipped(packed.WEIGHTS), "was changed: its SHA-256 does not fit"),
        (flipped(packed.TABLE), "was changed: its SHA-256 does not fit"),
        (flipped(packed.GENERATION), "was changed: its SHA-256 does not fit"),
        (changed_record(packed.WEIGHTS, offset=2**63), "lies at bytes 9223372036854775808"),
        (changed_record(packed.WEIGHTS, bytes=2**64 - 1), "lies at bytes"),
        (changed_record(packed.TABLE, offset=64), "lies at bytes 64 to"),
        (changed_record(packed.WEIGHTS, offset=4096), "it needs a multiple of 16384"),
        (changed_record(packed.GENERATION, kind=packed.TABLE), "are both of kind 1"),
        (changed_record(packed.TABLE, kind=99), "has no model table or no weights"),
        (changed_record(packed.WEIGHTS, kind=99), "has no model table or no weights"),
        (changed_record(packed.GENERATION, bytes=55), "has 55 bytes; at least 56 are needed"),
        (changed_record(packed.GENERATION, bytes=56), "has 56 bytes; with 1 ends it needs 60"),
        (of_generation(0, b"\2"), "the generation record's version is 2"),
        (of_generation(56, b"\xff\xff\xff\x7f"), "an end of text is token 2147483647; allowed is"),
        (of_generation(8, bytes(4)), "names a token that the vocabulary"),
        (of_generation(12, b"\xfe\xff\xff\xff"), "names a token that the vocabulary"),
        (of_generation(24, struct.pack("<d", np.nan)), "an option of sampling that is out of its"),
        (of_generation(32, struct.pack("<d", 0)), "an option of sampling that is out of its range"),
    ],
)
def test_files_that_c_refuses(
    file: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "bad.retnet"
    path.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        Model.open(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "has .* bytes; its header says"),
        (lambda raw: mended(raw, version=2), "the file's version is 2"),
        (lambda raw: raw[:40] + b"\x55" + raw[41:], "header was changed"),
        (changed_record(packed.MANIFEST, kind=99), "carries no manifest: only libretnet can run"),
        (flipped(packed.MANIFEST), "its manifest was changed: the SHA-256 does not fit"),
        (flipped(packed.TOKENIZER_JSON), "its tokenizer.json was changed"),
        (changed_record(packed.TABLE, kind=99), "its model table is not the one that its manifest"),
        (lambda raw: mended(flipped(packed.WEIGHTS)(raw)), "its weights is not the one that its"),
        (changed_record(packed.CARD, kind=packed.LICENCE), "two sections are of kind 7"),
        (changed_record(packed.CARD, offset=2**62), "lies at bytes 4611686018427387904 to"),
    ],
)
def test_files_that_python_refuses(
    file: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "bad.retnet"
    path.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)


def test_weights_whose_hash_is_not_asked_for(file: Path, tmp_path: Path) -> None:
    """The caller has checked the file: all else is checked as ever."""
    path = tmp_path / "a.retnet"
    path.write_bytes(flipped(packed.WEIGHTS)(file.read_bytes()))
    assert Model.open(path, skip_weight_hash=True).info.vocab_size == 384
    path.write_bytes(flipped(packed.TABLE)(file.read_bytes()))
    with pytest.raises(InputError, match="was changed"):
        Model.open(path, skip_weight_hash=True)


def test_a_text_that_was_changed_is_not_handed_out(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.retnet"
    path.write_bytes(flipped(packed.LICENCE)(file.read_bytes()))
    model = Model.open(path)
    assert model.section(packed.LICENCE) is None
    assert model.section(packed.CARD) == b"# A card"
    with pytest.raises(InputError, match="its licence was changed"):
        opened(path).section(packed.LICENCE)


def test_odd_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        Model.open(tmp_path / "none.retnet")
    with pytest.raises(InputError, match="regular file"):
        Model.open(tmp_path)
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        Model.open(tmp_path / "pipe")
    link = tmp_path / "link.retnet"
    link.symlink_to(file)
    assert Model.open(link).info.layers == 2
    assert opened(link).manifest.model.vocab_size == 384
    named = Path(shutil.copy(file, tmp_path / "ein Modell é.retnet"))
    assert Model.open(named).info.layers == 2
