"""States as values: fork, roll back, store, and refuse what is not a state of this bundle."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from numpy.typing import NDArray
from tiny_bundle import TinyModel, rewrite_manifest, write_tiny_bundle

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

DTYPES = ("float32", "float16", "int64", "int8", "uint8")
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 300, size=700)]


@pytest.fixture(params=["tiny", "tiny_transformer"])
def any_tiny(request: pytest.FixtureRequest) -> Tiny:
    made: Tiny = request.getfixturevalue(request.param)
    return made


def run(session: Session, tokens: list[int]) -> list[NDArray[np.float32]]:
    return [session.step(token).copy() for token in tokens]


def test_a_roll_back_continues_bit_for_bit(any_tiny: Tiny) -> None:
    session = open_session(any_tiny.open(), threads=1)
    session.prefill(TOKENS[:301])
    kept = Snapshot.of(session)
    first = run(session, TOKENS[301:310])
    run(session, TOKENS[:50])
    kept.restore(session)
    assert session.position == 301
    np.testing.assert_array_equal(first, run(session, TOKENS[301:310]))


def test_a_fork_continues_bit_for_bit_and_shares_nothing(any_tiny: Tiny) -> None:
    bundle = any_tiny.open()
    session, fork = open_session(bundle, threads=1), open_session(bundle, threads=1)
    session.prefill(TOKENS[:33])
    kept = Snapshot.of(session)
    kept.restore(fork)
    expected = run(session, TOKENS[33:40])
    np.testing.assert_array_equal(expected, run(fork, TOKENS[33:40]))
    run(fork, [1, 2, 3])  # what the fork sees, the first does not
    kept.restore(session)
    np.testing.assert_array_equal(expected, run(session, TOKENS[33:40]))


def test_a_stored_state_continues_bit_for_bit(any_tiny: Tiny, tmp_path: Path) -> None:
    bundle, path = any_tiny.open(), tmp_path / "chat.state"
    session = open_session(bundle, threads=1)
    session.prefill(TOKENS[:77])
    save_snapshot(Snapshot.of(session, TOKENS[:77]), bundle, path)
    expected = run(session, TOKENS[77:90])
    again = Bundle.open(any_tiny.path)
    loaded = load_snapshot(path, again)
    assert (loaded.position, loaded.tokens) == (77, tuple(TOKENS[:77]))
    other = open_session(again, threads=1)
    other.step(9)
    loaded.restore(other)
    np.testing.assert_array_equal(expected, run(other, TOKENS[77:90]))


def test_an_empty_state_is_a_state(tiny: Tiny, tmp_path: Path) -> None:
    bundle, path = tiny.open(), tmp_path / "empty.state"
    session = open_session(bundle, threads=1)
    save_snapshot(Snapshot.of(session), bundle, path)
    assert load_snapshot(path, bundle).position == 0


@pytest.fixture
def stored(tiny: Tiny, tmp_path: Path) -> Path:
    session = open_session(tiny.open(), threads=1)
    session.prefill(TOKENS[:20])
    path = tmp_path / "x.state"
    save_snapshot(Snapshot.of(session, TOKENS[:20]), tiny.open(), path)
    return path


def older(content: bytes, version: int) -> bytes:
    """The same, without its digest, as versions 1 and 2 wrote it."""
    _, _, states, position, tokens, seen, bundle = struct.unpack_from("<8sIIqQQ32s", content)
    at = 72 + (states + 1) // 2 * 8
    dtypes = [DTYPES[code] for code in struct.unpack_from(f"<{states}I", content, 72)]
    header = {"version": version, "bundle": bundle.hex(), "position": position}
    header |= {"tokens": tokens, "dtypes": dtypes}
    ids, rest = content[at : at + 4 * tokens], content[at + 4 * tokens :]
    if version == 1:
        rest = rest[4 * seen :]
    else:
        header |= {"seen": seen}
    raw = json.dumps(header, separators=(",", ":")).encode()
    return b"RETSTATE" + len(raw).to_bytes(4, "little") + raw + ids + rest


def test_every_changed_byte_is_noticed(stored: Path, tiny: Tiny) -> None:
    raw, bundle = stored.read_bytes(), tiny.open()
    load_snapshot(stored, bundle)
    for at in range(len(raw)):
        stored.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(InputError) as caught:
            load_snapshot(stored, bundle)
        assert str(stored) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw[:-1], "bytes; a state file like it has"),
        (lambda raw: raw + b"x", "bytes; a state file like it has"),
        (lambda raw: raw[:9], "header of the state file was cut off"),
        (lambda raw: raw[:71], "header of the state file was cut off"),
        (lambda raw: raw[:74], "header of the state file was changed: odd dtypes"),
        (lambda raw: raw[:72] + b"\x05" + raw[73:], "was changed: odd dtypes"),
        (
            lambda raw: raw[:72] + b"\x01" + raw[73:],
            "its states are float16; this",
        ),
        (lambda raw: raw[:12] + b"\xff" * 4 + raw[16:], "its number of states is 4294967295"),
        (lambda raw: raw[:23] + b"\x80" + raw[24:], "its position is -922337203685477"),
        (lambda raw: raw[:31] + b"\x80" + raw[32:], "its number of tokens is 922337203685477"),
        (lambda raw: raw[:39] + b"\x80" + raw[40:], "number of ids that were seen is 92233720"),
        (lambda raw: b"", "is not a state file"),
        (lambda raw: b"PK\3\4" + raw, "is not a state file"),
        (lambda raw: b"RETSTATE\xff\xff\xff\xff" + raw[12:], "header of the state file"),
    ],
)
def test_files_that_are_no_state(
    change: Callable[[bytes], bytes], sentence: str, stored: Path, tiny: Tiny
) -> None:
    stored.write_bytes(change(stored.read_bytes()))
    with pytest.raises(InputError, match=sentence):
        load_snapshot(stored, tiny.open())


def test_an_unknown_version_is_named(stored: Path, tiny: Tiny) -> None:
    content = stored.read_bytes()[:-32]
    newer = content[:8] + b"\x09" + content[9:]
    stored.write_bytes(newer + hashlib.sha256(newer).digest())
    with pytest.raises(InputError, match=r"version 9 are not known; .* reads 1 to 3"):
        load_snapshot(stored, tiny.open())
    odd = older(content, 2).replace(b'"version":2', b'"version":3')
    stored.write_bytes(odd + hashlib.sha256(odd).digest())
    with pytest.raises(InputError, match="version 3 are not known"):
        load_snapshot(stored, tiny.open())


def old_file(stored: Path) -> bytes:
    """Of version 2, whose header is JSON."""
    content = older(stored.read_bytes()[:-32], 2)
    return content + hashlib.sha256(content).digest()


def with_header(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A state file with another header, and the checksum that belongs to it."""
    length = int.from_bytes(raw[8:12], "little")
    header = change(raw[12 : 12 + length])
    content = raw[:8] + len(header).to_bytes(4, "little") + header + raw[12 + length : -32]
    return content + hashlib.sha256(content).digest()


def test_a_header_has_room_for_a_mebibyte(stored: Path, tiny: Tiny) -> None:
    """A length that is damaged makes nobody read more than that into memory."""
    raw = old_file(stored)
    stored.write_bytes(with_header(raw, lambda header: header.ljust(1 << 20)))
    assert load_snapshot(stored, tiny.open()).position == 20
    stored.write_bytes(with_header(raw, lambda header: header.ljust((1 << 20) + 1)))
    with pytest.raises(InputError, match="header of the state file was changed"):
        load_snapshot(stored, tiny.open())


def test_a_field_that_nobody_knows_is_refused(stored: Path, tiny: Tiny) -> None:
    changed = with_header(old_file(stored), lambda header: header[:-1] + b',"later":1}')
    stored.write_bytes(changed)
    with pytest.raises(InputError, match=r"header of the state file was changed.*later"):
        load_snapshot(stored, tiny.open())


@pytest.mark.parametrize("field", ["position", "tokens", "seen"])
@pytest.mark.parametrize("value", [-1, 2**62 + 1])
def test_counts_that_no_state_has_are_refused(
    field: str, value: int, stored: Path, tiny: Tiny
) -> None:
    def change(header: bytes) -> bytes:
        return json.dumps(json.loads(header) | {field: value}).encode()

    stored.write_bytes(with_header(old_file(stored), change))
    sentence = rf"header of the state file was changed: Expected `int` [<>]= .*\$.{field}"
    with pytest.raises(InputError, match=sentence):
        load_snapshot(stored, tiny.open())


def test_a_state_of_other_weights_is_refused(stored: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.edge"
    write_tiny_bundle(other, model=TinyModel(300, seed=1))
    with pytest.raises(InputError, match="state of another bundle"):
        load_snapshot(stored, Bundle.open(other))


def test_paths_that_cannot_be(tiny: Tiny, tmp_path: Path) -> None:
    bundle = tiny.open()
    with pytest.raises(InputError, match="is not a file: a state file was expected"):
        load_snapshot(tmp_path / "none", bundle)
    snapshot = Snapshot.of(open_session(bundle, threads=1))
    with pytest.raises(InputError, match="is not a directory"):
        save_snapshot(snapshot, bundle, tmp_path / "no" / "x.state")


def test_a_verdict_does_not_change_what_a_state_belongs_to(
    broken: Path, stored: Path, tiny: Tiny
) -> None:
    before = Bundle.open(broken).fingerprint
    (broken / "reports").mkdir()
    (broken / "reports" / "parity.json").write_text("{}")
    rewrite_manifest(broken, rehash=True)
    assert Bundle.open(broken).fingerprint == before == tiny.open().fingerprint
    load_snapshot(stored, Bundle.open(broken))


def test_a_file_of_version_1_has_seen_its_tokens(stored: Path, tiny: Tiny) -> None:
    old = older(stored.read_bytes()[:-32], 1)
    stored.write_bytes(old + hashlib.sha256(old).digest())
    loaded = load_snapshot(stored, tiny.open())
    assert loaded.tokens == tuple(TOKENS[:20])
    assert loaded.seen == set(TOKENS[:20])


def test_a_file_of_version_2_is_the_same_state(stored: Path, tiny: Tiny) -> None:
    new, content = load_snapshot(stored, tiny.open()), stored.read_bytes()[:-32]
    old = older(content, 2)
    stored.write_bytes(old + hashlib.sha256(old).digest())
    loaded = load_snapshot(stored, tiny.open())
    assert (loaded.tokens, loaded.seen, loaded.position) == (new.tokens, new.seen, new.position)
    for first, second in zip(loaded.states, new.states, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_layout_of_a_file(stored: Path, tiny: Tiny) -> None:
    """As native/format.h has it."""
    raw, bundle = stored.read_bytes(), tiny.open()
    states = len(bundle.manifest.states)
    header = struct.unpack_from("<8sIIqQQ32s", raw)
    seen = sorted(set(TOKENS[:20]))
    label = bytes.fromhex(bundle.fingerprint)
    assert header == (b"RETSTAT3", 3, states, 20, 20, len(seen), label)
    at = 72 + (states + 1) // 2 * 8
    assert raw[72:at] == bytes(at - 72)
    ids = struct.unpack_from(f"<{20 + len(seen)}i", raw, at)
    assert ids == (*TOKENS[:20], *seen)
    numbers = np.frombuffer(raw[at + 4 * len(ids) : -32], dtype="<f4")
    session = open_session(bundle, threads=1)
    session.prefill(TOKENS[:20])
    np.testing.assert_array_equal(numbers, np.concatenate([s.ravel() for s in session.states()]))
    assert raw[-32:] == hashlib.sha256(raw[:-32]).digest()


@pytest.mark.parametrize(
    "header",
    [
        b'{"version":2,"bundle":"\xff\xfe"}',
        b"[" * 100_000,
        b'{"version":2,"position":' + b"9" * 40 + b"}",
    ],
)
def test_headers_that_no_json_reader_takes(header: bytes, tiny: Tiny, tmp_path: Path) -> None:
    content = b"RETSTATE" + len(header).to_bytes(4, "little") + header
    (tmp_path / "s").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(InputError, match="the header of the state file was changed"):
        load_snapshot(tmp_path / "s", tiny.open())


def test_ids_that_the_model_has_not(tiny: Tiny, tmp_path: Path) -> None:
    bundle = tiny.open()
    session = open_session(bundle, threads=1)
    session.step(1)
    for bad in (300, -1):
        save_snapshot(Snapshot.of(session, [299, bad, 0]), bundle, tmp_path / "s")
        sentence = f"token id {bad} is out of range: this model has ids 0 to 299$"
        with pytest.raises(InputError, match=sentence):
            load_snapshot(tmp_path / "s", bundle)
    save_snapshot(Snapshot.of(session, [299, 0]), bundle, tmp_path / "s")
    assert load_snapshot(tmp_path / "s", bundle).tokens == (299, 0)
    with pytest.raises(InputError, match="token id -1 is out of range"):
        session.load_states(session.states(), 1, {-1})
    with pytest.raises(InputError, match="at most 4611686018427387904"):
        session.load_states(session.states(), 2**63)


def test_what_was_seen_is_not_printed(tiny: Tiny) -> None:
    """It can be as many ids as the vocabulary has."""
    session = open_session(tiny.open(), threads=1)
    session.step(123)
    text = repr(Snapshot.of(session))
    assert "position=1" in text
    assert "seen" not in text
