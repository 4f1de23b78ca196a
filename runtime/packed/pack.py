"""From a bundle with a native plan to one file that is mapped and run where it lies."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from retnet_edge.atomic import check_target, replace_file
from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.files import read_input, read_regular
from retnet_edge.progress import hashing
from retnet_edge.runtime.backends.native.library import Model, native_available
from retnet_edge.runtime.backends.native.plan import retnet_config
from retnet_edge.runtime.backends.native.session import mapped
from retnet_edge.runtime.backends.native.table import read_table
from retnet_edge.runtime.bundle import packed
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, Manifest, encode
from retnet_edge.runtime.parity.golden import LOGIT_ROWS, NEAR_TOKENS, golden_arrays
from retnet_edge.runtime.parity.probes import FAR_POSITION
from retnet_edge.runtime.text.sampling import Sampling
from retnet_edge.runtime.verify import CARD_FILE
from retnet_edge.tokenizer import drawable_ids
from retnet_edge.tokenizing.structure import MOST_BYTES

_CHUNK = 1 << 20
_LARGEST_TEXT = 1 << 20  # bytes of a licence or a card
_GENERATION = struct.Struct("<IIiiii4d")
_GOLDEN = struct.Struct("<IIIIq")


class _Part(NamedTuple):
    """What a section holds: bytes, or the file that it is a copy of."""

    kind: int
    content: bytes | Path
    size: int

    @classmethod
    def of(cls, kind: int, content: bytes | Path) -> _Part:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return cls(kind, content, size)


def pack(
    bundle: str | Path,
    out: str | Path,
    *,
    licence: str | Path | None = None,
    card: str | Path | None = None,
    chat_template: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the packed file of a bundle; returns its path. See native/format.h for what it holds.

    licence, card, chat_template: texts to go along, UTF-8; card None: the one that `verify` left in
    the bundle. say: told that there is no tokenizer table, which C has no use for yet: the library
    runs on token ids alone.

    Raises InputError where the bundle has no native plan or does not open, `out` exists already or
    cannot be written, or a text is none.
    """
    source, out = Bundle.open(bundle), Path(out)
    check_target(out, "file")
    manifest = source.manifest
    graph = manifest.graph_for("native", "step")
    if graph is None or len(graph.external_data) != 1:
        raise InputError(
            f"{source.path} has no native plan: make one with retnet-edge quantize --native"
        )
    config = retnet_config(manifest.model, str(source.path / MANIFEST_FILE))
    weights = source.file(graph.external_data[0])
    table = read_table(source.file(graph.file), config, mapped(weights).size)
    tokenizer_file = source.file(manifest.tokenizer.file)
    raw_tokenizer = read_regular(tokenizer_file, MOST_BYTES, "a tokenizer")
    say(
        "packed without a tokenizer table, to run on token ids alone: this version has no "
        "tokenizer tables"
    )
    contents: dict[int, bytes | Path | None] = {
        packed.TABLE: table,
        packed.GENERATION: _generation(source),
        packed.CHAT_TEMPLATE: _text(chat_template),
        packed.GOLDEN: _golden(source),
        packed.LICENCE: _text(licence),
        packed.CARD: _text(card) if card is not None else _own_card(source),
        packed.MANIFEST: _manifest(manifest, graph.file, table),
        packed.TOKENIZER_JSON: raw_tokenizer,
        packed.WEIGHTS: weights,
    }
    parts = [_Part.of(kind, content) for kind, content in contents.items() if content is not None]
    try:
        replace_file(out, _pieces(parts, source.fingerprint))
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InputError(f"{out}: {DISK_FULL}: nothing was written") from error
    _try(out, say)
    return out


def _try(out: Path, say: Callable[[str], None]) -> None:
    """What was written opens, by everything that the library checks."""
    if native_available():
        Model.open(out)
    else:
        say(f"{out} was not opened once: the native backend is not built here")


def _generation(source: Bundle) -> bytes:
    """retnet_generation_record, then the ends."""
    tokens, defaults = source.manifest.tokenizer, Sampling()
    record = _GENERATION.pack(
        1,
        len(tokens.ends),
        drawable_ids(source.tokenizer(), source.manifest.model.vocab_size),
        -1 if tokens.begin_of_text is None else tokens.begin_of_text,
        -1 if tokens.padding is None else tokens.padding,
        defaults.top_k,
        defaults.temperature,
        defaults.top_p,
        defaults.min_p,
        defaults.repetition_penalty,
    )
    return record + struct.pack(f"<{len(tokens.ends)}i", *tokens.ends)


def _golden(source: Bundle) -> bytes | None:
    """retnet_golden_header, then its arrays."""
    arrays = golden_arrays(source)
    if arrays is None:
        return None
    states = [arrays[f"near_state_{i}"] for i in range(len(source.manifest.states))]
    return b"".join(
        (
            _GOLDEN.pack(1, NEAR_TOKENS, LOGIT_ROWS, LOGIT_ROWS, FAR_POSITION),
            *(arrays[name].astype("<i4").tobytes() for name in ("near_tokens", "far_tokens")),
            *(arrays[name].astype("<f4").tobytes() for name in ("near_logits", "far_logits")),
            *(np.ascontiguousarray(state, dtype="<f4").tobytes() for state in states),
        )
    )


def _manifest(manifest: Manifest, table_file: str, table: bytes) -> bytes:
    """The bundle's, with the native graphs alone and what they need of the files."""
    graphs = tuple(graph for graph in manifest.graphs if graph.backend == "native")
    kept = {manifest.tokenizer.file, table_file, *graphs[0].external_data}
    files = {name: entry for name, entry in manifest.files.items() if name in kept}
    # of an older version's JSON plan, the table that was made of it
    files[table_file] = msgspec.structs.replace(
        files[table_file], size=len(table), sha256=hashlib.sha256(table).hexdigest()
    )
    report = msgspec.structs.replace(manifest.verification, report=None)
    return encode(
        msgspec.structs.replace(manifest, graphs=graphs, files=files, verification=report)
    )


def _own_card(source: Bundle) -> bytes | None:
    if CARD_FILE not in source.manifest.files:
        return None
    return read_regular(source.file(CARD_FILE), _LARGEST_TEXT, "a model card")


def _text(path: str | Path | None) -> bytes | None:
    """A file's text. Raises InputError where it is none."""
    if path is None:
        return None
    raw = read_input(Path(path), _LARGEST_TEXT, "a text that is packed")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} begins no character") from error
    return raw


def _pieces(parts: list[_Part], fingerprint: str) -> Iterator[bytes]:
    """The whole file."""
    at = packed.HEADER.size + len(parts) * packed.SECTION.size
    records, places = b"", []
    with hashing("hash the sections", sum(part.size for part in parts)) as advance:
        for part in parts:
            align = packed.WEIGHTS_ALIGN if part.kind == packed.WEIGHTS else packed.SECTION_ALIGN
            offset = -(-at // align) * align
            digest = hashlib.sha256()
            for piece in _content(part):
                digest.update(piece)
                advance(len(piece))
            records += packed.SECTION.pack(part.kind, 1, offset, part.size, 0, digest.digest())
            places.append(offset)
            at = offset + part.size
    header = packed.HEADER.pack(
        packed.MAGIC,
        packed.VERSION,
        packed.HEADER.size + len(records),
        at,
        len(parts),
        0,
        bytes.fromhex(fingerprint),
        bytes(32),
    )
    whole = hashlib.sha256(header + records).digest()
    yield header[:-32] + whole + records
    at = len(header) + len(records)
    for part, offset in zip(parts, places, strict=True):
        yield bytes(offset - at)
        yield from _content(part)
        at = offset + part.size


def _content(part: _Part) -> Iterator[bytes]:
    if isinstance(part.content, bytes):
        yield part.content
        return
    with part.content.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece
